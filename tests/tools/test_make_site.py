"""The course's pages and slides: whole, without a network, without running a notebook, and clicked through."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import make_site
import make_slides
import nbformat
import pytest
import setup_cell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = make_site.ROOT
LESSONS = sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))
WITH_SYMPTOMS = [*LESSONS, *sorted(ROOT.glob("notebooks/in_depth/*.ipynb"))]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_sphinx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sphinx_book_theme", "myst_nb"))),
    reason="what the pages are made with is not installed here (`make site` installs it)",
)
needs_browser = pytest.mark.skipif(
    not (importlib.util.find_spec("playwright") and CHROMIUM),
    reason="no chromium on this machine, or no playwright (`make site` installs it)",
)


@contextlib.contextmanager
def browser(**viewport):
    """Give a page of a headless browser, and the addresses that it asked for outside of this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page, asked, errors = chromium.new_page(viewport=viewport), [], []
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield page
            assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] and not errors
        finally:
            chromium.close()


class Page(HTMLParser):
    """What a page links to or loads, and its own ids."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        loads = tag not in ("a", "form") and values.get("rel") not in ("canonical", "next", "prev", "search", "index")
        for name in ("href", "src", "data-src"):
            if values.get(name):
                (self.loaded if loads else self.links).append(values[name])


@pytest.fixture
def lesson():
    out = new_output("stream", name="stdout", text="as it was stored\n")
    run = "from pathlib import Path\n\nPath('ran').touch()"
    return new_notebook(
        cells=[
            new_markdown_cell("# 01 One\n\n**Does it fit?**\n\nIt takes a minute.\n\nNext: [two](02_two.ipynb)"),
            new_markdown_cell("## Predict\nHow many?\n\n## Build\nNow.", metadata={"tags": ["slide"]}),
            new_code_cell(f"#| export\n{run}", outputs=[out], metadata={"symptom": ["It ends: `a|b`", "A second"]}),
            new_code_cell("check()", outputs=[out], metadata={"jupyter": {"source_hidden": True}, "tags": ["slide"]}),
            new_markdown_cell("Before.\n\n## Trap\nAfter.", metadata={"symptom": ["Above the heading"]}),
            new_markdown_cell("- one [link](02_two.ipynb)\n\nIt remains.\n\nNext: x.", metadata={"tags": ["slide"]}),
        ]
    )


@pytest.fixture
def course(lesson, tmp_path):
    """A small course in a folder of its own."""
    root = tmp_path / "course"
    for kind in ("", *make_site.KINDS):
        (root / "notebooks" / kind).mkdir(parents=True, exist_ok=True)
        nbformat.write(lesson, root / "notebooks" / kind / "01_one.ipynb")
    (root / "README.md").write_text(
        "# A\n\n[one](notebooks/01_one.ipynb), [all](notebooks/solutions), [a](a.txt)\n\n## Your own images\n\nNo.\n"
    )
    (root / "a.txt").write_text("a file")
    return root


def test_what_sphinx_reads(course, tmp_path):
    make_site.write_pages(tmp_path / "pages", course)
    page = nbformat.read(tmp_path / "pages" / "notebooks" / "01_one.ipynb", as_version=4)
    title, _, line, *_ = page.cells[0].source.splitlines()
    assert title == "# 01 One" and line.startswith("**Open locally:** `make lab`, then `01_one.ipynb`")
    assert "#|" not in page.cells[3].source and page.cells[3].outputs[0].text == "as it was stored\n"
    assert page.cells[4].metadata.tags == ["slide", "hide-input"]
    index = (tmp_path / "pages" / "index.md").read_text()
    assert "notebooks/solutions/index.md" in index and "No." not in index and "teaching" not in index
    assert (tmp_path / "pages" / "a.txt").read_text() == "a file"
    (course / "teaching").mkdir()
    (course / "teaching" / "guide.md").write_text("# Guide\n\n[1](../README.md#real) [2](../notebooks/exercises/)\n")
    make_site.write_pages(tmp_path / "again", course)
    assert "\nteaching/guide\n" in (tmp_path / "again" / "index.md").read_text()
    guide = (tmp_path / "again" / "teaching" / "guide.md").read_text()
    assert guide == "# Guide\n\n[1](../index.md) [2](../notebooks/exercises/index.md)\n"
    (course / "README.md").write_text("# Other\n")
    with pytest.raises(ValueError, match="has no line '## Your own images'"):
        make_site.write_pages(tmp_path / "never", course)


def test_the_index_of_symptoms(course, tmp_path):
    make_site.write_pages(tmp_path / "pages", course)
    rows = [row for row in (tmp_path / "pages" / "symptoms.md").read_text().splitlines() if "](#" in row]
    here = [row for row in rows if "notebooks-01" in row]
    assert len(rows) == 6  # of the lesson, and of the one in depth
    assert here == [
        "| A second | [01 One: Build](#notebooks-01_one-3) |",
        "| Above the heading | [01 One: Build](#notebooks-01_one-5) |",
        "| It ends: `a&#124;b` | [01 One: Build](#notebooks-01_one-3) |",
    ]


def test_the_slides(lesson):
    lesson.cells[0].metadata.tags = ["slide"]
    figure = new_output("display_data", {"image/png": "aGk=\n", "text/plain": "<Figure>"})
    lesson.cells += [
        new_code_cell("draw()", outputs=[figure], metadata={"tags": ["slide"]}),
        new_code_cell("x = 1", metadata={"tags": ["slide"]}),
        new_code_cell(f"print({'1 + ' * 20}1)", outputs=lesson.cells[3].outputs, metadata={"tags": ["slide"]}),
    ]
    titles, bodies = zip(*make_slides.slides_of(lesson), strict=True)
    assert titles == ("01 One", "Predict", "Build", "Trap", "Trap", "Trap", "Trap")
    assert bodies[0] == "<p><strong>Does it fit?</strong></p>\n"
    assert bodies[1] == "<p>How many?</p>\n"
    assert bodies[2] == bodies[6] == "<pre>\nas it was stored</pre>"
    assert "<li>one link</li>" in bodies[3] and not re.search("remains|Next", bodies[3])
    assert bodies[4].startswith('<img src="data:image/png;base64,aGk="') and "draw" not in bodies[4]
    assert re.sub("<[^>]+>", "", bodies[5]).strip() == "x = 1"


@needs_browser
def test_the_slides_of_the_course_can_be_read_from_the_last_row(tmp_path):
    files = make_slides.write_slides(tmp_path)
    assert len(files) >= 6
    with browser(width=1280, height=720) as page:
        for file in files:
            page.goto(file.as_uri())
            last = page.evaluate("last")
            assert 3 <= last <= 8
            for number in range(1, last + 1):
                at_place = f"document.querySelector('#place').innerText === '{number} / {last}'"
                page.wait_for_function(at_place)  # a moment after the key
                body = page.locator(f"section[id='{number}'] .body")
                assert body.is_visible() and page.locator("section:visible").count() == 1
                size, fits = body.evaluate(
                    "e => [parseFloat(getComputedStyle(e).fontSize), e.scrollHeight <= e.clientHeight + 1]"
                )
                assert fits and size >= 720 / 25, f"{file.name}, slide {number}: {size} px"
                page.keyboard.press("ArrowRight")
            page.keyboard.press("Home")
            page.wait_for_function(f"document.querySelector('#place').innerText === '1 / {last}'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the whole course."""
    target = tmp_path_factory.mktemp("site") / "html"
    done = subprocess.run(
        [sys.executable, make_site.__file__, target], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


@needs_sphinx
def test_every_link_leads_somewhere(site, pages):
    assert len(pages) > 30
    dead = []
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            link = urlsplit(target)
            if link.scheme:
                continue
            to = (path.parent / unquote(link.path)).resolve() if link.path else path
            ids = pages[to].ids if to in pages else {link.fragment}
            if not to.is_file() or (link.fragment and link.fragment not in ids and to.parent.name != "slides"):
                dead.append(f"{path.relative_to(site)}: {target}")
    assert not dead


@needs_sphinx
def test_nothing_comes_from_the_network(site, pages):
    assert not [url for page in pages.values() for url in page.loaded if urlsplit(url).netloc]
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [one for text in styles for one in re.findall(r"(?:url\(|@import)\s*['\"]?https?://", text)]


@needs_sphinx
def test_solutions_are_there_and_not_in_the_navigation(site, pages):
    navigation = (site / "index.html").read_text().partition('class="bd-links')[2].partition("</nav>")[0]
    assert "notebooks/01_load_everything.html" in navigation and "symptoms.html" in navigation
    assert "solutions/" not in navigation and "exercises/" not in navigation
    assert (site / "notebooks" / "solutions" / "01_load_everything.html").exists()


@needs_sphinx
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_shown_as_it_is_stored(path, site):
    html = (site / "notebooks" / f"{path.stem}.html").read_text()
    shown = [cell for cell in nbformat.read(path, as_version=4).cells if cell.id != setup_cell.CELL_ID]
    folded = [cell for cell in shown if cell.metadata.get("jupyter")]
    assert html.count('<details class="admonition hide above-input">') == len(folded)
    assert "Open locally:" in html


@needs_sphinx
def test_each_symptom_is_on_its_page(site, pages):
    notebooks = [nbformat.read(path, as_version=4) for path in WITH_SYMPTOMS]
    symptoms = [one for notebook in notebooks for one, *_ in make_site.symptoms(notebook)]
    assert len(symptoms) > 40
    html = (site / "symptoms.html").read_text()
    assert html.count("<tr") == len(symptoms) + 1
    html = re.sub("<[^>]+>", "", html)
    for text in ("exit code 137", "The kernel appears to have died", "is closed and has insufficient elements"):
        assert text in html


@needs_sphinx
@needs_browser
def test_the_site_is_clicked_through(site):
    with browser(width=1400, height=900) as page:
        page.goto((site / "index.html").as_uri())
        page.get_by_role("link", name="01 Load everything").first.click()
        page.wait_for_url("**/01_load_everything.html")
        figures = page.locator(".cell_output img").evaluate_all("all => all.map(one => one.naturalWidth)")
        assert len(figures) >= 4 and min(figures) >= 400
        details = page.locator("details.hide").first
        assert not details.locator("pre").is_visible()
        details.locator("summary").click()
        assert details.locator("pre").is_visible()
        page.get_by_role("link", name="Slides").click()
        page.wait_for_url("**/slides/01_load_everything.html")
        page.go_back()
        page.locator("a.right-next").click()
        page.wait_for_url("**/02_python_generator.html")
        page.locator("a.left-prev").click()
        page.wait_for_url("**/01_load_everything.html")

        colours = set()
        for mode in ("light", "dark"):
            page.locator("button.theme-switch-button:visible").click()
            page.locator(f"button.theme-change-button[data-mode={mode}]:visible").click()
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(colours) == 2

        page.keyboard.press("Control+k")
        page.locator("input[type=search]:visible").first.fill("insufficient elements")
        page.keyboard.press("Enter")
        found = page.locator("#search-results li a", has_text="04 The TF1 queues")
        found.first.click()
        page.wait_for_url("**/04_tf1_queues.html*")

        page.goto((site / "symptoms.html").as_uri())
        page.get_by_role("row", name="The kernel appears to have died").get_by_role("link").click()
        page.wait_for_url("**/01_load_everything.html#*")
        assert page.get_by_text("There is no traceback.").evaluate(
            "one => Math.abs(one.getBoundingClientRect().top) < innerHeight"
        )


@needs_sphinx
@needs_browser
def test_no_page_is_wider_than_a_telephone(site):
    with browser(width=400, height=800) as page:
        for name in ("index", "symptoms", "notebooks/01_load_everything", "notebooks/08_scoreboard"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
