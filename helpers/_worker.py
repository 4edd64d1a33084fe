"""The process that runs the function of `child.run`. Started by `_supervisor`, never by hand.

Reads one pickled job from standard input; writes messages to its original standard output; the function's own output
goes to standard error, which the supervisor collects.
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

from helpers import memory

_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<Q")
_send_lock = threading.Lock()
_channel: int | None = None


def main(supervisor_pid: int) -> None:
    """Run the job that standard input holds and send back how it ended."""
    global _channel
    _die_with(supervisor_pid)
    job_bytes = sys.stdin.buffer.read()
    _channel = os.dup(1)
    os.dup2(2, 1)
    _give_standard_input_away()
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    job = pickle.loads(job_bytes)
    del job_bytes
    _limit_memory(job["data_limit_bytes"])
    sys.path[:] = job["sys_path"]
    started = time.monotonic()
    try:
        function, args, kwargs = pickle.loads(job.pop("call"))
        _send("started", memory.current().held_mib)
        started = time.monotonic()
        value = function(*args, **kwargs)
        seconds = time.monotonic() - started
        _send("value", (_pickled(value), seconds, memory.peak_rss_mib()))
    except BaseException as error:
        seconds = time.monotonic() - started
        _send("error", (_is_out_of_memory(error), *_describe(error), seconds, memory.peak_rss_mib()))
    sys.stdout.flush()
    sys.stderr.flush()


def report(progress: object) -> None:
    """Tell the caller of `child.run` how far this function came; does nothing outside a child process."""
    if _channel is not None:
        _send("progress", progress)


def _send(kind: str, content: object) -> None:
    message = pickle.dumps((kind, content))
    view = memoryview(_LENGTH.pack(len(message)) + message)
    with _send_lock:
        while view:
            view = view[os.write(_channel, view) :]


def _pickled(value: object) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise TypeError(
            f"the function returned a {type(value).__name__}, which cannot be sent back from its process ({error});"
            " return numbers, strings, arrays or plain containers of them"
        ) from error


def _describe(error: BaseException) -> tuple[str, str]:
    """Return the exception in one line and with its traceback, this module's own frame left out."""
    last_line = "".join(traceback.format_exception_only(error)).strip()
    tb = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        text = "".join(traceback.format_exception(type(error), error, tb))
    except MemoryError:
        text = last_line
    return last_line, text


def _is_out_of_memory(error: BaseException) -> bool:
    """Recognise the ways in which libraries say that memory is used up."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    name = type(error).__name__
    if name == "ResourceExhaustedError":  # TensorFlow
        return True
    return type(error).__module__.startswith("cv2") and "Insufficient memory" in str(error)


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
