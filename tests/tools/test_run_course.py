"""`course` runs every lesson where a reader's JupyterLab runs it, and says which of them failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import run_course as course
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.files import locked

REPOSITORY = course.ROOT


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty course; `make_images.py` of it makes nothing, and its scoreboard is empty."""
    root = tmp_path / "the course"
    for name in ("notebooks/in_depth", "data_scripts", "helpers", "data"):
        (root / name).mkdir(parents=True)
    (root / "data" / "here.txt").write_text("found")
    (root / "requirements.txt").write_text("")
    (root / "data_scripts" / "make_images.py").write_text("")
    monkeypatch.setattr(course, "ROOT", root)
    monkeypatch.setattr(course, "NOTEBOOKS", root / "notebooks")
    monkeypatch.setattr(course, "BUILD", root / "build" / "course")
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("COURSE_IMAGES", "240")
    return root


def store(root, name, *cells):
    """Store a lesson of these code cells, each with an output of another machine."""
    old = nbformat.v4.new_output("stream", text="of another machine")
    code = [new_code_cell(source, outputs=[old], execution_count=number) for number, source in enumerate(cells, 1)]
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Lesson"), *code]), path)
    return path


def outputs(root, name):
    cells = nbformat.read(root / "build" / "course" / f"{name}.ipynb", as_version=4).cells
    return ["".join(out.get("text", out.get("ename", "")) for out in cell.get("outputs", [])) for cell in cells[1:]]


READS = "print(open('../data/here.txt').read())"
FAILS = ("one = 1", "open('../data/missing.txt')", "print('not reached')")


def test_a_lesson_runs_in_its_own_folder_and_stays_as_it_is(root, capsys):
    path = store(root, "01_reads", READS)
    before = path.read_bytes()
    assert course.main([]) == 0
    assert outputs(root, "01_reads") == ["found\n"]
    assert path.read_bytes() == before
    assert "1 lesson ran to the end" in capsys.readouterr().out


def test_a_failure_is_named_and_the_others_run(root, capsys):
    store(root, "01_fails", *FAILS)
    store(root, "02_reads", READS)
    store(root, "03_dies", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    assert course.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    missing = "FileNotFoundError: [Errno 2] No such file or directory: '../data/missing.txt'"
    copies = Path("build/course")
    assert lines[-5:] == [
        "2 of 3 lessons failed:",
        f"01_fails, cell [2]: {missing}",
        f"    open {copies / '01_fails.ipynb'}",
        "03_dies, cell [2]: Kernel died",
        f"    open {copies / '03_dies.ipynb'}",
    ]
    assert outputs(root, "01_fails") == ["", "FileNotFoundError", ""], "and nothing of another machine"
    assert outputs(root, "02_reads") == ["found\n"]


def test_a_log_has_one_line_for_each_lesson_with_the_time_left(root, capsys):
    store(root, "01_reads", READS)
    store(root, "02_reads", READS)
    assert course.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 lessons with 240 images will take about ")
    assert lines[1].startswith("01_reads") and lines[1].endswith(" left")
    assert lines[2].startswith("02_reads") and lines[2].endswith(" s")


def test_what_ran_before_is_not_run_again_unless_something_changed(root, capsys, monkeypatch):
    store(root, "01_counts", "open('ran.txt', 'a').write('x')")
    ran = root / "notebooks" / "ran.txt"

    def runs(*arguments):
        assert course.main([*arguments]) == 0
        return len(ran.read_text())

    assert runs() == 1
    assert runs() == 1
    assert runs("--again") == 2
    (root / "helpers" / "new.py").write_text("")
    assert runs() == 3
    monkeypatch.setenv("COURSE_IMAGES", "241")
    assert runs() == 4
    store(root, "01_counts", "open('ran.txt', 'a').write('x')", "")
    assert runs() == 5


@pytest.mark.parametrize("change", ["styles", "data_scripts", "deploy", "results", "the runner", "Python", "packages"])
def test_whatever_a_lesson_depends_on_may_change(root, tmp_path, monkeypatch, change):
    store(root, "01_counts", "open('ran.txt', 'a').write('x')")
    for name in ("runner.py", "packages/"):
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("before")
    monkeypatch.setattr(course, "__file__", str(tmp_path / "runner.py"))
    monkeypatch.setattr(course.sysconfig, "get_path", lambda _name: str(tmp_path / "packages"))
    files = {"styles": "styles/mine/waves.yaml", "deploy": "deploy/Dockerfile", "results": "results/lab.jsonl"}
    path = root / files.get(change, "data_scripts/make_images.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert course.main([]) == course.main([]) == 0
    assert (root / "notebooks" / "ran.txt").read_text() == "x"
    if change == "the runner":
        (tmp_path / "runner.py").write_text("after")
    elif change == "Python":
        monkeypatch.setattr(sys, "version", "3.13.0")
    elif change == "packages":
        (tmp_path / "packages" / "torch-2.9.dist-info").mkdir()
    else:
        path.write_text("# changed\n")
    assert course.main([]) == 0
    assert (root / "notebooks" / "ran.txt").read_text() == "xx"


def test_lessons_whose_rows_are_gone_run_again_and_the_scoreboard_with_them(root, tmp_path, capsys):
    row = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'tests' / 'helpers')!r})"
    row += (
        "; from test_scoreboard import measurement; from helpers.scoreboard import record; record(measurement('NAME'))"
    )
    counts = "open('ran.txt', 'a').write('{} ')"
    store(root, "01_load_everything", row.replace("NAME", "load_everything"), counts.format(1))
    store(root, "05_tf_data", row.replace("NAME", "tf_data"), counts.format(5))
    store(root, "06_reads", counts.format(6))
    store(root, "08_scoreboard", counts.format(7))
    ran = root / "notebooks" / "ran.txt"
    assert course.main([]) == course.main([]) == 0
    assert ran.read_text() == "1 5 6 7 "
    (file,) = (tmp_path / "results").glob("*.jsonl")
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    assert course.main([]) == 0
    assert ran.read_text() == "1 5 6 7 5 7 "
    file.unlink()
    assert course.main([]) == course.main([]) == 0
    assert ran.read_text() == "1 5 6 7 5 7 1 5 7 "
    assert "3 lessons with 240 images" in capsys.readouterr().out


