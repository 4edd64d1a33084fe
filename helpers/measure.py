"""Measure one pipeline in fresh processes: throughput, waiting, memory.

Called by every lesson and by the benchmark. Definitions of the figures: `Measurement`.
"""

from __future__ import annotations

import ctypes
import datetime
import functools
import gc
import html
import importlib.metadata
import itertools
import json
import math
import operator
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import psutil

from helpers.accelerators import (
    ceiling,
    framework_gpu_peak_mib,
    keras_backend,
    keras_device,
    name_of,
    resident_batch,
    to_device,
)
from helpers.files import printable, usable_cores
from helpers.folders import ImageFiles
from helpers.gpu import GpuSampler, gpus
from helpers.packing import default_packs_in
from helpers.pipelines import LazyPipeline
from helpers.sandbox import ChildResult, memory, report, run

__all__ = ["Measurement", "Trial", "machine", "measure", "measure_ceiling", "setting"]

_MAX_STEPS_KEPT = 200
_MAX_TIMELINE = 200
_GROWTH_EPOCHS, _MORE_EPOCHS = 4, 16
_MANY_FILES = 1000  # with fewer, thread pools and the allocator are still filling up at the end of an epoch
_IN_DOUBT_MIB_PER_1000 = 20  # an image of 224 x 224 pixels kept costs 144 MiB per 1,000
_IN_DOUBT_MIB_PER_EPOCH = 1
_VERSIONED = ("tensorflow", "keras", "jax", "torch", "numpy", "opencv-python-headless", "opencv-python")


