"""Measure one pipeline in fresh processes: throughput, waiting, memory.

Called by every lesson and by the benchmark. Definitions of the figures: `helpers.measurement`.
"""

from __future__ import annotations

import datetime
import operator
import tempfile
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from helpers.accelerators import ceiling, name_of, resident_batch, to_device
from helpers.folders import ImageFiles
from helpers.measurement import (
    Alone,
    Context,
    Dataset,
    Gpu,
    Growth,
    Measurement,
    MemoryUse,
    Training,
    machine,
    median_of,
    mib_per_1000_files,
    mib_per_epoch,
    setting,
    versions,
)
from helpers.packing import default_packs_in
from helpers.runs import Came, drain, renamed, several_epochs, train
from helpers.sandbox import ChildResult, Outcome, run

__all__ = ["Measurement", "Trial", "machine", "measure", "measure_ceiling", "setting"]

_GROWTH_EPOCHS, _MORE_EPOCHS = 6, 18
_MANY_FILES = 1000  # with fewer, thread pools and the allocator are still filling up at the end of an epoch
_IN_DOUBT_MIB_PER_1000 = 20  # an image of 224 x 224 pixels kept costs 144 MiB per 1,000
_IN_DOUBT_MIB_PER_EPOCH = 1


def measure(
    pipeline: Callable, files: ImageFiles, *, repeats: int = 1, growth: bool | None = None, **settings: Any
) -> Measurement:
    """Measure one pipeline; each run in a fresh child process, whatever happens to it.

    Parameters
    ----------
    pipeline : callable
        ``pipeline(files, *, image_size, batch_size, shuffle, seed) -> batches``; also one from a notebook cell.
    files : ImageFiles
        What it reads, once per run.
    repeats : int
        Runs of each kind, alternating; medians are reported, and the spread.
    growth : bool, optional
        Whether to measure how memory grows with files and epochs, in one more run; by default with 1,000 files or
        more, since fewer need further runs and still say little.
    accelerator : KerasAccelerator or EmulatedAccelerator, optional
        Then the pipeline also feeds it, in a run of its own, for the figures of training.
    memory_budget : float, optional
        In MiB, for each child process; see `sandbox.run`.
    batches : int, optional
        Stop each run after this many batches; by default a run is one epoch. Then memory growth is not measured.
    name : str, optional
        By default the pipeline's name.
    image_size, batch_size : (int, int), int
        Given to the pipeline; by default ``(224, 224)`` and 32.
    timeout : float, optional
        In seconds, for each run.

    Raises
    ------
    ValueError
        If there are no files, the pipeline yields nothing, or the budget does not hold the imports.
    TypeError
        If ``files`` is no `ImageFiles`, or the pipeline no function.
    """
    trial = Trial(pipeline, files, **settings)
    if operator.index(repeats) < 1:
        raise ValueError(f"repeats is {repeats}: it must be at least 1")
    while trial.runs < repeats and trial.run():
        pass
    if len(files) >= _MANY_FILES if growth is None else growth:
        trial.run_growth()
    return trial.measurement()


