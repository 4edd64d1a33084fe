"""The worker processes of `keras_sequence` when something breaks; the promises are checked in test_pipelines.py."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from helpers.sandbox import run


def read_or_die(paths, keys):
    if paths[0] == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if paths[0] == "broken":
        raise ValueError("broken: an empty file")
    return os.getpid()


def ask_twice(path, error):
    """Ask for a batch that fails and for it again; return how often it raised, and who reads after an orderly end."""
    from helpers.pipelines.keras_sequence import Processes

    processes, raised = Processes(read_or_die, 1), 0
    reader = processes(["fine"], [(0, 0, 0)])
    for _ in range(2):
        try:
            processes([path], [(0, 0, 0)])
        except error:
            raised += 1
    ended = Processes(read_or_die, 1)
    ended.end()
    return raised, reader != os.getpid(), ended(["fine"], [(0, 0, 0)]) == os.getpid()


@pytest.mark.parametrize(("path", "error"), [("deadly", BrokenProcessPool), ("broken", ValueError)])
@pytest.mark.timeout(200)
def test_what_failed_in_a_worker_is_not_read_in_the_program_itself(path, error):
    result = run(ask_twice, path, error, timeout=150)
    assert result.unwrap() == (2, True, True)