@dataclass(frozen=True, repr=False)
class Measurement:
    """What one pipeline did on one machine. A figure that was not measured is None, never zero.

    Attributes
    ----------
    outcome : str
        As in `child.ChildResult`; ``finished`` when every run finished, else the first other outcome, with `error`,
        which begins with "while training" where the pipeline alone had finished.
    batches_done, images_done : int
        Delivered in the first run, also when it did not finish.
    images_per_s : float
        The pipeline alone: images over wall time of one epoch, first batch excluded (DS-Analyzer); of a single batch,
        its own time. Median of the runs.
    first_batch_s : float
        From the call of the pipeline to its first batch.
    first_epoch_images_per_s : float
        Images over wall time from the call of the pipeline to the end of its first epoch: nothing excluded. The figure
        for comparing a pipeline that does its work before the first batch with one that does it batch by batch.
    cores_busy : float
        CPU time of the process tree over wall time, pipeline alone.
    ceiling_images_per_s : float
        The accelerator alone, fed one resident batch again and again.
    together_images_per_s : float
        Training on the pipeline, each step synchronised, first step excluded.
    predicted_images_per_s : float
        min(alone, ceiling): what a pipeline that runs beside the accelerator could reach (DS-Analyzer).
    predicted_serial_images_per_s : float
        1 / (1/alone + 1/ceiling): what to expect where both share the same cores. Only for a model on the CPU.
    utilisation_percent : float
        Time in the accelerator over total time, first step excluded (AU of MLPerf Storage).
    wait_ms_p50, wait_ms_p95, wait_ms_max : float
        Time in ``next()`` per step, while training.
    peak_mib : float
        Largest memory held by the process tree, pipeline alone: what the kernel cannot drop
        (`memory.TreeMemory.held_mib`). Largest of the runs.
    baseline_mib : float
        The same just before the pipeline is built, imports included.
    training_peak_mib : float
        The same as `peak_mib`, while training.
    peak_file_mib, peak_rss_mib, highest_rss_mib : float
        Mapped files apart; sum of RSS; the kernel's own VmHWM of the process, as a cross-check.
    growth_mib_per_1000_files : float
        Memory held at the last batch of the first epoch, when all that was read ahead has been given out: growth from a
        quarter of the files to all of them. Thread pools and the allocator fill up with the first images, the more
        cores the longer; so where there are few files and they seem to cost memory, growth from all of them to a list
        of over a thousand is taken instead. None where `measure` was told to stop before the end.
    growth_mib_per_epoch : float
        Slope of the memory held after each epoch of that quarter, first epoch excluded; with few files and in doubt,
        of later epochs.
    gpu_busy_percent, gpu_sm_percent, gpu_peak_mib, framework_gpu_peak_mib : float
        While training, NVML's share of time with any kernel at work, its share of busy multiprocessors, and memory; and
        the peak by the framework's own allocator: TensorFlow and JAX reserve most of a GPU at their start, so only the
        latter says what the training needs.
    device : str
        Where Keras computed.
    wait_ms, compute_ms : tuple of float
        The first steps of the training, for the timeline.
    memory_timeline : tuple of (float, float)
        Seconds since the process started and memory held in MiB, pipeline alone.
    runs_images_per_s, runs_together_images_per_s : tuple of float
        Each run's figure, in order: the spread.
    dataset, machine, versions : dict
        What was read, where, with what.
    date : str
        ISO 8601, UTC.
    """

    name: str
    outcome: str
    error: str | None
    files: int
    image_size: tuple[int, int]
    batch_size: int
    dtype: str | None
    batches_done: int
    images_done: int
    images_per_s: float | None
    first_batch_s: float | None
    first_epoch_images_per_s: float | None
    cores_busy: float | None
    peak_mib: float
    baseline_mib: float | None
    peak_file_mib: float
    peak_rss_mib: float
    highest_rss_mib: float | None
    memory_method: str
    budget_mib: float | None
    growth_mib_per_1000_files: float | None = None
    growth_mib_per_epoch: float | None = None
    accelerator: str | None = None
    accelerator_kind: str | None = None
    device: str | None = None
    ceiling_images_per_s: float | None = None
    together_images_per_s: float | None = None
    predicted_images_per_s: float | None = None
    predicted_serial_images_per_s: float | None = None
    utilisation_percent: float | None = None
    wait_ms_p50: float | None = None
    wait_ms_p95: float | None = None
    wait_ms_max: float | None = None
    training_peak_mib: float | None = None
    gpu_busy_percent: float | None = None
    gpu_sm_percent: float | None = None
    gpu_peak_mib: float | None = None
    framework_gpu_peak_mib: float | None = None
    wait_ms: tuple[float, ...] = field(default=(), repr=False)
    compute_ms: tuple[float, ...] = field(default=(), repr=False)
    memory_timeline: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    runs_images_per_s: tuple[float, ...] = ()
    runs_together_images_per_s: tuple[float, ...] = ()
    dataset: dict = field(default_factory=dict, repr=False)
    machine: dict = field(default_factory=dict, repr=False)
    versions: dict = field(default_factory=dict, repr=False)
    date: str = ""

    @property
    def stall_percent(self) -> float | None:
        """Share of the training in which the accelerator waited, in per cent."""
        return None if self.utilisation_percent is None else 100 - self.utilisation_percent

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back without loss."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Measurement:
        """Read one line written by `to_json`.

        Raises
        ------
        ValueError
            If the line is no JSON, or no measurement.
        """
        try:
            values = json.loads(line, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("not a measurement: nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError(f"not a measurement: {line[:60]!r}")
        types = {entry.name: entry.type for entry in fields(cls)}
        values = {name: value for name, value in values.items() if name in types}
        for name, value in values.items():
            if not _fits(value, types[name]):
                raise ValueError(f"not a measurement: {name} is {value!r}")
        try:
            return cls(**{name: _as_tuple(value) for name, value in values.items()})
        except TypeError as error:
            raise ValueError(f"not a measurement: {error}") from None

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures that were measured, as names and values with units."""
        budget = f" of {self.budget_mib:,.0f} MiB budget" if self.budget_mib else ""
        baseline = (
            f", {self.peak_mib - self.baseline_mib:,.0f} above the start" if self.baseline_mib is not None else ""
        )
        rows = [("outcome", self.outcome + (f": {self.error}" if self.error else ""))]
        rows += [
            ("delivered", f"{self.images_done:,} images in {self.batches_done:,} batches, {self.files:,} files given")
        ]
        rows += _row("pipeline alone", self.images_per_s, "{:,.0f} images/s" + _spread(self.runs_images_per_s))
        rows += _row("first batch after", self.first_batch_s, "{:.2f} s")
        rows += _row("first epoch, all included", self.first_epoch_images_per_s, "{:,.0f} images/s")
        rows += _row("CPU cores busy", self.cores_busy, "{:.1f}")
        rows += [("peak memory", f"{self.peak_mib:,.0f} MiB{budget}{baseline}")]
        rows += _row("growth", self.growth_mib_per_1000_files, "{:z,.0f} MiB per 1,000 files")
        rows += _row("growth per epoch", self.growth_mib_per_epoch, "{:z,.1f} MiB")
        device = f" on {self.device}" if self.device else ""
        rows += _row(f"accelerator alone ({self.accelerator}{device})", self.ceiling_images_per_s, "{:,.0f} images/s")
        spread = _spread(self.runs_together_images_per_s)
        rows += _row("together", self.together_images_per_s, "{:,.0f} images/s" + spread)
        rows += _row("predicted, side by side", self.predicted_images_per_s, "{:,.0f} images/s")
        rows += _row("predicted, sharing the cores", self.predicted_serial_images_per_s, "{:,.0f} images/s")
        rows += _row("accelerator busy", self.utilisation_percent, "{:.0f} % of the time")
        if self.wait_ms_p50 is not None:
            waits = f"{self.wait_ms_p50:.0f} / {self.wait_ms_p95:.0f} / {self.wait_ms_max:.0f} ms"
            rows.append(("waited per step, p50 / p95 / max", waits))
        rows += _row("peak memory, training", self.training_peak_mib, "{:,.0f} MiB")
        rows += _row("GPU busy (NVML)", self.gpu_busy_percent, "{:.0f} %")
        rows += _row("GPU multiprocessors busy (NVML)", self.gpu_sm_percent, "{:.0f} %")
        rows += _row("GPU memory peak (NVML)", self.gpu_peak_mib, "{:,.0f} MiB")
        rows += _row("GPU memory peak (framework)", self.framework_gpu_peak_mib, "{:,.0f} MiB")
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(key) for key, _ in rows)
        return "\n".join([self.name] + [f"  {key:<{width}}  {value}" for key, value in rows])

    __repr__ = __str__  # in a terminal as in print

    def _repr_html_(self) -> str:
        cells = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in self.rows()
        )
        return f"<table><caption><b>{html.escape(self.name)}</b></caption>{cells}</table>{self._memory_svg()}"

    def _memory_svg(self) -> str:
        """Draw memory over time in a strip small enough to stand under the table."""
        if len(self.memory_timeline) < 2:
            return ""
        width, height = 480, 48
        end = self.memory_timeline[-1][0] or 1
        top = max(self.peak_mib, 1) * 1.05
        points = " ".join(f"{t / end * width:.1f},{height - mib / top * height:.1f}" for t, mib in self.memory_timeline)
        return (
            f"<svg width='{width}' height='{height + 16}' role='img' aria-label='memory over time'>"
            f"<polyline points='{points}' fill='none' stroke='#0072B2' stroke-width='1.5'/>"
            f"<text x='0' y='{height + 13}' font-size='11' fill='currentColor'>"
            f"memory held, 0 to {end:.1f} s; top {self.peak_mib:,.0f} MiB</text></svg>"
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"not a measurement: {name} is no figure")


def _fits(value: Any, annotation: str) -> bool:
    """Tell whether a value read from JSON is what a field of `Measurement` holds."""
    kind, _, alternative = annotation.partition(" | ")
    if value is None:
        return alternative == "None"
    if isinstance(value, bool):
        return False
    if kind == "float":
        return isinstance(value, (int, float)) and abs(value) < 2**1023  # an integer may be larger than any float
    return isinstance(value, {"str": str, "int": int, "dict": dict}.get(kind, list))  # tuples are lists in JSON


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(part) for part in value) if isinstance(value, list) else value


def _row(label: str, value: float | None, form: str) -> list[tuple[str, str]]:
    return [] if value is None else [(label, form.format(value))]


def _spread(runs: tuple[float, ...]) -> str:
    return f" (median of {len(runs)}: {min(runs):,.0f} to {max(runs):,.0f})" if len(runs) > 1 else ""


def measure(
    pipeline: Callable,
    files: ImageFiles,
    *,
    accelerator: object | None = None,
    memory_budget: float | None = None,
    batches: int | None = None,
    repeats: int = 1,
    name: str | None = None,
    image_size: tuple[int, int] = (224, 224),
    batch_size: int = 32,
    growth: bool | None = None,
    timeout: float | None = None,
) -> Measurement:
    """Measure one pipeline; each run in a fresh child process, whatever happens to it.

    Parameters
    ----------
    pipeline : callable
        ``pipeline(files, *, image_size, batch_size, shuffle, seed) -> batches``; also one from a notebook cell.
    files : ImageFiles
        What it reads, once per run.
    accelerator : KerasAccelerator or EmulatedAccelerator, optional
        Then the pipeline also feeds it, in a run of its own, for the figures of training.
    memory_budget : float, optional
        In MiB, for each child process; see `child.run`.
    batches : int, optional
        Stop each run after this many batches; by default a run is one epoch. Then memory growth is not measured.
    repeats : int
        Runs of each kind, alternating; medians are reported, and the spread.
    name : str, optional
        By default the pipeline's name.
    growth : bool, optional
        Whether to measure how memory grows with files and epochs, in one more run; by default with 1,000 files or
        more, since fewer need further runs and still say little.
    timeout : float, optional
        In seconds, for each run.

    Returns
    -------
    Measurement

    Raises
    ------
    ValueError
        If there are no files, the pipeline yields nothing, or the budget does not hold the imports.
    TypeError
        If ``files`` is no `ImageFiles`, or the pipeline no function.
    """
    trial = Trial(
        pipeline,
        files,
        accelerator=accelerator,
        memory_budget=memory_budget,
        batches=batches,
        name=name,
        image_size=image_size,
        batch_size=batch_size,
        timeout=timeout,
    )
    if operator.index(repeats) < 1:
        raise ValueError(f"repeats is {repeats}: it must be at least 1")
    for _ in range(repeats):
        if not trial.run():
            break
    if growth is None:
        growth = len(files) >= _MANY_FILES
    if growth:
        trial.run_growth()
    return trial.measurement()


class Trial:
    """One pipeline's runs, one at a time: several pipelines can take turns, so that a busy minute hits them all.

    Parameters
    ----------
    pipeline, files, accelerator, memory_budget, batches, name, image_size, batch_size, timeout
        As for `measure`.

    Raises
    ------
    ValueError, TypeError
        As for `measure`.
    """

    def __init__(
        self,
        pipeline: Callable,
        files: ImageFiles,
        *,
        accelerator: object | None = None,
        memory_budget: float | None = None,
        batches: int | None = None,
        name: str | None = None,
        image_size: tuple[int, int] = (224, 224),
        batch_size: int = 32,
        timeout: float | None = None,
    ):
        _check_what_to_measure(pipeline, files)
        if batch_size < 1 or (batches is not None and batches < 1):
            raise ValueError(f"batch_size={batch_size}, batches={batches}: each must be at least 1")
        self.name = name or name_of(pipeline)
        self._pipeline, self._files, self._batches, self._accelerator = pipeline, files, batches, accelerator
        self._settings = {"image_size": _height_and_width(image_size), "batch_size": operator.index(batch_size)}
        self._limits = {"memory_budget": memory_budget, "timeout": timeout}
        self._alone: list[ChildResult] = []
        self._training: list[ChildResult] = []
        self._growth: dict = {}

    @property
    def runs(self) -> int:
        """How often the pipeline has run alone."""
        return len(self._alone)

    @property
    def failed(self) -> bool:
        """Whether a run did not finish; then no other is made."""
        return not _all_finished(self._alone + self._training)

    def run(self) -> bool:
        """Run the pipeline alone and, with an accelerator, while it trains; tell whether all runs so far finished.

        Raises
        ------
        ValueError
            If it yields nothing, or the budget does not hold what it imports.
        """
        if self.failed:
            return False
        given = (self._pipeline, self._files, self._settings, self._batches)
        self._alone.append(run(_drain, *given, **self._limits))
        _check_that_images_came(self._alone[-1], self.name, len(self._files))
        if self._accelerator is not None and not self.failed:
            self._training.append(run(_train, *given, self._accelerator, **self._limits))
        return not self.failed

    def run_growth(self) -> None:
        """Run a quarter of the files, to see how memory grows with files and epochs; after `run`."""
        if _all_finished(self._alone) and self._alone[0].value["held_at_end_mib"] is not None:
            self._growth = _growth_figures(self._pipeline, self._files, self._settings, self._limits, self._alone[0])

    def measurement(self) -> Measurement:
        """Return the medians of the runs so far, and their spread."""
        figures = {**_alone_figures(self._alone), **_training_figures(self._training, self._accelerator)}
        figures |= self._growth
        return Measurement(
            name=self.name,
            files=len(self._files),
            budget_mib=None if self._limits["memory_budget"] is None else self._alone[0].budget_mib,
            dataset=_describe_files(self._files),
            machine=machine(),
            versions=versions(figures.pop("keras_backend", None)),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self._settings,
            **_first_failure(self._alone, self._training),
            **figures,
            **_predictions(figures, self._accelerator),
        )


def _check_what_to_measure(pipeline: Callable, files: ImageFiles) -> None:
    if not callable(pipeline):
        raise TypeError(
            f"the pipeline is a {type(pipeline).__name__}: give the function that builds it, not its result"
        )
    if not isinstance(files, ImageFiles):
        raise TypeError(f"files is a {type(files).__name__}: find_images(folder) lists a folder's images")
    if not len(files):
        raise ValueError("no files to measure with: find_images(folder) lists a folder's images")


def _height_and_width(image_size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(size) for size in image_size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"image_size is {image_size!r}: give (height, width) in pixels")
    return height, width


def _check_that_images_came(result: ChildResult, name: str, file_count: int) -> None:
    if result.outcome == "finished" and not result.value["images"]:
        raise ValueError(f"{name} yielded no images from {file_count:,} files: check its loop")
    # The watchdog may look only after the import, when the baseline has been told.
    baseline_mib = math.inf if result.progress is None else result.progress["baseline_mib"]
    if result.outcome == "out of memory" and baseline_mib >= result.budget_mib:
        raise ValueError(
            f"memory_budget of {result.budget_mib:,.0f} MiB: what {name} imports needs more"
            f" ({result.peak_mib:,.0f} MiB); give a larger budget"
        )


def measure_ceiling(
    accelerator: object,
    *,
    image_size: tuple[int, int] = (224, 224),
    batch_size: int = 32,
    class_count: int = 10,
    timeout: float | None = None,
) -> float:
    """Return the rate of an accelerator fed one resident batch again and again, in images/s, from a fresh process."""
    return run(_ceiling_alone, accelerator, image_size, batch_size, class_count, timeout=timeout).unwrap()


def _ceiling_alone(accelerator: object, image_size: tuple[int, int], batch_size: int, class_count: int) -> float:
    step = accelerator.prepare(image_size, 3, class_count, [batch_size])
    return ceiling(step, *to_device(*resident_batch(batch_size, image_size, 3, class_count), accelerator))


# ---- inside the child process ----------------------------------------------------------------------------------------


class _Progress:
    """Counts what came, and tells the caller after each batch (ten microseconds): what comes next may be the end."""

    def __init__(self, baseline_mib: float):
        self.state = {"batches": 0, "images": 0, "baseline_mib": baseline_mib}
        report(dict(self.state))

    def add(self, images: int) -> None:
        self.state["batches"] += 1
        self.state["images"] += images
        report(dict(self.state))


def loaded(pipeline: Callable) -> Callable:
    """Import what a pipeline of `helpers.pipelines` needs, so that it counts as baseline and not as pipeline."""
    if isinstance(pipeline, functools.partial):
        return functools.partial(loaded(pipeline.func), *pipeline.args, **pipeline.keywords)
    return pipeline.load() if isinstance(pipeline, LazyPipeline) else pipeline


def images_and_labels(batch: object) -> tuple[Any, Any]:
    """Return the two arrays of a batch, or raise TypeError that says what came instead."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"the pipeline yielded {_described(batch)}; a batch is a pair (images, labels)")
    for part, what in zip(batch, ("images", "labels"), strict=True):
        if not hasattr(part, "dtype") or not len(part.shape):
            raise TypeError(f"the pipeline yielded {_described(part)} for {what}; a batch holds two arrays")
    return tuple(batch)


def _described(thing: object) -> str:
    if hasattr(thing, "shape"):
        return f"one {type(thing).__name__} of shape {tuple(thing.shape)}"
    length = f" of {len(thing)}" if hasattr(thing, "__len__") else ""
    return f"a {type(thing).__name__}{length}"


def _checked(batch: object) -> tuple[Any, Any]:
    images, labels = images_and_labels(batch)
    if len(images) != len(labels):
        raise ValueError(f"the pipeline yielded {len(images)} images with {len(labels)} labels")
    return images, labels


def _drain(pipeline: Callable, files: ImageFiles, settings: dict, batches: int | None) -> dict:
    """Iterate one epoch and do nothing with it."""
    pipeline = loaded(pipeline)
    process = psutil.Process()
    progress = _Progress(memory.current().held_mib)
    cpu_before = _cpu_seconds(process)
    start = time.perf_counter()
    first_images, first_at, dtype = 0, start, None
    held_at_end_mib, pause_s = None, 0.0
    iterator = iter(pipeline(files, **settings))  # kept, so that its end is not timed where it is stopped early
    for batch in itertools.islice(iterator, batches):
        images, _labels = _checked(batch)
        if not progress.state["batches"]:
            first_at, first_images, dtype = time.perf_counter(), len(images), _dtype_name(images)
        progress.add(len(images))
        if _is_at_end(progress.state["images"], len(images), files):
            del batch, images, _labels
            paused_at, cpu_at = time.perf_counter(), _cpu_seconds(process)
            held_at_end_mib = settled_mib()
            pause_s += time.perf_counter() - paused_at
            cpu_before += _cpu_seconds(process) - cpu_at
    end = time.perf_counter() - pause_s
    cores_busy = (_cpu_seconds(process) - cpu_before) / (end - start)
    rest = progress.state["images"] - first_images
    return {
        **progress.state,
        "dtype": dtype,
        # With one batch only there is no rest: then its own time is all there is.
        "images_per_s": rest / (end - first_at) if rest else first_images / (end - start),
        "first_batch_s": first_at - start,
        "first_epoch_images_per_s": progress.state["images"] / (end - start),
        "cores_busy": cores_busy,
        "held_at_end_mib": held_at_end_mib,
        "highest_rss_mib": memory.peak_rss_mib(),
    }


def _train(pipeline: Callable, files: ImageFiles, settings: dict, batches: int | None, accelerator: object) -> dict:
    """Feed one epoch to the accelerator, timing the wait and the work of each step."""
    batch_size = min(settings["batch_size"], len(files))
    class_count = max(len(files.class_names), 1)
    sizes = [batch_size] + ([len(files) % batch_size] if len(files) % batch_size else [])
    step = accelerator.prepare(settings["image_size"], 3, class_count, sizes)
    resident = to_device(*resident_batch(batch_size, settings["image_size"], 3, class_count), accelerator)
    ceiling_images_per_s = ceiling(step, *resident)
    pipeline = loaded(pipeline)
    progress = _Progress(memory.current().held_mib)
    counts, waits, steps = [], [], []
    with GpuSampler() as gpu:
        iterator = iter(pipeline(files, **settings))
        before = time.perf_counter()
        for batch in itertools.islice(iterator, batches):
            ready = time.perf_counter()
            images, labels = _checked(batch)
            step(images, labels)
            done = time.perf_counter()
            counts.append(len(labels))
            waits.append(ready - before)
            steps.append(done - ready)
            progress.add(len(labels))
            before = time.perf_counter()
    skip = 1 if len(counts) > 1 else 0
    total_s = sum(waits[skip:]) + sum(steps[skip:])
    is_keras = accelerator.kind == "keras"
    wait_ms = 1000 * np.array(waits[skip:])
    return {
        **progress.state,
        "ceiling_images_per_s": ceiling_images_per_s,
        "together_images_per_s": sum(counts[skip:]) / total_s if counts else None,
        "utilisation_percent": 100 * sum(steps[skip:]) / total_s if counts else None,
        "waits_ms": tuple(np.percentile(wait_ms, [50, 95, 100]).tolist()) if counts else (None, None, None),
        "wait_ms": tuple(round(1000 * seconds, 3) for seconds in waits[:_MAX_STEPS_KEPT]),
        "compute_ms": tuple(round(1000 * seconds, 3) for seconds in steps[:_MAX_STEPS_KEPT]),
        "gpu_busy_percent": gpu.busy_percent,
        "gpu_sm_percent": gpu.sm_percent,
        "gpu_peak_mib": gpu.peak_mib,
        "framework_gpu_peak_mib": framework_gpu_peak_mib() if is_keras else None,
        "device": keras_device() if is_keras else None,
        "keras_backend": keras_backend() if is_keras else None,
    }


def _is_at_end(images_done: int, batch_size: int, files: ImageFiles) -> bool:
    """Tell whether this may be the last batch: the last whole one is, where a pipeline leaves the rest out."""
    return images_done > len(files) - batch_size


def _epochs(pipeline: Callable, files: ImageFiles, settings: dict, epochs: int) -> dict:
    """Iterate several epochs; note the memory held at the last batch of the first, and after each."""
    pipeline = loaded(pipeline)
    baseline_mib = memory.current().held_mib
    built = pipeline(files, **settings)
    held_mib, held_at_end_mib = [], None
    for epoch in range(epochs):
        images_done = 0
        for batch in built:
            images_done += len(batch[0])
            if epoch == 0 and _is_at_end(images_done, len(batch[0]), files):
                del batch
                held_at_end_mib = settled_mib()
        held_mib.append(settled_mib())
    return {"baseline_mib": baseline_mib, "held_mib": held_mib, "held_at_end_mib": held_at_end_mib}


def settled_mib() -> float:
    """Return the memory that this process and its children hold once all that is free is given back, in MiB."""
    gc.collect()
    if sys.platform == "linux" and hasattr(c_library := ctypes.CDLL(None), "malloc_trim"):
        c_library.malloc_trim(0)  # glibc keeps freed memory for later; musl has no such call
    return memory.current().held_mib


def _cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children, in seconds; of those that ended, only the waited for."""
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _dtype_name(images: object) -> str:
    return getattr(images.dtype, "name", str(images.dtype))


# ---- putting figures together ----------------------------------------------------------------------------------------


def _all_finished(results: list[ChildResult]) -> bool:
    return all(result.outcome == "finished" for result in results)


def _first_failure(alone: list[ChildResult], training: list[ChildResult]) -> dict:
    for when, results in (("", alone), ("while training: ", training)):
        for result in results:
            if result.outcome != "finished":
                return {"outcome": result.outcome, "error": f"{when}{result.error}"}
    return {"outcome": "finished", "error": None}


def _median(results: list[dict], key: str) -> float | None:
    values = [result[key] for result in results if result[key] is not None]
    return float(np.median(values)) if values else None


def _alone_figures(results: list[ChildResult]) -> dict:
    first = results[0]
    values = [result.value for result in results if result.outcome == "finished"]
    state = first.value or first.progress or {"batches": 0, "images": 0, "baseline_mib": first.baseline_mib}
    return {
        "batches_done": state["batches"],
        "images_done": state["images"],
        "baseline_mib": state["baseline_mib"],
        "dtype": values[0]["dtype"] if values else None,
        "images_per_s": _median(values, "images_per_s"),
        "first_batch_s": _median(values, "first_batch_s"),
        "first_epoch_images_per_s": _median(values, "first_epoch_images_per_s"),
        "cores_busy": _median(values, "cores_busy"),
        "highest_rss_mib": _median(values, "highest_rss_mib"),
        # The baseline is read more exactly than the peak: of a short run it may be a little higher.
        "peak_mib": max([state["baseline_mib"] or 0, *(result.peak_mib for result in results)]),
        "peak_file_mib": max(result.peak_file_mib for result in results),
        "peak_rss_mib": max(result.peak_rss_mib for result in results),
        "memory_method": first.method,
        "memory_timeline": _thinned(first.timeline),
        "runs_images_per_s": tuple(value["images_per_s"] for value in values),
    }


def _training_figures(results: list[ChildResult], accelerator: object | None) -> dict:
    if accelerator is None:
        return {}
    figures = {"accelerator": accelerator.label, "accelerator_kind": accelerator.kind}
    values = [result.value for result in results if result.outcome == "finished"]
    if results:
        figures["training_peak_mib"] = max(result.peak_mib for result in results)
    if not values:
        return figures
    keys = ("ceiling_images_per_s", "together_images_per_s", "utilisation_percent")
    gpu_keys = ("gpu_busy_percent", "gpu_sm_percent", "gpu_peak_mib", "framework_gpu_peak_mib")
    for place, key in enumerate(("wait_ms_p50", "wait_ms_p95", "wait_ms_max")):
        figures[key] = _median([{key: value["waits_ms"][place]} for value in values], key)
    return {
        **figures,
        **{key: _median(values, key) for key in keys + gpu_keys},
        "wait_ms": values[0]["wait_ms"],
        "compute_ms": values[0]["compute_ms"],
        "device": values[0]["device"],
        "keras_backend": values[0]["keras_backend"],
        "runs_together_images_per_s": tuple(value["together_images_per_s"] for value in values),
    }


def _growth_figures(
    pipeline: Callable, files: ImageFiles, settings: dict, limits: dict, all_files: ChildResult
) -> dict:
    """Compare a quarter of the files with all of them, and some epochs of it; of few files, in doubt, look further."""
    quarter = files.take(len(files) // 4)
    result = run(_epochs, pipeline, quarter, settings, _GROWTH_EPOCHS, **limits) if len(quarter) else None
    if result is None or result.outcome != "finished":
        return {}
    per_1000 = _growth_per_1000(result, all_files, len(files) - len(quarter))
    per_epoch = _slope(result.value["held_mib"][1:])  # the first epoch fills buffers
    is_small = len(files) < _MANY_FILES
    # A second look may need more memory or time than there is: then the first one holds.
    if is_small and per_1000 is not None and per_1000 > _IN_DOUBT_MIB_PER_1000:
        times = 1 + -(-_MANY_FILES // len(files))
        with tempfile.TemporaryDirectory(prefix="measure-") as folder, default_packs_in(folder):
            more = run(_epochs, pipeline, renamed(files, times, folder), settings, 1, **limits)
        if more.outcome == "finished":
            per_1000 = _growth_per_1000(all_files, more, (times - 1) * len(files))
    if is_small and per_epoch > _IN_DOUBT_MIB_PER_EPOCH:
        more = run(_epochs, pipeline, quarter, settings, _MORE_EPOCHS, **limits)
        if more.outcome == "finished":
            per_epoch = _slope(more.value["held_mib"][_MORE_EPOCHS // 2 :])
    return {"growth_mib_per_1000_files": per_1000, "growth_mib_per_epoch": per_epoch}


def _slope(values: list[float]) -> float:
    return float(np.polyfit(range(len(values)), values, 1)[0])


def _growth_per_1000(few: ChildResult, many: ChildResult, files_more: int) -> float | None:
    if few.value["held_at_end_mib"] is None or many.value["held_at_end_mib"] is None:
        return None
    above = [result.value["held_at_end_mib"] - result.value["baseline_mib"] for result in (few, many)]
    return 1000 * (above[1] - above[0]) / files_more


def renamed(files: ImageFiles, times: int, folder: str) -> ImageFiles:
    """Give each file so many names in a folder: a pipeline that keeps images by name must not find an old one again."""
    paths = []
    for copy in range(times):
        for number, path in enumerate(files.paths):
            paths.append(os.path.join(folder, f"{times}-{copy:02d}-{number:06d}{os.path.splitext(path)[1]}"))
            try:
                os.symlink(os.path.abspath(path), paths[-1])
            except OSError:  # a system that allows no links
                shutil.copyfile(path, paths[-1])
    return ImageFiles(tuple(paths), np.tile(files.labels, times), files.class_names)


def _predictions(figures: dict, accelerator: object | None) -> dict:
    alone, top = figures["images_per_s"], figures.get("ceiling_images_per_s")
    if alone is None or top is None:
        return {}
    predictions = {"predicted_images_per_s": min(alone, top)}
    if accelerator.kind == "keras" and "cpu" in figures["device"]:
        predictions["predicted_serial_images_per_s"] = 1 / (1 / alone + 1 / top)
    return predictions


def _thinned(timeline: list[tuple[float, float, float]]) -> tuple[tuple[float, float], ...]:
    """Keep at most a few hundred points, the largest of each stretch."""
    stride = -(-len(timeline) // _MAX_TIMELINE) or 1
    stretches = (timeline[i : i + stride] for i in range(0, len(timeline), stride))
    return tuple((round(part[0][0], 3), round(max(point[1] for point in part), 2)) for part in stretches)


def _describe_files(files: ImageFiles) -> dict:
    sample = files.paths[:: max(1, len(files) // 100)]
    sizes = [os.path.getsize(path) for path in sample if os.path.exists(path)]
    folder = os.path.basename(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in sample]))
    mean_kb = round(sum(sizes) / len(sizes) / 1000, 1) if sizes else None
    return {
        "name": printable(folder),
        "images": len(files),
        "classes": len(files.class_names),
        "mean_kb_per_image": mean_kb,
    }


def machine() -> dict:
    """Return what identifies a machine for comparisons, and no name of its owner: CPU, cores, memory, GPUs, system."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_mib": round(memory.total_mib()),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def setting(files: ImageFiles, budget_mib: float) -> str:
    """Return in one line what a lesson's figures depend on: this machine, this data set, this budget."""
    here = machine()
    gpu = ", ".join(here["gpus"]) or "no GPU"
    hardware = f"{here['cpu']}, {here['cores']} cores, {here['memory_mib'] / 1024:.0f} GiB, {gpu}"
    return f"{hardware} | {len(files):,} images, {len(files.class_names)} classes | budget {budget_mib:,.0f} MiB"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions(keras_backend: str | None = None) -> dict:
    """Return the versions of what the figures depend on, without importing it."""
    found = {"python": platform.python_version()}
    if keras_backend is not None:
        found["keras backend"] = keras_backend
    for package in _VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
