"""A pipeline that is taken home is one file that keeps its promises where nothing of this course is installed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import taken_home
from ruff import find_ruff_bin
from test_pipelines import BROKEN, TOLERANCES

from helpers.contract import check_pipeline
from helpers.folders import course_images
from helpers.pipelines import PIPELINES
from helpers.pipelines.__main__ import TakeHomeError, take_home

ROOT = Path(__file__).resolve().parents[2]
SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in PIPELINES if name not in ("generator", "threaded_generator")
]


def python_m(*arguments, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "helpers.pipelines", *arguments]
    return subprocess.run(command, **{"capture_output": True, "timeout": 60, "cwd": ROOT, **settings})


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    """All eight, as `my_NAME.py` in one folder."""
    folder = tmp_path_factory.mktemp("home")
    for name in PIPELINES:
        (folder / f"my_{name}.py").write_text(take_home(name), encoding="utf-8")
    return folder


# ---- what it is ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faults(modules, tmp_path_factory) -> dict[str, str | None]:
    """What a Python without the course finds wrong with each."""
    work = tmp_path_factory.mktemp("work")
    script, environment = Path(taken_home.__file__), {**os.environ, "COURSE_PACKED": str(work / "packs")}
    # Without `site`, no .pth file is read: neither the course's own, nor that of a tool that measures coverage.
    command = [sys.executable, "-I", "-S", script, sysconfig.get_path("purelib"), modules, work / "images"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=work, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PIPELINES)
def test_it_runs_without_the_course(name, faults):
    assert faults[name] is None, faults[name]


def test_nothing_of_the_course_is_there_when_it_runs(tmp_path):
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "try:\n    import helpers\n"
        "except ModuleNotFoundError:\n    print('not there')"
    )
    command = [sys.executable, "-I", "-S", "-c", code, sysconfig.get_path("purelib")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout == "not there\n", done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["generator", "threaded_generator", *SLOW])
def test_it_keeps_the_seven_promises(name, modules, monkeypatch):
    monkeypatch.syspath_prepend(modules)
    pipeline = getattr(importlib.import_module(f"my_{name}"), name)
    report = check_pipeline(pipeline, course_images(60), tolerance=TOLERANCES.get(name, 2))
    assert report.broken == BROKEN.get(name, ()), str(report)


@pytest.mark.slow
def test_its_worker_processes_start_anew(modules, tmp_path):
    """Also where a worker inherits nothing, as on macOS and Windows."""
    taken_home.write_images(tmp_path / "images")
    script = tmp_path / "train.py"
    script.write_text(f"""if __name__ == "__main__":
    import multiprocessing, sys
    sys.path.insert(0, {str(modules)!r})
    multiprocessing.set_start_method("spawn")
    from my_keras_sequence import find_images, keras_sequence
    batches = keras_sequence(find_images("images"), image_size=(40, 48), use_multiprocessing=True, workers=1)
    print(sum(len(labels) for _, labels in batches))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["24"], done.stderr


# ---- what it looks like ----------------------------------------------------------------------------------------------


def test_ruff_finds_nothing_to_change(modules):
    for arguments in (["format", "--check", "--line-length", "120"], ["check", "--select", "F,E501,I"]):
        command = [find_ruff_bin(), *arguments, "--isolated", "--no-cache", "."]
        command += ["--line-length", "120"] if arguments[0] == "check" else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=modules)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PIPELINES)
