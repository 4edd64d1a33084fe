"""What `helpers.sandbox.memory` promises: figures that agree with the kernel's own, shared pages counted once."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest

from helpers import files as files_room
from helpers.sandbox import memory, run
from helpers.sandbox.memory import MIB, TreeMemory, TreeReader

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix_only = pytest.mark.skipif(os.name != "posix", reason="forks")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else each child imports this module, and pytest


def agrees(a_mib, b_mib):
    return abs(a_mib - b_mib) <= max(8, 0.02 * b_mib)


def holding(mib):
    """Take memory and touch all of it."""
    return bytearray(b"x") * (mib << 20)


def sleeping_forks(count):
    """Fork processes that live until they are killed; return their ids."""
    pids = []
    for _ in range(count):
        if (pid := os.fork()) == 0:
            time.sleep(600)
            os._exit(0)
        pids.append(pid)
    return pids


def _below(pid):
    """Return the ids of all processes below one, without itself."""
    return TreeReader(pid, include_root=False).pids()


@pytest.fixture
def program():
    """Start a program that prints a line when it is ready, and end it after the test."""
    started = []

    def start(text):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", text], **pipes, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# One process


@linux_only
@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_peak_agrees_with_the_kernels(seconds):
    """However short the peak: the kernel keeps its height (VmHWM)."""

    def rise_and_fall():
        before = memory.read_status("self")
        kept = holding(400)
        time.sleep(seconds)
        del kept
        status = Path("/proc/self/status").read_text().splitlines()
        highest_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        return highest_kib / 1024, before.file_mib

    result = run(rise_and_fall, timeout=60)
    highest_rss_mib, file_mib = result.unwrap()
    assert highest_rss_mib > 400
    assert agrees(result.peak_rss_mib, highest_rss_mib)
    assert agrees(result.peak_mib, highest_rss_mib - file_mib)


@linux_only
def test_own_memory():
    before = memory.read_status("self")
    kept = holding(100)
    now = memory.read_status("self")
    assert 95 < now.held_mib - before.held_mib < 110 and len(kept)
    assert now.rss_mib == pytest.approx(now.held_mib + now.file_mib)
    assert now.highest_rss_mib >= now.rss_mib


@linux_only
def test_mapped_file_is_not_held(tmp_path):
    path = tmp_path / "mapped.bin"
    path.write_bytes(bytes(100 << 20))
    before = memory.read_status("self")
    mapped = np.memmap(path, np.uint8, mode="r")
    assert not mapped[::4096].any()
    now = memory.read_status("self")
    assert now.held_mib - before.held_mib < 10
    assert now.file_mib - before.file_mib > 95


def test_current_memory_includes_children(program):
    before = memory.current()
    program("kept = bytearray(b'x') * (100 << 20); print('ready', flush=True); input()")
    now = memory.current()
    assert now.processes == before.processes + 1
    assert 95 < now.held_mib - before.held_mib < 150


# A tree


@linux_only
def test_five_processes_sharing_two_hundred_mib():
    def share():
        kept = holding(200)
        sleeping_forks(5)
        time.sleep(0.5)
        reader = TreeReader(os.getpid())
        return reader.quick(), reader.exact(), len(kept)

    bound, exact, _ = run(share, timeout=60).unwrap()
    assert bound.processes == exact.processes == 6
    assert bound.rss_mib > 1000 and bound.held_mib > 1000  # each page counted six times
    assert exact.rss_mib > 1000
    assert 200 < exact.held_mib < 300
    assert (bound.method, exact.method) == ("rss-parts", "pss")


@linux_only
def test_bounds_enclose_the_exact_reading():
    def grow():
        shared = holding(100)
        sleeping_forks(2)
        reader = TreeReader(os.getpid())
        assert reader.quick().at_least_mib is None
        reader.exact()
        private = holding(50)
        bound, exact = reader.quick(), reader.exact()
        del private
        return bound, exact, len(shared)

    bound, exact, _ = run(grow, timeout=60).unwrap()
    assert bound.at_least_mib <= exact.held_mib + 1 <= bound.held_mib
    assert exact.held_mib - bound.at_least_mib < 10  # it has seen the 50 MiB
    assert bound.held_mib - exact.held_mib > 150  # two copies too many of the 100 MiB


@linux_only
def test_reader_follows_births_and_deaths():
    def watch():
        counts = []
        reader = TreeReader(os.getpid())
        counts.append(reader.quick().processes)
        for _ in range(3):
            reader.quick()
        pids = sleeping_forks(3)
        counts.append(reader.quick().processes)
        os.kill(pids[0], 9)
        time.sleep(0.2)
        counts.append(reader.quick().processes)  # a zombie holds nothing
        zombie_known = pids[0] in reader.pids()
        os.waitpid(pids[0], 0)
        gone = pids[0] not in reader.pids()
        pids += sleeping_forks(1)
        counts.append(reader.quick(unseen_s=600).processes)
        counts.append(reader.quick().processes)
        grandchildren = sorted(_below(os.getpid())) == sorted(pids[1:])
        return counts, zombie_known, gone, grandchildren

    assert run(watch, timeout=60).unwrap() == ([1, 4, 3, 3, 4], True, True, True)


@linux_only
def test_reader_finds_orphans_of_a_line_of_forks():
    """The parents in between are gone before anybody sees them; the supervisor adopts the last."""

    def fork_line():
        for _ in range(5):
            if os.fork():
                os._exit(0) if os.getpid() != first else None
                break
        if os.getpid() != first:
            kept = holding(100)
            time.sleep(600)
            return len(kept)
        time.sleep(1.5)
        return "done"

    def start():
        global first
        first = os.getpid()
        return fork_line()

    result = run(start, timeout=60)
    assert result.unwrap() == "done"
    assert result.peak_mib > 100


@posix_only
def test_started_program_is_not_counted_before_it_is_loaded(program, tmp_path):
    """A new process between vfork and exec, held there by a pipe that nobody writes to."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    parent = program(f"""if True:
        import os
        kept = bytearray(b"x") * (200 << 20)
        print("ready", flush=True)
        actions = [(os.POSIX_SPAWN_OPEN, 0, {str(pipe)!r}, os.O_RDONLY, 0)]
        os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ, file_actions=actions)
    """)
    assert _until(lambda: len(_below(parent.pid)) == 1)
    child_pid = _below(parent.pid)[0]
    try:
        time.sleep(0.2)
        reader = TreeReader(parent.pid)
        held = reader.quick(), reader.exact()
        assert [reading.processes for reading in held] == [1, 1]
        assert all(200 < reading.held_mib < 250 for reading in held)
    finally:
        os.close(os.open(pipe, os.O_RDWR))
        os.kill(child_pid, 9)


def _until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def test_reader_closes_its_files(program):
    this = psutil.Process()
    count_files = this.num_fds if os.name == "posix" else this.num_handles
    program("print('ready', flush=True); input()")
    gc.collect()
    before = count_files()
    reader = TreeReader(os.getpid())
    assert reader.quick().processes >= 2
    assert count_files() == before


def test_root_left_out(program):
    program("print('ready', flush=True); input()")
    reader = TreeReader(os.getpid(), include_root=False)
    assert os.getpid() not in reader.pids()
    without = reader.exact()
    assert without.processes == memory.current().processes - 1


def test_processes_that_are_gone(program):
    process = program("print('ready', flush=True); input()")
    reader = TreeReader(process.pid)
    assert reader.exact().processes == 1
    process.kill()
    process.wait()
    assert reader.exact() == TreeMemory(0, 0, 0, 0, "pss" if sys.platform == "linux" else "uss")
    assert reader.quick().processes == 0
    assert _below(process.pid) == []


def test_mark_in_the_environment(program, monkeypatch):
    monkeypatch.setenv("SOME_MARKS", "first 1f0e9c second")
    process = program("print('ready', flush=True); input()")
    assert memory.carrying("1f0e9c") == [process.pid]


# Kernels that tell less, and swap


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Make a /proc of one process; return a function that writes its files."""
    monkeypatch.setattr(memory, "_PROC", str(tmp_path))
    (tmp_path / "7").mkdir()
    (tmp_path / "loadavg").write_text("0.00 0.00 0.00 0/0 0\n")
    (tmp_path / "7" / "stat").write_text("7 (name) S 1 7 7")

    def write(**files):
        for name, kib in files.items():
            text = "".join(f"{key}:\t{value * 1024} kB\n" for key, value in kib.items())
            (tmp_path / "7" / name).write_text(text)
        return TreeReader(7)

    return write


