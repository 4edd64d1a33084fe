"""Run one function in a fresh, budgeted, watched process; the caller always survives.

Called by `measure`, `contract` and every lesson that shows a crash or a hang. A supervisor process stands between:

    caller (your kernel)  ->  supervisor (watches memory and time)  ->  worker (runs the function)

Functions, closures and classes from notebook cells travel by cloudpickle. The budget is a limit on the memory that the
worker and all its descendants hold together; see `memory.TreeMemory.held_mib`.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from helpers import memory
from helpers._worker import report

__all__ = ["ChildError", "ChildResult", "report", "run"]

OUTCOMES = ("finished", "out of memory", "killed", "hung", "raised")
DEFAULT_TIMEOUT_S = 1800
_DATA_LIMIT_SLACK_MIB = 4096  # stacks and libraries of a framework: address space that is never touched
_DATA_LIMIT_SLACK_GPU_MIB = 65536  # a GPU driver reserves far more of it
_LENGTH = struct.Struct("<Q")
_SUPERVISOR_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from helpers._supervisor import main; main()"
_START_AND_END_S = 30.0  # beyond the timeout, for the supervisor to start, to kill and to report


class ChildError(RuntimeError):
    """A child process that did not finish; the message holds its outcome, its error and its traceback."""


@dataclass(frozen=True)
class ChildResult:
    """How a function ended in its child process.

    Attributes
    ----------
    outcome : str
        ``finished``; ``out of memory`` (an allocation was refused, or the budget was passed and the tree killed);
        ``killed`` (it died of a signal or left by itself); ``hung`` (no end within the timeout); ``raised``.
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

    outcome: str
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
        if self.outcome == "finished":
            return self.value
        details = self.traceback or self.output
        raise ChildError(f"{self.outcome}: {self.error}\n{details}".rstrip())

    def __repr__(self) -> str:
        parts = [self.outcome]
        if self.error:
            parts.append(self.error)
        if self.progress is not None:
            parts.append(f"got as far as {self.progress}")
        parts.append(f"peak {self.peak_mib:,.0f} MiB of {self.budget_mib:,.0f} MiB")
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
        If the budget does not even hold Python and what the function imports.
    TypeError
        If the function or its arguments cannot be sent to another process.
    """
    timeout = DEFAULT_TIMEOUT_S if timeout is None else timeout
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}: give a number of seconds above zero")
    budget_mib, floor_mib = _budget(memory_budget)
    job = _job(function, args, kwargs, budget_mib)
    limits = pickle.dumps({"budget_mib": budget_mib, "floor_mib": floor_mib, "timeout_s": timeout})
    answer = _supervised([job, limits], timeout)
    if answer["outcome"] == "out of memory" and answer["baseline_mib"] is None:
        raise ValueError(
            f"memory_budget of {budget_mib:,.0f} MiB: Python and the function's imports alone need more"
            f" ({answer['peak_mib']:,.0f} MiB before its first line); give a larger budget"
        )
    value = answer.pop("value")
    return ChildResult(
        value=None if value is None else pickle.loads(value),
        budget_mib=budget_mib,
        **{name: answer[name] for name in ChildResult.__dataclass_fields__ if name in answer},
    )


def _budget(memory_budget: float | None) -> tuple[float, float]:
    """Return the budget in force and what must stay free on the machine, in MiB."""
    if memory_budget is not None and not memory_budget > 0:
        raise ValueError(f"memory_budget is {memory_budget}: give MiB above zero")
    floor_mib = min(1024, 0.05 * memory.total_mib())
    spare_mib = max(memory.available_mib() - 2 * floor_mib, 64)
    return min(spare_mib, float("inf") if memory_budget is None else float(memory_budget)), floor_mib


def _job(function: Callable, args: tuple, kwargs: dict, budget_mib: float) -> bytes:
    try:
        call = cloudpickle.dumps((function, args, kwargs))
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(f"{name} or its arguments cannot be sent to another process: {error}") from error
    gpu_driver = any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    slack_mib = _DATA_LIMIT_SLACK_GPU_MIB if gpu_driver else _DATA_LIMIT_SLACK_MIB
    return pickle.dumps(
        {"call": call, "sys_path": list(sys.path), "data_limit_bytes": int((budget_mib + slack_mib) * memory.MIB)}
    )


def _supervised(messages: list[bytes], timeout: float) -> dict:
    """Start a supervisor, hand it its messages, return its report; leave no process, whatever happens."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "MPLBACKEND": "agg"}  # a notebook's inline backend has no kernel to draw in
    supervisor = subprocess.Popen(
        [sys.executable, "-c", _SUPERVISOR_CODE, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the caller alone
    )
    answer: list[bytes] = []
    try:
        listener = threading.Thread(target=lambda: answer.append(supervisor.stdout.read()), daemon=True)
        listener.start()
        try:
            for message in messages:
                supervisor.stdin.write(_LENGTH.pack(len(message)) + message)
            supervisor.stdin.flush()
        except OSError:
            pass  # the supervisor died; its missing answer tells
        listener.join(timeout + _START_AND_END_S)
    finally:
        _let_go(supervisor)
    try:
        return pickle.loads(answer[0])
    except (IndexError, EOFError, pickle.UnpicklingError):
        raise ChildError(
            f"the supervisor of the child process ended (exit code {supervisor.returncode}) before it reported;"
            " was it killed from outside?"
        ) from None


def _let_go(supervisor: subprocess.Popen) -> None:
    """End the supervisor, and with it the worker's whole tree."""
    try:
        supervisor.stdin.close()
    except OSError:
        pass
    try:
        supervisor.wait(timeout=15)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait(timeout=5)
    finally:
        if os.name == "posix":
            try:
                os.killpg(supervisor.pid, signal.SIGKILL)  # what a killed supervisor could not end
            except (ProcessLookupError, PermissionError):
                pass
        supervisor.stdout.close()
