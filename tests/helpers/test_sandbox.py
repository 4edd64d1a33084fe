"""What `helpers.sandbox.run` promises: every end of a function is a value, and nothing of it is left behind."""

import gc
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from conftest import TEST_ALL

from helpers.sandbox import ChildError, Outcome, report, run, worker
from helpers.sandbox import caller as child

ROOT = Path(child.__file__).resolve().parents[2]
MARK = "TEST_CHILD_MARK"
BUDGET_MIB = 300
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc, or a system call that only Linux has")
posix_only = pytest.mark.skipif(os.name != "posix", reason="forks, or sends POSIX signals")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else each child imports this module, and pytest


@pytest.fixture
def mark(monkeypatch):
    """Mark every process that the test starts; the mark finds those that left its process tree."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    yield value
    for process in marked(value):  # only after a failure
        process.kill()


def marked(mark):
    """Return the living processes that carry the mark, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE  # an orphan's zombie is init's to collect
            if alive and process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            pass  # it ended in between, or belongs to somebody else
    return found


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def holding(mib):
    """Take memory and touch all of it."""
    return bytearray(b"x") * (mib << 20)


def allocate(mib_per_s, *, report_every=1):
    """Take memory at a steady rate for ever; report how much it is."""
    kept, started = [], time.perf_counter()
    while True:
        kept.append(holding(1))
        if len(kept) % report_every == 0:
            report(len(kept))
        ahead_s = len(kept) / mib_per_s - (time.perf_counter() - started)
        if ahead_s > 0:
            time.sleep(ahead_s)


def in_forked(function, *args):
    """Run a function in a forked process that lives until it is killed."""
    if os.fork() == 0:
        function(*args)
        time.sleep(600)
        os._exit(0)


# How a function ends


def test_finished_with_value_output_and_peak():
    offset = 5

    def add(a, *, b):
        kept = holding(100)
        print("to standard output")
        print("to standard error", file=sys.stderr)
        report("half-way")
        return a + b + offset + len(kept) * 0

    result = run(add, 1, b=2, timeout=60)
    assert (result.outcome, result.value, result.unwrap()) == ("finished", 8, 8)
    assert (result.error, result.traceback, result.exit_code) == (None, None, 0)
    assert "to standard output" in result.output and "to standard error" in result.output
    assert result.progress == "half-way"
    assert 95 < result.peak_mib - result.baseline_mib < 115
    assert result.seconds < 60 and result.timeline


def test_very_short_function_and_none():
    assert run(lambda: None).value is None


class _Local(Exception):
    pass


def _sys_exit():
    sys.exit(4)


def _keyboard_interrupt():
    raise KeyboardInterrupt


def _str_raises():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    raise Unprintable


def _unpicklable_exception():
    class Locked(Exception):
        def __init__(self):
            super().__init__("holds a lock")
            self.lock = threading.Lock()

    raise Locked


def _recursion():
    return _recursion()


def _with_cause():
    try:
        raise KeyError("first")
    except KeyError as error:
        raise _Local("second") from error


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (_sys_exit, "SystemExit: 4"),
        (_keyboard_interrupt, "KeyboardInterrupt"),
        (_str_raises, "Unprintable"),
        (_unpicklable_exception, "Locked: holds a lock"),
        (_recursion, "RecursionError"),
        (_with_cause, "second"),
    ],
)
def test_raised(function, error):
    result = run(function, timeout=60)
    assert result.outcome == "raised"
    assert error in result.error
    assert f"in {function.__name__}" in result.traceback
    assert "sandbox/worker.py" not in result.traceback
    with pytest.raises(ChildError, match="raised"):
        result.unwrap()


def test_traceback_shows_the_cause():
    assert "KeyError: 'first'" in run(_with_cause).traceback


def test_endless_error_text_is_shortened():
    def shout():
        raise ValueError("x" * 30_000_000)

    result = run(shout, timeout=60)
    assert result.outcome == "raised" and result.error.startswith("ValueError: xxx")
    assert len(result.error) < 3_000 and len(result.traceback) < 200_000
    assert "characters left out" in result.error


