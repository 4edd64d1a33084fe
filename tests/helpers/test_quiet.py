"""Commands begin and end without lines that nobody asked for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TENSORFLOW = """
import os
os.write(2, b"I0000 00:00 a start-up note" + bytes([10]) + b"a message" + bytes([10]))
"""


def run(*arguments, before="", packages):
    """Run Python in the course's folder; modules in `packages` stand before those that are installed."""
    command = ["sh", "-c", f'exec "$0" "$@" {before}', sys.executable, *arguments]
    env = {"PYTHONPATH": f"{packages}:{ROOT}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


QUIET = """
from helpers.quiet import quiet_tensorflow
quiet_tensorflow()
import os, sys
with open(sys.argv[1], "w") as file:
    os.write(2, b"not for the file")
print("tensorflow" in sys.modules)
"""


@pytest.mark.parametrize(("before", "error"), [("", "a message\nnot for the file"), ("2>&-", ""), ("2>&- <&-", "")])
def test_start_up_notes_are_left_out_also_where_standard_error_is_closed(tmp_path, before, error):
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    done = run("-c", QUIET, str(tmp_path / "file"), before=before, packages=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", error)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["-m", "helpers.scoreboard"], "rich"),
        (["-m", "helpers.benchmark", "."], "numpy"),
        (["tools/run_course.py"], "nbformat"),
        (["tools/run_course.py"], "psutil"),
    ],
)
def test_ctrl_c_while_a_command_is_importing_prints_no_traceback(tmp_path, command, module):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    done = run(*command, packages=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_another_error_while_importing_is_shown(tmp_path):
    (tmp_path / "rich.py").write_text("raise OSError('broken')")
    assert "OSError: broken" in run("-m", "helpers.scoreboard", packages=tmp_path).stderr


def test_a_program_that_uses_the_helpers_keeps_its_tracebacks(tmp_path):
    (tmp_path / "program.py").write_text("import helpers\nraise KeyboardInterrupt")
    assert "Traceback" in run(str(tmp_path / "program.py"), packages=tmp_path).stderr
