"""Folders of images as paths and labels; the pixels stay on the disk.

`find_images` and its two sisters make the list that every pipeline reads.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.files import printable

__all__ = ["ImageFiles", "course_images", "find_images", "find_labelled_images", "find_unlabelled_images"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "classname", "category", "target", "breed", "species", "y")
DEFAULT_COURSE_IMAGES = 2000
_PROJECT_ROOT = Path(__file__).resolve().parent.parent


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
        """Return the images at ``indices``, in that order.

        Raises
        ------
        TypeError
            If they are no whole numbers; ``np.flatnonzero(mask)`` turns a mask into indices.
        """
        indices = np.asarray(indices)
        if indices.size and not np.issubdtype(indices.dtype, np.integer):
            raise TypeError(f"indices are {indices.dtype}: give whole numbers (np.flatnonzero(mask) makes them)")
        indices = indices.astype(np.int64)
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
    inside a class folder belong to that class. Hidden files and files that are no images by their name are left out,
    and so are folders inside a class folder that are symbolic links: they could lead round in a circle. Pipes, sockets
    and devices that are named like images are left out with a warning: a program that opens a pipe waits without end.

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
    NotADirectoryError
        If it is a file.
    PermissionError
        If a folder may not be read.
    ValueError
        If all images are in the folder itself, so that no subfolder names their class.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(
            f"{printable(folder)}: no such folder; python data_scripts/make_images.py makes images to start with"
        )
    if not folder.is_dir():
        raise NotADirectoryError(f"{printable(folder)}: a file; give the folder that holds the class folders")
    class_folders = sorted(entry.name for entry in os.scandir(folder) if _is_class_folder(entry, folder))
    paths, labels, class_names = [], [], []
    for name in class_folders:
        members = _images_below(folder / name)
        if members:
            paths += members
            labels += [len(class_names)] * len(members)
            class_names.append(name)
    if not paths:
        if any(_is_image(entry.name) and _kind(entry) == "file" for entry in os.scandir(folder)):
            raise ValueError(
                f"{printable(folder)}: images but no class folders; move them to one subfolder per class (cat/, dog/)"
            )
        raise FileNotFoundError(f"{printable(folder)}: no images ({', '.join(IMAGE_SUFFIXES)}) in class folders")
    return ImageFiles(tuple(paths), np.array(labels), tuple(class_names))


def find_labelled_images(
    folder: str | os.PathLike, labels: str | os.PathLike, *, label_column: str | None = None
) -> ImageFiles:
    """List the images below a folder whose classes stand in a CSV file, as many competitions give them.

    Parameters
    ----------
    folder : path
        Images, flat or in folders.
    labels : path
        A CSV file with a line of column names. One column names the files: by path below the folder, by name, or by
        name without its ending.
    label_column : str, optional
        The column of the classes; by default the only other one, or the one that is called like a label.

    Returns
    -------
    ImageFiles
        In the order of the CSV file; classes in alphabetical order.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file, or no image in the folder.
    ValueError
        If it is no table, no column names the files, or it is not clear which one holds the classes.

    Warns
    -----
    UserWarning
        If lines name files that are not there, or files are in no line. Both are left out.
    """
    folder = Path(folder)
    images = _images_below(folder) if folder.is_dir() else []
    if not images:
        raise FileNotFoundError(f"{printable(folder)}: no images ({', '.join(IMAGE_SUFFIXES)})")
    columns, rows = _read_table(labels)
    by_name: dict[str, list[int]] = {}
    for place, path in enumerate(images):
        relative = os.path.relpath(path, folder)
        for name in {relative, os.path.basename(path), os.path.splitext(os.path.basename(path))[0]}:
            by_name.setdefault(name, []).append(place)
    found = [sum(row[column] in by_name for row in rows) for column in range(len(columns))]
    if not any(found):
        raise ValueError(f"{printable(labels)}: no column names files below {printable(folder)}")
    name_column = found.index(max(found))
    class_column = _class_column(labels, columns, name_column, label_column)
    ambiguous = [row[name_column] for row in rows if len(by_name.get(row[name_column], ())) > 1]
    if ambiguous:
        raise ValueError(
            f"{printable(labels)}: {printable(ambiguous[0])} names several files; give paths below the folder"
        )
    label_of = {by_name[row[name_column]][0]: row[class_column] for row in rows if row[name_column] in by_name}
    _warn_of_missing(labels, len(rows) - sum(row[name_column] in by_name for row in rows), len(images) - len(label_of))
    class_names = sorted(set(label_of.values()))
    numbers = {name: number for number, name in enumerate(class_names)}
    indices = np.array([numbers[name] for name in label_of.values()])
    return ImageFiles(tuple(images[place] for place in label_of), indices, tuple(class_names))


def _read_table(path: str | os.PathLike) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and the lines that have as many."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        try:
            columns = next(csv.reader([header], delimiter=delimiter), [])
            return columns, [row for row in csv.reader(file, delimiter=delimiter) if len(row) == len(columns)]
        except csv.Error as error:
            raise ValueError(f"{printable(path)}: not a table of labels ({error})") from None


def _class_column(labels: str | os.PathLike, columns: list[str], name_column: int, wanted: str | None) -> int:
    others = [number for number in range(len(columns)) if number != name_column]
    if wanted is not None:
        others = [number for number in others if columns[number] == wanted]
    elif len(others) > 1:
        others = [number for number in others if columns[number].strip().lower() in _LABEL_NAMES]
    if len(others) != 1:
        raise ValueError(f"{printable(labels)}: which of the columns {', '.join(columns)} holds the classes?")
    return others[0]


def _warn_of_missing(labels: str | os.PathLike, lines: int, files: int) -> None:
    if lines:
        warnings.warn(f"{printable(labels)}: {lines:,} lines name files that are not there", stacklevel=3)
    if files:
        warnings.warn(f"{printable(labels)}: {files:,} files are in no line; left out", stacklevel=3)


def find_unlabelled_images(folder: str | os.PathLike) -> ImageFiles:
    """List all images below a folder, as one class named after the folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no image in it.
    """
    images = _images_below(Path(folder)) if os.path.isdir(folder) else []
    if not images:
        raise FileNotFoundError(f"{printable(folder)}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return ImageFiles(tuple(images), np.zeros(len(images), np.int64), (Path(folder).resolve().name,))


def _is_class_folder(entry: os.DirEntry, folder: Path) -> bool:
    """Leave out what is hidden, and a link back to the folder or above it: it would list every image twice."""
    if entry.name[0] == "." or not os.path.isdir(entry.path):
        return False
    return not entry.is_symlink() or not folder.resolve().is_relative_to(Path(entry.path).resolve())


def _is_image(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)


def _images_below(folder: Path) -> list[str]:
    found, special, ahead = [], [], [os.fspath(folder)]
    while ahead:
        with os.scandir(ahead.pop()) as entries:  # os.walk would leave out a folder that it may not read
            here = sorted(entries, key=lambda entry: entry.name)
        kinds = [_kind(entry) for entry in here]
        images = [(entry.path, kind) for entry, kind in zip(here, kinds, strict=True) if _is_image(entry.name)]
        found += [path for path, kind in images if kind == "file"]
        special += [path for path, kind in images if kind == "special"]
        folders = [entry for entry, kind in zip(here, kinds, strict=True) if kind == "folder"]
        ahead += [entry.path for entry in reversed(folders) if entry.name[0] != "." and not entry.is_symlink()]
    if special:
        what = f"{len(special):,} that are no regular files, but pipes, sockets or devices, such as"
        warnings.warn(f"left out: {what} {printable(special[0])}", stacklevel=3)
    return found


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_symlink() and not os.path.exists(entry.path) else "special"
    except OSError:
        return "file"  # a link to itself stays in the list, like a broken link: reading it raises a clear error


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
    ValueError
        If the count is no whole number above zero.
    """
    wanted = os.environ.get("COURSE_IMAGES", DEFAULT_COURSE_IMAGES) if count is None else count
    if not str(wanted).isdecimal() or int(wanted) < 1:
        raise ValueError(f"{wanted!r} images: give a whole number above zero (count, or COURSE_IMAGES)")
    count = int(wanted)
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
    try:
        files = find_images(folder)
    except FileNotFoundError:
        return ImageFiles((), np.array([], np.int64), ())
    numbers = [Path(path).stem for path in files.paths]
    return files.select([i for i, number in enumerate(numbers) if number.isdecimal() and int(number) < count])