@posix_only
@pytest.mark.parametrize(
    ("end", "exit_code", "text"),
    [
        (lambda: os._exit(3), 3, "exit code 3"),
        (lambda: os._exit(0), 0, "before its result came"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9, "SIGKILL (exit code 137)"),
        (lambda: os.killpg(0, signal.SIGKILL), -9, "SIGKILL"),
        (lambda: os.killpg(0, signal.SIGTERM), -15, "SIGTERM"),
        (lambda: os.closerange(3, 256), 1, "exit code 1"),
    ],
    ids=["exit 3", "exit 0", "kill", "kill its group", "terminate its group", "close all files"],
)
def test_killed(end, exit_code, text):
    result = run(end, timeout=60)
    assert (result.outcome, result.exit_code) == ("killed", exit_code)
    assert text in result.error


def test_segmentation_fault_shows_where():
    def crash():
        import ctypes

        ctypes.string_at(0)

    result = run(crash, timeout=60)
    assert result.outcome == "killed"
    assert "in crash" in result.output  # printed by faulthandler


@pytest.mark.parametrize("make", [lambda: (i for i in range(3)), threading.Lock], ids=["generator", "lock"])
def test_value_that_cannot_be_sent(make):
    def give():
        return [np.zeros(10 << 20, np.uint8), make()]  # the first part is on its way when the second fails

    result = run(give, timeout=60)
    assert result.outcome == "raised" and result.value is None
    assert "TypeError: the function returned a list, which cannot be sent back" in result.error


class _BreaksWhenRead:
    def __reduce__(self):
        return int, ("not a number",)


def test_value_that_cannot_be_read():
    result = run(_BreaksWhenRead, timeout=60)
    assert result.outcome == "raised" and result.value is None
    assert "cannot be read here" in result.error


def test_large_value_and_argument_need_no_second_copy():
    large = np.arange(12_500_000.0)  # 95 MiB

    def echo(array):
        return array

    result = run(echo, large, memory_budget=160, timeout=60)
    assert result.outcome == "finished", result.error
    assert np.array_equal(result.value, large)


def test_argument_that_cannot_be_sent():
    with pytest.raises(TypeError, match="_sleep or its arguments cannot be sent to another process"):
        run(_sleep, threading.Lock())


# Time


def _sleep():
    time.sleep(600)


def _sleep_deaf():
    for number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def _stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


@posix_only
@pytest.mark.parametrize("function", [_sleep, _sleep_deaf, _stop_itself])
def test_hung(function, mark):
    result = run(function, timeout=1)
    assert result.outcome == "hung" and result.error == "no end after 1 s"
    assert function is not _sleep or "in _sleep" in result.traceback  # the others do not hear the signal that asks
    assert not marked(mark)


