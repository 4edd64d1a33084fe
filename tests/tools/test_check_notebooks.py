"""The notebook checker refuses each fault it names, and the course's own notebooks have none."""

import base64
import json
import os
import subprocess
import sys

import check_notebooks as checker
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

COURSE = checker.find_notebooks([checker.NOTEBOOKS])
IGNORED = {"tags": ["nbval-ignore-output"]}


def printed(text):
    return new_output("stream", name="stdout", text=text)


def figure(size):
    return new_output(
        "display_data", {"image/png": base64.b64encode(os.urandom(size)).decode(), "text/plain": "<Figure>"}
    )


@pytest.fixture
def lesson():
    """A clean lesson: cell 1 title, 2 setup, 3 section, 4 measurement, 5 verdict."""
    metadata = {"kernelspec": checker.KERNELSPEC, "language_info": {"name": "python"}}
    cells = [
        new_markdown_cell("# One title\n\nSee [the next lesson](02_next.ipynb#Measure) and ![a map](map.png)."),
        new_code_cell("limit_mib = 512", execution_count=1),
        new_markdown_cell("## Measure\n\nRun `!pip list` or `x != 1`: it is quick.\n\n```sh\n# no title here!\n```"),
        new_code_cell("measure()", execution_count=2, metadata=IGNORED, outputs=[printed("412.7 images/s\n")]),
        new_code_cell("print(peak_mib < limit_mib)", execution_count=3, outputs=[printed("True\n"), figure(50_000)]),
    ]
    return new_notebook(cells=cells, metadata=metadata)


