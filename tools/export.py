"""Write the files whose source is a notebook: `helpers/pipelines/*.py` and `notebooks/exercises/*.ipynb`.

    python tools/export.py            write each file that differs from what its notebook says
    python tools/export.py --check    write nothing; name each file out of sync and exit 1

A lesson's cells that start with `#| export` become the module that its `#| default_exp pipelines.NAME` names (nbdev).
A notebook of `notebooks/solutions/` becomes the exercise sheet of the same name: solutions out, tests left in
(nbgrader). `helpers/pipelines/__init__.py` is written by hand. Run by `make export` and `make check`.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LESSONS = "notebooks"
SOLUTIONS = "notebooks/solutions"
SHEETS = "notebooks/exercises"
MODULES = "helpers/pipelines"
BY_HAND = "__init__.py"
MODULE_NAME = re.compile(r"pipelines\.[a-z][a-z0-9_]*")


class ExportError(Exception):
    """A notebook from which nothing can be exported; the text says which and what to do."""


@dataclass(frozen=True)
class Generated:
    """What the notebooks make: `files`, relative path -> content, and `findings`, one line for each fault in them."""

    files: dict[str, bytes]
    findings: list[str]


def generate(root: Path) -> Generated:
    """Generate every file in a temporary folder laid out as the repository, so that relative paths come out the same.

    Raises
    ------
    ExportError
        A notebook cannot be exported: one line for each fault.
    """
    root = Path(root).resolve()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        _copy_sources(root, tree)
        with contextlib.chdir(tree):
            faults += _export_modules()
            findings = _tidy_modules() if not faults else []
            faults += _export_sheets()
        if faults:
            raise ExportError("\n".join(faults))
        made = sorted([*tree.glob(f"{MODULES}/*.py"), *tree.glob(f"{SHEETS}/*.ipynb")])
        # read_text turns a Windows line end into \n: the files are the same from every machine
        files = {path.relative_to(tree).as_posix(): path.read_text(encoding="utf-8").encode() for path in made}
    return Generated(files, findings)


def differences(root: Path, files: dict[str, bytes]) -> list[str]:
    """Name each file of `root` that is missing, differs from the generated one, or has no source any more."""
    root = Path(root)
    faults = []
    for name, content in files.items():
        path = root / name
        if not path.exists():
            faults.append(f"{name}: missing; run python tools/export.py")
        elif path.read_bytes() != content:
            faults.append(f"{name}: differs from its notebook; change the notebook, then run python tools/export.py")
    return faults + _without_source(root, files)


def write(root: Path, files: dict[str, bytes]) -> list[str]:
    """Write each file that differs, whole or not at all, and return the names of those written."""
    written = []
    for name, content in files.items():
        path = Path(root) / name
        if path.exists() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        written.append(name)
    return written


def make_sheet(solution: Path) -> str:
    """Return the exercise sheet of one solution notebook, as the text of its file.

    Raises
    ------
    ExportError
        The notebook has no cell ids, its solution markers do not match, or its nbgrader metadata is wrong.
    """
    solution = Path(solution)
    import nbformat
    from nbgrader import preprocessors

    quiet = logging.getLogger("export.nbgrader")
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    content = json.loads(solution.read_text(encoding="utf-8"))
    if (content.get("nbformat"), content.get("nbformat_minor")) != (4, 5):
        raise ExportError(f"{solution.as_posix()}: not in format 4.5; open and save it in JupyterLab")
    sheet = nbformat.from_dict(content)
    for cell in sheet.cells:
        cell.source = "".join(cell.source)
    # The steps of `nbgrader generate_assignment`, in its order, without the gradebook and without hidden tests.
    steps = ("LockCells", "ClearSolutions", "ClearOutput", "CheckCellMetadata", "ComputeChecksums")
    try:
        for step in steps:
            sheet, _ = getattr(preprocessors, step)(log=quiet).preprocess(sheet, {})
    except Exception as error:  # nbgrader's own errors have no common base
        reason = str(error.__cause__ or error.__context__ or error).splitlines()[0]
        raise ExportError(f"{solution.as_posix()}: nbgrader: {reason}; mend that cell or its metadata") from error
    return nbformat.writes(sheet) + "\n"


def _copy_sources(root: Path, tree: Path) -> None:
    for folder in (LESSONS, SOLUTIONS, MODULES, SHEETS):
        (tree / folder).mkdir(parents=True)
    for folder in (LESSONS, SOLUTIONS):
        for notebook in sorted((root / folder).glob("*.ipynb")):
            shutil.copyfile(notebook, tree / folder / notebook.name)
    if (root / "pyproject.toml").exists():
        shutil.copyfile(root / "pyproject.toml", tree / "pyproject.toml")


def _export_modules() -> list[str]:
    """Run nbdev's `nb_export` on each lesson of the current folder; return what it could not do."""
    lessons = sorted(Path(LESSONS).glob("*.ipynb"))
    if not lessons:
        return []
    from nbdev.export import nb_export

    # nbdev makes imports of the library it writes relative. A pipeline must work when its file is copied elsewhere,
    # so `from helpers.images import ...` has to stay as the lesson shows it: write into a library of another name.
    library = Path("build")
    faults, maker = [], _module_maker()
    for lesson in lessons:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Notebook .* uses `#. export`")
            try:
                nb_export(lesson.as_posix(), lib_path=library.as_posix(), mod_maker=maker)
            except UserWarning:
                faults.append(f"{lesson.as_posix()}: exports a cell to no module; add `#| default_exp pipelines.NAME`")
            except ExportError as error:
                faults.append(str(error))
            except (KeyError, TypeError, ValueError) as error:
                faults.append(f"{lesson.as_posix()}: nbdev cannot export it: {error}; mend the notebook")
    for module in sorted(library.glob("pipelines/*.py")):
        os.replace(module, Path(MODULES) / module.name)
    return faults