@posix_only
def test_hung_while_importing(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\nif os.environ.get('IS_CHILD'):\n    time.sleep(600)\ndef function(): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from slow_to_import import function

    monkeypatch.setenv("IS_CHILD", "1")
    result = run(function, timeout=2, memory_budget=BUDGET_MIB)
    assert result.outcome == "hung" and result.baseline_mib is None
    assert "slow_to_import.py" in result.traceback


def test_function_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "a_module.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    from a_module import double

    assert run(double, 4).value == 8


def test_threads_that_do_not_end_do_not_hold_the_value():
    def leave_thread():
        threading.Thread(target=time.sleep, args=(600,)).start()
        return 3

    result = run(leave_thread, timeout=60)
    assert (result.outcome, result.value) == ("finished", 3)


@pytest.mark.parametrize("name", ["memory_budget", "timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (-1, ValueError), (0, ValueError), ("300", TypeError), (True, TypeError)],
)
def test_limits_that_are_none(name, value, error):
    with pytest.raises(error, match=name):
        run(int, **{name: value})


def test_endless_timeout():
    with pytest.raises(ValueError, match="timeout is inf"):
        run(int, timeout=float("inf"))


# Memory


def test_one_huge_allocation_is_refused():
    result = run(lambda: np.ones(1 << 45, np.uint8), timeout=60)
    assert result.outcome == "out of memory"
    assert "MemoryError" in result.error and "Unable to allocate" in result.traceback


@linux_only
def test_allocation_far_over_the_budget_is_refused_before_it_is_touched():
    slack_mib = worker._DATA_LIMIT_SLACK_GPU_MIB if _has_gpu_driver() else worker._DATA_LIMIT_SLACK_MIB

    def take(mib):
        import mmap

        # Address space alone: whether the system has so much memory does not matter.
        return len(mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000))  # MAP_NORESERVE

    assert run(take, slack_mib, memory_budget=BUDGET_MIB).outcome == "finished"
    result = run(take, slack_mib + BUDGET_MIB + 1, memory_budget=BUDGET_MIB)
    assert (result.outcome, result.error) == ("out of memory", "OSError: [Errno 12] Cannot allocate memory")


def _has_gpu_driver():
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


@linux_only
@pytest.mark.parametrize("other_processes", [0, 4])
def test_budget_holds_while_memory_grows_fast(other_processes, mark):
    """The function itself tells how far it came. The other processes share 150 MiB with it.

    How close to the budget it is stopped depends on how busy the cores are; `benchmarks/` measures that.
    """

    def overshoot():
        kept = holding(150 if other_processes else 1)
        for _ in range(other_processes):
            in_forked(int)
        report(0)
        time.sleep(0.5 if other_processes else 0)
        allocate(1024)
        return kept

    result = run(overshoot, memory_budget=BUDGET_MIB, timeout=60)
    assert result.outcome == "out of memory" and "exit code 137" in result.error
    at_start_mib = result.baseline_mib + (150 if other_processes else 1)
    assert BUDGET_MIB <= result.peak_mib < 3 * BUDGET_MIB
    assert at_start_mib + result.progress < 3 * BUDGET_MIB
    assert not marked(mark)


@posix_only
def test_budget_holds_for_the_sum_of_grandchildren(mark):
    def four():
        for _ in range(4):
            in_forked(allocate, 100)
        time.sleep(600)

    result = run(four, memory_budget=BUDGET_MIB, timeout=60)
    assert result.outcome == "out of memory"
    assert not marked(mark)


@linux_only
def test_shared_pages_count_once_until_they_are_written():
    def share(write):
        kept = holding(100)

        def touch():
            for i in range(0, len(kept), 4096):
                kept[i] = 1

        for _ in range(3):
            in_forked(touch if write else int)
        time.sleep(1.5)

    shared = run(share, False, memory_budget=BUDGET_MIB, timeout=60)
    assert shared.outcome == "finished" and shared.method == "pss", shared.error
    assert 100 < shared.peak_mib < 200 and shared.peak_rss_mib > 400
    written = run(share, True, memory_budget=BUDGET_MIB, timeout=60)
    assert written.outcome == "out of memory"


TELLS_LESS = """
    import builtins, io
    whole = builtins.open

    def open_less(file, *args, **kwargs):
        name = str(file)
        if name.startswith("/proc/") and name.endswith("/smaps_rollup"):
            raise FileNotFoundError(2, "No such file or directory", name)
        opened = whole(file, *args, **kwargs)
        if not HAS_PARTS and name == "/proc/loadavg":
            return io.BytesIO(b"0.00 0.00 0.00 0/0 0")
        if not HAS_PARTS and name.startswith("/proc/") and name.endswith("/status"):
            with opened:
                lines = opened.read().splitlines(keepends=True)
            return io.BytesIO(b"".join(line for line in lines if not line.startswith((b"Rss", b"VmHWM", b"VmSwap"))))
        return opened

    builtins.open = open_less
"""


@linux_only
@pytest.mark.parametrize(("has_parts", "method"), [(True, "rss-parts"), (False, "rss")], ids=["old", "gVisor"])
def test_budget_holds_where_the_kernel_tells_less(has_parts, method, tmp_path, monkeypatch, mark):
    (tmp_path / "sitecustomize.py").write_text(f"HAS_PARTS = {has_parts}\n{textwrap.dedent(TELLS_LESS)}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def hold(mib):
        in_forked(holding, mib)
        kept = holding(mib)
        time.sleep(1.5)
        return len(kept)

    fits = run(hold, 20, memory_budget=400, timeout=60)
    assert (fits.outcome, fits.method) == ("finished", method), fits.error
    assert fits.baseline_mib > 10
    assert run(hold, 400, memory_budget=400, timeout=60).outcome == "out of memory"
    assert not marked(mark)


@linux_only
def test_starting_programs_does_not_count_twice():
    """Between vfork and exec a new process runs in its parent's memory."""

    def start_many():
        kept = holding(200)
        for _ in range(150):
            subprocess.run(["true"], check=True)
        return len(kept)

    result = run(start_many, memory_budget=BUDGET_MIB, timeout=60)
    assert result.outcome == "finished", result.error
    assert result.peak_mib < 250


@linux_only
def test_mapped_files_are_not_held(tmp_path):
    path = tmp_path / "mapped.bin"
    path.write_bytes(bytes(200 << 20))

    def read():
        mapped = np.memmap(path, np.uint8, mode="r")
        total = int(mapped[::4096].sum())
        time.sleep(0.5)
        return total

    result = run(read, memory_budget=150, timeout=60)
    assert result.outcome == "finished", result.error
    assert result.peak_file_mib > 200 and result.peak_mib < 100


@linux_only
def test_peak_between_two_looks_is_seen():
    def spike():
        time.sleep(0.2)
        for _ in range(10):
            np.ones(8 << 20, np.uint8)
            holding(40)

    result = run(spike, timeout=60)
    assert result.peak_mib - result.baseline_mib > 40


def test_budget_below_the_imports():
    with pytest.raises(ValueError, match=r"^memory_budget of 4 MiB: .* imports alone need more .* larger budget"):
        run(int, memory_budget=4)


def test_machine_that_cannot_spare_the_imports(monkeypatch):
    monkeypatch.setattr(child, "_budget", lambda memory_budget: (4.0, 1.0))
    with pytest.raises(ValueError, match=r"^this machine can spare only 4 MiB: .* close other programs"):
        run(int, memory_budget=300)


def test_machine_is_never_filled(monkeypatch, mark):
    monkeypatch.setattr(child, "_budget", lambda memory_budget: (1000.0, 1e9))  # as if little were left
    result = run(_sleep, timeout=60)
    assert result.outcome == "out of memory" and "this machine had only" in result.error
    assert not marked(mark)


def test_memory_error_of_a_thread():
    def no_memory():
        raise MemoryError("in a thread")

    def from_future():
        with ThreadPoolExecutor() as pool:
            return pool.submit(no_memory).result()

    def unseen():
        thread = threading.Thread(target=no_memory)
        thread.start()
        thread.join()
        return "went on"

    assert run(from_future).outcome == "out of memory"
    result = run(unseen)
    assert (result.outcome, result.value) == ("finished", "went on")
    assert "MemoryError: in a thread" in result.output


def test_opencv_out_of_memory():
    def resize():
        import cv2

        cv2.resize(np.zeros((10, 10), np.uint8), (2**20, 2**20))

    result = run(resize, timeout=60)
    assert result.outcome == "out of memory"
    assert "Insufficient memory" in result.error


@posix_only
def test_cpp_out_of_memory():
    def abort():
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()

    result = run(abort, timeout=60)
    assert result.outcome == "out of memory" and "std::bad_alloc" in result.error


def _error_of(module, name, text=""):
    return type(name, (Exception,), {"__module__": module})(text)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "No such file"), False),
        (_error_of("tensorflow.python.framework.errors_impl", "ResourceExhaustedError"), True),
        (_error_of("torch", "OutOfMemoryError"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (_error_of("jaxlib._jax", "XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory"), True),
        (_error_of("cv2", "error", "(-215:Assertion failed) !ssize.empty()"), False),
        (ValueError("Insufficient memory"), False),
    ],
)
def test_what_libraries_say_when_memory_is_used_up(error, expected):
    assert worker._described(error)["outcome"] == (Outcome.OUT_OF_MEMORY if expected else Outcome.RAISED)


