"""Run the lessons in order on this machine: `make course`, or `python tools/run_course.py`.

The images are made first, and the scoreboard is printed last. Each lesson runs in the folder that it is stored in, as
in JupyterLab and under nbval; what it printed and drew goes into a copy in ``build/course/``, so tracked files stay as
they are. A lesson that ran before is skipped if nothing that it depends on has changed since.
"""

from __future__ import annotations

import helpers  # noqa: F401  # first: from here on, Ctrl-C prints no traceback

# isort: split

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from helpers import scoreboard
from helpers.files import ExitStatus, locked, printable, write_whole
from helpers.folders import DEFAULT_COURSE_IMAGES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build" / "course"
CELL_TIMEOUT_S = 1200

_LAST_ON_THE_ROAD = "08_scoreboard"
_SMALL = 240  # images
# Seconds for each lesson on two cores of an AMD EPYC, with _SMALL (an estimate) and with DEFAULT_COURSE_IMAGES images,
# measured in one run each; 09, and 03 to 10 in depth, on two cores of an Intel Xeon, where 00 to 08 take half of the
# times here; 10 and 11 are estimates.
_REFERENCE_S = {
    "00_start_here": (22, 53),
    "01_load_everything": (80, 231),
    "02_python_generator": (120, 355),
    "03_keras_sequence": (130, 436),
    "04_tf1_queues": (110, 250),
    "05_tf_data": (120, 444),
    "06_decode_less": (40, 157),
    "07_decode_once": (70, 277),
    "08_scoreboard": (70, 209),
    "09_beyond_one_machine": (130, 133),
    "10_style_transfer": (117, 240),
    "11_other_loaders": (120, 200),
    "12_images_far_away": (100, 284),
    "in_depth/02_python_generator": (45, 135),
    "in_depth/03_keras_sequence": (60, 66),
    "in_depth/04_tf1_queues": (85, 88),
    "in_depth/05_tf_data": (70, 85),
    "in_depth/06_decode_less": (60, 91),
    "in_depth/07_decode_once": (75, 123),
    "in_depth/09_beyond_one_machine": (100, 100),
    "in_depth/10_style_transfer": (60, 60),
    "in_depth/12_images_far_away": (110, 154),
}
_UNKNOWN_S = 120  # a lesson that is not in the list


@dataclass(frozen=True)
class Failure:
    """A lesson that stopped: the execution count of the cell, the error in one line, and the copy that holds it all."""

    lesson: str
    cell: int
    error: str
    copy: Path

    def __str__(self) -> str:
        return f"{self.lesson}, cell [{self.cell}]: {self.error}\n    open {self.copy.relative_to(ROOT)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns
    -------
    int
        0: every lesson ran to its end; 1: at least one did not; 2: nothing could be run; 128 and the signal's number:
        stopped by Ctrl-C, SIGTERM or SIGHUP.
    """
    parser = argparse.ArgumentParser(prog="course", description="Run the lessons in order and print the scoreboard.")
    parser.add_argument("--all", action="store_true", help="run the lessons after 08 and those in in_depth/, too")
    parser.add_argument("--again", action="store_true", help="also run lessons that ran before and have not changed")
    options = parser.parse_args(arguments)
    try:
        lessons = find_lessons(everything=options.all)
        BUILD.mkdir(parents=True, exist_ok=True)
        holder = BUILD / ".holder"
        who = holder.read_text() if holder.exists() else "another process"
        with (
            _signals_as_ctrl_c(),
            locked(BUILD / ".lock", f"the course is already running in this folder ({who}); wait for it or stop it"),
        ):
            write_whole(holder, f"process {os.getpid()}, since {time.strftime('%H:%M')}")
            return _run_all(lessons, options.again)
    except OSError as error:
        message = f"{printable(error.filename)}: {error.strerror}" if error.filename else str(error)
    except ValueError as error:
        message = str(error)
    except subprocess.CalledProcessError as error:  # make_images.py has said why
        return error.returncode
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal
            print(
                "\ncourse: stopped. The same command continues with the lesson that was interrupted.", file=sys.stderr
            )
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    print(f"course: {message}", file=sys.stderr)
    return ExitStatus.CANNOT


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the lesson's kernel as Ctrl-C does; under `nohup`, SIGHUP stays ignored."""

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    usual = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if usual[number] != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, usual[number])


