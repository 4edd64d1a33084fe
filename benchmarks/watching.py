"""Measure the watching of child processes: what it costs, and how far a memory budget is overshot at 1 GB/s.

`make bench` runs it; by hand: `python benchmarks/watching.py`, on a machine that does nothing else. It takes about a
minute and reads /proc, so it needs Linux. The course promises less than 1 % of a core and of throughput, and at most
10 % over a budget.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.sandbox import report, run

_BUSY_S = 5.0
_ROUNDS = 8
_ROUND_S = 1.5
_START_S = 0.5  # for the supervisor to have read its first list of processes
_MIB = 2**20
_BUDGET_MIB = 300
_GROWTH_MIB_PER_S = 1024


def main() -> None:
    """Print one small table."""
    if not Path("/proc/self/schedstat").exists():
        sys.exit("this benchmark reads /proc/PID/task/TID/schedstat, which this system does not have")
    shares = {
        "one busy process": run(_share_while, _count_for).unwrap(),
        "one busy process that holds 1,000 MiB": run(_share_while, _count_holding).unwrap(),
        "four busy processes sharing 200 MiB": run(_share_while, _count_in_four).unwrap(),
    }
    watched, alone = _interleaved_rates()
    rows = [(f"supervisor, {name}", f"{100 * share:.2f} % of a core") for name, share in shares.items()]
    rows += [
        (f"loop, watched (median of {_ROUNDS})", f"{watched:.2f} million steps/s"),
        (f"loop, not watched (median of {_ROUNDS})", f"{alone:.2f} million steps/s"),
        ("loop, lost by being watched", f"{100 * (1 - watched / alone):+.2f} %"),
    ]
    for other_processes in (0, 4):
        overshoots = [_overshoot(other_processes) for _ in range(_ROUNDS)]
        figure = f"{100 * statistics.median(overshoots):.1f} %, at most {100 * max(overshoots):.1f} %"
        rows.append((f"{_BUDGET_MIB} MiB overshot by a tree of {1 + other_processes} (median of {_ROUNDS})", figure))
    width = max(len(name) for name, _ in rows)
    print(f"{os.cpu_count()} cores, load before {_load_before:.1f}")
    for name, figure in rows:
        print(f"{name:<{width}}  {figure:>24}")


def _share_while(work) -> float:
    """Return the share of a core that this process's supervisor uses while this process works."""
    time.sleep(_START_S)
    supervisor = os.getppid()
    cpu_s, wall_s = _cpu_seconds(supervisor), time.monotonic()
    work(_BUSY_S)
    return (_cpu_seconds(supervisor) - cpu_s) / (time.monotonic() - wall_s)


def _cpu_seconds(pid: int) -> float:
    """Return the time that all threads of a process have run, to the nanosecond."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def _count_for(seconds: float) -> float:
    """Count in a fixed loop for some seconds; return millions of steps a second."""
    steps, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(100_000):
            steps += 1
    return steps / elapsed / 1e6


def _count_holding(seconds: float) -> None:
    kept = bytearray(b"x") * (1000 * _MIB)
    _count_for(seconds)
    del kept


def _count_in_four(seconds: float) -> None:
    kept = bytearray(b"x") * (200 * _MIB)
    pids = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            _count_for(seconds)
            os._exit(0)
        pids.append(pid)
    _count_for(seconds)
    for pid in pids:
        os.waitpid(pid, 0)
    del kept


def _interleaved_rates() -> tuple[float, float]:
    """Return the loop's rate in a watched child and in one whose supervisor is stopped, in turns."""
    watched, alone = [], []
    for _ in range(_ROUNDS):
        watched.append(run(_rate).unwrap())
        alone.append(run(_rate, stop_watching=True).unwrap())
    return statistics.median(watched), statistics.median(alone)


def _rate(stop_watching: bool = False) -> float:
    import signal

    time.sleep(0.2)
    if stop_watching:
        os.kill(os.getppid(), signal.SIGSTOP)
    try:
        return _count_for(_ROUND_S)
    finally:
        if stop_watching:
            os.kill(os.getppid(), signal.SIGCONT)


def _overshoot(other_processes: int) -> float:
    """Return how far a tree of processes came over its budget, as a share of it; it grows by 1 GB/s."""
    shared_mib = 150 if other_processes else 1
    result = run(_grow, other_processes, shared_mib, memory_budget=_BUDGET_MIB, timeout=60)
    assert result.outcome == "out of memory", result
    grown_mib = result.baseline_mib + shared_mib + result.progress
    return max(result.peak_mib, grown_mib) / _BUDGET_MIB - 1


def _grow(other_processes: int, shared_mib: int) -> None:
    kept = [bytearray(b"x") * (shared_mib * _MIB)]
    for _ in range(other_processes):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    time.sleep(_START_S)
    started = time.perf_counter()
    for mib in range(1, 10 * _BUDGET_MIB):
        kept.append(bytearray(b"x") * _MIB)
        report(mib)
        time.sleep(max(0, mib / _GROWTH_MIB_PER_S - (time.perf_counter() - started)))


_load_before = os.getloadavg()[0]

if __name__ == "__main__":
    main()
