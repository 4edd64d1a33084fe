"""One image: its file as bytes, its bytes as pixels, and what is done about a broken one."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from helpers.epochs import end_reading_at_exit, reading
from helpers.files import printable

__all__ = [
    "MAX_PIXELS",
    "BrokenFiles",
    "decode_image",
    "jpeg_size",
    "read_file",
    "read_image",
    "reduction",
]

MAX_PIXELS = 2**29 // 3  # TensorFlow decodes no more in colour, and Pillow calls more a decompression bomb
MAX_FILE_BYTES = 2**29

_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FLAGS = {  # by channels and reduction
    (3, 1): cv2.IMREAD_COLOR_RGB,
    (1, 1): cv2.IMREAD_GRAYSCALE,
    # RGB and IMREAD_REDUCED_COLOR exclude each other; to RGB added, the grayscale flag only says how much to reduce.
    **{(3, reduce): cv2.IMREAD_COLOR_RGB | flag for reduce, flag in _REDUCED.items()},
    **{(1, reduce): flag for reduce, flag in _REDUCED.items()},
}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# A marker is 0xFF and a byte; but inside image data 0x00 makes 0xFF plain data, and 0xD0 to 0xD7 restart the decoder.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


class BrokenFiles(dict):
    """Files that could not be read, each with its reason, and what is done about them.

    ::

        broken = BrokenFiles("skip")
        for path in paths:
            with broken.caught(path):
                images.append(read_image(path))

    Parameters
    ----------
    on_error : {"raise", "skip"}
        Whether an OSError or a ValueError leaves the block, or is kept here under the path while the program goes on.
        Other errors leave the block in both cases. The first one that is skipped is told by a warning.
    warn : bool
        False where somebody else tells what was skipped.

    Raises
    ------
    ValueError
        If `on_error` is neither of the two.
    """

    def __init__(self, on_error: str = "raise", *, warn: bool = True):
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}: give "raise" or "skip"')
        self.skips, self._warn = on_error == "skip", warn
        end_reading_at_exit()

    @contextmanager
    def caught(self, path: str) -> Iterator[None]:
        """Run a block that reads `path`."""
        try:
            with reading():
                yield
        except (OSError, ValueError) as error:
            if not self.skips:
                raise
            self.note({path: str(error)})

    def require(self, count: int) -> None:
        """Raise a ValueError if nothing at all could be read: then it is no matter of single files."""
        if self and not count:
            raise ValueError(f"not one of {len(self):,} files could be read; the first: {next(iter(self.values()))}")

    def note(self, reasons: dict[str, str]) -> None:
        """Take over what somebody else skipped: reasons by path."""
        if reasons and not self and self._warn:
            reason = next(iter(reasons.values()))
            warnings.warn(f"left out: {reason} (all of them stand in .skipped)", stacklevel=2)
        self.update(reasons)


def read_file(path: str) -> bytes:
    """Return all bytes of a file.

    Raises
    ------
    OSError
        If it cannot be read; a file that is not there is a FileNotFoundError.
    ValueError
        If it is no regular file: a named pipe would be waited for without end. Or if it has more than `MAX_FILE_BYTES`.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{printable(path)}: no regular file, but a pipe, a socket or a device; remove it")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{printable(path)}: {status.st_size:,} bytes are too many for one image; remove it")
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_image(path: str, *, image_size: tuple[int, int] | None = None, channels: int = 3) -> np.ndarray:
    """Read one image: the reference that every pipeline of the course is compared with.

    Decoded by OpenCV, resized bilinearly. EXIF orientation is not applied: decoders differ in it (OpenCV would rotate,
    TensorFlow would not), so the course leaves the pixels as they are stored.

    Parameters
    ----------
    path : str
        An image file.
    image_size : (int, int), optional
        ``(height, width)`` of the result in pixels; by default the size of the file.
    channels : {3, 1}
        3 for RGB, 1 for grayscale.

    Returns
    -------
    numpy.ndarray
        Shape ``(height, width, channels)``, uint8, RGB order.

    Raises
    ------
    OSError
        If the file cannot be read; one that is not there is a FileNotFoundError.
    ValueError
        If the file holds no image, a truncated one, or one of more than `MAX_PIXELS`; the message names the file.
    """
    return decode_image(read_file(path), path, image_size=image_size, channels=channels)


