"""What lies in a folder: images, tables, and everything that is left out, with the reason.

Every list of images in the course and every check of a folder starts from `list_folder`, so all see the same files.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from helpers.files import printable
from helpers.remote import is_address, list_address

__all__ = ["IMAGE_SUFFIXES", "NO_REGULAR_FILE", "Listing", "list_folder"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")  # what every pipeline reads
_OTHER_IMAGES = (
    *(".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".dng", ".cr2", ".nef", ".arw"),
    *(".ppm", ".pgm", ".pnm", ".tga", ".exr", ".hdr", ".dcm", ".psd", ".svg"),
)
_TABLES = (".csv", ".tsv", ".txt")
_SYSTEM_FOLDERS = {
    *("@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information", "__macosx"),
}
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM")
_TO_START_WITH = "; python data_scripts/make_images.py makes images to start with"
NO_REGULAR_FILE = "no regular files, but pipes, sockets or devices"


@dataclass
class Listing:
    """What `list_folder` found.

    Attributes
    ----------
    folder : str
    images : dict of str to list of str
        Paths of images for each folder directly below, in alphabetical order; those that lie beside these folders
        under an empty name. A folder without images has an empty list.
    left_out : dict of str to list of str
        Paths for each reason: an ending (``.tif``), ``no ending``, ``hidden`` and others.
    tables : list of str
        CSV, TSV and text files directly in the folder.
    links : list of str
        Links to folders that were followed.
    unreadable : list of OSError
        One for each folder that could not be read.
    """

    folder: str
    images: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    tables: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unreadable: list[OSError] = field(default_factory=list)

    def all_images(self) -> list[str]:
        """Return the paths of all images, those beside the class folders first."""
        return [path for group in ("", *sorted(self.images.keys() - {""})) for path in self.images[group]]

    def unread_images(self) -> Counter:
        """Count the images, by their ending, in formats that not every pipeline reads."""
        return Counter({end: len(paths) for end, paths in self.left_out.items() if end in _OTHER_IMAGES})

    def describe(self) -> list[str]:
        """Return a line for what was left out, for tables and for links, where there are any."""
        lines = []
        if self.left_out:
            counts = sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
            lines.append("left out: " + ", ".join(f"{len(paths):,} {printable(reason)}" for reason, paths in counts))
        if self.tables:
            lines.append("tables: " + ", ".join(printable(os.path.basename(path)) for path in self.tables))
        if self.links:
            such = f"{printable(self.links[0])} to {printable(os.path.realpath(self.links[0]))}"
            lines.append(f"followed {len(self.links):,} links to folders, such as {such}")
        return lines


def list_folder(folder: str | os.PathLike) -> Listing:
    """List everything below a folder.

    An image is known by its ending (`IMAGE_SUFFIXES`); a file without ending, by its first bytes. Links to folders are
    followed, but no folder is read twice for one class. Hidden files and folders, and the folders in which
    systems keep deleted files and thumbnails, are left out.

    The folder may be an address that fsspec knows, such as ``s3://bucket/images``, or that of a manifest,
    ``https://host/images.txt``; see `remote.list_address`. Then every image is known by its ending.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    NotADirectoryError
        If it is a file.
    ValueError
        If it is an address, and a package is missing that reads such addresses.
    """
    name = os.fspath(folder)
    if is_address(name):
        return _list_address(name)
    if re.match(r"[a-z][a-z0-9+.-]+:/[^/]", name) and not os.path.exists(name):
        raise FileNotFoundError(f"{printable(name)}: no such folder; give an address as a str: a Path drops a slash")
    if not os.path.exists(name):
        raise FileNotFoundError(f"{printable(name)}: no such folder{_TO_START_WITH}")
    if not os.path.isdir(name):
        raise NotADirectoryError(f"{printable(name)}: a file; give the folder that holds the images")
    listing = Listing(name)
    real = os.path.realpath(name)
    for top in _read(name, listing, listing.images.setdefault("", []), is_top=True):
        seen, ahead = {real}, [top]
        while ahead:
            path = ahead.pop()
            if _leads_back(path, seen):
                listing.left_out["links to folders listed already"].append(path)
                continue
            seen.add(os.path.realpath(path))
            listing.links += [path] if os.path.islink(path) else []
            group = listing.images.setdefault(os.path.basename(top), [])
            ahead += reversed(_read(path, listing, group))
    return listing


def _list_address(address: str) -> Listing:
    is_manifest = address.startswith(("http://", "https://"))
    folder = address.rpartition("/")[0] if is_manifest else address.rstrip("/")
    listing = Listing(folder, images={"": []})
    for path in list_address(address):
        # An address in a manifest that lies elsewhere has its class in the folder around it.
        inside = path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else "/".join(path.split("/")[-2:])
        *folders, name = inside.split("/")
        end = os.path.splitext(name)[1].lower()
        if any(part.startswith(".") for part in (*folders, name)):
            listing.left_out["hidden"].append(path)
        elif end in IMAGE_SUFFIXES:
            listing.images.setdefault(folders[0] if folders else "", []).append(path)
        elif name:  # a store may hold an empty object in the place of a folder
            listing.left_out[end or "without ending"].append(path)
    return listing


def _read(folder: str, listing: Listing, images: list[str], *, is_top: bool = False) -> list[str]:
    """Add what lies directly in a folder to `images` and to the listing; return the folders in it."""
    try:
        with os.scandir(folder) as entries:  # os.walk would leave out a folder that it may not read
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        listing.unreadable.append(error)
        return []
    folders = []
    for entry in here:
        kind = _kind(entry)
        end = os.path.splitext(entry.name)[1].lower()
        if entry.name[0] == ".":
            listing.left_out["hidden"].append(entry.path)
        elif kind == "folder" and entry.name.lower() in _SYSTEM_FOLDERS:
            listing.left_out[f"folders {entry.name}"].append(entry.path)
        elif kind == "folder":
            folders.append(entry.path)
        elif kind == "special":
            listing.left_out[NO_REGULAR_FILE].append(entry.path)
        elif end in IMAGE_SUFFIXES or (not end and _is_image_inside(entry.path)):
            images.append(entry.path)
        elif is_top and end in _TABLES:
            listing.tables.append(entry.path)
        else:
            listing.left_out[end or "without ending"].append(entry.path)
    return folders


def _leads_back(path: str, seen: set[str]) -> bool:
    """Tell whether a folder was read before by another way, or holds one that was: links make circles."""
    target = os.path.realpath(path)
    return target in seen or any(folder.startswith(os.path.join(target, "")) for folder in seen)


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_symlink() and not os.path.exists(entry.path) else "special"
    except OSError:
        return "file"  # a link to itself stays in the list, like a broken link: reading it raises a clear error


def _is_image_inside(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
