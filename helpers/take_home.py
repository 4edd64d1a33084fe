"""Turn a pipeline into a single file that runs without the course; `python -m helpers.pipelines NAME` prints it.

Of each module, only those functions, classes and constants are taken that the pipeline reaches. Nothing is imported to
find them: their source text is read, so that it takes no time and needs no framework.
"""

from __future__ import annotations

import ast
import builtins
import importlib.metadata
import json
import symtable
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["TakeHomeError", "take_home"]

Name = tuple[str, str]  # a module and what it defines

MAX_WIDTH = 120
EPOCHS, FOREVER = ("helpers.epochs", "Epochs"), ("helpers.pipelines.generator", "forever")
FIND_IMAGES, IMAGE_FILES = ("helpers.folders", "find_images"), ("helpers.folders", "ImageFiles")
STAND_INS = {("helpers.files", "locked"): ("helpers.plain_lock", "locked")}  # which needs no filelock
REWRITTEN = {  # what holds in the course's folder only
    "helpers.folders": (
        """(
            f"{printable(folder)}: no such folder; python data_scripts/make_images.py makes images to start with"
        )""",
        """(f"{printable(folder)}: no such folder")""",
    ),
    "helpers.packing": ("Path(__file__).resolve().parent.parent /", "Path(__file__).resolve().parent /"),
}
LICENCE = """\
# Copyright 2026 the authors of the course
# Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
# SPDX-License-Identifier: Apache-2.0
"""
PACKAGES = (  # names to read, and those of the distributions, of which one is installed
    ("TensorFlow", ("tensorflow", "tensorflow-cpu")),
    ("Keras", ("keras",)),
    ("numpy", ("numpy",)),
    ("OpenCV", ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")),
)


class TakeHomeError(Exception):
    """A pipeline that cannot be taken home; the text says where in the source, and why."""


def take_home(name: str) -> str:
    """Return the text of one file with the pipeline `name`, `find_images`, and all that they use of `helpers`.

    Raises
    ------
    TakeHomeError
        If a module is missing, or does something that cannot be taken out of it.
    """
    pipeline = (f"helpers.pipelines.{name}", name)
    reached = _reach([FIND_IMAGES, IMAGE_FILES, pipeline])
    if EPOCHS in reached:  # it gives the next batch, not batch k: `fit` needs it without an end
        reached = _reach([FIND_IMAGES, IMAGE_FILES, FOREVER, pipeline])
    public = {"ImageFiles", "find_images", name} | ({"forever"} if FOREVER in reached else set())
    modules = _in_reading_order(reached)
    _refuse_conflicts(reached)
    parts = [
        _docstring(name, reached),
        LICENCE,
        "from __future__ import annotations\n",
        _import_block(reached),
        f"__all__ = {json.dumps(sorted(public))}\n",
    ]
    return "\n".join(parts) + "".join(_section(module, reached) for module in modules)


# ---- one module ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Import:
    """One name that a module imports; `what` is None for a whole module."""

    module: str
    what: str | None
    alias: str | None


@dataclass(frozen=True)
class _Statement:
    """A function, a class or an assignment: its lines, with the comment right above it."""

    first_line: int
    last_line: int
    text: str
    binds: tuple[str, ...]
    uses: tuple[str, ...]
    is_block: bool


@dataclass(frozen=True)
class _Module:
    statements: tuple[_Statement, ...]
    by_name: dict[str, _Statement] = field(default_factory=dict)
    imports: dict[str, list[_Import]] = field(default_factory=dict)


@cache
def _module(name: str) -> _Module:
    source = _source(name)
    lines, tree = source.splitlines(), ast.parse(source)
    statements, imports = [], {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for bound, one in _imported(node):
                imports.setdefault(bound, []).append(one)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign):
            statements.append(_statement(name, node, lines))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # no docstring
            raise TakeHomeError(f"{name}, line {node.lineno}: neither an import nor a definition")
    by_name = {bound: statement for statement in statements for bound in statement.binds}
    return _Module(tuple(statements), by_name, imports)


def _source(module: str) -> str:
    path = Path(__file__).resolve().parents[1].joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "; make export writes it from its notebook" if "pipelines" in path.parts else ""
        raise TakeHomeError(f"{path}: no such file{hint}") from None
    if module in REWRITTEN:
        old, new = REWRITTEN[module]
        if source.count(old) != 1:
            raise TakeHomeError(f"{path}: no longer holds what REWRITTEN in helpers/take_home.py replaces: {old}")
        source = source.replace(old, new)
    return source


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, _Import]]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.asname or alias.name.partition(".")[0], _Import(alias.name, None, alias.asname)
        elif node.module != "__future__":
            yield alias.asname or alias.name, _Import(node.module, alias.name, alias.asname)