def decode_image(
    data: bytes, path: str, *, image_size: tuple[int, int] | None = None, channels: int = 3, reduce: int = 1
) -> np.ndarray:
    """Decode the bytes of an image file, as `read_image` does.

    Parameters
    ----------
    data : bytes
        All bytes of the file.
    path : str
        Its name, for messages.
    image_size, channels
        As for `read_image`.
    reduce : {1, 2, 4, 8}
        Decode at 1/1, 1/2, 1/4 or 1/8 of the stored width and height. A JPEG decoder leaves out the part of each block
        of 8×8 frequencies that would not be seen, and the work with it.

    Returns
    -------
    numpy.ndarray
        Shape ``(height, width, channels)``, uint8, RGB order.

    Raises
    ------
    ValueError
        If the bytes are no image, a truncated one, or one of more than `MAX_PIXELS`; the message names the file.
    """
    if (channels, reduce) not in _FLAGS:
        found = f"channels is {channels}, reduce is {reduce}"
        raise ValueError(f"{found}: give 3 for RGB or 1 for grayscale, and reduce 1, 2, 4 or 8")
    if not data:
        raise ValueError(f"{printable(path)}: an empty file; remove it or replace it")
    if _is_truncated_jpeg(data):
        found = f"truncated JPEG ({len(data):,} bytes and no end)"
        raise ValueError(f"{printable(path)}: {found}; copy or download it again")
    height, width = _stored_size(data)
    if height * width > MAX_PIXELS:
        found = f"{width:,}×{height:,} pixels by its header, and {MAX_PIXELS:,} are the limit"
        raise ValueError(f"{printable(path)}: {found}; remove it or make it smaller")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[channels, reduce] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise
        image = None
    if image is None:
        found = f"{len(data):,} bytes that OpenCV cannot decode"
        raise ValueError(f"{printable(path)}: {found}; remove it or replace it")
    if image_size is not None:
        image = cv2.resize(image, image_size[::-1], interpolation=cv2.INTER_LINEAR)
    return image if channels == 3 else image[:, :, np.newaxis]


def _is_truncated_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG stops before its end-of-image marker.

    Decoders differ: OpenCV 4 fills the missing part with grey and says nothing, OpenCV 5 refuses the file. The segments
    are followed one by one, because the end marker of a thumbnail in the header, or of whatever a camera appends, is
    not the end of the image.
    """
    if not data.startswith(_JPEG_START) or data.endswith(_JPEG_END):
        return False
    position = len(_JPEG_START)
    while marker := _JPEG_MARKER.search(data, position):
        if marker[0] == _JPEG_END:
            return False
        # Any other segment gives its length. The data of a scan follows its segment and ends at the next marker.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return True


def _stored_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as the header says, before anything is decoded; (0, 0) where it is not understood."""
    if data.startswith(_JPEG_START):
        return jpeg_size(data)
    if data.startswith(b"\x89PNG"):
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    if data.startswith(b"BM"):
        height, width = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (22, 18))
        return abs(height), abs(width)  # a negative height: rows from top to bottom
    if data.startswith(b"GIF"):
        return int.from_bytes(data[8:10], "little"), int.from_bytes(data[6:8], "little")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _stored_webp_size(data)
    return 0, 0  # OpenCV itself decodes no more than 2**30 pixels


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels as the header of a JPEG says; (0, 0) if it is none."""
    position = len(_JPEG_START)
    while data.startswith(_JPEG_START) and position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # any number of them may stand before a marker
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame's header
            return int.from_bytes(data[position + 5 : position + 7]), int.from_bytes(data[position + 7 : position + 9])
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return 0, 0


def reduction(size: tuple[int, int], image_size: tuple[int, int], at_least: float = 0.9) -> int:
    """Return by how much a JPEG may be reduced while it is decoded: 8, 4, 2 or 1.

    Both sides must keep `at_least` that share of the size that is wanted.
    """
    for reduce in (8, 4, 2):
        if all(s / reduce >= at_least * w for s, w in zip(size, image_size, strict=True)):
            return reduce
    return 1


def _stored_webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        height, width = int.from_bytes(data[27:30], "little"), int.from_bytes(data[24:27], "little")
        return height + 1, width + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
