"""Pack images: decode each once, and keep them on disk as they go to the model. `packed` describes the format."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from helpers.files import free_bytes, locked, sha256_of, usable_cores, whole_file, write_whole
from helpers.folders import ImageFiles
from helpers.images import BrokenFiles, decode_image, read_ahead, read_file
from helpers.packed import FORMAT_VERSION, INDEX, LABELS, NAMES, PACKING, Packed, hash_of_index
from helpers.remote import AT_ONCE, is_address

__all__ = ["default_folder", "default_packs_in", "pack"]

ROWS_PER_SHARD = 4096
KINDS = {"raw": ".raw", "jpeg": ".tfrecord"}
SPARE_BYTES = 100 << 20  # must stay free on the disk
_CHUNK_ROWS = 128  # decoded before they are written: 18 MiB at 224×224×3
_JPEG_SHARE = 0.5  # of the raw bytes: more than JPEGs of quality 95 take
_LONGEST_WAIT_S = 600.0  # for another process that packs the same


def pack(
    files: ImageFiles,
    folder: str | os.PathLike,
    *,
    image_size: tuple[int, int] = (224, 224),
    channels: int = 3,
    kind: str = "raw",
    quality: int = 95,
    rows_per_shard: int = ROWS_PER_SHARD,
    workers: int | None = None,
    on_error: str = "raise",
    on_progress: Callable[[int], object] | None = None,
    shard: tuple[int, int] | None = None,
) -> Packed | None:
    """Decode and resize each image once, and write shards of them. A second call finds the work done.

    Packing that was interrupted goes on with the shards that are missing, or whose files have changed. A finished pack
    of files that have changed is refused. A file is the same if its size, both its times and its inode are, and
    otherwise if its content is: after a copy, or a change of its mode or only of its time, the next call reads files
    whole, and notes their new times where it may. Names are compared below the folder that all files share, so a pack
    can be moved with its files. A finished pack may be another user's, or on a read-only disk. Files behind addresses
    are read `remote.AT_ONCE` at a time, and taken to be as they were: remove the folder to pack them again.

    Parameters
    ----------
    folder : path
        Made where it is missing.
    image_size : (int, int)
        ``(height, width)`` of the rows, in pixels.
    channels : {3, 1}
    kind, quality : {"raw", "jpeg"}, int
        Pixels, or JPEGs of the new size and of this quality, 1 to 100, in TFRecords (these need TensorFlow).
    rows_per_shard : int
        Also the unit that is lost when packing is interrupted.
    workers : int, optional
        Threads that decode; by default one for each core.
    on_error : {"raise", "skip"}
        Whether a broken file ends the packing, or is left out and named in ``skipped``.
    on_progress : callable, optional
        Called with the number of files just finished.
    shard : (int, int), optional
        ``(i, n)``, counted from 1: the i-th of n processes, on as many machines as share the folder, which writes every
        n-th shard and no index. A call without it, when all have ended, compares their shards with the hashes, writes
        what is missing, and the index. The folder's file system must know file locks.

    Returns
    -------
    Packed or None
        None with ``shard``, unless all has been joined before.

    Raises
    ------
    ValueError
        For a broken file, which is named, for settings that make no sense, and for a folder that holds something else.
    OSError
        If the disk has too little room, asked first, or fails; or another process packs there (BlockingIOError).
    """
    broken, (first, step) = BrokenFiles(on_error, warn=False), shard or (1, 1)
    if not len(files) or not 1 <= first <= step:
        raise ValueError(f"{len(files):,} files, shard={shard}: give files, and (i, n) with i from 1 to n")
    settings = {
        "version": FORMAT_VERSION,
        "kind": kind,
        "image_size": list(image_size),
        "channels": channels,
        "quality": quality if kind == "jpeg" else None,
        "rows_per_shard": rows_per_shard,
    }
    if kind not in KINDS or channels not in (1, 3) or min(*image_size, rows_per_shard, quality, 101 - quality) < 1:
        raise ValueError(f"cannot pack with {settings | {'quality': quality}}")
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if names and INDEX not in names and PACKING not in names:
        raise ValueError(f"{folder} is not empty ({names[0]} …) and holds no pack; give another folder")
    if (folder / INDEX).exists():
        return _finished(folder, files, settings, broken)
    with _held(folder, shard):
        if (folder / INDEX).exists():  # another process has packed it meanwhile
            return _finished(folder, files, settings, broken)
        _begin(folder, settings, len(files), alone=shard is None)
        shards = []
        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            for number, part in enumerate(_parts(files, rows_per_shard)):
                if number % step == first - 1:
                    path = folder / f"shard-{number:05d}{KINDS[kind]}"
                    shards.append(_shard(path, part, settings, broken, pool, on_progress or (lambda count: None)))
        if shard is not None:
            return None
        _finish(folder, files, settings, shards)
        _remove_older(folder, files)
        return Packed(folder)


@contextmanager
def _held(folder: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep others out: of the whole folder, or of one part of it. A lock ends with its holder, however that ends."""
    busy = f"{folder}: another process has packed into it for {_LONGEST_WAIT_S:.0f} s"
    whole, own = folder / ".lock", shard and folder / f".lock-{shard[0]}-of-{shard[1]}"
    with locked(own or whole, busy, wait_s=_LONGEST_WAIT_S):
        parts = [] if shard else sorted(folder.glob(".lock-*"))
        for path in parts:
            part = path.name.removeprefix(".lock-").replace("-of-", "/")
            with locked(path, f"{folder}: part {part} is still being packed; join when it has ended"):
                pass
        if shard:
            with locked(whole, busy, wait_s=_LONGEST_WAIT_S):  # one that is joining
                pass
        yield
        for path in parts:
            path.unlink(missing_ok=True)