STATUS = {"VmHWM": 90, "VmRSS": 60, "RssAnon": 30, "RssFile": 20, "RssShmem": 10}
ROLLUP = {"Rss": 60, "Pss": 33, "Pss_Anon": 15, "Pss_File": 8, "Pss_Shmem": 10}


@linux_only
def test_swapped_pages_are_held(proc):
    """Also in zram: the kernel has moved them, and cannot drop them."""
    reader = proc(status=STATUS | {"VmSwap": 50}, smaps_rollup=ROLLUP | {"Swap": 50, "SwapPss": 25})
    bound, exact = reader.quick(), reader.exact()
    assert (bound.held_mib, bound.method) == (90, "rss-parts")
    assert (exact.held_mib, exact.method) == (50, "pss")
    proc(status=STATUS | {"VmRSS": 40, "RssAnon": 10, "VmSwap": 70})  # 20 MiB more are swapped out
    assert reader.quick().at_least_mib == 50


@linux_only
@pytest.mark.parametrize("rollup", [None, {"Rss": 60, "Pss": 33}], ids=["none", "as before Linux 5.9"])
def test_without_shares_of_shared_pages(proc, rollup):
    reader = proc(status=STATUS, **({"smaps_rollup": rollup} if rollup else {}))
    exact = reader.exact()
    assert (exact.held_mib, exact.file_mib, exact.processes, exact.method) == (40, 20, 1, "rss-parts")


