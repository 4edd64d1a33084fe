"""Tell which file an image came from, by its pixels: how `contract` checks that each comes once, with its own label."""

from __future__ import annotations

import numpy as np

from helpers.folders import ImageFiles
from helpers.images import read_image

__all__ = ["Reference", "can_be_recognised"]

_THUMBNAIL = 12  # pixels each way


def can_be_recognised(images: np.ndarray) -> bool:
    """Tell whether these are images of three channels that are large enough for a thumbnail."""
    return images.ndim == 4 and images.shape[3] == 3 and min(images.shape[1:3]) >= _THUMBNAIL


class Reference:
    """Recognises which file an image came from by its pixels."""

    def __init__(self, files: ImageFiles, image_size: tuple[int, int]):
        self.images = np.stack([read_image(path, image_size=image_size) for path in files.paths])
        self.thumbnails = _thumbnails(self.images)
        # We cannot distinguish files with the same pixels, so they all count as the first one.
        first: dict[bytes, int] = {}
        self.same = [first.setdefault(image.tobytes(), number) for number, image in enumerate(self.images)]

    def identify(self, images: np.ndarray, tolerance: float) -> tuple[list[int], list[str]]:
        """Return the number of the nearest file for each image, and what is wrong with its pixels."""
        numbers, faults = [], []
        images = _as_levels(images)
        for image, thumbnail in zip(images, _thumbnails(images), strict=True):
            as_is = np.abs(self.thumbnails - thumbnail).mean(axis=(1, 2, 3))
            swapped = np.abs(self.thumbnails - thumbnail[:, :, ::-1]).mean(axis=(1, 2, 3))
            number = int(np.minimum(as_is, swapped).argmin())
            numbers.append(self.same[number])
            if image.shape != self.images[number].shape:
                continue  # the contract says so itself
            reference = self.images[number].astype(np.float32)
            difference = np.abs(image - reference).mean()
            if not difference <= tolerance:
                reversed_difference = np.abs(image[:, :, ::-1] - reference).mean()
                hint = ": the channels are BGR, not RGB" if reversed_difference < min(tolerance, difference) else ""
                faults.append(f"pixels {difference:.1f} levels of 255 from the reference, {tolerance:g} allowed{hint}")
        return numbers, faults


def _as_levels(images: np.ndarray) -> np.ndarray:
    """Bring images that were scaled to [0, 1] or [-1, 1] back to levels of 255, so that they can be recognised."""
    levels = images.astype(np.float32)
    if images.dtype.kind != "f" or not len(images) or images.max() > 1:
        return levels
    return levels * 255 if images.min() >= 0 else (levels + 1) * 127.5


def _thumbnails(images: np.ndarray) -> np.ndarray:
    height, width = (size // _THUMBNAIL * _THUMBNAIL for size in images.shape[1:3])
    blocks = images[:, :height, :width].astype(np.float32)
    blocks = blocks.reshape(len(images), _THUMBNAIL, height // _THUMBNAIL, _THUMBNAIL, width // _THUMBNAIL, 3)
    return blocks.mean(axis=(2, 4))
