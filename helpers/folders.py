"""Folders of images as paths and labels; the pixels stay on the disk.

`find_images` and the functions beside it make the list that every pipeline reads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.files import printable
from helpers.listing import IMAGE_SUFFIXES, NO_REGULAR_FILE, Listing, list_folder
from helpers.remote import file_sizes, is_address
from helpers.tables import names_files, read_labels

__all__ = [
    "ImageFiles",
    "course_images",
    "find_any_images",
    "find_images",
    "find_labelled_images",
    "find_unlabelled_images",
    "is_part",
]

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
    summary : str
        What was found in the folder and what was left out; empty for a list made from another one.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    summary: str = ""

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
        """Return the size of all files together, in bytes; a file named twice counts twice.

        What lies behind an address counts, too: the store is asked for the size of each file, one request for each.
        """
        far = [path for path in self.paths if is_address(path)]
        return sum(os.stat(path).st_size for path in self.paths if not is_address(path)) + sum(file_sizes(far))


def find_images(folder: str | os.PathLike, *, class_names: Sequence[str] | None = None) -> ImageFiles:
    """List the images in a folder that has one subfolder per class.

    Classes are the subfolders in alphabetical order, or in the order of numbers where all of them are numbers; files
    are in alphabetical order within their class. Folders inside a class folder belong to that class. What is listed
    and what is left out: `helpers.listing.list_folder`.

    Parameters
    ----------
    folder : path
        For example ``data/train`` with ``data/train/cat/0001.jpg``; or an address, such as ``s3://bucket/train``.
    class_names : sequence of str, optional
        The classes and their order, where another list has set them:
        ``find_images("data/val", class_names=train.class_names)``.

    Returns
    -------
    ImageFiles
        Its `summary` says what was found, and what was left out.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or no image is in it.
    NotADirectoryError
        If it is a file.
    PermissionError
        If a folder may not be read.
    ValueError
        If the subfolders do not name classes: all images are in the folder itself, or in parts of the data such as
        train/ and val/, or in a single folder that has class folders. Or if `class_names` lacks a class.

    Warns
    -----
    UserWarning
        If a class has no images, images lie beside the class folders, or images are left out for their format.
    """
    listing = _list_images(folder)
    images = {name: paths for name, paths in listing.images.items() if name}
    if class_names is None:
        _require_classes(listing)
        class_names = sorted(images, key=_in_order_of_numbers(images))
        without = [name for name in class_names if not images[name]]
        class_names = [name for name in class_names if images[name]]
    else:
        class_names = list(class_names)
        without = [name for name in class_names if not images.get(name)]
        if others := sorted(name for name in images.keys() - set(class_names) if images[name]):
            raise ValueError(f"{printable(folder)}: {_some(others)} are not in class_names; move them, or add them")
        if len(without) == len(class_names):
            raise FileNotFoundError(f"{printable(folder)}: no images in folders of the names in class_names")
    if without:
        warnings.warn(f"{printable(folder)}: no images in {_some(without)}", stacklevel=2)
    if beside := listing.images[""]:
        listing.left_out["images beside the class folders"] = beside
        warnings.warn(
            f"{printable(folder)}: left out {len(beside):,} images beside the class folders, such as "
            f"{printable(os.path.basename(beside[0]))}",
            stacklevel=2,
        )
    return _image_files(listing, {path: name for name in class_names for path in images.get(name, ())}, class_names)


def find_labelled_images(
    folder: str | os.PathLike,
    labels: str | os.PathLike,
    *,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageFiles:
    """List the images below a folder whose classes stand in a table, as many competitions give them.

    Parameters
    ----------
    folder : path
        Images, flat or in folders.
    labels : path
        A table (CSV, TSV or text). One column names the files, another one the classes: see
        `helpers.tables.read_labels`.
    label_column : str, optional
        The column of the classes; by default the only other one, or the one that is called like a label.
    class_names : sequence of str, optional
        The classes and their order, where another list has set them.

    Returns
    -------
    ImageFiles
        In the order of the table; classes in alphabetical order, numbers in their own.

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
    listing = _list_images(folder)
    classes = read_labels(folder, listing.all_images(), labels, label_column=label_column)
    different = set(classes.values())
    if class_names is None:
        class_names = sorted(different, key=_in_order_of_numbers(different))
    elif others := sorted(different - set(class_names)):
        raise ValueError(f"{printable(labels)}: {_some(others)} are not in class_names")
    return _image_files(listing, classes, class_names)


def find_unlabelled_images(folder: str | os.PathLike) -> ImageFiles:
    """List all images below a folder, as one class named after the folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no image in it.
    """
    listing = _list_images(folder)
    name = Path(folder).resolve().name
    return _image_files(listing, dict.fromkeys(listing.all_images(), name), [name])


def find_any_images(
    folder: str | os.PathLike, labels: str | os.PathLike | None = None, *, label_column: str | None = None
) -> tuple[ImageFiles, str]:
    """List a folder of images as it is: class folders, a table of classes, or neither.

    Parameters
    ----------
    folder : path
    labels : path, optional
        A table; by default the only one in the folder that names images, where there are no class folders.
    label_column : str, optional
        As for `find_labelled_images`.

    Returns
    -------
    ImageFiles, str
        The list, and the call that gives it.

    Raises
    ------
    OSError, ValueError
        As `find_images` and `find_labelled_images` do; or if several tables name images.
    """
    listing = _list_images(folder)
    if labels is None and sum(map(bool, listing.images.values())) == 1:
        images = listing.all_images()
        tables = [table for table in listing.tables if names_files(folder, images, table)]
        if len(tables) > 1:
            several = _some(map(os.path.basename, tables))
            raise ValueError(f"{printable(folder)}: {several} all name images; give one of them (labels)")
        labels = tables[0] if tables else None
    shown = repr(os.fspath(folder))
    if labels is not None:
        column = f", label_column={label_column!r}" if label_column else ""
        call = f"find_labelled_images({shown}, {os.fspath(labels)!r}{column})"
        return find_labelled_images(folder, labels, label_column=label_column), call
    if listing.images[""] and not any(paths for name, paths in listing.images.items() if name):
        return find_unlabelled_images(folder), f"find_unlabelled_images({shown})"
    return find_images(folder), f"find_images({shown})"


