"""The scoreboard keeps what it is given, whoever else writes and however a writer ends."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from msgspec.structs import replace

from helpers import scoreboard
from helpers.files import locked, printable
from helpers.measurement import Alone, Context, Dataset, Machine, Measurement, MemoryUse, Training, machine
from helpers.pipelines import PIPELINES
from helpers.plots import scoreboard_by_pipeline
from helpers.sandbox import Outcome

PARTS = {
    "alone": Alone(images_per_s=512.25, first_batch_s=0.06, first_epoch_images_per_s=500.5, cores_busy=1.0),
    "memory": MemoryUse(
        peak_mib=90.5, baseline_mib=40.0, peak_file_mib=60.0, method="rss-parts", budget_mib=400.0
    ),
    "training": Training(),
    "context": Context(machine=machine(), date="2026-11-21"),
}  # fmt: skip


def measurement(name="generator", **changes) -> Measurement:
    """A row; a change of a part is a dictionary of the figures that change in it."""
    values = {
        "outcome": Outcome.FINISHED, "files": 240, "image_size": (224, 224), "batch_size": 32, "dtype": "uint8",
        "batches_done": 8, "images_done": 240,
    }  # fmt: skip
    parts = {part: replace(record, **changes.pop(part, {})) for part, record in PARTS.items()}
    return Measurement(name=name, **{**values, **parts, **changes})


def test_what_is_recorded_is_loaded(tmp_path):
    path = tmp_path / "deep" / "machine.jsonl"
    given = [measurement("a", error="naïve – “quoted”\nsecond line"), measurement("b", alone={"images_per_s": None})]
    for one in given:
        assert scoreboard.record(one, path) == path
    assert scoreboard.load(path) == given


def test_this_machines_file_names_no_owner(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    path = scoreboard.record(measurement())
    assert path.parent == tmp_path and path.suffix == ".jsonl"
    assert f"{machine().cores}-cores" in path.name
    assert os.uname().nodename not in path.name
    assert scoreboard.load() == [measurement()]


def test_an_unfinished_line_costs_only_itself(tmp_path):
    path = tmp_path / "machine.jsonl"
    scoreboard.record(measurement("first"), path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])  # a writer was killed
    scoreboard.record(measurement("last"), path)
    with pytest.warns(UserWarning, match="line 2: left out"):
        names = [one.name for one in scoreboard.load(path)]
    assert names == ["first", "last"]


@pytest.mark.parametrize("rubbish", [b"\xff\xfe\n", b"[]\n", b'{"name": "x"}\n', b"null\n", b'"text"\n', b"{\n"])
def test_rubbish_is_left_out_and_named(tmp_path, rubbish):
    path = tmp_path / "machine.jsonl"
    path.write_bytes(rubbish + b"\n" + measurement().to_json().encode() + b"\n")
    with pytest.warns(UserWarning, match=r"machine\.jsonl, line 1"):
        assert scoreboard.load(path) == [measurement()]


def test_a_row_of_another_version_is_left_out_and_named(tmp_path):
    path = tmp_path / "machine.jsonl"
    flat = json.dumps({"name": "generator", "outcome": "finished", "peak_mib": 90.5})
    path.write_text(f"{flat}\n{measurement().to_json()}\n")
    with pytest.warns(UserWarning, match="line 1: left out .a row of another version of the course; measure again"):
        assert scoreboard.load(path) == [measurement()]


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "machine.jsonl"
    scoreboard.record(measurement("first"), path)
    before = path.read_bytes()

    def no_room(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        scoreboard.record(measurement("second"), path)
    assert path.read_bytes() == before


def record_many(path: Path, writer: int) -> None:
    for number in range(25):
        scoreboard.record(measurement(f"{writer}-{number}", training={"wait_ms": tuple(map(float, range(200)))}), path)


def test_several_kernels_may_write_at_once(tmp_path):
    path = tmp_path / "machine.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=record_many, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    names = [one.name for one in scoreboard.load(path)]
    assert sorted(names) == sorted(f"{writer}-{number}" for writer in range(3) for number in range(25))


def test_a_lock_that_is_never_let_go_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(scoreboard, "_LOCK_TIMEOUT_S", 0.2)
    path = tmp_path / "machine.jsonl"
    with locked(f"{path}.lock", "busy"), pytest.raises(OSError, match="locked by another program"):
        scoreboard.record(measurement(), path)


def test_the_newest_of_each_name_in_the_courses_order():
    rows = [measurement("mine"), measurement("load_everything", files=1), measurement("load_everything", files=2)]
    newest = scoreboard.newest(rows)
    assert [(one.name, one.files) for one in newest] == [("load_everything", 2), ("mine", 240)]


def test_the_table_says_what_was_not_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    scoreboard.record(measurement(alone={"images_per_s": None}, outcome="out of memory"))
    assert scoreboard.main([]) == 0
    printed = capsys.readouterr().out
    assert "generator" in printed and "out of memory" in printed and "–" in printed


def test_an_empty_scoreboard_says_how_to_fill_it(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    with pytest.raises(SystemExit, match="make course"):
        scoreboard.main([])


# ---- what a lesson shows ---------------------------------------------------------------------------------------------


def test_each_pipeline_has_the_lesson_that_records_it():
    notebooks = Path(__file__).resolve().parents[2] / "notebooks"
    for name, lesson in scoreboard.LESSONS.items():
        cells = json.loads((notebooks / f"{lesson}.ipynb").read_text())["cells"]
        code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert "record(" in code and name in code


def course_rows(here=None, **changes) -> list[Measurement]:
    beside = {"training": {"images_per_s": 400.0}, "context": {"machine": here or machine()}}
    return [measurement(name, **beside, **changes) for name in PIPELINES]


def test_missing_rows_are_borrowed_from_the_nearest_machine():
    cores = machine().cores
    near = course_rows(Machine(cores=cores))
    own = [measurement("mine"), measurement("tf_data", training={"images_per_s": 300.0})]
    mine, borrowed, reference = scoreboard.fill(own, {"far": course_rows(Machine(cores=100 * cores)), "near": near})
    assert [one.name for one in mine] == ["tf_data", "mine"] and reference == "near"
    assert borrowed == [one for one in near if one.name != "tf_data"]
    together = scoreboard.newest([*mine, *borrowed])
    assert [one.name for one in together] == [*PIPELINES, "mine"]


def test_a_run_that_failed_is_kept_and_a_reference_row_stands_beside_it():
    failed = measurement("tf_data", outcome="out of memory", alone={"images_per_s": None})
    mine, borrowed, _ = scoreboard.fill([failed], {"other": course_rows(Machine())})
    assert mine == [failed] and "tf_data" in [one.name for one in borrowed]
    assert scoreboard.newest([*mine, *borrowed])[list(PIPELINES).index("tf_data")].alone.images_per_s


def test_nothing_is_borrowed_where_nothing_is_missing_or_there_is_nothing():
    assert scoreboard.fill(course_rows(), {"other": course_rows()}) == (course_rows(), [], None)
    assert scoreboard.fill([measurement()], {}) == ([measurement()], [], None)


def test_reference_machines_are_read_by_default(monkeypatch, tmp_path):
    monkeypatch.setattr(scoreboard, "_RESULTS", tmp_path)
    for one in [*course_rows(files=1), *course_rows(files=2)]:
        scoreboard.record(one, tmp_path / "lab.jsonl")
    _, borrowed, reference = scoreboard.fill([])
    assert reference == "lab" and [(one.name, one.files) for one in borrowed] == [(name, 2) for name in PIPELINES]


def test_the_table_marks_what_was_borrowed_and_keeps_the_order(capsys):
    from rich.console import Console

    own, borrowed = [measurement("mine"), measurement("tf_data")], [measurement("generator"), measurement("tf_data")]
    Console(width=120).print(scoreboard.table(own, reference=borrowed))
    lines = [line.split("240")[0].strip() for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert lines == ["generator (reference)", "tf_data", "tf_data (reference)", "mine"]


# ---- many machines ---------------------------------------------------------------------------------------------------


def write(path: Path, *rows: Measurement) -> Path:
    for one in rows:
        scoreboard.record(one, path)
    return path


def a_class(folder: Path, **paces: float) -> Path:
    for owner, pace in paces.items():
        rows = [
            measurement(name, alone={"first_epoch_images_per_s": 500.0 * pace}) for name in ("generator", "tf_data")
        ]
        write(folder / owner / "laptop.jsonl", *rows)
    return folder


def merged_by_command(capsys, *arguments) -> tuple[int, str, str]:
    status = scoreboard.main(["merge", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_equal_machines_in_different_folders_are_different_machines(tmp_path):
    merged = scoreboard.merge([a_class(tmp_path, anna=1, ben=0.4, carla=1.1)])
    assert list(merged.machines) == ["anna", "ben", "carla"]
    assert merged.pace() == pytest.approx({"anna": 1, "ben": 0.4, "carla": 1.1})
    assert merged.setting == "240 images of ? at 224×224, batches of 32"
    assert merged.left_out == merged.unread == ()


def test_files_are_named_by_what_tells_them_apart(tmp_path):
    rows = [measurement(alone={"images_per_s": float(rate)}) for rate in range(1, 7)]
    paths = ["a/x/one.jsonl", "a/y/one.jsonl", "b/x/one.jsonl", "b/x/two.jsonl", "b/x/two"]
    files = [write(tmp_path / path, row) for path, row in zip(paths, rows, strict=False)]
    names = ["a/x/one.jsonl", "a/y/one.jsonl", "b/x/one.jsonl", "b/x/two.jsonl", "b/x/two"]
    assert list(scoreboard.merge(files).machines) == names  # without the suffix two would have one name
    assert list(scoreboard.merge(files[:3]).machines) == ["a/x", "a/y", "b/x"]
    assert list(scoreboard.merge(files[2:4]).machines) == ["one", "two"]


def test_a_file_counts_once_however_often_it_is_named_or_copied(tmp_path):
    one = write(tmp_path / "anna" / "laptop.jsonl", measurement())
    copy = tmp_path / "ben.jsonl"
    copy.write_bytes(one.read_bytes())
    merged = scoreboard.merge([one, one, tmp_path / "anna", copy])
    assert list(merged.machines) == ["laptop"]
    assert merged.left_out == (f"{copy}: left out; a copy of {one}",)


def test_two_machines_in_one_file_are_two(tmp_path):
    kinds = [Machine(cpu=cpu, cores=4, memory_mib=8000) for cpu in ("A", "B")]
    rows = [measurement(context={"machine": kind}) for kind in kinds]
    merged = scoreboard.merge([write(tmp_path / "class.jsonl", *rows)])
    assert list(merged.machines) == ["class: a-4-cores-8-gib", "class: b-4-cores-8-gib"]


def test_the_newest_row_of_each_name_counts(tmp_path):
    path = write(tmp_path / "a.jsonl", *[measurement(alone={"images_per_s": rate}) for rate in (1.0, 2.0)])
    assert [one.alone.images_per_s for one in scoreboard.merge([path]).machines["a"]] == [2.0]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"files": 2000}, "2,000 images"),
        ({"image_size": (128, 96)}, "128×96"),
        ({"batch_size": 8}, "batches of 8"),
        ({"context": {"dataset": Dataset(name="dogs")}}, "images of dogs"),
    ],
)
def test_only_what_is_comparable_is_compared(tmp_path, other, words):
    write(tmp_path / "a.jsonl", measurement("generator"), measurement("tf_data"))
    write(tmp_path / "b.jsonl", measurement("generator"), measurement("tf_data", **other))
    write(
        tmp_path / "c.jsonl", measurement("generator", **other), measurement("generator", alone={"images_per_s": 3.0})
    )
    write(tmp_path / "d.jsonl", measurement("generator", **other))
    merged = scoreboard.merge([tmp_path])
    names = {where: [one.name for one in rows] for where, rows in merged.machines.items()}
    assert names == {"a": ["generator", "tf_data"], "b": ["generator"], "c": ["generator"]}
    assert [line[:2] for line in merged.left_out] == ["b:", "d:"]  # c has a newer row that can be compared
    assert all("1 row left out" in line and words in line for line in merged.left_out)


def test_busy_shares_are_of_one_accelerator(tmp_path):
    beside = {name: {"accelerator": name, "images_per_s": 400.0, "utilisation_percent": 50.0} for name in ("A", "B")}
    write(tmp_path / "a.jsonl", *[measurement(name, training=beside["A"]) for name in ("generator", "tf_data")])
    write(tmp_path / "b.jsonl", measurement("generator", training=beside["B"]))
    merged = scoreboard.merge([tmp_path])
    assert "1 row left out; trained with B, not A" in merged.left_out[0]
    shares = [one.training.utilisation_percent for rows in merged.machines.values() for one in rows]
    assert shares == [50.0, 50.0, None]


def test_torn_lines_cost_only_themselves(tmp_path, recwarn):
    path = write(tmp_path / "a.jsonl", measurement())
    path.write_bytes(b"{torn\n" * 5 + path.read_bytes())
    merged = scoreboard.merge([path])
    assert list(merged.machines) == ["a"] and merged.unread == ()
    (line,) = merged.left_out
    assert "line 1: left out" in line and line.endswith(", and 4 lines more of that file") and not recwarn.list


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    picture = tmp_path / "new" / "class.png"
    folder = a_class(tmp_path / "class", anna=1, ben=0.4, carla=1.1)
    none, much = {"first_epoch_images_per_s": None}, {"peak_mib": 2000.0}
    row = measurement("generator", outcome="out of memory", alone=none, memory=much)
    write(folder / "dora" / "laptop.jsonl", row)
    status, out, err = merged_by_command(capsys, folder, "--to", picture)
    assert status == 0 and err == "" and picture.read_bytes().startswith(b"\x89PNG")
    generator = next(line for line in out.splitlines() if line.startswith("generator")).split()
    assert generator == ["generator", "4", "500", "200", "(2)", "550", "(3)", "–", "–", "2,000"]
    assert "4 machines" in out and "0.40" in out and "generator out of memory" in " ".join(out.split())


@pytest.mark.parametrize("name", ["class.png", "class.svg", "class.pdf"])
def test_a_picture_replaces_only_one_of_its_own(tmp_path, capsys, name):
    folder, picture = a_class(tmp_path / "class", anna=1), tmp_path / name
    assert [merged_by_command(capsys, folder, "--to", picture)[0] for _ in range(2)] == [0, 0]
    picture.write_bytes(b"somebody's picture")
    with pytest.raises(SystemExit):
        merged_by_command(capsys, folder, "--to", picture)
    assert picture.read_bytes() == b"somebody's picture"


def test_a_pipeline_that_finished_nowhere_is_still_a_result(tmp_path, capsys):
    none = {"first_epoch_images_per_s": None, "images_per_s": None}
    row = measurement("[b]", outcome="hung", alone=none, context={"machine": Machine()})
    path = write(tmp_path / "[a].jsonl", row)
    status, out, _ = merged_by_command(capsys, path, "--to", tmp_path / "a.svg")
    assert status == 0 and "1 machine:" in out and "[a]" in out and "[b]" in out and "hung" in out


STRANGE = [":cat:", "[/b]", "[red]", "\x1b[31mred", "two\nlines", "\udcff"]


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "local"))
    context = {"dataset": Dataset(name=name), "machine": Machine(cpu=name)}
    row = measurement(name, context=context, training={"accelerator": name, "utilisation_percent": 1.0})
    folder, shown = tmp_path / name.replace("/", ""), printable(name)
    write(folder / "a.jsonl", row)
    (folder / "b.jsonl").write_bytes(json.dumps({"outcome": name, "version": 2}).encode())
    status, out, err = merged_by_command(capsys, folder, tmp_path / name.replace("/", "~"), "--to", folder / "a.png")
    assert status == 1 and f"images of {shown} at" in out and out.count(shown) >= 3 and (folder / "a.png").exists()
    assert printable(folder.name) in err and "\x1b" not in out + err
    monkeypatch.setattr(scoreboard, "local_path", lambda: folder / "a.jsonl")
    assert scoreboard.main([]) == 0
    out = capsys.readouterr().out
    assert out.count(shown) == 3 and "\x1b" not in out


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"", "it is empty"), (b"no results\n", "no line of it is a measurement")],
)
def test_a_file_that_gives_nothing_is_named_and_the_others_are_shown(tmp_path, capsys, content, words):
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_bytes(content)
    good = write(tmp_path / "good.jsonl", measurement())
    picture = tmp_path / "a.png"
    status, out, err = merged_by_command(capsys, bad, good, "--to", picture)
    assert status == 1 and err.startswith(f"{bad}: left out; {words}") and "good" in out and picture.exists()
    status, out, err = merged_by_command(capsys, bad, "--to", picture)
    assert status == 1 and "nothing to compare" in err and out == ""


def test_a_folder_without_results_is_named(tmp_path, capsys):
    status, _, err = merged_by_command(capsys, tmp_path)
    assert status == 1 and "no *.jsonl below it" in err


def test_a_picture_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = write(tmp_path / "a.jsonl", measurement())
    status, _, err = merged_by_command(capsys, path, "--to", tmp_path / "file" / "a.png")
    assert status == 1 and "not written" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["merge"], "FILES"), (["merge", "a.jsonl", "--to", "a.txt"], "ends in .png"), (["nothing"], "invalid choice")],
)
def test_arguments_that_make_no_sense_end_with_status_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as left:
        scoreboard.main(arguments)
    assert left.value.code == 2 and words in capsys.readouterr().err


def test_ways_of_reading_memory_that_differ_are_named(tmp_path, capsys):
    write(tmp_path / "a.jsonl", measurement())
    write(tmp_path / "b.jsonl", measurement(memory={"method": "uss"}))
    _, out, _ = merged_by_command(capsys, tmp_path, "--to", tmp_path / "a.png")
    assert "peak memory is not quite comparable: read by rss-parts, uss" in out


@pytest.fixture
def thirty(tmp_path):
    """The files of a class: the reference machine's rows at thirty paces; the twelfth laptop is ten times as slow."""
    chance = np.random.default_rng(0)
    reference = next(iter(scoreboard.load_reference().values()))
    for number in range(1, 31):
        pace, cores = float(chance.lognormal(0.4, 0.5)), int(chance.choice([2, 4, 8, 16]))
        laptop = replace(reference[0].context.machine, cores=cores, memory_mib=int(chance.choice([8, 16])) * 1024)
        for one in reference:
            times = (0.1 if number == 12 else pace) * float(chance.lognormal(0, 0.1))
            rate = min(one.training.ceiling_images_per_s, one.training.images_per_s * times)
            busy = 100 * rate / one.training.ceiling_images_per_s
            row = replace(
                one,
                alone=replace(one.alone, first_epoch_images_per_s=one.alone.first_epoch_images_per_s * times),
                training=replace(one.training, images_per_s=rate, utilisation_percent=busy),
                context=replace(one.context, machine=laptop),
            )
            if number == 11 and one.name == "load_everything":
                nothing = replace(one.alone, images_per_s=None, first_epoch_images_per_s=None)
                row = replace(row, outcome=Outcome.OUT_OF_MEMORY, alone=nothing, training=Training())
            scoreboard.record(row, tmp_path / f"laptop {number:02d}" / "equal.jsonl")
    return tmp_path


def test_a_class_of_thirty_on_one_picture_that_can_be_read(thirty, capsys):
    status, out, err = merged_by_command(capsys, thirty, "--to", thirty / "class.png")
    assert (status, err) == (0, "") and out.startswith("30 machines: 2,000 images")
    assert "12  laptop 12" in out.replace("│", " ") and "load_everything out of" in out
    assert cv2.imread(str(thirty / "class.png")).shape[1] == 700
    merged = scoreboard.merge([thirty])
    paces = merged.pace()
    assert min(paces, key=paces.get) == "laptop 12" and len(paces) == 30
    figure = scoreboard_by_pipeline(merged.machines, title=merged.setting)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes[:2]:
        labels = [one for one in axes.texts if one.get_text().isdecimal() and one.get_fontsize() == 8]
        assert sum(one.get_text() == "12" for one in labels) >= (8 if axes is figure.axes[0] else 6)
        boxes = [one.get_window_extent(canvas.get_renderer()) for one in labels]
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes), "a number outside its panel"
        crossing = sum(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
        assert not crossing, f"{crossing} pairs of {len(boxes)} numbers cover each other"
    plt.close(figure)
