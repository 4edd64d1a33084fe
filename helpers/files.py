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
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

__all__ = [
    "ExitStatus",
    "free_bytes",
    "locked",
    "naming",
    "printable",
    "sha256_of",
    "tolerant_streams",
    "usable_cores",
    "whole_file",
    "write_whole",
]


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
        The lock file; it stays.
    busy : str
        What to say when another process holds it.
    wait_s : float
        How long to wait for that process first, in seconds.

    Raises
    ------
    BlockingIOError
        If another process holds the lock; its text is ``busy``.
    """
    try:
        lock = FileLock(path).acquire(timeout=wait_s)
    except Timeout:
        raise BlockingIOError(busy) from None
    with lock:
        yield


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
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def printable(path: str | os.PathLike) -> str:
    """Return a path as one line of text, with escapes for bytes that are no UTF-8 and for what steers a terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in os.fspath(path))


def tolerant_streams() -> None:
    """Write as an escape what the encoding of standard output or error lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # it may be None, or a notebook's
            stream.reconfigure(errors="backslashreplace")