# Output and progress


@posix_only
def test_printing_without_end():
    def shout():
        print("the first line")
        while True:
            print("x" * 200)

    result = run(shout, timeout=1.5)
    assert result.outcome == "hung"
    assert result.output.startswith("the first line") and "bytes left out]" in result.output
    assert len(result.output) < 500_000


def test_printing_bytes():
    def speak():
        for _ in range(100):
            os.write(1, bytes(range(256)))
        print("a lone surrogate: \ud800")

    result = run(speak, timeout=60)
    assert result.outcome == "finished", result.error
    assert "a lone surrogate: \\ud800" in result.output


def test_closed_files():
    def close():
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        return "done"

    def close_stream():
        sys.stdout.close()
        return "done"

    assert [run(close).value, run(close_stream).value] == ["done", "done"]


def test_standard_input_is_empty():
    result = run(input)
    assert (result.outcome, result.error) == ("raised", "EOFError: EOF when reading a line")


class _Opaque:
    def __eq__(self, other):
        return type(other).__name__ == "_Opaque"


def test_progress():
    def count():
        for i in range(1000):
            report(np.float32(i))
        report(_Opaque())
        os._exit(1)

    assert run(count).progress == _Opaque()
    report("outside a child this does nothing")
    too_long = run(report, "x" * 2_000_000)
    assert too_long.outcome == "raised" and "this progress takes 2,000," in too_long.error


