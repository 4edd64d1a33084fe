"""Every exercise can fail and can be solved: an unfilled sheet fails each of its tests, its solution none.

And each test refuses the wrong answers that come to mind. `wrong_answers/LESSON.py` holds them, each after a line
`# %% GRADE_ID: what is wrong with it`, where GRADE_ID is the nbgrader id of the cell that the reader fills.

`make test-depth` runs the sheets; `make test` only what is said of them at the end.
"""

import contextlib
import os
import re
from pathlib import Path

import export
import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SOLUTIONS = sorted((export.ROOT / export.SOLUTIONS).glob("*.ipynb"))
SHEETS = export.ROOT / export.SHEETS
WRONG_ANSWERS = sorted(Path(__file__).with_name("wrong_answers").glob("*.py"))
HEADING = re.compile(r"^# %% ([\w-]+): (.+)$", re.MULTILINE)
CELL_TIMEOUT_S = 300
START_TIMEOUT_S = 60
RUN_TIMEOUT_S = 1800  # of a whole notebook


def unfilled_faults(solution, folder, timeout_s=CELL_TIMEOUT_S):
    """Run, in a folder, the unfilled sheet of a solution; name each test in it that does not fail."""
    sheet = nbformat.reads(export.make_sheet(solution), as_version=4)
    stopped = run(sheet, folder, timeout_s)
    if stopped:
        return [f"{solution.name}: unfilled, {stopped}"]
    first_gap = next((number for number, cell in enumerate(sheet.cells) if is_solution(cell)), len(sheet.cells))
    if too_early := [error for cell in sheet.cells[:first_gap] for error in errors(cell)]:
        return [f"{solution.name}: unfilled, {too_early[0].ename} before the first cell that is to be filled"]
    tests = [(number, cell) for number, cell in enumerate(sheet.cells, start=1) if is_test(cell)]
    if not tests:
        return [f"{solution.name}: has no test cell; add one with nbgrader's grade=true, solution=false"]
    return [
        f"{solution.name}: cell {number}: passes before the sheet is filled; test what the reader is asked to write"
        for number, cell in tests
        if not errors(cell)
    ]


def read_wrong_answers(path):
    """Return grade id -> [(what is wrong, source)]."""
    _, *parts = HEADING.split(path.read_text(encoding="utf-8"))
    answers = {}
    for grade_id, what, source in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        answers.setdefault(grade_id, []).append((what, source.strip()))
    return answers


def solution_faults(solution, answers, folder, timeout_s=CELL_TIMEOUT_S):
    """Run a solution in a folder, and try the tests of each answer on the wrong answers as well.

    Name each cell of the solution that fails, and each wrong answer that its tests accept or cannot try.
    """
    notebook, answers = nbformat.read(solution, as_version=4), dict(answers)
    sections, wrong, cells = [[]], [], []
    for cell in notebook.cells:
        if is_solution(cell):
            sections.append([])
        sections[-1].append(cell)
    for first, *rest in filter(None, sections):
        cells += [first, *rest]
        given = answers.pop(first.metadata.nbgrader.grade_id, []) if is_solution(first) else []
        for what, source in given:
            tried = [new_code_cell(source), *(new_code_cell(cell.source) for cell in rest if is_test(cell))]
            wrong.append((what, tried))
            cells += tried
        if given:
            cells.append(new_code_cell(first.source))  # what follows may use it
    stopped = run(new_notebook(cells=cells), folder, timeout_s)
    right = enumerate(notebook.cells, start=1)
    found = [f"cell {number}: {error.ename}: {error.evalue}" for number, cell in right for error in errors(cell)]
    found += [f"no cell has the grade id {grade_id}" for grade_id in answers]
    if stopped:
        found.insert(0, f"solved, {stopped}")
    else:
        found += [fault for what, tried in wrong for fault in wrong_answer_faults(what, *tried)]
    return [f"{solution.name}: {fault}" for fault in found]


def wrong_answer_faults(what, answer, *tests):
    """Say why the tests of a wrong answer did not refuse it for what it does."""
    refused = [error for test in tests for error in errors(test)]
    unknown = [error for error in errors(answer) + refused if error.ename == "NameError"]
    if errors(answer) or unknown:
        return [f"not tried: {what}: {error.evalue}" for error in unknown or errors(answer)]
    return [] if refused else [f"accepts: {what}"]


def is_test(cell):
    marks = cell.metadata.get("nbgrader", {})
    return cell.cell_type == "code" and marks.get("grade", False) and not marks.get("solution", False)


def is_solution(cell):
    return cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("solution", False)


def errors(cell):
    return [output for output in cell.get("outputs", []) if output.output_type == "error"]


def run(notebook, folder, timeout_s):
    """Run all cells of a notebook, whatever fails, in a kernel that is gone afterwards; say what stopped it, if so."""
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        allow_errors=True,
        timeout=timeout_s,
        startup_timeout=START_TIMEOUT_S,
        shutdown_kernel="immediate",
    )
    environment = {"COURSE_IMAGES": "240", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    with client.setup_kernel(cwd=str(folder), env=environment):
        kernel_pid = client.km.provisioner.pid
        try:
            client.execute(cleanup_kc=False)
        except CellTimeoutError:
            return f"a cell ran longer than {timeout_s} s"
        except DeadKernelError:
            return "the kernel died"
        finally:
            kill_children(kernel_pid)  # nobody could find them once their parent, the kernel, is gone
    return None


def kill_children(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S)
@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_an_unfilled_sheet_fails_every_test(solution):
    assert unfilled_faults(solution, SHEETS) == []


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S)
@pytest.mark.parametrize("path", WRONG_ANSWERS, ids=lambda path: path.stem)
def test_wrong_answers_fail(path):
    solution = export.ROOT / export.SOLUTIONS / f"{path.stem}.ipynb"
    assert solution_faults(solution, read_wrong_answers(path), SHEETS) == []


