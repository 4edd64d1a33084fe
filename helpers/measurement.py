"""A measurement: its records, how they are kept as a line of JSON, and how they are shown.

Made by `measure`, read by the scoreboard, the benchmark, the plots and the lessons.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
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
    """The pipeline alone: nothing consumes the batches. Medians of the runs.

    Attributes
    ----------
    images_per_s : float
        Images over wall time of one epoch, first batch excluded (DS-Analyzer); of a single batch, its own time.
    first_batch_s : float
        From the call of the pipeline to its first batch.
    first_epoch_images_per_s : float
        Images over wall time from the call of the pipeline to the end of its first epoch: nothing excluded. The figure
        for comparing a pipeline that does its work before the first batch with one that does it batch by batch.
    cores_busy : float
        CPU time of the process tree over wall time.
    runs_images_per_s : tuple of float
        Each run's figure, in order: the spread.
    """

    images_per_s: _Figure | None = None
    first_batch_s: _Figure | None = None
    first_epoch_images_per_s: _Figure | None = None
    cores_busy: _Figure | None = None
    runs_images_per_s: _Figures = ()


class Training(_Record, kw_only=True):
    """The pipeline beside an accelerator. Medians of the runs.

    Attributes
    ----------
    accelerator, accelerator_kind, device : str
        Its label; ``keras`` or ``emulated``; where Keras computed.
    ceiling_images_per_s : float
        The accelerator alone, fed one resident batch again and again.
    images_per_s : float
        Training on the pipeline, each step synchronised, first step excluded.
    predicted_images_per_s : float
        min(alone, ceiling): what a pipeline that runs beside the accelerator could reach (DS-Analyzer).
    predicted_serial_images_per_s : float
        1 / (1/alone + 1/ceiling): what to expect where both share the same cores. Only for a model on the CPU.
    utilisation_percent : float
        Time in the accelerator over total time, first step excluded (AU of MLPerf Storage).
    wait_ms_p50, wait_ms_p95, wait_ms_max : float
        Time in ``next()`` per step.
    wait_ms, compute_ms : tuple of float
        The first steps, for the timeline.
    peak_mib : float
        As `MemoryUse.peak_mib`.
    runs_images_per_s : tuple of float
        Each run's figure, in order: the spread.
    """

    accelerator: str | None = None
    accelerator_kind: str | None = None
    device: str | None = None
    ceiling_images_per_s: _Figure | None = None
    images_per_s: _Figure | None = None
    predicted_images_per_s: _Figure | None = None
    predicted_serial_images_per_s: _Figure | None = None
    utilisation_percent: _Figure | None = None
    wait_ms_p50: _Figure | None = None
    wait_ms_p95: _Figure | None = None
    wait_ms_max: _Figure | None = None
    peak_mib: _Figure | None = None
    runs_images_per_s: _Figures = ()
    wait_ms: _Figures = ()
    compute_ms: _Figures = ()

    @property
    def stall_percent(self) -> float | None:
        """Share of the time in which the accelerator waited, in per cent."""
        return None if self.utilisation_percent is None else 100 - self.utilisation_percent


class MemoryUse(_Record, kw_only=True):
    """Memory of the process tree, pipeline alone; the largest of the runs.

    Attributes
    ----------
    peak_mib : float
        Largest memory held: what the kernel cannot drop (`memory.TreeMemory.held_mib`).
    baseline_mib : float
        The same just before the pipeline is built, imports included.
    peak_file_mib, peak_rss_mib, highest_rss_mib : float
        Mapped files apart; sum of RSS; the kernel's own VmHWM of the process, as a cross-check.
    method : str
        How it was read; see `memory.TreeMemory`.
    budget_mib : float
        The limit, where one was given.
    timeline : tuple of (float, float)
        Seconds since the process started and memory held in MiB.
    """

    peak_mib: _Figure
    baseline_mib: _Figure | None = None
    peak_file_mib: _Figure = 0.0
    peak_rss_mib: _Figure = 0.0
    highest_rss_mib: _Figure | None = None
    method: str
    budget_mib: _Figure | None = None
    timeline: tuple[tuple[_Figure, _Figure], ...] = ()


class Growth(_Record, kw_only=True):
    """How memory grows. The figures are None if `measure` stopped before the end of an epoch.

    Attributes
    ----------
    mib_per_1000_files : float
        Memory held at the last batch of the first epoch, when all that was read ahead has been given out: growth from a
        quarter of the files to all of them. Thread pools and the allocator fill up with the first images, the more
        cores the longer; so where there are few files and they seem to cost memory, growth from all of them to a list
        of over a thousand is taken instead.
    mib_per_epoch : float
        Slope of the memory held after each epoch of that quarter, first epoch excluded; with few files and in doubt,
        of later epochs.
    """

    mib_per_1000_files: _Figure | None = None
    mib_per_epoch: _Figure | None = None


class Gpu(_Record, kw_only=True):
    """The GPU while training.

    Attributes
    ----------
    busy_percent, sm_percent, peak_mib : float
        NVML's share of time with any kernel at work, its share of busy multiprocessors, and memory.
    framework_peak_mib : float
        The peak by the framework's own allocator: TensorFlow and JAX reserve most of a GPU at their start, so only this
        says what the training needs.
    """

    busy_percent: _Figure | None = None
    sm_percent: _Figure | None = None
    peak_mib: _Figure | None = None
    framework_peak_mib: _Figure | None = None


class Dataset(_Record, kw_only=True):
    """What was read: the folder's name, how many images and classes, and how large the files are."""

    name: str = "?"
    images: _Count | None = None
    classes: _Count | None = None
    mean_kb_per_image: _Figure | None = None

    @classmethod
    def of(cls, files: ImageFiles) -> Dataset:
        """Describe a list of files; sizes are those of a hundred of them."""
        sample = files.paths[:: max(1, len(files) // 100)]
        sizes = [os.path.getsize(path) for path in sample if os.path.exists(path)]
        folder = os.path.basename(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in sample]))
        mean_kb = round(sum(sizes) / len(sizes) / 1000, 1) if sizes else None
        return cls(name=printable(folder), images=len(files), classes=len(files.class_names), mean_kb_per_image=mean_kb)


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
    """What one pipeline did on one machine.

    Attributes
    ----------
    outcome : Outcome
        ``finished`` when every run finished, else the first other outcome, with `error`, which begins with "while
        training" where the pipeline alone had finished.
    batches_done, images_done : int
        Delivered in the first run, also when it did not finish.
    training, growth, gpu
        Records without figures where nothing of the kind was measured.
    """

    version: int = FORMAT
    name: str
    outcome: Outcome
    error: str | None = None
    files: _Count
    image_size: tuple[_Count, _Count]
    batch_size: _Count
    dtype: str | None = None
    batches_done: _Count
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
        except RecursionError:
            raise ValueError("not a measurement: nested too deeply") from None
        if not isinstance(values, dict) or "outcome" not in values:
            raise ValueError(f"not a measurement: {line[:60]!r}")
        if values.get("version") != FORMAT:
            raise ValueError("a row of another version of the course; measure again")
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
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
        cells = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in self.rows()
        )
        return f"<table><caption><b>{html.escape(self.name)}</b></caption>{cells}</table>{_memory_svg(self.memory)}"