@posix_only
def test_progress_without_end():
    def count():
        while True:
            report("on and on")

    result = run(count, timeout=1.5, memory_budget=BUDGET_MIB)
    assert (result.outcome, result.progress) == ("hung", "on and on")


# Nothing is left


def _daemonise():
    """Leave the process tree, the session and every open file."""
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setsid()
        os.closerange(0, 256)
        time.sleep(600)
    time.sleep(0.3)
    return "done"


def _zombie():
    if os.fork() == 0:
        os._exit(0)
    time.sleep(0.2)
    return "done"


def _comet():
    """Fork on and on: each process ends when its child lives."""
    if os.fork() == 0:
        end = time.monotonic() + 30  # by itself, for a failing test cannot catch it
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
            os.setsid()
        os._exit(0)
    time.sleep(0.2)
    return "done"


def _fifty():
    for _ in range(50):
        in_forked(int)
    return "done"


@linux_only
@pytest.mark.parametrize("function", [_daemonise, _zombie, _comet, _fifty])
def test_no_process_is_left(function, mark):
    result = run(function, timeout=60)
    assert (result.outcome, result.value) == ("finished", "done")
    assert not marked(mark)


@posix_only
@pytest.mark.parametrize("end", ["return", "raise"])
def test_forked_process_does_not_speak_for_the_function(end):
    def fork():
        if os.fork() == 0:
            if end == "raise":
                raise ValueError("from the forked process")
            return "from the forked process"
        time.sleep(0.5)
        return "from the function"

    assert run(fork, timeout=60).value == "from the function"


@linux_only
def test_named_shared_memory_is_removed():
    name = f"test_{uuid.uuid4().hex[:12]}"

    def fill():
        from multiprocessing import shared_memory

        block = shared_memory.SharedMemory(name, create=True, size=400 << 20)
        np.frombuffer(block.buf, np.uint8)[:] = 1
        time.sleep(600)

    assert run(fill, memory_budget=BUDGET_MIB, timeout=60).outcome == "out of memory"
    assert not Path("/dev/shm", name).exists()


def test_run_in_run(mark):
    def outer(seconds):
        return run(time.sleep, seconds, timeout=100).outcome

    assert run(outer, 0, timeout=60).value == "finished"
    assert run(outer, 600, timeout=2).outcome == "hung"
    assert not marked(mark)


def test_many_at_once_from_threads(mark):
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda i: run(lambda: i * i, timeout=100), range(6)))
    assert [result.value for result in results] == [0, 1, 4, 9, 16, 25]
    assert not marked(mark)


