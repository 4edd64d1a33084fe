"""Check whether a pipeline keeps the seven promises of the course; each group of promises in a child process.

Called by the lessons after a pipeline is finished, and by the tests for every exported pipeline.
"""

from __future__ import annotations

import gc
import html
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from helpers import memory
from helpers.child import ChildResult, run
from helpers.images import ImageFiles, read_image
from helpers.measure import loaded, pipeline_name

__all__ = ["ContractReport", "Promise", "check_pipeline"]

PROMISES = {
    1: "every file exactly once per epoch",
    2: "every image with its own label",
    3: "a new order each epoch, the same under the same seed",
    4: "shape, dtype and colours as stated",
    5: "two epochs from two passes, nothing left after an early stop",
    6: "memory grows neither with files nor with epochs",
    7: "a broken file is named",
}
_FILES, _MANY, _BATCH_SIZE = 30, 10, 8  # 30 files: the last batch is a partial one
_IMAGE_SIZE = (96, 128)  # height and width differ, so that swapping them shows
_MEMORY_IMAGE_SIZE = (224, 224)
_FILES_GROWTH_MIB_PER_1000 = 48  # an image kept costs 147
_EPOCH_GROWTH_MIB = 2.5  # an epoch kept costs 4.4
_EPOCHS = 8
_EARLY_STOPS = 6
_SETTLE_S = 3.0
_TIMEOUT_S = 180
_THUMBNAIL = 12


@dataclass(frozen=True)
class Promise:
    """One promise: its number, whether it is kept, and what was found."""

    number: int
    kept: bool
    found: str

    def __str__(self) -> str:
        found = f" ({self.found})" if self.found else ""
        return f"{self.number} {'kept  ' if self.kept else 'BROKEN'} {PROMISES[self.number]}{found}"


@dataclass(frozen=True)
class ContractReport:
    """What `check_pipeline` found: one `Promise` each, in order."""

    name: str
    promises: tuple[Promise, ...]

    @property
    def ok(self) -> bool:
        """Whether all promises are kept."""
        return all(promise.kept for promise in self.promises)

    @property
    def broken(self) -> tuple[int, ...]:
        """The numbers of the promises that are not kept."""
        return tuple(promise.number for promise in self.promises if not promise.kept)

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.name}: {sum(p.kept for p in self.promises)} of {len(self.promises)} promises kept"]
            + [f"  {promise}" for promise in self.promises]
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{promise.number}</td><td>{'kept' if promise.kept else '<b>BROKEN</b>'}</td>"
            f"<td style='text-align:left'>{PROMISES[promise.number]}</td>"
            f"<td style='text-align:left'>{html.escape(promise.found)}</td></tr>"
            for promise in self.promises
        )
        return f"<table><caption><b>{html.escape(self.name)}</b></caption>{rows}</table>"


def check_pipeline(
    pipeline: Callable, files: ImageFiles, *, tolerance: float = 2.0, timeout: float = _TIMEOUT_S
) -> ContractReport:
    """Check the seven promises of a pipeline.

    Parameters
    ----------
    pipeline : callable
        ``pipeline(files, *, image_size, batch_size, shuffle, seed, channels) -> batches``.
    files : ImageFiles
        At least 20 images; 30 of them, spread over the list, are used.
    tolerance : float
        Largest allowed mean difference to `images.read_image`, in levels of 255. Two correct decoders differ by about
        one; a decoder that reads fewer pixels states its own.
    timeout : float
        In seconds, for each child process. A pipeline that hangs breaks the promises of its group.

    Returns
    -------
    ContractReport
    """
    if len(files) < 20:
        raise ValueError(f"{len(files)} files are too few to tell one order from another: give at least 20")
    files = files.take(min(_FILES, len(files)))
    content = run(_content, pipeline, files, tolerance, timeout=timeout)
    stops = run(_early_stops, pipeline, files, timeout=timeout)
    few = run(_memory_of_epochs, pipeline, files, 1, timeout=timeout)
    many = run(_memory_of_epochs, pipeline, files.repeat_to(_MANY * len(files)), 1, timeout=timeout)
    epochs = run(_memory_of_epochs, pipeline, files, _EPOCHS, timeout=timeout)
    promises = [
        *_judge_content(content, stops, files),
        _judge_stops(content, stops, files),
        _judge_memory(few, many, epochs, len(files)),
        _judge_broken(pipeline, files, timeout),
    ]
    return ContractReport(pipeline_name(pipeline), tuple(promises))