@dataclass(repr=False)
class Trial:
    """One pipeline's runs, one at a time: several pipelines can take turns, so that a busy minute hits them all.

    Parameters and what is raised are as for `measure`.
    """

    pipeline: Callable
    files: ImageFiles
    _: KW_ONLY
    accelerator: object | None = None
    memory_budget: float | None = None
    batches: int | None = None
    name: str | None = None
    image_size: tuple[int, int] = (224, 224)
    batch_size: int = 32
    timeout: float | None = None

    def __post_init__(self):
        if not callable(self.pipeline):
            kind = type(self.pipeline).__name__
            raise TypeError(f"the pipeline is a {kind}: give the function that builds it, not its result")
        if not isinstance(self.files, ImageFiles):
            raise TypeError(f"files is a {type(self.files).__name__}: find_images(folder) lists a folder's images")
        if not len(self.files):
            raise ValueError("no files to measure with: find_images(folder) lists a folder's images")
        if np.shape(self.image_size) != (2,) or np.min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size!r}: give (height, width) in pixels")
        if self.batch_size < 1 or (self.batches is not None and self.batches < 1):
            raise ValueError(f"batch_size={self.batch_size}, batches={self.batches}: each must be at least 1")
        self.name = self.name or name_of(self.pipeline)
        size = tuple(operator.index(pixels) for pixels in self.image_size)
        self._settings = {"image_size": size, "batch_size": operator.index(self.batch_size)}
        self._alone: list[ChildResult] = []
        self._training: list[ChildResult] = []
        self._growth = Growth()

    @property
    def runs(self) -> int:
        """How often the pipeline has run alone."""
        return len(self._alone)

    @property
    def failed(self) -> bool:
        """Whether a run did not finish; then no other is made."""
        return self._failure is not None

    @property
    def _failure(self) -> ChildResult | None:
        results = (*self._alone, *self._training)
        return next((one for one in results if one.outcome != Outcome.FINISHED), None)

    def run(self) -> bool:
        """Run the pipeline alone and, with an accelerator, while it trains; tell whether all runs so far finished.

        Raises
        ------
        ValueError
            If it yields nothing, or the budget does not hold what it imports.
        """
        if not self.failed:
            self._alone.append(self._run(drain, self.files, self.batches))
            _check_that_images_came(self._alone[-1], self.name, len(self.files))
        if self.accelerator is not None and not self.failed:
            self._training.append(self._run(train, self.files, self.batches, self.accelerator))
        return not self.failed

    def _run(self, function: Callable, files: ImageFiles, *arguments: object) -> ChildResult:
        limits = {"memory_budget": self.memory_budget, "timeout": self.timeout}
        return run(function, self.pipeline, files, self._settings, *arguments, **limits)

    def run_growth(self) -> None:
        """Compare a quarter of the files with all of them, and some epochs of it; of few files, in doubt, look further.

        After `run`.
        """
        quarter, is_small = self.files.take(len(self.files) // 4), len(self.files) < _MANY_FILES
        all_mib = self._alone[0].value.grown_mib if self._alone[0].value else None
        first_look = self._epochs(quarter, _GROWTH_EPOCHS) if len(quarter) and all_mib is not None else None
        if first_look is None:
            return
        per_1000 = mib_per_1000_files(first_look[0], all_mib, len(self.files) - len(quarter))
        per_epoch = mib_per_epoch(first_look[1])
        # A second look may need more memory or time than there is: then the first one holds.
        if is_small and per_1000 > _IN_DOUBT_MIB_PER_1000:
            times = 1 + -(-_MANY_FILES // len(self.files))
            with tempfile.TemporaryDirectory(prefix="measure-") as folder, default_packs_in(folder):
                if more := self._epochs(renamed(self.files, times, folder), 1):
                    per_1000 = mib_per_1000_files(all_mib, more[0], (times - 1) * len(self.files))
        if is_small and per_epoch > _IN_DOUBT_MIB_PER_EPOCH and (more := self._epochs(quarter, _MORE_EPOCHS)):
            per_epoch = mib_per_epoch(more[1])
        self._growth = Growth(mib_per_1000_files=per_1000, mib_per_epoch=per_epoch)

    def _epochs(self, files: ImageFiles, epochs: int) -> tuple[float, list[float]] | None:
        return self._run(several_epochs, files, epochs).value

    def measurement(self) -> Measurement:
        """Return the medians of the runs so far, and their spread."""
        epochs, trained = _values(self._alone), _values(self._training)
        alone = median_of(Alone, [one.alone for one in epochs])
        alone = replace(alone, runs_images_per_s=tuple(one.alone.images_per_s for one in epochs))
        came, failure = _came(self._alone[0]), self._failure
        while_training = "while training: " if len(epochs) == self.runs else ""
        return Measurement(
            name=self.name,
            outcome=failure.outcome if failure else Outcome.FINISHED,
            error=f"{while_training}{failure.error}" if failure else None,
            files=len(self.files),
            dtype=epochs[0].dtype if epochs else None,
            batches_done=came.batches,
            images_done=came.images,
            alone=alone,
            training=_training([training for training, _ in trained], self.accelerator, alone, self._training),
            memory=_memory_use(self._alone, self.memory_budget is not None),
            growth=self._growth,
            gpu=median_of(Gpu, [gpu for _, gpu in trained]),
            context=Context(
                dataset=Dataset.of(self.files),
                machine=machine(),
                versions=versions(),
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
            **self._settings,
        )


def _check_that_images_came(result: ChildResult, name: str, file_count: int) -> None:
    came = _came(result)
    if result.outcome == Outcome.FINISHED and not came.images:
        raise ValueError(f"{name} yielded no images from {file_count:,} files: check its loop")
    # The watchdog may look only after the import, when the baseline has been told.
    is_within = result.progress is not None and came.baseline_mib < result.budget_mib
    if result.outcome == Outcome.OUT_OF_MEMORY and not is_within:
        raise ValueError(
            f"memory_budget of {result.budget_mib:,.0f} MiB: what {name} imports needs more"
            f" ({result.peak_mib:,.0f} MiB); give a larger budget"
        )


def measure_ceiling(accelerator: object, *, batch_size: int = 32, timeout: float | None = None) -> float:
    """Return the rate of an accelerator fed one resident batch of 224 x 224 pixels, in images/s, in a fresh process."""
    return run(_ceiling_alone, accelerator, batch_size, timeout=timeout).unwrap()


def _ceiling_alone(accelerator: object, batch_size: int) -> float:
    shape = ((224, 224), 3, 10)
    step = accelerator.prepare(*shape, [batch_size])
    return ceiling(step, *to_device(*resident_batch(batch_size, *shape), accelerator))


# ---- putting figures together ----------------------------------------------------------------------------------------


def _values(results: list[ChildResult]) -> list[Any]:
    return [result.value for result in results if result.outcome == Outcome.FINISHED]


def _came(result: ChildResult) -> Came:
    return result.value.came if result.value else result.progress or Came(0, 0, result.baseline_mib)


def _memory_use(results: list[ChildResult], is_limited: bool) -> MemoryUse:
    first, baseline_mib = results[0], _came(results[0]).baseline_mib
    return MemoryUse(
        # The baseline is read more exactly than the peak: of a short run it may be a little higher.
        peak_mib=max([baseline_mib or 0.0, *(result.peak_mib for result in results)]),
        baseline_mib=baseline_mib,
        peak_file_mib=max(result.peak_file_mib for result in results),
        method=first.method,
        budget_mib=first.budget_mib if is_limited else None,
    )


def _training(runs: list[Training], accelerator: object | None, alone: Alone, results: list[ChildResult]) -> Training:
    """Return the medians, with what concerns all runs, and what the pipeline alone lets one expect."""
    if accelerator is None:
        return Training()
    median = median_of(Training, runs)
    rate, top = alone.images_per_s, median.ceiling_images_per_s
    is_known = rate is not None and top is not None
    shares_cores = is_known and accelerator.kind == "keras" and "cpu" in median.device
    return replace(
        median,
        accelerator=accelerator.label,
        predicted_images_per_s=min(rate, top) if is_known else None,
        predicted_serial_images_per_s=1 / (1 / rate + 1 / top) if shares_cores else None,
        peak_mib=max((result.peak_mib for result in results), default=None),
        runs_images_per_s=tuple(one.images_per_s for one in runs if one.images_per_s is not None),
    )
