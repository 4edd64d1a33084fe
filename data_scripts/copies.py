"""Find the same picture in several files: byte for byte, or nearly so after it was resized or compressed again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import cv2
import numpy as np

__all__ = ["equal_files", "near_copies", "small_picture"]

SIDE = 16
_MOST_BITS = 3  # of 64 that may differ between two files of one picture
_LEAST_CORRELATION, _MOST_LEVELS, _LEAST_CONTRAST = 0.99, 5.0, 2.0
_MOST_IN_A_BUCKET = 1000  # of pictures that share 16 bits; more of them (blank pages) would be compared for hours


def small_picture(image: np.ndarray) -> bytes:
    """Return an image as `SIDE` × `SIDE` gray levels, row by row, to be compared with others.

    Parameters
    ----------
    image : numpy.ndarray
        Shape ``(height, width, 3)``, uint8, RGB.
    """
    return cv2.cvtColor(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).tobytes()


def equal_files(hashes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (path, an earlier path with the same bytes), from a SHA-256 for each path."""
    by_content = defaultdict(list)
    for path, sha256 in hashes.items():
        by_content[sha256].append(path)
    for same in by_content.values():
        first, *others = sorted(same)
        yield from ((path, first) for path in others)


def near_copies(pictures: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield (path, an earlier path with nearly the same pixels), each path once, from a `small_picture` for each.

    Pictures are candidates if no more than 3 of the 64 bits of their difference hash differ (Neal Krawetz, "Kind of
    Like That", 2013), and copies if their gray levels agree as well. Pictures without contrast are left out.
    """
    paths = sorted(pictures)
    if not paths:
        return
    grays = np.frombuffer(b"".join(pictures[path] for path in paths), np.uint8).reshape(-1, SIDE, SIDE)
    grays = grays.astype(np.float32)
    bits = _difference_bits(grays)
    has_contrast = grays.std(axis=(1, 2)) >= _LEAST_CONTRAST
    found: set[int] = set()
    for block in range(0, 64, 16):  # two hashes that differ in at most 3 bits are equal in one of 4 blocks
        buckets = defaultdict(list)
        for number in np.flatnonzero(has_contrast):
            buckets[bits[number, block : block + 16].tobytes()].append(number)
        for bucket in buckets.values():
            numbers = np.array(bucket[:_MOST_IN_A_BUCKET])
            for place, number in enumerate(numbers[1:], 1):
                if number in found:
                    continue
                earlier = numbers[:place]
                earlier = earlier[(bits[earlier] != bits[number]).sum(axis=1) <= _MOST_BITS]
                same = next((other for other in earlier if _agree(grays[other], grays[number])), None)
                if same is not None:
                    found.add(number)
                    yield paths[number], paths[same]


def _difference_bits(grays: np.ndarray) -> np.ndarray:
    """Return 64 bits for each picture: whether each of 8 × 8 fields is darker than its right neighbour."""
    fields = np.stack([cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA) for gray in grays])
    return (fields[:, :, 1:] > fields[:, :, :-1]).reshape(-1, 64)


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    return correlation >= _LEAST_CORRELATION and np.abs(one - other).mean() <= _MOST_LEVELS
