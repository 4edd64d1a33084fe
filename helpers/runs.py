"""What `measure` and `contract` run in their child processes: epochs alone, and beside an accelerator."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import psutil

from helpers.accelerators import (
    ceiling,
    framework_gpu_peak_mib,
    keras_device,
    resident_batch,
    to_device,
)
from helpers.folders import ImageFiles
from helpers.gpu import sampled_gpu
from helpers.measurement import Alone, Gpu, Training
from helpers.pipelines import LazyPipeline
from helpers.sandbox import memory, report

__all__ = ["cpu_seconds", "drain", "images_and_labels", "loaded", "renamed", "settled_mib", "several_epochs", "train"]

_MAX_STEPS_KEPT = 200
_SETTLE_S = 2.0


class Came(NamedTuple):
    """How much the pipeline has delivered. Reported after each batch: the next one may kill the process."""

    batches: int
    images: int
    baseline_mib: float | None


class Drained(NamedTuple):
    """One epoch of the pipeline alone; for `grown_mib` see `measurement.mib_per_1000_files`."""

    came: Came
    dtype: str | None
    alone: Alone
    grown_mib: float | None


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
    return f"a {type(thing).__name__}" + (f" of {len(thing)}" if hasattr(thing, "__len__") else "")


def _checked(batch: object) -> tuple[Any, Any]:
    images, labels = images_and_labels(batch)
    if len(images) != len(labels):
        raise ValueError(f"the pipeline yielded {len(images)} images with {len(labels)} labels")
    return images, labels


def drain(pipeline: Callable, files: ImageFiles, settings: dict, batches: int | None) -> Drained:
    """Iterate one epoch and do nothing with it."""
    pipeline = loaded(pipeline)
    process = psutil.Process()
    report(came := Came(0, 0, memory.current().held_mib))
    cpu_before = cpu_seconds(process)
    start = time.perf_counter()
    first_images, first_at, dtype = 0, start, None
    held_mib, pause_s = [came.baseline_mib], 0.0
    iterator = iter(pipeline(files, **settings))  # kept, so that its end is not timed where it is stopped early
    for batch in itertools.islice(iterator, batches):
        images, _labels = _checked(batch)
        if not came.batches:
            held_mib.append(memory.current().held_mib)
            first_at, first_images = time.perf_counter(), len(images)
            dtype = getattr(images.dtype, "name", str(images.dtype))
        report(came := Came(came.batches + 1, came.images + len(images), came.baseline_mib))
        if _is_at_end(came.images, len(images), files):
            del batch, images, _labels
            paused_at, cpu_at = time.perf_counter(), cpu_seconds(process)
            held_mib.append(settled_mib())
            pause_s += time.perf_counter() - paused_at
            cpu_before += cpu_seconds(process) - cpu_at
    end = time.perf_counter() - pause_s
    rest = came.images - first_images
    alone = Alone(
        # With one batch only there is no rest: then its own time is all there is.
        images_per_s=rest / (end - first_at) if rest else first_images / (end - start),
        first_batch_s=first_at - start,
        first_epoch_images_per_s=came.images / (end - start),
        cores_busy=(cpu_seconds(process) - cpu_before) / (end - start),
    )
    return Drained(came, dtype, alone, max(held_mib) - came.baseline_mib if pause_s else None)


def train(
    pipeline: Callable, files: ImageFiles, settings: dict, batches: int | None, accelerator: object
) -> tuple[Training, Gpu]:
    """Feed one epoch to the accelerator, timing the wait and the work of each step."""
    batch_size = min(settings["batch_size"], len(files))
    class_count = max(len(files.class_names), 1)
    sizes = [batch_size] + ([len(files) % batch_size] if len(files) % batch_size else [])
    step = accelerator.prepare(settings["image_size"], 3, class_count, sizes)
    resident = to_device(*resident_batch(batch_size, settings["image_size"], 3, class_count), accelerator)
    ceiling_images_per_s = ceiling(step, *resident)
    pipeline = loaded(pipeline)
    counts, waits_s, steps_s = [], [], []
    with sampled_gpu() as gpu:
        iterator = iter(pipeline(files, **settings))
        before = time.perf_counter()
        for batch in itertools.islice(iterator, batches):
            ready = time.perf_counter()
            images, labels = _checked(batch)
            step(images, labels)
            done = time.perf_counter()
            counts.append(len(labels))
            waits_s.append(ready - before)
            steps_s.append(done - ready)
            before = time.perf_counter()
    is_keras = accelerator.kind == "keras"
    training = Training(
        device=keras_device() if is_keras else None,
        ceiling_images_per_s=ceiling_images_per_s,
        **(_figures(counts, 1000 * np.array(waits_s), 1000 * np.array(steps_s)) if counts else {}),
    )
    used = Gpu(**gpu, framework_peak_mib=framework_gpu_peak_mib() if is_keras else None)
    return training, used


def _figures(counts: list[int], wait_ms: np.ndarray, compute_ms: np.ndarray) -> dict[str, Any]:
    """Return what the steps of a training say; the first one counts only where there is no other."""
    counted = slice(1 if len(counts) > 1 else 0, None)
    waited_ms, computed_ms = float(wait_ms[counted].sum()), float(compute_ms[counted].sum())
    p50, p95, highest = np.percentile(wait_ms[counted], [50, 95, 100]).tolist()
    return {
        "images_per_s": 1000 * sum(counts[counted]) / (waited_ms + computed_ms),
        "utilisation_percent": 100 * computed_ms / (waited_ms + computed_ms),
        "wait_ms_p50": p50,
        "wait_ms_p95": p95,
        "wait_ms_max": highest,
        "wait_ms": tuple(wait_ms[:_MAX_STEPS_KEPT].round(3).tolist()),
        "compute_ms": tuple(compute_ms[:_MAX_STEPS_KEPT].round(3).tolist()),
    }


def _is_at_end(images_done: int, batch_size: int, files: ImageFiles) -> bool:
    """Tell whether this may be the last batch: the last whole one is, where a pipeline leaves the rest out."""
    return images_done > len(files) - batch_size


def several_epochs(pipeline: Callable, files: ImageFiles, settings: dict, epochs: int) -> tuple[float, list[float]]:
    """Iterate; return what the first epoch held above the start, as `drain` does, and what is held after each epoch."""
    pipeline = loaded(pipeline)
    baseline_mib = memory.current().held_mib
    in_first_mib, after_each_mib = [baseline_mib], []
    batches = pipeline(files, **settings)
    for epoch in range(epochs):
        images_done = 0
        for batch in batches:
            images_done += len(batch[0])
            if epoch == 0 and images_done == len(batch[0]):
                in_first_mib.append(memory.current().held_mib)
            if epoch == 0 and _is_at_end(images_done, len(batch[0]), files):
                del batch
                in_first_mib.append(settled_mib())
        after_each_mib.append(settled_mib())
    return max(in_first_mib) - baseline_mib, after_each_mib


def settled_mib() -> float:
    """Return the memory that this process and its children hold once all that is free is given back, in MiB.

    A child that is ending reports no memory, yet the pages it shared still count as shared, so its part of them is
    missing from the sum. That lasts only a moment: where there are children, read until two readings agree.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(c_library := ctypes.CDLL(None), "malloc_trim"):
        c_library.malloc_trim(0)  # glibc keeps freed memory for later; musl has no such call
    children, until = psutil.Process().children, time.monotonic() + _SETTLE_S
    is_settled = not children()
    held_mib = memory.current().held_mib
    while not is_settled and time.monotonic() < until:
        time.sleep(0.05)
        are_ending = any(_is_ending(child) for child in children())
        before_mib, held_mib = held_mib, memory.current().held_mib
        is_settled = not are_ending and abs(held_mib - before_mib) < 1
    return held_mib


def _is_ending(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE or not child.memory_info().rss
    except psutil.Error:
        return True


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children, in seconds; of those that ended, only the waited for."""
    total = sum(process.cpu_times()[:4])  # user, system, and the same of children
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return total


def renamed(files: ImageFiles, times: int, folder: str) -> ImageFiles:
    """Link each file under several names, so that a pipeline that caches images by name cannot reuse them."""
    paths = []
    for copy in range(times):
        for number, path in enumerate(files.paths):
            paths.append(os.path.join(folder, f"{times}-{copy:02d}-{number:06d}{os.path.splitext(path)[1]}"))
            try:
                os.symlink(os.path.abspath(path), paths[-1])
            except OSError:  # a system that allows no links
                shutil.copyfile(path, paths[-1])
    return ImageFiles(tuple(paths), np.tile(files.labels, times), files.class_names)
