"""Memory of a process tree, read cheaply and honestly; memory of the machine.

Called by `child` (the watchdog), `contract` and `measure`. What counts is what the kernel cannot drop: anonymous and
shared-memory pages. Pages of mapped files are reported apart.

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
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "MIB",
    "TreeMemory",
    "TreeReader",
    "available_mib",
    "carrying",
    "current",
    "descendants",
    "own",
    "peak_rss_mib",
    "total_mib",
]

MIB = 2**20
_LINUX = sys.platform == "linux"
_STATUS = re.compile(rb"^(VmHWM|VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)
_ROLLUP = re.compile(rb"^(Rss|Pss_Anon|Pss_File|Pss_Shmem):\s+(\d+) kB", re.MULTILINE)
_NO_LIMIT_BYTES = 2**60
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
    highest_rss_mib: float | None = None
    at_least_mib: float | None = None


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


def carrying(mark: str) -> list[int]:
    """Return the ids of all processes whose environment held ``mark`` when they started, orphans included.

    Children inherit their parent's environment and keep it when the parent is gone: a mark finds what left the tree.
    """
    if not _LINUX:
        return [process.pid for process in psutil.process_iter() if _environment_holds(process, mark)]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if mark.encode() in file.read():
                        found.append(int(name))
            except OSError:
                pass  # it ended in between, or belongs to somebody else
    return found


def _environment_holds(process: psutil.Process, mark: str) -> bool:
    try:
        return any(mark in value for value in process.environ().values())
    except (psutil.Error, OSError):
        return False


class TreeReader:
    """Reads the memory of a process tree 25 times a second at well under one per cent of a core.

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
        self._parents: dict[int, int] = {}  # of each process of the tree, zombies included
        self._strangers: set[int] = set()
        self._status_files: dict[int, int] = {}
        self._newest_pid: bytes | None = None
        self._listed_at = -math.inf
        self._is_settled = False
        self._exact_mib: float | None = None
        self._anon_at_exact: dict[int, int] = {}  # in KiB
        # Opening a file in /proc costs more than reading it: all are kept open.
        self._loadavg_file = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC) if _LINUX else None
        if _LINUX and include_root:
            self._add(pid, 0)

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
        """Return the process ids of the tree, zombies included."""
        if not _LINUX:
            return ([self._pid] if self._include_root else []) + descendants(self._pid)
        self._list_processes()
        return list(self._parents)

    def quick(self, unseen_s: float = 0.0) -> TreeMemory:
        """Return an upper bound in some ten microseconds a process: exact while no pages are shared by forking.

        A new process may stay unseen for ``unseen_s`` seconds: on a busy machine, looking for them is most of the cost.
        """
        if not _LINUX:
            return self.exact()
        readings = self._address_spaces(unseen_s)
        held = sum(kib[b"RssAnon"] + kib[b"RssShmem"] for kib in readings.values())
        mapped, rss, highest = (sum(kib[key] for kib in readings.values()) for key in (b"RssFile", b"VmRSS", b"VmHWM"))
        least = self._at_least(readings)
        return TreeMemory(held / 1024, mapped / 1024, rss / 1024, len(readings), "rss-parts", highest / 1024, least)

    def _at_least(self, readings: dict[int, dict[bytes, int]]) -> float | None:
        """Return the last exact reading and what has come since: a new anonymous page belongs to one process alone."""
        if self._exact_mib is None:
            return None
        grown = -sum(kib for pid, kib in self._anon_at_exact.items() if pid not in readings)
        for pid, kib in readings.items():
            grown += kib[b"RssAnon"] - self._anon_at_exact.setdefault(pid, kib[b"RssAnon"])
        return self._exact_mib + grown / 1024

    def _address_spaces(self, unseen_s: float = 0.0) -> dict[int, dict[bytes, int]]:
        """Return what /proc says of each process of the tree, in KiB; one process for each address space."""
        if time.monotonic() - self._listed_at >= unseen_s:
            self._follow_new_processes()
        readings = {}
        for pid in list(self._status_files):
            if kib := self._read_status(pid):
                readings[pid] = kib
        borrowers = [pid for pid in readings if self._borrows(pid, readings)]
        for pid in borrowers:
            del readings[pid]
        return readings

    def _read_status(self, pid: int) -> dict[bytes, int] | None:
        """Read one open status file; forget a process that is gone or a zombie."""
        if (file := self._status_files.get(pid)) is None:
            return None
        try:
            kib = {key: int(value) for key, value in _STATUS.findall(os.pread(file, 4096, 0))}
        except ProcessLookupError:
            kib = {}
            self._parents.pop(pid, None)
            self._is_settled = False  # another process may have its id by now
        if not kib:
            os.close(self._status_files.pop(pid))
        return kib or None

    def _borrows(self, pid: int, readings: dict[int, dict[bytes, int]]) -> bool:
        """Tell whether a process still runs in its parent's memory: `subprocess` starts programs by vfork.

        For a millisecond, until the new program is loaded, all of the parent's memory would count twice. A child made
        by a plain fork differs: it begins without most of its parent's file pages.
        """
        parent = self._parents.get(pid)
        if parent not in readings or abs(readings[parent][b"RssFile"] - readings[pid][b"RssFile"]) > 512:
            return False
        # The parent's other threads may change its memory in between: the child's figures lie between two of its own.
        before, child, after = self._read_status(parent), self._read_status(pid), self._read_status(parent)
        if not (before and child and after):
            return False
        return all(min(before[key], after[key]) <= child[key] <= max(before[key], after[key]) for key in child)

    def _follow_new_processes(self) -> None:
        """List the processes of the machine if one was born since the last call.

        Listing /proc takes a part of a millisecond. The last field of /proc/loadavg is the newest process id: while it
        stays the same, no process was born. A process has its id a moment before it stands in /proc, so the list is
        read once more when the id has stayed the same.
        """
        newest = os.pread(self._loadavg_file, 100, 0).rpartition(b" ")[2]
        is_same = newest == self._newest_pid
        if is_same and self._is_settled:
            return
        self._newest_pid, self._is_settled = newest, is_same
        self._list_processes()
        self._listed_at = time.monotonic()

    def _list_processes(self) -> None:
        """Find the processes that are new since the last list; only these cost a look."""
        there = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self._strangers &= there
        for pid in self._parents.keys() - there:
            del self._parents[pid]
        for pid in sorted(there - self._strangers - self._parents.keys()):
            self._judge(pid)

    def _judge(self, pid: int) -> None:
        """Follow the parents of a process up to one that is known, and add them all to the tree or to the strangers."""
        line = []
        while pid != self._pid and pid not in self._parents:
            parent = 0 if pid == 0 or pid in self._strangers else _parent_of(str(pid))
            if parent is None:
                return  # it ended in between; its children have another parent now, and are judged again
            if parent == 0:
                self._strangers.update([pid, *(below for below, _ in line)])
                return
            line.append((pid, parent))
            pid = parent
        for below, parent in line:
            self._add(below, parent)

    def _add(self, pid: int, parent: int) -> None:
        self._parents[pid] = parent
        try:
            self._status_files[pid] = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # it ended in between

    def exact(self) -> TreeMemory:
        """Return the memory with shared pages counted once, in milliseconds a process."""
        pids = list(self._address_spaces()) if _LINUX else self.pids()
        readings = [reading for pid in pids if (reading := _read_exactly(pid)) is not None]
        methods = {reading.method for reading in readings}
        method = next((name for name in ("rss", "uss", "pss") if name in methods), "pss")
        if _LINUX:
            self._exact_mib = sum(reading.held_mib for reading in readings)
            self._anon_at_exact = {pid: kib[b"RssAnon"] for pid, kib in self._address_spaces().items()}
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


def own() -> TreeMemory | None:
    """Return the memory of this process alone, in microseconds, or None where the system does not tell."""
    try:
        kib = {key: int(value) for key, value in _STATUS.findall(Path("/proc/self/status").read_bytes())}
        held = kib[b"RssAnon"] + kib[b"RssShmem"]
        mapped, rss, highest = kib[b"RssFile"], kib[b"VmRSS"], kib[b"VmHWM"]
    except (OSError, KeyError):
        return None
    return TreeMemory(held / 1024, mapped / 1024, rss / 1024, 1, "rss-parts", highest / 1024)


def peak_rss_mib() -> float | None:
    """Return the largest resident set size that this process ever had, in MiB (VmHWM), or None where unknown.

    The kernel keeps this figure, so it misses no peak between two samples. It includes pages of mapped files.
    """
    reading = own()
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