def _parts(files: ImageFiles, rows: int) -> Iterator[ImageFiles]:
    for start in range(0, len(files), rows):
        yield files.select(range(start, min(start + rows, len(files))))


def _digest(files: ImageFiles, describe: Callable[[str], str]) -> str:
    """Return a hash of names, labels, and what `describe` says of each file."""
    start = len(os.path.dirname(os.path.commonprefix(files.paths)))  # noqa: RUF071, of the whole folders in it
    digest = hashlib.sha256()
    for path in files.paths:
        digest.update(f"{path[start:]}\0{describe(path)}\0".encode(errors="surrogateescape"))
    digest.update(files.labels.tobytes() + "\0".join(files.class_names).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(path: str) -> str:
    if is_address(path):
        return "far away"  # to ask takes as long as to read it
    try:
        status = os.stat(path)
    except OSError:
        return "not there"  # reading the file will raise the error
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _content(path: str) -> str:
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except (OSError, ValueError):
        return "not there"


def _states_if_same(index: dict, parts: list[ImageFiles]) -> list[str] | None:
    """Return the digests of the files' states if an index, or a shard's note, is of what is in them; None if not."""
    states, before = [_digest(part, _state) for part in parts], index.get("states_sha256", ())
    if len(before) != len(states):
        return None
    for part, state, state_before, content in zip(parts, states, before, index["files_sha256"], strict=True):
        if state != state_before and content != _digest(part, _content):
            return None
    return states


def _finished(folder: Path, files: ImageFiles, settings: dict, broken: BrokenFiles) -> Packed:
    packed = Packed(folder)
    _refuse_other(folder, settings, packed.settings)
    states = _states_if_same(packed.settings, list(_parts(files, settings["rows_per_shard"])))
    if states is None:
        found = "other files, or of these before they changed (another files_sha256)"
        raise ValueError(f"{folder} holds a pack of {found}; give another folder or remove it")
    if packed.skipped and not broken.skips:
        raise ValueError(f"{folder} was packed without {len(packed.skipped)} files; {packed.skipped[0][1]}")
    with suppress(OSError):  # we may not be allowed to
        if states != packed.settings["states_sha256"]:
            _write_index(folder, {**packed.settings, "states_sha256": states})
        _remove_leftovers(folder, {path.name for path in packed.shard_paths})  # of a run that was killed at its end
    return packed


def _refuse_other(folder: Path, wanted: dict, there: dict) -> None:
    other = [f"{key} {there.get(key)}, not {value}" for key, value in wanted.items() if there.get(key) != value]
    if other:
        raise ValueError(f"{folder} holds another pack ({'; '.join(other)}); give another folder or remove it")


def _begin(folder: Path, settings: dict, file_count: int, *, alone: bool) -> None:
    packing = folder / PACKING
    if packing.exists():
        _refuse_other(folder, settings, json.loads(packing.read_bytes()))
    height, width = settings["image_size"]
    share = 1.0 if settings["kind"] == "raw" else _JPEG_SHARE
    there = sum(path.stat().st_size for path in folder.glob("shard-*"))
    needed = int(file_count * height * width * settings["channels"] * share) - there
    free = free_bytes(folder)
    if needed + SPARE_BYTES > free:
        raise OSError(
            f"{folder}: the packed images need {needed / 1e6:,.0f} MB more, and {SPARE_BYTES / 1e6:,.0f} MB must stay"
            f" free, but the disk has {free / 1e6:,.0f} MB; nothing was written"
        )
    for leftover in folder.glob(".*.part") if alone else ():
        leftover.unlink(missing_ok=True)
    write_whole(packing, json.dumps(settings, indent=1))


def _shard(
    path: Path,
    part: ImageFiles,
    settings: dict,
    broken: BrokenFiles,
    pool: ThreadPoolExecutor,
    on_progress: Callable[[int], object],
) -> dict:
    """Write a shard unless an earlier call finished it; return its note, with the places in the part that are left out.

    An earlier call's shard counts if it and its files are as that call left them.
    """
    note = path.with_name(f"{path.name}.json")
    try:
        shard = json.loads(note.read_bytes())
        states = _states_if_same(shard, [part]) if shard["sha256"] == sha256_of(path) else None
        if states and (broken.skips or not shard["skipped"]):
            on_progress(len(part))
            return {**shard, "states_sha256": states}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # there is none, or it is damaged
    states = [_digest(part, _state)]  # before the files are read: one that changes from now on is read again
    contents: dict[str, str] = {}
    encode = partial(_encoded, settings=settings, broken=broken, contents=contents)
    skipped: list[tuple[int, str]] = []
    with whole_file(path) as file:
        with _rows_to(file, settings["kind"]) as write:
            for start in range(0, len(part), _CHUNK_ROWS):
                chunk = part.paths[start : start + _CHUNK_ROWS]
                with read_ahead(chunk, AT_ONCE if any(map(is_address, chunk)) else 1) as reads:
                    for place, content in enumerate(pool.map(encode, chunk, reads), start):
                        if content is None:
                            skipped.append((place, broken[part.paths[place]]))
                        else:
                            write(content, int(part.labels[place]))
                on_progress(len(chunk))
        file.flush()
        size, sha256 = Path(file.name).stat().st_size, sha256_of(file.name)
    shard = {"name": path.name, "rows": len(part) - len(skipped), "bytes": size, "sha256": sha256}
    files_sha256 = _digest(part, lambda path: contents.get(path, "not there"))
    shard |= {"skipped": skipped, "states_sha256": states, "files_sha256": [files_sha256]}
    write_whole(note, json.dumps(shard))
    return shard


def _encoded(
    path: str, read: Callable[[], bytes], settings: dict, broken: BrokenFiles, contents: dict[str, str]
) -> bytes | np.ndarray | None:
    """Return a row, or None for a broken file that is skipped; note the hash of what was decoded."""
    with broken.caught(path):
        data = read()
        contents[path] = hashlib.sha256(data).hexdigest()
        image = decode_image(data, path, image_size=tuple(settings["image_size"]), channels=settings["channels"])
        if settings["kind"] == "raw":
            return image
        colours = image[:, :, ::-1] if settings["channels"] == 3 else image  # OpenCV writes BGR
        encoded, content = cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, settings["quality"]])
        if encoded:
            return content.tobytes()
        raise RuntimeError(f"{path}: OpenCV could not encode it")


