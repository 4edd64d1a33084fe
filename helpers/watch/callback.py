"""`WatchFit`, the callback of `helpers.watch`, and the command that puts it into every `fit` of a script.

Called by `helpers.watch`, which readers import. Keras is imported only by the reader's own program.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import inspect
import itertools
import os
import runpy
import statistics
import sys
import threading
import time
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

__all__ = ["Callback", "WatchFit", "main", "mib_per_reading"]

_SAMPLE_S = 0.5
_FEWEST_SAMPLES, _MOST_SAMPLES = 24, 240  # of one epoch, to say what its end will bring
_LEAK_MIB = 1.0  # per epoch: below that, it is the allocator


def _nothing(*_: Any, **__: Any) -> None:
    """Stand for a method of a callback that does nothing."""


_nothing._is_default = True  # so Keras need not call it for every batch


class Callback:
    """A callback for Keras without an import of Keras."""

    model, params = None, types.MappingProxyType({})

    def set_model(self, model: Any) -> None:
        self.model = model

    def set_params(self, params: dict) -> None:
        self.params = params

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(name)


def mib_per_reading(held_mib: Sequence[float]) -> float:
    """Return how memory grows from one reading to the next, in MiB; 0 unless four of five parts in turn show it.

    In the first fifth fills up what is read ahead. After it, an allocator takes memory in a jump; a leak goes on.
    """
    part = len(held_mib) // 5
    ends = [len(held_mib) - part * left for left in (3, 2, 1, 0)]
    lowest = [min(held_mib[end - part : end], default=0.0) for end in ends]
    return steady_growth(lowest) / max(part, 1)


def steady_growth(lowest_mib: Sequence[float]) -> float:
    """Return the mean rise from one value to the next, in MiB; 0 unless all rise, none by a quarter of another only."""
    rises = [after - before for before, after in itertools.pairwise(lowest_mib)]
    return statistics.fmean(rises) if len(rises) > 1 and min(rises) > max(rises) / 4 else 0.0


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training; its time ends before the validation."""

    seconds: float
    steps: int
    images: int | None
    lowest_mib: float  # of the process tree: what is never given back raises it


