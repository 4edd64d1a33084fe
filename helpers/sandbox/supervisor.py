"""The process that watches one worker: its memory, its time, its end. Started by `caller`, never by hand.

It stands between the caller and the worker so that watching costs the worker nothing, and so that the worker's whole
process tree ends even when the caller is killed. The worker reads its job from this process's standard input. Standard
output takes the pickled value as it comes, then the pickled report and its length in 8 bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import psutil

from helpers.quiet import without_start_up_notes
from helpers.sandbox import memory
from helpers.sandbox.worker import Outcome

_PR_SET_CHILD_SUBREAPER = 36
_SLOWEST_S, _FASTEST_S = 0.04, 0.001  # between two looks at the memory
_FEARED_MIB_PER_S = 4096  # the fastest growth that the pace of looking allows for
_UNSEEN_S = 0.1  # for which a new process may go unseen while the budget is far
_LOOK_SHARE = 0.05  # of the time may go into looks where these are slow, as on other systems than Linux
_EXACT_SHARE = 0.02  # of the time may go into exact readings
_EXACT_SHARE_NEAR_BUDGET = 0.35
_EXIT_GRACE_S = 2.0  # for a worker that has sent its value to end by itself
_STACKS_S = 0.3  # for a worker that hangs to print where
_KILL_LIMIT_S = 10.0
_KILL_GRACE_S = 1.0  # after which whole groups are killed; till then the standard library removes named shared memory
_OUTPUT_HEAD, _OUTPUT_TAIL = 64 * 1024, 192 * 1024  # bytes
_FULL_SAMPLES = 600  # at full density; of a longer run, the later samples are further apart
_SAME_FILES_MIB = 1.0


def start_python(module: str, settings: dict, **options: object) -> subprocess.Popen:
    """Start ``main(**settings)`` of a module of this room, in a session of its own: Ctrl-C is for the caller alone."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]);"
        f" from helpers.sandbox.{module} import main; main(**json.loads(sys.argv[2]))"
    )
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, root, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def main(**limits) -> None:
    """Run the job in a worker; write its value and the report to standard output."""
    if os.name == "posix":
        # The caller may hand down blocked signals, and children that nobody may wait for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
    sys.setswitchinterval(_FASTEST_S)  # a worker that prints without end must not keep the watch waiting
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        report = pickle.dumps(_Watch(channel, SimpleNamespace(**limits)).run())
        channel.write(report + len(report).to_bytes(8, "little"))
    os._exit(0)  # threads may still wait for pipes


