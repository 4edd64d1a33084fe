"""Move what an inspection found out of a folder of images, and back; no file is ever deleted or overwritten.

Called by `data_scripts/check_images.py`.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inspection import Inspection

from helpers.files import locked, naming, write_whole

__all__ = ["put_back", "quarantine"]

_LOG = "quarantine.jsonl"


def quarantine(inspection: Inspection, to: str | os.PathLike, kinds: Sequence[str]) -> int:
    """Move files out of the folder, each to the same place below another one; nothing is ever deleted or overwritten.

    What moves is noted first, in a file that `put_back` reads, so that a move that was interrupted can be undone too.

    Parameters
    ----------
    kinds : sequence of str
        Of findings whose files move.

    Returns
    -------
    int
        How many moved.

    Raises
    ------
    OSError
        If a file cannot be moved, or another run is moving files there. What has moved, stays.
    """
    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    wanted = {one.path: one for one in reversed(inspection.findings) if one.kind in kinds and one.kind != "few images"}
    there = {inspection.folder / path: finding for path, finding in sorted(wanted.items())}
    with _held(to):
        there = {source: finding for source, finding in there.items() if os.path.lexists(source)}
        _finish_moves(to / _LOG)
        for source, finding in there.items():
            if os.path.lexists(source):
                target = _free(to / finding.path)
                entry = {"from": str(source.absolute()), "to": str(target.absolute()), "why": finding.kind}
                _append(to / _LOG, json.dumps(entry).encode() + b"\n")
                _move(source, target)
    return len(there)


def put_back(folder: str | os.PathLike) -> tuple[int, list[str]]:
    """Move everything out of a quarantine, back to where it was.

    Returns
    -------
    int, list of str
        How many moved, and what could not, with the reason.

    Raises
    ------
    FileNotFoundError
        If the folder is no quarantine.
    OSError
        If a file cannot be moved, or another run is moving files there. What has moved, stays.
    """
    log = Path(folder) / _LOG
    if not log.exists():
        raise FileNotFoundError(f"{folder}: no quarantine ({_LOG} is missing)")
    moved, faults, left = 0, [], []
    with _held(log.parent):
        for line, target, source in _entries(log):
            if not os.path.lexists(source):
                continue  # put back already, or it has never moved
            if not os.path.lexists(target):
                _move(source, target)
            elif _is_copy(source, target):
                source.unlink()  # moved to another disk, and interrupted at the very end
            else:
                faults.append(f"{target}: there is another file now; {source} stays")
                left.append(line)
                continue
            moved += 1
        if left:
            write_whole(log, b"".join(left))
        else:
            log.unlink()
    return moved, faults


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other runs from moving files into this folder or out of it."""
    with locked(folder / ".lock", f"{folder}: another run is moving files there; wait for it, or stop it"):
        for unfinished in folder.glob(f".{_LOG}.*.part"):  # of a run that was killed
            unfinished.unlink()
        yield


def _entries(log: Path) -> Iterator[tuple[bytes, Path, Path]]:
    """Yield each line of a quarantine's log, where the file was, and where it is; leave out a torn line."""
    for line in log.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            yield line, Path(entry["from"]), Path(entry["to"])
        except (ValueError, KeyError, TypeError):
            continue  # torn when the quarantine was interrupted: that file has not moved


def _finish_moves(log: Path) -> None:
    """Finish what an interrupted run began, and take out of its log what never moved."""
    if not log.exists():
        return
    kept = b""
    for line, source, target in _entries(log):
        if os.path.lexists(target):
            kept += line
            if os.path.lexists(source) and _is_copy(source, target):
                source.unlink()  # moved to another disk, and interrupted at the very end
    if kept != log.read_bytes():
        write_whole(log, kept)


def _is_copy(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _append(path: Path, line: bytes) -> None:
    with naming(path), open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _free(path: Path) -> Path:
    """Return a path that does not exist yet."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return candidate


def _move(source: Path, target: Path) -> None:
    """Move a file, also to another disk; at any moment it is whole in one of the two places."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        unfinished = target.with_name(f".{target.name}.part")
        try:
            shutil.copy2(source, unfinished, follow_symlinks=False)
            unfinished.rename(target)
        finally:
            unfinished.unlink(missing_ok=True)
        source.unlink()
