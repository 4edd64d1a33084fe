"""Print a pipeline as a single file that needs only TensorFlow, OpenCV and NumPy, and no code from this course.

python -m helpers.pipelines NAME > my_pipeline.py

Of each module, only the functions, classes and constants that the pipeline uses are taken. Their source is read, and
nothing is imported to find them.
"""

import argparse
import ast
import builtins
import importlib.metadata
import json
import symtable
import sys
import textwrap
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from helpers.files import ExitStatus
from helpers.pipelines import PIPELINES

__all__ = ["TakeHomeError", "take_home"]

MAX_WIDTH = 120
REWRITTEN = {  # what holds in the course's folder only
    "helpers.listing": ("{_TO_START_WITH}", ""),
    "helpers.packing": ("Path(__file__).resolve().parent.parent /", "Path(__file__).resolve().parent /"),
}
TITLES = {"tensorflow": "TensorFlow", "keras": "Keras", "numpy": "numpy", "cv2": "OpenCV"}


class TakeHomeError(Exception):
    """A pipeline that cannot be taken home; the text says where in the source, and why."""


class _Import(NamedTuple):
    bound: str  # the name that it gives
    module: str
    statement: str  # "import numpy as np", or "from pathlib import"
    what: str  # the name that is added to the latter


class _Definition(NamedTuple):
    module: str
    text: str  # with decorators and the comment right above
    binds: tuple[str, ...]
    uses: tuple[str, ...]
    is_block: bool  # a function or a class


def take_home(name: str) -> str:
    """Return the text of one file with the pipeline `name`, `find_images`, and all that they use of `helpers`.

    A TakeHomeError is raised if a module is missing, or does something that cannot be taken out of it.
    """
    roots = [("helpers.folders", "find_images"), ("helpers.folders", "ImageFiles"), (f"helpers.pipelines.{name}", name)]
    reached, imports, modules = _reach(roots)
    guard = 'Where worker processes read, a program must call it below `if __name__ == "__main__":`.\n'
    guard = guard if any(one.module == "multiprocessing" for one in imports) else ""
    owners = importlib.metadata.packages_distributions()
    *versions, last = [f"{title} {importlib.metadata.version(owners[one][0])}" for one, title in TITLES.items()]
    needs = f"It needs {', '.join(versions)} and {last}, which it was written with, and nothing else."
    text = f'''"""The pipeline `{name}` of the course "Feeding images", and all that it needs of it, in one file.

    from my_pipeline import find_images, {name}  # this file, saved as my_pipeline.py

    files = find_images("folder")  # one subfolder for each class
    batches = {name}(files, image_size=(224, 224), batch_size=32, seed=0)
    for images, labels in batches:  # an epoch of uint8 (n, 224, 224, 3) and int64 (n,)
        ...
    model.fit(batches, epochs=5)

{guard}{textwrap.fill(needs, MAX_WIDTH)}
"""

# Copyright 2026 the authors of the course
# Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

{_import_block(imports)}
__all__ = {json.dumps(sorted(root for _, root in roots))}
'''
    for module in modules:
        taken = [one for one in dict.fromkeys(_module(module)[0].values()) if one in reached]
        title = f"# ---- from {module.replace('.', '/')}.py ".ljust(MAX_WIDTH, "-")
        text += f"\n\n{title}\n" if taken else ""
        for before, one in zip([None, *taken], taken, strict=False):
            is_apart = one.is_block or (before is not None and before.is_block)
            text += ("\n\n" if is_apart else "\n" if before is None else "") + f"{one.text}\n"
    return text


def _import_block(imports: set[_Import]) -> str:
    """Return the imports of Python's library, and below them those of other packages, in the usual order."""
    parts: dict[tuple[bool, bool, str], list[str]] = {}
    for one in imports:
        is_foreign = one.module.partition(".")[0] not in sys.stdlib_module_names
        parts.setdefault((is_foreign, one.what != "", one.statement), []).append(one.what)
    groups = ["", ""]
    for (is_foreign, _, statement), names in sorted(parts.items()):
        names.sort(key=lambda name: (not name.isupper(), name.islower(), name))
        groups[is_foreign] += f"{statement} {', '.join(names)}".rstrip() + "\n"
    return "\n".join(groups)


