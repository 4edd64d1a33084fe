"""Find what is wrong with a lesson or a solution as it is stored, without running it.

    python tools/check_notebooks.py [paths ...]                  one line for each fault, exit status 1; default: all
    python tools/check_notebooks.py --fix-metadata [paths ...]   put the metadata in order, in place

A notebook must have been run once, in order, and must carry what nbval compares. What others look at is left to them:
ruff reads the code, nbval runs it, and `tools/export.py --check` makes each sheet of `notebooks/exercises/` from its
solution. Run by `make check` and by the tests.
"""

import argparse
import copy
import json
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from markdown_it import MarkdownIt
from markdown_it.token import Token
from nbformat import NotebookNode, ValidationError

from helpers.files import ExitStatus, printable, write_whole

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
NOT_CHECKED = {".ipynb_checkpoints", "exercises"}  # folders

MAX_IGNORED_SHARE = 0.6  # of a lesson's code cells: nbval must have something left to compare
MAX_CODE_LINES = 30
MAX_CODE_WIDTH = 100  # what a page of 1,000 pixels shows
MAX_FIGURE_BYTES = 100_000
MAX_NOTEBOOK_BYTES = 1_500_000

IGNORE_TAG = "nbval-ignore-output"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KEPT_CELL_METADATA = ("nbgrader", "tags")

NBVAL_COMMENT = re.compile(r"^\s*#+\s*((?:NBVAL|PYTEST_VALIDATE)_\w+)\s*$", re.MULTILINE)
MACHINE_PATH = re.compile(
    r"(?:(?<![\w.~/\\$})\]-])|(?<=file://))"  # not inside a relative path, a longer path or a web address
    r"(?:/home/\w[\w.-]*|/Users/\w[\w.-]*|/root\b|/tmp/|/work/|/var/folders/)"
    r"|\b[A-Za-z]:[\\/]+Users\b"
)

Faults = Iterator[tuple[int | None, str]]  # the cell's number, counted from 1, and what is wrong with it


@dataclass(frozen=True)
class Notebook:
    """One notebook file: its path and what nbformat reads from it."""

    path: Path
    content: NotebookNode

    @cached_property
    def cells(self) -> list[tuple[int, NotebookNode]]:
        return list(enumerate(self.content.cells, start=1))

    @cached_property
    def code(self) -> list[tuple[int, NotebookNode]]:
        return [(number, cell) for number, cell in self.cells if cell.cell_type == "code"]

    @cached_property
    def prose(self) -> list[tuple[int, Token]]:
        """The Markdown tokens of each markdown cell, those inside paragraphs included."""
        cells = [(number, cell) for number, cell in self.cells if cell.cell_type == "markdown"]
        blocks = [(number, block) for number, cell in cells for block in MarkdownIt().parse(cell.source)]
        return [(number, token) for number, block in blocks for token in [block, *(block.children or ())]]

    def headings(self, tag: str) -> list[int]:
        """Return the number of the cell of each heading: `tag` is h1 or h2."""
        return [number for number, token in self.prose if token.type == "heading_open" and token.tag == tag]


def check(path: Path) -> list[str]:
    """Return the faults of one notebook, one line each; none when it is clean."""
    try:
        notebook = _read(path)
    except ValueError as error:
        return [str(error)]
    faults = [fault for rule in RULES for fault in rule(notebook)]
    faults.sort(key=lambda fault: fault[0] or 0)
    return [f"{_name(path)}: {f'cell {number}: ' if number else ''}{what}" for number, what in faults]


def fix_metadata(path: Path) -> bool:
    """Put a notebook's metadata in order, in place; return whether anything had to change."""
    content = _read(path).content
    fixed = _in_order(content)
    if fixed == content:
        return False
    write_whole(path, nbformat.v4.writes(fixed) + "\n")
    return True


# What a stored notebook is made of ------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    return printable(path.resolve().as_posix()).removeprefix(f"{ROOT.as_posix()}/")