# ---- promises 1 to 4: what comes ------------------------------------------------------------------------------------


def _content(pipeline: Callable, files: ImageFiles, tolerance: float) -> dict:
    """Collect epochs as lists of (file numbers, label) and all that is wrong with the arrays."""
    pipeline = loaded(pipeline)
    known = _Reference(files)
    wrong: list[str] = []
    settings = {"image_size": _IMAGE_SIZE, "batch_size": _BATCH_SIZE}

    def epoch(batches: Iterable) -> list[tuple[int, int]]:
        seen = []
        for images, labels in batches:
            images, labels = np.asarray(images), np.asarray(labels)
            if fault := _array_fault(images, labels):
                wrong.append(fault)
                if images.ndim != 4 or images.shape[1:] != (*_IMAGE_SIZE, 3):
                    raise ValueError(f"promise 4: {fault}")
            numbers, faults = known.identify(images, tolerance)
            wrong.extend(faults)
            seen += zip(numbers, (int(label) for label in labels), strict=False)
        return seen

    shuffled = pipeline(files, **settings, shuffle=True, seed=0)
    return {
        "first": epoch(shuffled),
        "second": epoch(shuffled),
        "again": epoch(pipeline(files, **settings, shuffle=True, seed=0)),
        "other_seed": epoch(pipeline(files, **settings, shuffle=True, seed=1)),
        "unshuffled": epoch(pipeline(files, **settings, shuffle=False, seed=0)),
        "same": known.same,
        "wrong": wrong,
    }


def _array_fault(images: np.ndarray, labels: np.ndarray) -> str | None:
    if images.ndim != 4 or images.shape[1:] != (*_IMAGE_SIZE, 3):
        return f"images of shape {images.shape}, not (n, {_IMAGE_SIZE[0]}, {_IMAGE_SIZE[1]}, 3)"
    if images.dtype != np.uint8:
        return f"images are {images.dtype}, not uint8"
    if labels.shape != (len(images),):
        return f"{len(images)} images but labels of shape {labels.shape}"
    if labels.dtype != np.int64:
        return f"labels are {labels.dtype}, not int64"
    if len(images) > _BATCH_SIZE:
        return f"a batch of {len(images)}, batch_size was {_BATCH_SIZE}"
    return None


class _Reference:
    """Recognises which file an image came from by its pixels."""

    def __init__(self, files: ImageFiles):
        self.images = np.stack([read_image(path, image_size=_IMAGE_SIZE) for path in files.paths])
        self.thumbnails = _thumbnails(self.images)
        # Files with the same pixels cannot be told apart: all count as the first of them.
        first: dict[bytes, int] = {}
        self.same = [first.setdefault(image.tobytes(), number) for number, image in enumerate(self.images)]

    def identify(self, images: np.ndarray, tolerance: float) -> tuple[list[int], list[str]]:
        """Return the number of the nearest file for each image, and what is wrong with its pixels."""
        numbers, faults = [], []
        for image, thumbnail in zip(images, _thumbnails(images), strict=True):
            as_is = np.abs(self.thumbnails - thumbnail).mean(axis=(1, 2, 3))
            swapped = np.abs(self.thumbnails - thumbnail[:, :, ::-1]).mean(axis=(1, 2, 3))
            number = int(np.minimum(as_is, swapped).argmin())
            numbers.append(self.same[number])
            reference = self.images[number].astype(np.float32)
            difference = np.abs(image.astype(np.float32) - reference).mean()
            if difference > tolerance:
                reversed_difference = np.abs(image[:, :, ::-1].astype(np.float32) - reference).mean()
                hint = ": the channels are BGR, not RGB" if reversed_difference < min(tolerance, difference) else ""
                faults.append(f"pixels {difference:.1f} levels of 255 from the reference, {tolerance:g} allowed{hint}")
        return numbers, faults