def test_what_an_interrupted_run_did_not_reach_runs_the_next_time(root, monkeypatch):
    store(root, "01_counts", "open('ran.txt', 'a').write('1 ')")
    store(root, "02_counts", "open('ran.txt', 'a').write('2 ')")
    assert course.main([]) == 0
    with monkeypatch.context() as interrupted:

        def stop(path, display):
            raise KeyboardInterrupt

        interrupted.setattr(course, "run_lesson", stop)
        assert course.main(["--again"]) == 130
    assert course.main([]) == 0
    assert (root / "notebooks" / "ran.txt").read_text() == "1 2 1 2 "


def test_a_lesson_that_failed_is_run_again(root):
    path = store(root, "01_fails", *FAILS)
    assert course.main([]) == 1
    assert course.main([]) == 1
    (root / "data" / "missing.txt").touch()
    assert course.main([]) == 0
    assert path.exists()


def test_all_adds_the_later_lessons_and_those_in_depth(root):
    for name in ("00_first", "08_scoreboard", "09_later"):
        store(root, name, READS)
    store(root, "in_depth/02_rare", "import os; print('in depth' if os.getcwd().endswith('in_depth') else os.getcwd())")
    assert [path.stem for path in course.find_lessons()] == ["00_first", "08_scoreboard"]
    assert course.main(["--all"]) == 0
    for name in ("00_first", "08_scoreboard", "09_later"):
        assert outputs(root, name) == ["found\n"]
    assert outputs(root, "in_depth/02_rare") == ["in depth\n"]


def test_each_lesson_has_a_measured_time():
    assert list(course._REFERENCE_S) == [course._name(path) for path in course.find_lessons(everything=True)]
    assert course.find_lessons()[-1].stem == course._LAST_ON_THE_ROAD


