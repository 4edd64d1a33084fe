"""Write the first code cell of every notebook, which prepares a kernel where the course is not set up.

    python tools/setup_cell.py            write it into each notebook that has none, or another one
    python tools/setup_cell.py --check    write nothing; name each such notebook and exit 1

On Colab and Kaggle a notebook lies alone in a folder. The cell finds the course beside it, or fetches it, and goes on
in the course's folder; `helpers.elsewhere` does the rest. In the environment that `make course` makes, it does nothing.
Run by `make export` and `make check`.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.files import ExitStatus, tolerant_streams, write_whole

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("notebooks", "notebooks/in_depth", "notebooks/solutions")  # the sheets are made from the solutions
CELL_ID = "elsewhere"

# Where git finds the course. It has no public address yet: set it here once it has one, and run `make export`.
ADDRESS = ""

SOURCE = """\
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

if not find_spec("helpers"):  # on Colab, on Kaggle, or in another kernel
    places = [*Path.cwd().parents, *Path.cwd().glob("*")]
    course = next((path for path in places if (path / "helpers/elsewhere.py").exists()), None)
    if not course:
        {address}
        course = Path.cwd() / "feeding-images"
        subprocess.run(["git", "clone", "--quiet", "--depth=1", address, course], check=True)
    os.chdir(course / "{folder}")
    sys.path.insert(0, str(course))

from helpers.elsewhere import prepare

prepare()  # nothing where the course is set up"""
# Without an address the reader sees this line in the traceback, and in it what to do.
UNKNOWN = 'address = os.environ["COURSE_ADDRESS"]  # unpack the course here, or set this for git'
KNOWN = 'address = os.environ.get("COURSE_ADDRESS", "{address}")'


def source(folder: str, address: str = ADDRESS) -> str:
    """Return the cell's source for the notebooks of a folder."""
    line = KNOWN.format(address=address) if address else UNKNOWN
    return SOURCE.format(address=line, folder=folder)


def put(notebook: NotebookNode, folder: str) -> bool:
    """Make the cell the first after the title; return whether the notebook has changed."""
    cell = nbformat.v4.new_code_cell(source(folder), id=CELL_ID, execution_count=1)
    cell.metadata = {"jupyter": {"source_hidden": True}}
    if cell == notebook.cells[1]:
        return False
    others = [one for one in notebook.cells if one.id != CELL_ID]
    if len(others) == len(notebook.cells):  # it is new: the cells after it were run one place later
        for one in others:
            for counted in [one, *one.get("outputs", [])]:
                if counted.get("execution_count"):
                    counted.execution_count += 1
    notebook.cells = [others[0], cell, *others[1:]]
    return True


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run from the command line; return the exit status."""
    tolerant_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; name each notebook without it and exit 1")
    options, faults = parser.parse_args(arguments), 0
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            if put(notebook, folder):
                faults += 1
                what = "another first code cell; run tools/setup_cell.py" if options.check else "written"
                print(f"{folder}/{path.name}: {what}")
                if not options.check:
                    write_whole(path, nbformat.v4.writes(notebook) + "\n")
    return ExitStatus.FOUND if faults and options.check else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
