"""The package that others install has all its files, and declares all that it imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {  # what is imported only where the reader has it
    "kaggle": "Kaggle's own client, for State Farm",
    "jax": "the accelerator, where Keras runs on it",
    "torch": "the accelerator, where Keras runs on it",
}


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


EXTRAS = {"far": "requirements-far.in", "store": "requirements-store.in"}


def declared(*names):
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    return {re.split("[~<>;[]", line)[0].strip() for line in lines if line and not line.startswith("#")}


def test_everything_imported_is_declared():
    files = [*ROOT.glob("helpers/**/*.py"), *ROOT.glob("data_scripts/*.py"), *ROOT.glob("deploy/*.py")]
    own = {"helpers", *(path.stem for path in files)}
    names = {name for path in files for name in imported_by(path)} - own - set(sys.stdlib_module_names) - set(OPTIONAL)
    distributions = packages_distributions()
    known = declared("requirements.in", *EXTRAS.values())
    undeclared = {name for name in names if not {one.lower() for one in distributions[name]} & known}
    assert len(names) > 10 and not undeclared


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("pyproject.toml", "requirements.in", *EXTRAS.values(), "LICENSE", "helpers"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", name]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        for file in filter(None, listed.split("\0")):
            if (ROOT / file).exists():
                (source / file).parent.mkdir(parents=True, exist_ok=True)
                (source / file).write_bytes((ROOT / file).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True, timeout=120, cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_imports_and_has_all_its_files(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    info = PathDistribution(next(tmp_path.glob("*.dist-info")))
    required = {extra: set() for extra in (None, *EXTRAS)}
    for line in info.requires:
        extra = re.search(r"extra == ['\"](\w+)", line)
        required[extra and extra[1]].add(re.split("[~<>;[]", line)[0].strip())
    assert required == {None: declared("requirements.in")} | {extra: declared(name) for extra, name in EXTRAS.items()}
    tracked = subprocess.run(["git", "ls-files", "helpers"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    missing = [name for name in tracked if (ROOT / name).exists() and not (tmp_path / name).exists()]
    assert len(tracked) > 20 and not missing
    code = f"""
import sys, pkgutil, importlib
sys.path.insert(0, {str(tmp_path)!r})
import helpers, helpers.pipelines
assert helpers.__file__.startswith({str(tmp_path)!r}), helpers.__file__
for pipeline in helpers.pipelines.PIPELINES.values():
    pipeline.load()
for module in pkgutil.walk_packages(helpers.__path__, "helpers."):
    module.name.endswith("__main__") or importlib.import_module(module.name)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr


def test_the_lock_with_hashes_has_the_same_versions():
    def pinned(name: str) -> set[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return {line.removesuffix(" \\").strip() for line in lines if "==" in line and not line.startswith(" ")}

    assert pinned("requirements.lock") == pinned("requirements.txt")
    locked = {re.split("[=[]", line)[0] for line in pinned("requirements.txt")}
    wanted = {name.replace("_", "-") for name in declared("requirements.in", *EXTRAS.values())}
    assert wanted <= locked, "one set-up brings all that the lessons need"
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert len(re.findall(r"\\\n    --hash=sha256:[0-9a-f]{64}", text)) >= len(pinned("requirements.txt"))
    assert not re.search(r"==\S+( ;[^\\\n]*)?\n", text), "a package without a hash"
