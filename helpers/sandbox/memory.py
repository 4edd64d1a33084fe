"""Memory of a process tree, read cheaply and honestly; memory of the machine.

What counts is what the kernel cannot drop: anonymous and shared-memory pages. Pages of mapped files are reported apart.

On Linux the figures come from ``/proc``: ``status`` is quick, but counts a page that forked processes share once in
each of them; ``smaps_rollup`` divides shared pages by their owners (PSS), and costs milliseconds. Other systems have no
PSS for us: the unique set size (USS) is used there, or RSS where that is refused; `TreeMemory.method` says which.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20
METHODS = ("pss", "rss-parts", "uss", "rss")  # from the best
_LINUX = sys.platform == "linux"
_SIZE = re.compile(
    rb"^(VmHWM|VmRSS|RssAnon|RssFile|RssShmem|Rss|Pss_Anon|Pss_File|Pss_Shmem):\s+(\d+) kB", re.MULTILINE
)
_PROC = "/proc"
_NO_LIMIT_BYTES = 2**60
_BIRTH_S = 0.01  # a new process has its id a moment before it stands in /proc
_LISTED_S = 0.25  # list at least so often: in some sandboxes /proc/loadavg never changes
_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_CGROUP_OF_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class TreeMemory:
    """Memory of a process tree at one moment.

    Attributes
    ----------
    held_mib : float
        Anonymous and shared-memory pages, in MiB: what the kernel cannot drop. Shared memory that exists and that no
        process has mapped at the moment, such as batches that wait in a queue of PyTorch's, is in nobody's figures.
    file_mib : float
        Pages of mapped files, in MiB: programs, libraries, memory-mapped data.
    rss_mib : float
        Sum of the resident set sizes, in MiB. Counts shared pages once per process.
    processes : int
        Number of processes.
    method : {"pss", "rss-parts", "uss", "rss"}
        Where `held_mib` comes from. ``rss-parts`` (RssAnon + RssShmem) is exact for one process and too high for
        processes that share pages.
    shared_mib : float
        Part of `held_mib` that is shared memory, in MiB, where the reading has it.
    highest_rss_mib : float or None
        Sum of the largest resident set sizes that the processes ever had (VmHWM), in MiB, where the reading has it.
    at_least_mib : float or None
        From `TreeReader.quick` after `TreeReader.exact`: a lower bound of what is held, in MiB.
    """

    held_mib: float
    file_mib: float
    rss_mib: float
    processes: int
    method: str
    shared_mib: float = 0.0
    highest_rss_mib: float | None = None
    at_least_mib: float | None = None


def carrying(mark: str) -> list[int]:
    """Return the ids of all processes whose environment held ``mark`` when they started, orphans included.

    Children inherit their parent's environment and keep it when the parent is gone: a mark finds what left the tree.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if any(mark in value for value in process.environ().values()):
                found.append(process.pid)
        except (psutil.Error, OSError):
            pass  # it ended in between, or belongs to somebody else
    return found