def _module_maker():
    """Return what nbdev calls for each module: it accepts `pipelines.NAME`, once."""
    from nbdev.maker import ModuleMaker

    made = {}

    def maker(*, dest, name, nb_path, is_new, solo_nb):
        if not MODULE_NAME.fullmatch(name):
            raise ExportError(f"{nb_path}: exports to {name!r}; a lesson's module is called `pipelines.NAME`")
        if name in made:
            raise ExportError(f"{nb_path}: exports to {name}, as {made[name]} does already; give it another name")
        made[name] = nb_path
        return ModuleMaker(dest=dest, name=name, nb_path=nb_path)

    return maker


def _tidy_modules() -> list[str]:
    """Format the modules with the project's ruff settings; return what `ruff check` finds in them."""
    if not any(Path(MODULES).glob("*.py")):
        return []
    from ruff import find_ruff_bin

    def ruff(*arguments):
        command = [find_ruff_bin(), *arguments, "--no-cache", "--quiet", MODULES]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)
        return (done.stdout + done.stderr).splitlines()

    # Only nbdev's own line, the order of __all__, is put right here. Everything else is taught code: mend the lesson.
    ruff("check", "--fix-only", "--fixable", "RUF022")
    findings = ruff("format") + ruff("check", "--output-format", "concise")
    return [f"{line.replace(os.sep, '/')}; mend the lesson it comes from" for line in findings if line.strip()]


def _export_sheets() -> list[str]:
    faults = []
    for solution in sorted(Path(SOLUTIONS).glob("*.ipynb")):
        try:
            sheet = make_sheet(solution)
        except (ExportError, ValueError) as error:
            faults.append(str(error) if isinstance(error, ExportError) else f"{solution.as_posix()}: {error}")
        else:
            (Path(SHEETS) / solution.name).write_text(sheet, encoding="utf-8")
    return faults


def _without_source(root: Path, files: dict[str, bytes]) -> list[str]:
    found = [*root.glob(f"{MODULES}/*.py"), *root.glob(f"{SHEETS}/*.ipynb")]
    names = sorted(path.relative_to(root).as_posix() for path in found if path.name != BY_HAND)
    return [f"{name}: no notebook makes it any more; delete it" for name in names if name not in files]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; name each file out of sync and exit 1")
    options = parser.parse_args(arguments)
    try:
        generated = generate(root)
    except ExportError as error:
        print(error)
        return 1
    if not options.check:
        for name in write(root, generated.files):
            print(f"{name}: written")
    faults = differences(root, generated.files) + generated.findings
    print("\n".join(faults) if faults else f"{len(generated.files)} generated files in sync with their notebooks")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
