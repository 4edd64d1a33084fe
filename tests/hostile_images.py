"""Several hundred files that real folders hold and that readers of images stumble over, made here from one picture.

Each has a *kind*, which says what may become of it:

- ``good``: any pipeline delivers it;
- ``broken``: no pipeline delivers it;
- ``either``: decoders differ, or damage can't be seen; it is delivered or named, and nothing else may happen.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from conftest import draw_image
from PIL import Image, PngImagePlugin

GOOD, BROKEN, EITHER = "good", "broken", "either"
PICTURE = Image.fromarray(draw_image(7, (48, 64)))
OTHERS = (("png", "PNG", {}), ("bmp", "BMP", {}), ("lossy", "WEBP", {}), ("lossless", "WEBP", {"lossless": True}))
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp"}
NAMES = (
    "with space",
    " leading and trailing ",
    'double"quote',
    "single'quote",
    "new\nline",
    "tab\there",
    "back\\slash",
    "$HOME `id` %s {0}",
    "*?[a-z]",
    "-rf",
    "שלום‮gpj",
    "مرحبا",
    "日本語",
    "🙂",
    "Ünïcödé",
    "e\u0301 decomposed",
    "l" * 240,
    os.fsdecode(b"not utf-8 \xff\xfe"),
)


def encoded(kind: str, image: Image.Image = PICTURE, **settings: object) -> bytes:
    """Return the picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


JPEG, PROGRESSIVE = encoded("JPEG", quality=90), encoded("JPEG", quality=90, progressive=True)


def segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """Return (marker, start, end) of each segment before the data of the first scan."""
    found, position = [], 2
    while True:
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4])
        found.append((marker, position, position + 2 + length))
        position += 2 + length
        if marker == 0xDA:
            return found


def start_of(marker: int, jpeg: bytes = JPEG) -> int:
    """Return where a segment begins."""
    return next(start for found, start, _ in segments(jpeg) if found == marker)