@pytest.fixture
def store(tmp_path):
    """Return a function that stores a notebook, in the folder of its kind, and returns its path."""

    def _store(notebook, kind="", name="01_lesson.ipynb"):
        folder = tmp_path / "notebooks"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for target in ("02_next.ipynb", "map.png"):
            (folder / kind / target).touch()
        path = folder / kind / name
        path.write_text(json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    return _store


def test_a_clean_lesson_passes(lesson, store):
    assert checker.check(store(lesson)) == []
    assert checker.check(store(lesson, "solutions")) == []


def put(number, **fields):
    """Return a change of a notebook: these fields of this cell, counted from 1."""
    return lambda notebook: notebook.cells[number - 1].update(fields)


def tag(number, name):
    return put(number, metadata={"tags": [name]})


def append(number, text):
    return lambda notebook: put(number, source=notebook.cells[number - 1].source + text)(notebook)


def insert(number, cell):
    return lambda notebook: notebook.cells.insert(number - 1, cell)


def each_code_cell(**fields):
    return lambda notebook: [cell.update(fields) for cell in notebook.cells if cell.cell_type == "code"]


def shift_counts(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count += 8


def shown(mime, data):
    return [printed("True\n"), new_output("display_data", {mime: data})]


HTML, WIDGET = "text/html", "application/vnd.jupyter.widget-view+json"

# A fault's name: the change of the clean lesson that makes it, and what the checker's line must contain.
BROKEN = {
    "old format": (lambda notebook: notebook.update(nbformat_minor=4), "format 4.5"),
    "no cell id": (lambda notebook: notebook.cells[1].pop("id"), "not valid in format 4.5: Cell is missing an id"),
    "same cell id": (
        lambda notebook: notebook.cells[3].update(id=notebook.cells[1].id),
        "not valid in format 4.5: Non-unique cell id",
    ),
    "unknown key in a cell": (put(2, colour="red"), "('colour' was unexpected)"),
    "stripped": (each_code_cell(execution_count=None, outputs=[]), "cell 2: has execution count None"),
    "one cell not run": (put(4, execution_count=None), "cell 4: has execution count None, expected 2"),
    "run out of order": (put(4, execution_count=7), "cell 4: has execution count 7, expected 2"),
    "run in a used kernel": (shift_counts, "cell 2: has execution count 9, expected 1"),
    "empty cell": (
        insert(6, new_code_cell("")),
        "cell 6: has execution count None, expected 4; delete it if it is empty",
    ),
    "stderr": (put(2, outputs=[new_output("stream", name="stderr", text="oh")]), "cell 2: stored text on stderr"),
    "live display": (put(5, outputs=shown(WIDGET, {})), "cell 5: stored a live display"),
    "raises-exception": (tag(2, "raises-exception"), "cell 2: is marked raises-exception"),
    "nbval-skip": (tag(2, "nbval-skip"), "cell 2: is marked nbval-skip"),
    "misspelt tag": (tag(2, "nbval-ignore"), "cell 2: is marked nbval-ignore;"),
    "ignoring comment": (put(2, source="f()\n# NBVAL_IGNORE_OUTPUT"), "cell 2: is marked NBVAL_IGNORE_OUTPUT"),
    "skipping comment": (put(2, source="#NBVAL_SKIP\nf()"), "cell 2: is marked NBVAL_SKIP"),
    "too many ignored": (tag(2, "nbval-ignore-output"), "2 of 3 code cells are tagged"),
    "verdict ignored": (tag(5, "nbval-ignore-output"), "cell 4: is tagged nbval-ignore-output and its section"),
    "verdict without text": (put(5, outputs=[]), "cell 4: is tagged nbval-ignore-output and its section"),
    "verdict in another section": (
        insert(5, new_markdown_cell("## Next")),
        "cell 4: is tagged nbval-ignore-output and",
    ),
    "long cell": (put(2, source="x = 1\n" * 31), "cell 2: has 31 lines"),
    "large figure": (put(5, outputs=[printed("True\n"), figure(100_002)]), "cell 5: shows a figure of 100,002 bytes"),
    "large notebook": (append(1, " more" * 300_000), "more than 1,500,000"),
    "path of a home": (put(2, source="open('/home/ada/x.jpg')"), "cell 2: names '/home/ada'"),
    "path of a Mac": (append(3, " /Users/ada/data"), "cell 3: names '/Users/ada'"),
    "path of root": (put(4, outputs=[printed("read /root/x")]), "cell 4: names '/root'"),
    "path of a temporary folder": (put(5, outputs=shown("text/plain", "'/tmp/x'")), "cell 5: names '/tmp/'"),
    "path in HTML": (put(5, outputs=shown(HTML, "<b>/work/x</b>")), "cell 5: names '/work/'"),
    "path in JSON": (put(5, outputs=shown("application/json", ["/tmp/x"])), "cell 5: names '/tmp/'"),
    "path of Windows": (put(2, source=r"open('C:\\Users\\ada')"), "cell 2: names 'C:"),
    "path as an address": (append(3, " file:///home/ada/x"), "cell 3: names '/home/ada'"),
    "other kernel": (lambda notebook: notebook.metadata.kernelspec.update(name="venv"), "metadata not in order"),
    "language version": (
        lambda notebook: notebook.metadata.language_info.update(version="3"),
        "metadata not in order",
    ),
    "widget state": (lambda notebook: notebook.metadata.update(widgets={}), "metadata not in order"),
    "time stamps": (put(2, metadata={"execution": {}}), "metadata not in order"),
    "exclamation": (append(3, "\n\nIt is fast! Look."), "cell 3: has an exclamation mark ('It is fast! Look.')"),
    "exclamation after code": (append(3, "\n\nUse `prefetch`!"), "cell 3: has an exclamation mark"),
    "bold exclamation": (append(3, "\n\n**Now!** And then."), "cell 3: has an exclamation mark ('Now!')"),
    "dead link": (append(3, "\n\nThe [last](../09_gone.ipynb) one."), "cell 3: links to ../09_gone.ipynb"),
    "dead picture": (append(3, "\n\n![map](gone.png)"), "cell 3: links to gone.png"),
    "dead reference": (append(3, "\n\nThe [last].\n\n[last]: gone.ipynb"), "cell 3: links to gone.ipynb"),
    "no title": (put(1, source="Text"), "must have one title"),
    "nine slides": (
        lambda notebook: [
            insert(6, new_markdown_cell("Text", metadata={"tags": ["slide"]}))(notebook) for _ in range(9)
        ],
        "has 9 slides, more than 8",
    ),
    "slide with much code": (put(2, source="x = 1\n" * 13, metadata={"tags": ["slide"]}), "cell 2: is a slide with 13"),
    "symptom that is a text": (put(3, metadata={"symptom": "`True`"}), "cell 3: has symptom '`True`'; make it a list"),
    "empty symptom": (put(3, metadata={"symptom": [" "]}), "cell 3: has symptom [' ']; make it a list"),
    "symptom said nowhere": (put(3, metadata={"symptom": ["It ends: `exit code 137`"]}), "'exit code 137', which this"),
    "symptom in another order": (put(3, metadata={"symptom": ["`images/s … 412.7`"]}), "'images/s … 412.7', which"),
    "late title": (insert(1, new_markdown_cell("Text")), "must have one title"),
    "two titles": (append(3, "\n\n# Another"), "must have one title"),
}


@pytest.mark.parametrize(("change", "found"), BROKEN.values(), ids=BROKEN)
def test_a_fault_is_refused(lesson, store, change, found):
    change(lesson)
    path = store(lesson)
    faults = checker.check(path)
    assert [fault for fault in faults if fault.startswith(f"{path.as_posix()}: ") and found in fault], faults


@pytest.mark.parametrize(
    "text",
    [
        "see `data/tmp/` or results/home/x",
        "../work/main.py, ~/tmp/ and ./root",
        "https://example.com/home/ada and s3://bucket/tmp/x",
        "f'{folder}/tmp/x' and $HOME/work/x",
        "/proc/self/smaps_rollup and /dev/shm",
        "a /rootless container",
    ],
)
def test_a_path_of_no_machine_passes(lesson, store, text):
    lesson.cells[2].source = f"## Measure\n\n{text}"
    lesson.cells[3].outputs[0].text = text
    assert checker.check(store(lesson)) == []


@pytest.mark.parametrize(
    "text",
    ["![fast](map.png)", "`print('!')` works", "```python\n'Done!'\n```", "<!-- a note! -->"],
)
def test_an_exclamation_mark_that_ends_no_sentence_passes(lesson, store, text):
    lesson.cells[2].source = f"## Measure\n\n{text}"
    assert checker.check(store(lesson)) == []


def test_a_verdict_may_follow_later_in_its_section(lesson, store):
    lesson.cells.insert(4, new_markdown_cell("### Reading the figure"))
    assert checker.check(store(lesson)) == []


def test_slides_and_symptoms_that_the_notebook_bears_out_pass(lesson, store):
    lesson.cells[1].source = "x = 1\n" * 13
    lesson.cells[1].metadata = {"jupyter": {"source_hidden": True}, "tags": ["slide"]}
    lesson.cells[3].metadata = IGNORED | {"symptom": ["it is slow", "`412.7 images/s`", "`Measure … is quick`"]}
    lesson.cells[4].update(source="x = 1\n" * 13, metadata={"tags": ["slide"]})  # it shows a figure
    assert checker.check(store(lesson)) == []


def test_the_opening_needs_no_verdict(lesson, store):
    lesson.cells.insert(2, new_code_cell("print(machine())", execution_count=2, metadata=IGNORED))
    for number, cell in enumerate([cell for cell in lesson.cells if cell.cell_type == "code"], 1):
        cell.execution_count = number
    faults = checker.check(store(lesson))
    assert not any("verdict" in fault for fault in faults), faults


def test_a_solution_may_ignore_more_than_a_lesson(lesson, store):
    lesson.cells[1] = new_markdown_cell("Text")
    lesson.cells.insert(3, new_code_cell("load()", execution_count=1, metadata=IGNORED))
    assert checker.check(store(lesson, "solutions")) == []
    assert len(checker.check(store(lesson))) == 1


def test_a_file_that_is_no_notebook_is_refused(store):
    path = store([])
    assert "not valid in format 4.5" in checker.check(path)[0]
    path.write_text("<<<<<<< HEAD", encoding="utf-8")
    assert "not valid in format 4.5" in checker.check(path)[0]


def test_a_wide_cell_is_refused_by_ruff(lesson, store):
    path = checker.NOTEBOOKS / "00_start_here.ipynb"
    lesson.cells[1].source = "x = '" + "o" * 95 + "'"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", str(path), "-"]
    text = store(lesson).read_text(encoding="utf-8")
    found = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1 and "E501 Line too long (101 > 100)" in found.stdout


def test_a_sheet_is_left_to_the_export(lesson, store):
    path = store(lesson)
    assert checker.find_notebooks([path, store(lesson, "exercises"), store(lesson, ".ipynb_checkpoints")]) == [path]


def test_fix_metadata_puts_in_order_what_the_checker_refuses(lesson, store):
    kernel, language = {"name": "venv", "display_name": "My venv"}, {"name": "python", "version": "3.12"}
    lesson.metadata = {"kernelspec": kernel, "language_info": language, "widgets": {}}
    lesson.cells[1].metadata = {"execution": {"a": "now"}, "editable": True, "tags": [], "slideshow": {}}
    path = store(lesson)
    assert "metadata not in order" in checker.check(path)[0]
    assert checker.check(path, fix_metadata=True) == []
    assert checker.check(path) == []
    before = path.stat().st_mtime_ns
    assert checker.check(path, fix_metadata=True) == []
    assert path.stat().st_mtime_ns == before


def test_fix_metadata_keeps_everything_else(lesson, store, tmp_path, capsys):
    as_jupyter_writes_it = nbformat.writes(lesson) + "\n"
    lesson.metadata.language_info.version = "3.11.7"
    path = store(lesson)
    assert checker.main(["--fix-metadata", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == as_jupyter_writes_it
    assert "1 notebooks checked, no fault found" in capsys.readouterr().out
    assert checker.main(["--fix-metadata", str(tmp_path)]) == 1
    assert "02_next.ipynb: not valid" in capsys.readouterr().out


def test_the_command_names_each_fault_and_fails(lesson, store, tmp_path):
    command = [sys.executable, checker.__file__, tmp_path]
    store(lesson).with_name("02_next.ipynb").write_text(json.dumps(lesson), encoding="utf-8")
    clean = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (clean.returncode, clean.stdout) == (0, "2 notebooks checked, no fault found\n")
    lesson.cells[1].execution_count = 5
    path = store(lesson)
    faulty = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert faulty.returncode == 1
    assert f"{path.as_posix()}: cell 2: has execution count 5, expected 1" in faulty.stdout


def test_the_command_refuses_a_path_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        checker.main([str(tmp_path / "gone")])
    assert "is not there" in capsys.readouterr().err


def test_the_course_has_lessons():
    assert sorted(checker.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")), "notebooks/ has no lesson NN_name.ipynb"


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.relative_to(checker.ROOT).as_posix())
def test_the_courses_own_notebooks_are_clean(path):
    assert checker.check(path) == []