@contextmanager
def _rows_to(file: BinaryIO, kind: str) -> Iterator[Callable[[bytes | np.ndarray, int], object]]:
    """Give a function that writes one row; all are in the file when the block ends."""
    if kind == "raw":
        yield lambda content, label: file.write(content.data)
        return
    import tensorflow as tf

    def write(content: bytes, label: int) -> None:
        feature = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        records.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

    try:
        with tf.io.TFRecordWriter(file.name) as records:
            yield write
    except tf.errors.ResourceExhaustedError:  # what TensorFlow says of a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message) from None


def _finish(folder: Path, files: ImageFiles, settings: dict, shards: list[dict]) -> None:
    starts = range(0, len(files), settings["rows_per_shard"])
    skipped = {start + row: why for start, shard in zip(starts, shards, strict=True) for row, why in shard["skipped"]}
    rows = [row for row in range(len(files)) if row not in skipped]
    if not rows:
        raise ValueError(f"none of the {len(files):,} files could be packed; the first: {skipped[0]}")
    with whole_file(folder / LABELS) as file:
        np.save(file, files.labels[rows])
    write_whole(folder / NAMES, json.dumps([files.paths[row] for row in rows]))
    index = {
        **settings,
        **{key: [shard[key][0] for shard in shards] for key in ("states_sha256", "files_sha256")},
        "rows": len(rows),
        "class_names": list(files.class_names),
        "shards": [{key: shard[key] for key in ("name", "rows", "bytes", "sha256")} for shard in shards],
        "skipped": [(files.paths[row], reason) for row, reason in skipped.items()],
        "labels_sha256": sha256_of(folder / LABELS),
        "names_sha256": sha256_of(folder / NAMES),
    }
    _write_index(folder, index)
    _remove_leftovers(folder, {shard["name"] for shard in shards})