def find_lessons(everything: bool = False) -> list[Path]:
    """Return the notebooks of lessons 00 to 08, or of all lessons, in the course's order.

    Raises
    ------
    FileNotFoundError
        There are none: this is an installed package and not the repository.
    """
    lessons = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not lessons:
        raise FileNotFoundError(
            f"{NOTEBOOKS}: no lessons there; run `python -m pip install -e .` in a clone of the course"
        )
    if everything:
        return lessons + sorted(NOTEBOOKS.glob("in_depth/[0-9]*.ipynb"))
    return [path for path in lessons if path.stem <= _LAST_ON_THE_ROAD]


def _run_all(lessons: list[Path], again: bool) -> int:
    seconds = _Seconds.load(BUILD / "seconds.json")
    waiting = lessons if again else _waiting(lessons)
    for path in waiting:  # one that is not reached now has to run next time
        _stamp(path).unlink(missing_ok=True)
    if len(waiting) < len(lessons):
        print(f"{_lessons(len(lessons) - len(waiting))} ran before and did not change (AGAIN=1 or --again runs all)")
    if waiting:
        time_needed = _minutes(sum(map(seconds.expected, waiting)))
        print(f"{_lessons(len(waiting))} with {_course_images():,} images will take about {time_needed}", flush=True)
    subprocess.run([sys.executable, str(ROOT / "data_scripts" / "make_images.py")], check=True)
    failures = _run_lessons(waiting, seconds)
    if rows := scoreboard.newest(scoreboard.load()):
        Console().print(scoreboard.table(rows))
    if not failures:
        print(f"{_lessons(len(lessons))} ran to the end; their outputs on this machine are in build/course/")
        return ExitStatus.FINE
    print(f"{len(failures)} of {_lessons(len(lessons))} failed:")
    print(*failures, sep="\n", flush=True)
    return ExitStatus.FOUND


def _run_lessons(lessons: list[Path], seconds: _Seconds) -> list[Failure]:
    failures = []
    with _Display(lessons, seconds) as display:
        for path in lessons:
            display.show(path, 0)
            started = time.monotonic()
            failure = run_lesson(path, display)
            took = time.monotonic() - started
            if failure:
                failures.append(failure)
            else:
                seconds.keep(path, took)
            display.end_lesson(path, took, failed=failure is not None)
    return failures


def run_lesson(path: Path, display: _Display | None = None) -> Failure | None:
    """Run a copy of one lesson from a fresh kernel, in the lesson's own folder, and store the copy in `BUILD`."""
    name, copy, stamp, state = _name(path), _copy(path), _stamp(path), _state_of(path)
    copy.parent.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    notebook = nbformat.read(path, as_version=4)
    cells = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for _, cell in cells:  # nothing from another machine may be taken for this one's
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", shutdown_kernel="immediate")
    client.extra_arguments = ["--log-level=CRITICAL"]  # no warning of missing encryption, no word about Ctrl-C
    count = 0
    try:
        with _kernel(client, path.parent):
            for count, (index, cell) in enumerate(cells, start=1):
                client.execute_cell(cell, index)
                if display:
                    display.show(path, count / len(cells))
    except CellExecutionError as error:
        return Failure(name, count, _one_line(f"{error.ename}: {error.evalue}"), copy)
    except CellTimeoutError:
        return Failure(name, count, f"ran longer than {CELL_TIMEOUT_S // 60} minutes", copy)
    except (DeadKernelError, RuntimeError) as error:
        return Failure(name, count, _one_line(str(error)), copy)
    finally:
        write_whole(copy, nbformat.writes(notebook))
    write_whole(stamp, state)
    return None


@contextlib.contextmanager
def _kernel(client: NotebookClient, folder: Path) -> Iterator[None]:
    """Give a client a kernel. Its own `setup_kernel` would take Ctrl-C for the end of this one lesson."""
    client.create_kernel_manager()
    started: list[psutil.Process] = []
    try:
        client.start_new_kernel(cwd=str(folder))
        client.start_new_kernel_client()
        started.append(psutil.Process(client.km.provisioner.pid))
        yield
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would complain that the interrupted cell lost its kernel
        raise
    finally:
        for kernel in started:  # once the kernel is gone, nobody can find its children
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in kernel.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        client._cleanup_kernel()


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else "no message"


# What ran before ------------------------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    return path.relative_to(NOTEBOOKS).with_suffix("").as_posix()


def _copy(path: Path) -> Path:
    return BUILD / path.relative_to(NOTEBOOKS)


def _stamp(path: Path) -> Path:
    return _copy(path).with_suffix(".ran")


def _waiting(lessons: list[Path]) -> list[Path]:
    """Return the lessons that have changed or whose rows are missing, and the scoreboard's if it shows one of them."""
    recorded = {one.name for one in scoreboard.load()}
    without_row = {lesson for name, lesson in scoreboard.LESSONS.items() if name not in recorded}
    waiting = []
    for path in lessons:
        shows_others = _name(path) == _LAST_ON_THE_ROAD and waiting
        if shows_others or _name(path) in without_row or not _ran_before(path):
            waiting.append(path)
    return waiting