def changed(data: bytes, at: int, new: bytes) -> bytes:
    """Return the bytes with some of them written over."""
    return data[:at] + new + data[at + len(new) :]


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk with its length and its checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of_size(width: int, height: int) -> bytes:
    """Return a sound beginning of a PNG of that size, with hardly any data."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


def truncations() -> Iterator[tuple[str, str, bytes]]:
    """Each kind of file cut off within its magic number, at and inside each segment, and all along its data."""
    by_a_camera = with_segment(JPEG, 0xE1, b"Exif\0\0" + encoded("JPEG", PICTURE.resize((32, 24))))
    for name, data in (("jpeg", JPEG), ("progressive", PROGRESSIVE), ("with a thumbnail", by_a_camera)):
        borders = {end + shift for _, _, end in segments(data) for shift in (-1, 0, 1)}
        along = {round(len(data) * share) for share in np.linspace(0.1, 0.95, 12)}
        for size in sorted({1, 2, 3, 4, len(data) - 2, len(data) - 1} | borders | along):
            yield f"{name} cut at {size}.jpg", BROKEN, data[:size]
    for name, kind, settings in OTHERS:
        data = encoded(kind, **settings)
        headers = {1, 2, 4, 8, 12, 16, 20, 25, 26, 30, 34, 54}
        for size in sorted(headers | {len(data) * eighth // 8 for eighth in range(1, 8)}):
            yield f"{name} cut at {size}{ENDINGS[kind]}", BROKEN, data[:size]
        yield f"{name} without its last byte{ENDINGS[kind]}", EITHER, data[:-1]


def flips() -> Iterator[tuple[str, str, bytes]]:
    """One bit in each file is another one; sometimes that cannot be seen."""
    for kind, count in (("JPEG", 90), ("PNG", 30), ("BMP", 15), ("WEBP", 25)):
        data = encoded(kind)
        for place in np.random.default_rng(1).choice(len(data) * 8, count, replace=False).tolist():
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << place % 8
            yield f"{kind.lower()} with bit {place} flipped{ENDINGS[kind]}", EITHER, bytes(flipped)


def pretenders() -> Iterator[tuple[str, str, bytes]]:
    """What the name promises is not there."""
    strangers = {
        "html": b"<!DOCTYPE html><title>404 Not Found</title>",
        "text": b"no picture, only text\n" * 50,
        "zip": b"PK\x05\x06" + b"\0" * 18,
        "pdf": b"%PDF-1.4\n%%EOF",
        "elf": b"\x7fELF" + b"\0" * 200,
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "zeros": b"\0" * 1024,
        "ones": b"\xff" * 1024,
        "noise": np.random.default_rng(3).bytes(5000),
        "start and end only": b"\xff\xd8\xff\xd9",
        "start twice": b"\xff\xd8" * 20,
        "header and end": JPEG[: start_of(0xDA)] + b"\xff\xd9",
        "first bytes gone": JPEG[2:],
        "first bytes zero": changed(JPEG, 0, b"\0\0"),
    }
    for name, data in strangers.items():
        for ending in (".jpg", ".png"):
            yield f"{name}{ending}", BROKEN, data
    for ending in ENDINGS.values():
        yield f"empty{ending}", BROKEN, b""
    yield "really a png.jpg", GOOD, encoded("PNG")
    yield "really a jpeg.png", GOOD, JPEG
    yield "really a bmp.jpeg", GOOD, encoded("BMP")
    yield "really a gif.jpg", EITHER, encoded("GIF")
    yield "really a tiff.jpg", EITHER, encoded("TIFF")
    yield "with CAPITALS.JPG", GOOD, JPEG


def giants() -> Iterator[tuple[str, str, bytes]]:
    """A few bytes that claim a picture of gigabytes; and sizes that are none."""
    frame = start_of(0xC0) + 5
    for height, width in ((65500, 65500), (20000, 20000), (65535, 3000), (0, 64), (48, 0)):
        yield f"jpeg of {width} x {height}.jpg", BROKEN, changed(JPEG, frame, struct.pack(">HH", height, width))
    for width, height in ((2**31 - 1, 2**31 - 1), (100_000, 100_000), (2**20, 2**11), (0, 0), (1, 2**31 - 1)):
        yield f"png of {width} x {height}.png", BROKEN, png_of_size(width, height)
    for width, height in ((2**31 - 1, 2**31 - 1), (60_000, -60_000), (-1, 5), (0, 0), (2**16, 2**16)):
        yield f"bmp of {width} x {height}.bmp", BROKEN, changed(encoded("BMP"), 18, struct.pack("<ii", width, height))
    extended = changed(encoded("WEBP", PICTURE.convert("RGBA"), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"), 24, b"\xff" * 6)
    yield "webp of 2**24 x 2**24.webp", BROKEN, extended


def rare_but_right() -> Iterator[tuple[str, str, bytes]]:
    """What cameras, scanners and programs do write."""
    gray, cmyk = PICTURE.convert("L"), PICTURE.convert("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "IEND \xff\xd9" * 3)
    yield "progressive.jpg", GOOD, PROGRESSIVE
    yield "restart markers.jpg", GOOD, encoded("JPEG", restart_marker_blocks=1)
    yield "gray.jpg", GOOD, encoded("JPEG", gray)
    for sampling in (0, 1, 2):
        yield f"sampling {sampling}.jpg", GOOD, encoded("JPEG", subsampling=sampling)
    yield "cmyk.jpg", EITHER, encoded("JPEG", cmyk)
    yield "ycck.jpg", EITHER, changed_transform(encoded("JPEG", cmyk), 2)
    yield "rotated by its header.jpg", GOOD, encoded("JPEG", exif=exif)
    yield "end marker in a comment.jpg", GOOD, encoded("JPEG", comment=b"\xff\xd9 not the end \xff\xd9")
    yield "thumbnail in its header.jpg", GOOD, with_segment(JPEG, 0xE1, b"Exif\0\0" + encoded("JPEG"))
    yield "many fill bytes.jpg", GOOD, JPEG[:2] + b"\xff" * 40 + JPEG[2:]
    yield "largest comment.jpg", GOOD, with_segment(JPEG, 0xFE, b"x" * 65533)
    yield "trailing garbage.jpg", GOOD, JPEG + np.random.default_rng(5).bytes(3000)
    yield "trailing zeros.jpg", GOOD, JPEG + b"\0" * 5000
    yield "two jpegs in one.jpg", GOOD, JPEG + PROGRESSIVE
    yield "arithmetic coded.jpg", EITHER, changed(JPEG, start_of(0xC0), b"\xff\xc9")
    yield "lossless coded.jpg", BROKEN, changed(JPEG, start_of(0xC0), b"\xff\xc3")
    yield "12-bit.jpg", BROKEN, changed(changed(JPEG, start_of(0xC0), b"\xff\xc1"), start_of(0xC0) + 4, b"\x0c")
    yield "of one pixel.jpg", GOOD, encoded("JPEG", PICTURE.resize((1, 1)))
    yield "of one pixel.png", GOOD, encoded("PNG", PICTURE.resize((1, 1)))
    yield "one row.png", GOOD, encoded("PNG", PICTURE.resize((3000, 1)))
    yield "one column.jpg", GOOD, encoded("JPEG", PICTURE.resize((1, 3000)))
    yield "transparent.png", GOOD, encoded("PNG", PICTURE.convert("RGBA"))
    yield "palette.png", GOOD, encoded("PNG", PICTURE.convert("P"))
    yield "one bit.png", GOOD, encoded("PNG", PICTURE.convert("1"))
    yield "16-bit.png", GOOD, encoded("PNG", Image.fromarray(np.asarray(gray).astype(np.uint16) * 257))
    yield "text in it.png", GOOD, encoded("PNG", pnginfo=text)
    yield "trailing garbage.png", GOOD, encoded("PNG") + b"garbage"
    yield "wrong checksum.png", EITHER, changed(encoded("PNG"), 29, b"\0\0\0\0")
    yield "palette.bmp", EITHER, encoded("BMP", PICTURE.convert("P"))
    yield "animated.webp", EITHER, encoded("WEBP", save_all=True, append_images=[gray.convert("RGB")])
    yield "animated.png", EITHER, encoded("PNG", save_all=True, append_images=[gray.convert("RGB")])
    yield "lossy.webp", EITHER, encoded("WEBP", quality=80)
    yield "lossless.webp", EITHER, encoded("WEBP", lossless=True)


def changed_transform(jpeg: bytes, transform: int) -> bytes:
    """Return a JPEG whose Adobe segment says that its four channels are stored as YCCK."""
    at = jpeg.index(b"Adobe")
    return changed(jpeg, at + 11, bytes([transform]))


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """Return a JPEG with one more segment at its beginning."""
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content + jpeg[2:]


def odd_names() -> Iterator[tuple[str, str, bytes]]:
    """Sound pictures under names that programs get wrong."""
    for name in NAMES:
        yield f"{name}.jpg", GOOD, JPEG


def links_and_such(folder: Path) -> Iterator[tuple[str, str]]:
    """Make what is no plain file; yield names and kinds of what a list of images still has."""

    def at(name: str, kind: str, make: Callable[[Path], object]) -> tuple[str, str]:
        make(folder / name)
        return name, kind

    yield at("link to itself.jpg", BROKEN, lambda path: path.symlink_to(path.name))
    yield at("link to nowhere.jpg", BROKEN, lambda path: path.symlink_to("nowhere"))
    yield at("link to a picture.jpg", GOOD, lambda path: path.symlink_to("progressive.jpg"))
    yield at("no permission.jpg", BROKEN if os.geteuid() else GOOD, locked)
    for name, make in (
        ("a folder.jpg", Path.mkdir),
        ("link to a folder.jpg", lambda path: path.symlink_to(".")),
        ("link to its parents", lambda path: path.symlink_to("..")),
        ("pipe.jpg", os.mkfifo),
        ("link to a device.jpg", lambda path: path.symlink_to("/dev/zero")),
    ):
        make(folder / name)


def locked(path: Path) -> None:
    """Write a picture that only root can read."""
    path.write_bytes(JPEG)
    path.chmod(0)


def write_hostile_images(folder: Path) -> dict[str, str]:
    """Make them all below one class folder; return the kind of each path that a list of images has."""
    folder.mkdir(parents=True)
    kinds = {}
    for group in (truncations, flips, pretenders, giants, rare_but_right, odd_names):
        for name, kind, data in group():
            path = folder / name.replace("/", "_")
            assert os.fspath(path) not in kinds, name
            path.write_bytes(data)
            kinds[os.fspath(path)] = kind
    kinds |= {os.fspath(folder / name): kind for name, kind in links_and_such(folder)}
    return kinds
