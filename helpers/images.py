"""One image: its file as bytes, its bytes as pixels, and what is done about a broken one."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import cv2
import numpy as np

from helpers.epochs import end_reading_at_exit, reading
from helpers.files import printable
from helpers.remote import is_address, read_address

__all__ = [
    "MAX_PIXELS",
    "BrokenFiles",
    "decode_image",
    "jpeg_size",
    "read_ahead",
    "read_file",
    "read_image",
    "reduction",
]

MAX_PIXELS = 2**29 // 3  # TensorFlow decodes no more in colour, and Pillow calls more a decompression bomb
MAX_FILE_BYTES = 2**29

_COLOURS = {3: cv2.IMREAD_COLOR_RGB, 1: cv2.IMREAD_GRAYSCALE}
# RGB and IMREAD_REDUCED_COLOR exclude each other; to RGB added, the grayscale flag only says how much to reduce.
_REDUCED = {1: 0} | {reduce: getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduce}") for reduce in (2, 4, 8)}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# A marker is 0xFF and a byte; but inside image data 0x00 makes 0xFF plain data, and 0xD0 to 0xD7 restart the decoder.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SIZES = (  # how a file begins; where its width stands, bits from there to the height, bits of each, what to add
    (re.compile(rb"GIF"), 6, 16, 16, 0),
    (re.compile(rb"BM"), 18, 32, 32, 0),
    (re.compile(rb"RIFF....WEBPVP8X", re.DOTALL), 24, 24, 24, 1),
    (re.compile(rb"RIFF....WEBPVP8L", re.DOTALL), 21, 14, 14, 1),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), 26, 16, 14, 0),
)


class BrokenFiles(dict):
    """Files that could not be read, each with its reason, and what is done about them.

    Parameters
    ----------
    on_error : {"raise", "skip"}
        Whether an OSError or a ValueError leaves a block of `caught`, or is kept here while the program goes on.
    warn : bool
        Whether a warning tells the first one that is skipped.
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
            warnings.warn(f"left out: {next(iter(reasons.values()))} (`.skipped` lists all of them)", stacklevel=2)
        self.update(reasons)


def read_file(path: str) -> bytes:
    """Return all bytes of a file, or of what is behind an address, such as ``s3://bucket/1.jpg``.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no regular file: a named pipe would be waited for without end. Or if it has more than `MAX_FILE_BYTES`.
    """
    if is_address(path):
        return read_address(os.fsdecode(path))
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _fault(path, "no regular file, but a pipe, a socket or a device", "remove it")
        if status.st_size > MAX_FILE_BYTES:
            raise _fault(path, f"{status.st_size:,} bytes are too many for one image", "remove it")
        return file.read()


@contextmanager
def read_ahead(paths: Sequence[str], at_once: int) -> Iterator[list[Callable[[], bytes]]]:
    """Yield a function for each path that returns the file's bytes or raises what `read_file` raised.

    Parameters
    ----------
    at_once : int
        Threads that read, from the first path on, whether or not somebody has asked; with 1, each file is read when it
        is asked for. All bytes that nobody has taken yet are in memory.
    """
    if at_once <= 1:
        yield [partial(read_file, path) for path in paths]
        return
    threads = ThreadPoolExecutor(at_once)  # it starts no more than there are paths
    try:
        yield [threads.submit(read_file, path).result for path in paths]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _fault(path: str, found: str, remedy: str) -> ValueError:
    return ValueError(f"{printable(path)}: {found}; {remedy}")


def read_image(path: str, *, image_size: tuple[int, int] | None = None, channels: int = 3) -> np.ndarray:
    """Read one image: the reference that every pipeline of the course is compared with.

    Decoded by OpenCV, resized bilinearly. EXIF orientation is not applied: decoders differ in it (OpenCV would rotate,
    TensorFlow would not), so the course leaves the pixels as they are stored.

    Parameters
    ----------
    path : str
    image_size : (int, int), optional
        ``(height, width)`` of the result in pixels; by default the size of the file.
    channels : {3, 1}
        RGB or grayscale.

    Returns
    -------
    numpy.ndarray
        Shape ``(height, width, channels)``, uint8.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds no image, a truncated one, or one of more than `MAX_PIXELS`; the message names the file.
    """
    return decode_image(read_file(path), path, image_size=image_size, channels=channels)