def _refuse(constant: str) -> None:
    raise ValueError(f"not a measurement: {constant} is no figure")


def _row(label: str, form: str, *values: float | None) -> list[tuple[str, str]]:
    return [] if None in values else [(label, form.format(*values))]


def _spread(runs: tuple[float, ...]) -> str:
    return f" (median of {len(runs)}: {min(runs):,.0f} to {max(runs):,.0f})" if len(runs) > 1 else ""


def _memory_svg(held: MemoryUse) -> str:
    """Draw memory over time in a strip small enough to stand under the table."""
    if len(held.timeline) < 2:
        return ""
    width, height = 480, 48
    end = held.timeline[-1][0] or 1
    top = max(held.peak_mib, 1) * 1.05
    points = " ".join(f"{t / end * width:.1f},{height - mib / top * height:.1f}" for t, mib in held.timeline)
    return (
        f"<svg width='{width}' height='{height + 16}' role='img' aria-label='memory over time'>"
        f"<polyline points='{points}' fill='none' stroke='#0072B2' stroke-width='1.5'/>"
        f"<text x='0' y='{height + 13}' font-size='11' fill='currentColor'>"
        f"memory held, 0 to {end:.1f} s; top {held.peak_mib:,.0f} MiB</text></svg>"
    )


# ---- arithmetic ------------------------------------------------------------------------------------------------------

_Kind = TypeVar("_Kind", bound=_Record)


def median_of(kind: type[_Kind], runs: Sequence[_Kind]) -> _Kind:
    """Return the first run's record with the median of each figure; without runs, a record without figures."""
    first = runs[0] if runs else kind()
    figures = {name: [getattr(one, name) for one in runs] for name in kind.__struct_fields__}
    numbers = {name: [value for value in found if isinstance(value, (int, float))] for name, found in figures.items()}
    return replace(first, **{name: float(statistics.median(found)) for name, found in numbers.items() if found})


def mib_per_1000_files(few_mib: float | None, many_mib: float | None, files_more: int) -> float | None:
    """Return memory growth in MiB per 1,000 files, from two runs, the second of which reads more files."""
    return None if few_mib is None or many_mib is None else 1000 * (many_mib - few_mib) / files_more


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
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def setting(files: ImageFiles, budget_mib: float) -> str:
    """Return in one line what a lesson's figures depend on: this machine, this data set, this budget."""
    here = machine()
    hardware = f"{here.cpu}, {here.cores} cores, {here.memory_mib / 1024:.0f} GiB, {', '.join(here.gpus) or 'no GPU'}"
    return f"{hardware} | {len(files):,} images, {len(files.class_names)} classes | budget {budget_mib:,.0f} MiB"


def versions(keras_backend: str | None = None) -> dict[str, str]:
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
