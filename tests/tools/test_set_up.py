"""The set-up says in a sentence why a machine is not ready, before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "set_up.sh"


@pytest.fixture
def folder(tmp_path):
    """A folder whose name has a space and a letter that ASCII lacks, as many people's have."""
    folder = tmp_path / "Übung 1"
    folder.mkdir()
    return folder


def set_up(folder, python="", path="", before=()):
    command = [*before, "sh", str(SCRIPT), python, ".venv", "requirements.txt"]
    env = {**os.environ, "PATH": f"{path}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_too_little_disk(folder, tmp_path):
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    df.write_text("#!/bin/sh\necho Filesystem Blocks Used Available\necho disk 9000000 8000000 1000000\n")
    df.chmod(0o755)
    run = set_up(folder, path=f"{df.parent}:")
    assert run.returncode == 1 and "has 1000 MB free" in run.stderr and "4 GB" in run.stderr
    assert not list(folder.iterdir())


def test_no_python_of_a_supported_version(folder):
    run = set_up(folder, python="/there is no/python3")
    assert run.returncode == 1 and "tried: /there is no/python3" in run.stderr
    assert not list(folder.iterdir())


def test_a_read_only_folder(folder):
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount.append('mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$0" "$@"')
    probe = subprocess.run([*mount, "true"], cwd=folder, capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip("this system lets no test mount a folder")
    run = set_up(folder, before=mount)
    assert run.returncode == 1 and "Nothing can be written in" in run.stderr, run.stderr


VENV_PYTHON = """#!/bin/sh
case "$*" in
-c*version_info*) echo {version} ;;
*) echo "$@" >>calls ;;
esac
"""


def write_python(path, version):
    """A program that answers as this version of Python does, and notes what else it is called with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(VENV_PYTHON.format(version=version))
    path.chmod(0o755)
    return path


def calls(folder):
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


@pytest.fixture
def course(folder):
    """A course that is set up with Python 3.12, and moved or not."""
    write_python(folder / ".venv" / "bin" / "python", "3.12")
    (folder / "tools").mkdir()
    shutil.copy(SCRIPT, folder / "tools")
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(SCRIPT.parents[1] / name, folder)
    for name in ("installed-requirements", "installed-requirements-dev"):
        (folder / ".venv" / name).write_text(f"{folder.resolve()}\n")
    return folder


def make(course, *arguments):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))}
    return subprocess.run(["make", *arguments], cwd=course, env=env, capture_output=True, text=True, timeout=60)


INSTALLS = "-m pip install --quiet --disable-pip-version-check -r requirements.txt"


def test_another_python_than_that_of_the_environment_is_refused_in_one_line(course, tmp_path):
    run = make(course, "course", f"PYTHON={write_python(tmp_path / 'python3.13', '3.13')}")
    assert run.returncode == 2 and calls(course) == []
    assert (
        run.stderr.splitlines()[0] == ".venv has Python 3.12, not 3.13: remove it (rm -rf .venv), and run make again."
    )
    run = make(course, "course", "PYTHON=no/such/python")
    assert run.returncode == 2 and run.stderr.startswith("no/such/python does not run.\n")
    run = make(course, "course", f"PYTHON={write_python(tmp_path / 'python3.12', '3.12')}")
    assert (run.returncode, calls(course)) == (0, ["tools/run_course.py"]), run.stderr


def test_what_is_set_up_is_not_set_up_again_unless_it_was_moved(course):
    assert make(course, "course").returncode == 0
    assert calls(course) == ["tools/run_course.py"]
    moved = course.rename(course.parent / "moved")
    run = make(moved, "course")
    assert run.returncode == 0, run.stderr
    assert calls(moved)[1:] == ["-m pip --version", INSTALLS, "tools/run_course.py"]
    assert make(moved, "course").returncode == 0
    assert calls(moved)[4:] == ["tools/run_course.py"]


def test_make_calls_no_script_of_the_environment(course):
    for target in ("lab", "check"):
        assert make(course, target).returncode == 0
    assert calls(course)[:2] == ["-m jupyterlab notebooks", "-m ruff check -q ."]


def test_two_do_not_set_up_at_once(course):
    holder = course / ".venv" / "set-up.pid"
    holder.write_text(f"{os.getpid()}\n")
    run = set_up(course)
    assert run.returncode == 1 and f"Process {os.getpid()} is setting up .venv already" in run.stderr
    assert INSTALLS not in calls(course) and holder.exists()
    with subprocess.Popen(["true"]) as ended:
        pass
    for left in (f"{ended.pid}\n", ""):  # by a set-up that was killed
        holder.write_text(left)
        assert set_up(course).returncode == 0
        assert calls(course)[-1] == INSTALLS and not holder.exists()