def _ran_before(path: Path) -> bool:
    stamp = _stamp(path)
    return _copy(path).exists() and stamp.exists() and stamp.read_text() == _state_of(path)


def _state_of(path: Path) -> str:
    """Return a hash of all that a lesson's outcome depends on: Python and its packages, settings, and files here."""
    packages = sorted(one.name for one in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))
    state = hashlib.sha256(f"{sys.version} {os.environ.get('COURSE_IMAGES', '')} {packages}".encode())
    sources = [path, Path(__file__), *sorted((ROOT / "results").glob("*.jsonl"))]
    for folder in ("helpers", "data_scripts", "styles", "deploy"):
        sources += [one for one in sorted((ROOT / folder).rglob("*")) if one.is_file() and one.suffix != ".pyc"]
    for source in sources:
        content = source.read_bytes()
        state.update(os.fsencode(os.path.relpath(source, ROOT)) + f"\0{len(content)}\0".encode() + content)
    return state.hexdigest()


# How long it takes ----------------------------------------------------------------------------------------------------


def _course_images() -> int:
    wish = os.environ.get("COURSE_IMAGES") or str(DEFAULT_COURSE_IMAGES)
    if not wish.isdecimal() or int(wish) < 1:
        raise ValueError(f"COURSE_IMAGES is {wish!r}; give a whole number above zero")
    return int(wish)


def reference_seconds(lesson: str) -> float:
    """Return how long a lesson ran on the reference machine, with 2,000 images."""
    return _REFERENCE_S[lesson][1]


@dataclass
class _Seconds:
    """How long each lesson will take: as long as it took here last time, or as on the reference machine."""

    path: Path
    here: dict[str, float]  # lesson and number of images -> seconds

    @classmethod
    def load(cls, path: Path) -> _Seconds:
        try:
            return cls(path, json.loads(path.read_text()))
        except (OSError, ValueError):  # none yet, or not to be read
            return cls(path, {})

    def expected(self, lesson: Path) -> float:
        images = _course_images()
        if took := self.here.get(f"{_name(lesson)} {images}"):
            return took
        small, full = _REFERENCE_S.get(_name(lesson), (_UNKNOWN_S, _UNKNOWN_S))
        share = (images - _SMALL) / (DEFAULT_COURSE_IMAGES - _SMALL)
        return max(small / 2, small + share * (full - small))

    def keep(self, lesson: Path, took: float) -> None:
        self.here[f"{_name(lesson)} {_course_images()}"] = round(took, 1)
        write_whole(self.path, json.dumps(self.here, indent=1))


def _lessons(count: int) -> str:
    return f"{count} lesson{'' if count == 1 else 's'}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 1):.0f} s"


class _Display:
    """Progress of the lesson and of the course: bars on a terminal, one line for each lesson elsewhere."""

    def __init__(self, lessons: Sequence[Path], seconds: _Seconds):
        self.expected = {path: seconds.expected(path) for path in lessons}
        self.total = sum(self.expected.values())
        self.done = 0.0  # expected seconds of the lessons that have ended
        self.started = time.monotonic()
        console = Console()
        self.bars = Progress(
            TextColumn("{task.description:26}", markup=False),
            BarColumn(30),
            TextColumn("{task.percentage:3.0f} %  {task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.lesson = self.bars.add_task("", total=1.0, left="")
        self.course = self.bars.add_task("the course", total=self.total, left="")

    def __enter__(self) -> _Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, path: Path, share: float) -> None:
        """Move the bars to this share, 0 to 1, of a lesson."""
        done = self.done + share * self.expected[path]
        self.bars.update(self.lesson, description=_name(path), completed=share)
        self.bars.update(self.course, completed=done, left=self._left(done))

    def end_lesson(self, path: Path, took: float, failed: bool) -> None:
        """Print a line for a lesson that has ended, well or not."""
        self.done += self.expected[path]
        left = f"    {self._left(self.done)}" if self.total - self.done > 1 else ""
        print(f"{_name(path):26}{'  FAILED' if failed else ''}{took:6.0f} s{left}", flush=True)

    def _left(self, done: float) -> str:
        """As if the rest took as much longer or shorter than expected as what was done."""
        pace = (time.monotonic() - self.started) / done if done else 1.0
        return f"about {_minutes(pace * (self.total - done))} left"


if __name__ == "__main__":
    sys.exit(main())
