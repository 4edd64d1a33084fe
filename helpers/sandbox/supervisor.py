"""The process that watches one worker: its memory, its time, its end. Started by `child.run`, never by hand.

It stands between the caller and the worker so that watching costs the worker nothing, and so that the worker's whole
process tree ends even when the caller is killed: the caller's end closes this process's standard input.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import BinaryIO

from helpers.quiet import without_start_up_notes
from helpers.sandbox import memory
from helpers.sandbox.outcome import Outcome
from helpers.sandbox.worker import FINISHED, FRAME, LARGEST_FRAME, PROGRESS, RAISED, STARTED, VALUE_PART

_PR_SET_CHILD_SUBREAPER = 36
_LENGTH = struct.Struct("<Q")
_SLOWEST_S, _FASTEST_S = 0.04, 0.001  # between two looks at the memory
_FEARED_MIB_PER_S = 4096  # the fastest growth that the pace of looking allows for
_UNSEEN_S = 0.1  # for which a new process may go unseen while the budget is far
_FEARED_SHARED_MIB_PER_S = 2048  # the same where looking takes exact readings, which are slow
_LOOK_SHARE = 0.05  # of the time may go into looks where these are slow, as on other systems than Linux
_SLOWEST_LOOKS_S = 0.25
_EXACT_SHARE = 0.02  # of the time may go into exact readings
_EXACT_SHARE_NEAR_BUDGET = 0.35
_EXIT_GRACE_S = 2.0  # for a worker that has sent its value to end by itself
_STACKS_S = 0.3  # for a worker that hangs to print where
_KILL_LIMIT_S = 10.0
_STUBBORN_S = 0.5  # after which whole process groups are killed
_TRACKER_GRACE_S = 1.0  # for the standard library to remove shared memory that a killed process named
_WEIGHED_EVERY_MIB = 64
_KINDS = {STARTED, PROGRESS, VALUE_PART, FINISHED, RAISED}
_OUTPUT_HEAD, _OUTPUT_TAIL = 64 * 1024, 192 * 1024
_MAX_SAMPLES = 600
_SAME_FILES_MIB = 1.0
WORKER_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from helpers.sandbox.worker import main; main(int(sys.argv[2]))"
)


def main() -> None:
    """Read a job from standard input, run it in a worker, write the report to standard output."""
    caller_pid = os.getppid()
    caller_gone = threading.Event()
    _forget_signals_of_the_caller(caller_gone)
    sys.setswitchinterval(_FASTEST_S)  # a worker that prints without end must not keep the watch waiting
    channel = os.dup(1)
    os.dup2(2, 1)
    source = sys.stdin.buffer
    limits = pickle.loads(source.read(_LENGTH.unpack(source.read(_LENGTH.size))[0]))
    value_parts: list[bytes] = []
    try:
        watch = _Watch(source, limits, caller_pid, caller_gone)
        report = watch.run()
        value_parts = watch.value_parts if report["outcome"] == Outcome.FINISHED else []
    except Exception:
        report = {"failure": traceback.format_exc()}
    with os.fdopen(channel, "wb") as file:
        try:
            content = pickle.dumps(report)
            file.write(_LENGTH.pack(len(content)) + content)
            for part in value_parts:
                file.write(part)
            file.flush()
        except BrokenPipeError:
            os._exit(1)
    os._exit(0)  # threads may still wait for pipes


def _forget_signals_of_the_caller(caller_gone: threading.Event) -> None:
    """Undo what this process and its worker inherit: blocked signals, and children that nobody may wait for."""
    if os.name != "posix":
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: caller_gone.set())
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class _Watch:
    """One worker from its start to the end of the last process that it left."""

    def __init__(self, source: BinaryIO, limits: dict, caller_pid: int, caller_gone: threading.Event):
        self.budget_mib = limits["budget_mib"]
        self.floor_mib = limits["floor_mib"]
        self.timeout_s = limits["timeout_s"]
        self.mark = limits["mark"]
        self.caller_pid = caller_pid
        self.caller_gone = caller_gone
        self.messages: deque[tuple[bytes, bytes]] = deque()
        self.progress: bytes | None = None
        self.value_parts: list[bytes] = []
        self.value_mib = self.weighed_mib = 0.0
        self.refusal: str | None = None
        self.output = _Output()
        self.report = {"outcome": None, "error": None, "traceback": None, "baseline_mib": None}
        self.samples = _Samples()
        self.exit_code: int | None = None
        self.headroom_s = self.look_cost_s = self.last_exact_at = self.exact_cost_s = self.last_exact_mib = 0.0
        self.stops_at: float | None = None
        if sys.platform == "linux":
            # Orphans of the worker become children of this process, so that none escapes.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.started_at = time.monotonic()
        self.function_started_at = None
        self.worker = _start_worker()
        self.reader = memory.TreeReader(os.getpid(), include_root=False)
        _thread(self._hand_over, source)
        self.listener = _thread(self._listen)
        self.output_reader = _thread(self.output.collect, self.worker.stderr)

    def run(self) -> dict:
        """Watch until the worker ends or a limit is reached, end the tree, return the report."""
        try:
            self._watch()
        finally:
            self._end_tree()
        for thread in (self.output_reader, self.listener):
            thread.join(timeout=1.0)  # a process that escaped may still hold the pipe
        self._take_messages()
        return self._finished_report()

    def _watch(self) -> None:
        next_machine_check = 0.0
        output_before = 0
        while True:
            now = time.monotonic()
            bound, held_mib = self._look(now)
            if held_mib > self.budget_mib:
                return self._end(Outcome.OUT_OF_MEMORY, _killed_text(held_mib, self.budget_mib))
            if now >= next_machine_check:
                left = memory.available_mib()
                next_machine_check = now + min(1.0, max(0.02, (left - self.floor_mib) / _FEARED_MIB_PER_S))
                if left < self.floor_mib:
                    return self._end(Outcome.OUT_OF_MEMORY, f"killed: this machine had only {left:,.0f} MiB left")
            if self.refusal is not None:
                return self._end(Outcome.OUT_OF_MEMORY, self.refusal)
            self._take_messages()
            if self._worker_ended() or self._caller_is_gone():
                return None
            if self.stops_at is None and self.report["outcome"]:
                self.stops_at = now + _EXIT_GRACE_S
            if self.stops_at is None and now - self.started_at > self.timeout_s:
                self._end(Outcome.HUNG, f"no end after {self.timeout_s:g} s")
                self.stops_at = now + _STACKS_S
                output_before = self.output.total
                self._ask_for_stacks()
            if self.stops_at is not None and now > self.stops_at:
                if self.report["outcome"] == Outcome.HUNG:
                    self.report["traceback"] = self.output.tail_since(output_before)
                return None
            time.sleep(self._pause_s(bound))

    def _look(self, now: float) -> tuple[memory.TreeMemory, float]:
        """Read the memory: an upper bound, and what is certainly held, in MiB.

        For one process the bound is exact. For several, only a bound above the old peak can mean a new peak.
        """
        bound = self.reader.quick(min(_UNSEEN_S, self.headroom_s))
        self.headroom_s = (self.budget_mib - bound.held_mib) / _FEARED_MIB_PER_S
        self.look_cost_s = time.monotonic() - now
        held = bound if bound.processes == 1 or bound.method != "rss-parts" else None
        if held is None and bound.held_mib > self.samples.peak_held_mib and now >= self._exact_due_at(bound):
            held = self.reader.exact()
            self.last_exact_at = time.monotonic()
            self.exact_cost_s = self.last_exact_at - now
            self.last_exact_mib = held.held_mib
        certain_mib = (bound.at_least_mib or 0.0) if held is None else held.held_mib
        self.samples.add(now - self.started_at, bound, held, certain_mib)
        return bound, certain_mib

    def _exact_due_at(self, bound: memory.TreeMemory) -> float:
        """Return when the next exact reading is due: seldom, but in time where the budget may be reached."""
        wait_s = self.exact_cost_s / _EXACT_SHARE
        if bound.held_mib > self.budget_mib:
            headroom_s = (self.budget_mib - self.last_exact_mib) / _FEARED_SHARED_MIB_PER_S
            wait_s = min(wait_s, max(headroom_s, self.exact_cost_s * (1 / _EXACT_SHARE_NEAR_BUDGET - 1)))
        return self.last_exact_at + wait_s

    def _pause_s(self, bound: memory.TreeMemory) -> float:
        pause_s = self.headroom_s
        if bound.held_mib > self.budget_mib:
            # New pages show in the quick looks between two exact readings; only pages shared no longer do not.
            certain_headroom_s = (self.budget_mib - (bound.at_least_mib or 0.0)) / _FEARED_MIB_PER_S
            pause_s = min(certain_headroom_s, self._exact_due_at(bound) - time.monotonic())
        slowest_s = max(_SLOWEST_S, min(_SLOWEST_LOOKS_S, self.look_cost_s / _LOOK_SHARE))
        return min(slowest_s, max(_FASTEST_S, pause_s))

    def _end(self, outcome: str, error: str) -> None:
        if self.report["outcome"] is None:
            self.report.update(outcome=outcome, error=error)

    def _caller_is_gone(self) -> bool:
        # Its end closes our standard input, unless a process that it forked holds the other end open.
        return self.caller_gone.is_set() or os.getppid() != self.caller_pid

    def _take_messages(self) -> None:
        while self.messages:
            kind, content = self.messages.popleft()
            if kind == STARTED:
                self.report["baseline_mib"] = pickle.loads(content)
                self.function_started_at = time.monotonic()
            elif kind == FINISHED and self.report["outcome"] is None:
                seconds, *highest = pickle.loads(content)
                self.samples.raise_peak(*highest)
                self.report.update(outcome=Outcome.FINISHED, seconds=seconds)
            elif kind == RAISED and self.report["outcome"] is None:
                is_out_of_memory, line, text, seconds, *highest = pickle.loads(content)
                self.samples.raise_peak(*highest)
                outcome = Outcome.OUT_OF_MEMORY if is_out_of_memory else Outcome.RAISED
                self.report.update(outcome=outcome, error=line, traceback=text, seconds=seconds)

    def _ask_for_stacks(self) -> None:
        """Have the worker print the stack of each of its threads before it is killed."""
        if hasattr(signal, "SIGUSR1"):
            try:
                os.kill(self.worker.pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass

    def _end_tree(self) -> None:
        """Kill every process below this one until none is left."""
        started = time.monotonic()
        is_tracker: dict[int, bool] = {}
        while alive := self._alive():
            seconds = time.monotonic() - started
            if seconds > _KILL_LIMIT_S:
                break
            for pid in alive:
                if pid not in is_tracker:
                    is_tracker[pid] = _is_resource_tracker(pid)
                if not is_tracker[pid] or seconds > _TRACKER_GRACE_S:
                    _kill(pid)
                if seconds > _STUBBORN_S:
                    _kill_group_of(pid)
            time.sleep(_FASTEST_S)
        self.report["survivors"] = alive

    def _alive(self) -> list[int]:
        self._worker_ended()
        pids = self.reader.pids()
        if sys.platform != "linux":  # orphans leave the tree there
            pids += [pid for pid in memory.carrying(self.mark) if pid != os.getpid() and pid not in pids]
        return pids

    def _worker_ended(self) -> bool:
        """Collect the exit statuses of the worker and of adopted orphans; tell whether the worker has ended."""
        if os.name != "posix":
            self.exit_code = self.worker.poll()
            return self.exit_code is not None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self.worker.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def _finished_report(self) -> dict:
        report = self.report
        output = self.output.text()
        if report["outcome"] is None:
            report["outcome"] = Outcome.KILLED
            report["error"] = _death_text(self.exit_code)
            if "std::bad_alloc" in output:
                report["outcome"] = Outcome.OUT_OF_MEMORY
                report["error"] = f"std::bad_alloc ({report['error']})"
        since = self.function_started_at or self.started_at
        report.setdefault("seconds", time.monotonic() - since)
        report.update(exit_code=self.exit_code, output=output, progress=self.progress, **self.samples.summary())
        return report

    def _hand_over(self, source: BinaryIO) -> None:
        """Pass the job on to the worker, then wait until the caller lets go of us, or dies."""
        try:
            with self.worker.stdin as pipe:
                left = int.from_bytes(source.read(_LENGTH.size), "little")
                while left and (chunk := source.read1(min(left, LARGEST_FRAME))):
                    left -= len(chunk)
                    pipe.write(chunk)
        except OSError:
            pass  # it died before it read its job; its exit status tells
        while source.read1(LARGEST_FRAME):
            pass
        self.caller_gone.set()

    def _listen(self) -> None:
        pipe = self.worker.stdout
        while len(header := pipe.read(FRAME.size)) == FRAME.size:
            kind, length = FRAME.unpack(header)
            if kind not in _KINDS or length > LARGEST_FRAME:
                pipe.close()  # the function itself wrote where only its worker speaks
                return
            content = pipe.read(length)
            if len(content) < length:
                return  # killed while it wrote
            if kind == PROGRESS:
                self.progress = content
            elif kind == VALUE_PART:
                self.value_parts.append(content)
                self._weigh_value(length / memory.MIB)
            else:
                self.messages.append((kind, content))

    def _weigh_value(self, part_mib: float) -> None:
        """Refuse a value for which this machine has no room: the caller needs twice its size to read it."""
        self.value_mib += part_mib
        if self.value_mib - self.weighed_mib > _WEIGHED_EVERY_MIB:
            self.weighed_mib = self.value_mib
            left = memory.available_mib()
            if 2 * self.value_mib > left - self.floor_mib:
                self.refusal = (
                    f"killed: this machine has only {left:,.0f} MiB left, not enough to send the value back"
                    f" ({self.value_mib:,.0f} MiB of it so far)"
                )


class _Output:
    """What the worker printed: the beginning and the end, however much it was."""

    def __init__(self):
        self.head = b""
        self.tail = b""
        self.total = 0

    def collect(self, pipe) -> None:
        while chunk := pipe.read1(65536):
            room = _OUTPUT_HEAD - len(self.head)
            self.head += chunk[:room]
            self.tail = (self.tail + chunk[room:])[-_OUTPUT_TAIL:]
            self.total += len(chunk)

    def tail_since(self, start: int) -> str:
        kept = self.head + self.tail
        return kept[len(kept) - min(self.total - start, len(kept)) :].decode(errors="replace")

    def text(self) -> str:
        left_out = self.total - len(self.head) - len(self.tail)
        middle = f"\n[{left_out:,} bytes left out]\n".encode() if left_out else b""
        return without_start_up_notes(self.head + middle + self.tail).decode(errors="replace")


class _Samples:
    """Memory over time, thinned so that the largest value of each stretch stays."""

    def __init__(self):
        self.points: list[tuple[float, float, float]] = []
        self.step_s = _SLOWEST_S
        self.peak_held_mib = self.peak_rss_mib = self.peak_file_mib = 0.0
        self.highest_rss_mib = self.last_file_mib = 0.0  # of the only process
        self.processes = 0
        self.method = "rss-parts"

    def add(self, seconds: float, bound: memory.TreeMemory, held: memory.TreeMemory | None, certain_mib: float) -> None:
        self.peak_held_mib = max(self.peak_held_mib, certain_mib)
        self.peak_rss_mib = max(self.peak_rss_mib, bound.rss_mib)
        self.processes = max(self.processes, bound.processes)
        if held is None or not held.processes:
            return
        self.peak_file_mib = max(self.peak_file_mib, held.file_mib)
        if held.processes == 1:
            self.raise_peak(held.highest_rss_mib, held.file_mib)
        if held.method != "rss-parts":
            self.method = held.method
        if self.points and seconds - self.points[-1][0] < self.step_s:
            last_seconds, last_held, last_file = self.points[-1]
            self.points[-1] = (last_seconds, max(last_held, held.held_mib), max(last_file, held.file_mib))
        else:
            self.points.append((seconds, held.held_mib, held.file_mib))
        if len(self.points) > _MAX_SAMPLES:
            self.step_s *= 2
            pairs = zip(self.points[::2], [*self.points[1::2], self.points[-1]], strict=False)
            self.points = [(a[0], max(a[1], b[1]), max(a[2], b[2])) for a, b in pairs]

    def raise_peak(self, highest_rss_mib: float | None, file_mib: float | None) -> None:
        """Account for a peak of one process between two looks: the kernel kept its height, mapped files included.

        What was held at that height is known only while no files are unmapped: else they may have made the height.
        """
        if highest_rss_mib is None:
            return
        if highest_rss_mib > self.highest_rss_mib and file_mib > self.last_file_mib - _SAME_FILES_MIB:
            mapped_mib = max(file_mib, self.last_file_mib)
            self.peak_held_mib = max(self.peak_held_mib, highest_rss_mib - mapped_mib)
        self.highest_rss_mib = max(self.highest_rss_mib, highest_rss_mib)
        self.peak_rss_mib = max(self.peak_rss_mib, highest_rss_mib)
        self.last_file_mib = file_mib

    def summary(self) -> dict:
        return {
            "peak_mib": self.peak_held_mib,
            "peak_rss_mib": self.peak_rss_mib,
            "peak_file_mib": self.peak_file_mib,
            "processes": self.processes,
            "method": self.method,
            "timeline": self.points,
        }


def _start_worker() -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", WORKER_CODE, root, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a function that kills its own process group does not hit us
    )


def _thread(target, *args) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _kill(pid: int) -> None:
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except (ProcessLookupError, PermissionError):
        pass


def _kill_group_of(pid: int) -> None:
    """Kill all processes of a group in one stroke: some fork faster than they can be killed one by one."""
    if os.name != "posix":
        return
    try:
        group = os.getpgid(pid)
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _is_resource_tracker(pid: int) -> bool:
    """Recognise the helper of multiprocessing that removes named shared memory once its users are gone."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _killed_text(held_mib: float, budget_mib: float) -> str:
    return f"killed at {held_mib:,.0f} MiB, budget {budget_mib:,.0f} MiB (exit code 137, as by the kernel's OOM killer)"


def _death_text(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended before its result came"
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        return f"died by {name} (exit code {128 - exit_code})"
    return f"ended by itself with exit code {exit_code} before its result came"