class _Watch:
    """One worker from its start to the end of the last process that it left."""

    def __init__(self, channel: BinaryIO, limits: SimpleNamespace):
        self.channel = channel
        self.limits = limits
        self.parent_pid = os.getppid()  # on Windows not the caller's
        self.is_let_go = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self.is_let_go.set())
        self.known: dict = {"baseline_mib": None, "progress": None}  # what the worker has reported
        self.output = bytearray()
        self.output_bytes = 0
        self.samples = _Samples()
        self.exit_code: int | None = None
        self.headroom_s = self.last_exact_at = self.exact_cost_s = self.last_exact_mib = 0.0
        if sys.platform == "linux":
            # Orphans of the worker become children of this process, so that none escapes.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.started_at = time.monotonic()
        self.worker = start_python("worker", {"supervisor_pid": os.getpid(), "budget_mib": limits.budget_mib})
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)  # the worker alone reads the job: when it dies, nobody must wait to write it
        self.reader = memory.TreeReader(os.getpid(), include_root=False)
        self.threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._collect_output)]
        for thread in self.threads:
            thread.start()

    def run(self) -> dict:
        """Watch until the worker ends or a limit is reached, end the tree, return the report."""
        try:
            end = self._watch()
        finally:
            survivors = self._end_tree()
        for thread in self.threads:
            thread.join(timeout=1.0)  # a process that escaped may still hold the pipe
        if at_end := self.known.get("memory_at_end"):
            self.samples.raise_peak(at_end)
        output = self._output_text()
        return {
            "error": None,
            "traceback": None,
            "seconds": time.monotonic() - self.known.get("started_at", self.started_at),
            **(end or self.known.get("end") or _death(self.exit_code, output)),
            **{name: self.known[name] for name in ("baseline_mib", "progress")},
            **{name: value for name, value in vars(self.samples).items() if name != "only"},
            "budget_mib": self.limits.budget_mib,
            "exit_code": self.exit_code,
            "output": output,
            "survivors": survivors,
        }

    def _watch(self) -> dict | None:
        """Return how it ended, or None if the worker died or the caller is gone."""
        end, stops_at, output_before, next_machine_check = None, None, 0, 0.0
        while True:
            now = time.monotonic()
            held_mib, pause_s = self._look(now)
            end = end or self.known.get("end")
            if held_mib > self.limits.budget_mib:
                text = f"killed at {held_mib:,.0f} MiB, budget {self.limits.budget_mib:,.0f} MiB"
                return end or _out_of_memory(f"{text} (exit code 137, as by the kernel's OOM killer)")
            if now >= next_machine_check:
                left_mib = memory.available_mib()
                next_machine_check = now + min(1.0, max(0.02, (left_mib - self.limits.floor_mib) / _FEARED_MIB_PER_S))
                if left_mib < self.limits.floor_mib:
                    return end or _out_of_memory(f"killed: this machine had only {left_mib:,.0f} MiB left")
            is_left = os.getppid() != self.parent_pid or not psutil.pid_exists(self.limits.caller_pid)
            if self._worker_ended() or self.is_let_go.is_set() or is_left:
                return end
            if end and stops_at is None:
                stops_at = now + _EXIT_GRACE_S
            elif stops_at is None and now - self.started_at > self.limits.timeout_s:
                end = {"outcome": Outcome.HUNG, "error": f"no end after {self.limits.timeout_s:g} s"}
                stops_at = now + _STACKS_S
                output_before = self.output_bytes
                if hasattr(signal, "SIGUSR1"):
                    self.worker.send_signal(signal.SIGUSR1)  # it prints the stack of each of its threads
            elif stops_at is not None and now > stops_at:
                if end["outcome"] == Outcome.HUNG:
                    printed = self.output_bytes - output_before
                    end["traceback"] = self.output[max(0, len(self.output) - printed) :].decode(errors="replace")
                return end
            time.sleep(pause_s)

    def _look(self, now: float) -> tuple[float, float]:
        """Read the memory; return what is certainly held, in MiB, and how long the next look may wait, in seconds.

        The quick reading is an upper bound, and exact for one process. For several, only a bound above the old peak can
        mean a new peak. Exact readings are slow: they are taken seldom, but in time where the budget may be reached.
        """
        budget_mib = self.limits.budget_mib
        bound = self.reader.quick(min(_UNSEEN_S, self.headroom_s))
        slowest_s = max(_SLOWEST_S, min(0.25, (time.monotonic() - now) / _LOOK_SHARE))
        is_near = bound.held_mib > budget_mib
        exact_wait_s = self.exact_cost_s / _EXACT_SHARE
        if is_near:
            headroom_s = (budget_mib - self.last_exact_mib) / _FEARED_MIB_PER_S
            exact_wait_s = min(exact_wait_s, max(headroom_s, self.exact_cost_s * (1 / _EXACT_SHARE_NEAR_BUDGET - 1)))
        exact_in_s = self.last_exact_at + exact_wait_s - now
        held = bound if bound.processes == 1 or bound.method != "rss-parts" else None
        if held is None and bound.held_mib > self.samples.peak_mib and exact_in_s <= 0:
            held = self.reader.exact()
            self.last_exact_at, self.last_exact_mib = time.monotonic(), held.held_mib
            self.exact_cost_s = exact_in_s = self.last_exact_at - now
        certain_mib = (bound.at_least_mib or 0.0) if held is None else held.held_mib
        self.samples.add(now - self.started_at, bound, held, certain_mib)
        # New pages show in the quick looks between two exact readings; only pages shared no longer do not.
        self.headroom_s = (budget_mib - (certain_mib if is_near else bound.held_mib)) / _FEARED_MIB_PER_S
        pause_s = min(self.headroom_s, exact_in_s) if is_near else self.headroom_s
        return certain_mib, min(slowest_s, max(_FASTEST_S, pause_s))

    def _end_tree(self) -> list[int]:
        """Kill every process below this one until none is left; return those that cannot be killed."""
        started = time.monotonic()
        while True:
            self._worker_ended()
            alive = self.reader.pids()
            if sys.platform != "linux":  # orphans leave the tree there
                alive = list({*alive, *memory.carrying(self.limits.mark)} - {os.getpid()})
            seconds = time.monotonic() - started
            if not alive or seconds > _KILL_LIMIT_S:
                return alive
            for pid in alive:
                _kill(pid, with_group=seconds > _KILL_GRACE_S)
            time.sleep(_FASTEST_S)

    def _worker_ended(self) -> bool:
        """Collect the exit statuses of the worker and of adopted orphans; tell whether the worker has ended."""
        if os.name != "posix":
            self.exit_code = self.worker.poll()
            return self.exit_code is not None
        with contextlib.suppress(ChildProcessError):  # none is left
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if ended[0] == self.worker.pid:
                    self.exit_code = self.worker.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.exit_code is not None

    def _listen(self) -> None:
        """Read what the worker says until it ends, or until its function writes where only the worker speaks."""
        with self.worker.stdout as pipe, contextlib.suppress(Exception):
            while True:
                message = pickle.load(pipe)
                if isinstance(message, bytes):
                    self.channel.write(message)
                else:
                    self.known.update(message)

    def _collect_output(self) -> None:
        """Keep the beginning and the end of what the worker prints, however much it is."""
        while chunk := self.worker.stderr.read1(65536):
            self.output += chunk
            self.output_bytes += len(chunk)
            del self.output[_OUTPUT_HEAD:-_OUTPUT_TAIL]

    def _output_text(self) -> str:
        left_out = self.output_bytes - len(self.output)
        if left_out:
            self.output[_OUTPUT_HEAD:_OUTPUT_HEAD] = f"\n[{left_out:,} bytes left out]\n".encode()
        return without_start_up_notes(bytes(self.output)).decode(errors="replace")


