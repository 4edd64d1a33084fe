"""The instructor's guide: what is written from the lessons agrees with them, and the schedules add up."""

import re
from itertools import pairwise

import guide
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TEXT = (guide.ROOT / guide.GUIDE).read_text(encoding="utf-8")
BY_HAND = TEXT.partition(guide.MARK)[0]
LESSONS = sorted((guide.ROOT / "notebooks").glob("[0-9]*.ipynb"))
MINUTES = {name: int(minutes) for name, minutes in re.findall(r"^\| \[(\d\d) .*?\) \| (\d+) \|", TEXT, re.MULTILINE)}
TALK_MIN = 5  # that a schedule gives each lesson, over its own minutes
BLOCKS = re.findall(r"(?:^\| \d+:\d\d \|.*\n)+", BY_HAND, re.MULTILINE)


@pytest.fixture
def root(tmp_path):
    """A course with one lesson of ten minutes, and two parts of the same length; a long cell is folded."""
    folded = new_code_cell("x = 1\n" * 500, metadata={"jupyter": {"source_hidden": True}})
    cells = [
        new_markdown_cell("# 05 tf.data\n\nIt takes about\n10 minutes.\n\n## Predict\n" + "word " * 150 + "\n"),
        new_code_cell("x = 1\n" * 12, id="a"),
        new_markdown_cell("The answer is 4.\n\n## Build"),
        new_code_cell("x = 1\n" * 24),
        folded,
        new_markdown_cell("- not this\n\n## Takeaways\n- Measure\n  first.\n- Then change.\n\nNext: no"),
    ]
    sheet = [
        new_markdown_cell("# Exercises\n\n## 1. Write it (8 minutes)"),
        new_code_cell("y = 2", metadata={"nbgrader": {"solution": True, "grade_id": "write-it"}}),
        new_markdown_cell("## 2. Read it (4 minutes)"),
        new_code_cell("z = 3", metadata={"nbgrader": {"solution": True, "grade_id": "read-it"}}),
    ]
    for folder, some in (("notebooks", cells), ("notebooks/solutions", sheet)):
        (tmp_path / folder).mkdir()
        nbformat.write(new_notebook(cells=some), tmp_path / folder / "05_tf_data.ipynb")
    (tmp_path / "tests" / "notebooks" / "wrong_answers").mkdir(parents=True)
    answers = tmp_path / "tests" / "notebooks" / "wrong_answers" / "05_tf_data.py"
    answers.write_text("# %% write-it: forgets it\ny = 0\n\n\n# %% write-it: twice\ny = 4\n\n\n# %% read-it: skips\n")
    (tmp_path / "teaching").mkdir()
    (tmp_path / guide.GUIDE).write_text(f"By hand.\n{guide.MARK}what was there before")
    return tmp_path


def test_a_lesson_gives_its_minutes_question_takeaways_and_wrong_answers(root, capsys):
    assert guide.main(["--check"], root) == 1 and "run make guide" in capsys.readouterr().out
    assert guide.main([], root) == guide.main(["--check"], root) == 0
    text = (root / guide.GUIDE).read_text()
    assert text.startswith(f"By hand.\n{guide.MARK}") and "what was there before" not in text
    assert re.search(r"^\| \[05 tf.data\]\(../notebooks/05_tf_data.ipynb\) \| 10 \| \d \| 12 \|$", text, re.MULTILINE)
    assert "> word word" in text and "The answer is" not in text
    assert "*From minute* 0 Predict · 5 Build · 10 Takeaways\n" in text  # 2 minutes, 2 minutes, next to nothing
    assert "\n- Measure\n  first.\n- Then change.\n" in text and "not this" not in text
    assert "\n1. Write it (8 minutes): forgets it; twice\n" in text


def test_a_changed_lesson_is_noticed(root):
    guide.main([], root)
    lesson = root / "notebooks" / "05_tf_data.ipynb"
    lesson.write_text(lesson.read_text().replace("10 minutes", "11 minutes"))
    assert guide.main(["--check"], root) == 1


def test_the_guide_is_what_the_lessons_say(capsys):
    assert guide.main(["--check"]) == 0, capsys.readouterr().out


def test_each_lesson_is_in_the_guide():
    assert list(MINUTES) == [path.name[:2] for path in LESSONS]


@pytest.mark.parametrize("block", BLOCKS, ids=["half a day", "first day", "second day"])
def test_a_schedule_adds_up_and_gives_each_lesson_its_time(block):
    found = re.findall(r"\| (\d+):(\d\d) \| (\d+) \| (.*) \|", block)
    rows = [(60 * int(hour) + int(minute), int(long), what) for hour, minute, long, what in found]
    assert len(rows) >= 10
    for (at, long, _), (following, _, _) in pairwise(rows):
        assert at + long == following
    for _, long, what in rows:
        lessons = re.findall(r"[Ll]esson (\d\d)", what)
        if lessons and "xercise" not in what:
            assert long >= MINUTES[lessons[0]] + TALK_MIN, what
        if exercises := re.fullmatch(r"Exercises of lesson (\d\d)", what):
            (name,) = (path.stem for path in LESSONS if path.name.startswith(exercises[1]))
            assert long == sum(minutes for _, minutes, _ in guide.exercises_of(name, guide.ROOT))


def test_half_a_day_is_four_hours():
    assert sum(map(int, re.findall(r"^\| \d+:\d\d \| (\d+) \|", BLOCKS[0], re.MULTILINE))) == 240


def test_what_thirty_laptops_fetch():
    set_up = (guide.ROOT / "tools" / "set_up.sh").read_text()
    each_mb = int(re.search(r"up to (\d+) MB to fetch", set_up)[1])
    assert f"up to {each_mb} MB for each laptop, {30 * each_mb / 1000:.0f} GB for thirty" in BY_HAND


def test_the_guide_names_what_there_is():
    targets = re.findall(r"^([\w-]+):", (guide.ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"make (\w+)[ `]", "".join(re.findall(r"`[^`]*`", BY_HAND)))
    assert set(commands) >= {"offline", "site", "slides"} and set(commands) <= set(targets)
    for module in re.findall(r"-m (helpers\.\w+)", BY_HAND):
        assert list(guide.ROOT.glob(module.replace(".", "/") + "*")), module
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (guide.ROOT / "teaching" / link).exists(), link
