"""What every command prints: names as one line of text, on any stream."""

import io
import sys

from helpers.files import may_replace, printable, tolerant_streams


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
