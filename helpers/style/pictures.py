"""Pictures of lesson 10: the one whose style is learned, and those that are written; uint8 RGB (height, width, 3).

Called by `command`, `training`, lesson 10 and `make_styles.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from helpers.files import printable, write_whole
from helpers.images import read_image
from helpers.style.settings import StyleSettings

__all__ = ["save_picture", "shrunk", "target_picture"]


def target_picture(settings: StyleSettings) -> np.ndarray:
    """Return the style picture as the losses see it: its shorter side has `style_size` pixels.

    A FileNotFoundError or a ValueError names a picture that is missing or cannot be decoded.
    """
    path = settings.style_image
    try:
        picture = read_image(path)
    except FileNotFoundError:
        made = "; python data_scripts/make_styles.py makes the course's"
        raise FileNotFoundError(f"{printable(path)}: no such style picture{made}") from None
    return _resized(picture, settings.style_size / min(picture.shape[:2]))


def shrunk(picture: np.ndarray, longest_side: int) -> np.ndarray:
    """Return a picture whose longer side has at most so many pixels."""
    return _resized(picture, min(longest_side / max(picture.shape[:2]), 1))


def _resized(picture: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def save_picture(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write a picture, in the format that the name's ending says, unless another file has that name.

    An OSError says why it cannot be written; a FileExistsError, that the name is taken.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:
        raise OSError(f"{printable(path)}: a picture's name ends with .png or .jpg") from None
    if not path.exists():
        write_whole(path, data.tobytes())
    elif not path.is_file() or path.read_bytes() != data.tobytes():  # not this picture, from an earlier run
        raise FileExistsError(f"{printable(path)}: is there already, with another content; give another name")
