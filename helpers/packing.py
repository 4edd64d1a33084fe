"""Pack images: decode each once, and keep them on disk as they go to the model. `packed` describes the format.

Packing that was interrupted goes on with the shards that are missing, or whose files have changed. Several processes,
on as many machines as share the folder, may each write some of the shards; a call that packs all of them joins what is
there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from helpers.files import free_bytes, locked, sha256_of, usable_cores, whole_file, write_whole
from helpers.folders import ImageFiles
from helpers.images import read_image
from helpers.packed import FORMAT_VERSION, INDEX, LABELS, NAMES, PACKING, Packed, hash_of_index

__all__ = ["MixedPackError", "default_folder", "default_packs_in", "pack"]

ROWS_PER_SHARD = 4096
KINDS = {"raw": ".raw", "jpeg": ".tfrecord"}
SPARE_BYTES = 100 << 20  # must stay free on the disk
_CHUNK_ROWS = 128  # decoded before they are written: 18 MiB at 224×224×3
_JPEG_SHARE = 0.5  # of the raw bytes: more than JPEGs of quality 95 take
_LONGEST_WAIT_S = 600.0  # for another process that packs the same


class MixedPackError(ValueError):
    """The folder holds other images, or the same with other settings."""


@dataclass(frozen=True)
class _Shard:
    name: str
    files_sha256: str
    first_row: int
    rows: int
    bytes: int
    sha256: str
    kept: tuple[int, ...]  # which files of the shard's part of the list are in it
    skipped: tuple[tuple[str, str], ...]  # file and reason


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

    Parameters
    ----------
    files : ImageFiles
    folder : path
        Made where it is missing. It may hold an interrupted pack of the same files and settings, which goes on.
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
        Whether a broken file ends the packing with an error that names it, or is left out and named in ``skipped``.
    on_progress : callable, optional
        Called with the number of files just finished.
    shard : (int, int), optional
        ``(i, n)``, counted from 1: the i-th of n processes, which writes every n-th shard and no index. A call without
        it, when all have ended, compares their shards with the hashes, writes what is missing, and the index. The
        folder's file system must know file locks.

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
    settings = _settings(kind, image_size, channels, quality, rows_per_shard)
    if on_error not in ("raise", "skip") or not len(files):
        raise ValueError(f'{len(files):,} files, on_error={on_error!r}: give files, and "raise" or "skip"')
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard is {shard}: give (i, n), i from 1 to n")
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    _refuse_strangers(folder)
    with _held(folder, shard):
        return _pack(files, folder, settings, workers, on_error, on_progress, shard)


def _settings(kind: str, image_size: tuple[int, int], channels: int, quality: int, rows_per_shard: int) -> dict:
    if kind not in KINDS:
        raise ValueError(f'kind is {kind!r}: give "raw" or "jpeg"')
    if channels not in (1, 3) or min(image_size) < 1 or rows_per_shard < 1 or not 1 <= quality <= 100:
        raise ValueError(f"cannot pack {channels} channels, {image_size} pixels, {rows_per_shard} rows, {quality} %")
    return {
        "version": FORMAT_VERSION,
        "kind": kind,
        "image_size": list(image_size),
        "channels": channels,
        "quality": quality if kind == "jpeg" else None,
        "rows_per_shard": rows_per_shard,
    }


def _pack(
    files: ImageFiles,
    folder: Path,
    settings: dict,
    workers: int | None,
    on_error: str,
    on_progress: Callable[[int], object] | None,
    shard_of: tuple[int, int] | None,
) -> Packed | None:
    rows_per_shard = settings["rows_per_shard"]
    if (folder / INDEX).exists():
        packed = Packed(folder)
        digests = [_digest(part) for part in _parts(files, rows_per_shard)]
        _refuse_other(folder, {**settings, "files_sha256": _hash_of(digests)}, packed.settings)
        if packed.skipped and on_error == "raise":
            raise ValueError(f"{folder} was packed without {len(packed.skipped)} files; {packed.skipped[0][1]}")
        _remove_leftovers(folder, {path.name for path in packed.shard_paths})  # of a run that was killed at its end
        return packed
    _begin(folder, settings, len(files), alone=shard_of is None)
    first, step = (0, 1) if shard_of is None else (shard_of[0] - 1, shard_of[1])
    first_row, shards = 0, []
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        for number, part in enumerate(_parts(files, rows_per_shard)):
            if number % step != first:
                first_row += len(part)  # as many as there will be, if none is left out
                continue
            path = folder / f"shard-{number:05d}{KINDS[settings['kind']]}"
            shard = _finished_shard(path, part, on_error)
            if shard is not None and path.suffix == KINDS["jpeg"] and shard.first_row != first_row:
                shard = None  # its records say where they stand, and another shard has left files out
            if shard is None:
                shard = _write_shard(path, part, first_row, settings, on_error, pool, on_progress)
            elif on_progress:
                on_progress(len(part))
            first_row += shard.rows
            shards.append(shard)
    if shard_of is not None:
        return None
    _finish(folder, files, settings, shards)
    return Packed(folder)


@contextmanager
def _held(folder: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep others out: of the whole folder, or of one part of it. A lock ends with its holder, however that ends."""
    busy = f"{folder}: another process has packed into it for {_LONGEST_WAIT_S:.0f} s"
    if shard is None:
        with locked(folder / ".lock", busy, wait_s=_LONGEST_WAIT_S):
            parts = sorted(folder.glob(".lock-*"))
            for path in parts:
                part = path.name.removeprefix(".lock-").replace("-of-", "/")
                with locked(path, f"{folder}: part {part} is still being packed; join when it has ended"):
                    pass
            yield
            for path in parts:
                path.unlink(missing_ok=True)
    else:
        with locked(folder / f".lock-{shard[0]}-of-{shard[1]}", busy, wait_s=_LONGEST_WAIT_S):
            with locked(folder / ".lock", busy, wait_s=_LONGEST_WAIT_S):  # wait for one that is joining
                pass
            yield


