"""Tables of labels, as competitions and spreadsheets give them: which column names the files, which one the classes."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.files import printable
from helpers.remote import is_address, read_address

__all__ = ["names_files", "read_labels"]

_LABEL_NAMES = {
    *("label", "labels", "class", "class_name", "classname", "category", "target", "y"),
    *("diagnosis", "breed", "species"),
}
_ONE_CLASS = "the pipelines take one class for each image"
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Table:
    name: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]  # where each row ends in the file

    def column(self, number: int) -> list[str]:
        return [row[number] for row in self.rows]

    def without_header(self) -> _Table:
        columns = [f"column {number}" for number in range(1, len(self.columns) + 1)]
        return _Table(self.name, columns, [self.columns, *self.rows], [1, *self.lines])


def read_labels(
    folder: str | os.PathLike, images: Sequence[str], path: str | os.PathLike, *, label_column: str | None = None
) -> dict[str, str]:
    """Return the class of each image that a table names.

    Parameters
    ----------
    folder : path
        The images' folder.
    images : sequence of str
        Their paths, below `folder`.
    path : path
        A table in UTF-8 or UTF-16 with commas, semicolons, tabs, bars or blanks between its columns. It may lack a line
        of column names. Names of files match in any case, with or without folders and ending.
    label_column : str, optional
        The column of the classes; by default the only other one, or the one that is called like a label. Columns of 0
        and 1 of which each row has a single 1 are read as one class for each column.

    Returns
    -------
    dict of str to str
        The class by path, in the table's order.

    Raises
    ------
    OSError
        If the table cannot be read.
    ValueError
        If it is no table, no column names files, it is not clear which one holds the classes, or what it says is no
        class for each image: several labels, none, or real numbers.

    Warns
    -----
    UserWarning
        If rows name files that are not there, files are in no row, or names lost their leading zeros.
    """
    table = _read(path)
    names = _Names(folder, images)
    column, found = _file_column(table, names, label_column)
    if names.match([table.columns[column]])[0]:
        table = table.without_header()
        column, found = _file_column(table, names, label_column)
    classes: dict[str, str] = {}
    labels = _labels(table, column, label_column)
    for row, label, line, places in zip(table.rows, labels, table.lines, found, strict=True):
        if not places:
            continue
        if len(places) > 1:
            raise ValueError(f"{table.name}: {printable(row[column])} names several files; give paths below the folder")
        if not label:
            raise ValueError(f"{table.name}, line {line}: no label; fill it in, or remove the line")
        image = images[min(places)]
        if classes.setdefault(image, label) != label:
            both = f"{printable(classes[image])} and {printable(label)}"
            found_at = f"{table.name}, line {line}: {printable(row[column])} has several labels ({both})"
            raise ValueError(f"{found_at}; keep one line for each image")
    if lines := sum(not places for places in found):
        warnings.warn(f"{table.name}: {lines:,} lines name files that are not there", stacklevel=3)
    if files := len(images) - len(classes):
        warnings.warn(f"{table.name}: {files:,} files are in no line; left out", stacklevel=3)
    return classes


def names_files(folder: str | os.PathLike, images: Sequence[str], path: str | os.PathLike) -> bool:
    """Tell whether a file is a table with a column that names images below a folder."""
    try:
        _file_column(_read(path), _Names(folder, images), None)
    except (OSError, ValueError):
        return False
    return True


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(path: str | os.PathLike) -> _Table:
    data = read_address(path) if is_address(path) else Path(path).read_bytes()
    name = printable(path)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = data.decode(encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "replace")
    stated = re.match(r"sep=(.)\r?\n", text)  # Excel's own first line
    start = stated.end() if stated else 0
    first = text[start:].partition("\n")[0]
    delimiter = stated[1] if stated else max(",;\t| ", key=first.count)
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] = []
    rows, lines = [], []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            line = reader.line_num + bool(stated)
            while columns and len(cells) > len(columns) and not cells[-1]:
                cells.pop()  # a comma at the end of each line
            if not any(cells):
                continue
            if not columns:
                columns = cells
            elif len(cells) != len(columns):
                raise ValueError(f"{name}, line {line}: {len(cells)} fields, and the first line has {len(columns)}")
            else:
                rows.append(cells)
                lines.append(line)
    except csv.Error as error:
        raise ValueError(f"{name}: not a table of labels ({error})") from None
    return _Table(name, columns, rows, lines)


# ---- the column that names the files ---------------------------------------------------------------------------------


class _Names:
    """Images by each name that a table may give them."""

    def __init__(self, folder: str | os.PathLike, images: Sequence[str]):
        self.folder, self.an_image = os.path.basename(os.path.realpath(folder)).casefold(), os.path.basename(images[0])
        self._exact, self._alike = defaultdict(set), defaultdict(set)
        self.by_number = defaultdict(set)
        for place, path in enumerate(images):
            for name in (os.path.relpath(path, folder), os.path.basename(path)):
                for form in (name, os.path.splitext(name)[0]):
                    self._exact[form].add(place)
                    self._alike[_plain(form)].add(place)
                    if form.isdecimal():
                        self.by_number[int(form)].add(place)

    def match(self, given: Sequence[str]) -> list[set[int]]:
        """Return the places of the images that each name fits: as it is, or without folders in front of it."""
        found = [self._exact.get(name) or self._alike.get(_plain(name), set()) for name in given]
        shorter = {at: self._without_front(given[at]) for at, places in enumerate(found) if not places}
        shorter = {at: tail for at, tail in shorter.items() if tail}
        if any(front == self.folder for front, _ in shorter.values()):  # test/1.jpg is none of the images in train/
            shorter = {at: (front, places) for at, (front, places) in shorter.items() if front == self.folder}
        return [shorter[at][1] if at in shorter else places for at, places in enumerate(found)]

    def _without_front(self, name: str) -> tuple[str, set[int]] | None:
        """Return the last folder that has to go from the front of a name, and what the rest fits."""
        parts = _plain(name).split("/")
        for start in range(1, len(parts)):
            if places := self._alike.get("/".join(parts[start:])):
                return parts[start - 1], places
        return None


def _plain(name: str) -> str:
    """Return a name as it is compared: slashes one way, one Unicode form, no matter of case."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/")).casefold().removeprefix("./")


