"""Find what is wrong with a lesson or a solution as it is stored, without running it.

    python tools/check_notebooks.py [paths ...]                  one line for each fault, exit status 1; default: all
    python tools/check_notebooks.py --fix-metadata [paths ...]   the same, and put metadata in order, in place

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
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from markdown_it import MarkdownIt
from markdown_it.token import Token
from nbformat import NotebookNode, ValidationError

from helpers.files import ExitStatus, printable, tolerant_streams, write_whole

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"

MAX_IGNORED_SHARE = 0.6  # of a lesson's code cells: nbval must have something left to compare
MAX_CODE_LINES = 30
MAX_LESSON = {"code cells": 45, "lines of code": 300, "words": 1300}  # of code, what is in sight
MAX_FIGURE_BYTES = 100_000
MAX_SLIDES, MAX_SLIDE_LINES = 8, 12  # of a lesson; of code on a slide, to be read from the last row
MAX_NOTEBOOK_BYTES = 1_500_000

IGNORE_TAG = "nbval-ignore-output"
SLIDE_TAG = "slide"  # tools/make_slides.py
SYMPTOM = "symptom"  # what one sees, for the index that tools/make_site.py makes: texts, exact where `in backticks`
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
NBVAL_COMMENT = re.compile(r"^\s*#+\s*((?:NBVAL|PYTEST_VALIDATE)_\w+)\s*$", re.MULTILINE)
MACHINE_PATH = re.compile(
    r"(?:(?<![\w.~/\\$})\]-])|(?<=file://))"  # not inside a relative path, a longer path or a web address
    r"(?:/home/\w[\w.-]*|/Users/\w[\w.-]*|/root\b|/tmp/|/work/|/var/folders/)"
    r"|\b[A-Za-z]:[\\/]+Users\b"
)

Cells = list[tuple[int, NotebookNode]]  # numbered from 1
Faults = Iterator[tuple[int, str]]  # a cell's number, or 0 for the whole notebook, and what is wrong with it


def check(path: Path, *, fix_metadata: bool = False) -> list[str]:
    """Return the faults of one notebook, one line each; or put its metadata in order and return the others."""
    try:
        notebook = _read(path)
    except ValueError as error:
        return [str(error)]
    cells = list(enumerate(notebook.cells, start=1))
    code = [(number, cell) for number, cell in cells if cell.cell_type == "code"]
    tokens = [(number, token) for number, cell in cells if cell.cell_type == "markdown" for token in _tokens(cell)]
    headings = [(number, token.tag) for number, token in tokens if token.type == "heading_open"]
    faults = [*_run_in_order(code), *_outputs(code), *_marks(code), *_verdicts(cells, headings), *_paths(cells)]
    faults += [*_slides(cells), *_symptoms(cells)]
    faults += _prose(tokens, path.parent)
    ignored, size = sum(IGNORE_TAG in cell.metadata.get("tags", []) for _, cell in code), path.stat().st_size
    if ignored > MAX_IGNORED_SHARE * len(code) and path.resolve().parent.name != "solutions":
        found = f"{ignored} of {len(code)} code cells are tagged {IGNORE_TAG}"
        faults.append((0, f"{found}, more than {MAX_IGNORED_SHARE:.0%}; print what holds on any machine in others"))
    if size > MAX_NOTEBOOK_BYTES:
        faults.append((0, f"has {size:,} bytes, more than {MAX_NOTEBOOK_BYTES:,}; make its figures fewer or smaller"))
    if path.resolve().parent.name == NOTEBOOKS.name:
        faults += [(0, fault) for fault in _size(notebook)]
    ordered = _in_order(notebook)
    if ordered != notebook and fix_metadata:
        write_whole(path, nbformat.v4.writes(ordered) + "\n")
    elif ordered != notebook:
        faults.append((0, "metadata not in order; run python tools/check_notebooks.py --fix-metadata"))
    if [number for number, tag in headings if tag == "h1"] != [1]:
        faults.append((0, "must have one title, a line that starts with `# `, and have it in the first cell"))
    in_order = sorted(faults, key=lambda fault: fault[0])
    return [f"{_name(path)}: {f'cell {number}: ' if number else ''}{what}" for number, what in in_order]


def _name(path: Path) -> str:
    return printable(path.resolve().as_posix()).removeprefix(f"{ROOT.as_posix()}/")


def _read(path: Path) -> NotebookNode:
    """Read a notebook and see that it is valid: nbval does not insist on it, and `tools/export.py` relies on it."""
    try:
        notebook = nbformat.v4.reads(path.read_text(encoding="utf-8"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nbformat only warns of ids that are missing or given twice
            nbformat.validate(notebook, version=4, version_minor=5)
    except (OSError, ValueError, AttributeError, ValidationError, Warning) as error:  # AttributeError: a list
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"{_name(path)}: not valid in format 4.5: {found}; save it again from JupyterLab 4") from error
    return notebook


def _tokens(cell: NotebookNode) -> list[Token]:
    """Return the Markdown tokens of a cell, those inside paragraphs included."""
    return [token for block in MarkdownIt().parse(cell.source) for token in [block, *(block.children or ())]]


def _in_order(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook without the metadata that differ from one machine or editor to the next."""
    ordered = copy.deepcopy(notebook)
    language = {key: value for key, value in notebook.metadata.get("language_info", {}).items() if key != "version"}
    ordered.metadata = {"kernelspec": KERNELSPEC, "language_info": {**language, "name": "python"}}
    for cell in ordered.cells:
        kept = {key: cell.metadata[key] for key in ("nbgrader", SYMPTOM, "tags") if cell.metadata.get(key)}
        cell.metadata = kept | ({"jupyter": {"source_hidden": True}} if _is_folded(cell) else {})
    return ordered