# The two functions above must themselves notice what is wrong; these exercises are made up. ---------------------------


def graded(grade_id, *, grade, solution):
    fields = {"grade": grade, "solution": solution, "locked": grade, "grade_id": grade_id, "schema_version": 3}
    return {"nbgrader": {**fields, "task": False, **({"points": 1} if grade else {})}}


def a_solution(answer, *tests):
    source = f"def double(n):\n    ### BEGIN SOLUTION\n    {answer}\n    ### END SOLUTION"
    return [
        new_markdown_cell("# Exercises"),
        new_code_cell(source, metadata=graded("double", grade=False, solution=True)),
        *(
            new_code_cell(test, metadata=graded(f"test-{number}", grade=True, solution=False))
            for number, test in enumerate(tests)
        ),
    ]


@pytest.fixture
def store(tmp_path):
    """Return a function that stores cells as a solution; no process may be left when the test is over."""
    before = set(psutil.Process().children(recursive=True))

    def _store(cells):
        path = tmp_path / "01_made_up.ipynb"
        nbformat.write(new_notebook(cells=cells), path)
        return path

    yield _store
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_good_exercise_has_no_fault(store, tmp_path):
    solution = store(a_solution("return 2 * n", "assert double(2) == 4", "assert double(-1) == -2"))
    assert unfilled_faults(solution, tmp_path) == []
    assert solution_faults(solution, {}, tmp_path) == []


def test_a_test_that_passes_unfilled_is_reported(store, tmp_path):
    solution = store(a_solution("return 2 * n", "assert callable(double)", "assert double(2) == 4"))
    faults = unfilled_faults(solution, tmp_path)
    assert [fault.partition(": passes")[0] for fault in faults] == ["01_made_up.ipynb: cell 3"]


def test_a_sheet_without_test_is_reported(store, tmp_path):
    assert "has no test cell" in unfilled_faults(store(a_solution("return 2 * n")), tmp_path)[0]


def test_an_error_before_the_first_gap_is_reported(store, tmp_path):
    cells = a_solution("return 2 * n", "assert double(2) == 4")
    found = unfilled_faults(store([new_code_cell("import not_there"), *cells]), tmp_path)
    assert found == ["01_made_up.ipynb: unfilled, ModuleNotFoundError before the first cell that is to be filled"]


def test_a_wrong_solution_is_reported(store, tmp_path):
    solution = store(a_solution("return 3 * n", "assert double(0) == 0", "assert double(2) == 4, 'not doubled'"))
    assert solution_faults(solution, {}, tmp_path) == ["01_made_up.ipynb: cell 4: AssertionError: not doubled"]


def test_a_wrong_answer_that_is_accepted_is_reported(store, tmp_path):
    solution = store(a_solution("return 2 * n", "assert double(2) == 4"))
    answers = {"double": [("squares", "def double(n):\n    return n * n"), ("adds", "double = lambda n: n + 1")]}
    assert solution_faults(solution, answers, tmp_path) == ["01_made_up.ipynb: accepts: squares"]
    assert solution_faults(solution, {"triple": [("x", "pass")]}, tmp_path) == [
        "01_made_up.ipynb: no cell has the grade id triple"
    ]


def test_a_wrong_answer_that_is_not_tried_is_reported(store, tmp_path):
    first, answer, test = a_solution("return 2 * n", "assert double(two) == 4")
    solution = store([first, answer, new_code_cell("two = 2"), test])
    answers = {"double": [("adds", "double = lambda n: n + 1"), ("squares", "double = square")]}
    assert solution_faults(solution, answers, tmp_path) == [
        "01_made_up.ipynb: not tried: squares: name 'square' is not defined"
    ]


def test_a_cell_that_never_ends_is_reported(store, tmp_path):
    solution = store(a_solution("return 2 * n", "while True: pass"))
    assert unfilled_faults(solution, tmp_path, 1) == ["01_made_up.ipynb: unfilled, a cell ran longer than 1 s"]
    assert solution_faults(solution, {}, tmp_path, 1) == ["01_made_up.ipynb: solved, a cell ran longer than 1 s"]


def test_a_kernel_that_dies_is_reported(store, tmp_path):
    solution = store(a_solution("return 2 * n", "import os\nos._exit(1)"))
    assert unfilled_faults(solution, tmp_path) == ["01_made_up.ipynb: unfilled, the kernel died"]


def test_a_sheet_runs_in_its_folder_and_leaves_no_process(store, tmp_path):
    start = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    note = "start_new_session=True)\nopen('child.txt', 'w').write(str(child.pid))"
    assert solution_faults(store(a_solution("return 2 * n", f"{start} {note}")), {}, tmp_path) == []
    pid = int((tmp_path / "child.txt").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):  # a killed child whose parent is gone too may wait to be collected
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
