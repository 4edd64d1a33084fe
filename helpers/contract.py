"""Check whether a pipeline keeps the seven promises of the course; each group of promises in a child process.

Called by the lessons after a pipeline is finished, and by the tests for every exported pipeline.
"""

from __future__ import annotations

import gc
import html
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cloudpickle
import numpy as np
import psutil

from helpers.accelerators import name_of
from helpers.folders import ImageFiles
from helpers.measurement import mib_per_1000_files
from helpers.packing import default_packs_in
from helpers.recognition import Reference, can_be_recognised
from helpers.runs import images_and_labels, loaded, renamed, settled_mib
from helpers.sandbox import ChildResult, Outcome, memory, run

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
_FILES, _BATCH_SIZE = 30, 8  # 30 files: the last batch is a partial one
_FEWEST_FILES = 20  # two random orders of so many are never the same
_MANY, _VERY_MANY = 10, 50  # times as many files
_EPOCHS, _MORE_EPOCHS = 10, 30
_IMAGE_SIZE = (96, 128)  # height and width differ, so that swapping them shows
_MEMORY_IMAGE_SIZE = (224, 224)
_FILES_GROWTH_MIB_PER_1000 = 48  # an image kept costs 147
_EPOCH_GROWTH_MIB = 2.5  # an epoch kept costs 4.4
_MORE_LOOKS = 3
_FAR_OVER = 2.5  # times a limit; worker processes that come and go do not reach it further out
_EARLY_STOPS = 6
_SETTLE_S = 2.0
_END_OF_FIT_S = 60.0  # it takes one or two, on a busy machine twenty
_FIT_FAILS, _STATUS = b"the callback ends the program", 71
_TIMEOUT_S = 180
_LONGEST_ERROR = 300


@dataclass(frozen=True)
class Promise:
    """One promise: its number, whether it is kept, and what was found."""

    number: int
    kept: bool
    found: str

    def __str__(self) -> str:
        found = f" ({self.found})" if self.found else ""
        return f"{self.number} {'kept  ' if self.kept else 'BROKEN'} {PROMISES[self.number]}{found}"


