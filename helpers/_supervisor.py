"""The process that watches one worker: its memory, its time, its end. Started by `child.run`, never by hand.

It stands between the caller and the worker so that watching costs the worker nothing, and so that the worker's whole
process tree ends even when the caller is killed: the caller's end closes this process's standard input.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from helpers import memory

_PR_SET_CHILD_SUBREAPER = 36
_LENGTH = struct.Struct("<Q")
_SLOWEST_S, _FASTEST_S = 0.025, 0.001  # between two looks at the memory
_FEARED_MIB_PER_S = 4096  # the fastest growth that the pace of looking allows for
_EXACT_SHARE = 0.02  # of the time may go into exact readings
_EXACT_SHARE_NEAR_BUDGET = 0.3
_EXIT_GRACE_S = 2.0  # for a worker that has sent its value to end by itself
_KILL_LIMIT_S = 10.0
_OUTPUT_HEAD, _OUTPUT_TAIL = 64 * 1024, 192 * 1024
_MAX_SAMPLES = 600
WORKER_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from helpers._worker import main; main(int(sys.argv[2]))"


def main() -> None:
    """Read a job from standard input, run it in a worker, write the report to standard output."""
    channel = os.dup(1)
    os.dup2(2, 1)
    source = sys.stdin.buffer
    job_bytes = source.read(_LENGTH.unpack(source.read(_LENGTH.size))[0])
    limits = pickle.loads(source.read(_LENGTH.unpack(source.read(_LENGTH.size))[0]))
    caller_gone = threading.Event()
    # Nothing more comes: standard input ends when the caller lets go of us, or dies.
    threading.Thread(target=lambda: (source.read(), caller_gone.set()), daemon=True).start()
    report = pickle.dumps(_Watch(job_bytes, limits, caller_gone).run())
    with os.fdopen(channel, "wb") as file:
        try:
            file.write(report)
        except BrokenPipeError:
            pass
    os._exit(0)  # threads may still wait for pipes


class _Watch:
    """One worker from its start to the end of the last process that it left."""

    def __init__(self, job_bytes: bytes, limits: dict, caller_gone: threading.Event):
        self.budget_mib = limits["budget_mib"]
        self.floor_mib = limits["floor_mib"]
        self.timeout_s = limits["timeout_s"]
        self.caller_gone = caller_gone
        self.messages: queue.SimpleQueue = queue.SimpleQueue()
        self.output = _Output()
        self.report = {"outcome": None, "progress": None, "error": None, "traceback": None, "value": None}
        self.samples = _Samples()
        self.exit_statuses: dict[int, int] = {}
        self.exact_cost_s = 0.0
        if sys.platform == "linux":
            # Orphans of the worker become children of this process, so that none escapes.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.started_at = time.monotonic()
        self.function_started_at = None
        self.worker = _start_worker()
        _thread(self._feed, job_bytes)
        _thread(self._listen)
        self.output_reader = _thread(self.output.collect, self.worker.stderr)
        self.reader = memory.TreeReader(os.getpid(), include_root=False)

    def run(self) -> dict:
        """Watch until the worker ends or a limit is reached, end the tree, return the report."""
        try:
            self._watch()
        finally:
            self._remember_where_it_hung()
            self._end_tree()
        self.output_reader.join(timeout=1.0)  # a process that escaped may still hold the pipe
        self._take_messages()
        return self._finished_report()

    def _watch(self) -> None:
        next_machine_check = last_exact_at = 0.0
        value_deadline = None
        while True:
            now = time.monotonic()
            bound = self.reader.quick()
            held = bound
            # One process: the bound is exact. Several: a new peak needs a bound above the old one, so look only then.
            share = _EXACT_SHARE if bound.held_mib <= self.budget_mib else _EXACT_SHARE_NEAR_BUDGET
            is_due = now - last_exact_at > self.exact_cost_s / share
            if bound.processes > 1 and bound.held_mib > self.samples.peak_held_mib and is_due:
                held = self.reader.exact()
                last_exact_at = time.monotonic()
                self.exact_cost_s = last_exact_at - now
            is_exact = held is not bound or bound.processes == 1
            self.samples.add(now - self.started_at, bound, held if is_exact else None)
            if self.samples.peak_held_mib > self.budget_mib:
                return self._end("out of memory", _killed_text(self.samples.peak_held_mib, self.budget_mib))
            if now >= next_machine_check:
                left = memory.available_mib()
                next_machine_check = now + min(1.0, max(0.1, (left - self.floor_mib) / _FEARED_MIB_PER_S))
                if left < self.floor_mib:
                    return self._end("out of memory", f"killed: this machine had only {left:,.0f} MiB left")
            self._take_messages()
            if value_deadline is None and self.report["outcome"]:
                value_deadline = now + _EXIT_GRACE_S
            if self._worker_ended() or self.caller_gone.is_set() or (value_deadline and now > value_deadline):
                return None
            if now - self.started_at > self.timeout_s and not self.report["outcome"]:
                return self._end("hung", f"no end after {self.timeout_s:g} s")
            headroom_s = (self.budget_mib - bound.held_mib) / _FEARED_MIB_PER_S
            time.sleep(min(_SLOWEST_S, max(_FASTEST_S, headroom_s)))

    def _end(self, outcome: str, error: str) -> None:
        if self.report["outcome"] is None:
            self.report.update(outcome=outcome, error=error)

    def _take_messages(self) -> None:
        while not self.messages.empty():
            kind, content = self.messages.get()
            if kind == "started":
                self.report["baseline_mib"] = content
                self.function_started_at = time.monotonic()
            elif kind == "progress":
                self.report["progress"] = content
            elif self.report["outcome"] is not None:
                continue
            elif kind == "value":
                value, seconds, highest_rss_mib = content
                self.samples.raise_peak(highest_rss_mib)
                self.report.update(outcome="finished", value=value, seconds=seconds)
            elif kind == "error":
                is_out_of_memory, line, text, seconds, highest_rss_mib = content
                self.samples.raise_peak(highest_rss_mib)
                outcome = "out of memory" if is_out_of_memory else "raised"
                self.report.update(outcome=outcome, error=line, traceback=text, seconds=seconds)

    def _remember_where_it_hung(self) -> None:
        """Have the worker print the stack of each of its threads before it is killed."""
        if self.report["outcome"] == "hung" and hasattr(signal, "SIGUSR1") and "baseline_mib" in self.report:
            before = self.output.total
            try:
                os.kill(self.worker.pid, signal.SIGUSR1)
            except ProcessLookupError:
                return
            time.sleep(0.3)
            self.report["traceback"] = self.output.tail_since(before)

    def _end_tree(self) -> None:
        """Kill every process below this one until none is left."""
        deadline = time.monotonic() + _KILL_LIMIT_S
        while time.monotonic() < deadline:
            self._worker_ended()
            alive = [pid for pid in memory.descendants(os.getpid()) if pid not in self.exit_statuses]
            if not alive:
                return
            for pid in alive:
                _kill(pid)
            time.sleep(_FASTEST_S)
        self.report["survivors"] = alive

    def _worker_ended(self) -> bool:
        """Collect the exit statuses of the worker and of adopted orphans; tell whether the worker has ended."""
        if os.name != "posix":
            if (status := self.worker.poll()) is not None:
                self.exit_statuses[self.worker.pid] = status
            return self.worker.pid in self.exit_statuses
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.exit_statuses[pid] = os.waitstatus_to_exitcode(status)
        return self.worker.pid in self.exit_statuses

    def _finished_report(self) -> dict:
        report = self.report
        exit_code = self.exit_statuses.get(self.worker.pid)
        output = self.output.text()
        if report["outcome"] is None:
            report["outcome"] = "killed"
            report["error"] = _death_text(exit_code)
            if "std::bad_alloc" in output:
                report["outcome"] = "out of memory"
                report["error"] = f"std::bad_alloc ({report['error']})"
        since = self.function_started_at or self.started_at
        report.setdefault("seconds", time.monotonic() - since)
        report.setdefault("baseline_mib", None)
        report.update(exit_code=exit_code, output=output, **self.samples.summary())
        return report

    def _feed(self, job_bytes: bytes) -> None:
        try:
            with self.worker.stdin as pipe:
                pipe.write(job_bytes)
        except OSError:
            pass  # it died before it read its job; its exit status tells

    def _listen(self) -> None:
        pipe = self.worker.stdout
        while len(header := pipe.read(_LENGTH.size)) == _LENGTH.size:
            length = _LENGTH.unpack(header)[0]
            if len(message := pipe.read(length)) < length:
                return  # killed while it wrote
            self.messages.put(pickle.loads(message))


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
        return (self.head + middle + self.tail).decode(errors="replace")


class _Samples:
    """Memory over time, thinned so that the largest value of each stretch stays."""

    def __init__(self):
        self.points: list[tuple[float, float, float]] = []
        self.step_s = _SLOWEST_S
        self.peak_held_mib = self.peak_rss_mib = self.peak_file_mib = 0.0
        self.processes = 0
        self.method = "rss-parts"

    def add(self, seconds: float, bound: memory.TreeMemory, held: memory.TreeMemory | None) -> None:
        self.peak_rss_mib = max(self.peak_rss_mib, bound.rss_mib)
        self.processes = max(self.processes, bound.processes)
        if held is None or not held.processes:
            return
        self.peak_held_mib = max(self.peak_held_mib, held.held_mib)
        self.peak_file_mib = max(self.peak_file_mib, held.file_mib)
        if held.processes == 1:
            self.raise_peak(held.highest_rss_mib)
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

    def raise_peak(self, highest_rss_mib: float | None) -> None:
        """Account for a peak of one process between two looks: the kernel kept its height, mapped files included."""
        if highest_rss_mib is not None:
            self.peak_held_mib = max(self.peak_held_mib, highest_rss_mib - self.peak_file_mib)
            self.peak_rss_mib = max(self.peak_rss_mib, highest_rss_mib)

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
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", WORKER_CODE, root, str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _thread(target, *args) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _kill(pid: int) -> None:
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except (ProcessLookupError, PermissionError):
        pass


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