def _list_images(folder: str | os.PathLike) -> Listing:
    """List a folder that holds images; warn of images that are left out."""
    listing = list_folder(folder)
    if listing.unreadable:
        raise listing.unreadable[0]
    others = listing.unread_images()
    counts = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common())
    if not listing.all_images():
        what = f"none but {counts}: convert them" if others else f"no images ({', '.join(IMAGE_SUFFIXES)})"
        raise FileNotFoundError(f"{printable(folder)}: {what}")
    if others:
        warnings.warn(f"{printable(folder)}: left out {counts}, which no pipeline reads; convert them", stacklevel=3)
    if special := listing.left_out.get(NO_REGULAR_FILE):
        found = f"{len(special):,} that are {NO_REGULAR_FILE}, such as {printable(special[0])}"
        warnings.warn(f"{printable(folder)}: left out {found}", stacklevel=3)
    return listing


# Folders that are parts of a data set, or kinds of pictures: a network that tells them apart learns nothing.
_PART = re.compile(
    r"(train|training|val|valid|validation|dev|eval|test|testing|holdout|unlabell?ed|fold|split|part)[-_ ]?\d*"
    r"|(train|val|test)(19|20)\d\d|(images?|imgs?|jpe?gimages|photos?|pictures?|masks?|labels?|annotations?|segmentations?"
    r"|ground_?truth|gt|depth)([-_](train|val|test))?",
    re.IGNORECASE,
)


def is_part(name: str) -> bool:
    """Tell whether a folder is, by its name, a part of a data set, such as train or val, and no class."""
    return bool(_PART.fullmatch(name))


def _require_classes(listing: Listing) -> None:
    """Raise a ValueError where the folders do not name classes, with what to give in their place."""
    here = printable(listing.folder)
    images = {name: paths for name, paths in listing.images.items() if name and paths}
    if not images:
        if listing.tables:
            call = f"find_labelled_images({here!r}, {printable(listing.tables[0])!r})"
            raise ValueError(f"{here}: images but no class folders; if a table names their classes, {call}")
        raise ValueError(f"{here}: images but no class folders; move them to one subfolder per class (cat/, dog/)")
    inside = {name: _folders_below(os.path.join(listing.folder, name), paths) for name, paths in images.items()}
    first = min(images, key=lambda name: (not name.lower().startswith("train"), name))
    below = printable(os.path.join(listing.folder, first))
    if all(is_part(name) for name in images):
        found = f"{_some(sorted(images))}: parts of a data set by their names, not classes"
    elif len(images) == 1:
        wrapper, folders = os.path.join(listing.folder, first), inside[first]
        while len(folders) == 1 and "" not in folders:  # flowers/flowers/rose
            wrapper = os.path.join(wrapper, *folders)
            folders = _folders_below(wrapper, images[first])
        if "" in folders:
            return
        raise ValueError(f"{here}: all images are in folders of {printable(wrapper)}; give that")
    elif "" not in (shared := set.intersection(*inside.values())) and len(shared) > 1:
        both = f"{_some(sorted(images))} all have folders {_some(sorted(shared))}"
        if all(is_part(name) for name in shared):
            raise ValueError(f"{here}: {both}; put the parts above the classes, or give class_names to take all parts")
        found = f"{both}: these look like the classes"
    else:
        return
    if "" not in inside[first]:
        give = f"find_images({below!r})"
    elif table := next(iter(sorted(listing.tables, key=lambda path: first.lower() not in path.lower())), None):
        give = f"find_labelled_images({below!r}, {printable(table)!r})"
    else:
        give = f"find_unlabelled_images({below!r})"
    raise ValueError(f"{here}: {found}; give one of them, as in {give}, or say class_names if they are classes")


def _folders_below(folder: str, images: list[str]) -> set[str]:
    """Return the folders directly below one that have images, and an empty name if images lie in it."""
    return {os.path.relpath(path, folder).rpartition(os.sep)[0].partition(os.sep)[0] for path in images}


def _in_order_of_numbers(names: Iterable[str]) -> Callable | None:
    return int if all(name.isdecimal() for name in names) else None


def _some(names: Iterable[str]) -> str:
    first, *others = map(printable, names)
    return ", ".join([first, *others[:4]]) + (f" and {len(others) - 4:,} more" if len(others) > 4 else "")


def _image_files(listing: Listing, classes: dict[str, str], class_names: Sequence[str]) -> ImageFiles:
    """Return the images with their classes, and a summary of all that was found."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[name] for name in classes.values()])
    counts = np.bincount(labels, minlength=len(numbers))
    found = _some(f"{name}: {count:,}" for name, count in zip(class_names, counts, strict=True))
    lines = [f"{len(labels):,} images, {len(numbers)} classes: {found}", *listing.describe()]
    return ImageFiles(tuple(classes), labels, tuple(class_names), "\n".join(lines))


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