@linux_only
def test_with_nothing_but_the_resident_set_size(proc):
    reader = proc(status={"VmSize": 900, "VmRSS": 60})
    for reading in (reader.quick(), reader.exact()):
        assert (reading.held_mib, reading.file_mib, reading.rss_mib) == (60, 0, 60)
        assert (reading.processes, reading.method, reading.highest_rss_mib) == (1, "rss", None)


# Other systems


@pytest.fixture
def not_linux(monkeypatch):
    monkeypatch.setattr(memory, "_LINUX", False)


def test_without_proc(not_linux, program):
    process = program(
        "import subprocess, sys; kept = bytearray(b'x') * (100 << 20);"
        "subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
        "print('ready', flush=True); input()"
    )
    (grandchild,) = _below(process.pid)
    reader = TreeReader(process.pid)
    assert sorted(reader.pids()) == sorted([process.pid, grandchild])
    bound, exact = reader.quick(), reader.exact()
    for reading in (bound, exact):
        assert (reading.method, reading.processes) == ("uss", 2)
        assert 100 < reading.held_mib < 150
        assert reading.held_mib + reading.file_mib == pytest.approx(reading.rss_mib)
        assert reading.highest_rss_mib is None and reading.at_least_mib is None
    assert _below(2**31 - 2) == []


def test_mark_without_proc(not_linux, program, monkeypatch):
    monkeypatch.setenv("SOME_MARKS", "first 5b77aa second")
    process = program("print('ready', flush=True); input()")
    assert memory.carrying("5b77aa") == [process.pid]


@pytest.mark.parametrize("denied", ["memory_full_info", "memory_info"])
def test_where_the_system_refuses(not_linux, monkeypatch, denied):
    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, denied, refuse)
    reading = memory.current()
    assert reading.method == "rss"
    assert (reading.held_mib > 5) is (denied == "memory_full_info")


