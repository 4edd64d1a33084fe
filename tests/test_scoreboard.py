"""The scoreboard keeps what it is given, whoever else writes and however a writer ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from helpers import scoreboard
from helpers.measure import Measurement, machine


def measurement(name="generator", **figures) -> Measurement:
    values = {
        "name": name, "outcome": "finished", "error": None, "files": 240, "image_size": (224, 224), "batch_size": 32,
        "dtype": "uint8", "batches_done": 8, "images_done": 240, "images_per_s": 512.25, "first_batch_s": 0.06,
        "first_epoch_images_per_s": 500.5, "cores_busy": 1.0, "peak_mib": 90.5, "baseline_mib": 40.0,
        "peak_file_mib": 60.0, "peak_rss_mib": 150.0, "highest_rss_mib": 150.5, "memory_method": "rss-parts",
        "budget_mib": 400, "machine": machine(), "memory_timeline": ((0.1, 40.0), (0.2, 90.5)), "date": "2026-11-21",
    }  # fmt: skip
    return Measurement(**{**values, **figures})


def test_what_is_recorded_is_loaded(tmp_path):
    path = tmp_path / "deep" / "machine.jsonl"
    given = [measurement("a", error="naïve – “quoted”\nsecond line"), measurement("b", images_per_s=None)]
    for one in given:
        assert scoreboard.record(one, path) == path
    assert scoreboard.load(path) == given


def test_this_machines_file_names_no_owner(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    path = scoreboard.record(measurement())
    assert path.parent == tmp_path and path.suffix == ".jsonl"
    assert f"{machine()['cores']}-cores" in path.name
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
        scoreboard.record(measurement(f"{writer}-{number}", memory_timeline=tuple((i, 1.0) for i in range(200))), path)


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
    with scoreboard.FileLock(f"{path}.lock"), pytest.raises(OSError, match="locked by another program"):
        scoreboard.record(measurement(), path)


def test_the_newest_of_each_name_in_the_courses_order():
    rows = [measurement("mine"), measurement("load_everything", files=1), measurement("load_everything", files=2)]
    newest = scoreboard.newest(rows)
    assert [(one.name, one.files) for one in newest] == [("load_everything", 2), ("mine", 240)]


def test_the_table_says_what_was_not_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    scoreboard.record(measurement(images_per_s=None, outcome="out of memory"))
    scoreboard.main()
    printed = capsys.readouterr().out
    assert "generator" in printed and "out of memory" in printed and "–" in printed


def test_an_empty_scoreboard_says_how_to_fill_it(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    with pytest.raises(SystemExit, match="make course"):
        scoreboard.main()
