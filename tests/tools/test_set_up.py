"""The set-up says in a sentence why a machine is not ready, before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "set_up.sh"


@pytest.fixture
def folder(tmp_path):
    """A folder whose name has a space and a letter that ASCII lacks, as many people's have."""
    folder = tmp_path / "Übung 1"
    folder.mkdir()
    return folder


def set_up(folder, python="", path="", before=()):
    command = [*before, "sh", str(SCRIPT), python, ".venv", "requirements.txt"]
    env = {**os.environ, "PATH": f"{path}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_too_little_disk(folder, tmp_path):
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    df.write_text("#!/bin/sh\necho Filesystem Blocks Used Available\necho disk 9000000 8000000 1000000\n")
    df.chmod(0o755)
    run = set_up(folder, path=f"{df.parent}:")
    assert run.returncode == 1 and "has 1000 MB free" in run.stderr and "4 GB" in run.stderr
    assert not list(folder.iterdir())


def test_no_python_of_a_supported_version(folder):
    run = set_up(folder, python="/there is no/python3")
    assert run.returncode == 1 and "tried: /there is no/python3" in run.stderr
    assert not list(folder.iterdir())


def test_a_read_only_folder(folder):
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount.append('mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$0" "$@"')
    probe = subprocess.run([*mount, "true"], cwd=folder, capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip("this system lets no test mount a folder")
    run = set_up(folder, before=mount)
    assert run.returncode == 1 and "Nothing can be written in" in run.stderr, run.stderr
