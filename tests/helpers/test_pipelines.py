"""Every exported pipeline keeps the promises that its lesson says it keeps, and Keras' `fit` takes what it gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from helpers.contract import check_pipeline
from helpers.folders import course_images, find_images
from helpers.pipelines import PIPELINES
from helpers.pipelines.__main__ import take_home

BROKEN = {"load_everything": (6,)}  # by its nature: lesson 01 is about it
LONGEST_END_S = 60.0  # it takes one or two; others may run beside the tests
ROOT = Path(__file__).parents[2]
VARIANTS = {
    "keras_sequence": [
        {"workers": 1},
        {"workers": 4},
        {"workers": 4, "use_multiprocessing": True},
        {"in_flight": 24},
    ],
    "tf_data": [{}, {"in_flight": 24}],
    "tf_data_fast": [{}, {"workers": 4}, {"in_flight": 24}],
}
TOLERANCES = {"tf_data_fast": 28}  # it decodes fewer pixels: lesson 06 shows what that does
CASES = [(name, settings) for name in PIPELINES for settings in VARIANTS.get(name, [{}])]


@pytest.fixture(autouse=True)
def packs_leave_no_trace(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="packs-") as folder:
        monkeypatch.setenv("COURSE_PACKED", folder)
        yield


@pytest.mark.slow  # each lesson checks its own pipeline, and nbval its verdict
@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda part: str(part))
@pytest.mark.timeout(900)
def test_the_promises(name, settings):
    pipeline = PIPELINES[name]
    pipeline = partial(pipeline, **settings) if settings else pipeline
    report = check_pipeline(pipeline, course_images(60), tolerance=TOLERANCES.get(name, 2))
    assert report.broken == BROKEN.get(name, ()), str(report)
    assert not os.listdir(os.environ["COURSE_PACKED"]), "what a check packs goes with it"


def train_and_end(module, name, end, folder, *, path="") -> tuple[int, float, str]:
    """Run `fit_and_end.py`; return its status, the seconds from the end of `fit` to its own, and what it printed."""
    command = [sys.executable, Path(__file__).with_name("fit_and_end.py"), module, name, end]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder, env=environment)
    seconds = time.time() - float(done.stdout.partition("begin of the end ")[2] or "inf")
    return done.returncode, seconds, done.stdout + done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PIPELINES)
def test_fit_evaluate_and_predict_take_it_and_an_error_in_fit_ends_the_program(name, own_folder):
    status, seconds, text = train_and_end(f"helpers.pipelines.{name}", name, "raise", own_folder)
    assert (status, "RuntimeError: from a callback" in text) == (1, True), text
    assert seconds < LONGEST_END_S, text


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("end", "expected"), [("exit", 3), ("interrupt", -signal.SIGINT), ("file", 1)])
@pytest.mark.parametrize("name", PIPELINES)
def test_other_ends_of_a_training(name, end, expected, own_folder):
    if end == "file":
        Path(find_images(own_folder).paths[17]).write_bytes(b"<html>")
    status, seconds, text = train_and_end(f"helpers.pipelines.{name}", name, end, own_folder)
    assert status == expected, text
    assert end == "file" or seconds < LONGEST_END_S, text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["threaded_generator", "tf_data_fast"])
def test_a_pipeline_taken_home_ends_with_the_program_too(name, own_folder, tmp_path):
    (tmp_path / f"my_{name}.py").write_text(take_home(name), encoding="utf-8")
    status, seconds, text = train_and_end(f"my_{name}", name, "exit", own_folder, path=tmp_path)
    assert (status, seconds < LONGEST_END_S) == (3, True), text


def test_all_that_is_taken_home_carries_the_remedy():
    assert all("atexit.register(end_reading)" in take_home(name) for name in PIPELINES)


@pytest.mark.parametrize("delay_s", [0.001, 0.01, 0.03, 0.05])
def test_a_thread_that_reads_does_not_abort_the_program(delay_s, own_folder):
    code = f"""import sys, time
from helpers.folders import find_images
from helpers.pipelines.threaded_generator import threaded_generator
batches = iter(threaded_generator(find_images("."), image_size=(1000, 1000), batch_size=8))
next(batches)
time.sleep({delay_s})
sys.exit(3)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=own_folder, env=environment, timeout=60)
    assert done.returncode == 3


def test_importing_the_helpers_imports_no_framework():
    code = (
        "import sys, helpers.pipelines, helpers.measure, helpers.contract;"
        "assert not {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