@pytest.mark.filterwarnings("error")
def test_many_runs_leave_nothing(mark, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    this = psutil.Process()
    count_files = this.num_fds if os.name == "posix" else this.num_handles
    run(int)
    gc.collect()
    before = count_files(), threading.active_count(), len(this.children())
    for i in range(100 if TEST_ALL else 20):
        assert run(lambda i=i: i).value == i
    gc.collect()
    assert (count_files(), threading.active_count(), len(this.children())) == before
    assert not marked(mark)
    assert not list(tmp_path.iterdir())


@posix_only
def test_nothing_left_open_after_each_kind_of_end():
    """As `-W error` would, but for warnings from threads and from destructors too."""
    script = """
        import os, signal, sys, threading
        sys.unraisablehook = threading.excepthook = lambda *args: os._exit(9)
        from helpers.sandbox import ChildError, run
        import time
        assert run(int).value == 0
        assert run(time.sleep, 60, timeout=0.5).outcome == "hung"
        assert run(os._exit, 2).outcome == "killed"
        try:
            run(lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(60)))
        except ChildError as error:
            assert "before it reported" in str(error)
        import gc
        gc.collect()
        print("clean")
    """
    ended = _script(script, "-W", "error")
    out, _ = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (0, "clean\n")


# The caller


def _script(text, *options, **kwargs):
    return subprocess.Popen(
        [sys.executable, *options, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **kwargs,
    )


@contextmanager
def _ends(process):
    """End a process also when the test fails: leaving `with Popen` waits for it."""
    try:
        yield
    finally:
        process.kill()


HANGS = """
    import os, signal, subprocess, sys, time
    from helpers.sandbox import run

    def function():
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            time.sleep(600)
        subprocess.Popen(["sleep", "600"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(600)

    try:
        run(function)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        # What is left now is left while this process goes on.
        sys.stdin.readline()
"""


def _living(mark, count):
    """Wait until the script, its supervisor, its worker and what that started all live."""
    return wait_until(lambda: len(found := marked(mark)) >= count and found)


@linux_only
@pytest.mark.parametrize("interrupts", [1, 3])
def test_interrupted_caller(interrupts, mark):
    with _script(HANGS, stdin=subprocess.PIPE) as caller, _ends(caller):
        assert _living(mark, 5)
        time.sleep(0.3)
        for _ in range(interrupts):  # a reader may press the keys more than once
            caller.send_signal(signal.SIGINT)
        if interrupts == 1:
            assert caller.stdout.readline() == "interrupted\n"
        assert wait_until(lambda: all(process.pid == caller.pid for process in marked(mark)), 15)


@linux_only
def test_killed_caller(mark):
    with _script(HANGS) as caller, _ends(caller):
        assert _living(mark, 5)
        caller.kill()
        assert wait_until(lambda: not marked(mark), 15)


@linux_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_caller_whose_other_children_live_on(number, mark):
    """A process that the caller forked holds the supervisor's standard input open."""
    script = HANGS.replace(
        "    try:\n",
        "    import threading\n    threading.Timer(0.5, lambda: os.fork() or time.sleep(600)).start()\n    try:\n",
        1,
    )
    with _script(script, stdin=subprocess.PIPE) as caller, _ends(caller):
        assert _living(mark, 6)
        children = psutil.Process(caller.pid).children()
        (other,) = [process for process in children if "sandbox.supervisor" not in str(process.cmdline())]
        caller.send_signal(number)
        assert wait_until(lambda: {process.pid for process in marked(mark)} <= {caller.pid, other.pid}, 12)
        other.kill()


@linux_only
def test_killed_supervisor_of_a_stopped_caller(mark):
    """Nobody is there to clean up: the kernel ends the worker."""
    with _script(HANGS) as caller, _ends(caller):
        living = _living(mark, 5)
        (supervisor,) = psutil.Process(caller.pid).children()
        (worker,) = [process for process in living if process.pid in _child_pids(supervisor) and _is_worker(process)]
        caller.send_signal(signal.SIGSTOP)
        supervisor.kill()
        assert wait_until(lambda: worker not in marked(mark), 5)
        caller.send_signal(signal.SIGCONT)
        assert wait_until(lambda: not marked(mark), 15)


def _child_pids(process):
    return {below.pid for below in process.children()}


def _is_worker(process):
    """Tell the worker from what it forked: only the worker is the first of its session."""
    return os.getsid(process.pid) == process.pid and "sandbox.worker" in str(process.cmdline())


@linux_only
def test_killed_supervisor(mark):
    """Also what left the process tree ends; the caller hears of it."""

    def kill_supervisor():
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            time.sleep(600)
        in_forked(int)
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)

    with pytest.raises(ChildError, match=r"exit code -9.* before it reported"):
        run(kill_supervisor, timeout=60)
    assert wait_until(lambda: not marked(mark), 5)


@linux_only
def test_stopped_supervisor(mark, monkeypatch):
    monkeypatch.setattr(child, "_START_AND_END_S", 1.0)
    monkeypatch.setattr(child, "_ORDERLY_END_S", 1.0)

    def stop_supervisor():
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(600)

    with pytest.raises(ChildError, match="exit code -9"):
        run(stop_supervisor, timeout=1)
    assert wait_until(lambda: not marked(mark), 5)


@linux_only
def test_signals_that_the_caller_ignores_or_blocks():
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD})
    try:
        killed = run(os._exit, 7, timeout=60)
        hung = run(_sleep, timeout=1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGCHLD, previous)
    assert (killed.outcome, killed.exit_code) == ("killed", 7)
    assert hung.outcome == "hung" and "in _sleep" in hung.traceback