def _statement(module: str, node: ast.stmt, lines: list[str]) -> _Statement:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import | ast.ImportFrom) and any(_is_ours(one.module) for _, one in _imported(inner)):
            raise TakeHomeError(f"{module}, line {inner.lineno}: imports a helper inside; import it at the top")
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    while lines[first - 2].startswith("#") and not lines[first - 2].startswith(("# %%", "# ----")):
        first -= 1
    text = "\n".join(lines[first - 1 : node.end_lineno])
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return _Statement(first, node.end_lineno, text, (node.name,), _names_used(text), True)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    binds = [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
    return _Statement(first, node.end_lineno, text, tuple(binds), _names_used(text), False)


def _names_used(text: str) -> tuple[str, ...]:
    """Return the names that a piece of source looks up in its module, not in a function's own variables."""
    found, ahead = set(), [symtable.symtable(text, "text", "exec")]
    while ahead:
        table = ahead.pop()
        is_module = table.get_type() == "module"
        read = [symbol for symbol in table.get_symbols() if symbol.is_referenced()]
        found |= {symbol.get_name() for symbol in read if is_module or symbol.is_global()}
        ahead += table.get_children()
    return tuple(sorted(found))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "helpers"


# ---- what is reached -------------------------------------------------------------------------------------------------


def _reach(roots: list[Name]) -> dict[Name, list[Name]]:
    """Return what is reached from the roots: each with what it uses itself."""
    reached, ahead = {}, list(reversed(roots))
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached[name] = [found for used in _uses(name) if (found := _resolved(name[0], used)) is not None]
            ahead += reversed(reached[name])
    return reached


def _uses(name: Name) -> tuple[str, ...]:
    module, wanted = name
    if wanted not in _module(module).by_name:
        raise TakeHomeError(f"{module}: does not define {wanted}")
    return _module(module).by_name[wanted].uses


def _resolved(module: str, used: str) -> Name | None:
    """Return where a name of a module is defined in `helpers`; None if it is somebody else's."""
    there = _module(module)
    if used in there.by_name:
        return STAND_INS.get((module, used), (module, used))
    if used in there.imports:
        one = there.imports[used][0]
        if not _is_ours(one.module):
            return None
        if one.what is None or one.alias is not None:
            raise TakeHomeError(f"{module}: imports {one.module} as a whole or renamed; import names from it")
        return _resolved(one.module, one.what)
    if hasattr(builtins, used) or used == "__file__":
        return None
    raise TakeHomeError(f"{module}: {used} is neither defined nor imported there")


def _in_reading_order(reached: dict[Name, list[Name]]) -> list[str]:
    """Return the modules, each after those that it uses."""
    uses: dict[str, list[str]] = {}
    for (module, _), needed in reached.items():
        uses.setdefault(module, []).extend(other for other, _ in needed if other != module)
    ordered: list[str] = []

    def visit(module: str) -> None:
        for other in uses[module]:
            if other not in ordered:
                visit(other)
        if module not in ordered:
            ordered.append(module)

    for module in uses:
        visit(module)
    return ordered


def _refuse_conflicts(reached: dict[Name, list[Name]]) -> None:
    owners: dict[str, str] = {}
    imported = {bound for module, name in reached for bound, _ in _external(module, name)}
    for module, name in reached:
        for bound in _module(module).by_name[name].binds:
            if owners.setdefault(bound, module) != module or bound in imported:
                raise TakeHomeError(f"{module}: {bound} is something else in {owners[bound]} or an import; rename one")


# ---- the file --------------------------------------------------------------------------------------------------------


def _docstring(name: str, reached: dict[Name, list[Name]]) -> str:
    is_endless, has_processes = FOREVER in reached, any(one.module == "multiprocessing" for one in _imports(reached))
    wanted = f"find_images, forever, {name}" if is_endless else f"find_images, {name}"
    fed = "forever(batches), steps_per_epoch=len(batches), shuffle=False" if is_endless else "batches"
    guard = 'Where worker processes read, a program must call it below `if __name__ == "__main__":`.\n'
    versions = f"It needs {_versions()}, which it was written with, and nothing else."
    return f'''"""The pipeline `{name}` of the course "Feeding images", and all that it needs of it, in one file.

    from my_pipeline import {wanted}  # this file, saved as my_pipeline.py

    files = find_images("folder")  # one subfolder for each class
    batches = {name}(files, image_size=(224, 224), batch_size=32, seed=0)
    for images, labels in batches:  # an epoch of uint8 (n, 224, 224, 3) and int64 (n,)
        ...
    model.fit({fed}, epochs=5)

{guard if has_processes else ""}{textwrap.fill(versions, MAX_WIDTH)}
"""
'''


def _versions() -> str:
    found = []
    for title, distributions in PACKAGES:
        for distribution in distributions:
            try:
                found.append(f"{title} {importlib.metadata.version(distribution)}")
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            found.append(title)
    return f"{', '.join(found[:-1])} and {found[-1]}"


def _external(module: str, name: str) -> Iterator[tuple[str, _Import]]:
    """Yield what one definition uses of Python's library and of other packages."""
    there = _module(module)
    for used in there.by_name[name].uses:
        if used not in there.by_name:
            yield from ((used, one) for one in there.imports.get(used, ()) if not _is_ours(one.module))


def _imports(reached: dict[Name, list[Name]]) -> set[_Import]:
    return {one for module, name in reached for _, one in _external(module, name)}


def _import_block(reached: dict[Name, list[Name]]) -> str:
    needed = _imports(reached)
    groups = []
    for is_standard in (True, False):
        group = [one for one in needed if (one.module.partition(".")[0] in sys.stdlib_module_names) == is_standard]
        whole = sorted(f"import {_with_alias(one.module, one)}" for one in group if one.what is None)
        parts: dict[str, list[str]] = {}
        for one in group:
            if one.what is not None:
                parts.setdefault(one.module, []).append(_with_alias(one.what, one))
        groups.append("".join(f"{line}\n" for line in [*whole, *(_from(*one) for one in sorted(parts.items()))]))
    return "\n".join(group for group in groups if group)


def _with_alias(name: str, one: _Import) -> str:
    return f"{name} as {one.alias}" if one.alias else name


def _from(module: str, names: list[str]) -> str:
    names = sorted(names, key=lambda name: (not name.isupper(), name.islower(), name))
    return f"from {module} import {', '.join(names)}"


def _section(module: str, reached: dict[Name, list[Name]]) -> str:
    """Return what is taken from one module, in its order, below a line that says where it is from."""
    there = _module(module)
    title = f"# ---- from {module.replace('.', '/')}.py "
    text, before = f"\n\n{title.ljust(MAX_WIDTH, '-')}\n", None
    for statement in there.statements:
        if any((module, bound) in reached for bound in statement.binds):
            if statement.is_block or (before is not None and before.is_block):
                text += "\n\n"
            elif before is None or statement.first_line > before.last_line + 1:
                text += "\n"
            text, before = f"{text}{statement.text}\n", statement
    return text
