"""Move what an inspection found out of a folder of images, and back; no file is ever deleted or overwritten.

Called by `data_scripts/check_images.py`. The quarantine's log says where each file was: in which folder, by that one's
absolute path and by the way to it from the quarantine, and where below it. So the quarantine may be renamed or moved,
and so may a tree that holds both.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inspection import UNDECIDED, Inspection

from helpers.files import locked, naming, write_whole

__all__ = ["put_back", "quarantine"]

_LOG = "quarantine.jsonl"


def quarantine(inspection: Inspection, to: str | os.PathLike, kinds: Sequence[str]) -> int:
    """Move files out of the folder, each to the same place below another one; nothing is ever deleted or overwritten.

    What moves is noted first, in a file that `put_back` reads, so that a move that was interrupted can be undone too.

    Parameters
    ----------
    kinds : sequence of str
        Of findings whose files move; not of those that say nothing about a file.

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
    wanted = {
        one.path: one
        for one in reversed(inspection.findings)
        if one.kind in kinds and one.kind != "few images" and one.severity != UNDECIDED
    }
    there = {inspection.folder / path: finding for path, finding in sorted(wanted.items())}
    with _held(to):
        there = {source: finding for source, finding in there.items() if os.path.lexists(source)}
        _finish_moves(to / _LOG)
        for source, finding in there.items():
            if os.path.lexists(source):
                target = _free(to / finding.path)
                entry = {
                    "folder": os.path.realpath(inspection.folder),
                    "folder_from_here": _way(to, inspection.folder),
                    "from": finding.path,
                    "to": os.path.relpath(target, to),
                    "why": finding.kind,
                }
                _append(to / _LOG, json.dumps(entry).encode() + b"\n")
                _move(source, target)
    return len(there)


def _way(start: Path, end: Path) -> str:
    try:
        return os.path.relpath(os.path.realpath(end), os.path.realpath(start))
    except ValueError:  # another drive of Windows
        return os.path.realpath(end)


def put_back(folder: str | os.PathLike, images: str | os.PathLike | None = None) -> tuple[int, list[str]]:
    """Move everything out of a quarantine, back to where it was; its log ends when nothing is left.

    Parameters
    ----------
    images : path, optional
        The folder that the files came from, where it has moved by itself.

    Returns
    -------
    int, list of str
        How many moved, and what could not, with the reason.

    Raises
    ------
    FileNotFoundError
        If the folder is no quarantine, or `images` is not there.
    ValueError
        If `images` could stand for several folders.
    OSError
        If a file cannot be moved, or another run is moving files there. What has moved, stays.
    """
    log = Path(folder) / _LOG
    if not log.exists():
        raise FileNotFoundError(f"{folder}: no quarantine ({_LOG} is missing)")
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"{images}: no such folder")
    moved, faults, left, lost = 0, [], [], Counter()
    with _held(log.parent):
        entries = [(line, entry, _target(log, entry)) for line, entry in _entries(log)]
        unknown = {entry["folder"] for _, entry, target in entries if entry and target is None}
        if images is not None and len(unknown) > 1:
            raise ValueError(f"{images}: files of several folders are in {folder}: {', '.join(sorted(unknown))}")
        for line, entry, target in entries:
            fault = None
            if entry is None:
                fault = f"{log}: a line that says of no file where it was: {line[:200]!r}"
            elif target is None and images is None:
                lost[entry["folder"]] += 1
                left.append(line)
                continue
            else:
                target, source = target or Path(images) / entry["from"], log.parent / entry["to"]
                if not os.path.lexists(source):
                    if os.path.lexists(target):
                        continue  # put back already, or it has never moved
                    fault = f"{source}: is gone, and so is {target}"
                elif not os.path.lexists(target):
                    _move(source, target)
                elif _is_copy(source, target):
                    source.unlink()  # moved to another disk, and interrupted at the very end
                else:
                    fault = f"{target}: there is another file now; {source} stays"
            if fault:
                faults.append(fault)
                left.append(line)
            else:
                moved += 1
        if left:
            write_whole(log, b"".join(left))
        else:
            log.unlink()
    for was, count in lost.items():
        faults.append(f"{count:,} files came from {was}, which is not there or not the only one; give the folder, too")
    return moved, faults


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other runs from moving files into this folder or out of it."""
    with locked(folder / ".lock", f"{folder}: another run is moving files there; wait for it, or stop it"):
        for unfinished in folder.glob(f".{_LOG}.*.part"):  # of a run that was killed
            unfinished.unlink()
        yield


def _entries(log: Path) -> Iterator[tuple[bytes, dict | None]]:
    """Yield each line of a quarantine's log and what it says, or None if that cannot be understood."""
    for line in log.read_bytes().splitlines(keepends=True):
        try:
            entry = {"folder": "", "folder_from_here": "", **json.loads(line)}
            Path(entry["folder"], entry["folder_from_here"], entry["from"], entry["to"])
            yield line.rstrip() + b"\n", entry
        except (ValueError, KeyError, TypeError):
            if line.endswith(b"\n"):  # else torn when the quarantine was interrupted: that file has not moved
                yield line, None


def _target(log: Path, entry: dict | None) -> Path | None:
    """Return where a file was; None if its folder is not there any more, or may be one of two."""
    if entry is None:
        return None
    if Path(entry["from"]).is_absolute():  # in logs of an earlier version
        return Path(entry["from"])
    places = {os.path.realpath(entry["folder"]), os.path.realpath(log.parent.resolve() / entry["folder_from_here"])}
    found = [place for place in places if Path(place).is_dir()]
    return Path(found[0], entry["from"]) if len(found) == 1 else None


def _finish_moves(log: Path) -> None:
    """Finish what an interrupted run began, and take out of its log what never moved."""
    if not log.exists():
        return
    kept = b""
    for line, entry in _entries(log):
        source, target = _target(log, entry), log.parent / entry["to"] if entry else None
        if source is None or os.path.lexists(target) or not os.path.lexists(source):
            kept += line
            if source and os.path.lexists(source) and _is_copy(source, target):
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
