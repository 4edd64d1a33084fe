"""`watch_fit`: some steps of `fit` on the data, and on batches of it held in memory; the difference is the wait."""

from __future__ import annotations

import itertools
import math
import operator
import os
import random
import statistics
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers.epochs import end_reading_at_exit
from helpers.files import usable_cores
from helpers.watch.callback import Callback, mib_per_reading
from helpers.watch.data import Source, as_before, as_dataset, as_pydataset

__all__ = ["FitReport", "watch_fit"]

_FEWEST_STEPS = 4
_GROWS_MIB, _GROWS_SHARE = 16, 0.5  # in all steps, and of their batches: less, buffers and the allocator do too
_ALL_BUSY = 0.85  # of the cores' time: more readers would find no core free


def watch_fit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    steps: int = 50,
    sample_weight: Any = None,
    class_weight: dict | None = None,
    batch_size: int | None = None,
) -> FitReport:
    """Train for some steps on your data, then on ten batches of it held in memory, and compare.

    The second is what a perfect pipeline would give. Both run through `fit` itself, each step synchronised; what is
    compiled, and the start of the first epoch, are left out. Data of fewer than ``steps`` batches are gone through
    again and again, and everything but the first epoch counts, the beginnings of the others included.

    The model is as before afterwards, also after an error or Ctrl-C: weights, optimizer, metrics, random seeds of its
    layers, and the states of Python's and NumPy's global random generators. A copy of all that is kept in memory
    meanwhile; of the data, at most ten batches or 256 MiB. A model or an optimizer that was not built is built.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    x, y, sample_weight, class_weight, batch_size
        As for `fit`: a tf.data.Dataset, a PyDataset, a generator, a PyTorch DataLoader, or arrays. **A generator is
        used up** as far as it is read: `FitReport.taken` batches. What else can be iterated again begins again.
    steps : int
        Fewest steps to measure.

    Raises
    ------
    ValueError
        If the model is not compiled, or the data end before there is something to compare.
    Exception
        What your data or your model raise; of a generator, its own error.
    """
    steps = max(operator.index(steps), _FEWEST_STEPS * (model.steps_per_execution or 1))
    if not model.compiled:
        raise ValueError("the model is not compiled: call model.compile(…) first, as before fit")
    end_reading_at_exit()
    given = {"y": y, "sample_weight": sample_weight, "class_weight": class_weight, "batch_size": batch_size}
    source = Source(x, {name: value for name, value in given.items() if value is not None})
    states = random.getstate(), np.random.get_state()
    try:
        held, held_mib = source.hold()
        with as_before(model, held[0]):
            return _compare(model, source, held, held_mib, steps)
    except Exception as error:
        if source.error is not None and error is not source.error:  # TensorFlow's has only its text
            raise source.error from None
        raise
    finally:
        source.stop()
        random.setstate(states[0])
        np.random.set_state(states[1])


