"""A measurement: its records, how they are kept as a line of JSON, and how they are shown.

Made by `measure`, read by the scoreboard, the benchmark, the plots and the lessons.
"""

from __future__ import annotations

import contextlib
import html
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec.structs import replace

from helpers.files import printable, usable_cores
from helpers.folders import ImageFiles
from helpers.gpu import gpus
from helpers.sandbox import Outcome, memory

__all__ = ["Measurement", "machine", "median_of", "mib_per_1000_files", "setting", "versions"]

FORMAT = 2  # of a row; 1 was flat
_VERSIONED = ("tensorflow", "keras", "jax", "torch", "numpy", "opencv-python-headless", "opencv-python")
_Figure = Annotated[float, msgspec.Meta(ge=-(2.0**1023), le=2.0**1023)]  # neither NaN nor infinite
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # a float can hold it
_Figures = tuple[_Figure, ...]


class _Record(msgspec.Struct, frozen=True):
    """A figure that was not measured is None, never zero."""


class Alone(_Record, kw_only=True):
    """The pipeline alone: nothing consumes the batches. Medians of the runs."""

    images_per_s: _Figure | None = None  # of one epoch, first batch excluded (DS-Analyzer); of a single batch, its own
    first_batch_s: _Figure | None = None  # from the call of the pipeline
    # From that call to the end of the first epoch, nothing excluded: compares a pipeline that does its work before the
    # first batch with one that does it batch by batch.
    first_epoch_images_per_s: _Figure | None = None
    cores_busy: _Figure | None = None  # CPU time of the process tree over wall time
    runs_images_per_s: _Figures = ()  # of each run, in order: the spread


class Training(_Record, kw_only=True):
    """The pipeline beside an accelerator, each step synchronised, the first left out. Medians of the runs."""

    accelerator: str | None = None
    device: str | None = None  # where Keras computed
    ceiling_images_per_s: _Figure | None = None  # the accelerator alone, fed one resident batch again and again
    images_per_s: _Figure | None = None
    predicted_images_per_s: _Figure | None = None  # min(alone, ceiling): side by side (DS-Analyzer)
    predicted_serial_images_per_s: _Figure | None = None  # 1 / (1/alone + 1/ceiling): both on the same CPU cores
    utilisation_percent: _Figure | None = None  # time in the accelerator over total time (AU of MLPerf Storage)
    wait_ms_p50: _Figure | None = None  # in next(), per step
    wait_ms_p95: _Figure | None = None
    wait_ms_max: _Figure | None = None
    peak_mib: _Figure | None = None
    runs_images_per_s: _Figures = ()
    wait_ms: _Figures = ()  # of the first steps, for the timeline
    compute_ms: _Figures = ()

    @property
    def stall_percent(self) -> float | None:
        """Share of the time in which the accelerator waited, in per cent."""
        return None if self.utilisation_percent is None else 100 - self.utilisation_percent


class MemoryUse(_Record, kw_only=True):
    """Memory of the process tree, pipeline alone; the largest of the runs."""

    peak_mib: _Figure  # of what the kernel cannot drop; see `memory.TreeMemory.held_mib`
    baseline_mib: _Figure | None = None  # the same just before the pipeline is built, imports included
    peak_file_mib: _Figure = 0.0  # mapped files, which the kernel can drop
    method: str  # how it was read
    budget_mib: _Figure | None = None

    @property
    def own_mib(self) -> float:
        """What the pipeline itself takes: the peak above the imports."""
        return self.peak_mib - (self.baseline_mib or 0)


class Growth(_Record, kw_only=True):
    """How memory grows; see the functions of the same names. None if no whole epoch was run."""

    mib_per_1000_files: _Figure | None = None
    mib_per_epoch: _Figure | None = None


class Gpu(_Record, kw_only=True):
    """The GPU while training; see `gpu.sampled_gpu` and `accelerators.framework_gpu_peak_mib`."""

    busy_percent: _Figure | None = None
    sm_percent: _Figure | None = None
    peak_mib: _Figure | None = None
    framework_peak_mib: _Figure | None = None