def _parts(files: ImageFiles, rows: int) -> Iterator[ImageFiles]:
    for start in range(0, len(files), rows):
        yield files.select(range(start, min(start + rows, len(files))))


def _hash_of(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(files: ImageFiles) -> str:
    """Return a hash of what would be packed: names, sizes, times of change, labels."""
    digest = hashlib.sha256()
    for path in files.paths:
        digest.update(f"{path}\0{_size_and_time(path)}\0".encode(errors="surrogateescape"))
    digest.update(files.labels.tobytes() + "\0".join(files.class_names).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _size_and_time(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "not there"  # reading the file will raise the error
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _refuse_other(folder: Path, wanted: dict, there: dict) -> None:
    other = [f"{key} {there.get(key)}, not {value}" for key, value in wanted.items() if there.get(key) != value]
    if other:
        raise MixedPackError(f"{folder} holds another pack ({'; '.join(other)}); give another folder or remove it")


def _refuse_strangers(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if names and INDEX not in names and PACKING not in names:
        raise MixedPackError(f"{folder} is not empty ({names[0]} …) and holds no pack; give another folder")


def _begin(folder: Path, settings: dict, file_count: int, *, alone: bool) -> None:
    packing = folder / PACKING
    if packing.exists():
        _refuse_other(folder, settings, json.loads(packing.read_bytes()))
    _refuse_full_disk(folder, settings, file_count)
    if alone:
        for leftover in folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)
    write_whole(packing, json.dumps(settings, indent=1).encode())


def _refuse_full_disk(folder: Path, settings: dict, file_count: int) -> None:
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


def _finished_shard(path: Path, part: ImageFiles, on_error: str) -> _Shard | None:
    """Return a shard that an earlier call finished, if it and its files are as that call left them."""
    try:
        values = json.loads(_sidecar(path).read_bytes())
        shard = _Shard(**{**values, "kept": tuple(values["kept"]), "skipped": tuple(map(tuple, values["skipped"]))})
        if shard.skipped and on_error == "raise":
            return None
        return shard if shard.files_sha256 == _digest(part) and shard.sha256 == sha256_of(path) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_shard(
    path: Path,
    part: ImageFiles,
    first_row: int,
    settings: dict,
    on_error: str,
    pool: ThreadPoolExecutor,
    on_progress: Callable[[int], object] | None,
) -> _Shard:
    digest = _digest(part)  # before they are read: a file that changes meanwhile is read again next time
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    with whole_file(path) as file:
        with _rows_to(file, settings["kind"]) as write:
            for start in range(0, len(part), _CHUNK_ROWS):
                chunk = range(start, min(start + _CHUNK_ROWS, len(part)))
                results = pool.map(lambda place: _encoded(part.paths[place], settings, on_error), chunk)
                for place, (content, fault) in zip(chunk, results, strict=True):
                    if fault is None:
                        write(content, int(part.labels[place]), first_row + len(kept))
                        kept.append(place)
                    else:
                        skipped.append((part.paths[place], fault))
                if on_progress:
                    on_progress(len(chunk))
        file.flush()
        size, sha256 = Path(file.name).stat().st_size, sha256_of(file.name)
    shard = _Shard(path.name, digest, first_row, len(kept), size, sha256, tuple(kept), tuple(skipped))
    write_whole(_sidecar(path), json.dumps(asdict(shard)).encode())
    return shard


def _encoded(path: str, settings: dict, on_error: str) -> tuple[bytes | np.ndarray | None, str | None]:
    """Return what is written for one file, and what is wrong with it if that may be skipped."""
    try:
        image = read_image(path, image_size=tuple(settings["image_size"]), channels=settings["channels"])
    except (ValueError, OSError) as error:
        if on_error == "raise":
            raise
        return None, str(error)
    if settings["kind"] == "raw":
        return image, None
    colours = image[:, :, ::-1] if settings["channels"] == 3 else image  # OpenCV writes BGR
    encoded, content = cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, settings["quality"]])
    if not encoded:
        raise ValueError(f"{path}: OpenCV could not encode it")
    return content.tobytes(), None


@contextmanager
def _rows_to(file: BinaryIO, kind: str) -> Iterator[Callable[[bytes | np.ndarray, int, int], object]]:
    """Give a function that writes one row; all are in the file when the block ends."""
    if kind == "raw":
        yield lambda content, label, row: file.write(content.data)
        return
    import tensorflow as tf

    def write(content: bytes, label: int, row: int) -> None:
        feature = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            "row": tf.train.Feature(int64_list=tf.train.Int64List(value=[row])),
        }
        records.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

    with _as_os_error(), tf.io.TFRecordWriter(file.name) as records:
        yield write


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what TensorFlow says of a disk into what Python says of one."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message) from None


