"""The benchmark on folders as they are in life: what it says, what it leaves behind, how it ends."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import cv2
import numpy as np
import psutil
import pytest
from conftest import draw_image, write_images

from helpers import scoreboard
from helpers.benchmark import command as benchmark
from helpers.benchmark.rates import Limits
from helpers.folders import find_any_images
from helpers.packing import default_folder, pack
from helpers.pipelines import PIPELINES
from helpers.sandbox import run
from helpers.slow_store import slow_store

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child process need not import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--pipelines", "generator", "--repeats", "1", "--image-size", "32", "--accelerator", "none"]
SEEN = Limits(40, (), {"JPEG": 40}, (120, 160), 5e3, 1e4, 1e3, 2e3, 2)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(benchmark, "_DATA", tmp_path / "data")


@pytest.fixture
def seen(monkeypatch):
    """Spare the look at the images, for which a process imports TensorFlow."""
    monkeypatch.setattr(benchmark, "find_limits", lambda *_: SEEN)


def pages(tmp_path: Path) -> str:
    (page,) = (tmp_path / "results").glob("*.html")
    return page.read_text(encoding="utf-8")


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_class_folders_with_broken_files(own_folder, tmp_path, capsys):
    paths = sorted(own_folder.rglob("*.jpg"))
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[2].read_bytes()[:300])
    odd = paths[3].with_name("<b>it's; odd & ü \udcff.jpg")
    paths[3].rename(odd)
    odd.write_bytes(b"<html>")
    gray = cv2.cvtColor(draw_image(1), cv2.COLOR_RGB2GRAY)
    cv2.imwrite(str(paths[4]), gray)
    cv2.imwrite(str(paths[5].with_suffix(".png")), draw_image(2))
    arguments = ["--pipelines", "generator,tf_data_fast", *QUICK[2:], "--json", str(tmp_path / "all.json")]
    assert benchmark.main([str(own_folder), *arguments]) == 0
    told = capsys.readouterr()
    page = pages(tmp_path)
    for path in (*paths[:2], odd):
        name = path.name.replace("\udcff", r"\udcff")
        assert name in told.err
        assert name.replace("&", "&amp;").replace("<b>", "&lt;b&gt;").replace("'", "&#39;") in page
    assert "3 files of 41 cannot be read or decoded" in page
    assert "Use " in told.out and "Use " in page
    found = json.loads((tmp_path / "all.json").read_text())
    assert [one["name"] for one in found["measurements"]] == ["generator", "tf_data_fast"]
    assert [one["images_done"] for one in found["measurements"]] == [38, 38]
    assert len(found["limits"]["broken"]) == 3
    (rows,) = (tmp_path / "results").glob("*.jsonl")
    assert [one.name for one in scoreboard.load(rows)] == ["generator", "tf_data_fast"]
    assert rows != scoreboard.local_path(), "rows of other images stay out of the lessons' map"
    for forbidden in ("http://", "https://", "<script", "src="):
        assert forbidden not in page.replace("http://www.w3.org/", ""), "the page needs no network"


def test_a_flat_folder_with_a_table_of_labels(seen, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(10):
        cv2.imwrite(str(flat / f"{number}.jpg"), draw_image(number))
    assert find_any_images(flat)[0].class_names == ("flat",)
    (flat / "labels.csv").write_text("id,breed\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(9)))
    with pytest.warns(UserWarning, match="1 files are in no line"):
        files, call = find_any_images(flat)
    assert (len(files), files.class_names) == (9, ("a", "b"))
    assert call == f"find_labelled_images({str(flat)!r}, {str(flat / 'labels.csv')!r})"
    assert benchmark.main([str(flat), *QUICK, "--accelerator", "emulated:5000"]) == 0
    assert "1 files are in no line" in capsys.readouterr().err
    assert "find_labelled_images" in pages(tmp_path)


def test_images_behind_an_address(tmp_path, image_folder, capsys):
    names = [path.relative_to(image_folder).as_posix() for path in sorted(image_folder.rglob("*.jpg"))]
    (tmp_path / "served").mkdir()
    for folder in image_folder.iterdir():
        (tmp_path / "served" / folder.name).symlink_to(folder)
    (tmp_path / "served" / "list.txt").write_text("\n".join(names))
    with slow_store(tmp_path / "served", latency_ms=30) as store:
        address = store.address("list.txt")
        arguments = ["--pipelines", "generator,tf_data", *QUICK[2:], "--json", str(tmp_path / "all.json")]
        assert benchmark.main([address, *arguments]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        found = json.loads((tmp_path / "all.json").read_text())
        assert [one["images_done"] for one in found["measurements"]] == [40, 40]
        assert found["advice"]["pipeline"] == "tf_data", "beside it, generator reads one by one"
        in_flight = found["advice"]["in_flight"]
        assert f"in_flight={in_flight} " in printed
        (code,) = re.findall("<pre>(.*?)</pre>", pages(tmp_path), re.DOTALL)
        assert f"find_images({address!r})" in html.unescape(code)
        exec(html.unescape(code), shown := {})
        store.set(latency_ms=30)
        assert sum(len(labels) for _, labels in shown["batches"]) == 40
        assert store.counts()["most_at_once"] > 4


def test_images_of_one_folder_and_a_table_beside_it(tmp_path):
    write_images(tmp_path / "set", 4, class_names=("train",))
    (tmp_path / "set" / "train.csv").write_text("image,label\n" + "".join(f"{n:04d}.jpg,{n % 2}\n" for n in range(4)))
    assert find_any_images(tmp_path / "set")[0].class_names == ("0", "1")
    (tmp_path / "set" / "other.csv").write_text("x\n")
    assert find_any_images(tmp_path / "set")[0].class_names == ("0", "1"), "the other table names no images"


def test_one_class_of_ten_images_and_larger_batches(seen, tmp_path, capsys):
    ten = write_images(tmp_path / "it's \x1b[31m ten", 10, class_names=("only",))
    assert benchmark.main([str(ten), *QUICK, "--batch-size", "64"]) == 0
    assert "generator" in capsys.readouterr().out
    (code,) = re.findall("<pre>(.*?)</pre>", pages(tmp_path), re.DOTALL)
    exec(html.unescape(code), shown := {})
    assert [len(labels) for _, labels in shown["batches"]] == [10], "the code of the page does what it says"


@pytest.mark.parametrize("kind, words", [("empty", "no images"), ("missing", "no such folder"), ("noise", "none of 1")])
def test_nothing_to_measure(tmp_path, capsys, kind, words):
    folder = tmp_path / kind
    if kind != "missing":
        folder.mkdir()
    if kind == "noise":
        (folder / "a").mkdir()
        (folder / "a" / "1.jpg").write_bytes(b"noise")
    assert benchmark.main([str(folder), *QUICK]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pipelines", "generatr"],
        ["--accelerator", "emulated:0"],
        ["--accelerator", "gpu"],
        ["--image-size", "0"],
        ["--image-size", "2x"],
        ["--batch-size", "-1"],
        ["--memory-budget", "nan"],
        ["--memory-budget", "629145600"],
        ["--repeats", "0"],
        ["--json", __file__],
    ],
)
def test_arguments_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert arguments[0] in told
    if arguments[1] == "629145600":
        assert "629,145,600 MiB is more than this machine's" in told, "bytes, given for MiB"


# ---- outcomes --------------------------------------------------------------------------------------------------------


def raises(files, **settings):
    raise RuntimeError("no such <luck>")
    yield


def hangs(files, **settings):
    yield np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64)
    time.sleep(600)


def dies(files, **settings):
    os.kill(os.getpid(), signal.SIGKILL)
    yield


@pytest.mark.parametrize("pipeline, outcome", [(raises, "raised"), (hangs, "hung"), (dies, "killed")])
def test_a_pipeline_that_fails_is_told_and_the_others_go_on(
    pipeline, outcome, seen, image_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(PIPELINES, "threaded_generator", pipeline)
    arguments = ["--pipelines", "threaded_generator,generator", *QUICK[2:], "--timeout", "4"]
    assert benchmark.main([str(image_folder), *arguments]) == 1
    told = capsys.readouterr()
    assert outcome in told.err and outcome in told.out and outcome in pages(tmp_path)
    assert "Use generator" in told.out
    if pipeline is raises:
        assert "no such &lt;luck&gt;" in pages(tmp_path)


def test_out_of_memory_is_a_result(seen, image_folder, tmp_path, capsys):
    arguments = ["--pipelines", "load_everything,generator", "--repeats", "1", "--accelerator", "none"]
    size = ["--image-size", "1200", "--batch-size", "2", "--memory-budget", "130"]
    assert benchmark.main([str(image_folder), *arguments, *size]) == 0
    told = capsys.readouterr().out
    assert "load_everything ran out of memory" in told
    assert "Use generator" in told
    assert "out of memory" in pages(tmp_path)


def test_a_budget_below_what_is_imported_is_told(seen, image_folder, capsys):
    arguments = ["--pipelines", "tf_data", "--repeats", "1", "--memory-budget", "60", "--accelerator", "none"]
    assert benchmark.main([str(image_folder), *arguments]) == 0
    told = capsys.readouterr()
    assert "what tf_data imports needs more" in told.err
    assert "No pipeline can be recommended" in told.out


def test_a_budget_below_python_itself_is_told(seen, image_folder, tmp_path, capsys):
    assert benchmark.main([str(image_folder), *QUICK, "--memory-budget", "5"]) == 2
    told = capsys.readouterr().err
    assert "give a larger budget" in told and "no pipeline could be measured" in told
    assert not (tmp_path / "results").exists()


def packing(files, *, image_size, batch_size):
    """As `tf_data_packed`, without TensorFlow."""
    packed = pack(files, default_folder(files, image_size), image_size=image_size)
    for start in range(0, len(packed), batch_size):
        rows = range(start, min(start + batch_size, len(packed)))
        yield np.stack([packed[row] for row in rows]), packed.labels[rows]


def test_each_round_packs_anew_and_nothing_stays(seen, image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PIPELINES, "tf_data_packed", packing)
    monkeypatch.setenv("COURSE_PACKED", str(tmp_path / "the user's"))
    leftover = tmp_path / "data" / "benchmark" / "packs" / "x"
    leftover.mkdir(parents=True)
    arguments = ["--pipelines", "tf_data_packed", "--repeats", "2", "--accelerator", "none", "--image-size", "32"]
    assert benchmark.main([str(image_folder), *arguments]) == 0
    (rows,) = (tmp_path / "results").glob("*.jsonl")
    (one,) = scoreboard.load(rows)
    assert len(one.alone.runs_images_per_s) == 2
    assert os.listdir(tmp_path / "data" / "benchmark") == [".lock"]
    assert not (tmp_path / "the user's").exists()
    assert os.environ["COURSE_PACKED"] == str(tmp_path / "the user's")
    assert "Packing all 40 images" in capsys.readouterr().out


# ---- interruptions ---------------------------------------------------------------------------------------------------

PROGRAM = f"""
import sys
from pathlib import Path
from helpers.benchmark import command as benchmark
from helpers.benchmark.rates import Limits
benchmark.find_limits = lambda *_: {SEEN}
benchmark._DATA = Path(sys.argv.pop(1))
sys.exit(benchmark.main(sys.argv[1:]))
"""
STOPS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])


def start(tmp_path: Path, *arguments: str, program: str = PROGRAM, **settings: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-c", program, str(tmp_path / "data"), *arguments]
    environment = {**os.environ, **settings}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="latin-1"
    )


def read_until(process: subprocess.Popen, words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"{words!r} never came")


@pytest.mark.timeout(120)
@STOPS
def test_stopped_in_the_middle(image_folder, tmp_path, number):
    arguments = ["--pipelines", "generator,threaded_generator", *QUICK[2:3], "50", *QUICK[4:]]
    process = start(tmp_path, str(image_folder), *arguments)
    read_until(process, " 2/100]")
    at_work = psutil.Process(process.pid).children(recursive=True)
    for _ in range(3):  # an impatient user
        process.send_signal(number)
        time.sleep(0.2)
    output, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
    assert not psutil.wait_procs(at_work, timeout=5)[1]
    assert os.listdir(tmp_path / "data" / "benchmark") == [".lock"]
    assert "Stopped before the end" in output
    assert "Stopped before the end" in pages(tmp_path)


@pytest.mark.timeout(120)
@STOPS
def test_stopped_while_it_looks_at_the_images(image_folder, tmp_path, number):
    waiting = PROGRAM.replace(f"lambda *_: {SEEN}", "lambda *_: __import__('time').sleep(60)")
    process = start(tmp_path, str(image_folder), *QUICK, program=waiting)
    read_until(process, "looking at")
    process.send_signal(number)
    output, told = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + number, "")
    assert told == "benchmark: stopped before anything was measured\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.timeout(120)
@STOPS
@pytest.mark.parametrize("module", ["helpers.files", "numpy.linalg", "matplotlib.pyplot"])
def test_stopped_in_the_first_second(image_folder, number, module):
    """While modules are imported, which `-X importtime` shows."""
    command = [sys.executable, "-X", "importtime", "-m", "helpers.benchmark", str(image_folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read_until(process, f" {module}\n")
    process.send_signal(number)
    output, told = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + number, "")
    assert [line for line in told.splitlines() if "import time:" not in line] == ["benchmark: stopped"]


@pytest.mark.timeout(120)
def test_two_at_once_are_refused(image_folder, tmp_path):
    first = start(tmp_path, str(image_folder), *QUICK[:2], "--repeats", "50", *QUICK[4:])
    try:
        read_until(first, "[ 1/50]")
        second = start(tmp_path, str(image_folder), *QUICK)
        _, told = second.communicate(timeout=60)
        assert second.returncode == 2
        assert "another benchmark is running" in told
    finally:
        first.kill()
        first.communicate(timeout=60)
    # What a killed one leaves behind is no obstacle.
    third = start(tmp_path, str(image_folder), *QUICK)
    assert third.communicate(timeout=60) and third.returncode == 0


# ---- reference -------------------------------------------------------------------------------------------------------


def test_reference_rows_are_made_anew(seen, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_RESULTS", tmp_path / "reference")
    for _ in range(2):
        assert benchmark.main([str(image_folder), *QUICK, "--reference"]) == 0
    rows = tmp_path / "reference" / scoreboard.local_path().name
    assert [one.name for one in scoreboard.load(rows)] == ["generator"]
    assert rows.with_suffix(".png").stat().st_size < 100_000


# ---- what cannot be looked at, or written ----------------------------------------------------------------------------


def test_a_look_that_dies_is_told_in_a_line(image_folder, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "find_limits", lambda *_: run(dies_at_once, timeout=60).unwrap())
    assert benchmark.main([str(image_folder), *QUICK]) == 2
    told = capsys.readouterr().err
    assert "looking at the images: killed" in told and "Traceback" not in told


def dies_at_once():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_cannot_be_written_is_told_after_the_figures(seen, image_folder, tmp_path, capsys):
    assert benchmark.main([str(image_folder), *QUICK, "--json", str(tmp_path / "nowhere" / "all.json")]) == 2
    told = capsys.readouterr()
    assert "Use generator" in told.out
    assert "not everything was written" in told.err and "nowhere" in told.err
    assert pages(tmp_path), "the page was"


# ---- names and streams -----------------------------------------------------------------------------------------------

ODD = "\u5199\u771f :cat: [/b] \x1b[31m"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_names_that_the_console_cannot_show(tmp_path, encoding):
    folder = write_images(tmp_path / ODD, 10, class_names=(ODD,))
    limits = replace(SEEN, broken=((str(folder / "gone.jpg"), "no image"),))
    program = PROGRAM.replace(repr(SEEN), repr(limits))
    settings = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "COURSE_RESULTS": str(tmp_path / "results" / ODD)}
    process = start(tmp_path, str(folder), *QUICK, program=program, **settings)
    output, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "Use generator" in output
    shown = r"\u5199\u771f :cat: [/b] \x1b[31m"
    assert f"{shown}/gone.jpg: no image" in told and f"results/{shown}/" in told
    assert "\x1b" not in output + told
    (page,) = (tmp_path / "results" / ODD).glob("*.html")
    assert "\x1b" not in page.read_text(encoding="utf-8")


def test_json_on_standard_output_is_all_that_is_there(seen, image_folder, tmp_path, capsys):
    assert benchmark.main([str(image_folder), *QUICK, "--json", "-"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["advice"]["pipeline"] == "generator"
    assert "Use generator" in told.err
    assert pages(tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_results_are_kept_when_nobody_reads_what_is_shown(image_folder, tmp_path, stream):
    process = start(tmp_path, str(image_folder), *QUICK)
    getattr(process, stream).close()
    rest = (process.stderr if stream == "stdout" else process.stdout).read()
    assert process.wait(timeout=60) == (2 if stream == "stdout" else 0)
    assert "not everything was shown" in rest if stream == "stdout" else "Use generator" in rest
    assert "Traceback" not in rest and "Exception ignored" not in rest
    assert pages(tmp_path) and list((tmp_path / "results").glob("*.jsonl"))
