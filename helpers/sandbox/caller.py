"""Run one function in a fresh, budgeted, watched process; the caller always survives.

Functions, closures and classes from notebook cells travel by cloudpickle. The budget is a limit on the memory that the
worker and all its descendants hold together; see `memory.TreeMemory.held_mib`.
"""

from __future__ import annotations

import contextlib
import io
import math
import numbers
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import cloudpickle
import psutil

from helpers.sandbox import memory
from helpers.sandbox.supervisor import start_python
from helpers.sandbox.worker import Outcome, report

__all__ = ["ChildError", "ChildResult", "report", "run"]

_BYTES_FOR_MIB = 1000  # times the machine: no budget, but bytes or KiB
DEFAULT_TIMEOUT_S = 1800
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
    error, traceback : str or None
        The exception, or how the process ended, in one line; for ``hung``, the traceback is that of each thread.
    progress : object
        The last value that the function gave to `report`, or None.
    peak_mib, peak_rss_mib, peak_file_mib : float
        Largest memory held by the process tree, sum of resident set sizes, and pages of mapped files, in MiB.
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
    method: str

    def unwrap(self) -> Any:
        """Return the value, or raise `ChildError` with all that is known when there is none."""
        if self.outcome == Outcome.FINISHED:
            return self.value
        details = self.traceback or self.output
        raise ChildError(f"{self.outcome}: {self.error}\n{details}".rstrip())

    def __repr__(self) -> str:
        parts = [self.outcome, self.error, None if self.progress is None else f"got as far as {self.progress}"]
        parts += [f"peak {self.peak_mib:,.0f} MiB, budget {self.budget_mib:,.0f} MiB", f"{self.seconds:.1f} s"]
        return f"ChildResult({'; '.join(filter(None, parts))})"


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
        is also the budget when none is given. It covers what `memory.TreeMemory.held_mib` counts: not files in
        ``/dev/shm`` that no process has mapped; only the machine's free memory limits these.
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
    if math.isinf(timeout_s):
        raise ValueError(f"timeout is {timeout_s}: give seconds that will end")
    budget_mib, floor_mib = _budget(memory_budget)
    job = io.BytesIO()
    pickle.dump(list(sys.path), job)
    try:
        cloudpickle.dump((function, args, kwargs), job)
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(f"{name} or its arguments cannot be sent to another process: {error}") from error
    answer = memoryview(_supervised(job, budget_mib=budget_mib, floor_mib=floor_mib, timeout_s=timeout_s))
    del job
    start = len(answer) - 8 - int.from_bytes(answer[-8:], "little")
    found = pickle.loads(answer[start:])
    needed_mib = found["peak_mib"] if found["baseline_mib"] is None else found["baseline_mib"]
    if needed_mib > budget_mib:
        is_own = memory_budget is not None and memory_budget <= budget_mib
        raise ValueError(
            f"{'memory_budget of' if is_own else 'this machine can spare only'} {budget_mib:,.0f} MiB: Python and the"
            f" function's imports alone need more ({needed_mib:,.0f} MiB before its first line);"
            f" {'give a larger budget' if is_own else 'close other programs'}"
        )
    if survivors := found.pop("survivors"):
        warnings.warn(f"these processes could not be ended: {survivors}", RuntimeWarning, stacklevel=2)
    value = None
    if found["outcome"] == Outcome.FINISHED:
        try:
            value = pickle.loads(answer[:start])
        except Exception as error:
            reason = f"{type(error).__name__}: what the function sent back cannot be read here ({error})"
            found.update(outcome=Outcome.RAISED, error=reason)
    try:
        progress = found["progress"] and pickle.loads(found["progress"])
    except Exception:
        progress = None  # of a class that does not exist here
    return ChildResult(value=value, **{**found, "progress": progress})


def _positive(name: str, value: object, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}: give a number of {unit}")
    if not value > 0:
        raise ValueError(f"{name} is {value}: give {unit} above zero")
    return float(value)


def _budget(memory_budget: float | None) -> tuple[float, float]:
    """Return the budget in force and what must stay free on the machine, in MiB."""
    asked_mib = math.inf if memory_budget is None else _positive("memory_budget", memory_budget, "MiB")
    total_mib = memory.total_mib()
    if total_mib * _BYTES_FOR_MIB < asked_mib < math.inf:
        found = f"memory_budget is {asked_mib:,.0f} MiB, and this machine has {total_mib:,.0f} MiB"
        raise ValueError(f"{found}: give it in MiB (1 MiB is 1,048,576 bytes)")
    floor_mib = min(1024, 0.05 * total_mib)
    spare_mib = max(memory.available_mib() - 2 * floor_mib, 64)
    return min(spare_mib, asked_mib), floor_mib


def _supervised(job: io.BytesIO, **limits: float) -> bytes:
    """Have a supervisor do the job and return its answer; leave no process behind."""
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "MPLBACKEND": "agg",  # a notebook's inline backend has no kernel to draw in
        _MARKS: f"{os.environ.get(_MARKS, '')} {mark}",
    }
    limits |= {"mark": mark, "caller_pid": os.getpid()}
    supervisor = start_python("supervisor", limits, stdin=subprocess.PIPE, env=environment)
    # In a thread of its own: `communicate` writes 4 KiB at a time, and nothing more after its timeout.
    job_pipe, supervisor.stdin = supervisor.stdin, None
    feeding = threading.Thread(target=_feed, args=(job_pipe, job), daemon=True)
    answer = [b"", b""]  # with the report, and with the traceback of a supervisor that failed
    try:
        feeding.start()
        deadline = time.monotonic() + limits["timeout_s"] + _START_AND_END_S
        while supervisor.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # In short waits: not every system lets Ctrl-C end a long one.
                answer[:] = supervisor.communicate(timeout=1.0)
    finally:
        if supervisor.returncode != 0:
            # In a thread, so that a second Ctrl-C does not stop it half-way.
            ending = threading.Thread(target=_let_go, args=(supervisor, mark, answer), daemon=False)
            ending.start()
            ending.join()
        with contextlib.suppress(RuntimeError):  # an interruption came before it had started
            feeding.join(timeout=5)
    if supervisor.returncode != 0:
        raise ChildError(
            f"the supervisor of the child process ended (exit code {supervisor.returncode}) before it reported;"
            f" was it killed from outside?\n{answer[1].decode(errors='replace')}".rstrip()
        )
    return answer[0]


def _feed(pipe: BinaryIO, job: io.BytesIO) -> None:
    with contextlib.suppress(OSError), pipe:  # the worker died before it read its job; its exit status tells
        pipe.write(job.getbuffer())


def _let_go(supervisor: subprocess.Popen, mark: str, answer: list[bytes]) -> None:
    """End the supervisor, and with it the worker's whole tree."""
    supervisor.terminate()  # it ends its tree, then itself; on Windows itself alone
    try:
        answer[:] = supervisor.communicate(timeout=_ORDERLY_END_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.communicate(timeout=5)
    # A killed supervisor could not end what its worker started.
    deadline = time.monotonic() + _SWEEP_S
    while supervisor.returncode != 0 and (left := memory.carrying(mark)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(psutil.Error):  # it ended in between, or belongs to somebody else
                psutil.Process(pid).kill()
        time.sleep(0.005)