def _finish(folder: Path, files: ImageFiles, settings: dict, shards: list[_Shard]) -> None:
    starts = range(0, len(files), settings["rows_per_shard"])
    rows = [start + place for start, shard in zip(starts, shards, strict=True) for place in shard.kept]
    if not rows:
        raise ValueError(f"none of the {len(files):,} files could be packed; the first: {shards[0].skipped[0][1]}")
    with whole_file(folder / LABELS) as file:
        np.save(file, files.labels[rows])
    write_whole(folder / NAMES, json.dumps([files.paths[row] for row in rows]).encode())
    index = {
        **settings,
        "files": len(files),
        "files_sha256": _hash_of([shard.files_sha256 for shard in shards]),
        "rows": len(rows),
        "class_names": list(files.class_names),
        "shards": [{"name": s.name, "rows": s.rows, "bytes": s.bytes, "sha256": s.sha256} for s in shards],
        "skipped": [list(one) for shard in shards for one in shard.skipped],
        "labels_sha256": sha256_of(folder / LABELS),
        "names_sha256": sha256_of(folder / NAMES),
    }
    index["sha256"] = hash_of_index(index)
    write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    _remove_leftovers(folder, {shard.name for shard in shards})


def _remove_leftovers(folder: Path, shard_names: set[str]) -> None:
    """Remove what a finished pack does not need, shards of a longer list of files too."""
    for path in [*folder.glob("shard-*"), *folder.glob(".*.part"), folder / PACKING]:
        if path.name not in shard_names:
            path.unlink(missing_ok=True)


def default_folder(files: ImageFiles, image_size: tuple[int, int], channels: int = 3) -> Path:
    """Return where a pack of these files is kept when nobody says: below ``COURSE_PACKED``, or ``data/packed``."""
    base = os.environ.get("COURSE_PACKED") or Path(__file__).resolve().parent.parent / "data" / "packed"
    height, width = image_size
    return Path(base) / f"{_digest(files)[:16]}-{height}x{width}x{channels}"


@contextmanager
def default_packs_in(folder: str | os.PathLike) -> Iterator[None]:
    """Let `default_folder` answer below another folder, for this process and those that it starts."""
    before = os.environ.get("COURSE_PACKED")
    os.environ["COURSE_PACKED"] = os.fspath(folder)
    try:
        yield
    finally:
        os.environ.pop("COURSE_PACKED")
        if before is not None:
            os.environ["COURSE_PACKED"] = before