class TreeReader:
    """Reads the memory of a process tree 25 times a second at under one per cent of a core.

    Parameters
    ----------
    pid : int
        The root of the tree.
    include_root : bool
        Whether the root counts; a watchdog leaves itself out.
    """

    def __init__(self, pid: int, *, include_root: bool = True):
        self._root = pid
        self._include_root = include_root
        self._parents: dict[int, int | None] = {}  # of all processes of the machine
        self._pids: list[int] = []
        self._newest_pid: bytes | None = None
        self._listed_at = self._born_at = -math.inf
        self._exact_mib: float | None = None
        self._anon_at_exact: dict[int, float] = {}

    def pids(self) -> list[int]:
        """Return the process ids of the tree, zombies included, the oldest first."""
        tree = {self._root}
        if _LINUX:
            there = {0, *(int(name) for name in os.listdir(_PROC) if name.isdigit())}  # 0 is the first one's parent
            known = {pid: parent for pid, parent in self._parents.items() if pid in there and parent in there}
            self._parents = known | {pid: _parent_of(pid) for pid in there - known.keys() - {0}}
            while new := {pid for pid, parent in self._parents.items() if parent in tree} - tree:
                tree |= new
        else:
            try:
                tree.update(process.pid for process in psutil.Process(self._root).children(recursive=True))
            except psutil.NoSuchProcess:
                pass
        self._listed_at = time.monotonic()
        self._pids = sorted(tree if self._include_root else tree - {self._root})
        return self._pids

    def quick(self, unseen_s: float = 0.0) -> TreeMemory:
        """Return an upper bound in some fifty microseconds a process: exact while no pages are shared by forking.

        A new process may stay unseen for ``unseen_s`` seconds: on a busy machine, looking for them is most of the cost.
        """
        if not _LINUX:
            return self.exact()
        readings = self._address_spaces(unseen_s)
        if self._exact_mib is None:
            return _sum(readings.values())
        # A new anonymous page belongs to one process alone.
        grown_mib = -sum(mib for pid, mib in self._anon_at_exact.items() if pid not in readings)
        for pid, one in readings.items():
            anon_mib = one.held_mib - one.shared_mib
            grown_mib += anon_mib - self._anon_at_exact.setdefault(pid, anon_mib)
        return _sum(readings.values(), self._exact_mib + grown_mib)

    def exact(self) -> TreeMemory:
        """Return the memory with shared pages counted once, in milliseconds a process."""
        pids, read = (self._address_spaces(), _read_rollup) if _LINUX else (self.pids(), _read_uss)
        total = _sum([one for pid in pids if (one := read(pid)) is not None])
        if _LINUX:
            self._exact_mib = total.held_mib
            readings = self._address_spaces()
            self._anon_at_exact = {pid: one.held_mib - one.shared_mib for pid, one in readings.items()}
        return total

    def _address_spaces(self, unseen_s: float = 0.0) -> dict[int, TreeMemory]:
        """Return the memory of each process of the tree; of one process for each address space."""
        now = time.monotonic()
        with open(f"{_PROC}/loadavg", "rb", buffering=0) as file:
            newest = file.read().rpartition(b" ")[2]  # while it stays the same, no process was born
        if newest != self._newest_pid:
            self._newest_pid, self._born_at = newest, now
        is_due = self._listed_at <= self._born_at + _BIRTH_S or now - self._listed_at > _LISTED_S
        pids = self.pids() if is_due and now - self._listed_at >= unseen_s else self._pids
        readings = {pid: one for pid in pids if (one := read_status(pid)) is not None}
        borrowers = {pid for pid in readings if self._borrows(pid, readings)}
        return {pid: one for pid, one in readings.items() if pid not in borrowers}

    def _borrows(self, pid: int, readings: dict[int, TreeMemory]) -> bool:
        """Tell whether a process still runs in its parent's memory: `subprocess` starts programs by vfork.

        For a millisecond, until the new program is loaded, all of the parent's memory would count twice. A child made
        by a plain fork differs: it begins without most of its parent's file pages.
        """
        parent = self._parents.get(pid)
        if parent not in readings or abs(readings[parent].file_mib - readings[pid].file_mib) > 0.5:
            return False
        # The parent's other threads may change its memory in between: the child's figures lie between two of its own.
        before, child, after = read_status(parent), read_status(pid), read_status(parent)
        if not (before and child and after):
            return False
        figures = ((one.held_mib, one.file_mib, one.highest_rss_mib) for one in (before, child, after))
        return all(min(first, last) <= mib <= max(first, last) for first, mib, last in zip(*figures, strict=True))


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"{_PROC}/{pid}/stat", "rb") as file:
            # The program's name stands in brackets and may itself hold brackets and spaces: count from the last one.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _sizes_mib(path: str) -> dict[bytes, float]:
    """Return the sizes in a file of /proc by name, in MiB; none where there is no such file."""
    try:
        with open(path, "rb", buffering=0) as file:
            return {name: int(kib) / 1024 for name, kib in _SIZE.findall(file.read())}
    except OSError:
        return {}


def read_status(pid: int | str) -> TreeMemory | None:
    """Return the memory of one process in microseconds, or None for a zombie, where it is gone, or without /proc."""
    mib = _sizes_mib(f"{_PROC}/{pid}/status")
    if b"VmRSS" not in mib:
        return None
    shared = mib[b"RssShmem"]
    held = mib[b"RssAnon"] + shared
    return TreeMemory(held, mib[b"RssFile"], mib[b"VmRSS"], 1, "rss-parts", shared, mib[b"VmHWM"])


