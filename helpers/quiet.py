"""Keep TensorFlow's start-up notes, and the traceback of Ctrl-C, off the reader's page.

TensorFlow 2.21 writes five lines to standard error while it is imported, before it reads TF_CPP_MIN_LOG_LEVEL.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile

__all__ = ["quiet_interrupts", "quiet_tensorflow", "without_start_up_notes"]

_START_UP_NOTE = re.compile(rb"^(I0000 .*|WARNING: All log messages before absl::InitializeLog\(\).*)\n?", re.MULTILINE)


def without_start_up_notes(output: bytes) -> bytes:
    """Return what a program wrote to standard error, TensorFlow's start-up notes left out."""
    return _START_UP_NOTE.sub(b"", output)


def quiet_interrupts() -> None:
    """Let Ctrl-C end this program without a traceback, even while it is importing and nothing can catch it yet."""
    usual = sys.excepthook

    def hook(kind, error, traceback) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            usual(kind, error, traceback)

    sys.excepthook = hook


def quiet_tensorflow() -> None:
    """Import TensorFlow, leave out its start-up notes, and let it log errors only.

    Whatever else is written to standard error meanwhile comes through. Nothing happens where TensorFlow is imported
    already, or not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        return
    if sys.stderr is None:  # closed, as by 2>&-: the next file to be opened would be given all that is written there
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    else:
        sys.stderr.flush()
    standard_error = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held_back:
            os.dup2(held_back.fileno(), 2)
            try:
                import tensorflow  # noqa: F401
            except ModuleNotFoundError as error:
                if error.name != "tensorflow":
                    raise
            finally:
                os.dup2(standard_error, 2)
                held_back.seek(0)
                if rest := without_start_up_notes(held_back.read()):
                    os.write(2, rest)
    finally:
        os.close(standard_error)