def _thumbnails(images: np.ndarray) -> np.ndarray:
    height, width = (size // _THUMBNAIL * _THUMBNAIL for size in images.shape[1:3])
    blocks = images[:, :height, :width].astype(np.float32)
    blocks = blocks.reshape(len(images), _THUMBNAIL, height // _THUMBNAIL, _THUMBNAIL, width // _THUMBNAIL, 3)
    return blocks.mean(axis=(2, 4))


def _judge_content(content: ChildResult, stops: ChildResult, files: ImageFiles) -> list[Promise]:
    if content.outcome != "finished":
        found = f"{content.outcome}: {content.error}"
        return [Promise(number, False, found) for number in (1, 2, 3, 4)]
    value = content.value
    same = value["same"]
    expected = Counter(same)
    labels_of: dict[int, Counter] = {}
    for number, label in zip(same, files.labels.tolist(), strict=True):
        labels_of.setdefault(number, Counter())[label] += 1
    once = labels = ""
    for name in ("first", "second", "unshuffled"):
        seen = Counter(number for number, _ in value[name])
        if seen != expected and not once:
            missing, extra = (expected - seen).total(), (seen - expected).total()
            once = f"{name} epoch: {missing} of {len(files)} missing, {extra} too many"
        wrong = [(n, label) for n, label in value[name] if label not in labels_of[n]]
        labels = labels or (f"{len(wrong)} of {len(value[name])} with another label" if wrong else "")
    return [
        Promise(1, not once, once),
        Promise(2, not labels, labels),
        _judge_order(value, stops, same),
        Promise(4, not value["wrong"], value["wrong"][0] if value["wrong"] else ""),
    ]


def _judge_order(value: dict, stops: ChildResult, same: list[int]) -> Promise:
    orders = {name: [number for number, _ in value[name]] for name in ("first", "second", "again", "other_seed")}
    faults = []
    if orders["first"] == orders["second"]:
        faults.append("both epochs have the same order")
    if orders["first"] != orders["again"]:
        faults.append("the same seed gave another order")
    if orders["first"] == orders["other_seed"]:
        faults.append("another seed gave the same order")
    if [number for number, _ in value["unshuffled"]] != same:
        faults.append("shuffle=False does not keep the files' order")
    if stops.outcome == "finished" and stops.value["labels"] != [label for _, label in value["first"]]:
        faults.append("the same seed gave another order in another process")
    return Promise(3, not faults, "; ".join(faults))


# ---- promise 5: what stays -------------------------------------------------------------------------------------------


def _early_stops(pipeline: Callable, files: ImageFiles) -> dict:
    """Stop early again and again; count threads, processes and open files before and after."""
    pipeline = loaded(pipeline)
    settings = {"image_size": _IMAGE_SIZE, "batch_size": _BATCH_SIZE, "shuffle": True, "seed": 0}
    labels = [int(label) for _, batch in pipeline(files, **settings) for label in np.asarray(batch)]

    def stop_early() -> None:
        iterator = iter(pipeline(files, **settings))
        next(iterator)
        del iterator
        gc.collect()

    stop_early()  # a framework's own pools are made once and stay
    before = _left(settle_to=None)
    for _ in range(_EARLY_STOPS):
        stop_early()
    return {"before": before, "after": _left(settle_to=before), "labels": labels}


def _left(settle_to: dict | None) -> dict:
    """Count what is there; wait a while for what is just ending."""
    deadline = time.monotonic() + _SETTLE_S
    if settle_to is None:
        time.sleep(_SETTLE_S / 3)
    while True:
        gc.collect()
        process = psutil.Process()
        count = {
            "threads": process.num_threads(),
            "processes": sum(not _is_multiprocessing_helper(child) for child in process.children(recursive=True)),
            "open files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        }
        if settle_to is None or time.monotonic() > deadline or not _more(settle_to, count):
            return count
        time.sleep(0.05)


def _is_multiprocessing_helper(process: psutil.Process) -> bool:
    """Python keeps one process that cleans up shared memory, and one that forks others; they end with us."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return True
    return "resource_tracker" in command or "forkserver" in command


def _more(before: dict, after: dict) -> list[str]:
    # A thread pool may still be growing to its size; what each stop leaves adds up to one per stop.
    faults = [f"{after['processes']} processes still run"] if after["processes"] else []
    for kind in ("threads", "open files"):
        if (more := after[kind] - before[kind]) >= _EARLY_STOPS - 1:
            faults.append(f"{more} {kind} more after {_EARLY_STOPS} early stops")
    return faults


def _judge_stops(content: ChildResult, stops: ChildResult, files: ImageFiles) -> Promise:
    faults = []
    if content.outcome == "finished":
        counts = [len(content.value[name]) for name in ("first", "second")]
        if counts[1] == 0 or counts[0] != counts[1]:
            faults.append(f"{counts[0]} images in the first pass, {counts[1]} in the second")
    if stops.outcome != "finished":
        faults.append(f"{stops.outcome}: {stops.error}")
    else:
        faults += _more(stops.value["before"], stops.value["after"])
    return Promise(5, not faults, "; ".join(faults))


# ---- promise 6: memory ----------------------------------------------------------------------------------------------


def _memory_of_epochs(pipeline: Callable, files: ImageFiles, epochs: int) -> dict:
    """Iterate and return the memory held before, and after each epoch."""
    pipeline = loaded(pipeline)
    before = memory.current().held_mib
    batches = pipeline(files, image_size=_MEMORY_IMAGE_SIZE, batch_size=_BATCH_SIZE, shuffle=True, seed=0)
    held = []
    for _ in range(epochs):
        for _batch in batches:
            pass
        held.append(memory.current().held_mib)
    return {"before": before, "held": held}


def _judge_memory(few: ChildResult, many: ChildResult, epochs: ChildResult, count: int) -> Promise:
    for result in (few, many, epochs):
        if result.outcome != "finished":
            return Promise(6, False, f"{result.outcome}: {result.error}")
    above = [result.peak_mib - result.value["before"] for result in (few, many)]
    per_1000 = 1000 * (above[1] - above[0]) / ((_MANY - 1) * count)
    held = epochs.value["held"][1:]  # the first epoch fills buffers
    per_epoch = float(np.polyfit(range(len(held)), held, 1)[0])
    faults = []
    if per_1000 > _FILES_GROWTH_MIB_PER_1000:
        faults.append(f"{per_1000:,.0f} MiB per 1,000 files")
    if per_epoch > _EPOCH_GROWTH_MIB:
        faults.append(f"{per_epoch:,.1f} MiB per epoch of {count} files")
    return Promise(6, not faults, "; ".join(faults))


# ---- promise 7: broken files ----------------------------------------------------------------------------------------


def _judge_broken(pipeline: Callable, files: ImageFiles, timeout: float) -> Promise:
    damages = {"truncated": _truncate, "empty": _empty, "not an image": _replace}
    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        cases = {}
        for kind, damage in damages.items():
            copies = _copy_files(files, Path(folder), kind)
            broken = copies.paths[len(copies) // 2]
            damage(broken)
            cases[kind] = (copies, broken)
        result = run(_read_with_broken, pipeline, cases, timeout=timeout)
    if result.outcome != "finished":
        return Promise(7, False, f"{result.outcome}: {result.error}")
    faults = [f"{kind}: {fault}" for kind, fault in result.value.items() if fault]
    return Promise(7, not faults, "; ".join(faults))


def _read_with_broken(pipeline: Callable, cases: dict[str, tuple[ImageFiles, str]]) -> dict[str, str | None]:
    """Iterate one epoch of each case; return what is wrong with it, if anything."""
    pipeline = loaded(pipeline)
    return {kind: _broken_fault(pipeline, files, broken) for kind, (files, broken) in cases.items()}


def _broken_fault(pipeline: Callable, files: ImageFiles, broken: str) -> str | None:
    """Tell what is wrong; a pipeline that skips files names them in its batches' attribute ``skipped``."""
    try:
        batches = pipeline(files, image_size=_IMAGE_SIZE, batch_size=_BATCH_SIZE, shuffle=False, seed=0)
        images = sum(len(labels) for _, labels in batches)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return None if Path(broken).name in text else f"the error does not name the file: {error}"
    skipped = [os.fspath(path) for path in getattr(batches, "skipped", ())]
    if broken in skipped and images == len(files) - 1:
        return None
    if images == len(files):
        return "delivered as if it were whole"
    return f"{len(files) - images} images missing, {len(skipped)} named in `skipped`"


def _copy_files(files: ImageFiles, folder: Path, kind: str) -> ImageFiles:
    copies = []
    for number, path in enumerate(files.paths):
        copy = folder / f"{kind.replace(' ', '-')}-{number:04d}{Path(path).suffix}"
        shutil.copyfile(path, copy)
        copies.append(str(copy))
    return ImageFiles(tuple(copies), files.labels, files.class_names)


def _truncate(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def _empty(path: str) -> None:
    os.truncate(path, 0)


def _replace(path: str) -> None:
    Path(path).write_bytes(b"<html>404 Not Found</html>" * 100)