class WatchFit(Callback):
    """Watch a whole training: images/s, the memory of the process tree, and when it will run out.

    ``model.fit(…, callbacks=[WatchFit()])`` warns with the epoch in which the memory of the machine, or of the
    container, will be full if it goes on growing like this; prints one line at the end; and keeps a row for
    `helpers.scoreboard`. Memory is read twice a second in a thread of its own, which costs under 1 % of the time.

    Parameters
    ----------
    row : str, optional
        Name of the row, which goes into a file beside that of the lessons; None: no row.

    Attributes
    ----------
    epochs : list of Epoch
        What was seen; after an error, too.
    """

    async_safe = True  # so that Keras need not wait for each step on its account

    def __init__(self, row: str | None = "fit"):
        self.row, self.epochs = row, []
        self.full_in_epoch: int | None = None  # counted from 1; None while none is foreseen
        self._stop = threading.Event()

    # ---- what Keras calls

    def on_train_begin(self, logs: Any = None) -> None:
        from helpers.sandbox.memory import TreeReader

        self.epochs, self.full_in_epoch = [], None
        self._reader = TreeReader(os.getpid())
        self._first = self._reader.exact()
        self.peak_mib = self._first.held_mib
        self._begin(0)
        self._stop = threading.Event()
        threading.Thread(target=_sample, args=(weakref.ref(self), self._stop), daemon=True).start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps = max(self._steps, batch + 1)  # Keras may call from several threads

    def on_test_begin(self, logs: Any = None) -> None:
        self._end_steps()  # the validation begins, which sets the metrics back

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._end_steps()
        self.read()
        seconds, images = self._ended
        self.epochs.append(Epoch(seconds, self._steps, images, min(mib for _, mib in self._samples)))
        growth = self.growth_mib
        if growth > _LEAK_MIB:
            full, before = epoch + 2 + int(self.free_mib / growth), self.full_in_epoch
            self.full_in_epoch = full if full <= (self.params.get("epochs") or full) else None
            if self.full_in_epoch and (before is None or full < before - 1):
                self._warn(full, f"epoch {full}: it grows by {growth:,.0f} MiB per epoch")

    def on_train_end(self, logs: Any = None) -> None:
        self._stop.set()
        print(self)
        if self.row is not None and self.epochs:
            try:
                self._record()
            except OSError as error:  # a training of days must not end with that
                warnings.warn(f"WatchFit: the row for the scoreboard was not written: {error}", stacklevel=2)

    # ---- figures

    @property
    def growth_mib(self) -> float:
        """How memory grows per epoch: the mean of the last epochs; 0 unless all of them show it."""
        lowest = [one.lowest_mib for one in self.epochs]
        return steady_growth((lowest[1:] if len(lowest) > 3 else lowest)[-6:])  # the first epoch fills buffers

    @property
    def free_mib(self) -> float:
        """What this machine, or this container, has left; of control groups of version 1 or 2."""
        from helpers.sandbox import memory

        return memory.available_mib()

    @property
    def images_per_s(self) -> float | None:
        """Median of the epochs, validation excluded; without the first one, which compiles, where there are others."""
        rates = [one.images / one.seconds for one in self.epochs[1:] or self.epochs if one.images]
        return statistics.median(rates) if rates else None

    def __repr__(self) -> str:
        rate = "images/s unknown" if self.images_per_s is None else f"{self.images_per_s:,.0f} images/s"
        growth = (
            f"it grew by {self.growth_mib:,.0f} MiB per epoch" if len(self.epochs) > 2 else "too few epochs for growth"
        )
        held = f"memory of the process tree at most {self.peak_mib:,.0f} MiB, {growth}"
        return f"WatchFit: {rate}; {held}; {self.free_mib:,.0f} MiB are free"

    # ---- reading

    def _begin(self, epoch: int) -> None:
        self._epoch, self._steps, self._started, self._ended = epoch, 0, time.perf_counter(), None
        self._samples: deque[tuple[int, float]] = deque(maxlen=_MOST_SAMPLES)
        self.read()

    def _end_steps(self) -> None:
        if self._ended is None:
            count = next(
                (one.count for one in self.model.metrics if one.name == "loss" and hasattr(one, "count")), None
            )
            images = None if count is None else int(count)  # Keras weighs a batch's loss by its size
            self._ended = time.perf_counter() - self._started, images or None

    def read(self) -> None:
        """Read the memory once, and look where this epoch is going."""
        held_mib = self._reader.quick(unseen_s=_SAMPLE_S).held_mib
        self.peak_mib = max(self.peak_mib, held_mib)
        samples, steps = self._samples, self._steps
        samples.append((steps, held_mib))
        if self.full_in_epoch is not None or self._ended is not None or len(samples) < _FEWEST_SAMPLES:
            return
        pace = (steps - samples[0][0]) / len(samples)
        growth = mib_per_reading([mib for _, mib in list(samples)])
        all_steps = self.params.get("steps")
        left = (
            (all_steps - steps) / pace if all_steps and pace else len(samples)
        )  # unknown: no further than we have seen
        if growth > 0 and (readings := self.free_mib / growth) < left:
            where = (
                f"step {steps + int(readings * pace):,} of epoch {self._epoch + 1}, in {readings * _SAMPLE_S:,.0f} s"
            )
            self._warn(self._epoch + 1, f"{where}: it grows by {growth / _SAMPLE_S:,.0f} MiB per second")

    def _warn(self, epoch: int, where: str) -> None:
        self.full_in_epoch = epoch
        text = f"WatchFit: at this growth the memory will be full in {where}, and {self.free_mib:,.0f} MiB are free"
        warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _record(self) -> Path:
        from helpers import measurement, scoreboard
        from helpers.accelerators import keras_device

        last, shape = self.epochs[-1], getattr(self.model, "input_shape", None)
        images = [one.images for one in self.epochs]
        is_picture = isinstance(shape, tuple) and len(shape) == 4 and all(isinstance(side, int) for side in shape[1:])
        row = measurement.Measurement(
            name=self.row,
            outcome="finished",
            files=last.images or 0,
            image_size=tuple(shape[1:3]) if is_picture else (0, 0),
            batch_size=round((last.images or 0) / max(last.steps, 1)),  # the mean: Keras does not tell
            batches_done=sum(one.steps for one in self.epochs),
            images_done=sum(filter(None, images)),
            training=measurement.Training(
                accelerator=self.model.name,
                device=keras_device(),
                images_per_s=self.images_per_s,
                peak_mib=self.peak_mib,
            ),
            memory=measurement.MemoryUse(
                peak_mib=self.peak_mib, baseline_mib=self._first.held_mib, method=self._first.method
            ),
            growth=measurement.Growth(mib_per_epoch=self.growth_mib if len(self.epochs) > 2 else None),
            context=measurement.Context(
                machine=measurement.machine(),
                versions=measurement.versions(),
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
        )
        beside = scoreboard.local_path()
        return scoreboard.record(row, beside.with_name(f"{beside.stem}--watch.jsonl"))


def _sample(watching: weakref.ref[WatchFit], stop: threading.Event) -> None:
    """Read now and then, until the training ends or nobody has the callback any more."""
    while not stop.wait(_SAMPLE_S) and (one := watching()) is not None:
        with suppress(RuntimeError):  # an epoch ended meanwhile, and its samples with it
            one.read()
        del one


# ---- the command -----------------------------------------------------------------------------------------------------


class _AfterKeras(MetaPathFinder):
    """Does something as soon as Keras is imported, so that the script may choose its backend first."""

    def __init__(self, then: Callable):
        self.then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = exec_module
        return spec


def _watch_every_fit(keras: types.ModuleType, row: str) -> None:
    original = keras.Model.fit

    @functools.wraps(original)
    def fit(self: Any, *arguments: Any, **named: Any) -> Any:
        given = inspect.signature(original).bind(self, *arguments, **named)
        callbacks = given.arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks  # the list itself
            if not any(isinstance(one, Callback) for one in callbacks):
                given.arguments["callbacks"].append(WatchFit(row))
        else:
            callbacks = keras.tree.flatten(callbacks) if callbacks else []
            if not any(isinstance(one, Callback) for one in callbacks):
                given.arguments["callbacks"] = [*callbacks, WatchFit(row)]
        return original(*given.args, **given.kwargs)

    keras.Model.fit = fit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a script with a `WatchFit` in each of its calls of `fit`; it ends as it would by itself."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.watch",
        description="Run a Keras script with the callback WatchFit in each call of model.fit."
        " A training loop of your own, and fit in a process that the script starts, are not watched.",
    )
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    options = parser.parse_args(arguments)
    if not options.script.is_file():
        parser.error(f"{options.script}: no such file")
    sys.meta_path.insert(0, _AfterKeras(functools.partial(_watch_every_fit, row=options.script.stem)))
    sys.argv = [str(options.script), *options.arguments]
    sys.path[0] = str(options.script.resolve().parent)
    runpy.run_path(str(options.script), run_name="__main__")
    return 0
