"""What `data_scripts/download_images.py` promises, against a server and archives that break their promises."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import types
import zipfile
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import download
import pytest
import requests
from download import ArchiveError, DownloadError, fetch, unpack

from helpers.files import locked
from helpers.folders import find_images, find_unlabelled_images

ROOT = Path(__file__).resolve().parents[2]
needs_posix_signals = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


def _load_program():
    spec = importlib.util.spec_from_file_location("download_images", ROOT / "data_scripts" / "download_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = _load_program()


# ---- archives, and a server that may misbehave ----------------------------------------------------------------------


def photograph(number, size_bytes=3000):
    """Bytes that no archive makes smaller; nothing here decodes them."""
    return b"\xff\xd8" + random.Random(number).randbytes(size_bytes) + b"\xff\xd9"


def zipped(files, compression=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, data, compress_type=compression)
    return content.getvalue()


def tarred(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def tgz(files):
    return gzip.compress(tarred(files), mtime=0)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


FLOWERS = {f"flower_photos/{kind}/{n}.jpg": photograph(n) for n, kind in enumerate(["daisy", "rose", "tulip"] * 40)}
FLOWERS["flower_photos/LICENSE.txt"] = b"by whom"
ARCHIVE = tgz(FLOWERS)  # 360 KB


class Server(ThreadingHTTPServer):
    """Serves `files`; each of the `faults` goes wrong with one request, in their order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.faults, self.requests, self.released = {}, deque(), [], threading.Event()

    def handle_error(self, request, address):
        pass  # a client that is killed in mid-download


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = urlsplit(self.path).path  # a proxy is asked for a whole URL
        self.server.requests.append((path, self.headers.get("Range")))
        fault = self.server.faults.popleft() if self.server.faults else {}
        if path in self.server.files and "gzip" in self.headers.get("Accept-Encoding", ""):
            self.answer(gzip.compress(self.server.files[path]), encoding="gzip")  # as many servers do
        elif path in self.server.files:
            self.answer(self.server.files[path], **fault)
        else:
            self.send_error(404)

    def answer(
        self,
        content,
        *,
        status=None,  # instead of the file
        location=None,
        ranges=True,  # whether it knows them
        if_range=True,
        shifted=0,  # bytes that the part is off the one that was asked for
        tag=True,
        length=0,  # bytes that Content-Length lies by; None leaves it out
        endless=False,
        encoding=None,
        cut=None,  # bytes after which the connection ends
        stall=None,  # bytes after which nothing comes any more
    ):
        if location:
            self.send_response(302)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if status:
            return self.send_error(status)
        version = f'"{sha256(content)[:12]}"'
        start = self.asked(version if if_range else self.headers.get("If-Range")) + shifted if ranges else 0
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if tag:
            self.send_header("ETag", version)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if length is not None and not endless:
            self.send_header("Content-Length", str(len(body) + length))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        self.wfile.write(body[: cut if stall is None else stall])
        if stall is not None:
            self.wfile.flush()
            self.server.released.wait(20)
        while endless and not self.server.released.is_set():
            self.wfile.write(bytes(100_000))

    def asked(self, version):
        if self.headers.get("If-Range") not in (None, version):
            return 0
        return int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(download, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(download, "_SILENCE_S", 10.0)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def first_downloads(monkeypatch, tmp_path_factory):
    """Where hashes are kept that nobody publishes; not among the programs."""
    path = tmp_path_factory.mktemp("kept") / "first_downloads.json"
    monkeypatch.setattr(program, "_FIRST_DOWNLOADS", path)
    return path


def replaced(name, url, *contents, **changes):
    """An entry of the table with small archives at another address."""
    real = program.DATASETS[name]
    archives = tuple(
        dataclasses.replace(
            archive,
            url=url + urlsplit(archive.url).path,
            size_bytes=len(content),
            sha256=sha256(content) if archive.sha256 else None,
        )
        for archive, content in zip(real.archives, contents, strict=True)
    )
    return dataclasses.replace(real, archives=archives, **changes)


@pytest.fixture
def serve(server, monkeypatch):
    """Put small archives in the place of a data set's."""

    def serve(name, *contents, **changes):
        dataset = replaced(name, server.url, *contents, **changes)
        for archive, content in zip(dataset.archives, contents, strict=True):
            server.files[urlsplit(archive.url).path] = content
        monkeypatch.setitem(program.DATASETS, name, dataset)
        return dataset

    return serve


@pytest.fixture
def flowers(serve):
    return serve("flowers", ARCHIVE, images=120)


def tree(folder):
    """Content of every file by its path below the folder, hidden files included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(folder):
    return {name: content for name, content in tree(folder).items() if name != "download_images.json"}


UNPACKED = {name.removeprefix("flower_photos/"): content for name, content in FLOWERS.items()}


def main(*arguments):
    try:
        return program.main([str(argument) for argument in arguments])
    except SystemExit as ending:
        return ending.code


# ---- fetching --------------------------------------------------------------------------------------------------------


def fetched(server, path, content=ARCHIVE, **settings):
    server.files["/file"] = content
    return fetch(f"{server.url}/file", path, len(ARCHIVE), sha256(ARCHIVE), **settings)


def ranges(server):
    return [asked for _, asked in server.requests]


def test_a_file_comes_whole(server, tmp_path):
    seen = []
    assert fetched(server, tmp_path / "file", on_progress=seen.append) == sha256(ARCHIVE)
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert seen[-1] == len(ARCHIVE) and seen == sorted(seen)
    assert fetched(server, tmp_path / "file") == sha256(ARCHIVE)
    assert ranges(server) == [None]


def test_a_dropped_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.faults += [{"cut": 100_000}, {"cut": 50_000}]
    troubles = []
    fetched(server, tmp_path / "file", on_trouble=troubles.append)
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]
    assert len(troubles) == 2 and "again in 0.01 s" in troubles[0] and "again in 0.02 s" in troubles[1]


def test_a_server_that_falls_silent_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_SILENCE_S", 0.5)
    server.faults.append({"stall": 100_000})
    troubles = []
    fetched(server, tmp_path / "file", on_trouble=troubles.append)
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert "timed out" in troubles[0] and ranges(server)[:2] == [None, "bytes=100000-"]


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ([{"cut": 100_000}, {"ranges": False}], [None, "bytes=100000-"]),
        ([{"cut": 100_000, "tag": False}, {}], [None, None]),  # it does not say which version it sent
        ([{"cut": 100_000}, {"shifted": 7}, {}], [None, "bytes=100000-", None]),
        ([{"cut": 100_000}, {"status": 416}, {}], [None, "bytes=100000-", None]),
    ],
    ids=["ignores ranges", "no version", "another part", "refuses the range"],
)
def test_where_a_server_cannot_go_on_the_file_starts_anew(server, tmp_path, faults, asked):
    server.faults += faults
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert ranges(server) == asked


@pytest.mark.parametrize("if_range", [True, False], ids=["knows If-Range", "ignores If-Range"])
def test_two_versions_of_a_file_are_not_glued_together(server, tmp_path, if_range, monkeypatch):
    server.faults.append({"cut": 100_000})
    with monkeypatch.context() as patched, pytest.raises(DownloadError):
        patched.setattr(download, "_ATTEMPTS", 1)
        fetched(server, tmp_path / "file", content=bytes(len(ARCHIVE)))
    assert (tmp_path / "file").stat().st_size == 100_000
    server.faults.append({"if_range": if_range})
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert ranges(server) == [None, "bytes=100000-"] + ([] if if_range else [None])


def test_the_date_is_the_version_where_there_is_no_strong_tag():
    response = requests.Response()
    for headers, version in (
        ({"ETag": '"a"', "Last-Modified": "then"}, '"a"'),
        ({"ETag": 'W/"a"', "Last-Modified": "then"}, "then"),
        ({"ETag": 'W/"a"'}, ""),
    ):
        response.headers = headers
        assert download._version(response) == version


def test_a_server_that_never_gets_further_is_given_up_and_the_next_call_goes_on(server, tmp_path):
    server.faults += [{"cut": 100_000}, *[{"status": 503}] * 7]
    with pytest.raises(DownloadError, match=r"HTTP 503.*8 attempts, 100,000 of 3\d\d,\d\d\d bytes are there"):
        fetched(server, tmp_path / "file")
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert ranges(server)[-1] == "bytes=100000-"


def test_progress_gives_new_patience(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PROGRESS_BYTES", 10_000)
    server.faults += [{"cut": 20_000}] * 15
    fetched(server, tmp_path / "file")
    assert len(server.requests) == 16


@pytest.mark.parametrize("length", [100, -100, None])
def test_a_length_that_is_a_lie(server, tmp_path, length):
    server.faults += [{"length": length}]
    if length is None:
        fetched(server, tmp_path / "file")
        assert tree(tmp_path) == {"file": ARCHIVE}
    else:
        with pytest.raises(DownloadError, match=f"offers {len(ARCHIVE) + length:,} bytes.*{len(ARCHIVE):,}"):
            fetched(server, tmp_path / "file")
        assert tree(tmp_path) == {}


def test_a_body_without_length_that_ends_early_is_taken_up(server, tmp_path):
    server.faults.append({"length": None, "cut": 70_000})
    fetched(server, tmp_path / "file")
    assert ranges(server) == [None, "bytes=70000-"]


def test_a_server_that_never_stops_sending(server, tmp_path):
    server.faults.append({"endless": True})
    with pytest.raises(DownloadError, match="sends more than"):
        fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {}


def test_another_hash_is_told_and_the_file_removed(server, tmp_path):
    other = bytes(len(ARCHIVE))
    with pytest.raises(DownloadError, match=f"{sha256(other)}, not {sha256(ARCHIVE)}"):
        fetched(server, tmp_path / "file", content=other)
    assert tree(tmp_path) == {}
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}


def test_a_page_that_asks_for_a_login_is_no_file(server, tmp_path):
    with pytest.raises(DownloadError, match="a login"):
        fetched(server, tmp_path / "file", content=b"<html>Welcome to the hotel</html>")
    assert tree(tmp_path) == {}


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    server.faults.append({"status": 404})
    with pytest.raises(DownloadError, match="HTTP 404 Not Found"):
        fetched(server, tmp_path / "file")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.faults += [{"status": 503}, {"status": 429}]
    fetched(server, tmp_path / "file")
    assert len(server.requests) == 3


def test_a_redirection_keeps_the_range(server, tmp_path):
    there = {"location": f"{server.url}/file"}
    server.faults += [there, {"cut": 100_000}, there, {}]
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}
    assert ranges(server)[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    ("start", "target", "is_followed"),
    [
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "HTTP://b.org", False),
        ("https://a.org/x", "ftp://b.org", False),
        ("https://a.org/x", "//b.org/y", True),
        ("https://a.org/x", "../y", True),
        ("https://a.org/x", "https://b.org/y", True),
        ("http://a.org/x", "http://b.org/y", True),
        ("http://a.org/x", "https://b.org/y", True),
    ],
)
def test_no_redirection_leaves_encryption(start, target, is_followed):
    response = requests.Response()
    response.url, response.status_code, response.headers["Location"] = start, 302, target
    with contextlib.nullcontext() if is_followed else pytest.raises(DownloadError, match="not encrypted"):
        assert download._Session().get_redirect_target(response) == target


def test_redirections_in_a_circle_end(server, tmp_path):
    server.faults += [{"location": "/file"}] * 50
    with pytest.raises(OSError, match="redirects"):
        fetched(server, tmp_path / "file")


def test_a_tgz_that_the_server_calls_encoded_stays_one(server, tmp_path):
    server.faults.append({"encoding": "gzip"})
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_ATTEMPTS", 2)
    with pytest.raises(DownloadError, match="refused"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", 10)


def test_a_file_that_is_too_long_already_starts_anew(server, tmp_path):
    (tmp_path / "file").write_bytes(bytes(len(ARCHIVE) + 1))
    (tmp_path / "file.version").write_text('"a"')
    fetched(server, tmp_path / "file")
    assert tree(tmp_path) == {"file": ARCHIVE}


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.files["/zips/file"] = ARCHIVE
    fetch("http://photographs.invalid/zips/file", tmp_path / "file", len(ARCHIVE))
    assert tree(tmp_path) == {"file": ARCHIVE}


# ---- unpacking -------------------------------------------------------------------------------------------------------


def unpacked(folder, content, name="archive", max_bytes=1_000_000, max_files=100, place=lambda name: name):
    """Write an archive and unpack it into a folder beside other files; return what is there afterwards."""
    (folder / "outside").mkdir()
    (folder / "outside" / "thesis.txt").write_text("years of work")
    (folder / name).write_bytes(content)
    unpack(folder / name, folder / "inside", place, max_bytes=max_bytes, max_files=max_files)
    return tree(folder / "inside")


def refused(folder, content, reason="", **settings):
    with pytest.raises(ArchiveError, match=reason):
        unpacked(folder, content, **settings)
    assert tree(folder / "outside") == {"thesis.txt": b"years of work"}
    assert sorted(os.listdir(folder)) in (["archive", "outside"], ["archive", "inside", "outside"])
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("pack", [zipped, tgz, tarred])
def test_files_are_unpacked_as_they_are(tmp_path, pack):
    odd = "a b/ü \"quoted\" 'name'\nand a line.jpg" if os.name == "posix" else "a b/ü.jpg"
    files = {
        "top.txt": b"",
        "a/b/c/1.jpg": photograph(1, 300_000),
        odd: b"2",
        "مرحبا/עברית.jpg": b"3",
        "a..b/..c": b"4",
    }
    assert unpacked(tmp_path, pack(files)) == files


def test_files_go_where_they_are_wanted(tmp_path):
    def place(name):
        return PurePosixPath("images", name.name) if name.suffix == ".jpg" else None

    assert unpacked(tmp_path, zipped({"a/1.jpg": b"1", "a/notes.txt": b"2"}), place=place) == {"images/1.jpg": b"1"}


ESCAPES = ["/etc/evil.jpg", "../outside/evil.jpg", "a/../../outside/evil.jpg", "..\\outside\\evil.jpg", "C:evil.jpg"]
ESCAPES += ["\\\\host\\share\\evil.jpg", "..", "a/.."]


@pytest.mark.parametrize("pack", [zipped, tgz])
@pytest.mark.parametrize("name", ESCAPES)
def test_no_file_is_written_outside(tmp_path, pack, name):
    refused(tmp_path, pack({"good.jpg": b"good", name: b"evil"}), "outside the folder")


TAR_TYPES = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}
TAR_TYPES |= {"character device": tarfile.CHRTYPE, "block device": tarfile.BLKTYPE}


@pytest.mark.parametrize("target", ["../outside", "/etc", "good.jpg"])
@pytest.mark.parametrize("kind", TAR_TYPES.values(), ids=TAR_TYPES)
def test_no_link_and_no_device_comes_out_of_a_tar(tmp_path, kind, target):
    link = tarfile.TarInfo("link")
    link.type, link.linkname = kind, target
    refused(tmp_path, tgz({"good.jpg": b"good", link: b"", "link/evil.jpg": b"evil"}), "link or a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_no_link_and_no_device_comes_out_of_a_zip(tmp_path, kind):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (kind | 0o777) << 16
    refused(tmp_path, zipped({"good.jpg": b"good", link: b"../outside", "link/evil.jpg": b"evil"}), "link or a device")


@pytest.mark.parametrize("pack", [zipped, tgz])
def test_a_bomb_does_not_go_off(tmp_path, pack):
    refused(tmp_path, pack({f"{n}.jpg": bytes(400_000) for n in range(10)}), "more than 1,000,000 bytes")
    assert sum(map(len, tree(tmp_path / "inside").values())) <= 1_000_000


@pytest.mark.parametrize("pack", [zipped, tgz])
def test_a_flood_of_files_is_stopped(tmp_path, pack):
    refused(tmp_path, pack({f"{n}.jpg": b"" for n in range(200)}), "100 files")
    assert len(tree(tmp_path / "inside")) == 100


def test_a_zip_that_lies_about_sizes(tmp_path):
    content = bytearray(zipped({"1.jpg": bytes(900_000)}))
    size = (900_000).to_bytes(4, "little")
    for place in (content.find(size), content.rfind(size)):  # of the file, and of the directory
        content[place : place + 4] = (10).to_bytes(4, "little")
    refused(tmp_path, bytes(content), "broken archive.*CRC")
    assert sum(map(len, tree(tmp_path / "inside").values())) <= 10


def test_a_tar_that_lies_about_sizes(tmp_path):
    huge = tarfile.TarInfo("1.jpg")
    huge.size = 1 << 40
    refused(tmp_path, gzip.compress(huge.tobuf() + bytes(1024)), "more than 1,000,000 bytes")


def test_a_tar_whose_emptiness_has_no_end(tmp_path):
    refused(tmp_path, gzip.compress(tarred({"1.jpg": b"1"}) + bytes(2_000_000)), "more than 1,000,000 bytes")


def member(kind, content, name="x"):
    """A member of a tar whose content is part of its header."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


PAX, GLOBAL, LONG = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


@pytest.mark.parametrize("kind", [PAX, GLOBAL, LONG, tarfile.GNUTYPE_LONGLINK, tarfile.DIRTYPE])
def test_a_header_that_would_fill_the_memory(tmp_path, kind):
    content = gzip.compress(member(kind, bytes(40_000_000)) + tarred({"1.jpg": b"1"}))
    tracemalloc.start()
    refused(tmp_path, content, "a header of 40,000,000 bytes", max_bytes=10**9)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_many_global_headers_are_not_added_up(tmp_path):
    headers = b"".join(
        member(GLOBAL, b"%d k%d=%s\n" % (50_000, n, b"v" * (50_000 - len(f"50000 k{n}=\n"))))
        + tarred({f"{n}.jpg": b"1"})[:1024]
        for n in range(100)
    )
    content = gzip.compress(headers + bytes(1024))
    tracemalloc.start()
    assert len(unpacked(tmp_path, content, max_bytes=10**9)) == 100
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        member(tarfile.GNUTYPE_SPARSE, b"1" * 512),
        member(PAX, b"25 GNU.sparse.map=0,1,2,3\n") + tarred({"1.jpg": b"1"}),
        member(PAX, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + tarred({"1.jpg": b"1"}),
    ],
    ids=["old", "0.1", "1.0"],
)
def test_a_file_with_holes(tmp_path, content):
    refused(tmp_path, gzip.compress(content), "with holes")