def _read_rollup(pid: int) -> TreeMemory | None:
    """Return the memory of one process, its part of shared pages included, or None when it is gone."""
    mib = _sizes_mib(f"{_PROC}/{pid}/smaps_rollup")
    if b"Pss_Anon" not in mib:
        return None
    shared = mib[b"Pss_Shmem"]
    return TreeMemory(mib[b"Pss_Anon"] + shared, mib[b"Pss_File"], mib[b"Rss"], 1, "pss", shared)


def _read_uss(pid: int) -> TreeMemory | None:
    """Return the memory of one process on other systems than Linux, or None when it is gone."""
    rss_mib = 0.0
    try:
        process = psutil.Process(pid)
        rss_mib = process.memory_info().rss / MIB
        uss_mib = process.memory_full_info().uss / MIB
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return TreeMemory(rss_mib, 0, rss_mib, 1, "rss")
    return TreeMemory(uss_mib, max(rss_mib - uss_mib, 0), rss_mib, 1, "uss")


def _sum(readings: Collection[TreeMemory], at_least_mib: float | None = None) -> TreeMemory:
    held_mib, file_mib, rss_mib, shared_mib = (
        sum(getattr(one, name) for one in readings) for name in ("held_mib", "file_mib", "rss_mib", "shared_mib")
    )
    highest = [one.highest_rss_mib for one in readings]
    highest_rss_mib = sum(highest) if highest and None not in highest else None
    method = max((one.method for one in readings), key=METHODS.index, default=METHODS[0])
    return TreeMemory(held_mib, file_mib, rss_mib, len(readings), method, shared_mib, highest_rss_mib, at_least_mib)


def current() -> TreeMemory:
    """Return the memory that this process and its children hold now, shared pages counted once."""
    return TreeReader(os.getpid()).exact()


def peak_rss_mib() -> float | None:
    """Return the largest resident set size that this process ever had, in MiB (VmHWM), or None where unknown.

    The kernel keeps this figure, so it misses no peak between two samples. It includes pages of mapped files.
    """
    reading = read_status("self")
    return None if reading is None else reading.highest_rss_mib


def total_mib() -> float:
    """Return the memory of this machine, or of this container where that is less, in MiB."""
    return min(psutil.virtual_memory().total, *(limit for limit, _ in _cgroups_bytes())) / MIB


def available_mib() -> float:
    """Return what programs can still take before this machine, or this container, runs out of memory, in MiB."""
    left = (limit - used for limit, used in _cgroups_bytes())
    return max(0, min(psutil.virtual_memory().available, *left)) / MIB


def _cgroups_bytes() -> list[tuple[int, int]]:
    """Return the memory limit of each container around this process and what counts against it, in bytes."""
    found = [(_NO_LIMIT_BYTES, 0)]
    for folder, limit_name, used_name, prefix in _cgroup_folders():
        try:
            limit = int((folder / limit_name).read_text())
            if limit >= _NO_LIMIT_BYTES:
                continue
            used = int((folder / used_name).read_text())
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        # Cached file pages are dropped before anything is killed. An image read twice is "active", and still a cache.
        cached = sum(int(parts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        found.append((limit, max(0, used - cached)))
    return found


def _cgroup_folders() -> list[tuple[Path, str, str, str]]:
    """Return the folders of this process's control groups, inner to outer, with the names that their version uses."""
    v2 = (_CGROUP_MOUNT, "memory.max", "memory.current", "")
    v1 = (_CGROUP_MOUNT / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    paths = {v2: "", v1: ""}
    try:
        for line in _CGROUP_OF_SELF.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                paths[v2] = path
            elif "memory" in controllers.split(","):
                paths[v1] = path
    except (OSError, ValueError):
        pass  # not Linux
    found = []
    for (mount, *names), path in paths.items():
        # A container often sees its own group as the root of the mount, whatever path it is told.
        parts = [] if ".." in path else [part for part in path.split("/") if part]
        found += [(mount.joinpath(*parts[:depth]), *names) for depth in range(len(parts), -1, -1)]
    return found
