"""Folders of images as paths and labels, and one image as pixels.

Called by every lesson and every pipeline. Needs numpy and OpenCV, and nothing else of the course, so that a pipeline
copied into another project needs this one file beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

__all__ = ["ImageFiles", "course_images", "find_images", "read_image"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DEFAULT_COURSE_IMAGES = 2000
_PROJECT_ROOT = Path(__file__).resolve().parent.parent
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths and labels of images on disk; the pixels stay there.

    Attributes
    ----------
    paths : tuple of str
        One path per image.
    labels : numpy.ndarray
        Class index per image, shape ``(n,)``, int64; position ``i`` belongs to ``paths[i]``.
    class_names : tuple of str
        ``class_names[label]`` is the name of a class.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self):
        paths = tuple(os.fspath(path) for path in self.paths)
        labels = np.array(self.labels)
        names = tuple(self.class_names)
        if labels.shape != (len(paths),):
            raise ValueError(f"{len(paths):,} paths but labels of shape {labels.shape}: give one label for each path")
        if len(labels) and not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels are {labels.dtype}: they must be class indices (integers)")
        if len(labels) and (labels.min() < 0 or labels.max() >= len(names)):
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}, but there are {len(names)} class names"
            )
        labels = labels.astype(np.int64)
        labels.setflags(write=False)
        object.__setattr__(self, "paths", paths)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageFiles({len(self):,} images, {len(self.class_names)} classes)"

    def select(self, indices: Sequence[int] | np.ndarray) -> ImageFiles:
        """Return the images at ``indices``, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return ImageFiles(tuple(self.paths[i] for i in indices), self.labels[indices], self.class_names)

    def take(self, count: int) -> ImageFiles:
        """Return ``count`` images spread evenly over the list, so that every class keeps its share.

        Raises
        ------
        ValueError
            If there are fewer images than ``count``; `repeat_to` makes a longer list.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"cannot take {count:,} of {len(self):,} images; use repeat_to() for a longer list")
        return self.select(np.arange(count) * len(self) // max(count, 1))

    def split(self, fraction: float, *, seed: int = 0) -> tuple[ImageFiles, ImageFiles]:
        """Split into two lists that share no image, each class in the same proportion.

        Parameters
        ----------
        fraction : float
            Share of the second list, between 0 and 1; ``train, validation = files.split(0.2)``.
        seed : int
            The same seed gives the same split.

        Returns
        -------
        tuple of ImageFiles
            Both in the order of the original list.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}: give a share between 0 and 1")
        rng = np.random.default_rng(seed)
        in_second = np.zeros(len(self), dtype=bool)
        for label in range(len(self.class_names)):
            members = rng.permutation(np.flatnonzero(self.labels == label))
            in_second[members[: round(fraction * len(members))]] = True
        return self.select(np.flatnonzero(~in_second)), self.select(np.flatnonzero(in_second))

    def repeat_to(self, count: int) -> ImageFiles:
        """Return a list of ``count`` entries that names the same files again and again.

        A list as long as a large data set's, without the disk space: 82,783 entries stand in for COCO train2014.
        """
        if count < 0 or not len(self):
            raise ValueError(f"cannot repeat {len(self):,} images to {count:,}")
        return self.select(np.arange(count) % len(self))

    def bytes_on_disk(self) -> int:
        """Return the size of all files together, in bytes; a file named twice counts twice."""
        return sum(os.stat(path).st_size for path in self.paths)


def find_images(folder: str | os.PathLike) -> ImageFiles:
    """List the images in a folder that has one subfolder per class.

    Classes are the subfolders in alphabetical order; files are in alphabetical order within their class. Folders
    inside a class folder belong to that class. Hidden files and files that are no images by their name are left out.

    Parameters
    ----------
    folder : path
        For example ``data/train`` with ``data/train/cat/0001.jpg``.

    Returns
    -------
    ImageFiles

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or no image is in it.
    ValueError
        If images lie in the folder itself: there is no class to give them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; python data_scripts/make_images.py makes images to start with"
        )
    class_folders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    paths, labels, class_names = [], [], []
    for name in class_folders:
        members = _images_below(folder / name)
        if members:
            paths += members
            labels += [len(class_names)] * len(members)
            class_names.append(name)
    if not paths:
        if any(_is_image(entry.name) for entry in os.scandir(folder)):
            raise ValueError(
                f"{folder}: images but no class folders; move them to one subfolder per class (cat/, dog/)"
            )
        raise FileNotFoundError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in its class folders")
    return ImageFiles(tuple(paths), np.array(labels), tuple(class_names))


def _is_image(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)


def _images_below(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [os.path.join(parent, name) for name in sorted(names) if _is_image(name)]
    return found


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
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no image, or a truncated JPEG; the message names the file.
    """
    with open(path, "rb") as file:
        data = file.read()
    flag = {3: cv2.IMREAD_COLOR_RGB, 1: cv2.IMREAD_GRAYSCALE}[channels]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise
        image = None
    if image is None:
        found = "an empty file" if not data else f"{len(data):,} bytes that OpenCV cannot decode"
        raise ValueError(f"{path}: {found}; remove it or replace it")
    if _is_truncated_jpeg(data):
        raise ValueError(f"{path}: truncated JPEG ({len(data):,} bytes and no end); copy or download it again")
    if image_size is not None:
        height, width = image_size
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image if channels == 3 else image[:, :, np.newaxis]


def _is_truncated_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG stops before its end-of-image marker.

    OpenCV fills the missing part with grey and says nothing. Inside a scan every 0xFF is followed by 0x00, so a marker
    there is a marker: a file is complete when its last end-of-image comes after its last start-of-scan (a thumbnail in
    the header has both).
    """
    if not data.startswith(_JPEG_START) or data.endswith(_JPEG_END):
        return False
    return data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)


def course_images(count: int | None = None) -> ImageFiles:
    """Return the course's own images: the first ``count`` of `data/generated`, made now where they are missing.

    Parameters
    ----------
    count : int, optional
        By default the environment variable ``COURSE_IMAGES``, or 2,000.

    Raises
    ------
    RuntimeError
        If ``data_scripts/make_images.py`` could not make them; its message is included.
    """
    count = int(os.environ.get("COURSE_IMAGES", DEFAULT_COURSE_IMAGES)) if count is None else count
    folder = _PROJECT_ROOT / "data" / "generated"
    files = _first_images(folder, count)
    if len(files) < count:
        script = _PROJECT_ROOT / "data_scripts" / "make_images.py"
        command = [sys.executable, str(script), "--count", str(count), "--to", str(folder)]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode:
            raise RuntimeError(f"could not make the {count:,} images of the course:\n{made.stdout.strip()}")
        files = _first_images(folder, count)
    return files


def _first_images(folder: Path, count: int) -> ImageFiles:
    """Return the images numbered below ``count``; their file names are their numbers."""
    if not folder.is_dir() or not any(folder.glob("*/*.jpg")):
        return ImageFiles((), np.array([], np.int64), ())
    files = find_images(folder)
    return files.select([i for i, path in enumerate(files.paths) if int(Path(path).stem) < count])