@dataclass(frozen=True, repr=False)
class FitReport:
    """What `watch_fit` found. `print` shows it in sentences."""

    kind: str  # of data: dataset, pydataset, generator, dataloader, arrays
    is_measurable: bool  # whether the two step times differ by more than their spread
    waits_percent: float  # share of the time that is lost to the data; 0 where it is not measurable
    times_as_fast: float  # what a perfect pipeline would give; 1 where it is not measurable
    step_ms: float  # the step itself: mean on batches held in memory
    data_step_ms: float  # mean on the data
    spread_ms: float  # of the difference
    wait_ms: tuple[float, float, float] | None  # p50, p95, max over steps of what one takes beyond the held median
    source_ms: tuple[float, float, float] | None  # of a generator: p50, p95, max of its own time for a batch
    images_per_s: float | None  # or whatever a batch has along its first axis
    first_epoch_s: float | None  # the first epoch, which does not count, where whole epochs were measured
    later_epoch_s: float | None  # and the others
    start_s: float  # what the beginning of an epoch takes beyond that on batches held; counts where `later_epoch_s` is
    steps: int  # measured on the data
    grown_mib: float  # how memory grows in `steps`, once it has started
    steps_to_full: float | None  # until the memory is full at this growth; None where it does not grow
    held_batches: int
    held_mib: float
    taken: int | None  # batches that a generator has given in all
    cores_busy: float  # CPU time of the process tree over wall time, on the data
    gpu_busy_percent: float | None  # NVML; on the data
    gpu_busy_held_percent: float | None  # and on the batches held
    advice: str

    def __str__(self) -> str:
        waits = f"waits for data {self.waits_percent:.0f} % of the time"
        waits += f"; with a perfect pipeline {self.times_as_fast:.1f} times as fast"
        if not self.is_measurable:
            took = f"{self.data_step_ms:,.3g} ms a step, {self.spread_ms:,.2g} ms of spread"
            waits = f"waits for data: not measurably ({took})"
        grown = f"memory grew {max(self.grown_mib, 0):,.0f} MiB in {self.steps} steps"
        cores = f"{self.cores_busy:.1f} of {usable_cores()} cores busy"
        lines = [waits, f"  the step itself takes {self.step_ms:,.3g} ms; {cores}; {grown}"]
        if self.wait_ms and self.is_measurable:
            lines.append("  waited per step, p50 / p95 / max: {:,.0f} / {:,.0f} / {:,.0f} ms".format(*self.wait_ms))
        if self.source_ms:
            times = "{:,.0f} / {:,.0f} / {:,.0f} ms".format(*self.source_ms)
            lines.append(f"  the generator's own time per batch: {times}; {self.taken} batches were taken from it")
        if self.start_s > max(0.5, 5 * self.data_step_ms / 1000) and self.later_epoch_s is None:
            lines.append(f"  before the first batch of an epoch: {self.start_s:.1f} s, not counted above")
        if self.later_epoch_s is not None and self.first_epoch_s > 2 * self.later_epoch_s + 0.5:
            first, later = f"took {self.first_epoch_s:.1f} s, compiling included", f"{self.later_epoch_s:.1f} s each"
            lines.append(f"  the first epoch {first}; the later ones, which alone count above, {later}")
        if self.gpu_busy_percent is not None and self.gpu_busy_held_percent is not None:
            both = f"{self.gpu_busy_percent:.0f} %, on the batches held in memory {self.gpu_busy_held_percent:.0f} %"
            lines.append(f"  GPU busy (NVML): {both}")
        rate = f"{self.images_per_s:,.0f} images/s; " if self.images_per_s else ""
        held = (
            f"{self.held_batches} batch{'es' * (self.held_batches > 1)} of it held in memory, {self.held_mib:,.0f} MiB"
        )
        return "\n".join([*lines, f"  {rate}compared with {held}", f"next: {self.advice}"])

    __repr__ = __str__


# ---- the comparison --------------------------------------------------------------------------------------------------


class _Timer(Callback):
    """Times steps from end to end; Keras has read the loss before it calls, so that each step has ended."""

    def __init__(self, reader: Any):
        self.passes: list[list[float]] = []
        self.held_mib: list[float] = []
        self._reader, self._last = reader, time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.passes.append([])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        self.passes[-1].append(now - self._last)
        self._last = now
        self.held_mib.append(self._reader.quick(unseen_s=1.0).held_mib)