def _reach(roots: list[tuple[str, str]]) -> tuple[set[_Definition], set[_Import], list[str]]:
    """Return the definitions and imports that the roots need, and their modules, each after those that it uses."""
    reached, imports, needs = set(), set(), {roots[-1][0]: []}

    def take(user: str, module: str, name: str) -> None:
        defined, imported = _module(module)
        needs.setdefault(module, [])
        if user != module:
            needs[user].append(module)
        if name in defined:
            if defined[name] not in reached:
                reached.add(defined[name])
                for used in defined[name].uses:
                    take(module, module, used)
        elif name not in imported:
            if not hasattr(builtins, name) and name != "__file__":
                raise TakeHomeError(f"{module}: {name} is neither defined nor imported there")
        elif imported[name][0].module.partition(".")[0] != "helpers":
            imports.update(imported[name])
        elif imported[name][0].what != name:
            raise TakeHomeError(f"{module}: imports {name} of helpers as a whole or renamed; import names from it")
        else:
            take(module, imported[name][0].module, name)

    for module, name in roots:
        take(roots[-1][0], module, name)  # as if the last one used the others: it comes last
    owners = {one.bound: one.module for one in imports}
    for one in reached:
        for bound in one.binds:
            if (owner := owners.setdefault(bound, one.module)) != one.module:
                raise TakeHomeError(f"{one.module}: {bound} is something else in {owner}; rename one")
    return reached, imports, list(TopologicalSorter(needs).static_order())


# ---- one module ------------------------------------------------------------------------------------------------------


@cache
def _module(name: str) -> tuple[dict[str, _Definition], dict[str, list[_Import]]]:
    """Return what a module defines, in its order, and what it imports, both by name."""
    source = _source(name)
    lines, defined, imported = source.splitlines(), {}, {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                if isinstance(node, ast.ImportFrom):
                    one = _Import(bound, node.module, f"from {node.module} import", ast.unparse(alias))
                else:
                    one = _Import(bound, alias.name, f"import {ast.unparse(alias)}", "")
                imported.setdefault(bound, []).append(one)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign):
            one = _definition(name, node, lines)
            defined.update(dict.fromkeys(one.binds, one))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # no docstring
            raise TakeHomeError(f"{name}, line {node.lineno}: neither an import nor a definition")
    return defined, imported


def _source(module: str) -> str:
    path = Path(__file__).resolve().parents[2].joinpath(*module.split(".")).with_suffix(".py")
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TakeHomeError(f"{path}: no such file; make export writes pipelines from their notebooks") from None
    old, new = REWRITTEN.get(module, ("", ""))
    if old and source.count(old) != 1:
        raise TakeHomeError(f"{path}: no longer holds what REWRITTEN in {__file__} replaces: {old}")
    return source.replace(old, new)


def _definition(module: str, node: ast.stmt, lines: list[str]) -> _Definition:
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    while lines[first - 2].startswith("#") and not lines[first - 2].startswith(("# %%", "# ----")):
        first -= 1
    for number in range(first, node.end_lineno + 1):
        if lines[number - 1].lstrip().startswith(("from helpers", "import helpers")):
            raise TakeHomeError(f"{module}, line {number}: imports a helper inside; import it at the top")
    text = "\n".join(lines[first - 1 : node.end_lineno])
    is_block = isinstance(node, ast.FunctionDef | ast.ClassDef)
    targets = [] if is_block else node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
    return _Definition(module, text, (node.name,) if is_block else tuple(names), _names_used(text), is_block)


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


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> ExitStatus:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.pipelines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(PIPELINES)}")
    name = parser.parse_args().name
    if name not in PIPELINES:
        print(f"{parser.prog} NAME > my_pipeline.py, and NAME is one of {', '.join(PIPELINES)}", file=sys.stderr)
        return ExitStatus.CANNOT
    try:
        text = take_home(name).encode()  # UTF-8, whatever the terminal's encoding
        with open(sys.stdout.fileno(), "wb", closefd=False) as output:
            output.write(text)
    except (TakeHomeError, OSError) as error:
        print(error, file=sys.stderr)
        return ExitStatus.CANNOT
    return ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