def _write_index(folder: Path, index: dict) -> None:
    write_whole(folder / INDEX, json.dumps({**index, "sha256": hash_of_index(index)}, indent=1))


def _remove_leftovers(folder: Path, shard_names: set[str]) -> None:
    """Remove what a finished pack does not need, shards of a longer list of files too."""
    for path in [*folder.glob("shard-*"), *folder.glob(".*.part"), folder / PACKING]:
        if path.name not in shard_names:
            path.unlink(missing_ok=True)


def default_folder(files: ImageFiles, image_size: tuple[int, int], channels: int = 3) -> Path:
    """Return where a pack of these files is kept when nobody says: below ``COURSE_PACKED``, or ``data/packed``.

    It is the folder of a finished pack of these files, or a new one if there is none or a file has changed. When `pack`
    has finished the new one, it removes those from before the change, and says so by a warning.
    """
    base = Path(os.environ.get("COURSE_PACKED") or Path(__file__).resolve().parent.parent / "data" / "packed")
    listed, here = _listed(files)
    size = f"{image_size[0]}x{image_size[1]}x{channels}"
    for folder in sorted(base.glob(f"{listed}-*-{size}")):
        with suppress(OSError, ValueError):  # it is unfinished, or damaged
            index = Packed(folder).settings
            if _states_if_same(index, list(_parts(files, index["rows_per_shard"]))):
                return folder
    return base / f"{listed}-{here}-{_digest(files, _state)[:8]}-{size}"


def _listed(files: ImageFiles) -> tuple[str, str]:
    """Return hashes of the list, the same wherever the files are and however they change, and of where they are."""
    here = os.path.abspath(files.paths[0]).encode(errors="surrogateescape")
    return _digest(files, lambda path: "")[:16], hashlib.sha256(here).hexdigest()[:8]


def _remove_older(folder: Path, files: ImageFiles) -> None:
    """Remove packs of these files from before they changed, if this one is where `default_folder` says."""
    start = "-".join(_listed(files))
    if folder.name.startswith(start):
        for older in folder.parent.glob(f"{start}-*-{folder.name.rpartition('-')[2]}"):
            if older.name != folder.name and not older.is_symlink():
                with suppress(OSError), locked(older / ".lock", "another process is packing"):
                    shutil.rmtree(older)
                    warnings.warn(f"{older}: removed, since its images have changed and are packed again", stacklevel=3)


@contextmanager
def default_packs_in(folder: str | os.PathLike) -> Iterator[None]:
    """Let `default_folder` answer below another folder, for this process and those that it starts."""
    before = os.environ.get("COURSE_PACKED", "")
    os.environ["COURSE_PACKED"] = os.fspath(folder)
    try:
        yield
    finally:
        os.environ["COURSE_PACKED"] = before