@pytest.mark.parametrize("content", [b"9" * 5000 + b" path=x\n", b"14 size=rubbish\n", b"5010 path=" + b"n" * 5000])
def test_a_header_that_is_rubbish(tmp_path, content):
    with contextlib.suppress(ArchiveError):  # and no other error
        unpacked(tmp_path, gzip.compress(member(PAX, content) + tarred({"1.jpg": b"1"})))


@pytest.mark.parametrize("pack", [zipped, tgz])
def test_two_files_of_one_name(tmp_path, pack):
    content = pack({"a/1.jpg": b"1", "b/1.jpg": b"2"})
    refused(tmp_path, content, "two files", place=lambda name: PurePosixPath(name.name))


@pytest.mark.parametrize("names", [("a", "a/1.jpg"), ("a/1.jpg", "a")])
def test_a_file_and_a_folder_of_one_name(tmp_path, names):
    refused(tmp_path, tgz(dict.fromkeys(names, b"1")), "a file and a folder")


@pytest.mark.parametrize("pack", [zipped, tgz])
@pytest.mark.parametrize("damage", ["half", "empty", "html", "flipped"])
def test_a_broken_archive_is_named(tmp_path, pack, damage):
    content = bytearray(pack({"1.jpg": photograph(1), "2.jpg": photograph(2)}))
    content[2000] ^= 1
    broken = {"half": content[:3000], "empty": b"", "html": b"<html>404</html>", "flipped": content}[damage]
    refused(tmp_path, bytes(broken), "archive: a broken archive")


