"""Memory of a process tree, read cheaply and honestly; memory of the machine.

Called by `child` (the watchdog), `contract` and `measure`. What counts is what the kernel cannot drop: anonymous and
shared-memory pages. Pages of mapped files are reported apart.

On Linux the figures come from ``/proc``: ``status`` is quick, but counts a page that forked processes share once in
each of them; ``smaps_rollup`` divides shared pages by their owners (PSS), and costs milliseconds. Other systems have no
PSS for us: the unique set size (USS) is used there, or RSS where that is refused; `TreeMemory.method` says which.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "MIB",
    "TreeMemory",
    "TreeReader",
    "available_mib",
    "current",
    "descendants",
    "peak_rss_mib",
    "total_mib",
]

MIB = 2**20
_LINUX = sys.platform == "linux"
_STATUS = re.compile(rb"^(VmHWM|VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)
_ROLLUP = re.compile(rb"^(Rss|Pss_Anon|Pss_File|Pss_Shmem):\s+(\d+) kB", re.MULTILINE)
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True)
class TreeMemory:
    """Memory of a process tree at one moment.

    Attributes
    ----------
    held_mib : float
        Anonymous and shared-memory pages, in MiB: what the kernel cannot drop.
    file_mib : float
        Pages of mapped files, in MiB: programs, libraries, memory-mapped data.
    rss_mib : float
        Sum of the resident set sizes, in MiB. Counts shared pages once per process.
    processes : int
        Number of processes.
    method : {"pss", "rss-parts", "uss", "rss"}
        Where `held_mib` comes from. ``rss-parts`` (RssAnon + RssShmem) is exact for one process and too high for
        processes that share pages.
    highest_rss_mib : float or None
        Sum of the largest resident set sizes that the processes ever had (VmHWM), in MiB, where the reading has it.
    """

    held_mib: float
    file_mib: float
    rss_mib: float
    processes: int
    method: str
    highest_rss_mib: float | None = None


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below ``pid``, without itself."""
    if not _LINUX:
        try:
            return [process.pid for process in psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _parent_of(name)) is not None:
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parent_of(name: str) -> int | None:
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            # The program's name stands in brackets and may itself hold brackets and spaces: count from the last one.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


class TreeReader:
    """Reads the memory of a process tree a hundred times a second at well under one per cent of a core.

    Parameters
    ----------
    pid : int
        The root of the tree.
    include_root : bool
        Whether the root counts; a watchdog leaves itself out.
    """

    def __init__(self, pid: int, *, include_root: bool = True):
        self._pid = pid
        self._include_root = include_root
        self._status_files: dict[int, int] = {}
        self._newest_pid: bytes | None = None
        # Opening a file in /proc costs more than reading it: all are kept open.
        self._loadavg_file = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC) if _LINUX else None

    def close(self) -> None:
        """Close the files that `quick` keeps open; call it once, when done."""
        while self._status_files:
            os.close(self._status_files.popitem()[1])
        if self._loadavg_file is not None:
            os.close(self._loadavg_file)
            self._loadavg_file = None

    def __enter__(self) -> TreeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pids(self) -> list[int]:
        """Return the process ids of the tree."""
        return ([self._pid] if self._include_root else []) + descendants(self._pid)

    def quick(self) -> TreeMemory:
        """Return an upper bound in some ten microseconds a process: exact while no pages are shared by forking."""
        if not _LINUX:
            return self.exact()
        self._follow_new_processes()
        held = mapped = rss = highest = count = 0
        for pid, descriptor in list(self._status_files.items()):
            try:
                kib = {key: int(value) for key, value in _STATUS.findall(os.pread(descriptor, 4096, 0))}
            except ProcessLookupError:
                kib = {}
            if not kib:  # gone, or a zombie
                os.close(self._status_files.pop(pid))
                continue
            held += kib[b"RssAnon"] + kib[b"RssShmem"]
            mapped += kib[b"RssFile"]
            rss += kib[b"VmRSS"]
            highest += kib[b"VmHWM"]
            count += 1
        return TreeMemory(held / 1024, mapped / 1024, rss / 1024, count, "rss-parts", highest / 1024)

    def _follow_new_processes(self) -> None:
        """Open the status files of processes that were born since the last call.

        Listing /proc takes milliseconds. The last field of /proc/loadavg is the newest process id: while it stays
        the same, no process was born.
        """
        newest = os.pread(self._loadavg_file, 100, 0).rpartition(b" ")[2]
        if newest == self._newest_pid:
            return
        self._newest_pid = newest
        for pid in self.pids():
            if pid not in self._status_files:
                try:
                    self._status_files[pid] = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    pass  # it ended in between

    def exact(self) -> TreeMemory:
        """Return the memory with shared pages counted once, in milliseconds a process."""
        readings = [reading for pid in self.pids() if (reading := _read_exactly(pid)) is not None]
        methods = {reading.method for reading in readings}
        method = next((name for name in ("rss", "uss", "pss") if name in methods), "pss")
        return TreeMemory(
            sum(reading.held_mib for reading in readings),
            sum(reading.file_mib for reading in readings),
            sum(reading.rss_mib for reading in readings),
            len(readings),
            method,
        )


def _read_exactly(pid: int) -> TreeMemory | None:
    """Return the memory of one process, or None when it is gone."""
    if _LINUX:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                kib = {key: int(value) for key, value in _ROLLUP.findall(file.read())}
        except (FileNotFoundError, ProcessLookupError):
            return None
        except PermissionError:
            kib = {}
        if b"Pss_Anon" in kib:
            held = kib[b"Pss_Anon"] + kib.get(b"Pss_Shmem", 0)
            return TreeMemory(held / 1024, kib.get(b"Pss_File", 0) / 1024, kib[b"Rss"] / 1024, 1, "pss")
    try:
        process = psutil.Process(pid)
        rss = process.memory_info().rss / MIB
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return TreeMemory(0, 0, 0, 1, "rss")
    try:
        uss = process.memory_full_info().uss / MIB
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return TreeMemory(rss, 0, rss, 1, "rss")
    return TreeMemory(uss, max(rss - uss, 0), rss, 1, "uss")


def current() -> TreeMemory:
    """Return the memory that this process and its children hold now, shared pages counted once."""
    with TreeReader(os.getpid()) as reader:
        return reader.exact()


def peak_rss_mib() -> float | None:
    """Return the largest resident set size that this process ever had, in MiB (VmHWM), or None where unknown.

    The kernel keeps this figure, so it misses no peak between two samples. It includes pages of mapped files.
    """
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return None
    found = dict(_STATUS.findall(status)).get(b"VmHWM")
    return None if found is None else int(found) / 1024


def total_mib() -> float:
    """Return the memory of this machine, or of this container where that is less, in MiB."""
    limit, _ = _cgroup_bytes()
    return min(psutil.virtual_memory().total, limit) / MIB


def available_mib() -> float:
    """Return what programs can still take before this machine, or this container, runs out of memory, in MiB."""
    limit, used = _cgroup_bytes()
    return max(0, min(psutil.virtual_memory().available, limit - used)) / MIB


def _cgroup_bytes() -> tuple[int, int]:
    """Return the container's memory limit and what counts against it, in bytes (no limit: 2^60 and 0)."""
    for folder, limit_name, used_name, cache_name in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current", b"inactive_file"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file"),
    ):
        try:
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
            parts = dict(line.split() for line in (folder / "memory.stat").read_bytes().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < _NO_LIMIT_BYTES:
            # Cached file pages that nobody used lately are dropped before anything is killed.
            return limit, used - int(parts.get(cache_name, 0))
    return _NO_LIMIT_BYTES, 0
