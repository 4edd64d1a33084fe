"""Memory of a process tree, read cheaply and honestly; memory of the machine.

What counts is what the kernel cannot drop: anonymous and shared-memory pages. Pages of mapped files are reported apart.

On Linux the figures come from ``/proc``: ``status`` is quick, but counts a page that forked processes share once in
each of them; ``smaps_rollup`` divides shared pages by their owners (PSS), and costs milliseconds. Where the kernel
tells less, as in gVisor, the next best figure is taken; on other systems it is the unique set size (USS), or RSS where
that is refused. `TreeMemory.method` says which.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers.files import control_groups

MIB = 2**20
METHODS = ("pss", "rss-parts", "uss", "rss")  # from the best
_LINUX = sys.platform == "linux"
_SIZE = re.compile(rb"^(VmHWM|Vm[RS]\w+|Rss\w*|Pss_\w+|SwapPss):\s+(\d+) kB", re.MULTILINE)
_PROC = "/proc"
_BIRTH_S = 0.01  # a new process has its id a moment before it stands in /proc
_LISTED_S = 0.25  # list at least so often: in some sandboxes /proc/loadavg never changes


@dataclass(frozen=True)
class TreeMemory:
    """Memory of a process tree at one moment.

    Attributes
    ----------
    held_mib : float
        Anonymous and shared-memory pages, swapped out or not, in MiB: what the kernel cannot drop. Files in
        ``/dev/shm`` that no process has mapped now, such as batches that wait in a queue of PyTorch's, are not in it.
    file_mib, rss_mib : float
        Pages of mapped files (programs, libraries, data) and sum of the resident set sizes, in MiB.
    processes : int
    method : {"pss", "rss-parts", "uss", "rss"}
        Where `held_mib` comes from. ``rss-parts`` (RssAnon + RssShmem) is exact for one process and too high for
        processes that share pages; ``uss`` leaves such pages out; ``rss`` has mapped files in it.
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
    return [process.pid for process in psutil.process_iter(["environ"]) if mark in str(process.info["environ"])]


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
            with contextlib.suppress(psutil.NoSuchProcess):
                tree.update(process.pid for process in psutil.Process(self._root).children(recursive=True))
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
        pids = self._address_spaces() if _LINUX else self.pids()
        total = _sum([one for pid in pids if (one := _read_exactly(pid)) is not None])
        if _LINUX:
            self._exact_mib = total.held_mib
            readings = self._address_spaces()
            self._anon_at_exact = {pid: one.held_mib - one.shared_mib for pid, one in readings.items()}
        return total

    def _address_spaces(self, unseen_s: float = 0.0) -> dict[int, TreeMemory]:
        """Return the memory of each process of the tree; of one process for each address space."""
        now, newest = time.monotonic(), None
        with contextlib.suppress(OSError), open(f"{_PROC}/loadavg", "rb", buffering=0) as file:
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
        file_mib = readings[pid].file_mib  # 0 where the kernel does not tell
        if parent not in readings or not file_mib or abs(readings[parent].file_mib - file_mib) > 0.5:
            return False
        # The parent's other threads may change its memory in between: the child's figures lie between two of its own.
        before, child, after = read_status(parent), read_status(pid), read_status(parent)
        if not (before and child and after):
            return False
        figures = ((one.held_mib, one.file_mib, one.highest_rss_mib) for one in (before, child, after))
        return all(min(first, last) <= mib <= max(first, last) for first, mib, last in zip(*figures, strict=True))


def _parent_of(pid: int) -> int | None:
    with contextlib.suppress(OSError, IndexError), open(f"{_PROC}/{pid}/stat", "rb") as file:
        # The program's name stands in brackets and may itself hold brackets and spaces: count from the last one.
        return int(file.read().rpartition(b")")[2].split()[1])
    return None


def _sizes_mib(path: str) -> dict[bytes, float]:
    """Return the sizes in a file of /proc by name, in MiB; none where there is no such file."""
    try:
        with open(path, "rb", buffering=0) as file:
            return {name: int(kib) / 1024 for name, kib in _SIZE.findall(file.read())}
    except OSError:
        return {}


def read_status(pid: int | str) -> TreeMemory | None:
    """Return the memory of one process in microseconds, or None for a zombie, where it is gone, or without /proc.

    The kernel itself keeps `highest_rss_mib`, so that it misses no peak between two samples.
    """
    mib = _sizes_mib(f"{_PROC}/{pid}/status")
    if b"VmRSS" not in mib:
        return None
    rss, swap, highest = mib[b"VmRSS"], mib.get(b"VmSwap", 0.0), mib.get(b"VmHWM")
    if b"RssAnon" not in mib:
        return TreeMemory(rss + swap, 0.0, rss, 1, "rss", highest_rss_mib=highest)
    shared = mib[b"RssShmem"]
    return TreeMemory(mib[b"RssAnon"] + shared + swap, mib[b"RssFile"], rss, 1, "rss-parts", shared, highest)


def _read_exactly(pid: int) -> TreeMemory | None:
    """Return the memory of one process, its part of shared pages included, or None when it is gone."""
    if not _LINUX:
        return _read_uss(pid)
    mib = _sizes_mib(f"{_PROC}/{pid}/smaps_rollup")
    if b"Pss_Anon" not in mib:  # it has ended, or may not be looked into, or the kernel does not tell
        return read_status(pid)
    shared = mib[b"Pss_Shmem"]
    return TreeMemory(
        mib[b"Pss_Anon"] + shared + mib.get(b"SwapPss", 0.0), mib[b"Pss_File"], mib[b"Rss"], 1, "pss", shared
    )


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


def total_mib() -> float:
    """Return the memory of this machine, or of this container where that is less, in MiB."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _cgroups_bytes())]) / MIB


def available_mib() -> float:
    """Return what programs can still take before this machine, or this container, runs out of memory, in MiB."""
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _cgroups_bytes())])) / MIB


def _cgroups_bytes() -> list[tuple[int, int]]:
    """Return the memory limit of each container around this process and what counts against it, in bytes."""
    found = []
    for group in control_groups("memory"):
        # Above memory.high nothing is killed, but all goes on very slowly.
        limits = _numbers(group, "memory.max", "memory.high", "memory.limit_in_bytes")
        used = _numbers(group, "memory.current", "memory.usage_in_bytes")
        cached = 0
        with contextlib.suppress(OSError):
            parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Cached file pages are dropped before anything is killed. An image read twice is "active".
            kinds = ("active_file", "inactive_file")
            cached = sum(int(parts.get(f"total_{kind}", parts.get(kind, 0))) for kind in kinds)
        if limits and used:
            found.append((min(limits), max(0, used[0] - cached)))
    return found


def _numbers(folder: Path, *names: str) -> list[int]:
    """Return the numbers in files that may be missing or hold none: "max"."""
    found = []
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            found.append(int((folder / name).read_text()))
    return found
