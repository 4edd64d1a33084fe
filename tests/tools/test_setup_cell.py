"""Every notebook begins with the cell that prepares a kernel elsewhere, and an old one is noticed."""

from __future__ import annotations

import nbformat
import pytest
import setup_cell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


@pytest.fixture
def notebook():
    shown = new_output("execute_result", data={"text/plain": "2"}, execution_count=2)
    cells = [
        new_markdown_cell("# A lesson", id="title"),
        new_code_cell("x = 1", id="one", execution_count=1),
        new_code_cell("x + 1", id="two", execution_count=2, outputs=[shown]),
    ]
    return new_notebook(cells=cells)


def test_every_notebook_begins_with_it(capsys):
    assert setup_cell.main(["--check"]) == 0, capsys.readouterr().out


def test_it_is_put_after_the_title_and_the_counts_stay_in_order(notebook):
    assert setup_cell.put(notebook, "notebooks")
    assert [cell.id for cell in notebook.cells] == ["title", setup_cell.CELL_ID, "one", "two"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    assert notebook.cells[3].outputs[0].execution_count == 3
    assert not setup_cell.put(notebook, "notebooks")


def test_an_old_one_is_replaced(notebook, tmp_path, capsys):
    setup_cell.put(notebook, "notebooks")
    notebook.cells[1].source += "\nprint('more')"
    path = tmp_path / "notebooks" / "lesson.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    assert setup_cell.main(["--check"], tmp_path) == 1 and "lesson.ipynb: another first" in capsys.readouterr().out
    assert setup_cell.main([], tmp_path) == 0 and setup_cell.main(["--check"], tmp_path) == 0
    after = nbformat.read(path, as_version=4)
    assert after.cells[1].source == setup_cell.source("notebooks") and after.cells[2].execution_count == 2


@pytest.mark.parametrize("folder", setup_cell.FOLDERS)
def test_an_address_is_written_into_it(folder):
    text = setup_cell.source(folder, "https://example.org/course.git")
    compile(text, "cell", "exec")
    assert '"https://example.org/course.git"' in text and f'"{folder}"' in text and "[" + '"COURSE' not in text