def _read(path: Path) -> Notebook:
    """Read a notebook and see that it is valid: nbval does not insist on it, and `tools/export.py` relies on it."""
    try:
        content = nbformat.v4.reads(path.read_text(encoding="utf-8"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nbformat only warns of ids that are missing or given twice
            nbformat.validate(content, version=4, version_minor=5)
    except (OSError, ValueError, AttributeError, ValidationError, Warning) as error:  # AttributeError: a list
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"{_name(path)}: not valid in format 4.5: {found}; save it again from JupyterLab 4") from error
    return Notebook(path, content)


def _output_texts(cell: NotebookNode) -> Iterator[str]:
    for out in cell.get("outputs", []):
        yield out.get("text", "")
        for mime, data in out.get("data", {}).items():
            if not mime.startswith("image/"):
                yield data if isinstance(data, str) else json.dumps(data)


def _in_order(content: NotebookNode) -> NotebookNode:
    """Return a notebook's content without the metadata that differ from one machine or editor to the next."""
    ordered = copy.deepcopy(content)
    language = {key: value for key, value in content.metadata.get("language_info", {}).items() if key != "version"}
    ordered.metadata = {"kernelspec": KERNELSPEC, "language_info": {**language, "name": "python"}}
    for cell in ordered.cells:
        cell.metadata = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)}
    return ordered


# The rules: each takes a notebook and yields its faults ---------------------------------------------------------------


def _run_in_order(notebook: Notebook) -> Faults:
    """Name the first cell that was not run in its turn; nbval would not compare what a cell without a count prints."""
    for expected, (number, cell) in enumerate(notebook.code, start=1):
        count = cell.execution_count
        if count != expected:
            found = "was not run" if count is None else f"has execution count {count}, expected {expected}"
            yield number, f"{found}; delete it if it is empty, restart the kernel, run all cells, save"
            return


def _clean_outputs(notebook: Notebook) -> Faults:
    for number, cell in notebook.code:
        for out in cell.outputs:
            if out.output_type == "error":
                yield number, f"stored the error {out.ename}; show an expected error as a child process's outcome"
            if out.get("name") == "stderr":
                yield number, f"stored text on stderr ({out.text[:50]!r}); remove its cause or print it on stdout"
            if "application/vnd.jupyter.widget-view+json" in out.get("data", {}):
                yield number, "stored a live display, which nbval cannot compare; print text instead"


def _what_nbval_compares(notebook: Notebook) -> Faults:
    tags = [(number, tag) for number, cell in notebook.code for tag in cell.metadata.get("tags", [])]
    marks = [(number, tag) for number, tag in tags if tag.startswith("nbval-") or tag == "raises-exception"]
    marks += [(number, comment) for number, cell in notebook.code for comment in NBVAL_COMMENT.findall(cell.source)]
    for number, mark in marks:
        if mark != IGNORE_TAG:
            yield number, f"is marked {mark}; remove it: the only mark for nbval in use is the tag {IGNORE_TAG}"
    ignored, of_all = sum(tag == IGNORE_TAG for _, tag in tags), len(notebook.code)
    if ignored > MAX_IGNORED_SHARE * of_all and notebook.path.resolve().parent.name != "solutions":
        found = f"{ignored} of {of_all} code cells are tagged {IGNORE_TAG}, more than {MAX_IGNORED_SHARE:.0%}"
        yield None, f"{found}; print what holds on any machine in cells without it"


def _verdicts(notebook: Notebook) -> Faults:
    headings = notebook.headings("h2")
    waiting, unanswered = [], []  # ignored cells: that a verdict may still follow; that none follows in their section
    for number, cell in notebook.cells:
        if number in headings:
            # The opening, before the first section, only says which machine and data set these are.
            unanswered, waiting = (unanswered + waiting if number != headings[0] else unanswered), []
        elif IGNORE_TAG in cell.metadata.get("tags", []):
            waiting.append(number)
        elif any(out.get("name") == "stdout" for out in cell.get("outputs", [])):
            waiting = []
    for number in unanswered + waiting:
        yield number, f"is tagged {IGNORE_TAG} and its section ends without a verdict; print one in an untagged cell"


