"""Find what is wrong with a notebook as it is stored, without running it.

    python tools/check_notebooks.py [paths ...]                  one line for each fault, exit status 1; default: all
    python tools/check_notebooks.py --fix-metadata [paths ...]   put the metadata in order, in place

Lessons (`notebooks/`) and solutions (`notebooks/solutions/`) must have been run once, in order, and must carry what
nbval compares. Sheets (`notebooks/exercises/`) must be empty and match their solutions. Run by `make check` and by the
tests.
"""

import argparse
import base64
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"

MAX_IGNORED_SHARE = 0.6  # of a lesson's code cells: nbval must have something left to compare
MAX_CODE_LINES = 30
MAX_CODE_WIDTH = 100  # what a page of 1,000 pixels shows
MAX_FIGURE_BYTES = 100_000
MAX_NOTEBOOK_BYTES = 1_500_000

IGNORE_TAG = "nbval-ignore-output"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KEPT_CELL_METADATA = ("deletable", "editable", "nbgrader", "tags")
NORMALISE = "run python tools/check_notebooks.py --fix-metadata"

NBVAL_COMMENT = re.compile(r"^\s*#+\s*((?:NBVAL|PYTEST_VALIDATE)_\w+)\s*$", re.MULTILINE)
MACHINE_PATH = re.compile(
    r"(?:(?<![\w.~/\\$})\]-])|(?<=file://))"  # not inside a relative path, a longer path or a web address
    r"(?:/home/\w[\w.-]*|/Users/\w[\w.-]*|/root\b|/tmp/|/work/|/var/folders/)"
    r"|\b[A-Za-z]:[\\/]+Users\b"
)
FENCE = re.compile(r"^ {0,3}(```+|~~~+)[^\n]*\n.*?(?:^ {0,3}\1[^\S\n]*$|\Z)", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
MATHS = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^ {0,3}\[[^\]]+\]:\s*(\S+)|(?:href|src)=[\"']([^\"']+)", re.MULTILINE)
EXCLAMATION = re.compile(r"\S*[^\s!]!+(?=[\s\"'\u201d\u2019)\]*_?.]|$)")

Faults = Iterator[tuple[int | None, str]]  # the cell's number, counted from 1, and what is wrong with it


@dataclass(frozen=True)
class Notebook:
    """One notebook file: its path, its size in bytes and its parsed JSON."""

    path: Path
    size: int
    content: dict

    @cached_property
    def cells(self) -> list[tuple[int, dict]]:
        return list(enumerate(self.content["cells"], start=1))

    @cached_property
    def code(self) -> list[tuple[int, dict]]:
        return [(number, cell) for number, cell in self.cells if cell["cell_type"] == "code"]

    @cached_property
    def prose(self) -> list[tuple[int, str]]:
        """Each markdown cell's text without its code and its comments."""
        texts = [(number, _text(cell["source"])) for number, cell in self.cells if cell["cell_type"] == "markdown"]
        return [(number, COMMENT.sub("", CODE_SPAN.sub("code", FENCE.sub("", text)))) for number, text in texts]


def check(path: Path) -> list[str]:
    """Return the faults of one notebook; its folder says whether it is a lesson, a solution or a sheet."""
    kinds = {"solutions": check_solution, "exercises": check_sheet}
    return kinds.get(Path(path).resolve().parent.name, check_lesson)(path)


def check_lesson(path: Path) -> list[str]:
    """Return the faults of a lesson, one line each; none when it is clean."""
    return _apply(path, [*RUN_RULES, _ignored_share])


def check_solution(path: Path) -> list[str]:
    """Return the faults of a solution notebook, one line each; none when it is clean."""
    return _apply(path, RUN_RULES)


def check_sheet(path: Path) -> list[str]:
    """Return the faults of an exercise sheet, one line each; none when it is clean."""
    return _apply(path, [_metadata, _empty, _as_solution])


