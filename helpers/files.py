"""What every room does with files, done once: write whole files, lock, hash, count cores and free bytes.

Stands on the ground: it imports nothing else of the course.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "ExitStatus",
    "control_groups",
    "free_bytes",
    "locked",
    "may_replace",
    "naming",
    "printable",
    "sha256_of",
    "shown_warnings",
    "tolerant_streams",
    "usable_cores",
    "whole_file",
    "write_whole",
]

_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_CGROUPS_OF_SELF = Path("/proc/self/cgroup")


class ExitStatus(IntEnum):
    """How a command of the course ends; 128 and more are signals, as in every shell."""

    FINE = 0
    FOUND = 1  # it worked, and something is wrong with what it looked at
    CANNOT = 2  # arguments, files or a machine that it cannot work with


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Add the file to an error of the system that does not say which: a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or os.fspath(path)
        raise


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file so that its name never stands for half of it, not even after a power cut.

    Parameters
    ----------
    path : path
        Takes the content's place when the block has ended; where the block raises, what was there before stays.

    Yields
    ------
    binary file
        A hidden file in the same folder, ``.NAME.XXXXXXXX.part``.

    Raises
    ------
    OSError
        With the name of ``path`` where the system gives none: a full disk.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with naming(path):
            with open(unfinished, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file in one go, as `whole_file` does; text as UTF-8."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Run a block while no other process holds the same lock; a lock ends with its holder, however that ends.

    Parameters
    ----------
    path : path
        The lock file; it stays. The group of its owner may lock it, too.
    busy : str
        What to say when another process holds it.
    wait_s : float
        How long to wait for that process first, in seconds.

    Raises
    ------
    BlockingIOError
        If another process holds the lock; its text is ``busy``.
    """
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):  # it is another user's
            os.chmod(path, 0o664)
        end_s = time.monotonic() + wait_s
        while not _taken(file.fileno()):
            if time.monotonic() >= end_s:
                raise BlockingIOError(busy)
            time.sleep(0.05)
        try:
            yield
        finally:
            if os.name != "nt":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile still has the file open


def _taken(descriptor: int) -> bool:
    """Take the lock of an open file unless another process has it; closing the file gives it back."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def may_replace(path: str | os.PathLike, mark: bytes) -> bool:
    """Tell whether a file may be written over: it is not there, or empty, or one of ours, which hold `mark`."""
    path = Path(path)
    if not path.is_file():
        return not path.exists()  # no folder and no device
    data = path.read_bytes() if path.stat().st_size < 2**26 else b""
    return mark in data or not path.stat().st_size


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: str | os.PathLike) -> int:
    """Return what a program may still write on the disk of a folder that need not exist yet, in bytes."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use; a container's quota counts, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in control_groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            # Not there in the other version of control groups, and no number where there is no quota.
            with contextlib.suppress(OSError, ValueError):
                quota_us, period_us = (int(us) for name in names for us in (group / name).read_text().split())
                if quota_us > 0:
                    cores = min(cores, -(-quota_us // period_us))
    return cores


def control_groups(controller: str) -> list[Path]:
    """Return the folders of this process's control groups, of versions 2 and 1, inner to outer; none without Linux.

    Parameters
    ----------
    controller : {"cpu", "memory"}
    """
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in _CGROUPS_OF_SELF.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                mount = _CGROUP_MOUNT / (controller if controllers else "")
                # A container often sees its own group as the root of the mount, whatever path its processes read.
                parts = [] if ".." in path else [part for part in path.split("/") if part]
                found += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return found


def printable(path: str | os.PathLike) -> str:
    """Return a path as one line of text, with escapes for bytes that are no UTF-8 and for what steers a terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in os.fspath(path))


def tolerant_streams() -> None:
    """Write as an escape what the encoding of standard output or error lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # it may be None, or a notebook's
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def shown_warnings(show: Callable[[str], object]) -> Iterator[None]:
    """Hand each warning in a `with` block to `show` as a sentence, without the line of code that it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: show(printable(str(message)))
        yield