@dataclass(frozen=True)
class _Run:
    """Some steps of `fit`: seconds for each of its executions, which may have several steps."""

    passes: list[list[float]]
    batches: int | None  # of an epoch, where whole epochs were run
    held_mib: list[float]
    cores_busy: float
    gpu_busy_percent: float | None
    per_execution: int
    ahead: int = 0  # batches that lay ready before the first step

    @property
    def times_s(self) -> list[float]:
        """What counts: all but the first epoch; of a single one, neither its first steps nor its last."""
        later = list(itertools.chain(*self.passes[1:]))
        return later or self.passes[0][1 + -(-self.ahead // self.per_execution) : -1]

    @property
    def steps(self) -> int:
        whole = (len(self.passes) - 1) * (self.batches or 0)
        return whole or len(self.times_s) * self.per_execution

    @property
    def begins_s(self) -> float:
        """Mean of the first step of the later epochs, Keras' own work between two epochs included."""
        return statistics.fmean(one[0] for one in self.passes[1:])

    @property
    def mean_s(self) -> float:
        return sum(self.times_s) / max(self.steps, 1)

    @property
    def error_s(self) -> float:
        """The standard error of `mean_s`; what the beginnings of epochs take is not taken for noise."""
        first = [one[0] for one in self.passes[1:]]
        others = [one for some in self.passes[1:] for one in some[1:]] or ([] if first else self.times_s)
        groups = [one for one in (first, others) if len(one) > 1]
        return math.sqrt(sum(len(one) * statistics.variance(one) for one in groups)) / max(self.steps, 1)


def _run(
    model: Any, x: Any, inputs: dict, steps: int, batches: int | None, *, whole: bool = False, ahead: int = 0
) -> _Run:
    """Train for `steps`: in whole epochs of `batches` after a first one, or in the beginning of one."""
    import psutil

    from helpers.gpu import sampled_gpu
    from helpers.runs import cpu_seconds
    from helpers.sandbox.memory import TreeReader

    limits = {"epochs": max(3, -(-steps // batches) + 1)} if whole else {"steps_per_epoch": steps, "epochs": 1}
    timer, process = _Timer(TreeReader(os.getpid())), psutil.Process()
    with warnings.catch_warnings(), sampled_gpu() as gpu:
        warnings.filterwarnings("ignore", "Your input ran out of data|`shuffle=True` was passed")
        cpu_s = cpu_seconds(process)
        start_s = timer._last = time.perf_counter()
        model.fit(x, **inputs, **limits, verbose=0, callbacks=[timer])
        cores_busy = (cpu_seconds(process) - cpu_s) / (time.perf_counter() - start_s)
    passes = [one for one in timer.passes if one]
    per_execution = model.steps_per_execution or 1
    of_epoch, gpu_busy_percent = batches if whole and len(passes) > 1 else None, gpu.get("busy_percent")
    return _Run(passes, of_epoch, timer.held_mib, cores_busy, gpu_busy_percent, per_execution)


def _compare(model: Any, source: Source, held: list[tuple], held_mib: float, steps: int) -> FitReport:
    import keras

    is_tensorflow = keras.backend.backend() == "tensorflow"
    if is_tensorflow:
        x, inputs = source.like_it(held[:2])
        _run(model, x, inputs, len(held[:2]), None)
    per_execution = model.steps_per_execution or 1
    # The first and the last do not count, nor those for which a batch lay ready before the first.
    batches, ahead = source.length, min(source.ahead, 2 * steps)
    wanted = steps + (2 + -(-ahead // per_execution)) * per_execution
    whole = batches is not None and batches < wanted

    def held_run() -> _Run:
        count = batches if whole else steps // 2 + 2 * per_execution
        data = as_pydataset(held, count)
        if is_tensorflow:
            data = as_dataset(held, count, source.x.element_spec if source.kind == "dataset" else None)
        weights = {name: value for name, value in source.inputs.items() if name == "class_weight"}
        return _run(model, data, weights, steps // 2 if whole else count, count, whole=whole)

    before = held_run()
    on_data = _run(model, source.fed, source.inputs, steps if whole else wanted, batches, whole=whole, ahead=ahead)
    source.stop()
    if not whole and source.kind != "generator" and sum(map(len, on_data.passes)) * on_data.per_execution < wanted:
        batches, whole = sum(map(len, on_data.passes)) * on_data.per_execution, True  # shorter than it said
        on_data, before = _run(model, source.fed, source.inputs, steps, batches, whole=True), held_run()
    if len(on_data.times_s) < 2:
        needed = _FEWEST_STEPS * on_data.per_execution + (len(held) if source.kind == "generator" else 0)
        raise ValueError(f"the data ended too early to measure anything: give at least {needed} batches")
    after = held_run()
    return _reported(source, held, held_mib, before, on_data, after)


def _three_ms(times_s: list[float]) -> tuple[float, float, float]:
    p50, p95 = np.percentile(times_s, (50, 95))
    return 1000 * float(p50), 1000 * float(p95), 1000 * max(times_s)


def _reported(
    source: Source, held: list[tuple], held_mib: float, before: _Run, on_data: _Run, after: _Run
) -> FitReport:
    import keras

    from helpers.sandbox import memory

    step_s = (before.mean_s + after.mean_s) / 2
    error_s = math.hypot(on_data.error_s, before.error_s / 2, after.error_s / 2)
    spread_s = max(2 * error_s, abs(before.mean_s - after.mean_s))
    lost_s = on_data.mean_s - step_s
    is_measurable = lost_s > spread_s
    wait_ms = None
    if on_data.per_execution == 1:
        usual_s = statistics.median(before.times_s + after.times_s)
        wait_ms = _three_ms([max(0.0, one - usual_s) for one in on_data.times_s])
    first_epoch_s = later_epoch_s = None
    start_s = on_data.passes[0][0] - after.passes[0][0]
    if on_data.batches:
        first_epoch_s, later_epoch_s = sum(on_data.passes[0]), statistics.fmean(map(sum, on_data.passes[1:]))
        start_s = on_data.begins_s - after.begins_s
    start_s = max(0.0, start_s)
    starts_share = start_s / (on_data.batches * lost_s) if on_data.batches and is_measurable else 0.0
    grown_mib = mib_per_reading(on_data.held_mib) * len(on_data.times_s)
    passed_mib = on_data.steps * held_mib / len(held)
    grows = grown_mib >= max(_GROWS_MIB, _GROWS_SHARE * passed_mib)
    full = memory.available_mib() * on_data.steps / grown_mib if grows else None
    waits_percent = 100 * lost_s / on_data.mean_s if is_measurable else 0.0
    images = len(keras.tree.flatten(held[0])[0])
    took_s = source.took_s[len(held) :]
    return FitReport(
        kind=source.kind,
        is_measurable=is_measurable,
        waits_percent=waits_percent,
        times_as_fast=on_data.mean_s / step_s if is_measurable else 1.0,
        step_ms=1000 * step_s,
        data_step_ms=1000 * on_data.mean_s,
        spread_ms=1000 * spread_s,
        wait_ms=wait_ms,
        source_ms=_three_ms(took_s) if took_s else None,
        images_per_s=images / on_data.mean_s,
        first_epoch_s=first_epoch_s,
        later_epoch_s=later_epoch_s,
        start_s=start_s,
        steps=on_data.steps,
        grown_mib=grown_mib,
        steps_to_full=full,
        held_batches=len(held),
        held_mib=held_mib,
        taken=len(source.took_s) if source.kind == "generator" else None,
        cores_busy=on_data.cores_busy,
        gpu_busy_percent=on_data.gpu_busy_percent,
        gpu_busy_held_percent=after.gpu_busy_percent,
        advice=_advise(source, waits_percent, full, starts_share, on_data.cores_busy),
    )


# ---- the advice ------------------------------------------------------------------------------------------------------

_WHEN_IT_WAITS = {
    "generator": "a generator makes one batch at a time: worker processes (lesson 03) or tf.data (lesson 05)",
    "pydataset": "more workers for the PyDataset (lesson 03), then tf.data (lesson 05)",
    "dataset": "num_parallel_calls and prefetch (lesson 05), if missing; decode less (lesson 06), or once (lesson 07)",
    "dataloader": "more workers for the DataLoader, then decode less (lesson 06) and once (lesson 07)",
    "arrays": "batches from memory should not take long: feed them by tf.data with prefetch (lesson 05)",
}
_WHEN_IT_GROWS = {
    "generator": "a generator that keeps its batches (lesson 02)",
    "pydataset": "what the queue and the workers hold (lesson 03)",
    "dataset": "cache() in memory, or a shuffle buffer of decoded images (lesson 05)",
    "dataloader": "what its queue and its workers hold (lesson 03)",
    "arrays": "what is kept beside the arrays (lesson 01)",
}


def _advise(
    source: Source, waits_percent: float, steps_to_full: float | None, starts_share: float, cores_busy: float
) -> str:
    """Say what to try next; whether the data are fast enough is decided as in `python -m helpers.benchmark`.

    Which pipeline is the fastest is not: that takes a measured row for each, and here one was seen.
    """
    from helpers.decision import keeps_busy

    said = []
    if steps_to_full is not None:
        what = _WHEN_IT_GROWS[source.kind]
        said.append(f"the memory will be full in about {steps_to_full:,.0f} steps; look for {what}")
    if not keeps_busy(100 - waits_percent, 100):
        what = _WHEN_IT_WAITS[source.kind]
        if cores_busy > _ALL_BUSY * usable_cores():
            what = "the cores are busy, so more readers would not help: decode less (lesson 06), or once (lesson 07)"
        if starts_share > 0.5:
            what = f"most of it is lost at the beginning of each epoch: make epochs longer by repeat(); else {what}"
        said.append(what)
    return "; ".join(said) or "stop here: the data are not your problem"