@dataclass(frozen=True, repr=False)
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

    __repr__ = __str__  # in a terminal as in print

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
        In seconds, for each child process. A pipeline that hangs breaks the promises of its group; after one that hangs
        in its first epochs, nothing more is tried.

    Returns
    -------
    ContractReport

    Raises
    ------
    ValueError
        If there are too few different files, or one of them cannot be read.
    """
    files = files.take(min(_FILES, len(files)))
    reference = Reference(files, _IMAGE_SIZE)
    if (different := len(set(reference.same))) < _FEWEST_FILES:
        raise ValueError(
            f"{different} different images are too few to tell one order from another: give at least {_FEWEST_FILES}"
        )
    # What a pipeline would keep for later runs is of no use after a check: its lists of files are made for it.
    with tempfile.TemporaryDirectory(prefix="check-") as folder, default_packs_in(folder):
        return ContractReport(name_of(pipeline), _promises(pipeline, files, reference, tolerance, timeout))


def _promises(
    pipeline: Callable, files: ImageFiles, reference: Reference, tolerance: float, timeout: float
) -> tuple[Promise, ...]:
    content = run(_content, pipeline, files, reference, tolerance, timeout=timeout)
    if content.outcome == Outcome.HUNG:
        found = _unfinished(content)
        return tuple(Promise(number, False, found) for number in PROMISES)
    with ThreadPoolExecutor() as at_once:  # none of these measures time
        stopping = at_once.submit(run, _early_stops, pipeline, files, reference, timeout=timeout)
        memory_kept = at_once.submit(_judge_memory, pipeline, files, timeout)
        broken = at_once.submit(_judge_broken, pipeline, files, timeout)
        stops = stopping.result()
    return (
        *_judge_content(content, stops, reference, files),
        _judge_stops(content, stops, files),
        memory_kept.result(),
        broken.result(),
    )


def _unfinished(result: ChildResult) -> str:
    """Return how a child process ended, on one line; of a long error, the beginning and the end."""
    text = " ".join(f"{result.outcome}: {result.error}".split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR // 2]} … {text[-_LONGEST_ERROR // 2 :]}"


# ---- promises 1 to 4: what comes ------------------------------------------------------------------------------------


def _content(pipeline: Callable, files: ImageFiles, reference: Reference, tolerance: float) -> dict:
    """Collect epochs as lists of (file number, label) and all that is wrong with the arrays."""
    pipeline = loaded(pipeline)
    wrong: list[str] = []

    def epoch(batches: Iterable) -> list[tuple[int, int | None]]:
        seen, short_batch = [], None
        for batch in batches:
            images, labels = (np.asarray(part) for part in images_and_labels(batch))
            if short_batch is not None:
                wrong.append(f"a batch of {short_batch} before the last, batch_size was {_BATCH_SIZE}")
            short_batch = len(images) if len(images) < _BATCH_SIZE else None
            if fault := _array_fault(images, labels):
                wrong.append(fault)
                if not can_be_recognised(images) or labels.ndim != 1:
                    raise ValueError(fault)
            numbers, faults = reference.identify(images, tolerance)
            wrong.extend(faults)
            missing = [None] * (len(images) - len(labels))
            seen += zip(numbers, [int(label) for label in labels[: len(images)]] + missing, strict=True)
        return seen

    def built(shuffle: bool, seed: int) -> Iterable:
        return pipeline(files, image_size=_IMAGE_SIZE, batch_size=_BATCH_SIZE, shuffle=shuffle, seed=seed)

    shuffled, again, unshuffled = built(True, 0), built(True, 0), built(False, 0)
    return {
        "first": epoch(shuffled),
        "second": epoch(shuffled),
        "first again": epoch(again),
        "second again": epoch(again),
        "other seed": epoch(built(True, 1)),
        "unshuffled": epoch(unshuffled),
        "second unshuffled": epoch(unshuffled),
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


def _judge_content(content: ChildResult, stops: ChildResult, reference: Reference, files: ImageFiles) -> list[Promise]:
    if content.outcome != Outcome.FINISHED:
        found = _unfinished(content)
        return [Promise(number, False, found) for number in (1, 2, 3, 4)]
    value = content.value
    expected = Counter(reference.same)
    labels_of: dict[int, set] = {}
    for number, label in zip(reference.same, files.labels.tolist(), strict=True):
        labels_of.setdefault(number, set()).add(label)
    once = labels = ""
    for name in ("first", "second", "unshuffled", "second unshuffled"):
        seen = Counter(number for number, _ in value[name])
        if seen and seen != expected and not once:  # an epoch without images breaks promise 5
            missing, extra = (expected - seen).total(), (seen - expected).total()
            once = f"{name} epoch: {missing} of {len(files)} missing, {extra} too many"
        wrong = [label for number, label in value[name] if label not in labels_of[number]]
        labels = labels or (f"{len(wrong)} of {len(value[name])} with another label" if wrong else "")
    if not value["first"]:
        once = "the first epoch holds no image"
    return [
        Promise(1, not once, once),
        Promise(2, not labels, labels),
        _judge_order(value, stops, reference),
        Promise(4, not value["wrong"], value["wrong"][0] if value["wrong"] else ""),
    ]


def _judge_order(value: dict, stops: ChildResult, reference: Reference) -> Promise:
    orders = {name: [number for number, _ in seen] for name, seen in value.items() if name != "wrong"}
    faults = []
    if orders["first"] == orders["second"]:
        faults.append("both epochs have the same order")
    if (orders["first"], orders["second"]) != (orders["first again"], orders["second again"]):
        faults.append("the same seed gave another order")
    if orders["first"] == orders["other seed"]:
        faults.append("another seed gave the same order")
    for name in ("unshuffled", "second unshuffled"):
        # Each file once: promise 1 says already that one came twice.
        given = list(dict.fromkeys(orders[name]))
        if given != [number for number in dict.fromkeys(reference.same) if number in given]:
            faults.append(f"shuffle=False does not keep the files' order ({name} epoch)")
            break
    if stops.outcome == Outcome.FINISHED and stops.value["order"] != orders["first"]:
        faults.append("the same seed gave another order in another process")
    return Promise(3, not faults, "; ".join(faults))


# ---- promise 5: what stays -------------------------------------------------------------------------------------------


def _early_stops(pipeline: Callable, files: ImageFiles, reference: Reference) -> dict:
    """Stop early again and again; count threads, processes and open files before and after."""
    pipeline = loaded(pipeline)

    def built() -> Iterable:
        return pipeline(files, image_size=_IMAGE_SIZE, batch_size=_BATCH_SIZE, shuffle=True, seed=0)

    def stop_early(batches: Iterable) -> Iterable:
        iterator = iter(batches)
        next(iterator)
        del iterator
        gc.collect()
        return batches

    def left_by_stops(before: dict) -> dict:
        for _ in range(_EARLY_STOPS):
            stop_early(built())
        return _left(settle_to=before)

    order = _order(built(), reference)
    stop_early(built())  # a framework's own pools are made once and stay
    before = _left(settle_to=None)
    after = left_by_stops(before)
    if _more(before, after):  # a thread pool may have been growing to its size: then it stays so now
        before, after = after, left_by_stops(after)
    begun_anew = _count_images(stop_early(built()))
    fit = _end_of_fit(pipeline, files)
    return {"before": before, "after": after, "order": order, "begun_anew": begun_anew, "fit": fit}


def _end_of_fit(pipeline: Callable, files: ImageFiles) -> str:
    """Tell how a program ends badly after an error in `fit`; "" where it does not, or `fit` takes no such batches."""
    code = "import pickle, sys; one = lambda: pickle.load(sys.stdin.buffer); sys.path[:] = one(); one()(*one())"
    given = pickle.dumps(sys.path) + cloudpickle.dumps(_fail_in_fit) + cloudpickle.dumps((pipeline, files))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as program:
        try:
            program.stdin.write(given)
            program.stdin.close()
            was_trained = any(_FIT_FAILS in line for line in program.stdout)
            status = program.wait(_END_OF_FIT_S)
            if not was_trained or status == _STATUS:
                return ""
            return f"an error in fit ends the program with exit status {status}, not its own"
        except subprocess.TimeoutExpired:
            return "after an error in fit the program never ends; helpers.epochs.end_reading_at_exit() lets it end"
        finally:
            program.kill()


def _fail_in_fit(pipeline: Callable, files: ImageFiles) -> None:
    import keras

    def fail(batch: int, logs: dict) -> None:
        if batch == 2:
            print(_FIT_FAILS.decode(), flush=True)
            sys.exit(_STATUS)  # the kind of error that a status shows

    files = files.repeat_to(10 * len(files))  # so that it is still reading
    batches = loaded(pipeline)(files, image_size=_IMAGE_SIZE, batch_size=_BATCH_SIZE, shuffle=True, seed=0)
    model = keras.Sequential([keras.Input((*_IMAGE_SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    vars(sys.modules["__main__"]).update(model=model, batches=batches)  # as in a program, which keeps them to its end
    model.fit(batches, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=fail)])


def _count_images(batches: Iterable) -> int:
    return sum(len(images_and_labels(batch)[0]) for batch in batches)


def _order(batches: Iterable, reference: Reference) -> list[int]:
    """Return the file numbers of an epoch; those of images that cannot be recognised are left out."""
    order = []
    for batch in batches:
        images = np.asarray(images_and_labels(batch)[0])
        if can_be_recognised(images):
            order += reference.identify(images, np.inf)[0]
    return order


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
    # What each stop leaves adds up to one per stop; one that came or went meanwhile is nobody's fault.
    faults = [f"{after['processes']} processes still run"] if after["processes"] else []
    for kind in ("threads", "open files"):
        if (more := after[kind] - before[kind]) >= _EARLY_STOPS - 1:
            faults.append(f"{more} {kind} more after {_EARLY_STOPS} early stops")
    return faults


def _judge_stops(content: ChildResult, stops: ChildResult, files: ImageFiles) -> Promise:
    faults, count = [], None
    if content.outcome == Outcome.FINISHED:
        count, second = (len(content.value[name]) for name in ("first", "second"))
        if second == 0 or count != second:
            faults.append(f"{count} images in the first pass, {second} in the second")
    if stops.outcome != Outcome.FINISHED:
        faults.append(_unfinished(stops))
    else:
        faults += _more(stops.value["before"], stops.value["after"])
        faults += [stops.value["fit"]] if stops.value["fit"] else []
        if count is not None and not faults and stops.value["begun_anew"] != count:
            faults.append(f"{stops.value['begun_anew']} images in the pass after an early stop, not {count}")
    return Promise(5, not faults, "; ".join(faults))


# ---- promise 6: memory ----------------------------------------------------------------------------------------------
# Buffers, thread pools and the allocator's arenas fill up with the first images, the more cores the longer. So what
# looks like growth is looked at again further out, where only growth is left; and not once only, because worker
# processes that begin and end make the memory of one run differ from that of the next.


def _memory_of_epochs(pipeline: Callable, files: ImageFiles, epochs: int) -> dict:
    """Iterate and return the memory held before, and after each epoch."""
    pipeline = loaded(pipeline)
    before = memory.current().held_mib
    batches = pipeline(files, image_size=_MEMORY_IMAGE_SIZE, batch_size=_BATCH_SIZE, shuffle=True, seed=0)
    held = []
    for _ in range(epochs):
        for _batch in batches:
            pass
        held.append(settled_mib())
    return {"before": before, "held": held}


def _judge_memory(pipeline: Callable, files: ImageFiles, timeout: float) -> Promise:
    def held(files: ImageFiles, epochs: int) -> ChildResult:
        result = run(_memory_of_epochs, pipeline, files, epochs, timeout=timeout)
        if result.outcome != Outcome.FINISHED:
            raise _DidNotFinish(_unfinished(result))
        return result

    try:
        few = held(files, _EPOCHS)
        per_epoch = _confirmed(
            _growth_per_epoch(few), _EPOCH_GROWTH_MIB, lambda: _growth_per_epoch(held(files, _MORE_EPOCHS))
        )
        with tempfile.TemporaryDirectory(prefix="contract-") as folder:
            more = cache(lambda times: renamed(files, times, tempfile.mkdtemp(dir=folder)))
            rest = (_VERY_MANY - _MANY) * len(files)
            per_1000 = _growth_per_1000(few, held(more(_MANY), 1), (_MANY - 1) * len(files))
            per_1000 = _confirmed(
                per_1000,
                _FILES_GROWTH_MIB_PER_1000,
                lambda: _growth_per_1000(held(more(_MANY), 1), held(more(_VERY_MANY), 1), rest),
            )
    except _DidNotFinish as unfinished:
        return Promise(6, False, str(unfinished))
    faults = []
    if per_1000 > _FILES_GROWTH_MIB_PER_1000:
        faults.append(f"{per_1000:,.0f} MiB per 1,000 files")
    if per_epoch > _EPOCH_GROWTH_MIB:
        faults.append(f"{per_epoch:,.1f} MiB per epoch of {len(files)} files")
    return Promise(6, not faults, "; ".join(faults))


def _confirmed(growth: float, limit: float, look_again: Callable[[], float]) -> float:
    """Return a growth; one over the limit only if more looks confirm it: three that are over it, or one far over it."""
    for _ in range(_MORE_LOOKS):
        if growth <= limit:
            break
        growth = look_again()
        if growth > _FAR_OVER * limit:
            break
    return growth


class _DidNotFinish(Exception):
    """A child process that had another outcome."""


def _growth_per_epoch(result: ChildResult) -> float:
    """Return how the floor of the memory held rises from the middle third of the epochs to the last, in MiB per epoch.

    Worker processes that begin and end move the memory up and down by several times their epoch's images, so that a
    line fitted through it has a slope by chance; what is never given back raises even the lowest point.
    """
    held = result.value["held"]
    third = len(held) // 3
    return (min(held[-third:]) - min(held[-2 * third : -third])) / third


def _growth_per_1000(few: ChildResult, many: ChildResult, files_more: int) -> float:
    """Return how the peak above the start grows from one run to another, in MiB per 1,000 files."""
    return mib_per_1000_files(*(result.peak_mib - result.value["before"] for result in (few, many)), files_more)


# ---- promise 7: broken files ----------------------------------------------------------------------------------------


def _judge_broken(pipeline: Callable, files: ImageFiles, timeout: float) -> Promise:
    damages = {
        "truncated": lambda path: os.truncate(path, os.path.getsize(path) // 2),
        "empty": lambda path: os.truncate(path, 0),
        "not an image": lambda path: Path(path).write_bytes(b"<html>404 Not Found</html>" * 100),
    }
    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        cases = {}
        for kind, damage in damages.items():
            copies = _copy_files(files, Path(folder), kind)
            broken = copies.paths[len(copies) // 2]
            damage(broken)
            cases[kind] = (copies, broken)
        result = run(_read_with_broken, pipeline, cases, timeout=timeout)
    if result.outcome != Outcome.FINISHED:
        return Promise(7, False, _unfinished(result))
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
        images = _count_images(batches)
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
    names = [f"{kind.replace(' ', '-')}-{number:04d}{Path(path).suffix}" for number, path in enumerate(files.paths)]
    copies = [str(shutil.copyfile(path, folder / name)) for path, name in zip(files.paths, names, strict=True)]
    return ImageFiles(tuple(copies), files.labels, files.class_names)
