"""Make the course's web pages from the notebooks as they are committed; no notebook is run.

    python tools/make_site.py [FOLDER]      default: build/site; its index.html opens without a server or a network

Run by `make site`, which also makes the slides (tools/make_slides.py) that the pages link to. Sphinx's settings are in
site/conf.py; what it reads is written to FOLDER-source.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import make_slides
import nbformat
import setup_cell
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
KINDS = {  # folder of notebooks -> title of its list, and what is said there
    "in_depth": (
        "In depth",
        "What the lessons leave out: references, rare traps, and the robust form of each pipeline.",
    ),
    "exercises": (
        "Exercises",
        "The sheets of `notebooks/exercises/`. There, each check tells you if an answer is right.",
    ),
    "solutions": ("Solutions", "One solution of each exercise, with what it printed. Try the exercise first."),
}
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
END_OF_INDEX = "## Your own images"  # where the README goes on with the commands


def write_pages(source: Path, root: Path = ROOT) -> None:
    """Write what Sphinx reads: an index, each notebook, the lists of them, and the index of symptoms."""
    lessons = sorted(root.glob("notebooks/[0-9]*.ipynb"))
    groups = {kind: sorted(root.glob(f"notebooks/{kind}/[0-9]*.ipynb")) for kind in KINDS}
    pages = {path.relative_to(root): _page(path, root) for paths in (lessons, *groups.values()) for path in paths}
    texts = {name: nbformat.writes(notebook) for name, notebook in pages.items()}
    for kind, paths in groups.items():
        title, words = KINDS[kind]
        contents = _contents("", [path.stem for path in paths], shown=True)
        texts[Path("notebooks", kind, "index.md")] = f"# {title}\n\n{words}\n\n{contents}"
    texts[Path("symptoms.md")] = _symptoms(lessons + groups["in_depth"], root)
    guide = root / "teaching" / "guide.md"
    if guide.exists():
        texts[Path("teaching", "guide.md")] = guide.read_text(encoding="utf-8")
    texts[Path("index.md")] = _index(lessons, root)
    for name, text in texts.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(_links_to_pages(text, root / name.parent, root), encoding="utf-8")
    for name, text in texts.items():  # pictures, and files of the repository that a page links to
        for target in LINK.findall(text):
            path = (root / name.parent / unquote(urlsplit(target).path)).resolve()
            if (
                path.is_file()
                and path.is_relative_to(root)
                and path.name != "README.md"
                and not (source / path.relative_to(root)).exists()
            ):
                (source / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, source / path.relative_to(root))


def _links_to_pages(text: str, folder: Path, root: Path) -> str:
    """Let links to the README, and to folders of notebooks, lead to the pages that stand for them."""

    def page(link: re.Match) -> str:
        path = unquote(urlsplit(link[1]).path)
        target = (folder / path).resolve()
        if target == root / "README.md":
            return f"]({path.removesuffix('README.md')}index.md)"
        return f"]({path.rstrip('/')}/index.md)" if target in [root / "notebooks" / kind for kind in KINDS] else link[0]

    return LINK.sub(page, text)


def _page(path: Path, root: Path) -> NotebookNode:
    """Return a notebook with its folded cells folded, a place to link to at each symptom, and how to run it."""
    notebook, cells = nbformat.read(path, as_version=4), []
    name = path.relative_to(root).as_posix()
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.id == setup_cell.CELL_ID:  # of interest where a lesson is run, not where it is read
            continue
        if cell.cell_type == "code":
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)  # for tools/export.py only
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
        if cell.metadata.get("symptom"):
            cells.append(nbformat.v4.new_markdown_cell(f"({_label(name, number)})="))
        cells.append(cell)
    locally = (
        f"**Open locally:** `make lab`, then `{name.removeprefix('notebooks/')}`; this page shows one earlier run."
    )
    if make_slides.slides_of(notebook):
        locally += f' <a href="../slides/{path.stem}.html">Slides</a>.'
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{title}\n\n{locally}\n{rest}"
    notebook.cells = cells
    return notebook


def symptoms(notebook: NotebookNode) -> Iterator[tuple[str, int, str]]:
    """Yield each symptom of a notebook, with the number of its cell and the heading that this cell is under."""
    heading = ""
    for number, cell in enumerate(notebook.cells, start=1):
        headings = HEADING.findall(cell.source) if cell.cell_type == "markdown" else []
        if headings and HEADING.match(cell.source):
            heading = headings[0]
        yield from ((symptom, number, heading) for symptom in cell.metadata.get("symptom", []))
        heading = headings[-1] if headings else heading


def _symptoms(paths: list[Path], root: Path) -> str:
    rows = []
    for path in paths:
        notebook, name = nbformat.read(path, as_version=4), path.relative_to(root).as_posix()
        lesson = HEADING.search(notebook.cells[0].source)[1]
        for symptom, number, heading in symptoms(notebook):
            place = lesson if heading == lesson else f"{lesson}: {heading}"
            rows.append(f"| {symptom.replace('|', '&#124;')} | [{place}](#{_label(name, number)}) |")
    rows.sort(key=lambda row: row.lstrip("| `'\"").casefold())
    return (
        "# What went wrong?\n\n"
        "Look for the words that you see, or for what happens; the search finds all other words of the lessons.\n\n"
        "| what you see | where it is explained |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _label(name: str, number: int) -> str:
    return re.sub(r"\W+", "-", f"{name.removesuffix('.ipynb')}-{number}")


def _index(lessons: list[Path], root: Path) -> str:
    text, found, _ = (root / "README.md").read_text(encoding="utf-8").partition(f"\n{END_OF_INDEX}\n")
    if not found:
        raise ValueError(f"README.md has no line {END_OF_INDEX!r}, where its part for the first page ends")
    more = ["symptoms", *(["teaching/guide"] if (root / "teaching" / "guide.md").exists() else [])]
    return "\n".join([
        text,
        _contents("Lessons", [path.relative_to(root).with_suffix("").as_posix() for path in lessons]),
        _contents("More", ["notebooks/in_depth/index", *more]),
    ])  # fmt: skip


def _contents(caption: str, names: list[str], shown: bool = False) -> str:
    options = f":caption: {caption}\n" * bool(caption) + ":hidden:\n" * (not shown) + ":maxdepth: 1\n"
    return f"```{{toctree}}\n{options}\n" + "\n".join(names) + "\n```\n"


def main(arguments: list[str]) -> int:
    """Write the pages and the slides; return the exit status of Sphinx, which treats a dead link as an error."""
    target = Path(arguments[0] if arguments else ROOT / "build" / "site").absolute()
    source = target.with_name(f"{target.name}-source")
    for folder in (source, target):  # a page that was removed must not stay
        shutil.rmtree(folder, ignore_errors=True)
    write_pages(source)
    make_slides.write_slides(target / "slides")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto", "-c", str(ROOT / "site")]
    command += ["-d", str(source.with_name(f"{target.name}-doctrees"))]
    status = subprocess.run([*command, str(source), str(target)], check=False).returncode
    if not status:
        print(f"open {target / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