def fix_metadata(path: Path) -> bool:
    """Put a notebook's metadata in order, in place; return whether anything had to change."""
    path = Path(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    before = json.dumps(content)
    content["metadata"] = _normal_metadata(content["metadata"])
    for cell in content["cells"]:
        cell["metadata"] = _normal_cell_metadata(cell["metadata"])
    if json.dumps(content) == before:
        return False
    text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"  # as Jupyter writes it
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode())
    part.replace(path)
    return True


def _apply(path: Path, rules: list) -> list[str]:
    try:
        raw = Path(path).read_bytes()
        notebook = Notebook(Path(path), len(raw), json.loads(raw))
    except (OSError, ValueError) as error:
        return [f"{_name(path)}: cannot be read: {error}; save it again from JupyterLab"]
    faults = list(_valid(notebook))  # the other rules trust the format
    if not faults:
        faults = [fault for rule in rules for fault in rule(notebook)]
    faults.sort(key=lambda fault: fault[0] or 0)
    return [f"{_name(path)}: {f'cell {number}: ' if number else ''}{what}" for number, what in faults]


def _name(path: Path) -> str:
    path = Path(path)
    inside = path.resolve().is_relative_to(ROOT)
    return (path.resolve().relative_to(ROOT) if inside else path).as_posix()


# What a stored notebook is made of ------------------------------------------------------------------------------------


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def _prints(cell: dict) -> bool:
    return any(out["output_type"] == "stream" and out["name"] == "stdout" and out["text"] for out in cell["outputs"])


def _output_texts(cell: dict) -> Iterator[str]:
    for out in cell["outputs"]:
        yield _text(out.get("text", ""))
        for mime, data in out.get("data", {}).items():
            if mime.endswith("json"):
                yield json.dumps(data, ensure_ascii=False)
            elif not mime.startswith("image/") or mime == "image/svg+xml":
                yield _text(data)


def _normal_metadata(metadata: dict) -> dict:
    language = {key: value for key, value in metadata.get("language_info", {}).items() if key != "version"}
    return {"kernelspec": KERNELSPEC, "language_info": {**language, "name": "python"}}


def _normal_cell_metadata(metadata: dict) -> dict:
    idle = {"tags": [], "deletable": True, "editable": True}
    return {
        key: value for key, value in metadata.items() if key in KEPT_CELL_METADATA and value != idle.get(key, object())
    }


# The rules: each takes a notebook and yields its faults ---------------------------------------------------------------


def _valid(notebook: Notebook) -> Faults:
    from nbformat.validator import iter_validate

    content = notebook.content
    version = (content.get("nbformat"), content.get("nbformat_minor")) if isinstance(content, dict) else None
    if version != (4, 5):
        yield None, "is not a notebook of format 4.5; save it again from JupyterLab 4"
        return
    for error in iter_validate(content):
        where = error.absolute_path
        number = where[1] + 1 if len(where) > 1 and where[0] == "cells" else None
        yield number, f"not valid in format 4.5: {error.message.splitlines()[0][:200]}; save it again from JupyterLab 4"
    seen = {}
    for number, cell in notebook.cells:
        first = seen.setdefault(cell.get("id"), number)
        if first != number:
            yield number, f"has the same id as cell {first}, {cell.get('id')}; give it one of its own"


def _run_in_order(notebook: Notebook) -> Faults:
    counts = [(number, cell["execution_count"]) for number, cell in notebook.code]
    remedy = "restart the kernel, run all cells, save"
    if counts and all(count is None for _, count in counts):
        yield None, f"was never run, or was stripped, and nbval would pass it unseen; {remedy}"
        return
    if counts and not any(cell["outputs"] for _, cell in notebook.code):
        yield None, f"has no output at all, so it was stripped; {remedy}"
    for expected, (number, count) in enumerate(counts, start=1):
        if count != expected:
            found = "was not run" if count is None else f"has execution count {count}, expected {expected}"
            empty = not _text(notebook.content["cells"][number - 1]["source"]).strip()
            yield number, "is empty; delete it" if empty else f"{found}; {remedy}"
            return


