"""Images behind an address, such as ``s3://bucket/cat/1.jpg``: listed and read through fsspec, no wait without a limit.

Called by `images.read_file`, `listing.list_folder` and the commands. Endpoints, keys and other options are those of
fsspec's own configuration: the environment variable ``FSSPEC_S3='{"endpoint_url": "https://..."}'``, or files in
~/.config/fsspec.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from urllib.parse import quote, urljoin

from helpers.epochs import reading
from helpers.files import printable

__all__ = ["AT_ONCE", "file_sizes", "first_byte", "folder_or_address", "is_address", "list_address", "read_address"]

ATTEMPTS = 5
LONGEST_ANSWER_S = 30.0  # for one attempt: a connection may hang without an error
LONGEST_FIRST_PAUSE_S = 0.2  # doubled after each attempt
AT_ONCE = 64  # requests, where nobody has said how many
_LOOK_S = 0.5
_WORTH_ANOTHER_TRY = (408, 429)  # of the answers 400 to 499, which blame the request


def is_address(path: str | bytes | os.PathLike) -> bool:
    """Tell whether a path is an address, and no file of this machine."""
    return "://" in os.fsdecode(path)


def folder_or_address(text: str) -> Path | str:
    """Return what a command was given for a folder or a file: a Path of an address would lose one of its slashes."""
    return text if is_address(text) else Path(text)


def read_address(address: str, **part: int) -> bytes:
    """Return the bytes behind an address; what may be better a moment later is tried again, after a pause.

    Parameters
    ----------
    **part : int
        ``start`` and ``end``, in bytes; by default all of them.

    Raises
    ------
    OSError
        If it is not there, may not be read, or has not come in any of `ATTEMPTS`; the text names the address.
    ValueError
        If a package is missing that reads such addresses.
    """
    return _tried_again(address, partial(_ask, address, "cat_file", **part))


def file_sizes(addresses: Sequence[str]) -> list[int]:
    """Return the size of the file behind each address, in bytes; one request for each, `AT_ONCE` at a time.

    Raises
    ------
    OSError
        If one is not there, may not be read, or its store does not say how large it is; the text names the address.
    ValueError
        If a package is missing that reads such addresses.
    """
    threads = ThreadPoolExecutor(AT_ONCE)  # it starts no more than there are addresses
    try:
        return list(threads.map(_file_size, addresses))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _file_size(address: str) -> int:
    size = _tried_again(address, partial(_ask, address, "size"))
    if size is None:
        raise OSError(f"{printable(address)}: the store does not say how large it is")
    return size


def _tried_again(address: str, ask: Callable[[], object]) -> object:
    """Return an answer; where it is an error that may pass, ask again, at most `ATTEMPTS` times."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with reading():
                return ask()
        except PermissionError as error:
            raise PermissionError(f"{printable(address)}: {error}") from error
        except (ValueError, MemoryError):
            raise
        except Exception as error:  # each kind of address has its own
            cause = error.__cause__
            if isinstance(error, FileNotFoundError):
                # fsspec says so of any error when it asks for a size by HTTP; then the cause has the truth.
                if not type(cause).__module__.startswith("aiohttp") or getattr(cause, "status", 0) in (404, 410):
                    raise FileNotFoundError(f"{printable(address)}: no such file") from error
                error = cause
            status = getattr(error, "status", 500)
            is_final = 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY
            if is_final or attempt == ATTEMPTS or _program_ends().is_set():
                tried = f"attempt {attempt} of {ATTEMPTS} failed"
                raise OSError(f"{printable(address)}: {tried}: {type(error).__name__}: {error}") from error
        # At random: readers that were refused together would come back together.
        time.sleep(random.uniform(0, LONGEST_FIRST_PAUSE_S * 2 ** (attempt - 1)))
    raise AssertionError("the last attempt returns or raises")


def first_byte(address: str) -> None:
    """Ask for one byte: what that takes is latency."""
    read_address(address, start=0, end=1)


def list_address(address: str) -> list[str]:
    """Return the address of each file below one, in order.

    Behind http and https there are no folders: there, `address` is a manifest, a text with a line for each file, which
    is an address or stands relative to the manifest's own.

    Raises
    ------
    OSError
        If it cannot be read, or nothing is there.
    ValueError
        If a package is missing that reads such addresses, or a manifest is a web page.
    """
    if address.startswith(("http://", "https://")):
        text = read_address(address).decode(errors="replace")
        if text.lstrip().startswith("<"):
            raise ValueError(f"{printable(address)}: a web page; give a text file that names an image in each line")
        lines = [line.strip() for line in text.splitlines()]
        return [line if is_address(line) else urljoin(address, quote(line)) for line in lines if line]
    system, path = _opened(address)
    return sorted(system.unstrip_protocol(name) for name in system.find(path))


@cache
def _program_ends() -> threading.Event:
    """Return an event that is set when the main thread has ended, after Ctrl-C too, and Python waits for the others."""
    ends = threading.Event()
    threading._register_atexit(ends.set)  # what `atexit` calls comes after that wait
    return ends


def _opened(address: str) -> tuple:
    """Return fsspec's filesystem for an address, and what the address is called in it."""
    scheme = address.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        needed = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}.get(scheme, "aiohttp")
        raise ValueError(f"{printable(address)}: {error}; pip install fsspec {needed} to read {scheme}://") from error


def _ask(address: str, method: str, **arguments: int) -> object:
    """Return what one call of a method gives; give up after `LONGEST_ANSWER_S`, or when the program ends."""
    (system, path), ends = _opened(address), _program_ends()
    if system.async_impl:
        answer = asyncio.run_coroutine_threadsafe(getattr(system, f"_{method}")(path, **arguments), system.loop)
    else:  # as of simplecache::
        answer = _in_a_thread(partial(getattr(system, method), path, **arguments))
    try:
        end_s = time.monotonic() + LONGEST_ANSWER_S
        while True:
            try:
                return answer.result(_LOOK_S)
            except TimeoutError:
                if answer.done() or ends.is_set():
                    raise
                if time.monotonic() > end_s:
                    raise TimeoutError(f"no answer within {LONGEST_ANSWER_S:g} s") from None
    finally:
        answer.cancel()


def _in_a_thread(call: Callable[[], object]) -> Future:
    """Call in a thread that nobody has to wait for, not even the end of the program."""
    answer: Future = Future()
    answer.set_running_or_notify_cancel()  # from now on it cannot be cancelled: somebody may only stop waiting

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # goes on where somebody waits
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer
