"""Write the second half of teaching/guide.md from the lessons: minutes, questions, key points, wrong answers.

    python tools/guide.py              write it
    python tools/guide.py --check      write nothing; exit 1 if it is not what the lessons say

Run by `make guide` and `make check`. A lesson names its own minutes; they are shared out to its parts by words and by
lines of code in sight, as in the README's map. How long a lesson runs is what `make course` expects on two cores.
"""

import argparse
import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from run_course import reference_seconds

from helpers.files import ExitStatus, write_whole

ROOT = Path(__file__).resolve().parents[1]
GUIDE = Path("teaching", "guide.md")
MARK = "<!-- tools/guide.py writes what follows. -->\n"
WORDS_PER_MINUTE, LINES_PER_MINUTE = 150, 12  # as in the README: five seconds for a line
HEADING = re.compile(r"^## (.+)\n", re.MULTILINE)
BULLETS = re.compile(r"(?:^- .+\n(?:  .+\n)*)+", re.MULTILINE)


@dataclass
class Part:
    """What is under one heading: its texts, its lines of code in sight, and the names of the cells to be filled in."""

    texts: list[str] = field(default_factory=list)
    lines: int = 0
    answers: list[str] = field(default_factory=list)


def parts_of(path: Path) -> dict[str, Part]:
    """Return the parts of a notebook by their headings; that of what stands above the first heading is empty."""
    heading, parts = "", defaultdict(Part)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            text, *others = HEADING.split(cell.source + "\n")
            parts[heading].texts.append(text)
            for heading, text in zip(others[::2], others[1::2], strict=True):
                parts[heading].texts.append(text)
        elif not cell.metadata.get("jupyter", {}).get("source_hidden"):
            parts[heading].lines += len(cell.source.splitlines())
            if cell.metadata.get("nbgrader", {}).get("solution"):
                parts[heading].answers.append(cell.metadata.nbgrader.grade_id)
    return parts


def starts_of(parts: dict[str, Part], minutes: int) -> dict[str, int]:
    """Return the minute of the lesson at which each part begins."""
    words = [len(" ".join(part.texts).split()) for part in parts.values()]
    lines = [part.lines for part in parts.values()]
    costs = [some / WORDS_PER_MINUTE + few / LINES_PER_MINUTE for some, few in zip(words, lines, strict=True)]
    return {heading: round(minutes * sum(costs[:at]) / sum(costs)) for at, heading in enumerate(parts)}


def exercises_of(name: str, root: Path) -> list[tuple[str, int, list[str]]]:
    """Return the title of each exercise of a lesson, its minutes, and the wrong answers that its check is tested on."""
    sheet = root / "notebooks" / "solutions" / f"{name}.ipynb"
    if not sheet.exists():
        return []
    answers = (root / "tests" / "notebooks" / "wrong_answers" / f"{name}.py").read_text(encoding="utf-8")
    wrong = re.findall(r"^# %% ([\w-]+): (.+)$", answers, re.MULTILINE)
    exercises = []
    for heading, part in parts_of(sheet).items():
        if found := re.fullmatch(r"(\d.*) \((\d+) minutes\)", heading):
            exercises.append((found[1], int(found[2]), [what for cell, what in wrong if cell in part.answers]))
    return exercises


def written(root: Path) -> str:
    """Return what belongs below the guide's mark."""
    rows, pages = [], []
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        parts, exercises = parts_of(path), exercises_of(path.stem, root)
        opening, texts = parts[""].texts[0], [text for part in parts.values() for text in part.texts]
        title = opening.partition("\n")[0].removeprefix("# ")
        minutes = int(re.search(r"takes about\s+(\d+)\s+minutes", opening)[1])
        runs, practice = math.ceil(reference_seconds(path.stem) / 60), sum(one[1] for one in exercises)
        rows.append(f"| [{title}](../notebooks/{path.name}) | {minutes} | {runs} | {practice or '–'} |")
        question = "\n".join(f"> {line}".rstrip() for line in parts["Predict"].texts[0].strip().splitlines())
        plan = " · ".join(f"{start} {heading}" for heading, start in starts_of(parts, minutes).items() if heading)
        pages += [f"### {title}", question, f"*From minute* {plan}", BULLETS.findall("\n".join(texts))[-1].strip()]
        if exercises:
            pages.append(f"[Exercises](../notebooks/exercises/{path.name}), with answers that their checks reject:")
            lines = [f"{title} ({minutes} minutes): {'; '.join(wrong)}" for title, minutes, wrong in exercises]
            pages.append("\n".join(lines))
    table = "\n".join(["| lesson | minutes | of which it runs | exercises |", "|---|---|---|---|", *rows])
    return "\n\n".join(["## Minutes", table, "## Lesson by lesson", *pages]) + "\n"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the guide has to be written")
    check = parser.parse_args(arguments).check
    old = (root / GUIDE).read_text(encoding="utf-8")
    new = f"{old.partition(MARK)[0]}{MARK}\n{written(root)}"
    if check and old != new:
        print(f"{GUIDE.as_posix()} is not what the lessons say; run make guide")
        return ExitStatus.FOUND
    if old != new:
        write_whole(root / GUIDE, new)
    return ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
