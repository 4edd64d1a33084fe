"""What this machine can read and decode of a list of images, before any pipeline is built; and which files are broken.

Called by the benchmark command and by `make bench`. Every pipeline that decodes stays below these rates; see lesson 06.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np

from helpers.files import usable_cores
from helpers.folders import ImageFiles
from helpers.images import decode_image, jpeg_size, read_file, reduction
from helpers.remote import AT_ONCE, first_byte, is_address
from helpers.sandbox import run

__all__ = ["Limits", "cold_mb_per_s", "decode_rate", "decode_reduced", "find_limits", "first_byte_ms"]

_TIMEOUT_S = 1800.0
_COLD_FILES, _FIRST_BYTES = 500, 20
_KINDS = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"BM": "BMP", b"GIF8": "GIF"}


@dataclass(frozen=True)
class Limits:
    """What was found in one look at a list of images; each rate is that of a thread for each core.

    Of addresses, `remote.AT_ONCE` are read at a time, and the rates of decoding follow from the CPU time: what these
    threads wait for must not count.
    """

    images: int  # sound ones
    broken: tuple[tuple[str, str], ...]  # path and reason of each file that cannot be read or decoded
    kinds: dict[str, int]  # number of sound files by what they are, not by their name
    median_size: tuple[int, int]  # height and width in pixels, as stored
    mean_bytes: float
    read_images_per_s: float  # from the disk, unless the system still has the files in memory
    decode_images_per_s: float  # read again, all pixels decoded, resized
    reduced_images_per_s: float  # the same, but only what `tf_data_fast` decodes
    cores: int
    cold_mb_per_s: float | None = None  # 10^6 bytes from the disk, with nothing in memory; see `cold_mb_per_s`
    first_byte_ms: float = 0.0  # until a file that is not in memory begins to come; see `first_byte_ms`


def find_limits(files: ImageFiles, image_size: tuple[int, int] = (224, 224)) -> Limits:
    """Read all files, then decode them twice, in a fresh process.

    Raises
    ------
    ValueError
        If no file can be decoded.
    ChildError
        If a file crashed the decoder, hung it, or filled the memory.
    """
    limits = run(_look, files, image_size, timeout=_TIMEOUT_S).unwrap()
    if isinstance(limits, str):
        raise ValueError(f"none of {len(files):,} files can be decoded; the first: {limits}")
    return limits


def decode_rate(decode: Callable[[bytes, str], np.ndarray], files: ImageFiles, image_size: tuple[int, int]) -> float:
    """Return images/s of a thread for each core that reads, decodes and resizes; ``decode(data, path)`` gives RGB.

    Of addresses, without what reading takes.
    """
    _, _, seconds = _decoded(decode, image_size, files.paths)
    return len(files) / seconds


def decode_reduced(image_size: tuple[int, int]) -> Callable[[bytes, str], np.ndarray]:
    """Return a function that decodes as `tf_data_fast` does, no more than an image of that size needs."""

    def decode(data: bytes, path: str) -> np.ndarray:
        return decode_image(data, path, reduce=reduction(jpeg_size(data), image_size))

    return decode


def _look(files: ImageFiles, image_size: tuple[int, int]) -> Limits | str:
    """Return what was found, or why the first file cannot be decoded if none can."""
    stored, faults, read_s = _in_threads(_bytes_and_kind, files.paths)
    sizes, undecodable, decode_s = _decoded(decode_image, image_size, list(stored))
    faults |= undecodable
    if not sizes:
        return faults[files.paths[0]]
    _, _, reduced_s = _decoded(decode_reduced(image_size), image_size, list(sizes))
    latency_ms = first_byte_ms(list(sizes)[:_FIRST_BYTES])
    cold = cold_mb_per_s(list(sizes)[:_COLD_FILES])  # last: from here on, these files are on the disk only
    byte_counts, kinds = zip(*(stored[path] for path in sizes), strict=True)
    return Limits(
        images=len(sizes),
        broken=tuple((path, faults[path]) for path in files.paths if path in faults),
        kinds=dict(Counter(kinds).most_common()),
        median_size=tuple(int(side) for side in np.median(list(sizes.values()), axis=0)),
        mean_bytes=float(np.mean(byte_counts)),
        read_images_per_s=len(stored) / read_s,
        decode_images_per_s=len(sizes) / decode_s,
        reduced_images_per_s=len(sizes) / reduced_s,
        cores=usable_cores(),
        cold_mb_per_s=cold,
        first_byte_ms=latency_ms,
    )


def cold_mb_per_s(paths: Sequence[str]) -> float | None:
    """Return what the disk gives of files that the system has forgotten, in 10^6 bytes per second.

    None where the system has no call to forget a file (macOS, Windows), and of addresses. A thread for each core reads.
    A disk with a cache of its own, as a virtual machine's often has, may still be faster than it seems at the first
    reading.
    """
    if not hasattr(os, "posix_fadvise") or _is_far(paths):
        return None
    for path in paths:
        _forget(path)
    found, _, seconds = _in_threads(_bytes_and_kind, paths)
    return sum(size for size, _ in found.values()) / seconds / 1e6


def first_byte_ms(paths: Sequence[str], *, forget: bool = True) -> float:
    """Return the median time until the first byte of a file has come, in ms, one file after the other.

    Parameters
    ----------
    paths : sequence of str
        Files, or addresses, of which one byte is asked for.
    forget : bool
        Whether the system drops each file from memory first, where it has a call for that.
    """
    times_s = []
    for path in paths:
        if forget and not is_address(path):
            _forget(path)
        started = time.perf_counter()
        if is_address(path):
            first_byte(path)
        else:
            with open(path, "rb", buffering=0) as file:
                file.read(1)
        times_s.append(time.perf_counter() - started)
    return 1000 * float(np.median(times_s))


def _is_far(paths: Sequence[str]) -> bool:
    return any(map(is_address, paths))


def _forget(path: str) -> None:
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _in_threads(work: Callable, paths: Sequence[str]) -> tuple[dict, dict[str, str], float]:
    """Return what `work` gives by path, the texts of errors by path, and the seconds that all threads took together.

    There is a thread for each core, or for each of `remote.AT_ONCE` addresses.
    """

    def work_on(part: Sequence[str]) -> list:  # a task for each path would cost as much as reading it
        return [attempt(path) for path in part]

    def attempt(path: str) -> object:
        try:
            return work(path)
        except (OSError, ValueError, cv2.error) as error:
            return error

    threads = AT_ONCE if _is_far(paths) else usable_cores()
    parts = [paths[start::threads] for start in range(threads)]
    cv2.setNumThreads(1)  # the images run side by side already
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        found = list(pool.map(work_on, parts))
        seconds = max(time.perf_counter() - started, 1e-9)
    by_path = dict(zip(chain(*parts), chain(*found), strict=True))
    faults = {path: str(one) for path, one in by_path.items() if isinstance(one, Exception)}
    return {path: one for path, one in by_path.items() if path not in faults}, faults, seconds


def _bytes_and_kind(path: str) -> tuple[int, str]:
    data = read_file(path)
    return len(data), next((kind for start, kind in _KINDS.items() if data.startswith(start)), "other")


def _decoded(
    decode: Callable[[bytes, str], np.ndarray], image_size: tuple[int, int], paths: Sequence[str]
) -> tuple[dict, dict[str, str], float]:
    """Return the size of each image by path, and the rest as `_in_threads` does."""
    own = threading.local()  # an array for each thread: no memory is asked for, no batch is made
    turns, cpu_s = threading.Semaphore(usable_cores()), []

    def work(path: str) -> tuple[int, int]:
        data = read_file(path)
        with turns:  # many may read at once, but not fill the memory with pixels
            started = time.thread_time()
            image = decode(data, path)
            if not hasattr(own, "out"):
                own.out = np.empty((*image_size, 3), np.uint8)
            cv2.resize(image, image_size[::-1], dst=own.out)
            cpu_s.append(time.thread_time() - started)
        return image.shape[:2]

    sizes, faults, seconds = _in_threads(work, paths)
    return sizes, faults, max(sum(cpu_s), 1e-9) / usable_cores() if _is_far(paths) else seconds