def test_an_encrypted_zip(tmp_path):
    content = bytearray(zipped({"1.jpg": b"1"}))
    content[6] |= 1  # general purpose flags of the file, and of the directory
    content[content.find(b"PK\1\2") + 8] |= 1
    refused(tmp_path, bytes(content), "password")


def test_a_zip_that_is_compressed_in_a_rare_way(tmp_path):
    refused(tmp_path, zipped({"1.jpg": b"1"}, zipfile.ZIP_BZIP2), "compressed by method 12")


@pytest.mark.parametrize("pack", [zipped, tgz, tarred])
def test_damage_anywhere_ends_in_an_error_of_ours_or_in_nothing(tmp_path, pack):
    whole = pack({"a/1.jpg": photograph(1, 200), "a/2.jpg": b"", "notes.txt": b"n" * 300})
    rng = random.Random(7)
    for number in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.suppress(ArchiveError):
            unpacked(folder, bytes(content[: rng.choice((len(content), rng.randrange(len(content))))]))
        assert tree(folder / "outside") == {"thesis.txt": b"years of work"}


# ---- the data sets ---------------------------------------------------------------------------------------------------


def test_the_table_makes_sense():
    for name, dataset in program.DATASETS.items():
        assert name == dataset.name and dataset.images > 1000 and dataset.classes > 1
        assert dataset.licence and dataset.licence_url.startswith("https://")
        for archive in dataset.archives:
            assert archive.url.startswith(("https://", "http://images.cocodataset.org/", "kaggle:"))
            assert archive.size_bytes > 90e6 and archive.name.endswith((".zip", ".tgz", ".tar.gz"))
            assert archive.sha256 is None or (len(archive.sha256) == 64 and int(archive.sha256, 16))