@posix_only
@pytest.mark.parametrize(
    "before",
    ["os.close(0)", "os.close(0); os.close(2)", "sys.stdin = sys.stderr = None", "os.rmdir(os.getcwd())"],
)
def test_caller_without_something(before, tmp_path):
    script = f"import os, sys\nfrom helpers.sandbox import run\n{before}\nprint(run(lambda: 5).value)"
    folder = tmp_path / "gone"
    folder.mkdir()
    with _script(script, cwd=folder) as caller:
        assert caller.communicate(timeout=60)[0] == "5\n"


def test_files_in_the_working_folder_do_not_shadow_the_standard_library(tmp_path, monkeypatch):
    for name in ("queue", "struct", "psutil"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    assert run(lambda: 5).value == 5


NOTEBOOK = [
    """
    import os, sys
    sys.path.insert(0, ROOT)
    from helpers.sandbox import run
    factor = 3
    class Batch:
        def __init__(self, size):
            self.size = size
    class Broken(Exception):
        pass
    def scaled(batch):
        return Batch(batch.size * factor)
    """,
    """
    result = run(scaled, Batch(7))
    assert result.outcome == "finished", result.error
    assert isinstance(result.value, Batch) and result.value.size == 21
    """,
    """
    def fail():
        raise Broken("of a cell")
    result = run(fail)
    assert (result.outcome, result.error) == ("raised", "Broken: of a cell"), result
    assert "in fail" in result.traceback
    assert run(lambda: os._exit(1)).outcome == "killed"
    """,
]


def test_functions_and_classes_of_notebook_cells(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [textwrap.dedent(cell).replace("ROOT", repr(str(ROOT))) for cell in NOTEBOOK]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute(cwd=str(tmp_path))


def test_interrupted_before_the_job_is_fed(monkeypatch):
    """The interruption comes out, and no other error in its place."""

    class Interrupted(threading.Thread):
        def start(self):
            if self._target is child._feed:
                raise KeyboardInterrupt(130)
            super().start()

    monkeypatch.setattr(child.threading, "Thread", Interrupted)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt) as raised:
        run(time.sleep, 600)
    assert raised.value.args == (130,)
    assert wait_until(lambda: set(psutil.Process().children(recursive=True)) <= before)


@linux_only
def test_interrupted_kernel(mark):
    """The stop button of a notebook."""
    pytest.importorskip("ipykernel")
    start_new_kernel = pytest.importorskip("jupyter_client.manager").start_new_kernel
    manager, client = start_new_kernel(startup_timeout=60)
    try:
        kernels = {process.pid for process in marked(mark)}
        client.execute(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(HANGS).partition('try:')[0]}")
        message_id = client.execute("run(function)", stop_on_error=False)  # else the next cell may be aborted
        assert _living(mark, len(kernels) + 4)
        manager.interrupt_kernel()
        assert _reply(client, message_id)["content"]["ename"] == "KeyboardInterrupt"
        assert wait_until(lambda: {process.pid for process in marked(mark)} <= kernels, 15)
        message_id = client.execute("assert run(int).value == 0")
        assert _reply(client, message_id)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _reply(client, message_id):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            reply = client.get_shell_msg(timeout=1)
        except queue.Empty:
            continue
        if reply["parent_header"].get("msg_id") == message_id:
            return reply
    raise TimeoutError("the kernel does not answer")


def test_a_budget_in_bytes_is_refused():
    with pytest.raises(ValueError, match=r"629,145,600 MiB, and this machine has .* MiB: give it in MiB"):
        run(print, memory_budget=600 * 2**20)
