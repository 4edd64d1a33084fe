"""Killed, interrupted or out of room at any step, each command ends the same when it is given again."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import inspection
import psutil
import pytest
from conftest import TEST_ALL, write_images
from inspection import Finding, Inspection
from quarantine import _held, put_back, quarantine

from helpers import scoreboard
from helpers.measurement import Measurement

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "fixtures" / "faults"
LIMIT_S = 60
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, signals, and /proc to see which file is written"
)

# A process that has imported what the commands need, and started nothing, gives a fresh command in milliseconds.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else None
PRELOADED = ["test_faults", "test_download_images", "test_scoreboard", "helpers.packed", "cv2", "rich.console"]


@pytest.fixture(scope="module", autouse=True)
def server_of_forks():
    with pytest.MonkeyPatch.context() as patched:
        path = [ROOT / "data_scripts", ROOT / "tests", ROOT / "tests" / "data_scripts", ROOT / "tests" / "helpers"]
        patched.setenv(
            "PYTHONPATH", os.pathsep.join(map(str, path))
        )  # that of this process would not reach what is preloaded
        CONTEXT.set_forkserver_preload(PRELOADED)
        multiprocessing.forkserver.ensure_running()
    yield
    multiprocessing.forkserver._forkserver._stop()  # other tests count the processes that are left


# ---- the commands ----------------------------------------------------------------------------------------------------
# Each has a workplace: `prepare` fills it, `command` runs in a process of its own and returns the exit status, and
# `outcome` is what must be the same in the end.


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "data_scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file by its path below the folder, hidden files included."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Subject:
    """What all of them share."""

    done = (0,)  # exit status of a command that did its work
    unfinished = ""  # names, as a pattern, of files that are there only until the work is done

    def prepare(self, work: Path) -> None:
        pass

    def command(self, work: Path) -> int:
        raise NotImplementedError

    def outcome(self, work: Path) -> object:
        return tree(work)

    def places(self, steps: str) -> list[int]:
        """The steps to disturb, counted from 1."""
        return list(range(1, len(steps) + 1))

    def check_halfway(self, work: Path, whole: dict[str, str]) -> None:
        """A file with its final name is whole; files that grow are hidden, or in a hidden folder."""
        plain = {path: hash_ for path, hash_ in tree(work).items() if "/." not in f"/{path}"}
        final = {path: hash_ for path, hash_ in plain.items() if not re.fullmatch(self.unfinished, Path(path).name)}
        assert final.items() <= whole.items()


@dataclass(frozen=True)
class Packing(Subject):
    images: Path
    unfinished = r"packing\.json|shard-\d+\.raw\.json"

    def command(self, work):
        settings = ["--size", "16", "--rows-per-shard", "4", "--workers", "1"]
        return script("pack_images").main([str(self.images), "--to", str(work / "pack"), *settings])


class Making(Subject):
    def command(self, work):
        import make_images  # by its name: worker processes import it, too

        return make_images.main(["--count", "1", "--to", str(work / "images"), "--workers", "1"])

    def places(self, steps):
        """One of the ten class folders is enough: an image takes a second."""
        return [number for number in super().places(steps) if steps[number - 2 : number] != "mm"]


@dataclass(frozen=True)
class Downloading(Subject):
    url: str

    def command(self, work):
        downloads, program = other_tests(), other_tests().program
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        program.DATASETS["flowers"] = downloads.replaced("flowers", self.url, few_flowers(), images=5)
        return program.main(["flowers", "--to", str(work / "flowers")])


def other_tests():
    import test_download_images

    return test_download_images


def few_flowers() -> bytes:
    downloads = other_tests()
    return downloads.tgz({f"flower_photos/{kind}/1.jpg": downloads.photograph(n) for n, kind in enumerate("abcde")})


class Reporting(Subject):
    """`check_images.py --json`, without the child process that decodes."""

    done = (1,)

    def outcome(self, work):
        """All but what a run that was killed in mid-writing leaves, hidden and under a name of its own."""
        return {path: hash_ for path, hash_ in tree(work).items() if not path.endswith(".part")}

    def prepare(self, work):
        a_set(work / "set")

    def command(self, work):
        return look_here().main([str(work / "set"), "--min-per-class", "1", "--json", str(work / "found.json")])


@dataclass(frozen=True)
class Moving(Subject):
    """`check_images.py --quarantine`, to the same disk or to another one."""

    to_another_disk: bool
    done = (0, 1)  # the second time there may be nothing left to find

    def prepare(self, work):
        a_set(work / "set")

    def command(self, work):
        if self.to_another_disk:
            other_disks()
        return look_here().main([str(work / "set"), "--min-per-class", "1", "--quarantine", str(work / "away")])

    def check_halfway(self, work, whole):
        images = {hash_ for path, hash_ in whole.items() if path.endswith(".png")}
        assert images <= set(tree(work).values())  # nothing is lost


class Undoing(Moving):
    """`check_images.py --undo`."""

    done = (0,)

    def prepare(self, work):
        a_set(work / "set")
        quarantine(broken(work / "set"), work / "away", ["undecodable"])

    def command(self, work):
        if self.to_another_disk:
            other_disks()
        return script("check_images").main(["--undo", str(work / "away")])


def a_set(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "sound.png").write_bytes(PNG)
        (folder / name / "bad.png").write_bytes(f"<html>{name}".encode())


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)


def broken(folder: Path) -> Inspection:
    found = tuple(Finding(f"{name}/bad.png", "undecodable", "") for name in ("a", "b"))
    return Inspection(folder, 4, found, {}, 1.0)


def look_here():
    """The script, looking at headers only, in its own process."""

    def look(folder, paths, max_pixels, on_progress, silence_s, looks):
        for path in paths:
            looks[path] = inspection._look_at(os.path.join(folder, path), max_pixels)
        return [], ""

    inspection._look_in_a_child = look
    inspection._pixel_findings = lambda data, path: []
    return script("check_images")


def killed_look_at_all(folder, paths, notes, max_pixels, silence_s):
    """Runs in the worker: at one file, the first time, a process is killed."""
    sys.modules["tensorflow"] = types.SimpleNamespace(config=unittest.mock.MagicMock())
    inspection._pixel_findings = lambda data, path: []
    real, fuse = inspection._look_at, Path(folder).with_name("fuse")

    def look(path, *rest):
        if path.endswith("bad.png"):
            with contextlib.suppress(FileNotFoundError):  # it has burnt
                spent = fuse.rename(fuse.with_name("spent"))
                victims = {"worker": os.getpid(), "supervisor": os.getppid(), "command": int(spent.read_text())}
                fuse.with_name("pids").write_text(f"{os.getpid()} {os.getppid()}")
                os.kill(victims[fuse.with_name("victim").read_text()], signal.SIGKILL)
        return real(path, *rest)

    inspection._look_at = look
    REAL_LOOK_AT_ALL(folder, paths, notes, max_pixels, silence_s)


REAL_LOOK_AT_ALL = inspection._look_at_all


@dataclass(frozen=True)
class Checking(Subject):
    """`check_images.py`, as it is but for the pixels; somebody kills one of its processes."""

    victim: str
    done = (1,)

    def prepare(self, work):
        a_set(work / "set")
        (work / "victim").write_text(self.victim)

    def command(self, work):
        if self.victim != "nobody":
            (work / "fuse").write_text(str(os.getpid()))
        inspection._look_at_all = killed_look_at_all
        arguments = [str(work / "set"), "--min-per-class", "1", "--json", str(work / "found.json")]
        return script("check_images").main(arguments)

    def outcome(self, work):
        return (work / "found.json").read_text()


def other_disks():
    """Let every folder be a disk of its own."""
    real = Path.rename

    def rename(self, target):
        if Path(target).parent != self.parent:
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    Path.rename = rename


class Recording(Subject):
    """A row for the scoreboard."""

    def prepare(self, work):
        for name in ("first", "second"):
            scoreboard.record(a_row(name), work / "machine.jsonl")

    def command(self, work):
        try:
            scoreboard.record(a_row("third"), work / "machine.jsonl")
        except OSError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        return 0

    def outcome(self, work):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the half line
            return scoreboard.newest(scoreboard.load(work / "machine.jsonl"))

    def check_halfway(self, work, whole):
        assert [one.name for one in self.outcome(work)][:2] == ["first", "second"]


def a_row(name: str):
    from test_scoreboard import measurement

    return measurement(name)


# ---- running them ----------------------------------------------------------------------------------------------------


class Ending(NamedTuple):
    code: int  # negative: the signal
    told: list[str]  # the lines on standard error
    steps: str  # a letter for each


def run(subject: Subject, work: Path, kind: str = "none", step: int = 0) -> Ending:
    """Run the command in a process of its own, disturbed at one step on the disk."""
    log, told = work.with_suffix(".steps"), work.with_suffix(".told")
    log.write_bytes(b"")
    process = CONTEXT.Process(target=_execute, args=(subject, work, kind, step, log, told))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        pytest.fail(f"{subject}: {kind} at step {step}: not ended after {LIMIT_S} s")
    lines = [line for line in told.read_text().splitlines() if line.strip() and not line.endswith(" images")]
    return Ending(process.exitcode, lines, log.read_text())


def _execute(subject: Subject, work: Path, kind: str, step: int, log: Path, told: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(told, "wb") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.environ |= {"FAULT": kind, "FAULT_STEP": str(step), "FAULT_BELOW": str(work), "FAULT_LOG": str(log)}
    os.environ["PYTHONPATH"] = str(FAULTS)
    spec = importlib.util.spec_from_file_location("faults", FAULTS / "sitecustomize.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    try:
        code = subject.command(work)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def prepared(subject: Subject, work: Path) -> Iterator[None]:
    """Always the same folder: some results name it."""
    work.mkdir()
    subject.prepare(work)
    try:
        yield
    finally:
        shutil.rmtree(work)


def undisturbed(subject: Subject, work: Path) -> tuple[object, dict[str, str], str]:
    """Return the outcome, all files, and the steps."""
    with prepared(subject, work):
        ending = run(subject, work)
        assert ending.code in subject.done and not ending.told, ending
        return subject.outcome(work), tree(work), ending.steps


# ---- every step ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the commands read: images, and a server of an archive."""
    place = tmp_path_factory.mktemp("faults")
    write_images(place / "images", 6, class_names=("a", "b"))
    server = other_tests().Server()
    server.files["/download.tensorflow.org/example_images/flower_photos.tgz"] = few_flowers()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield place, server.url
    server.shutdown()
    thread.join()
    server.server_close()