def test_the_list_has_everything(capsys):
    assert main("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(program.DATASETS)
    assert lines[3].startswith("coco-val2017       5,000       80    1,068  SHA-256        Flickr terms of each image")
    assert "no hash known" in next(line for line in lines if line.startswith("imagewoof-160"))


STRUCTURES = {
    "imagenette-160": (
        tgz,
        {"imagenette2-160/train/n01/1.JPEG": "train/n01/1.JPEG", "imagenette2-160/val/n02/2.JPEG": "val/n02/2.JPEG"},
    ),
    "imagewoof": (tgz, {"imagewoof2/train/n01/1.JPEG": "train/n01/1.JPEG", "imagewoof2/._train": None}),
    "flowers": (tgz, {"flower_photos/daisy/1.jpg": "daisy/1.jpg", "flower_photos/LICENSE.txt": "LICENSE.txt"}),
    "oxford-pets": (
        tgz,
        {"images/great_pyrenees_1.jpg": "great_pyrenees/great_pyrenees_1.jpg", "images/great_pyrenees_1.mat": None},
    ),
    "food-101": (
        tgz,
        {"food-101/images/apple_pie/1.jpg": "apple_pie/1.jpg", "food-101/meta/test.txt": "meta/test.txt"},
    ),
    "cats-vs-dogs": (
        zipped,
        {"PetImages/Cat/0.jpg": "Cat/0.jpg", "PetImages/Dog/0.jpg": "Dog/0.jpg", "readme.txt": "readme.txt"},
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_each_data_set_becomes_class_folders(serve, tmp_path, name):
    pack, places = STRUCTURES[name]
    serve(name, pack({inside: inside.encode() for inside in places}), images=1)
    assert main(name, "--to", tmp_path / "new" / name) == 0
    assert images(tmp_path / "new" / name) == {place: inside.encode() for inside, place in places.items() if place}
    assert os.listdir(tmp_path / "new") == [name]
    record = json.loads((tmp_path / "new" / name / "download_images.json").read_text())
    assert record["name"] == name and record["licence"] == program.DATASETS[name].licence


def coco(serve, part="val2017"):
    """Four images: two classes, one where a smaller instance comes first, and one without instances."""
    instances = {
        "images": [{"id": n, "file_name": f"{n:012}.jpg", "height": 480} for n in (1, 2, 3, 4)],
        "categories": [{"id": 7, "name": "hot dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "bus"}],
        "annotations": [
            {"id": id_, "image_id": image, "category_id": category, "area": area, "segmentation": outline, "iscrowd": 0}
            for id_, (image, category, area, outline) in enumerate(
                [
                    (1, 3, 30.5, [[1.0, 2.0, 3.0]]),
                    (1, 7, 20.0, [[1.0]]),
                    (1, 7, 20.0, {"counts": [1, 2], "size": [480, 640]}),
                    (2, 3, 1.0, []),
                    (4, 7, 5.0, []),
                    (4, 3, 5.0, []),
                ]
            )
        ],
    }
    labels = zipped({f"annotations/instances_{part}.json": json.dumps(instances).encode(), "annotations/other": b""})
    photographs = zipped({f"{part}/{n:012}.jpg": photograph(n) for n in (1, 2, 3, 4)})
    return serve(f"coco-{part}", photographs, labels, images=4)


@pytest.mark.parametrize("part", ["train2014", "val2014", "val2017"])
def test_coco_has_the_category_of_the_largest_area(serve, tmp_path, capsys, part):
    coco(serve, part)
    assert main(f"coco-{part}", "--to", tmp_path / "coco") == 0
    assert images(tmp_path / "coco") == {
        "cat/000000000002.jpg": photograph(2),
        "cat/000000000004.jpg": photograph(4),  # as large as the other one: the first of the list of categories
        "hot dog/000000000001.jpg": photograph(1),
    }
    assert capsys.readouterr().out.splitlines()[-1] == "3 images, 1 left out"
    assert find_images(tmp_path / "coco").class_names == ("cat", "hot dog")


def test_coco_without_labels_needs_no_annotations(serve, server, tmp_path):
    coco(serve)
    assert main("coco-val2017", "--unlabelled", "--to", tmp_path / "coco") == 0
    assert images(tmp_path / "coco") == {f"{n:012}.jpg": photograph(n) for n in (1, 2, 3, 4)}
    assert len(find_unlabelled_images(tmp_path / "coco")) == 4
    assert [path for path, _ in server.requests] == ["/zips/val2017.zip"]
    assert main("coco-val2017", "--to", tmp_path / "coco") == 2  # the two are not taken for each other


def test_annotations_of_another_kind_are_told(serve, tmp_path, capsys):
    labels = zipped({"annotations/captions_val2017.json": b"{}"})
    serve("coco-val2017", zipped({"val2017/1.jpg": b"1"}), labels)
    assert main("coco-val2017", "--to", tmp_path / "coco") == 1
    assert "instances_val2017.json" in capsys.readouterr().err


DRIVERS = {f"img_{n}.jpg": (f"p{n % 7:03}", f"c{n % 3}") for n in range(40)}


def state_farm(leave_out=None):
    rows = "".join(f"{driver},{name},{image}\n" for image, (driver, name) in DRIVERS.items() if image != leave_out)
    files = {f"imgs/train/{name}/{image}": image.encode() for image, (_, name) in DRIVERS.items()}
    table = {"driver_imgs_list.csv": b"subject,classname,img\n" + rows.encode(), "sample_submission.csv": b""}
    return zipped({**table, **files, "imgs/test/img_900.jpg": b"900"})


@pytest.fixture
def kaggle(monkeypatch):
    """Stand in for Kaggle's client: it writes `content`, or raises `refusal` from the step called `at`."""
    behaviour = types.SimpleNamespace(content=state_farm(), refusal=None, at=None)

    class KaggleApi:
        def authenticate(self):
            if behaviour.at == "authenticate":
                raise behaviour.refusal

        def competition_download_files(self, competition, path, quiet):
            if behaviour.at == "download":
                raise behaviour.refusal
            (Path(path) / f"{competition}.zip").write_bytes(behaviour.content)

    module = types.ModuleType("kaggle.api.kaggle_api_extended")
    module.KaggleApi = KaggleApi
    for name in ("kaggle", "kaggle.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    dataset = dataclasses.replace(program.DATASETS["state-farm"], images=41)
    monkeypatch.setitem(program.DATASETS, "state-farm", dataset)
    return behaviour


def test_state_farm_is_split_by_driver(kaggle, tmp_path, capsys):
    assert main("state-farm", "--to", tmp_path / "farm") == 0
    output = capsys.readouterr().out
    assert "share no driver" in output and sha256(kaggle.content) in output
    found = [path for part in ("train", "val") for path in find_images(tmp_path / "farm" / part).paths]
    drivers = {part: set() for part in ("train", "val")}
    for path in map(Path, found):
        driver, name = DRIVERS[path.name]
        assert path.parent.name == name and path.read_text() == path.name
        drivers[path.parts[-3]].add(driver)
    assert len(found) == len(DRIVERS)
    assert drivers["val"] == {"p000", "p005"} and not drivers["train"] & drivers["val"]
    assert (tmp_path / "farm" / "test" / "img_900.jpg").read_bytes() == b"900"


def test_a_photograph_of_no_known_driver_is_in_no_part(kaggle, tmp_path, capsys):
    kaggle.content = state_farm(leave_out="img_7.jpg")
    assert main("state-farm", "--to", tmp_path / "farm") == 1
    assert "img_7.jpg" in capsys.readouterr().err and not (tmp_path / "farm").exists()


def http_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Client Error", response=response)


@pytest.mark.parametrize(
    ("at", "refusal", "text"),
    [
        ("authenticate", SystemExit(1), "no token that works"),
        ("authenticate", OSError("Could not find kaggle.json"), "no token"),
        ("download", http_error(403), "403: a wrong token, or rules not accepted"),
        ("download", http_error(401), "401: a wrong token"),
        ("download", http_error(500), "500 Client Error"),
    ],
)
def test_what_kaggle_refuses_is_explained(kaggle, tmp_path, capsys, at, refusal, text):
    kaggle.at, kaggle.refusal = at, refusal
    assert main("state-farm", "--to", tmp_path / "farm") == (1 if "500" in text else 2)
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors
    assert "500" in text or (
        "pip install kaggle" in errors and "state-farm-distracted-driver-detection/rules" in errors
    )
    assert os.listdir(tmp_path) == []


def test_kaggles_client_may_be_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle", None)
    assert main("state-farm", "--to", tmp_path / "farm") == 2
    assert "kaggle is not installed" in capsys.readouterr().err


# ---- the command -----------------------------------------------------------------------------------------------------


def test_licence_and_size_come_first(flowers, server, tmp_path, capsys):
    server.faults.append({"status": 404})
    assert main("flowers", "--to", tmp_path / "flowers") == 1
    output, errors = capsys.readouterr()
    assert "CC BY 2.0; https://creativecommons.org" in output and "to download: 0 MB" in output
    assert errors.startswith("download_images.py: http://") and len(errors.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_a_second_run_finds_the_work_done(flowers, server, tmp_path, capsys):
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    before = tree(tmp_path)
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert "there already" in capsys.readouterr().out
    assert tree(tmp_path) == before and len(server.requests) == 1


def test_what_a_run_killed_at_the_very_end_left_is_removed(flowers, server, tmp_path):
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    (tmp_path / ".flowers.download").mkdir()
    (tmp_path / ".flowers.download" / "flower_photos.tgz").write_bytes(ARCHIVE)
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert os.listdir(tmp_path) == ["flowers"] and len(server.requests) == 1


def test_a_folder_with_other_things_in_it_is_left_alone(flowers, server, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main("flowers", "--to", tmp_path) == 2
    assert "is there and is not flowers" in capsys.readouterr().err
    assert tree(tmp_path) == {"thesis.txt": b"years of work"} and not server.requests
    (tmp_path / "empty").mkdir()
    assert main("flowers", "--to", tmp_path / "empty") == 0
    assert images(tmp_path / "empty") == UNPACKED


def test_a_whole_disk_is_no_target(flowers, capsys):
    assert main("flowers", "--to", Path(ROOT.anchor)) == 2
    assert "--to" in capsys.readouterr().err


def test_two_runs_at_once(flowers, server, tmp_path, capsys):
    (tmp_path / ".flowers.download").mkdir()
    with locked(tmp_path / ".flowers.download" / ".lock", ""):
        assert main("flowers", "--to", tmp_path / "flowers") == 2
    assert "another run" in capsys.readouterr().err and not server.requests
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert os.listdir(tmp_path) == ["flowers"]


def test_a_mirror_has_the_same_paths(flowers, server, tmp_path):
    path = urlsplit(flowers.archives[0].url).path
    server.files = {f"/lab{path}": ARCHIVE}
    assert main("flowers", "--to", tmp_path / "flowers", "--mirror", f"{server.url}/lab/") == 0
    assert images(tmp_path / "flowers") == UNPACKED


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "give NAME"),
        (("flower",), "did you mean flowers"),
        (("coco-val17",), "coco-val2017"),
        (("qqqq",), "--list shows all"),
        (("flowers", "--mirror", "server:8000"), "http://"),
        (("state-farm", "--mirror", "http://server"), "Kaggle only"),
        (("flowers", "--unlabelled"), "for COCO"),
    ],
)
def test_arguments_that_make_no_sense(capsys, arguments, text):
    assert main(*arguments) == 2
    assert text in capsys.readouterr().err


def test_too_little_room_is_refused_before_anything_is_asked_for(flowers, server, tmp_path, capsys, monkeypatch):
    usage = program.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(program.shutil, "disk_usage", lambda _: usage._replace(free=200_900_000))
    assert main("flowers", "--to", tmp_path / "flowers") == 2
    assert "flowers needs 1 MB more" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [] and not server.requests


def test_a_disk_that_fills_while_unpacking(flowers, server, tmp_path, capsys, monkeypatch):
    real, copies = download.shutil.copyfileobj, itertools.count()

    def full(source, file, size):
        if next(copies) == 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, file, size)

    with monkeypatch.context() as patched:
        patched.setattr(download.shutil, "copyfileobj", full)
        assert main("flowers", "--to", tmp_path / "flowers") == 2
    assert "No space left on device" in (errors := capsys.readouterr().err) and ".jpg" in errors
    assert sorted(tree(tmp_path)) == [".flowers.download/.lock", ".flowers.download/flower_photos.tgz"]
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert images(tmp_path / "flowers") == UNPACKED and len(server.requests) == 1


def test_a_data_set_without_a_hash(serve, server, tmp_path, capsys):
    content = tgz({f"imagewoof2-160/train/n01/{n}.JPEG": b"" for n in range(5)})
    serve("imagewoof-160", content, images=6)
    assert main("imagewoof-160", "--to", tmp_path / "woof") == 1
    assert "5 images, not 6; it was removed" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    serve("imagewoof-160", content, images=5)
    assert main("imagewoof-160", "--to", tmp_path / "woof") == 0
    assert f"its SHA-256 is {sha256(content)}" in capsys.readouterr().out


def test_a_hash_that_nobody_publishes_is_kept(serve, server, tmp_path, capsys, first_downloads):
    first, other = (tgz({"imagewoof2-160/train/n01/1.JPEG": content}) for content in (b"one", b"two"))
    assert len(first) == len(other)
    dataset = serve("imagewoof-160", first, images=1)
    assert main("imagewoof-160", "--to", tmp_path / "a", "--mirror", server.url) == 0
    output = capsys.readouterr().out
    assert "not verified: there is no published hash of imagewoof2-160.tgz, and no earlier" in output
    assert f"{server.url} is not encrypted" in output and f"{sha256(first)}, kept in {first_downloads}" in output
    assert json.loads(first_downloads.read_text()) == {dataset.archives[0].url: sha256(first)}
    assert main("imagewoof-160", "--to", tmp_path / "b") == 0
    assert "the same as that of the first download" in capsys.readouterr().out
    serve("imagewoof-160", other, images=1)
    assert main("imagewoof-160", "--to", tmp_path / "c") == 1
    errors = capsys.readouterr().err
    assert sha256(first) in errors and sha256(other) in errors and str(first_downloads) in errors
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert json.loads(first_downloads.read_text()) == {dataset.archives[0].url: sha256(first)}


def test_hashes_that_cannot_be_kept_or_read(serve, tmp_path, capsys, first_downloads):
    serve("imagewoof-160", tgz({"imagewoof2-160/train/n01/1.JPEG": b"1"}), images=1)
    first_downloads.parent.rmdir()
    assert main("imagewoof-160", "--to", tmp_path / "a") == 0
    assert "not kept for later downloads" in capsys.readouterr().out
    first_downloads.parent.mkdir()
    for damaged in ("", "[]", '{"a": 1}', "\udcff"):
        first_downloads.write_bytes(damaged.encode(errors="surrogateescape"))
        assert main("imagewoof-160", "--to", tmp_path / "b") == 2
        assert "damaged" in capsys.readouterr().err and not (tmp_path / "b").exists()


@pytest.mark.parametrize("record", [b"{}", b"[]", b"3", b"", b"\xff", b"[" * 100_000, b'{"name": ["flowers"]}'])
def test_a_record_of_another_kind(flowers, server, tmp_path, capsys, record):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers" / "download_images.json").write_bytes(record)
    assert main("flowers", "--to", tmp_path / "flowers") == 2
    assert "is there and is not flowers" in capsys.readouterr().err
    assert tree(tmp_path)["flowers/download_images.json"] == record and not server.requests


def test_what_others_put_beside_the_archives_stays(flowers, tmp_path):
    (tmp_path / ".flowers.download").mkdir()
    (tmp_path / ".flowers.download" / "thesis.txt").write_text("years of work")
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert (tmp_path / ".flowers.download" / "thesis.txt").exists()


@pytest.mark.parametrize("damage", [b"[]", b'{"images": 1}', b'{"images": [[1]], "categories": 3}', b"{", b"\xff"])
def test_annotations_that_are_rubbish(serve, tmp_path, capsys, damage):
    labels = zipped({"annotations/instances_val2017.json": damage})
    serve("coco-val2017", zipped({"val2017/1.jpg": b"1"}), labels)
    assert main("coco-val2017", "--to", tmp_path / "coco") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_archive_that_escapes_leaves_nothing(serve, tmp_path, capsys):
    serve("flowers", tgz({"flower_photos/daisy/1.jpg": b"1", "flower_photos/../../evil.jpg": b"evil"}), images=2)
    assert main("flowers", "--to", tmp_path / "flowers") == 1
    assert "outside the folder" in capsys.readouterr().err
    assert sorted(tree(tmp_path)) == [".flowers.download/.lock", ".flowers.download/flower_photos.tgz"]


# ---- interruptions ---------------------------------------------------------------------------------------------------

DRIVER = """
import sys, time
sys.path[:0] = [{here!r}, {root!r}, {root!r} + "/data_scripts"]
import test_download_images as tests
program, download = tests.program, tests.download
program.DATASETS["flowers"] = tests.replaced("flowers", {url!r}, tests.ARCHIVE, images=120)
"""
SLOWLY = """
real = download.shutil.copyfileobj
download.shutil.copyfileobj = lambda *arguments: (time.sleep(0.05), real(*arguments))
"""


def driver(server):
    return DRIVER.format(here=str(Path(__file__).parent), root=str(ROOT), url=server.url)


def start(server, folder, changes=""):
    """The command in a process of its own, as a terminal starts it."""
    code = f"{driver(server)}{changes}\nsys.exit(program.main(['flowers', '--to', {str(folder)!r}]))"
    options = {} if os.name == "nt" else {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_until(condition, limit_s=30):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not after {limit_s} s"
        time.sleep(0.005)


@needs_posix_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on_and_ends_the_same(flowers, server, tmp_path, number):
    assert main("flowers", "--to", tmp_path / "whole") == 0
    server.faults.append({"stall": 200_000})
    run = start(server, tmp_path / "flowers")
    part = tmp_path / ".flowers.download" / "flower_photos.tgz"
    wait_until(lambda: part.exists() and part.stat().st_size > 150_000)
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == (130 if number == signal.SIGINT else -number), errors
    if number == signal.SIGINT:
        assert "the same command goes on" in errors and "Traceback" not in errors
    assert not (tmp_path / "flowers").exists()
    there = part.stat().st_size
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert ranges(server)[-1] == f"bytes={there}-"
    assert tree(tmp_path / "flowers") == tree(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["flowers", "whole"]


@needs_posix_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_unpacks_leaves_only_what_the_next_run_needs(flowers, server, tmp_path, number):
    changes = f"{SLOWLY}\nfrom endings import run_command\nmain = program.main\n"
    changes += "program.main = lambda arguments: run_command(lambda: main(arguments))"
    run = start(server, tmp_path / "flowers", changes)
    wait_until(lambda: len(list((tmp_path / ".flowers.download" / "unpacked").rglob("*.jpg"))) >= 5)
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 128 + number and "Traceback" not in errors
    assert sorted(tree(tmp_path)) == [".flowers.download/.lock", ".flowers.download/flower_photos.tgz"]


@needs_posix_signals
def test_a_killed_unpacking_is_done_again(flowers, server, tmp_path):
    assert main("flowers", "--to", tmp_path / "whole") == 0
    run = start(server, tmp_path / "flowers", SLOWLY)
    staging = tmp_path / ".flowers.download" / "unpacked"
    wait_until(lambda: len(list(staging.rglob("*.jpg"))) >= 5)
    run.kill()
    run.communicate()
    assert not (tmp_path / "flowers").exists() and staging.exists()
    (staging / "daisy" / "left over.jpg").write_bytes(b"of another version")
    assert main("flowers", "--to", tmp_path / "flowers") == 0
    assert len(server.requests) == 2
    assert tree(tmp_path / "flowers") == tree(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["flowers", "whole"]


def test_a_disk_that_is_really_full(flowers, server, on_a_small_disk):
    """First while it downloads, then while it unpacks; at last there is room."""
    steps = f"""
{driver(server)}
from pathlib import Path
sys.stderr = sys.stdout
usage = program.shutil.disk_usage
program.shutil.disk_usage = lambda folder: usage(folder)._replace(free=10**12)
ballast = Path(disk, "ballast")
for free_bytes in (150_000, 500_000, 2_000_000):
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(usage(disk).free - free_bytes))
    print(program.main(["flowers", "--to", disk + "/flowers"]), len(list(Path(disk).rglob("*.jpg"))))
"""
    lines = on_a_small_disk(steps, 4).splitlines()
    assert [line for line in lines if line[0] in "012"] == ["2 0", "2 0", "120 images", "0 120"]
    full = [line for line in lines if "No space left on device" in line]
    assert len(full) == 2 and "flower_photos.tgz" in full[0] and ".jpg" in full[1]
    assert ranges(server)[0] is None and len(server.requests) == 2