def test_times_of_this_machine_replace_the_reference(root):
    path = store(root, "01_reads", READS)
    course.BUILD.mkdir(parents=True)
    seconds = course._Seconds.load(course.BUILD / "seconds.json")
    assert seconds.expected(path) == course._UNKNOWN_S
    seconds.keep(path, 7)
    assert course._Seconds.load(seconds.path).expected(path) == 7
    seconds.path.write_text("{torn")
    assert course._Seconds.load(seconds.path).expected(path) > 7


@pytest.mark.parametrize("wish", ["0", "many", "-3"])
def test_a_wrong_number_of_images_is_one_line(root, wish, monkeypatch, capsys):
    store(root, "01_reads", READS)
    monkeypatch.setenv("COURSE_IMAGES", wish)
    assert course.main([]) == 2
    assert capsys.readouterr().err == f"course: COURSE_IMAGES is {wish!r}; give a whole number above zero\n"


def test_two_at_once_are_refused(root, capsys):
    store(root, "01_reads", READS)
    course.BUILD.mkdir(parents=True)
    with locked(course.BUILD / ".lock", ""):
        assert course.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "already running" in line


def test_the_second_is_told_which_process_is_the_first(root):
    program = f"import os, sys; sys.path[:0] = [{str(REPOSITORY / 'tools')!r}, {str(REPOSITORY)!r}]"
    names = "course.ROOT, course.NOTEBOOKS, course.BUILD = map(course.Path, sys.argv[1:])"
    second = f"{program}; import run_course as course; {names}; print('status', course.main([]))"
    places = [str(course.ROOT), str(course.NOTEBOOKS), str(course.BUILD)]
    command = [sys.executable, "-c", second, *places]
    store(root, "01_starts_another", f"import subprocess; subprocess.run({command!r}, stderr=open('said', 'w'))")
    assert course.main([]) == 0
    (line,) = (root / "notebooks" / "said").read_text().splitlines()
    assert f"already running in this folder (process {os.getpid()}, since " in line


def test_without_lessons_or_a_place_to_write_it_says_so(root, capsys):
    assert course.main([]) == 2
    assert "no lessons there" in capsys.readouterr().err
    store(root, "01_reads", READS)
    (root / "build").write_text("a file where the folder would be")
    assert course.main([]) == 2
    assert str(root / "build") in capsys.readouterr().err


def test_images_that_cannot_be_made_stop_it(root, capsys):
    store(root, "01_reads", READS)
    (root / "data_scripts" / "make_images.py").write_text("raise SystemExit(3)")
    assert course.main([]) == 3
    assert not (root / "build" / "course" / "01_reads.ipynb").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_course_and_leaves_no_process_and_no_kernel_file(root, tmp_path, number, monkeypatch):
    kernel_files = tmp_path / "kernel files"
    kernel_files.mkdir()
    monkeypatch.setenv("TMPDIR", str(kernel_files))
    child = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    note = "import os; open('pids', 'w').write(f'{os.getpid()} {c.pid}')"
    store(root, "01_waits", f"{child}; {note}", "c.wait()")
    store(root, "02_reads", READS)
    program = f"""
import sys, pathlib
sys.path.insert(0, "tools")
import run_course as course
course.ROOT = pathlib.Path({str(root)!r})
course.NOTEBOOKS, course.BUILD = course.ROOT / "notebooks", course.ROOT / "build" / "course"
sys.exit(course.main([]))
"""
    command = [sys.executable, "-c", program]
    running = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        pids = root / "notebooks" / "pids"
        deadline = time.monotonic() + 60
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            assert running.poll() is None and time.monotonic() < deadline, running.stderr.read()
            time.sleep(0.1)
        time.sleep(0.5)  # into the cell that waits
        assert list(kernel_files.glob("*.json"))
        running.send_signal(number)
        _, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 128 + number
    assert list(kernel_files.iterdir()) == []
    assert error.strip() == "course: stopped. The same command continues with the lesson that was interrupted."
    assert not (root / "build" / "course" / "02_reads.ipynb").exists()
    for pid in map(int, pids.read_text().split()):
        with contextlib.suppress(psutil.NoSuchProcess):
            assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_after_nohup_a_lost_terminal_stops_nothing(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    changed = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: changed.append((number, handler)))
    with course._signals_as_ctrl_c():
        assert changed == []