class Tried(NamedTuple):
    subject: Callable[[Path, str], Subject]  # made of the images and the address of the server
    steps: int  # that are disturbed, at least
    steps_for_room: int  # those that a full disk refuses


SUBJECTS = {
    "packing": Tried(lambda place, url: Packing(place / "images"), 45, 34),
    "downloading": Tried(lambda place, url: Downloading(url), 30, 26),
    "checking": Tried(lambda place, url: Reporting(), 4, 3),
    "quarantine": Tried(lambda place, url: Moving(to_another_disk=False), 13, 13),
    "quarantine on another disk": Tried(lambda place, url: Moving(to_another_disk=True), 21, 17),
    "undoing a quarantine": Tried(lambda place, url: Undoing(to_another_disk=False), 6, 5),
    "undoing one on another disk": Tried(lambda place, url: Undoing(to_another_disk=True), 14, 9),
    "scoreboard": Tried(lambda place, url: Recording(), 7, 6),
    "making images": Tried(lambda place, url: Making(), 9, 8),
}


def for_each(count: str, but: str | None = None):
    """Give the test each subject, and how many steps it disturbs at least."""
    cases = {name: getattr(tried, count) for name, tried in SUBJECTS.items() if name != but}
    return pytest.mark.parametrize(("name", "at_least"), cases.items(), ids=list(cases))