def decode_image(
    data: bytes, path: str, *, image_size: tuple[int, int] | None = None, channels: int = 3, reduce: int = 1
) -> np.ndarray:
    """Decode the bytes of an image file, as `read_image` does, which describes the other parameters.

    Parameters
    ----------
    path : str
        Its name, for messages.
    reduce : {1, 2, 4, 8}
        Decode at 1/1, 1/2, 1/4 or 1/8 of the stored width and height. A JPEG decoder leaves out the part of each block
        of 8×8 frequencies that would not be seen, and the work with it.
    """
    if channels not in _COLOURS or reduce not in _REDUCED:
        raise ValueError(f"channels={channels}, reduce={reduce}: give 3 for RGB or 1 for grayscale, and 1, 2, 4 or 8")
    if not data:
        raise _fault(path, "an empty file", "remove it or replace it")
    # Of a truncated JPEG, OpenCV 4 fills the missing part with grey and says nothing; OpenCV 5 refuses the file.
    is_jpeg, is_ended = data.startswith(_JPEG_START), data.endswith(_JPEG_END)
    if is_jpeg and not is_ended and all(marker != _JPEG_END[1] for marker, _ in _jpeg_segments(data)):
        raise _fault(path, f"truncated JPEG ({len(data):,} bytes and no end)", "copy or download it again")
    height, width = _stored_size(data)
    if height * width > MAX_PIXELS:
        found = f"{width:,}×{height:,} pixels by its header, and {MAX_PIXELS:,} are the limit"
        raise _fault(path, found, "remove it or make it smaller")
    flags = _COLOURS[channels] | _REDUCED[reduce] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise
        image = None
    if image is None:
        raise _fault(path, f"{len(data):,} bytes that OpenCV cannot decode", "remove it or replace it")
    if image_size is not None:
        image = cv2.resize(image, image_size[::-1], interpolation=cv2.INTER_LINEAR)
    return image if channels == 3 else image[:, :, np.newaxis]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment of a JPEG, not those of a thumbnail inside one, and the position behind it."""
    position = len(_JPEG_START)
    while marker := _JPEG_MARKER.search(data, position):
        yield marker[0][1], marker.end()
        # A segment gives its length. The data of a scan follows its segment and ends at the next marker.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def _stored_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as the header says, before anything is decoded; (0, 0) where it is not understood."""
    if data.startswith(b"\x89PNG"):
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    for beginning, start, shift, bits, add in _SIZES:
        if beginning.match(data):
            both = int.from_bytes(data[start : start + 8], "little")
            height, width = (add + (side & (1 << bits) - 1) for side in (both >> shift, both))
            return min(height, 2**32 - height), width  # in a BMP, below zero where rows run from top to bottom
    return jpeg_size(data)  # of anything else, OpenCV itself decodes no more than 2**30 pixels


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels as the header of a JPEG says; (0, 0) if it is none."""
    for marker, start in _jpeg_segments(data) if data.startswith(_JPEG_START) else ():
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and start + 7 <= len(data):  # a frame's header
            return int.from_bytes(data[start + 3 : start + 5]), int.from_bytes(data[start + 5 : start + 7])
    return 0, 0


def reduction(size: tuple[int, int], image_size: tuple[int, int], at_least: float = 0.9) -> int:
    """Return by how much a JPEG may be reduced while it is decoded: 8, 4, 2 or 1.

    Both sides must keep `at_least` that share of the size that is wanted.
    """
    for reduce in (8, 4, 2):
        if all(s / reduce >= at_least * w for s, w in zip(size, image_size, strict=True)):
            return reduce
    return 1
