"""Call a function in worker processes that end with the program, however it ends, and that leave Ctrl-C to it."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import cv2

__all__ = ["in_processes"]


def in_processes(function: Callable, jobs: Sequence[tuple], count: int) -> Generator:
    """Yield what the function returns for each job, in the order in which the jobs end.

    Parameters
    ----------
    function : callable
        One of a module; each job holds its arguments.
    count : int
        Number of processes. When the generator is closed, each ends the one or two jobs that it has been given.

    Raises
    ------
    RuntimeError
        If a process died.
    """
    if not jobs:
        return
    # "spawn" behaves the same on every system, and does not copy a process whose libraries run threads.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)
    coming, running, processes = iter(jobs), set(), []
    try:
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes inherit it
        for _ in range(count):
            pool.submit(int)
        signal.signal(signal.SIGINT, on_interrupt)
        processes = multiprocessing.active_children()
        while running := running | {
            pool.submit(function, *job) for job in itertools.islice(coming, 2 * count - len(running))
        }:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        pool.shutdown()
        codes = [process.exitcode for process in processes]
        raise RuntimeError(f"workers ended early (exit codes {codes}); the same command goes on from there") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
