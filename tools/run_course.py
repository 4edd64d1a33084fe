"""Make the images, run a copy of every lesson under build/, print the scoreboard. `make course` calls it.

Tracked files stay as they are. A lesson that ran before, and that nothing has changed since, is not run again;
``--again`` runs all.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "course"
CELL_TIMEOUT_S = 1200


def main() -> int:
    """Run the course; return the number of lessons that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="also run the lessons that ran before and did not change")
    again = parser.parse_args().again
    subprocess.run([sys.executable, str(ROOT / "data_scripts" / "make_images.py")], check=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    failed = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")) if not run_lesson(path, again)]
    print(f"The lessons as they ran on this machine: {BUILD.relative_to(ROOT)}/")
    if failed:
        print(f"Failed: {', '.join(failed)}. The error stands in the lesson's last output.")
    subprocess.run([sys.executable, "-m", "helpers.scoreboard"], cwd=ROOT, check=not failed)
    return len(failed)


def run_lesson(path: Path, again: bool) -> bool:
    """Run a copy of one lesson, cell by cell with progress; tell whether it went through."""
    target, stamp = BUILD / path.name, BUILD / f"{path.stem}.ran"
    state = _state_of(path)
    if not again and target.exists() and stamp.exists() and stamp.read_text() == state:
        print(f"{path.stem}: ran before and did not change (make course AGAIN=1 runs it again)")
        return True
    stamp.unlink(missing_ok=True)
    notebook = nbformat.read(path, as_version=4)
    code_cells = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": BUILD}},
        extra_arguments=["--log-level=ERROR"],  # the kernel warns that it talks to us without encryption
    )
    started = time.monotonic()
    try:
        with client.setup_kernel(), tqdm(total=len(code_cells), desc=path.stem, unit="cell", ncols=90) as bar:
            for number in code_cells:
                client.execute_cell(notebook.cells[number], number)
                bar.update()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print(f"{path.stem}: {error}", file=sys.stderr)
        return False
    finally:
        _write(notebook, target)
    stamp.write_text(state)
    print(f"{path.stem}: {time.monotonic() - started:.0f} s")
    return True


def _write(notebook: nbformat.NotebookNode, target: Path) -> None:
    part = target.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, target)


def _state_of(path: Path) -> str:
    """Return a hash of all that a lesson's outcome depends on: itself, the helpers, the lock, the number of images."""
    state = hashlib.sha256(os.environ.get("COURSE_IMAGES", "").encode())
    for source in [path, ROOT / "requirements.txt", *sorted((ROOT / "helpers").rglob("*.py"))]:
        state.update(source.read_bytes())
    return state.hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the program has said why
