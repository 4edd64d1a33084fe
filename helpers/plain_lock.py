"""A lock between processes that needs Python alone: in a file that is taken home it stands in for `files.locked`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

__all__ = ["locked"]


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
        yield


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
