"""The GPU benchmark runs on a CPU too, keeps every run, goes on where it stopped, and heeds its clock."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from test_accelerators import FAKE_NVML

from helpers.accelerators import EmulatedAccelerator
from helpers.files import locked
from helpers.measurement import Measurement
from helpers.sandbox import Outcome
from helpers.scoreboard import load

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--without-gpu", "--model", "small_cnn", "--ceilings", "small_cnn", "--precision", "float32")
SMALL += ("--batch-size", "8", "--images", "24", "--pipelines", "generator", "--rounds", "2")


@pytest.fixture
def gpu_benchmark():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bench(folder, *arguments, **environment):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *SMALL, "--to", str(folder), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=ROOT)


def begun(done):
    return [line for line in done.stdout.splitlines() if "…" in line]


@pytest.fixture(scope="module")
def with_driver(tmp_path_factory):
    """What shows the benchmark a GPU on which nothing can compute; nothing where it cannot be built."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if sys.platform != "linux" or compiler is None:
        return {}
    driver = tmp_path_factory.mktemp("driver")
    (driver / "nvml.c").write_text(FAKE_NVML)
    library = driver / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, driver / "nvml.c"], check=True)
    return {"LD_LIBRARY_PATH": str(driver), "CUDA_VISIBLE_DEVICES": "0"}


@pytest.fixture(scope="module")
def first(with_driver, tmp_path_factory):
    """The results of a benchmark of two rounds, and how it ended."""
    folder = tmp_path_factory.mktemp("results")
    done = bench(folder, "--minutes", "30", **with_driver)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.slow  # the fixture runs the benchmark for 40 s
def test_a_gpus_own_figures_and_name_come_into_the_rows(first, with_driver):
    if not with_driver:
        pytest.skip("needs Linux and a C compiler, to build a library that answers as a GPU's driver would")
    folder, done = first
    (results,) = folder.glob("*.jsonl")
    assert "fake-gpu-0" in results.name
    (row,) = load(results)
    assert (row.gpu.busy_percent, row.gpu.sm_percent) == (40, 62.5)
    assert row.context.machine.gpus == ("Fake GPU 0", "Fake GPU 1")
    assert row.gpu.framework_peak_mib is None  # Keras computed on the CPU
    assert "40 %" in done.stdout
    assert "62 %" in done.stdout


@pytest.mark.slow
def test_runs_are_kept_and_not_made_twice(first, with_driver, tmp_path):
    folder, done = first
    assert begun(done) == ["generator, round 1 …", "generator, round 2 …"]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (results,) = tmp_path.glob("*.jsonl")
    (row,) = load(results)
    assert (row.name, row.training.accelerator, row.batch_size, row.files) == ("generator", "small_cnn", 8, 24)
    assert len(row.training.runs_images_per_s) == 2
    assert row.training.images_per_s == min(row.training.runs_images_per_s)
    assert results.with_suffix(".png").exists()
    (ceilings,) = tmp_path.glob("*--runs/ceilings.json")
    assert list(json.loads(ceilings.read_text())) == ["small_cnn, batches of 8"]
    runs = sorted(tmp_path.glob("*--runs/generator*.json"))
    assert len(runs) == 2
    kept = runs[1].read_text()
    runs[0].unlink()  # as if it had been killed in it
    second = bench(tmp_path, "--minutes", "30", **with_driver)
    assert begun(second) == ["generator, round 1 …"]
    assert runs[1].read_text() == kept
    assert len(load(results)) == 1
    none = bench(tmp_path, "--minutes", "0.01", "--images", "16", **with_driver)
    assert none.returncode == 0, none.stderr
    assert len(load(results)) == 1  # what there is stays
    assert not list(tmp_path.rglob("packs-*"))
    with locked(ceilings.parent / ".lock", busy="it is ours"):
        assert "another benchmark is running" in bench(tmp_path, **with_driver).stderr


def test_no_run_begins_that_would_not_end_in_time(tmp_path):
    done = bench(tmp_path, "--minutes", "0.01")
    assert done.returncode == 0, done.stderr
    assert "3 runs did not fit into 0.01 minutes; the same command goes on with them" in done.stdout
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_run_that_the_clock_cut_off_is_not_kept(gpu_benchmark, monkeypatch, files, tmp_path):
    def waits(files, **settings):
        time.sleep(600)

    monkeypatch.setattr(gpu_benchmark, "_SHORTEST_RUN_S", 0.0)
    monkeypatch.setitem(gpu_benchmark.PIPELINES, "generator", waits)
    options, accelerator = gpu_benchmark._parse([*SMALL]), EmulatedAccelerator(1000)
    clock = gpu_benchmark._Clock(minutes=3 / 60)
    assert gpu_benchmark._one_run("generator", 0, accelerator, options, files, tmp_path, clock) is None
    assert not list(tmp_path.glob("*.json"))


def test_without_a_gpu_it_says_so(gpu_benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_benchmark, "gpus", list)
    assert gpu_benchmark.main(["--to", str(tmp_path / "new")]) == 2
    assert "no NVIDIA GPU here" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--pipelines", "generators"], "unknown: generators"), (["--rounds", "0"], "must be above zero")],
)
def test_wrong_settings(gpu_benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        gpu_benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_a_pipeline_that_failed_in_one_round_is_shown_as_failed(gpu_benchmark):
    good: Measurement = load(next(iter((ROOT / "results").glob("*.jsonl"))))[0]
    slow = replace(good, training=replace(good.training, images_per_s=1.0))
    failed = replace(good, outcome=Outcome.OUT_OF_MEMORY, training=replace(good.training, images_per_s=None))
    assert gpu_benchmark._median_of([good, failed]).outcome == "out of memory"
    assert gpu_benchmark._median_of([good, slow, good]).training.images_per_s == good.training.images_per_s


def test_a_cpus_rows_do_not_take_a_references_place(gpu_benchmark):
    assert gpu_benchmark._parse(["--without-gpu"]).to == ROOT / "build" / "gpu-bench"
    assert gpu_benchmark._parse([]).to == ROOT / "results"