def _clean_outputs(notebook: Notebook) -> Faults:
    for number, cell in notebook.code:
        for out in cell["outputs"]:
            if out["output_type"] == "error":
                yield number, f"stored the error {out['ename']}; show an expected error as a child process's outcome"
            if out.get("name") == "stderr":
                start = _text(out["text"]).strip()[:60]
                yield number, f"stored text on stderr ({start!r}); remove its cause or print it on stdout"
            if "application/vnd.jupyter.widget-view+json" in out.get("data", {}):
                yield number, "stored a live display, which nbval cannot compare; print text instead"


def _tags_and_comments(notebook: Notebook) -> Faults:
    for number, cell in notebook.code:
        for tag in _tags(cell):
            if tag == "raises-exception":
                yield number, "is tagged raises-exception; show an expected error as a child process's outcome"
            elif tag.startswith("nbval-") and tag != IGNORE_TAG:
                yield number, f"is tagged {tag}; the only nbval tag in use is {IGNORE_TAG}"
        for comment in NBVAL_COMMENT.findall(_text(cell["source"])):
            yield number, f"has the comment {comment}; remove it (to ignore an output, tag the cell {IGNORE_TAG})"


def _ignored_share(notebook: Notebook) -> Faults:
    ignored = sum(IGNORE_TAG in _tags(cell) for _, cell in notebook.code)
    if ignored > MAX_IGNORED_SHARE * len(notebook.code):
        found = f"{ignored} of {len(notebook.code)} code cells are tagged {IGNORE_TAG}"
        yield None, f"{found}, more than {MAX_IGNORED_SHARE:.0%}; print what holds on any machine in cells without it"


def _verdicts(notebook: Notebook) -> Faults:
    headings = {number for number, text in notebook.prose if re.search(r"^## ", text, re.MULTILINE)}
    waiting, unanswered = [], []  # ignored cells: that a verdict may still follow; that none follows in their section
    for number, cell in notebook.cells:
        if number in headings:
            # The opening, before the first section, only says which machine and data set these are.
            unanswered, waiting = (unanswered + waiting if number != min(headings) else unanswered), []
        elif cell["cell_type"] == "code" and IGNORE_TAG in _tags(cell):
            waiting.append(number)
        elif cell["cell_type"] == "code" and _prints(cell):
            waiting = []
    for number in unanswered + waiting:
        yield number, f"is tagged {IGNORE_TAG} and its section ends without a verdict; print one in an untagged cell"


def _sizes(notebook: Notebook) -> Faults:
    if notebook.size > MAX_NOTEBOOK_BYTES:
        yield None, f"has {notebook.size:,} bytes, more than {MAX_NOTEBOOK_BYTES:,}; make its figures fewer or smaller"
    for number, cell in notebook.code:
        longest = max(map(len, _text(cell["source"]).splitlines()), default=0)
        if longest > MAX_CODE_WIDTH:
            yield number, f"has a line of {longest} characters, more than {MAX_CODE_WIDTH}; a page cuts it off"
        lines = len(_text(cell["source"]).splitlines())
        if lines > MAX_CODE_LINES:
            yield number, f"has {lines} lines, more than {MAX_CODE_LINES}; split it, or move what it does not teach"
        for out in cell["outputs"]:
            for mime, data in out.get("data", {}).items():
                size = _image_bytes(mime, data)
                if size > MAX_FIGURE_BYTES:
                    yield number, f"shows a figure of {size:,} bytes, more than {MAX_FIGURE_BYTES:,}; lower its dpi"


def _image_bytes(mime: str, data: str | list[str]) -> int:
    if not mime.startswith("image/"):
        return 0
    text = _text(data)
    return len(text.encode()) if mime == "image/svg+xml" else len(base64.b64decode(text))


def _machine_paths(notebook: Notebook) -> Faults:
    for number, cell in notebook.cells:
        found = MACHINE_PATH.search(_text(cell["source"]))
        if found:
            yield number, f"names {found[0]!r}, a path of one machine; use a path relative to the course"
        for text in _output_texts(cell) if cell["cell_type"] == "code" else ():
            found = MACHINE_PATH.search(text)
            if found:
                yield number, f"its output names {found[0]!r}, a path of one machine; print a relative path"