def _is_folded(cell: NotebookNode) -> bool:
    """Return whether JupyterLab shows only the output of a cell."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def _size(notebook: NotebookNode) -> Iterator[str]:
    seen = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not _is_folded(cell)]
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    lines, words = sum(len(source.splitlines()) for source in seen), sum(len(source.split()) for source in text)
    for (what, limit), found in zip(MAX_LESSON.items(), (len(seen), lines, words), strict=True):
        if found > limit:
            yield f"has {found:,} {what}, more than {limit:,}; move what a first reading can do without to in_depth/"


def _run_in_order(code: Cells) -> Faults:
    """Name the first cell that was not run in its turn; nbval would not compare what a cell without a count prints."""
    for expected, (number, cell) in enumerate(code, start=1):
        if cell.execution_count != expected:
            found = f"has execution count {cell.execution_count}, expected {expected}"
            yield number, f"{found}; delete it if it is empty, restart the kernel, run all cells, save"
            return


def _outputs(code: Cells) -> Faults:
    for number, cell in code:
        if (lines := len(cell.source.splitlines())) > MAX_CODE_LINES:
            yield number, f"has {lines} lines, more than {MAX_CODE_LINES}; split it or move a part of it"
        for out in cell.outputs:
            if out.get("name") == "stderr":
                yield number, f"stored text on stderr ({out.text[:50]!r}); remove its cause or print it on stdout"
            for mime, data in out.get("data", {}).items():
                if mime == "application/vnd.jupyter.widget-view+json":
                    yield number, "stored a live display, which nbval cannot compare; print text instead"
                size = len(data) * 3 // 4 if mime.startswith("image/") else 0  # it is in base64
                if size > MAX_FIGURE_BYTES:
                    yield number, f"shows a figure of {size:,} bytes, more than {MAX_FIGURE_BYTES:,}; lower its dpi"


def _marks(code: Cells) -> Faults:
    for number, cell in code:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("nbval-") or tag == "raises-exception"]
        for mark in [*tags, *NBVAL_COMMENT.findall(cell.source)]:
            if mark != IGNORE_TAG:
                yield number, f"is marked {mark}; remove it: the only mark for nbval in use is the tag {IGNORE_TAG}"


def _verdicts(cells: Cells, headings: list[tuple[int, str]]) -> Faults:
    sections = [number for number, tag in headings if tag == "h2"] or [1]
    # The opening, before the first section, only says which machine and data set these are.
    for start, end in zip(sections, [*sections[1:], len(cells) + 1], strict=True):
        waiting = []
        for number, cell in cells[start - 1 : end - 1]:
            if IGNORE_TAG in cell.metadata.get("tags", []):
                waiting.append(number)
            elif any(out.get("name") == "stdout" for out in cell.get("outputs", [])):
                waiting = []
        for number in waiting:
            yield number, f"is tagged {IGNORE_TAG} and its section ends without a verdict in an untagged cell"


def _texts(cell: NotebookNode) -> list[str]:
    """Return what a cell says: its source, and what it printed and showed as text."""
    texts = [cell.source]
    for out in cell.get("outputs", []):
        shown = [data for mime, data in out.get("data", {}).items() if not mime.startswith("image/")]
        texts += [out.get("text", ""), *(data if isinstance(data, str) else json.dumps(data) for data in shown)]
    return texts


def _slides(cells: Cells) -> Faults:
    slides = [(number, cell) for number, cell in cells if SLIDE_TAG in cell.metadata.get("tags", [])]
    if len(slides) > MAX_SLIDES:
        yield 0, f"has {len(slides)} slides, more than {MAX_SLIDES}; take the tag {SLIDE_TAG} from some cells"
    for number, cell in slides:
        figure = any(mime.startswith("image/") for out in cell.get("outputs", []) for mime in out.get("data", {}))
        lines = len(cell.source.splitlines()) if cell.cell_type == "code" else 0
        if lines > MAX_SLIDE_LINES and not figure and not _is_folded(cell):  # beside a figure no code is shown
            yield number, f"is a slide with {lines} lines of code, more than {MAX_SLIDE_LINES}; take another cell"


def _symptoms(cells: Cells) -> Faults:
    """Find what the index of symptoms quotes and this notebook does not say; `…` stands for any text."""
    words = " ".join(" ".join(text for _, cell in cells for text in _texts(cell)).split())
    for number, cell in cells:
        symptoms = cell.metadata.get(SYMPTOM, [])
        if not (isinstance(symptoms, list) and all(isinstance(one, str) and one.strip() for one in symptoms)):
            yield number, f"has {SYMPTOM} {symptoms!r}; make it a list of texts"
            continue
        for quoted in re.findall(r"`(.+?)`", " ".join(symptoms)):
            if not re.search(".{,300}?".join(map(re.escape, quoted.split("…"))), words):
                yield number, f"has the symptom {quoted!r}, which this notebook does not say; quote what it says"


def _paths(cells: Cells) -> Faults:
    for number, cell in cells:
        for found in filter(None, map(MACHINE_PATH.search, _texts(cell))):
            yield number, f"names {found[0]!r}, a path of one machine; use a path relative to the course"


def _prose(tokens: list[tuple[int, Token]], folder: Path) -> Faults:
    for number, token in tokens:
        if token.type == "text" and "!" in token.content:
            yield number, f"has an exclamation mark ({token.content!r}); end the sentence with a full stop"
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        link = urlsplit(target)
        if not (link.scheme or link.netloc or (folder / unquote(link.path)).exists()):
            yield number, f"links to {target}, which is not there; correct the link"


def find_notebooks(paths: list[Path]) -> list[Path]:
    """Return the lessons and solutions that the paths, files or folders, stand for, in order."""
    found = {one for path in paths for one in ([path] if path.is_file() else path.rglob("*.ipynb"))}
    return sorted(path for path in found if path.absolute().parent.name not in (".ipynb_checkpoints", "exercises"))


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    tolerant_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fix-metadata", action="store_true", help="put the metadata in order, in place")
    parser.add_argument("paths", nargs="*", type=Path, default=[NOTEBOOKS], help="notebooks or folders (default: all)")
    options = parser.parse_args(arguments)
    for path in options.paths:
        if not path.exists():
            parser.error(f"{path.as_posix()}: is not there; name a notebook or a folder")
    notebooks = find_notebooks(options.paths)
    faults = [fault for path in notebooks for fault in check(path, fix_metadata=options.fix_metadata)]
    print("\n".join(faults) if faults else f"{len(notebooks)} notebooks checked, no fault found")
    return ExitStatus.FOUND if faults else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