def test_it_says_how_it_is_called_and_what_it_needs(name, modules):
    import cv2
    import numpy as np

    text = (modules / f"my_{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    described = ast.get_docstring(tree)
    assert f"batches = {name}(files, " in described
    assert "files = find_images(" in described
    assert "model.fit(batches, epochs=5)" in described
    assert all(f"{title} {version}" in described for title, version in (("numpy", np.__version__), ("OpenCV", "")))
    assert cv2.__version__[:4] in described
    assert "SPDX-License-Identifier: Apache-2.0" in text
    imported = {part.partition(".")[0] for node in ast.walk(tree) for part in roots(node)}
    needed = {"tensorflow", "keras", "cv2", "numpy", "fsspec"}  # the last for addresses only
    assert imported - sys.stdlib_module_names <= needed


def roots(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def test_only_what_is_used_comes_along():
    text = take_home("tf_data")
    assert "def usable_cores" in text and "class BrokenFiles" in text and "def list_folder" in text
    assert "def sha256_of" not in text and "def course_images" not in text and "class Epochs" not in text


@pytest.mark.parametrize("phrase", ["data_scripts", "from helpers", "import helpers", "parent.parent", "make export"])
def test_nothing_points_back_to_the_course(phrase, modules):
    code = [ast.unparse(ast.parse(path.read_text(encoding="utf-8"))) for path in modules.glob("my_*.py")]
    assert not any(phrase in text for text in code)


def test_packs_lie_beside_the_file(modules, monkeypatch, files):
    monkeypatch.delenv("COURSE_PACKED", raising=False)
    monkeypatch.syspath_prepend(modules)
    module = importlib.import_module("my_tf_data_packed")
    assert module.default_folder(files, (8, 8)).parent == modules / "data" / "packed"


# ---- what cannot be taken --------------------------------------------------------------------------------------------


@pytest.fixture
def sources(monkeypatch):
    """A function that puts modules of helpers, as text, into the place of the real ones."""
    from helpers.pipelines import __main__ as module

    def put(**texts):
        real = module._source
        texts = {f"helpers.{name.replace('__', '.')}": text for name, text in texts.items()}
        monkeypatch.setattr(module, "_source", lambda name: texts[name] if name in texts else real(name))
        module._module.cache_clear()

    yield put
    monkeypatch.undo()
    module._module.cache_clear()


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "import os\n\nos.umask(0)\n\n\ndef mine(files):\n    pass\n": "line 3: neither an import nor a definition",
        "def mine(files):\n    from helpers.files import locked\n": "line 2: imports a helper inside",
        "from helpers.files import printable as shown\n\n\ndef mine(files):\n    shown(1)\n": "as a whole or renamed",
        "def mine(files):\n    nowhere()\n": "nowhere is neither defined nor imported",
        "def printable():\n    pass\n\n\ndef mine(files):\n    printable()\n": "printable is something else",
        "def other(files):\n    pass\n": "mine is neither defined nor imported",
    }.items(),
)
def test_what_cannot_be_taken_is_named(text, message, sources):
    sources(pipelines__mine=text)
    with pytest.raises(TakeHomeError, match=message):
        take_home("mine")


def test_a_parameter_of_the_same_name_takes_nothing_along(sources):
    sources(pipelines__mine="def helper():\n    pass\n\n\ndef mine(files, helper=None):\n    return helper\n")
    assert "def helper" not in take_home("mine")


def test_comments_and_decorators_come_along(sources):
    sources(
        pipelines__mine="import functools\n\n# %% a cell\n# as measured\nLIMIT = 3  # of all\nOTHER = 4\n\n\n"
        "# why\n@functools.cache\ndef mine(files):\n    return LIMIT\n"
    )
    text = take_home("mine")
    assert text.endswith(
        "# as measured\nLIMIT = 3  # of all\n\n\n# why\n@functools.cache\ndef mine(files):\n    return LIMIT\n"
    )
    assert "import functools\n" in text


def test_a_rewritten_line_that_has_changed_is_named(sources, monkeypatch):
    from helpers.pipelines import __main__ as module

    monkeypatch.setitem(module.REWRITTEN, "helpers.folders", ("no such text", ""))
    sources()
    with pytest.raises(TakeHomeError, match=r"folders\.py: no longer holds .* no such text"):
        take_home("tf_data")


def test_a_pipeline_that_is_not_exported_is_named():
    with pytest.raises(TakeHomeError, match=r"nothing\.py: no such file; make export"):
        take_home("nothing")


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_file_in_a_moment_and_imports_no_framework():
    start_s = time.perf_counter()
    done = python_m("tf_data", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPROFILEIMPORTTIME": "1"})
    took_s = time.perf_counter() - start_s
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == take_home("tf_data")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines() if "|" in line}
    assert "helpers.pipelines" in imported
    assert not imported & {"tensorflow", "keras", "cv2", "torch", "jax", "matplotlib"}
    assert took_s < 5  # half a second on a machine that does nothing else


@pytest.mark.parametrize("arguments", [(), ("tf_dat",), ("",)])
def test_without_a_name_of_the_eight_the_command_lists_them(arguments):
    done = python_m(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert all(name in line for name in PIPELINES)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told():
    with open("/dev/full", "wb") as full:
        done = python_m("tf_data", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"No space left" in done.stderr