class Dataset(_Record, kw_only=True):
    """What was read; `name` is the folder's."""

    name: str = "?"
    images: _Count | None = None
    classes: _Count | None = None

    @classmethod
    def of(cls, files: ImageFiles) -> Dataset:
        folder = os.path.commonpath({os.path.abspath(os.path.dirname(path)) for path in files.paths})
        return cls(name=printable(os.path.basename(folder)), images=len(files), classes=len(files.class_names))


class Machine(_Record, kw_only=True):
    """What identifies a machine for comparisons, and no name of its owner."""

    cpu: str = "?"
    cores: _Count | None = None
    memory_mib: _Count | None = None
    gpus: tuple[str, ...] = ()
    system: str = "?"


class Context(_Record, kw_only=True):
    """What was read, where, with what, and when: an ISO 8601 date, UTC."""

    dataset: Dataset = Dataset()
    machine: Machine = Machine()
    versions: dict[str, str] = {}
    date: str = ""


class Measurement(_Record, kw_only=True):
    """What one pipeline did on one machine; records without figures where nothing of the kind was measured."""

    version: int = FORMAT
    name: str
    outcome: Outcome  # finished if every run finished, else the first other outcome
    error: str | None = None  # begins with "while training" where the pipeline alone had finished
    files: _Count
    image_size: tuple[_Count, _Count]
    batch_size: _Count
    dtype: str | None = None
    batches_done: _Count  # in the first run, also when it did not finish
    images_done: _Count
    alone: Alone = Alone()
    training: Training = Training()
    memory: MemoryUse
    growth: Growth = Growth()
    gpu: Gpu = Gpu()
    context: Context = Context()

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back without loss."""
        return json.dumps(msgspec.to_builtins(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Measurement:
        """Read one line written by `to_json`.

        Raises
        ------
        ValueError
            If the line is no JSON, no measurement, or one of another version of the course.
        """
        try:
            values = json.loads(line, parse_constant=_refuse)
            if isinstance(values, dict) and values.get("version") != FORMAT:
                raise ValueError("a row of another version of the course; measure again")
            return msgspec.convert(values, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise ValueError(f"not a measurement: {error}") from None

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures that were measured, as names and values with units."""
        alone, training, held, growth, gpu = self.alone, self.training, self.memory, self.growth, self.gpu
        peak = f"{held.peak_mib:,.0f} MiB" + (f" of {held.budget_mib:,.0f} MiB budget" if held.budget_mib else "")
        if held.baseline_mib is not None:
            peak += f", {held.peak_mib - held.baseline_mib:,.0f} above the start"
        device = f" on {training.device}" if training.device else ""
        delivered = f"{self.images_done:,} images in {self.batches_done:,} batches, {self.files:,} files given"
        waits = (training.wait_ms_p50, training.wait_ms_p95, training.wait_ms_max)
        rate = "{:,.0f} images/s"
        return [
            ("outcome", self.outcome + (f": {self.error}" if self.error else "")),
            ("delivered", delivered),
            *_row("pipeline alone", rate + _spread(alone.runs_images_per_s), alone.images_per_s),
            *_row("first batch after", "{:.2f} s", alone.first_batch_s),
            *_row("first epoch, all included", rate, alone.first_epoch_images_per_s),
            *_row("CPU cores busy", "{:.1f}", alone.cores_busy),
            ("peak memory", peak),
            *_row("growth", "{:z,.0f} MiB per 1,000 files", growth.mib_per_1000_files),
            *_row("growth per epoch", "{:z,.1f} MiB", growth.mib_per_epoch),
            *_row(f"accelerator alone ({training.accelerator}{device})", rate, training.ceiling_images_per_s),
            *_row("together", rate + _spread(training.runs_images_per_s), training.images_per_s),
            *_row("predicted, side by side", rate, training.predicted_images_per_s),
            *_row("predicted, sharing the cores", rate, training.predicted_serial_images_per_s),
            *_row("accelerator busy", "{:.0f} % of the time", training.utilisation_percent),
            *_row("waited per step, p50 / p95 / max", "{:.0f} / {:.0f} / {:.0f} ms", *waits),
            *_row("peak memory, training", "{:,.0f} MiB", training.peak_mib),
            *_row("GPU busy (NVML)", "{:.0f} %", gpu.busy_percent),
            *_row("GPU multiprocessors busy (NVML)", "{:.0f} %", gpu.sm_percent),
            *_row("GPU memory peak (NVML)", "{:,.0f} MiB", gpu.peak_mib),
            *_row("GPU memory peak (framework)", "{:,.0f} MiB", gpu.framework_peak_mib),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(key) for key, _ in rows)
        return "\n".join([self.name] + [f"  {key:<{width}}  {value}" for key, value in rows])

    __repr__ = __str__  # in a terminal as in print

    def _repr_html_(self) -> str:
        return html_table(self.name, self.rows())