def test_no_status_file(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROC", str(tmp_path))
    assert memory.read_status("self") is None


# The machine


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Make control groups: a dict of file contents by path, and what the process is told about its own group."""

    def make(files, of_self):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        (tmp_path / "of_self").write_text(of_self)
        monkeypatch.setattr(files_room, "_CGROUP_MOUNT", tmp_path)
        monkeypatch.setattr(files_room, "_CGROUPS_OF_SELF", tmp_path / "of_self")
        return memory.total_mib(), memory.available_mib()

    return make


def _group(folder, limit_mib, used_mib, cached_mib=0):
    limit = limit_mib if isinstance(limit_mib, str) else limit_mib * MIB
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{used_mib * MIB}\n",
        f"{folder}memory.stat": f"anon 5\ninactive_file {cached_mib * MIB // 2}\nactive_file {cached_mib * MIB // 2}\n",
    }


def test_machine_without_limits(cgroups):
    total, available = cgroups({}, "0::/\n")
    assert total == psutil.virtual_memory().total / MIB
    assert 0 < available < total


def test_container(cgroups):
    assert cgroups(_group("", 64, 40), "0::/\n") == (64, 24)


def test_cached_images_do_not_fill_a_container(cgroups):
    """Pages of files that were read twice are active, and still only a cache."""
    assert cgroups(_group("", 64, 60, cached_mib=50), "0::/\n") == (64, 54)


def test_no_limit_in_a_container(cgroups):
    total, _ = cgroups(_group("", "max", 40), "0::/\n")
    assert total == psutil.virtual_memory().total / MIB


def test_limit_of_an_outer_group(cgroups):
    """A session of a shared server: its own group has no limit, the user's has."""
    files = {**_group("user/session/", "max", 10), **_group("user/", 64, 30), **_group("", "max", 50)}
    assert cgroups(files, "0::/user/session\n") == (64, 34)


def test_tightest_of_several_limits(cgroups):
    files = {**_group("a/b/", 50, 10), **_group("a/", 64, 60)}
    assert cgroups(files, "0::/a/b\n") == (50, 4)


@pytest.mark.parametrize("path", ["/docker/0123", "/../../other"])
def test_path_that_the_container_does_not_see(cgroups, path):
    assert cgroups(_group("", 64, 40), f"0::{path}\n") == (64, 24)


def test_version_one(cgroups):
    files = {
        "memory/a/memory.limit_in_bytes": str(64 * MIB),
        "memory/a/memory.usage_in_bytes": str(50 * MIB),
        "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MIB}\ntotal_active_file {20 * MIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert cgroups(files, "9:cpu,memory:/a\n1:name=systemd:/b\n0::/c\n") == (64, 44)


def test_more_used_than_allowed(cgroups):
    assert cgroups(_group("", 64, 80), "0::/\n") == (64, 0)


@pytest.mark.parametrize("of_self", ["", "nonsense\n"])
def test_unreadable_groups(cgroups, of_self):
    total, _ = cgroups({"memory.max": "nonsense", "memory/memory.limit_in_bytes": "12"}, of_self)
    assert total == psutil.virtual_memory().total / MIB


def test_limit_that_only_slows_down(cgroups):
    """Above memory.high the kernel takes pages back until nothing goes on."""
    assert cgroups({**_group("", 100, 40), "memory.high": f"{64 * MIB}\n"}, "0::/\n") == (64, 24)
    total, _ = cgroups({**_group("", "max", 40), "memory.high": "max\n"}, "0::/\n")
    assert total == psutil.virtual_memory().total / MIB


@pytest.mark.parametrize(
    ("files", "of_self", "cores"),
    [
        ({}, "0::/\n", 8),
        ({"cpu.max": "max 100000\n"}, "0::/\n", 8),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 3),
        ({"a/cpu.max": "max 100000\n", "cpu.max": "200000 100000\n"}, "0::/a\n", 2),
        ({"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/a\n", 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", 8),
        ({"cpu.max": "nonsense\n"}, "nonsense\n", 8),
    ],
)
def test_quota_of_cores(cgroups, monkeypatch, files, of_self, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    cgroups(files, of_self)
    assert files_room.usable_cores() == cores
