"""Fetch a large file whatever the network does, and unpack an archive whatever is in it.

Called by `data_scripts/download_images.py`.
"""

from __future__ import annotations

import errno
import gzip
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

# Not pooch: it cannot go on with half a file, and 13 GB seldom come in one piece. Not urllib: it finds no certificates
# in some installations of Python; requests brings its own, and JupyterLab needs it anyway.
import requests
import urllib3

from helpers.files import naming, sha256_of

__all__ = ["BROKEN", "ArchiveError", "DownloadError", "fetch", "unpack"]

_ATTEMPTS = 8  # in a row that come less than _PROGRESS_BYTES farther
_PROGRESS_BYTES = 1 << 20
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0  # between attempts; doubled after each
_CONNECT_S, _SILENCE_S = 20.0, 60.0  # how long a server may take to answer, and then to send the next bytes
_PIECE_BYTES = 1 << 18
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers that may be others in a minute
_MOST_TAR_HEADER_BYTES = 1 << 16  # of a long name and the like; tarfile holds each of them in memory, several times

_Progress = Callable[[int], object]


class DownloadError(OSError):
    """The file cannot be had from this address, now or at all."""


class ArchiveError(ValueError):
    """The archive is broken, or it holds what no archive of photographs should."""


class _TryAgain(Exception):
    """What went wrong may go right in a moment."""


# ---- fetching --------------------------------------------------------------------------------------------------------


