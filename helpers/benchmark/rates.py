"""What this machine can read and decode of a list of images, before any pipeline is built; and which files are broken.

Called by the benchmark command and by `make bench`. Every pipeline that decodes stays below these rates; see lesson 06.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from helpers.files import usable_cores
from helpers.folders import ImageFiles
from helpers.images import decode_image, jpeg_size, read_file, reduction
from helpers.sandbox import run

__all__ = ["Limits", "decode_fully", "decode_rate", "decode_reduced", "find_limits"]

_TIMEOUT_S = 1800.0
_KINDS = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"GIF8": "GIF",
}


@dataclass(frozen=True)
class Limits:
    """What was found in one look at a list of images.

    Attributes
    ----------
    images : int
        Sound images.
    broken : tuple of (str, str)
        Path and reason of each file that cannot be read or decoded.
    kinds : dict
        Number of files by what they are, not by their name.
    median_size : (int, int)
        Height and width in pixels, as stored.
    mean_bytes : float
        Of the sound files.
    read_images_per_s : float
        A thread for each core that only reads. The first pass over the files: from the disk, unless the system still
        has them in memory.
    decode_images_per_s : float
        A thread for each core that reads again, decodes all pixels, resizes, and throws the result away.
    reduced_images_per_s : float
        The same, where JPEGs are decoded at 1/2, 1/4 or 1/8 if that leaves enough, as `tf_data_fast` does.
    cores : int
        That the process may use.
    """

    images: int
    broken: tuple[tuple[str, str], ...]
    kinds: dict[str, int]
    median_size: tuple[int, int]
    mean_bytes: float
    read_images_per_s: float
    decode_images_per_s: float
    reduced_images_per_s: float
    cores: int


def find_limits(files: ImageFiles, image_size: tuple[int, int] = (224, 224)) -> Limits:
    """Read all files, then decode them twice, in a fresh process.

    Raises
    ------
    ValueError
        If no file can be decoded.
    """
    limits = run(_look, files, image_size, timeout=_TIMEOUT_S).unwrap()
    if not limits.images:
        raise ValueError(f"none of {len(files):,} files can be decoded; the first: {limits.broken[0][1]}")
    return limits


def decode_rate(decode: Callable[[bytes, str], np.ndarray], files: ImageFiles, image_size: tuple[int, int]) -> float:
    """Return images/s of a thread for each core that reads, decodes and resizes, and does nothing else.

    Parameters
    ----------
    decode : callable
        ``decode(data, path)`` returns an image ``(height, width, 3)``, uint8.
    """
    _, seconds = _in_threads(_decoding(decode, image_size), files.paths)
    return len(files) / seconds


def decode_fully(data: bytes, path: str) -> np.ndarray:
    """Decode all pixels."""
    return decode_image(data, path)


def decode_reduced(image_size: tuple[int, int]) -> Callable[[bytes, str], np.ndarray]:
    """Return a function that decodes as `tf_data_fast` does, no more than an image of that size needs."""

    def decode(data: bytes, path: str) -> np.ndarray:
        return decode_image(data, path, reduce=reduction(jpeg_size(data), image_size))

    return decode


def _look(files: ImageFiles, image_size: tuple[int, int]) -> Limits:
    found, read_s = _in_threads(_size_and_kind, files.paths)
    faults = {path: one for path, one in zip(files.paths, found, strict=True) if isinstance(one, str)}
    readable = [path for path in files.paths if path not in faults]
    stored, decode_s = _in_threads(_decoding(decode_fully, image_size), readable)
    faults |= {path: one for path, one in zip(readable, stored, strict=True) if isinstance(one, str)}
    sound = [path for path in readable if path not in faults]
    _, reduced_s = _in_threads(_decoding(decode_reduced(image_size), image_size), sound)
    sizes = [one for one in stored if not isinstance(one, str)]
    described = [one for path, one in zip(files.paths, found, strict=True) if path not in faults]
    return Limits(
        images=len(sound),
        broken=tuple((path, faults[path]) for path in files.paths if path in faults),
        kinds=dict(Counter(kind for _, kind in described).most_common()),
        median_size=tuple(int(side) for side in np.median(sizes, axis=0)) if sizes else (0, 0),
        mean_bytes=float(np.mean([size for size, _ in described])) if described else 0.0,
        read_images_per_s=len(readable) / read_s,
        decode_images_per_s=len(sound) / decode_s,
        reduced_images_per_s=len(sound) / reduced_s,
        cores=usable_cores(),
    )


def _in_threads(work: Callable, paths: Sequence[str]) -> tuple[list, float]:
    """Return what `work` gives for each path, or the text of its error, and the seconds of a thread for each core."""
    found: list = [None] * len(paths)
    cores = usable_cores()

    def work_on(start: int) -> None:
        for place in range(start, len(paths), cores):
            try:
                found[place] = work(paths[place])
            except (OSError, ValueError, cv2.error) as error:
                found[place] = str(error)

    cv2.setNumThreads(1)  # the images run side by side already
    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        list(pool.map(work_on, range(cores)))
        return found, max(time.perf_counter() - started, 1e-9)


def _size_and_kind(path: str) -> tuple[int, str]:
    data = read_file(path)
    return len(data), next((kind for start, kind in _KINDS.items() if data.startswith(start)), "other")


def _decoding(decode: Callable[[bytes, str], np.ndarray], image_size: tuple[int, int]) -> Callable:
    own = threading.local()  # an array for each thread: no memory is asked for, no batch is made

    def work(path: str) -> tuple[int, int]:
        image = decode(read_file(path), path)
        if not hasattr(own, "out"):
            own.out = np.empty((*image_size, 3), np.uint8)
        cv2.resize(image, image_size[::-1], dst=own.out)
        return image.shape[:2]

    return work
