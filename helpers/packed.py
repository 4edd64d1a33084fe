"""Read a folder of packed images: decoded once and kept on disk as they go to the model. `packing.pack` writes it.

Format, version 1. A folder holds

- ``index.json``: the settings, the class names, the name, rows, bytes and SHA-256 of each shard, hashes of the files'
  content and of their times, and the SHA-256 of all this; written last, so that a folder with it is complete;
- ``labels.npy``: the class index of each row, shape ``(rows,)``, int64;
- ``names.json``: the file that each row came from;
- ``shard-00000.raw`` and so on: rows of ``height × width × channels`` bytes, uint8, RGB, and nothing else, so that
  ``np.memmap(shard, np.uint8, "r").reshape(-1, height, width, channels)`` reads it; or ``shard-00000.tfrecord``:
  TFRecords of ``tf.train.Example`` with ``image`` (JPEG bytes) and ``label``.

While it is written, ``packing.json`` holds the settings and each finished shard has its ``.json`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from helpers.files import sha256_of

__all__ = ["Packed"]

FORMAT_VERSION = 1
INDEX, LABELS, NAMES, PACKING = "index.json", "labels.npy", "names.json", "packing.json"
_MAPPED_SHARDS = 256  # each holds a file open
_DIFFERS = "not what was written (another SHA-256)"


class Packed:
    """A finished folder of packed images. Threads may share it; processes may inherit it.

    Attributes
    ----------
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
        self.settings = self._read_index()
        self.image_size: tuple[int, int] = tuple(self.settings["image_size"])
        self.channels: int = self.settings["channels"]
        self.class_names = tuple(self.settings["class_names"])
        self.skipped = tuple(tuple(one) for one in self.settings["skipped"])
        self.shard_paths = [self.folder / shard["name"] for shard in self.settings["shards"]]
        self._ends = list(accumulate(shard["rows"] for shard in self.settings["shards"]))
        self.labels = self._read_labels()
        self.check()
        shape = (-1, *self.image_size, self.channels)
        self._map = lru_cache(_MAPPED_SHARDS)(lambda path: np.asarray(np.memmap(path, np.uint8, "r")).reshape(shape))

    def _read_index(self) -> dict:
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_bytes())
            if index["version"] != FORMAT_VERSION:
                raise ValueError(f"format version {index['version']}, this program reads {FORMAT_VERSION}")
            if index["sha256"] != hash_of_index(index):
                raise ValueError("not as it was written: another SHA-256")
        except FileNotFoundError:
            is_begun = (self.folder / PACKING).exists()
            hint = " (it was interrupted: pack the same files again to go on)" if is_begun else ""
            raise FileNotFoundError(f"{self.folder}: no finished pack{hint}") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path}: not an index ({error}); pack the images again") from None
        return index

    def _read_labels(self) -> np.ndarray:
        path = self.folder / LABELS
        try:
            labels = np.load(path, mmap_mode="r")
            if (labels.dtype, labels.shape) != (np.int64, (self.settings["rows"],)):
                raise ValueError(f"not those of {self.settings['rows']:,} rows")
        except Exception as error:  # whatever NumPy makes of damaged bytes
            raise ValueError(f"{path}: not the labels ({error}); remove the folder and pack again") from None
        return labels

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple:
        return Packed, (self.folder,)

    def names(self) -> list[str]:
        """Return the file that each row came from; it takes memory for all of them."""
        path = self.folder / NAMES
        if sha256_of(path) != self.settings["names_sha256"]:
            raise ValueError(f"{path}: {_DIFFERS}")
        return json.loads(path.read_bytes())

    def __getitem__(self, row: int) -> np.ndarray:
        """Return one image without reading it: its pixels come from the disk, or from the page cache, when used.

        The system takes such pages back when it needs memory. A shard that somebody makes shorter at that moment ends
        the process by a bus error; `check` finds one that has become shorter before.

        Returns
        -------
        numpy.ndarray
            Shape ``(height, width, channels)``, uint8, RGB, read-only; a ValueError if the folder holds TFRecords.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self):,}")
        if self.settings["kind"] != "raw":
            raise ValueError(f"{self.folder} holds TFRecords: read them with tf.data.TFRecordDataset")
        shard = bisect_right(self._ends, row)
        return self._map(self.shard_paths[shard])[row - (self._ends[shard - 1] if shard else 0)]

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Return a copy of rows, in any order: uint8, shape ``(len(rows), height, width, channels)``."""
        images = np.empty((len(rows), *self.image_size, self.channels), np.uint8)
        for row, image in zip(rows, images, strict=True):
            image[...] = self[int(row)]
        return images

    def check(self) -> None:
        """Raise a ValueError that names a shard whose size is not that of the index; hashes are not compared."""
        for path, shard in zip(self.shard_paths, self.settings["shards"], strict=True):
            size = path.stat().st_size if path.exists() else 0
            if size != shard["bytes"]:
                raise ValueError(f"{path}: {size:,} bytes, not {shard['bytes']:,}; remove the folder and pack again")

    def faults(self) -> Iterator[str]:
        """Read everything again and compare it with the hashes of the index; yield what differs."""
        parts = [(shard["name"], shard["sha256"]) for shard in self.settings["shards"]]
        parts += [(LABELS, self.settings["labels_sha256"]), (NAMES, self.settings["names_sha256"])]
        for name, sha256 in parts:
            try:
                if sha256_of(self.folder / name) != sha256:
                    yield f"{self.folder / name}: {_DIFFERS}"
            except OSError as error:
                yield f"{self.folder / name}: {error.strerror or error}"


def hash_of_index(index: dict) -> str:
    """Return the SHA-256 of an index, its own entry ``sha256`` left out: whatever is damaged in it changes this."""
    others = {key: value for key, value in index.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