def html_table(caption: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a notebook."""
    cell = "<td style='text-align:left'>{}</td>"
    body = "".join(f"<tr>{''.join(cell.format(html.escape(text)) for text in row)}</tr>" for row in rows)
    return f"<table><caption><b>{html.escape(caption)}</b></caption>{body}</table>"


def _refuse(constant: str) -> None:
    raise ValueError(f"not a measurement: {constant} is no figure")


def _row(label: str, form: str, *values: float | None) -> list[tuple[str, str]]:
    return [] if None in values else [(label, form.format(*values))]


def _spread(runs: tuple[float, ...]) -> str:
    return f" (median of {len(runs)}: {min(runs):,.0f} to {max(runs):,.0f})" if len(runs) > 1 else ""


# ---- arithmetic ------------------------------------------------------------------------------------------------------

_Kind = TypeVar("_Kind", bound=_Record)


def median_of(kind: type[_Kind], runs: Sequence[_Kind]) -> _Kind:
    """Return the first run's record with the median of each figure; without runs, a record without figures."""
    first = runs[0] if runs else kind()
    figures = {name: [getattr(one, name) for one in runs] for name in kind.__struct_fields__}
    numbers = {name: [value for value in found if isinstance(value, (int, float))] for name, found in figures.items()}
    return replace(first, **{name: float(statistics.median(found)) for name, found in numbers.items() if found})


def mib_per_1000_files(few_mib: float, many_mib: float, files_more: int) -> float:
    """Return how memory grows with the files, in MiB per 1,000, from what two runs held in their first epoch.

    What a run held is the larger of two readings above the start: at the first batch, when a pipeline that reads
    everything in advance holds most, and at the last one, when all that was read ahead has been given out. Buffers,
    thread pools and the allocator fill up with the first images, the more cores the longer; so what looks like growth
    among few files is looked at again among more.
    """
    return 1000 * (many_mib - few_mib) / files_more


def mib_per_epoch(held_mib: Sequence[float]) -> float:
    """Return how the floor of the memory held after each epoch rises from the middle third to the last, in MiB.

    Worker processes that begin and end move the memory up and down by several times their epoch's images, so that a
    line fitted through it has a slope by chance; what is never given back raises even the lowest point.
    """
    third = len(held_mib) // 3
    return (min(held_mib[-third:]) - min(held_mib[-2 * third : -third])) / third


# ---- the context -----------------------------------------------------------------------------------------------------


def machine() -> Machine:
    """Return this machine: CPU, cores, memory, GPUs, system."""
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_mib=round(memory.total_mib()),
        gpus=tuple(gpus()),
        system=f"{platform.system()} {platform.machine()}",
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def setting(files: ImageFiles, budget_mib: float) -> str:
    """Return in one line what a lesson's figures depend on: this machine, this data set, this budget."""
    here = machine()
    hardware = f"{here.cpu}, {here.cores} cores, {here.memory_mib / 1024:.0f} GiB, {', '.join(here.gpus) or 'no GPU'}"
    return f"{hardware} | {len(files):,} images, {len(files.class_names)} classes | budget {budget_mib:,.0f} MiB"


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on, without importing it."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if backend := os.environ.get("KERAS_BACKEND"):
        found["keras backend"] = backend
    return found