class _Samples:
    """Memory over time, the largest value of each stretch, and the peaks."""

    def __init__(self):
        self.timeline: list[tuple[float, float, float]] = []
        self.peak_mib = self.peak_rss_mib = self.peak_file_mib = 0.0
        self.method = "rss-parts"
        self.only = memory.TreeMemory(0, 0, 0, 1, "rss-parts", highest_rss_mib=0.0)  # the last reading of one process

    def add(self, seconds: float, bound: memory.TreeMemory, held: memory.TreeMemory | None, certain_mib: float) -> None:
        self.peak_mib = max(self.peak_mib, certain_mib)
        self.peak_rss_mib = max(self.peak_rss_mib, bound.rss_mib)
        if held is None or not held.processes:
            return
        self.peak_file_mib = max(self.peak_file_mib, held.file_mib)
        if held.processes == 1:
            self.raise_peak(held)
        if held.processes > 1 or held.method != "rss-parts":
            self.method = held.method
        point = (held.held_mib, held.file_mib)
        if self.timeline and seconds - self.timeline[-1][0] < max(_SLOWEST_S, seconds / _FULL_SAMPLES):
            seconds, *last = self.timeline.pop()
            point = map(max, last, point)
        self.timeline.append((seconds, *point))

    def raise_peak(self, only: memory.TreeMemory) -> None:
        """Account for a peak of one process between two looks: the kernel kept its height, mapped files included.

        What was held at that height is known only while no files are unmapped: else they may have made the height.
        """
        if only.highest_rss_mib is None:
            return
        last, self.only = self.only, only
        if only.highest_rss_mib > last.highest_rss_mib and only.file_mib > last.file_mib - _SAME_FILES_MIB:
            self.peak_mib = max(self.peak_mib, only.highest_rss_mib - max(only.file_mib, last.file_mib))
        self.peak_rss_mib = max(self.peak_rss_mib, only.highest_rss_mib)


def _kill(pid: int, *, with_group: bool) -> None:
    """Kill a process, or its group in one stroke: some fork faster than they can be killed one by one."""
    with contextlib.suppress(psutil.Error, OSError):  # it has ended by now, or belongs to somebody else
        process = psutil.Process(pid)
        if with_group:
            if os.name == "posix" and (group := os.getpgid(pid)) != os.getpgrp():
                os.killpg(group, signal.SIGKILL)
        elif "multiprocessing.resource_tracker" in str(process.cmdline()):
            return  # it removes named shared memory once its users are gone
        process.kill()


def _out_of_memory(error: str) -> dict:
    return {"outcome": Outcome.OUT_OF_MEMORY, "error": error}


def _death(exit_code: int | None, output: str) -> dict:
    """Return how a worker ended that did not say so itself."""
    if exit_code is None or exit_code >= 0:
        text = f"ended by itself with exit code {exit_code} before its result came"
    else:
        names = {number: number.name for number in signal.Signals}
        text = f"died by {names.get(-exit_code, f'signal {-exit_code}')} (exit code {128 - exit_code})"
    if "std::bad_alloc" in output:
        return _out_of_memory(f"std::bad_alloc ({text})")
    return {"outcome": Outcome.KILLED, "error": text}