def _metadata(notebook: Notebook) -> Faults:
    metadata = notebook.content["metadata"]
    normal = _normal_metadata(metadata)
    wrong = sorted(key for key in {*metadata, *normal} if metadata.get(key) != normal.get(key))
    extra = [set(cell["metadata"]) - set(_normal_cell_metadata(cell["metadata"])) for _, cell in notebook.cells]
    wrong += [f"{key} in {sum(key in keys for keys in extra)} cell(s)" for key in sorted(set().union(*extra))]
    if wrong:
        yield None, f"metadata not in order ({', '.join(wrong)}); {NORMALISE}"


def _plain_tone(notebook: Notebook) -> Faults:
    for number, text in notebook.prose:
        found = EXCLAMATION.search(MATHS.sub("", text))
        if found:
            yield number, f"has an exclamation mark ({found[0]!r}); end the sentence with a full stop"


def _links(notebook: Notebook) -> Faults:
    for number, text in notebook.prose:
        for target in ("".join(groups) for groups in LINK.findall(text)):
            link = urlsplit(target)
            if link.scheme or link.netloc or not link.path:
                continue
            if not (notebook.path.parent / unquote(link.path)).exists():
                yield number, f"links to {target}, which is not there; mend the link"


def _one_title(notebook: Notebook) -> Faults:
    titles = [number for number, text in notebook.prose for _ in re.findall(r"^# ", text, re.MULTILINE)]
    if not titles:
        yield None, "has no title; start the first cell with `# `"
    elif titles[0] != 1:
        yield titles[0], "has the title; it belongs in the first cell"
    for number in titles[1:]:
        yield number, "has a second title (`# `); make it a section (`## `)"


def _empty(notebook: Notebook) -> Faults:
    for number, cell in notebook.code:
        if cell["outputs"] or cell["execution_count"] is not None:
            yield number, "was run in the exercise sheet; run python tools/export.py"


def _as_solution(notebook: Notebook) -> Faults:
    solution = notebook.path.resolve().parents[1] / "solutions" / notebook.path.name
    if not solution.exists():
        yield None, f"has no solution {_name(solution)}; delete the sheet or write its solution"
        return
    cells = json.loads(solution.read_text(encoding="utf-8"))["cells"]
    if [cell.get("id") for cell in cells] != [cell["id"] for _, cell in notebook.cells]:
        yield None, f"its cell ids are not those of {_name(solution)}; run python tools/export.py"


RUN_RULES = [
    _run_in_order,
    _clean_outputs,
    _tags_and_comments,
    _verdicts,
    _sizes,
    _machine_paths,
    _metadata,
    _plain_tone,
    _links,
    _one_title,
]


def find_notebooks(paths: list[Path]) -> list[Path]:
    """Return the notebooks that the paths, files or folders, stand for, in order."""
    found = []
    for path in paths:
        inside = [] if path.is_file() else path.rglob("*.ipynb")
        found += [path] if path.is_file() else [one for one in inside if ".ipynb_checkpoints" not in one.parts]
    return sorted(set(found))


def _fix_all(notebooks: list[Path]) -> int:
    changed, unread = 0, 0
    for path in notebooks:
        try:
            if fix_metadata(path):
                print(f"{_name(path)}: metadata put in order")
                changed += 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{_name(path)}: cannot be read: {error!r}; save it again from JupyterLab")
            unread += 1
    print(f"{changed} of {len(notebooks)} notebooks changed")
    return 1 if unread else 0


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fix-metadata", action="store_true", help="put the metadata in order, in place")
    parser.add_argument("paths", nargs="*", type=Path, default=[NOTEBOOKS], help="notebooks or folders (default: all)")
    options = parser.parse_args(arguments)
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        print("\n".join(f"{path.as_posix()}: is not there; name a notebook or a folder" for path in missing))
        return 1
    notebooks = find_notebooks(options.paths)
    if options.fix_metadata:
        return _fix_all(notebooks)
    faults = [fault for path in notebooks for fault in check(path)]
    print("\n".join(faults) if faults else f"{len(notebooks)} notebooks checked, no fault found")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