def fetch(
    url: str,
    path: Path,
    size_bytes: int,
    sha256: str | None = None,
    *,
    on_progress: _Progress | None = None,
    on_trouble: Callable[[str], object] | None = None,
) -> str:
    """Download a file whose size is known; go on with what an earlier call left of it.

    What went over the line is asked for again only if the server cannot go on in the middle of a file, or if the file
    has changed there. Proxies and certificates are those of the usual variables: ``HTTP_PROXY``, ``HTTPS_PROXY``,
    ``ALL_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``.

    Parameters
    ----------
    url : str
    path : pathlib.Path
        Where the file goes. While it is not complete, ``<path>.version`` beside it says which version it is part of.
    size_bytes : int
    sha256 : str, optional
        Without it only the size is verified.
    on_progress : callable, optional
        Called with the number of bytes that the file has now.
    on_trouble : callable, optional
        Called with a sentence before each wait.

    Returns
    -------
    str
        The SHA-256 of the file.

    Raises
    ------
    DownloadError
        If the server refuses, offers a file of another size, sends on from https to http, or fails too often in a row;
        if the finished file has another hash, which is then removed.
    OSError
        If the disk is full. What is there stays, and the next call goes on with it.
    """
    failures, farthest = 0, _size(path)
    while _size(path) != size_bytes:
        try:
            _fetch_rest(url, path, size_bytes, on_progress)
        except (_TryAgain, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            failures += 1
            if _size(path) >= farthest + _PROGRESS_BYTES:
                failures, farthest = 1, _size(path)
            if failures >= _ATTEMPTS:
                raise DownloadError(
                    f"{url}: {_cause(error)}; given up after {failures} attempts, {_size(path):,} of {size_bytes:,}"
                    " bytes are there; the same command goes on with them"
                ) from error
            wait_s = min(_FIRST_WAIT_S * 2 ** (failures - 1), _LONGEST_WAIT_S)
            if on_trouble:
                on_trouble(f"{url}: {_cause(error)}; again in {wait_s:g} s")
            time.sleep(wait_s)
    return _verified(url, path, sha256)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cause(error: BaseException) -> str:
    """Return the first error of a chain: requests and urllib3 wrap it three times in the names of their objects."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error) or type(error).__name__


def _verified(url: str, path: Path, sha256: str | None) -> str:
    found = sha256_of(path)
    if sha256 not in (None, found):
        _forget(path)
        raise DownloadError(
            f"{url}: the SHA-256 is {found}, not {sha256}; the file was removed, and the same command downloads it"
            " anew. If that does not help, the file has changed there: try --mirror"
        )
    _version_file(path).unlink(missing_ok=True)
    return found


class _Session(requests.Session):
    """Follows no redirection to where anybody on the way may read and change what comes."""

    def get_redirect_target(self, response: requests.Response) -> str | None:
        target = super().get_redirect_target(response)
        is_safe = urlsplit(urljoin(response.url, target or "")).scheme == "https"
        if target and not is_safe and urlsplit(response.url).scheme == "https":
            raise DownloadError(f"{response.url}: sends on to {target}, which is not encrypted; give --mirror")
        return target


def _fetch_rest(url: str, path: Path, size_bytes: int, on_progress: _Progress | None) -> None:
    """Ask for what is missing, and append it; start anew where the server does."""
    have, version = _resumable(path)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    timeout_s = (_CONNECT_S, _SILENCE_S)
    with _Session() as session, session.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
        _refuse_bad_answer(response, path)
        start, total = _range(response)
        if total not in (None, size_bytes):
            raise DownloadError(
                f"{url}: the server offers {total:,} bytes, the data set has {size_bytes:,}: another version, or the"
                " page of a network that asks for a login"
            )
        found = _version(response)
        if response.status_code == 206 and (start != have or found not in ("", version)):
            _forget(path)
            raise _TryAgain("the server sent another part of the file, or of another file, than it was asked for")
        if start == 0:
            path.write_bytes(b"")
            _version_file(path).write_text(found, encoding="utf-8")
        _append(response, path, start, size_bytes, on_progress)


def _version_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.version")


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    _version_file(path).unlink(missing_ok=True)


def _resumable(path: Path) -> tuple[int, str]:
    """Return how many bytes are there, and of which version; none where the server did not say which it sent."""
    version = _version_file(path).read_text(encoding="utf-8") if _version_file(path).exists() else ""
    return (_size(path), version) if version else (0, "")


def _version(response: requests.Response) -> str:
    """Return what If-Range may hold (RFC 9110, 13.1.5): a strong entity tag, or else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _refuse_bad_answer(response: requests.Response, path: Path) -> None:
    status = response.status_code
    if status == 416:
        _forget(path)
    if status in (416, *_PASSING):
        raise _TryAgain(f"HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise DownloadError(f"{response.url}: HTTP {status} {response.reason}; try again later, or give --mirror")


def _range(response: requests.Response) -> tuple[int, int | None]:
    """Return the place of the first byte that comes, and the size of the whole file where the server tells it."""
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _append(response: requests.Response, path: Path, have: int, size_bytes: int, on_progress: _Progress | None) -> None:
    # Not iter_content: it would unpack a .tgz that the server calls "gzip-encoded", and wait until a piece is full.
    with naming(path), open(path, "ab") as file:
        while piece := response.raw.read1(_PIECE_BYTES, decode_content=False):
            have += len(piece)
            if have > size_bytes:
                break
            file.write(piece)
            if on_progress:
                on_progress(have)
    if have > size_bytes:
        _forget(path)
        raise DownloadError(f"{response.url}: the server sends more than the {size_bytes:,} bytes of the data set")
    if have < size_bytes:
        raise _TryAgain(f"the connection ended after {have:,} of {size_bytes:,} bytes")


# ---- unpacking -------------------------------------------------------------------------------------------------------

_Member = tuple[str, int, Callable[[], BinaryIO]]  # name, size in bytes, and what opens it
BROKEN = (  # what may be raised while an archive is read that is broken
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,  # an encrypted member
    ValueError,  # a text or a number that is none
)


def unpack(
    archive: Path,
    folder: Path,
    place: Callable[[PurePosixPath], PurePosixPath | None],
    *,
    max_bytes: int,
    max_files: int,
    on_progress: _Progress | None = None,
) -> None:
    """Write the files of a zip, tar or tgz archive into a folder, each where `place` wants it, with its own checksum.

    Stricter than the ``data`` filter of `tarfile`, and the same for zip: nothing is made but plain files and the
    folders they lie in. An archive with a link, a device, an absolute path or a ``..`` is refused as a whole. After an
    error the folder may hold some of the files; the caller removes it.

    Parameters
    ----------
    archive, folder : pathlib.Path
    place : callable
        Gets the path of a file in the archive, and returns its path below the folder, or None to leave it out.
    max_bytes : int
        Of all files together, with a tar's own headers.
    max_files : int
    on_progress : callable, optional
        Called with 1 after each file.

    Raises
    ------
    ArchiveError
        If the archive is broken, unsafe, or larger than that.
    OSError
        If the disk is full; the message names the file.
    """
    files = size_bytes = 0
    try:
        with closing(_members(archive, max_bytes)) as members:
            for name, member_bytes, opened in members:
                files, size_bytes = files + 1, size_bytes + member_bytes
                if files > max_files or size_bytes > max_bytes:
                    raise _too_large(archive, max_bytes, max_files)
                target = place(_safe(archive, name))
                if target is not None:
                    _write(archive, opened, folder / target)
                if on_progress:
                    on_progress(1)
    except ArchiveError:
        raise
    except (*BROKEN, OSError) as error:
        # zipfile seeks to negative places
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise ArchiveError(f"{archive}: a broken archive ({error or type(error).__name__})") from error


def _too_large(archive: Path, max_bytes: int, max_files: int) -> ArchiveError:
    limit = f"{max_bytes:,} bytes or {max_files:,} files"
    return ArchiveError(f"{archive}: unpacked, it has more than {limit}: not a data set")


def _safe(archive: Path, name: str) -> PurePosixPath:
    """Return the name as a path that stays below a folder, whatever system reads it."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts or not path.parts or "\0" in name:
            raise ArchiveError(f"{archive}: {name!r} would be written outside the folder")
    return PurePosixPath(name)


def _members(archive: Path, max_bytes: int) -> Iterator[_Member]:
    with open(archive, "rb") as file:
        magic = file.read(2)
    if magic == b"PK":
        return _zip_members(archive)
    return _tar_members(archive, gzip.open if magic == b"\x1f\x8b" else open, max_bytes)


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive}: {info.filename!r} is a link or a device, not a file")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"{archive}: {info.filename!r} is compressed by method {info.compress_type}")
            if not info.filename.endswith("/"):
                yield info.filename, info.file_size, lambda info=info: file.open(info)


def _tar_members(archive: Path, opened: Callable, max_bytes: int) -> Iterator[_Member]:
    with opened(archive, "rb") as file:
        stream = _Bounded(archive, file, max_bytes)
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo) as tar:
            while (info := tar.next()) is not None:
                if not (info.isreg() or info.isdir()):
                    raise ArchiveError(f"{archive}: {info.name!r} is a link or a device, not a file")
                if info.isreg():
                    yield info.name, info.size, lambda info=info: tar.extractfile(info)
                tar.members.clear()  # tarfile would keep all of them: 50 MB for 100,000 files
                tar.pax_headers.clear()
        while stream.read(_PIECE_BYTES):
            pass  # gzip compares its checksum at the end of the file, behind the end of the tar


class _TarInfo(tarfile.TarInfo):
    """A member of a tar whose headers take little memory: a few KB unpack to a name or a map of holes of gigabytes."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in tarfile.REGULAR_TYPES and self.size > _MOST_TAR_HEADER_BYTES:
            raise ArchiveError(f"a header of {self.size:,} bytes in the archive: not a data set")
        return super()._proc_member(tar)

    def _refuse_holes(self, *_: object) -> None:
        raise ArchiveError("a file with holes in the archive: not a data set")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_holes


class _Bounded:
    """A file to read from that ends in an error where it is longer than it may be: a few KB unpack to terabytes."""

    def __init__(self, archive: Path, file: BinaryIO, max_bytes: int):
        self._archive, self._file, self._max_bytes, self._left = archive, file, max_bytes, max_bytes

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError(f"{self._archive}: unpacked, it has more than {self._max_bytes:,} bytes: not a data set")
        return data


def _write(archive: Path, opened: Callable[[], BinaryIO], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with naming(target), open(target, "xb") as file, opened() as source:
            shutil.copyfileobj(source, file, _PIECE_BYTES)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ArchiveError(f"{archive}: {target} would be two files, or a file and a folder") from None
