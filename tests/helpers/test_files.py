"""What every command does with files: names as one line of text, on any stream, and locks."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.files import locked, may_replace, printable, tolerant_streams

ROOT = Path(__file__).resolve().parents[2]


def test_a_name_is_one_line_that_steers_no_terminal():
    assert printable("a\nb\x1b[2J\x07\x9b\udcff\u202e.jpg") == r"a\nb\x1b[2J\x07\x9b\udcff\u202e.jpg"
    for name in ("plain.jpg", "ü 写真 'x' \\ [/b] :cat:", "😀"):
        assert printable(name) == name


def test_streams_take_what_their_encoding_lacks(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", None)
    tolerant_streams()
    print("ü 写\udcff", flush=True)
    assert written.getvalue() == b"\xfc \\u5199\\udcff\n"


def test_what_is_not_ours_is_not_replaced(tmp_path):
    own, other, empty = tmp_path / "own", tmp_path / "other", tmp_path / "empty"
    own.write_bytes(b"... made by us ...")
    other.write_bytes(b"a photograph")
    empty.touch()
    assert [may_replace(path, b"made by us") for path in (own, empty, tmp_path / "new")] == [True] * 3
    assert [may_replace(path, b"made by us") for path in (other, tmp_path, "/dev/null")] == [False] * 3


def test_a_lock_keeps_others_out_for_as_long_as_its_block_runs(tmp_path):
    path = tmp_path / ".lock"
    with (
        locked(path, "mine"),
        pytest.raises(BlockingIOError, match=r"^taken$"),
        locked(path, "taken"),
    ):
        pass
    with locked(path, "taken"):
        pass


def test_a_lock_is_the_groups(tmp_path):
    with locked(tmp_path / ".lock", "taken"):
        assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o664


def test_a_lock_can_be_waited_for(tmp_path):
    path, order = tmp_path / ".lock", []

    def wait():
        with locked(path, "taken", wait_s=60):
            order.append("second")

    with locked(path, "mine"):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, sys; from helpers.files import locked\n"
        "with locked(sys.argv[1], ''): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, tmp_path / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), locked(tmp_path / ".lock", "taken"):
            pass
        process.kill()
        process.wait(30)
        with locked(tmp_path / ".lock", "taken", wait_s=30):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_does_not_wait_for_a_process_forked_in_it(tmp_path):
    with locked(tmp_path / ".lock", "taken"):
        if not (child := os.fork()):
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path / ".lock", "taken"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
