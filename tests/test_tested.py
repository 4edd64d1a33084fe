"""`make test` runs nothing only when nothing has changed."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "tools" / "tested.py"
spec = importlib.util.spec_from_file_location("tested", PATH)
tested = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tested)


@pytest.fixture
def root(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("build/\n")
    (tmp_path / "module.py").write_text("one = 1\n")
    return tmp_path


def test_the_same_files_need_no_second_run(root, capsys):
    assert tested.main([], root) == 1
    tested.main(["--note"], root)
    assert tested.main([], root) == 0
    assert "AGAIN=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "module.py").write_text("one = 2\n"),
        lambda root: (root / "module.py").unlink(),
        lambda root: (root / "module.py").rename(root / "other.py"),
        lambda root: (root / "new.py").write_text(""),
    ],
    ids=["changed", "removed", "renamed", "added"],
)
def test_any_change_needs_one(root, change):
    tested.main(["--note"], root)
    change(root)
    assert tested.main([], root) == 1


def test_without_git_they_always_run(root):
    tested.main(["--note"], root)
    subprocess.run(["rm", "-rf", root / ".git"], check=True)
    assert tested.main([], root) == 1
    tested.main(["--note"], root)
    assert tested.main([], root) == 1