def _sizes(notebook: Notebook) -> Faults:
    size = notebook.path.stat().st_size
    if size > MAX_NOTEBOOK_BYTES:
        yield None, f"has {size:,} bytes, more than {MAX_NOTEBOOK_BYTES:,}; make its figures fewer or smaller"
    for number, cell in notebook.code:
        lines = cell.source.splitlines()
        longest = max(map(len, lines), default=0)
        if longest > MAX_CODE_WIDTH:
            yield number, f"has a line of {longest} characters, more than {MAX_CODE_WIDTH}; a page cuts it off"
        if len(lines) > MAX_CODE_LINES:
            yield number, f"has {len(lines)} lines, more than {MAX_CODE_LINES}; split it or move a part of it"
        shown = [item for out in cell.outputs for item in out.get("data", {}).items()]
        for size in [len(data) * 3 // 4 for mime, data in shown if mime.startswith("image/")]:  # it is in base64
            if size > MAX_FIGURE_BYTES:
                yield number, f"shows a figure of {size:,} bytes, more than {MAX_FIGURE_BYTES:,}; lower its dpi"


def _machine_paths(notebook: Notebook) -> Faults:
    for number, cell in notebook.cells:
        if found := MACHINE_PATH.search(cell.source):
            yield number, f"names {found[0]!r}, a path of one machine; use a path relative to the course"
        for text in _output_texts(cell):
            if found := MACHINE_PATH.search(text):
                yield number, f"its output names {found[0]!r}, a path of one machine; print a relative path"


def _metadata(notebook: Notebook) -> Faults:
    if _in_order(notebook.content) != notebook.content:
        yield None, "metadata not in order; run python tools/check_notebooks.py --fix-metadata"


def _prose(notebook: Notebook) -> Faults:
    if notebook.headings("h1") != [1]:
        yield None, "must have one title, a line that starts with `# `, and have it in the first cell"
    for number, token in notebook.prose:
        if token.type == "text" and "!" in token.content:
            yield number, f"has an exclamation mark ({token.content!r}); end the sentence with a full stop"
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        link = urlsplit(target)
        if not (link.scheme or link.netloc or (notebook.path.parent / unquote(link.path)).exists()):
            yield number, f"links to {target}, which is not there; mend the link"


RULES = [
    _run_in_order,
    _clean_outputs,
    _what_nbval_compares,
    _verdicts,
    _sizes,
    _machine_paths,
    _metadata,
    _prose,
]


def find_notebooks(paths: list[Path]) -> list[Path]:
    """Return the lessons and solutions that the paths, files or folders, stand for, in order."""
    found = [one for path in paths for one in ([path] if path.is_file() else path.rglob("*.ipynb"))]
    return sorted({path for path in found if path.absolute().parent.name not in NOT_CHECKED})


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fix-metadata", action="store_true", help="put the metadata in order, in place")
    parser.add_argument("paths", nargs="*", type=Path, default=[NOTEBOOKS], help="notebooks or folders (default: all)")
    options = parser.parse_args(arguments)
    for path in options.paths:
        if not path.exists():
            parser.error(f"{path.as_posix()}: is not there; name a notebook or a folder")
    notebooks = find_notebooks(options.paths)
    if options.fix_metadata:
        try:
            fixed = [_name(path) for path in notebooks if fix_metadata(path)]
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return ExitStatus.CANNOT
        print("".join(f"{name}: metadata put in order\n" for name in fixed), end="")
        print(f"{len(fixed)} of {len(notebooks)} notebooks changed")
        return ExitStatus.FINE
    faults = [fault for path in notebooks for fault in check(path)]
    print("\n".join(faults) if faults else f"{len(notebooks)} notebooks checked, no fault found")
    return ExitStatus.FOUND if faults else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
