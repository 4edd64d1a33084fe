"""Measure what watching costs: the supervisor's share of a core, and what its worker loses by being watched.

Run it by hand, on a machine that does nothing else: `python benchmarks/sampler_cost.py`. It takes about 40 seconds and
reads /proc, so it needs Linux. Nothing depends on its figures; the course promises less than 1 % of a core.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.child import run

_BUSY_S = 5.0
_ROUNDS = 8
_ROUND_S = 1.5
_START_S = 0.5  # for the supervisor to have read its first list of processes
_MIB = 2**20


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


_load_before = os.getloadavg()[0]

if __name__ == "__main__":
    main()
