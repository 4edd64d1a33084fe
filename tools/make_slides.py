"""Make a lesson's slides, one HTML file that holds all it needs, from the notebook's cells that are tagged `slide`.

    python tools/make_slides.py [FOLDER]      a file for each lesson that has slides, in build/slides or FOLDER

A text is shown up to its second heading; of the first cell only the title and the question. Of a cell that drew
something, the figure is shown; of another one what it printed, and its code where that is neither folded nor too wide
to be read from the last row. Run by `make slides`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
WAY_ON = re.compile(r"\[?(Exercises|Next|Previous|Back to|In depth)\b")  # how such a paragraph begins
MAX_CODE_WIDTH = 72
ANSI = re.compile(r"\x1b\[[0-9;]*m")
MARKDOWN = MarkdownIt("commonmark").enable("table")
FORMATTER = HtmlFormatter(nowrap=True)


def slides_of(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Return the title and the body of each slide, as HTML."""
    slides, heading = [], ""
    for number, cell in enumerate(notebook.cells):
        if "slide" in cell.metadata.get("tags", []):
            title = heading
            if cell.cell_type == "markdown":
                text = cell.source
                if starts := HEADING.match(text):
                    title, text = starts[1], text[starts.end() :]
                body = _text(HEADING.split(text)[0], only_question=number == 0)
            else:
                body = "".join(_run(cell))
            slides.append((MARKDOWN.renderInline(title), body))
        if cell.cell_type == "markdown":
            heading = (HEADING.findall(cell.source) or [heading])[-1]
    return slides


def _text(text: str, only_question: bool) -> str:
    paragraphs = [one for one in text.strip().split("\n\n") if not WAY_ON.match(one)]
    if only_question:
        paragraphs = [one for one in paragraphs if one.startswith("**")][:1]
    if paragraphs and paragraphs[0].startswith("- "):  # takeaways; what follows them is for readers
        paragraphs = [one for one in paragraphs if one.startswith("- ")]
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", "\n\n".join(paragraphs))  # a slide has no links
    return MARKDOWN.render(text)


def _run(cell: NotebookNode) -> Iterator[str]:
    data = [out.get("data", {}) for out in cell.outputs]
    if figures := [(mime, one[mime]) for one in data for mime in ("image/png", "image/jpeg") if mime in one]:
        yield from (f'<img src="data:{mime};base64,{image.strip()}" alt="a figure">' for mime, image in figures)
        return
    printed = "".join(out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs)
    too_wide = max(map(len, cell.source.splitlines())) > MAX_CODE_WIDTH
    if not printed or not (too_wide or cell.metadata.get("jupyter", {}).get("source_hidden")):
        yield f'<pre class="code">{highlight(cell.source, PythonLexer(), FORMATTER)}</pre>'
    if printed:
        yield "<pre>\n{}</pre>".format(escape(ANSI.sub("", printed).strip("\n")))


def write_slides(folder: Path, root: Path = ROOT) -> list[Path]:
    """Write the slides of each lesson that has some; return the files."""
    template = Environment(loader=FileSystemLoader(ROOT / "site"), autoescape=True).get_template("slides.html.j2")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(root.glob("notebooks/[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if slides := [(Markup(title), Markup(body)) for title, body in slides_of(notebook)]:
            title, colours = HEADING.search(notebook.cells[0].source)[1], Markup(FORMATTER.get_style_defs(".code"))
            written.append(folder / f"{path.stem}.html")
            written[-1].write_text(template.render(title=title, slides=slides, colours=colours), encoding="utf-8")
    return written


if __name__ == "__main__":
    for file in write_slides(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "slides")):
        print(file)
