"""Keep TensorFlow's start-up notes off the reader's page. Used once, by the package's `__init__`.

TensorFlow 2.21 writes five lines to standard error while it is imported, before it reads TF_CPP_MIN_LOG_LEVEL. They are
left out; whatever else is written meanwhile comes through.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile

_START_UP_NOTE = re.compile(rb"^(I0000 .*|WARNING: All log messages before absl::InitializeLog\(\).*)\n?", re.MULTILINE)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow once, and has its loader run with standard error held back."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _without_notes(run, module)
        return spec


def _without_notes(run, module: object) -> None:
    sys.stderr.flush()
    standard_error = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held_back:
            os.dup2(held_back.fileno(), 2)
            try:
                run(module)
            finally:
                os.dup2(standard_error, 2)
                held_back.seek(0)
                if rest := _START_UP_NOTE.sub(b"", held_back.read()):
                    os.write(2, rest)
    finally:
        os.close(standard_error)


def quiet_tensorflow() -> None:
    """Hold TensorFlow's start-up notes back when it is imported."""
    # TensorFlow reads this for all that it logs once it has started.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
