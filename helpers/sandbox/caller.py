"""Run one function in a fresh, budgeted, watched process; the caller always survives.

Called by `measure`, `contract` and every lesson that shows a crash or a hang. A supervisor process stands between:

    caller (your kernel)  ->  supervisor (watches memory and time)  ->  worker (runs the function)

Functions, closures and classes from notebook cells travel by cloudpickle. The budget is a limit on the memory that the
worker and all its descendants hold together; see `memory.TreeMemory.held_mib`.
"""

from __future__ import annotations

import math
import numbers
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from helpers.sandbox import memory
from helpers.sandbox.outcome import Outcome
from helpers.sandbox.worker import report

__all__ = ["ChildError", "ChildResult", "report", "run"]

DEFAULT_TIMEOUT_S = 1800
_DATA_LIMIT_SLACK_MIB = 4096  # stacks and libraries of a framework: address space that is never touched
_DATA_LIMIT_SLACK_GPU_MIB = 65536  # a GPU driver reserves far more of it
_LENGTH = struct.Struct("<Q")
_SUPERVISOR_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from helpers.sandbox.supervisor import main; main()"
_START_AND_END_S = 30.0  # beyond the timeout, for the supervisor to start, to kill and to report
_ORDERLY_END_S = 15.0
_SWEEP_S = 5.0
_MARKS = "HELPERS_CHILD_MARKS"  # environment variable that names the runs that a process belongs to


class ChildError(RuntimeError):
    """A child process that did not finish; the message holds its outcome, its error and its traceback."""


@dataclass(frozen=True)
class ChildResult:
    """How a function ended in its child process.

    Attributes
    ----------
    outcome : Outcome
    value : object
        What the function returned, when it finished.
    error : str or None
        One line: the exception (``ValueError: …``) or how the process ended.
    traceback : str or None
        The traceback of the exception; for ``hung``, the stack of each thread at the end.
    progress : object
        The last value that the function gave to `report`, or None.
    peak_mib : float
        Largest memory held by the process tree, in MiB.
    baseline_mib : float or None
        Memory held just before the function began, its imports included, in MiB.
    budget_mib : float
        The budget that was in force, in MiB.
    seconds : float
        Run time of the function; without process start and imports.
    output : str
        What the function printed, standard output and error together; the middle of very long output is left out.
    exit_code : int or None
        Of the worker process; negative for a signal.
    timeline : list of (float, float, float)
        Seconds since the process started, memory held in MiB, pages of mapped files in MiB.
    peak_rss_mib, peak_file_mib : float
        Largest sum of resident set sizes, and of mapped files' pages, in MiB.
    processes : int
        Largest number of processes seen at once.
    method : str
        How memory was read; see `memory.TreeMemory`.
    """

    outcome: Outcome
    value: Any
    error: str | None
    traceback: str | None
    progress: Any
    peak_mib: float
    baseline_mib: float | None
    budget_mib: float
    seconds: float
    output: str
    exit_code: int | None
    timeline: list[tuple[float, float, float]] = field(repr=False)
    peak_rss_mib: float
    peak_file_mib: float
    processes: int
    method: str

    def unwrap(self) -> Any:
        """Return the value, or raise `ChildError` with all that is known when there is none."""
        if self.outcome == Outcome.FINISHED:
            return self.value
        details = self.traceback or self.output
        raise ChildError(f"{self.outcome}: {self.error}\n{details}".rstrip())

    def __repr__(self) -> str:
        parts = [self.outcome]
        if self.error:
            parts.append(self.error)
        if self.progress is not None:
            parts.append(f"got as far as {self.progress}")
        parts.append(f"peak {self.peak_mib:,.0f} MiB, budget {self.budget_mib:,.0f} MiB")
        parts.append(f"{self.seconds:.1f} s")
        return f"ChildResult({'; '.join(parts)})"


def run(
    function: Callable[..., Any],
    *args: Any,
    memory_budget: float | None = None,
    timeout: float | None = None,
    **kwargs: Any,
) -> ChildResult:
    """Run ``function(*args, **kwargs)`` in a fresh process and return how it ended.

    The whole process tree is gone when this returns, also when it is interrupted or the caller is killed.

    Parameters
    ----------
    function : callable
        Also one from a notebook cell. In it, `report` tells the caller how far it came.
    memory_budget : float, optional
        In MiB, for the process and all its descendants together. Never more than what the machine can spare now, which
        is also the budget when none is given.
    timeout : float, optional
        In seconds, process start and imports included; 1,800 when none is given.

    Returns
    -------
    ChildResult

    Raises
    ------
    ValueError
        If the budget does not even hold Python and what the function imports, or a limit is not above zero.
    TypeError
        If the function or its arguments cannot be sent to another process, or a limit is not a number.
    ChildError
        If the supervisor itself was killed. The process tree is gone then, too.
    """
    timeout_s = _positive("timeout", DEFAULT_TIMEOUT_S if timeout is None else timeout, "seconds")
    if timeout_s > threading.TIMEOUT_MAX / 2:
        raise ValueError(f"timeout is {timeout_s}: give seconds that will end")
    budget_mib, floor_mib = _budget(memory_budget)
    job = _job(function, args, kwargs, budget_mib)
    answer, pickled_value = _supervised(job, {"budget_mib": budget_mib, "floor_mib": floor_mib, "timeout_s": timeout_s})
    del job
    needed_mib = answer["peak_mib"] if answer["baseline_mib"] is None else answer["baseline_mib"]
    if needed_mib > budget_mib:
        is_own = memory_budget is not None and memory_budget <= budget_mib
        raise ValueError(
            f"{'memory_budget of' if is_own else 'this machine can spare only'} {budget_mib:,.0f} MiB: Python and the"
            f" function's imports alone need more ({needed_mib:,.0f} MiB before its first line);"
            f" {'give a larger budget' if is_own else 'close other programs'}"
        )
    if answer["survivors"]:
        warnings.warn(f"these processes could not be ended: {answer['survivors']}", RuntimeWarning, stacklevel=2)
    value, error = _unpickled(pickled_value)
    if error is not None:
        answer.update(outcome=Outcome.RAISED, error=error)
    answer["progress"], _ = _unpickled(answer["progress"])
    return ChildResult(
        value=value,
        budget_mib=budget_mib,
        **{name: answer[name] for name in ChildResult.__dataclass_fields__ if name in answer},
    )


