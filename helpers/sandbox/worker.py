"""The process that runs the function. Started by `supervisor`, never by hand.

Standard input holds the search path for modules, then the call, both pickled. The original standard output takes
pickled messages to the supervisor: a dict of what has become known, or a part of the pickled value. What the function
prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import cloudpickle

from helpers.sandbox import memory

_PR_SET_PDEATHSIG = 1
_DATA_LIMIT_SLACK_MIB = 4096  # stacks and libraries of a framework: address space that is never touched
_DATA_LIMIT_SLACK_GPU_MIB = 65536  # a GPU driver reserves far more of it
_LARGEST_MESSAGE = 2**20  # bytes
_LONGEST_LINE, _LONGEST_TRACEBACK = 2_000, 100_000  # characters
_PHRASES = {  # by the package of the exception's class
    "cv2": "Insufficient memory",
    "jax": "RESOURCE_EXHAUSTED",
    "jaxlib": "RESOURCE_EXHAUSTED",
    "builtins": "DefaultCPUAllocator: can't allocate memory",  # PyTorch raises a RuntimeError
}
_send_lock = threading.Lock()
_channel: BinaryIO | None = None
_owner: int | None = None


class Outcome(StrEnum):
    """How a function ended in its child process. The members print and compare like plain strings."""

    FINISHED = "finished"
    OUT_OF_MEMORY = "out of memory"  # an allocation was refused, or the budget was passed and the tree killed
    KILLED = "killed"  # it died of a signal, or left by itself
    HUNG = "hung"  # no end within the timeout
    RAISED = "raised"

    __repr__ = str.__repr__


def main(supervisor_pid: int, budget_mib: float) -> None:
    """Run the job that standard input holds and send back how it ended."""
    global _channel, _owner
    if sys.platform == "linux":
        _die_with(supervisor_pid)
        _limit_memory(budget_mib)
    _channel, _owner = open(os.dup(1), "wb", closefd=False), os.getpid()  # noqa: SIM115
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    sys.path[:] = pickle.load(sys.stdin.buffer)
    started_at = time.monotonic()
    try:
        function, args, kwargs = pickle.load(sys.stdin.buffer)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        baseline_mib = memory.current().held_mib
        started_at = time.monotonic()
        _send({"baseline_mib": baseline_mib, "started_at": started_at})
        value = function(*args, **kwargs)
        end = {"outcome": Outcome.FINISHED, "seconds": time.monotonic() - started_at}
        at_end = memory.read_status("self")
        _send_value(value)
    except BaseException as error:
        end = {"seconds": time.monotonic() - started_at, **_described(error)}
        at_end = memory.read_status("self")
    _send({"end": end, "memory_at_end": at_end})
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the function closed it
            stream.flush()


def report(progress: object) -> None:
    """Tell the caller of `run` how far this function came; does nothing outside its process."""
    if os.getpid() == _owner:
        content = cloudpickle.dumps(progress)
        if len(content) > _LARGEST_MESSAGE:
            raise ValueError(f"this progress takes {len(content):,} bytes to send; give a number or a short text")
        _send({"progress": content})


def _send(message: dict | bytes) -> None:
    if os.getpid() == _owner:  # a process that the function forked does not speak for it
        with _send_lock:
            pickle.dump(message, _channel)
            _channel.flush()


class _ValueFile:
    """What the value is pickled into: a large one passes through without a second copy of it in memory."""

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _LARGEST_MESSAGE):
            _send(bytes(view[start : start + _LARGEST_MESSAGE]))


def _send_value(value: object) -> None:
    try:
        cloudpickle.dump(value, _ValueFile())
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(
            f"the function returned a {type(value).__name__}, which cannot be sent back from its process ({error});"
            " return numbers, strings, arrays or plain containers of them"
        ) from error


def _described(error: BaseException) -> dict[str, object]:
    """Return the outcome, the exception in one line, and its traceback without the frame of `main`."""
    try:
        line = "".join(traceback.format_exception_only(error)).strip()
        tb = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, tb))
    except BaseException:  # no memory left, or an exception that cannot even be printed
        line = text = type(error).__name__
    return {
        "outcome": Outcome.OUT_OF_MEMORY if _is_out_of_memory(error, line) else Outcome.RAISED,
        "error": _shortened(line, _LONGEST_LINE),
        "traceback": _shortened(text, _LONGEST_TRACEBACK),
    }


def _shortened(text: str, longest: int) -> str:
    if len(text) > longest:
        left_out = len(text) - longest
        text = f"{text[: longest // 2]}\n[{left_out:,} characters left out]\n{text[-longest // 2 :]}"
    return text.encode(errors="backslashreplace").decode()


def _is_out_of_memory(error: BaseException, line: str) -> bool:
    """Recognise the ways in which libraries say that memory is used up."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    names = ("ResourceExhaustedError", "OutOfMemoryError")  # TensorFlow, PyTorch on a GPU
    phrase = _PHRASES.get(type(error).__module__.partition(".")[0])
    return isinstance(error, MemoryError) or type(error).__name__ in names or (phrase is not None and phrase in line)


def _die_with(supervisor_pid: int) -> None:
    """Let the kernel kill this process when its supervisor is killed; make it the OOM killer's first choice."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(budget_mib: float) -> None:
    """Let the system refuse a single huge allocation at once; the supervisor sees to the rest."""
    import resource

    gpu_driver = any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    slack_mib = _DATA_LIMIT_SLACK_GPU_MIB if gpu_driver else _DATA_LIMIT_SLACK_MIB
    _, hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)
    limits_bytes = [int((budget_mib + slack_mib) * memory.MIB)] + [hard_bytes] * (hard_bytes != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits_bytes), hard_bytes))
