"""nbval is what proves the lessons right, so here it is proved that nbval notices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "00_start_here.ipynb"
VERDICT = "arithmetic"  # the id of a cell that is compared
RIGHT, WRONG = "State Farm, float32   77.0 GiB", "State Farm, float32   77.1 GiB"


@pytest.fixture
def beginning():
    """The lesson up to its first compared figures, without the training that it begins with."""
    notebook = nbformat.read(LESSON, as_version=4)
    end = next(number for number, cell in enumerate(notebook.cells) if cell.id == VERDICT)
    notebook.cells = [cell for cell in notebook.cells[: end + 1] if not cell.id.startswith("watch")]
    return notebook


def nbval(notebook, folder: Path) -> subprocess.CompletedProcess:
    path = folder / "lesson.ipynb"
    nbformat.write(notebook, path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-cell-timeout=120",
        "-p",
        "no:cacheprovider",
        str(path),
    ]
    environment = {**os.environ, "COURSE_IMAGES": "40"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_lesson_passes_as_it_is(beginning, tmp_path):
    run = nbval(beginning, tmp_path)
    assert run.returncode == 0, run.stdout


def test_a_changed_verdict_fails(beginning, tmp_path):
    output = beginning.cells[-1].outputs[0]
    assert RIGHT in output.text
    output.text = output.text.replace(RIGHT, WRONG)
    run = nbval(beginning, tmp_path)
    assert run.returncode == 1
    assert "Cell outputs differ" in run.stdout and "1 failed" in run.stdout


def test_an_error_fails(beginning, tmp_path):
    beginning.cells[-1].source += "\nraise ValueError('as a reader would see it')"
    run = nbval(beginning, tmp_path)
    assert run.returncode == 1
    assert "as a reader would see it" in run.stdout
