"""Images decoded once and kept on disk as they go to the model: writing, checking and reading such a folder.

Called by `data_scripts/pack_images.py`, by lesson 06 and by the pipeline `tf_data_packed`.

Format, version 1. A folder holds

- ``index.json``: the settings, the class names, the name, rows, bytes and SHA-256 of each shard, and the SHA-256 of
  all this; written last, so that a folder with it is complete;
- ``labels.npy``: the class index of each row, shape ``(rows,)``, int64;
- ``names.json``: the file that each row came from;
- ``shard-00000.raw`` and so on: rows of ``height × width × channels`` bytes, uint8, RGB, and nothing else, so that
  ``np.memmap(shard, np.uint8, "r").reshape(-1, height, width, channels)`` reads it; or ``shard-00000.tfrecord``:
  TFRecords of ``tf.train.Example`` with ``image`` (JPEG bytes), ``label`` and ``row``.

While it is written, ``packing.json`` holds the settings and each finished shard has its ``.json`` beside it: packing
that was interrupted goes on with the shards that are missing, or whose files have changed. Several processes, on as
many machines as share the folder, may each write some of the shards; a call that packs all of them joins what is there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout

from helpers.images import ImageFiles, read_image
from helpers.limits import usable_cores

__all__ = ["MixedPackError", "Packed", "default_folder", "default_packs_in", "pack"]

FORMAT_VERSION = 1
ROWS_PER_SHARD = 4096
KINDS = {"raw": ".raw", "jpeg": ".tfrecord"}
SPARE_BYTES = 100 << 20  # must stay free on the disk
_CHUNK_ROWS = 128  # decoded before they are written: 18 MiB at 224×224×3
_JPEG_SHARE = 0.5  # of the raw bytes: more than JPEGs of quality 95 take
_MAPPED_SHARDS = 256  # each holds a file open
_LONGEST_WAIT_S = 600.0  # for another process that packs the same
_INDEX, _LABELS, _NAMES, _PACKING = "index.json", "labels.npy", "names.json", "packing.json"


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


# ---- writing ---------------------------------------------------------------------------------------------------------


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
    kind : {"raw", "jpeg"}
        Pixels, or JPEG of the new size in TFRecords (this one needs TensorFlow).
    quality : int
        Of the JPEGs, 1 to 100.
    rows_per_shard : int
        Also the unit that is lost when packing is interrupted.
    workers : int, optional
        Threads that decode; by default one for each core.
    on_error : {"raise", "skip"}
        Whether a broken file ends the packing with an error that names it, or is left out and named in ``skipped``.
    on_progress : callable, optional
        Called with the number of files just finished.
    shard : (int, int), optional
        ``(i, n)``, counted from 1: the i-th of n processes, which writes every n-th shard and no index. They need not
        know of each other. A call without it, when they have ended, compares their shards with the hashes, writes what
        is missing, and the index. The folder's file system must know file locks.

    Returns
    -------
    Packed or None
        None with ``shard``, unless all has been joined before.

    Raises
    ------
    ValueError
        For a broken file, which is named, and for settings that make no sense.
    MixedPackError
        If the folder holds something else.
    BlockingIOError
        If a process with a ``shard`` is still writing what is to be joined.
    OSError
        If the disk has too little room, which is asked before anything is written, or fails. What is finished stays.
    """
    if kind not in KINDS or on_error not in ("raise", "skip"):
        raise ValueError(f'kind is {kind!r} and on_error {on_error!r}: give "raw" or "jpeg", and "raise" or "skip"')
    if channels not in (1, 3) or min(image_size) < 1 or rows_per_shard < 1 or not 1 <= quality <= 100:
        raise ValueError(f"cannot pack {channels} channels, {image_size} pixels, {rows_per_shard} rows, {quality} %")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard is {shard}: give (i, n), i from 1 to n")
    if not len(files):
        raise ValueError("no files to pack")
    folder = Path(folder)
    settings = {
        "version": FORMAT_VERSION,
        "kind": kind,
        "image_size": list(image_size),
        "channels": channels,
        "quality": quality if kind == "jpeg" else None,
        "rows_per_shard": rows_per_shard,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_strangers(folder)
    with _held(folder, shard):
        return _pack(files, folder, settings, workers, on_error, on_progress, shard)


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
    if (folder / _INDEX).exists():
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
    if shard is None:
        with _lock(folder / ".lock"):
            parts = sorted(folder.glob(".lock-*"))
            for path in parts:
                _refuse_still_packed(path)
            yield
            for path in parts:
                path.unlink(missing_ok=True)
    else:
        with _lock(folder / f".lock-{shard[0]}-of-{shard[1]}"):
            with _lock(folder / ".lock"):  # wait for one that is joining
                pass
            yield


def _lock(path: Path) -> AcquireReturnProxy:
    """Return a lock that is held until its block ends, if need be after another process has let go of it."""
    try:
        return FileLock(path).acquire(timeout=_LONGEST_WAIT_S)
    except Timeout:
        raise TimeoutError(f"{path.parent}: another process has packed into it for {_LONGEST_WAIT_S:.0f} s") from None


def _refuse_still_packed(path: Path) -> None:
    try:
        with FileLock(path).acquire(timeout=0):
            pass
    except Timeout:
        part = path.name.removeprefix(".lock-").replace("-of-", "/")
        raise BlockingIOError(f"{path.parent}: part {part} is still being packed; join when it has ended") from None


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
        return "not there"  # the error is told when it is read
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _refuse_other(folder: Path, wanted: dict, there: dict) -> None:
    other = [f"{key} {there.get(key)}, not {value}" for key, value in wanted.items() if there.get(key) != value]
    if other:
        raise MixedPackError(f"{folder} holds another pack ({'; '.join(other)}); give another folder or remove it")


def _refuse_strangers(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if names and _INDEX not in names and _PACKING not in names:
        raise MixedPackError(f"{folder} is not empty ({names[0]} …) and holds no pack; give another folder")


def _begin(folder: Path, settings: dict, file_count: int, *, alone: bool) -> None:
    packing = folder / _PACKING
    if packing.exists():
        _refuse_other(folder, settings, _read_json(packing))
    _refuse_full_disk(folder, settings, file_count)
    if alone:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    _write_atomically(packing, json.dumps(settings, indent=1).encode())


def _refuse_full_disk(folder: Path, settings: dict, file_count: int) -> None:
    height, width = settings["image_size"]
    share = 1.0 if settings["kind"] == "raw" else _JPEG_SHARE
    there = sum(path.stat().st_size for path in folder.glob("shard-*"))
    needed = int(file_count * height * width * settings["channels"] * share) - there
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise OSError(
            f"{folder}: the packed images need {needed / 1e6:,.0f} MB more, and {SPARE_BYTES / 1e6:,.0f} MB must stay"
            f" free, but the disk has {free / 1e6:,.0f} MB; nothing was written"
        )


def _finished_shard(path: Path, part: ImageFiles, on_error: str) -> _Shard | None:
    """Return a shard that an earlier call finished, if it and its files are as that call left them."""
    try:
        values = _read_json(_sidecar(path))
        shard = _Shard(**{**values, "kept": tuple(values["kept"]), "skipped": tuple(map(tuple, values["skipped"]))})
        if shard.skipped and on_error == "raise":
            return None
        return shard if shard.files_sha256 == _digest(part) and shard.sha256 == _sha256(path) else None
    except (OSError, ValueError, TypeError, KeyError):
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
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _ShardFile(unfinished, settings["kind"]) as write:
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
        size, sha256 = unfinished.stat().st_size, _sha256(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a full disk does not say which
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    shard = _Shard(path.name, digest, first_row, len(kept), size, sha256, tuple(kept), tuple(skipped))
    _write_atomically(_sidecar(path), json.dumps(asdict(shard)).encode())
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


class _ShardFile:
    """Write rows to a file that is on the disk when the block ends."""

    def __init__(self, path: Path, kind: str):
        self._path, self._kind = path, kind

    def __enter__(self) -> Callable[[bytes | np.ndarray, int, int], object]:
        if self._kind == "raw":
            self._file = open(self._path, "wb")
            return lambda content, label, row: self._file.write(content.data)
        import tensorflow as tf

        with _as_os_error():
            self._file = tf.io.TFRecordWriter(os.fspath(self._path))

        def write(content: bytes, label: int, row: int) -> None:
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "row": tf.train.Feature(int64_list=tf.train.Int64List(value=[row])),
            }
            with _as_os_error():
                self._file.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

        return write

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            with suppress(Exception):  # the error that is on its way says more
                self._file.close()
            return
        with nullcontext() if self._kind == "raw" else _as_os_error():
            self._file.close()
        with open(self._path, "rb+") as file:
            os.fsync(file.fileno())


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
    _write_atomically(folder / _LABELS, lambda file: np.save(file, files.labels[rows]))
    _write_atomically(folder / _NAMES, json.dumps([files.paths[row] for row in rows]).encode())
    index = {
        **settings,
        "files": len(files),
        "files_sha256": _hash_of([shard.files_sha256 for shard in shards]),
        "rows": len(rows),
        "class_names": list(files.class_names),
        "shards": [{"name": s.name, "rows": s.rows, "bytes": s.bytes, "sha256": s.sha256} for s in shards],
        "skipped": [list(one) for shard in shards for one in shard.skipped],
        "labels_sha256": _sha256(folder / _LABELS),
        "names_sha256": _sha256(folder / _NAMES),
    }
    index["sha256"] = _hash_of_index(index)
    _write_atomically(folder / _INDEX, json.dumps(index, indent=1).encode())
    _remove_leftovers(folder, {shard.name for shard in shards})


def _remove_leftovers(folder: Path, shard_names: set[str]) -> None:
    """Remove what a finished pack does not need, shards of a longer list of files too."""
    for path in [*folder.glob("shard-*"), *folder.glob(".*.tmp"), folder / _PACKING]:
        if path.name not in shard_names:
            path.unlink(missing_ok=True)


def _write_atomically(path: Path, content: bytes | Callable) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(part, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_json(path: Path) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_index(index: dict) -> str:
    """Return the hash of an index, its own hash left out."""
    others = {key: value for key, value in index.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _index_fault(index: object) -> str | None:
    """Tell what in an index is not as `pack` writes it; None when all is."""
    if not isinstance(index, dict):
        return "not an index of a pack"
    if index.get("version") != FORMAT_VERSION:
        return f"format version {index.get('version')}, this program reads {FORMAT_VERSION}"
    size, shards, skipped = index.get("image_size"), index.get("shards"), index.get("skipped")
    is_right = {
        "kind": index.get("kind") in list(KINDS),
        "image_size": _is_list_of(int, size) and len(size) == 2 and min(size) > 0,
        "channels": index.get("channels") in (1, 3) and _is_list_of(int, [index["channels"]]),
        "class_names": _is_list_of(str, index.get("class_names")),
        "shards": _is_list_of(dict, shards) and len(shards) > 0 and all(map(_is_shard, shards)),
        "skipped": _is_list_of(list, skipped) and all(len(one) == 2 and _is_list_of(str, one) for one in skipped),
        "labels_sha256": isinstance(index.get("labels_sha256"), str),
        "names_sha256": isinstance(index.get("names_sha256"), str),
    }
    for name, fits in is_right.items():
        if not fits:
            return f"{name} is {str(index.get(name))[:60]}, which no pack has"
    if index.get("rows") != sum(shard["rows"] for shard in shards) or not index["rows"]:
        return f"{index.get('rows')} rows, but the shards have others"
    row_bytes = size[0] * size[1] * index["channels"]
    if index["kind"] == "raw" and any(shard["bytes"] != shard["rows"] * row_bytes for shard in shards):
        return "sizes of shards and of images do not agree"
    return None


def _is_shard(shard: dict) -> bool:
    name, counts = shard.get("name"), [shard.get("rows"), shard.get("bytes")]
    is_plain = isinstance(name, str) and name.startswith("shard-") and not set(name) & set("/\\\0")
    return is_plain and isinstance(shard.get("sha256"), str) and _is_list_of(int, counts) and min(counts) >= 0


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


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


# ---- reading ---------------------------------------------------------------------------------------------------------


class Packed:
    """A finished folder of packed images. Threads may share it; processes may inherit it.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    folder : pathlib.Path
    settings : dict
        As in ``index.json``.
    labels : numpy.ndarray
        Shape ``(rows,)``, int64, mapped from its file.
    class_names : tuple of str
    image_size : (int, int)
        ``(height, width)`` of each row, in pixels.
    channels : int
    skipped : tuple of (str, str)
        The files that were left out, and why.

    Raises
    ------
    FileNotFoundError
        If the folder holds no finished pack.
    ValueError
        If a part of it has another size than its index says, or the index cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        try:
            self.settings = _read_json(self.folder / _INDEX)
        except FileNotFoundError:
            unfinished = " (it was interrupted: pack the same files again to go on)"
            hint = unfinished if (self.folder / _PACKING).exists() else ""
            raise FileNotFoundError(f"{self.folder}: no finished pack{hint}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.folder / _INDEX}: not an index ({error})") from None
        if fault := _index_fault(self.settings):
            raise ValueError(f"{self.folder / _INDEX}: {fault}; pack the images again")
        self.image_size: tuple[int, int] = tuple(self.settings["image_size"])
        self.channels: int = self.settings["channels"]
        self.class_names = tuple(self.settings["class_names"])
        self.skipped = tuple(tuple(one) for one in self.settings["skipped"])
        self.shard_paths = [self.folder / shard["name"] for shard in self.settings["shards"]]
        self._ends = list(accumulate(shard["rows"] for shard in self.settings["shards"]))
        self.labels = self._read_labels()
        self.check()
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def _read_labels(self) -> np.ndarray:
        path = self.folder / _LABELS
        try:
            labels = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever NumPy makes of damaged bytes
            raise ValueError(f"{path}: not an array ({error}); remove the folder and pack again") from None
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.shape != (self.settings["rows"],):
            raise ValueError(
                f"{path}: not the labels of {self.settings['rows']:,} rows; remove the folder and pack again"
            )
        return labels

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Packed({len(self):,} rows of {self.image_size[0]}×{self.image_size[1]}×{self.channels})"

    def __reduce__(self) -> tuple:
        return Packed, (self.folder,)

    def names(self) -> list[str]:
        """Return the file that each row came from; it takes memory for all of them."""
        path = self.folder / _NAMES
        try:
            names = _read_json(path)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a list of names ({error})") from None
        if not _is_list_of(str, names) or len(names) != len(self):
            raise ValueError(f"{path}: not the names of {len(self):,} rows")
        return names

    def __getitem__(self, row: int) -> np.ndarray:
        """Return one image without reading it: its pixels come from the disk, or from the page cache, when used.

        The system takes such pages back when it needs memory. A shard that somebody makes shorter at that moment ends
        the process by a bus error; `check` finds one that has become shorter before.

        Returns
        -------
        numpy.ndarray
            Shape ``(height, width, channels)``, uint8, RGB, read-only.

        Raises
        ------
        IndexError
            If there is no such row.
        ValueError
            If the folder holds TFRecords.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self):,}")
        shard = bisect_right(self._ends, row)
        return self._shard(shard)[row - (self._ends[shard - 1] if shard else 0)]

    def _shard(self, number: int) -> np.ndarray:
        with self._lock:
            if number in self._mapped:
                self._mapped.move_to_end(number)
            else:
                if self.settings["kind"] != "raw":
                    raise ValueError(f"{self.folder} holds TFRecords: read them with tf.data.TFRecordDataset")
                rows = np.memmap(self.shard_paths[number], np.uint8, "r")
                self._mapped[number] = rows.view(np.ndarray).reshape(-1, *self.image_size, self.channels)
                if len(self._mapped) > _MAPPED_SHARDS:
                    self._mapped.popitem(last=False)
            return self._mapped[number]

    def read(self, rows: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """Copy rows, in any order.

        Parameters
        ----------
        rows : sequence of int
        out : numpy.ndarray, optional
            Where to put them: uint8, shape ``(len(rows), height, width, channels)``.

        Returns
        -------
        numpy.ndarray
            ``out``, or a new array.
        """
        if out is None:
            out = np.empty((len(rows), *self.image_size, self.channels), np.uint8)
        for row, image in zip(rows, out, strict=True):
            image[...] = self[int(row)]
        return out

    def check(self) -> None:
        """Raise a ValueError that names a shard whose size is not that of the index; hashes are not compared."""
        for path, shard in zip(self.shard_paths, self.settings["shards"], strict=True):
            size = path.stat().st_size if path.exists() else 0
            if size != shard["bytes"]:
                raise ValueError(f"{path}: {size:,} bytes, not {shard['bytes']:,}; remove the folder and pack again")

    def faults(self) -> Iterator[str]:
        """Read everything again and compare it with the hashes of the index; yield what differs."""
        if self.settings.get("sha256") != _hash_of_index(self.settings):
            yield f"{self.folder / _INDEX}: not what was written (another SHA-256)"
        parts = [(shard["name"], shard["sha256"]) for shard in self.settings["shards"]]
        parts += [(_LABELS, self.settings["labels_sha256"]), (_NAMES, self.settings["names_sha256"])]
        for name, sha256 in parts:
            try:
                if _sha256(self.folder / name) != sha256:
                    yield f"{self.folder / name}: not what was written (another SHA-256)"
            except OSError as error:
                yield f"{self.folder / name}: {error.strerror or error}"
