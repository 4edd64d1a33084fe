"""A lesson's first cell does nothing where the course is set up; elsewhere it adds what is missing, and nothing else.

Colab and Kaggle are stood in for by a virtual environment and small packages of our own; pip and git are real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import packaging
import pytest
import setup_cell

ROOT = Path(__file__).resolve().parents[2]
CELL = setup_cell.source("notebooks", address="")
PRESENT = {"tensorflow": "2.20.0", "keras": "3.13.2", "numpy": "2.0.2", "fsspec": "2026.2.0", "tensorboard": "2.20.0"}
ABSENT = ("simplejpeg", "s3fs", "jupyterlab", "nbval")
SHOW = """
import importlib.metadata, pathlib, subprocess, sys
print("folder", pathlib.Path.cwd())
child = "import helpers; print('child', helpers.__file__)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
"""


def write_wheel(folder, name, version, *requires):
    stem = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


NEEDED = ("requirements.in", "requirements-far.in", "requirements-store.in")


def needed():
    """Return the names of all that the lessons need."""
    text = "".join((ROOT / name).read_text() for name in NEEDED)
    return re.findall(r"^[a-zA-Z][\w.-]*", text, re.MULTILINE)


def store_course(folder):
    """Put what the first cell needs of the course into a folder."""
    for name in (
        "helpers/__init__.py",
        "helpers/quiet.py",
        "helpers/elsewhere.py",
        *NEEDED,
        "requirements.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "lesson.ipynb").touch()  # git keeps no empty folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    names = needed()
    for name in names:
        if name != "s3fs":
            write_wheel(folder, name, PRESENT.get(name, "1.0"))
    write_wheel(folder, "s3fs", "2026.2.0", "fsspec==2026.2.0")
    for name in ("numpy", "fsspec"):  # newer than what is there
        write_wheel(folder, name, "2026.9.0")
    write_wheel(folder, "s3fs", "2026.9.0", "fsspec==2026.9.0", "numpy>=2026")
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory, wheels):
    """An environment as Colab's: older versions than ours, and some packages missing."""
    folder = tmp_path_factory.mktemp("image") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    names = needed()
    wanted = [f"{name}=={PRESENT.get(name, '1.0')}" for name in names if name not in ABSENT]
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels]
    subprocess.run([*command, *wanted], check=True, timeout=120)
    site = next(folder.glob("lib/python*/site-packages"))
    shutil.copytree(Path(packaging.__file__).parent, site / "packaging")
    return folder


@pytest.fixture
def kernel(image, wheels, tmp_path):
    """Return a function that runs a cell in a folder, `content`, in a fresh copy of the environment."""
    shutil.copytree(image, tmp_path / "venv", symlinks=True)
    python, content = tmp_path / "venv" / "bin" / "python", tmp_path / "content"
    content.mkdir()
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COURSE", "PIP"))}

    def run(source=CELL + SHOW, **variables):
        env = {**usual, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), **variables}
        return subprocess.run([python, "-c", source], cwd=content, env=env, capture_output=True, text=True, timeout=120)

    def versions():
        code = "from importlib import metadata\nprint({one.name: one.version for one in metadata.distributions()})"
        return eval(run(code).stdout)

    run.content, run.versions = content, versions
    return run


def test_it_does_nothing_where_the_course_is_set_up():
    code = f"{CELL}\nprint({{'numpy', 'packaging', 'tensorflow'}} & set(sys.modules), os.getcwd(), sys.path[1:2])"
    before = f"import sys; path = sys.path[1:2]\n{code}; assert path == sys.path[1:2]"
    run = subprocess.run([sys.executable, "-c", before], cwd=ROOT / "notebooks", capture_output=True, text=True)
    assert run.stdout.startswith(f"set() {ROOT / 'notebooks'} ") and len(run.stdout.splitlines()) == 1, run.stderr


def test_on_colab_it_adds_what_is_missing_and_changes_nothing(kernel):
    course = kernel.content / "feeding-images-main"  # as a zip from a forge unpacks
    store_course(course)
    before = kernel.versions()
    run = kernel(COLAB_RELEASE_TAG="release-colab_20261007")
    assert run.returncode == 0, run.stderr
    assert kernel.versions() == {**before, "simplejpeg": "1.0", "s3fs": "2026.2.0"}
    assert "Colab, Python 3" in run.stdout and "installed: simplejpeg, s3fs; what was here has kept" in run.stdout
    assert re.search(r"other versions: tensorflow \S+ \(here 2.20.0\), keras \S+ \(here 3.13.2\), numpy", run.stdout)
    assert f"folder {course}/notebooks" in run.stdout and f"child {course}/helpers" in run.stdout
    again = kernel(COLAB_RELEASE_TAG="release-colab_20261007")
    assert "installed" not in again.stdout and "tensorflow" in again.stdout


def test_on_kaggle_it_fetches_the_course(kernel, tmp_path):
    store_course(tmp_path / "origin")
    git = ["git", "-C", tmp_path / "origin", "-c", "user.name=a", "-c", "user.email=b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "The course"]):
        subprocess.run([*git, *command], check=True)
    on_kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "COLAB_RELEASE_TAG": "its base"}
    unset = kernel(**on_kaggle)
    assert unset.returncode == 1 and "KeyError: 'COURSE_ADDRESS'" in unset.stderr
    run = kernel(**on_kaggle, COURSE_ADDRESS=(tmp_path / "origin").as_uri())
    assert run.returncode == 0, run.stderr
    assert "Kaggle, Python 3" in run.stdout and f"folder {kernel.content}/feeding-images/notebooks" in run.stdout


def test_what_cannot_be_installed_is_named(kernel, wheels, tmp_path):
    store_course(kernel.content / "feeding-images")
    before = kernel.versions()
    run = kernel(KAGGLE_KERNEL_RUN_TYPE="Interactive", PIP_FIND_LINKS=str(tmp_path))
    assert run.returncode == 0 and "not installed: simplejpeg, ERROR: No matching distribution" in run.stdout
    assert "switch Internet on" in run.stdout and kernel.versions() == before
    for name in ("simplejpeg-1.0", "s3fs-2026.9.0", "fsspec-2026.9.0", "numpy-2026.9.0"):
        shutil.copy(wheels / f"{name}-py3-none-any.whl", tmp_path)
    run = kernel(KAGGLE_KERNEL_RUN_TYPE="Interactive", PIP_FIND_LINKS=str(tmp_path))
    assert "not installed: s3fs, which does not go with a package that is here" in run.stdout, run.stderr
    assert kernel.versions() == {**before, "simplejpeg": "1.0"}


def test_a_readers_own_python_is_not_changed(kernel):
    store_course(kernel.content / "feeding-images")
    before = kernel.versions()
    run = kernel()
    assert run.returncode == 1 and "lacks simplejpeg, s3fs; choose the course's own kernel" in run.stderr
    assert kernel.versions() == before