def _file_column(table: _Table, names: _Names, label_column: str | None) -> tuple[int, list[set[int]]]:
    """Return the column that names files, and what each of its names fits. Names are unique; labels are not."""
    candidates = [number for number, name in enumerate(table.columns) if name != label_column]
    matches = {number: names.match(table.column(number)) for number in candidates}
    scores = {number: _score(table.column(number), found) for number, found in matches.items()}
    best = max(candidates, key=lambda number: scores[number], default=None)
    if best is not None and scores[best][1]:
        return best, matches[best]
    for number in candidates:
        given = table.column(number)
        found = [names.by_number.get(int(name), set()) if name.isdecimal() else set() for name in given]
        if any(found) and len(set(given)) == len(given):
            example = next(name for name, places in zip(given, found, strict=True) if places)
            message = f"{table.name}: leading zeros are missing in {printable(table.columns[number])}, as in {example}"
            warnings.warn(f"{message}; matched by number", stacklevel=4)
            return number, found
    example = next((cell for row in table.rows for cell in row[:1]), "nothing")
    found = f"it says {printable(example)!r}, and a file there is {printable(names.an_image)!r}"
    raise ValueError(f"{table.name}: no column names files of the folder; {found}")


def _score(given: list[str], found: list[set[int]]) -> tuple[bool, int, int]:
    matched = [name for name, places in zip(given, found, strict=True) if places]
    return bool(matched) and len(set(matched)) == len(matched), len(matched), sum("." in name for name in matched)


# ---- the column of classes -------------------------------------------------------------------------------------------


def _labels(table: _Table, file_column: int, wanted: str | None) -> list[str]:
    """Return a class for each row."""
    others = [at for at in range(len(table.columns)) if at != file_column and not _is_row_number(table, at)]
    if wanted is not None:
        chosen = [at for at in others if table.columns[at] == wanted.strip()]
    elif len(others) > 1:
        chosen = [at for at in others if table.columns[at].lower() in _LABEL_NAMES]
    else:
        chosen = others
    if len(chosen) == 1:
        return _checked(table, table.column(chosen[0]), is_asked_for=wanted is not None)
    if wanted is None and len(others) > 1 and not chosen and (classes := _one_hot(table, others)):
        return classes
    columns = ", ".join(printable(name) for name in table.columns)
    raise ValueError(f"{table.name}: which of the columns {columns} holds the classes? Name it (label_column)")


def _is_row_number(table: _Table, at: int) -> bool:
    numbers = [str(number) for number in range(len(table.rows))]
    return table.columns[at].lower() in ("", "unnamed: 0") and table.column(at) == numbers


def _one_hot(table: _Table, columns: list[int]) -> list[str] | None:
    """Return the column with the 1 of each row, or None where not all of them are 0 or 1."""
    rows = [[row[at] for at in columns] for row in table.rows]
    if not all(re.fullmatch(r"[01](\.0*)?", cell) for row in rows for cell in row):
        return None
    marked = [[at for at, cell in zip(columns, row, strict=True) if cell[0] == "1"] for row in rows]
    for line, ones in zip(table.lines, marked, strict=True):
        if len(ones) != 1:
            raise ValueError(f"{table.name}, line {line}: {len(ones)} of {len(columns)} classes are 1; {_ONE_CLASS}")
    return [table.columns[ones[0]] for ones in marked]


def _checked(table: _Table, labels: list[str], *, is_asked_for: bool) -> list[str]:
    """Return the labels, with 1.0 written as 1; raise a ValueError unless each image has a single class."""
    different = set(labels) - {""}
    if all(_NUMBER.fullmatch(label) for label in different):
        if broken := next((label for label in different if float(label) % 1), None):
            raise ValueError(f"{table.name}: labels are real numbers, such as {broken}; {_ONE_CLASS}")
        if any(re.search(r"[.e]", label, re.IGNORECASE) for label in different):
            return [label and str(int(float(label))) for label in labels]
    for separator in "|;, ":
        parts = {label: [part.strip() for part in label.split(separator) if part.strip()] for label in different}
        several = [label for label, tokens in parts.items() if len(tokens) > 1]
        tokens = Counter(token for label in different for token in set(parts[label]))
        is_list = any(all(tokens[token] > 1 for token in parts[label]) for label in several)
        is_list = is_list or len(tokens) < len(different)
        if separator == " ":  # names of classes have blanks, too
            is_list = 3 * len(tokens) < len(different)
        if several and is_list:
            example = printable(min(several))
            raise ValueError(f"{table.name}: several labels in one cell, such as {example!r}; {_ONE_CLASS}")
    if len(different) == len(labels) > 20 and not is_asked_for:
        raise ValueError(
            f"{table.name}: every line has another label, such as {printable(labels[0])!r}; which column holds classes?"
        )
    return labels
