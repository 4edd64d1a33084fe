"""The process that runs the function of `child.run`. Started by `_supervisor`, never by hand.

Reads its settings and the call from standard input, both pickled; writes messages to its original standard output; the
function's own output goes to standard error, which the supervisor collects.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback

from helpers.sandbox import memory

_PR_SET_PDEATHSIG = 1
FRAME = struct.Struct("<cQ")  # kind of message, length of its content
STARTED, PROGRESS, VALUE_PART, FINISHED, RAISED = b"s", b"p", b"v", b"f", b"r"
LARGEST_FRAME = 2**20
_LONGEST_LINE, _LONGEST_TRACEBACK = 2_000, 100_000  # characters
_PHRASES = {  # by the package of the exception's class
    "cv2": "Insufficient memory",
    "jax": "RESOURCE_EXHAUSTED",
    "jaxlib": "RESOURCE_EXHAUSTED",
    "builtins": "DefaultCPUAllocator: can't allocate memory",  # PyTorch raises a RuntimeError
}
_send_lock = threading.Lock()
_channel: int | None = None
_owner: int | None = None


def main(supervisor_pid: int) -> None:
    """Run the job that standard input holds and send back how it ended."""
    global _channel, _owner
    _die_with(supervisor_pid)
    _channel, _owner = os.dup(1), os.getpid()
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    settings = pickle.load(sys.stdin.buffer)
    _limit_memory(settings["data_limit_bytes"])
    sys.path[:] = settings["sys_path"]
    started = time.monotonic()
    try:
        function, args, kwargs = pickle.load(sys.stdin.buffer)
        _give_standard_input_away()
        _send(STARTED, pickle.dumps(memory.current().held_mib))
        started = time.monotonic()
        value = function(*args, **kwargs)
        end = (time.monotonic() - started, *_highest())
        _send_value(value)
        _send(FINISHED, pickle.dumps(end))
    except BaseException as error:
        end = (time.monotonic() - started, *_highest())
        _send(RAISED, pickle.dumps((_is_out_of_memory(error), *_describe(error), *end)))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # the function closed it


def report(progress: object) -> None:
    """Tell the caller of `child.run` how far this function came; does nothing outside its process."""
    if _channel is not None and os.getpid() == _owner:
        import cloudpickle

        message = cloudpickle.dumps(progress)
        if len(message) > LARGEST_FRAME:
            raise ValueError(f"this progress takes {len(message):,} bytes to send; give a number or a short text")
        _send(PROGRESS, message)


def _send(kind: bytes, content: bytes | memoryview) -> None:
    if os.getpid() != _owner:
        return  # a process forked by the function went on after it: only the function's own process speaks
    with _send_lock:
        for part in (FRAME.pack(kind, len(content)), content):
            view = memoryview(part)
            while view:
                view = view[os.write(_channel, view) :]


class _ValueFile:
    """What the value is pickled into: a large one passes through without a second copy of it in memory."""

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        view = view.cast("B") if len(view) else view
        for start in range(0, len(view), LARGEST_FRAME):
            _send(VALUE_PART, view[start : start + LARGEST_FRAME])
        return len(view)


def _send_value(value: object) -> None:
    import cloudpickle

    try:
        cloudpickle.dump(value, _ValueFile())
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(
            f"the function returned a {type(value).__name__}, which cannot be sent back from its process ({error});"
            " return numbers, strings, arrays or plain containers of them"
        ) from error


def _highest() -> tuple[float | None, float | None]:
    """Return the largest resident set size of this process and its pages of mapped files now, in MiB."""
    reading = memory.own()
    return (None, None) if reading is None else (reading.highest_rss_mib, reading.file_mib)


def _describe(error: BaseException) -> tuple[str, str]:
    """Return the exception in one line and with its traceback, this module's own frame left out."""
    try:
        line = "".join(traceback.format_exception_only(error)).strip()
        tb = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, tb))
    except BaseException:  # no memory left, or an exception that cannot even be printed
        line = text = type(error).__name__
    return _shortened(line, _LONGEST_LINE), _shortened(text, _LONGEST_TRACEBACK)


def _shortened(text: str, longest: int) -> str:
    if len(text) > longest:
        left_out = len(text) - longest
        text = f"{text[: longest // 2]}\n[{left_out:,} characters left out]\n{text[-longest // 2 :]}"
    return text.encode(errors="backslashreplace").decode()


def _is_out_of_memory(error: BaseException) -> bool:
    """Recognise the ways in which libraries say that memory is used up."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError"):  # TensorFlow, PyTorch on a GPU
        return True
    phrase = _PHRASES.get(type(error).__module__.partition(".")[0])
    return phrase is not None and phrase in _describe(error)[0]


def _die_with(supervisor_pid: int) -> None:
    """Let the kernel kill this process when its supervisor is killed; make it the OOM killer's first choice."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        os._exit(1)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def _give_standard_input_away() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _limit_memory(data_limit_bytes: int | None) -> None:
    """Let the system refuse a single huge allocation at once; the watchdog sees to the rest."""
    if data_limit_bytes is None or sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        data_limit_bytes = min(data_limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (data_limit_bytes, hard))