def disturbances(name: str, place, work: Path, kind: str, at_least: int) -> Iterator[tuple[int, Ending]]:
    """Disturb one step after the other; then, each time, the same command must finish as if nothing had been.

    `make test` takes the first step, the last, and a third of those between.
    """
    subject, done = SUBJECTS[name].subject(*place), 0
    outcome, whole, steps = undisturbed(subject, work)
    places = subject.places(steps)
    if kind.startswith("full"):
        places = [step for step in places if steps[step - 1] not in "dut"]  # removing takes no room
    assert len(places) >= at_least, "fewer steps than there were"
    if not TEST_ALL:
        some = random.Random(f"{name} {kind}").sample(places[1:-1], len(places) // 3)
        places, at_least = sorted({places[0], *some, places[-1]}), at_least // 3
    seen = []  # the same files again need no second proof
    for step in places:
        with prepared(subject, work):
            ending = run(subject, work, kind, step)
            if len(ending.steps) < step:
                continue  # a download may come in fewer pieces
            done += 1
            subject.check_halfway(work, whole)
            yield step, ending
            if (left := unnumbered(tree(work))) not in seen:
                seen.append(left)
                if ending.code not in subject.done or ending.told:
                    again = run(subject, work)
                    assert again.code in subject.done and not again.told, (step, again)
                assert subject.outcome(work) == outcome, (step, ending)
    assert done >= at_least, "fewer steps were disturbed than there were"


def unnumbered(files: dict[str, str]) -> dict[str, str]:
    """The files, those without the random part of their names that grow."""
    return {re.sub(r"[0-9a-f]{8}\.part$", "part", path): hash_ for path, hash_ in files.items()}


@for_each("steps")
def test_a_killed_command_finishes_the_next_time(name, at_least, place, tmp_path):
    for step, ending in disturbances(name, place, tmp_path / "work", "kill", at_least):
        by_worker = ending.code == 1 and "workers ended early" in ending.told[0]
        assert ending.code == -signal.SIGKILL or by_worker, (step, ending)


@for_each("steps", but="making images")  # see test_make_images.py
def test_ctrl_c_is_one_line_and_status_130(name, at_least, place, tmp_path):
    for step, ending in disturbances(name, place, tmp_path / "work", "interrupt", at_least):
        assert ending.code == 130 and len(ending.told) == 1 and "stopped" in ending.told[0], (step, ending)


@for_each("steps_for_room")
def test_a_full_disk_is_one_line_and_no_half_file(name, at_least, place, tmp_path):
    check_full_disk(name, place, tmp_path / "work", "full", at_least)


@pytest.mark.parametrize("name", ["packing", "downloading", "checking"])
def test_a_disk_that_is_full_for_a_moment(name, place, tmp_path):
    """What found no room is not written later, when the file is closed."""
    check_full_disk(name, place, tmp_path / "work", "full for a moment", SUBJECTS[name].steps_for_room)


def check_full_disk(name, place, work, kind, at_least):
    for step, ending in disturbances(name, place, work, kind, at_least):
        if ending.code == 0 or not ending.told:
            continue  # there was another way, or the work was done
        assert ending.code in (1, 2) and len(ending.told) == 1, (step, ending)
        assert "No space left on device" in ending.told[0], (step, ending)
        left = [path for path in tree(work) if path.endswith(".part")]
        assert not left, (step, left)


@pytest.mark.parametrize("to_another_disk", [False, True])
def test_a_killed_quarantine_can_be_undone(to_another_disk, tmp_path):
    moving, undoing, work = Moving(to_another_disk), Undoing(to_another_disk), tmp_path / "work"
    _, _, steps = undisturbed(moving, work)
    for step in range(1, len(steps) + 1):
        with prepared(moving, work):
            before = tree(work / "set")
            run(moving, work, "kill", step)
            ending = run(undoing, work)
            assert ending.code == 0 or (ending.code == 2 and "no quarantine" in ending.told[0]), (step, ending)
            assert tree(work / "set") == before, step


@pytest.mark.parametrize("kind", ["full", "full for a moment"])
def test_a_row_that_is_refused_leaves_nothing(kind, tmp_path):
    recording, file = Recording(), tmp_path / "work" / "machine.jsonl"
    _, _, steps = undisturbed(recording, file.parent)
    refused = 0
    for step in range(1, len(steps) + 1):
        with prepared(recording, file.parent):
            before = file.read_bytes()
            if run(recording, file.parent, kind, step).code:
                refused += 1
                assert file.read_bytes() == before, step
    assert refused >= 3


# ---- other ways to go wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["worker", "supervisor", "command"])
def test_check_images_when_one_of_its_processes_is_killed(victim, tmp_path):
    work = tmp_path / "work"
    outcome, _, _ = undisturbed(Checking("nobody"), work)
    with prepared(subject := Checking(victim), work):
        ending = run(subject, work)
        deadline = time.monotonic() + LIMIT_S
        while alive := [pid for pid in (work / "pids").read_text().split() if is_running(int(pid))]:
            assert time.monotonic() < deadline, f"left behind: {alive}"
            time.sleep(0.05)
        if victim != "worker":
            assert ending.code == -signal.SIGKILL or (ending.code == 2 and len(ending.told) == 1), ending
            ending = run(Checking("nobody"), work)
        assert ending.code == 1 and not ending.told, ending
        assert subject.outcome(work) == outcome


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", ["kill command", "kill both"])
def test_make_images_killed_while_a_worker_writes(kind, tmp_path):
    making, work = Making(), tmp_path / "work"
    outcome, whole, steps = undisturbed(making, work)
    with prepared(making, work):
        assert run(making, work, kind, len(steps) - 1).code == -signal.SIGKILL  # its last writing
        making.check_halfway(work, whole)
        assert run(making, work).code == 0  # while the worker may still be at its end
        assert making.outcome(work) == outcome


def test_two_quarantines_at_once(tmp_path, capsys):
    a_set(tmp_path / "set")
    before = tree(tmp_path / "set")
    with _held(tmp_path), pytest.raises(OSError, match="another run is moving files"):
        quarantine(broken(tmp_path / "set"), tmp_path, ["undecodable"])
    assert tree(tmp_path / "set") == before
    quarantine(broken(tmp_path / "set"), tmp_path / "away", ["undecodable"])
    with _held(tmp_path / "away"):
        assert script("check_images").main(["--undo", str(tmp_path / "away")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_another_run_has_moved_is_left_out(tmp_path):
    a_set(tmp_path / "set")
    found = broken(tmp_path / "set")
    assert quarantine(found, tmp_path / "away", ["undecodable"]) == 2
    assert quarantine(found, tmp_path / "elsewhere", ["undecodable"]) == 0
    assert put_back(tmp_path / "away") == (2, [])


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_packing_to_a_disk_that_is_really_full(kind, place, on_a_small_disk, tmp_path):
    steps = f"""
import importlib.util
from pathlib import Path
from helpers import packing as packed
sys.stderr = sys.stdout
spec = importlib.util.spec_from_file_location("pack_images", {str(ROOT / "data_scripts" / "pack_images.py")!r})
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
import shutil
packed.free_bytes = lambda folder: 10**12
ballast = Path(disk, "ballast")
for free_kb in (0, 4, 8, 16, 32, 64, 128, 256, 4000):
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free_kb * 1000))
    arguments = [{str(place[0] / "images")!r}, "--to", disk + "/pack", "--size", "128", "--rows-per-shard", "2"]
    code = program.main([*arguments, "--kind", {kind!r}])
    print("ended", code, list(Path(disk).rglob("*.part")))
print("faults", list(packed.Packed(disk + "/pack").faults()))
"""
    lines = on_a_small_disk(steps, 8).splitlines()
    ended = [line for line in lines if line.startswith("ended")]
    assert set(ended[:-1]) <= {"ended 2 []", "ended 0 []"} and ended[0] == "ended 2 []" and ended[-1] == "ended 0 []"
    assert lines[-1] == "faults []"
    told = [line for line in lines if line.startswith("pack_images.py: ")]
    assert len(told) == ended.count("ended 2 []") and all("No space left on device" in line for line in told)


# ---- clocks ----------------------------------------------------------------------------------------------------------

MAY_READ_THE_CLOCK = {
    ("helpers/measure.py", "datetime.datetime.now"),  # a time stamp may be as wrong as the clock
    ("helpers/watch/callback.py", "datetime.datetime.now"),  # the same
    ("helpers/style/training.py", "from datetime import timedelta"),  # reads none
}


def test_nothing_is_measured_by_a_clock_that_may_be_set():
    found = set()
    for path in [*(ROOT / "helpers").rglob("*.py"), *(ROOT / "data_scripts").glob("*.py")]:
        names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        imported = re.findall(r"^\s*from (?:time|datetime) import .*", path.read_text(), re.MULTILINE)
        clocks = {
            name for name in names if re.search(r"\btime\.(time|time_ns|clock_gettime)$|\.(now|utcnow|today)$", name)
        }
        found |= {(path.relative_to(ROOT).as_posix(), name) for name in [*clocks, *imported]}
    assert found == MAY_READ_THE_CLOCK


JUMPING = """
import itertools, time
_jumps, _real = itertools.count(), time.time
time.time = lambda: _real() - 3600 * next(_jumps)
time.time_ns = lambda: int(1e9 * time.time())
"""
MEASURING = """
import sys, time
from helpers.accelerators import EmulatedAccelerator
from helpers.folders import find_images
from helpers.measure import measure
from helpers.sandbox import run

def pipeline(files, *, image_size, batch_size, seed=0, **settings):
    import numpy as np
    before = time.time()
    for start in range(0, len(files), batch_size):
        assert time.time() < before - 3000, "the clock does not jump"
        rows = range(start, min(start + batch_size, len(files)))
        yield np.zeros((len(rows), *image_size, 3), np.uint8), files.labels[rows]

if __name__ == "__main__":
    accelerator = EmulatedAccelerator(images_per_s=2000)
    settings = {"image_size": (8, 8), "batch_size": 2, "accelerator": accelerator, "growth": False}
    found = measure(pipeline, find_images(sys.argv[1]), **settings)
    print(found.to_json())
    print([at for at, *_ in run(time.sleep, 0.5).timeline])
"""


def test_a_clock_that_jumps_spoils_no_figure(place, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    (tmp_path / "measuring.py").write_text(MEASURING)
    command = [sys.executable, str(tmp_path / "measuring.py"), str(place[0] / "images")]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    measured, timeline = done.stdout.splitlines()
    found = Measurement.from_json(measured)
    assert (found.outcome, found.images_done) == ("finished", found.batches_done * 2), found.error
    alone = found.alone
    figures = (alone.first_batch_s, alone.images_per_s, alone.first_epoch_images_per_s, found.training.images_per_s)
    assert all(figure is None or 0 < figure < 1e9 for figure in figures)
    times_s = json.loads(timeline)
    assert times_s == sorted(times_s) and times_s[0] >= 0 and times_s[-1] < 200
