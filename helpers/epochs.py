"""What a pipeline returns whose epochs are generators, and the end of a program that is still reading.

Stands on the ground: it imports nothing else of the course.
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache

__all__ = ["Epochs", "end_reading_at_exit", "reading"]


class TakenByKeras:
    """What makes `fit`, `evaluate` and `predict` take a subclass for a `PyDataset`, without an import of Keras."""

    workers, use_multiprocessing, max_queue_size, current = 1, False, 1, None
    fit_thread, was_interrupted = None, False

    @property
    def __class__(self) -> type:
        return sys.modules["keras"].utils.PyDataset if "keras" in sys.modules else type(self)

    @property
    def num_batches(self) -> int:
        return len(self)

    def __reduce__(self) -> tuple:
        return _made_again, (type(self), vars(self))  # pickle would use __class__, which is not the real one

    def __getitem__(self, index: int) -> tuple:
        """Return the next batch: Keras asks for `len(self)` of them in an epoch, and for two before the first."""
        is_fit = threading.get_ident() == self.fit_thread
        if is_fit and self.current is not None and not self.was_interrupted and is_tensorflow():
            self._end_interrupted()
        if self.was_interrupted and not is_fit:
            raise RuntimeError("this batch is for a fit that was interrupted")  # nobody sees it
        if self.current is None:
            self.current = self.epoch(self.next_number)
        for batch in self.current:
            return batch
        raise ValueError("fewer batches than expected: of one, none of its images can be read; see .skipped")

    def _end_interrupted(self) -> None:
        """End the epoch of an interrupted `fit`, which tf.data may still be reading.

        With TensorFlow, only tf.data's threads ask for the batches of an epoch. The thread that calls `fit` asks only
        for two before the first epoch; if another epoch has not ended by then, its `fit` was interrupted.
        """
        interrupted, self.current, self.was_interrupted = self.current, None, True
        deadline = time.monotonic() + LONGEST_END_S
        while getattr(interrupted, "gi_running", False) and time.monotonic() < deadline:
            time.sleep(0.01)

    def on_epoch_begin(self) -> None:
        self.current, self.fit_thread, self.was_interrupted = iter(self), threading.get_ident(), False

    def on_epoch_end(self) -> None:
        self.current = self.fit_thread = None


def is_tensorflow() -> bool:
    return "keras" in sys.modules and sys.modules["keras"].backend.backend() == "tensorflow"


def _made_again(kind: type, values: dict) -> TakenByKeras:
    one = kind.__new__(kind)
    vars(one).update(values)
    return one


class Epochs(TakenByKeras):
    """Something to loop over again and again; each pass is the next epoch."""

    def __init__(self, epoch: Callable, file_count: int, batch_size: int, skipped: Mapping | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        self.epoch, self.length, self.next_number = epoch, -(-file_count // batch_size), 0
        self.skipped = skipped

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator:
        self.next_number += 1
        return closed_at_exit(self.epoch(self.next_number - 1)) if self.length else iter(())


# ---- the end of a program that is still reading ----------------------------------------------------------------------
# When Python shuts down, it ends each thread that wants to run Python code on the spot. In the middle of OpenCV that
# aborts the program; in the middle of tf.data, the program waits for that thread without end. They must end before.

RUNNING: weakref.WeakSet[Generator] = weakref.WeakSet()
READERS: list[int] = []  # the threads that read a file now
IS_ENDING = threading.Event()
LONGEST_END_S = 5.0


def closed_at_exit(epoch: Generator) -> Generator:
    """Let the end of the program close a generator; return it."""
    if isinstance(epoch, Generator):  # another iterator has nothing to close
        RUNNING.add(epoch)
    return epoch


@contextmanager
def reading() -> Iterator[None]:
    """Run a block that reads a file, and that the end of the program waits for."""
    READERS.append(threading.get_ident())
    try:
        if IS_ENDING.is_set():
            raise RuntimeError("the program ends")
        yield
    finally:
        READERS.remove(threading.get_ident())


@cache
def end_reading_at_exit() -> None:
    """Let the program end with its own exit status, also after an error in `fit` or in mid-epoch."""
    atexit.register(end_reading)


def end_reading() -> None:
    """End what still reads; nothing can be read afterwards."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):  # they hold the frames of `fit`
        vars(sys).pop(name, None)
    gc.collect()
    if "tensorflow" in sys.modules:
        iterator_class = sys.modules["tensorflow"].data.Iterator
        for one in gc.get_objects():
            if issubclass(type(one), iterator_class):
                vars(one).clear()  # there is no method to close it
    IS_ENDING.set()
    for epoch in list(RUNNING):
        with suppress(ValueError):  # another thread is in it
            epoch.close()
    deadline = time.monotonic() + LONGEST_END_S
    while READERS and time.monotonic() < deadline:
        time.sleep(0.01)