def _positive(name: str, value: object, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}: give a number of {unit}")
    if not value > 0:
        raise ValueError(f"{name} is {value}: give {unit} above zero")
    return float(value)


def _budget(memory_budget: float | None) -> tuple[float, float]:
    """Return the budget in force and what must stay free on the machine, in MiB."""
    asked_mib = math.inf if memory_budget is None else _positive("memory_budget", memory_budget, "MiB")
    floor_mib = min(1024, 0.05 * memory.total_mib())
    spare_mib = max(memory.available_mib() - 2 * floor_mib, 64)
    return min(spare_mib, asked_mib), floor_mib


def _job(function: Callable, args: tuple, kwargs: dict, budget_mib: float) -> list[bytes]:
    """Return what the worker reads: its settings, then the call."""
    try:
        call = cloudpickle.dumps((function, args, kwargs))
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(f"{name} or its arguments cannot be sent to another process: {error}") from error
    gpu_driver = any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    slack_mib = _DATA_LIMIT_SLACK_GPU_MIB if gpu_driver else _DATA_LIMIT_SLACK_MIB
    settings = {"sys_path": list(sys.path), "data_limit_bytes": int((budget_mib + slack_mib) * memory.MIB)}
    return [pickle.dumps(settings), call]


def _unpickled(content: bytes | memoryview | None) -> tuple[Any, str | None]:
    """Return what a message holds, or None and the reason why it cannot be read here."""
    if not content:
        return None, None
    try:
        return pickle.loads(content), None
    except Exception as error:
        return None, f"{type(error).__name__}: what the function sent back cannot be read here ({error})"


def _supervised(job: list[bytes], limits: dict) -> tuple[dict, memoryview]:
    """Start a supervisor, hand it the job, return its report and the pickled value; leave no process behind."""
    root = str(Path(__file__).resolve().parents[2])
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "MPLBACKEND": "agg",  # a notebook's inline backend has no kernel to draw in
        _MARKS: f"{os.environ.get(_MARKS, '')} {mark}",
    }
    content = pickle.dumps({**limits, "mark": mark})
    messages = [_LENGTH.pack(len(content)) + content, _LENGTH.pack(sum(map(len, job))), *job]
    supervisor = subprocess.Popen(
        [sys.executable, "-P", "-c", _SUPERVISOR_CODE, root],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the caller alone
    )
    answer: list[bytes] = []
    talk = threading.Thread(target=_talk, args=(supervisor, messages, answer), daemon=True)
    try:
        talk.start()
        deadline = time.monotonic() + limits["timeout_s"] + _START_AND_END_S
        while talk.is_alive() and time.monotonic() < deadline:
            talk.join(1.0)  # in short waits: not every system lets Ctrl-C end a long one
    finally:
        # In a thread of its own, so that a second Ctrl-C does not stop it half-way.
        ending = threading.Thread(target=_let_go, args=(supervisor, talk, mark), daemon=False)
        ending.start()
        ending.join()
    return _read_answer(answer, supervisor.returncode)


def _talk(supervisor: subprocess.Popen, messages: list[bytes], answer: list[bytes]) -> None:
    try:
        for message in messages:
            view = memoryview(message)
            while view:
                view = view[supervisor.stdin.write(view) :]
    except (OSError, ValueError):
        pass  # the supervisor died, or was let go; its missing answer tells
    answer.append(supervisor.stdout.read())


def _read_answer(answer: list[bytes], exit_code: int | None) -> tuple[dict, memoryview]:
    view = memoryview(answer[0] if answer else b"")
    try:
        end = _LENGTH.size + _LENGTH.unpack(view[: _LENGTH.size])[0]
        report = pickle.loads(view[_LENGTH.size : end])
    except (struct.error, EOFError, pickle.UnpicklingError):
        raise ChildError(
            f"the supervisor of the child process ended (exit code {exit_code}) before it reported;"
            " was it killed from outside?"
        ) from None
    if "failure" in report:
        raise ChildError(f"the supervisor of the child process failed:\n{report['failure']}")
    return report, view[end:]


def _let_go(supervisor: subprocess.Popen, talk: threading.Thread, mark: str) -> None:
    """End the supervisor, and with it the worker's whole tree."""
    supervisor.stdin.close()
    if os.name == "posix":
        supervisor.terminate()  # it ends its tree, then itself; where it has reported, it is at its end anyway
    try:
        supervisor.wait(timeout=_ORDERLY_END_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
    if supervisor.returncode != 0:
        _sweep(mark)
    supervisor.wait(timeout=5)
    talk.join(timeout=5)
    supervisor.stdout.close()


def _sweep(mark: str) -> None:
    """Kill what a killed supervisor could not end: its worker ends with it, but not what the worker started."""
    deadline = time.monotonic() + _SWEEP_S
    while (left := memory.carrying(mark)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            except (ProcessLookupError, PermissionError):
                pass
        time.sleep(0.005)
