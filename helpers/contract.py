"""Check whether a pipeline keeps the seven promises of the course; each group of promises in a child process.

Called by the lessons after a pipeline is finished, and by the tests for every exported pipeline.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import numpy as np
import psutil

from helpers.accelerators import name_of
from helpers.files import printable
from helpers.folders import ImageFiles
from helpers.measure import measure
from helpers.measurement import Measurement, html_table
from helpers.packing import default_packs_in
from helpers.recognition import Reference, can_be_recognised
from helpers.remote import is_address
from helpers.runs import images_and_labels, loaded, renamed
from helpers.sandbox import ChildResult, Outcome, run

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
_IMAGE_SIZE = (96, 128)  # height and width differ, so that swapping them shows
_MANY_TIMES = 10  # as many files to see memory grow
_GROWTH_MIB_PER_1000_FILES = 48  # an image kept costs 144
_GROWTH_MIB_PER_EPOCH = 4  # an epoch kept, of a quarter of the many files, costs 11
_LOOKS = 3
_FAR_OVER = 2.5  # times a limit; worker processes that come and go do not reach it
_EARLY_STOPS = 6
_SETTLE_S = 2.0
_END_OF_FIT_S = 90.0  # with its start; the end takes a second or two, on a busy machine twenty
_FIT_FAILS, _STATUS = b"the callback ends the program", 71
_TIMEOUT_S = 180
_LONGEST_ERROR = 300

Fault = tuple[int, str]  # the number of the promise that it breaks, and what is wrong


class Promise(NamedTuple):
    """One promise: its number, and what breaks it; an empty text if it is kept."""

    number: int
    found: str = ""

    @property
    def kept(self) -> bool:
        return not self.found

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
        return not self.broken

    @property
    def broken(self) -> tuple[int, ...]:
        """The numbers of the promises that are not kept."""
        return tuple(promise.number for promise in self.promises if not promise.kept)

    def __str__(self) -> str:
        kept = len(self.promises) - len(self.broken)
        return "\n  ".join([f"{self.name}: {kept} of {len(self.promises)} promises kept", *map(str, self.promises)])

    __repr__ = __str__  # in a terminal as in print

    def _repr_html_(self) -> str:
        verdicts = {True: "kept", False: "BROKEN"}
        return html_table(self.name, [(str(n), verdicts[not found], PROMISES[n], found) for n, found in self.promises])


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
        If there are too few different files, one of them cannot be read, or one is an address.
    """
    files = files.take(min(_FILES, len(files)))
    if far := next(filter(is_address, files.paths), None):
        raise ValueError(f"{printable(far)}: an address; give files of this machine, of which copies can be damaged")
    reference = Reference(files, _IMAGE_SIZE)
    if (different := len(set(reference.same))) < _FEWEST_FILES:
        raise ValueError(
            f"{different} different images are too few to tell one order from another: give at least {_FEWEST_FILES}"
        )
    # What a pipeline would keep for later runs is of no use after a check: its lists of files are made for it.
    with tempfile.TemporaryDirectory(prefix="check-") as folder, default_packs_in(folder):
        subject = _Subject(pipeline, files, reference, tolerance, folder)
        content = run(_check_content, subject, timeout=timeout)
        if content.outcome == Outcome.HUNG:
            faults = _unfinished(content, *PROMISES)
        else:
            faults, order = content.value or (_unfinished(content, 1, 2, 3, 4), None)
            subject = subject._replace(first_order=order)
            with ThreadPoolExecutor() as at_once:  # none of these measures time
                others = [at_once.submit(check, subject, timeout) for check in _CHECKS]
            faults += [fault for other in others for fault in other.result()]
    texts = ("; ".join(text for broken, text in faults if broken == number) for number in PROMISES)
    return ContractReport(name_of(pipeline), tuple(map(Promise, PROMISES, texts)))


class _Subject(NamedTuple):
    """What is checked; `first_order` is that of the first epoch, once it is known."""

    pipeline: Callable
    files: ImageFiles
    reference: Reference
    tolerance: float
    folder: str
    first_order: list[int] | None = None

    def batches(self, files: ImageFiles | None = None, *, shuffle: bool = True, seed: int = 0) -> Iterable:
        settings = {"image_size": _IMAGE_SIZE, "batch_size": _BATCH_SIZE, "shuffle": shuffle, "seed": seed}
        return loaded(self.pipeline)(files or self.files, **settings)


def _unfinished(result: ChildResult | Measurement, *promises: int) -> list[Fault]:
    """Tell in one line how a child process ended; of a long error, the beginning and the end."""
    text = " ".join(f"{result.outcome}: {result.error}".split())
    if len(text) > _LONGEST_ERROR:
        text = f"{text[: _LONGEST_ERROR // 2]} … {text[-_LONGEST_ERROR // 2 :]}"
    return [(number, text) for number in promises]


# ---- promises 1 to 4: what comes ------------------------------------------------------------------------------------


def _check_content(subject: _Subject) -> tuple[list[Fault], list[int]]:
    """Return what is wrong with the images and labels of some epochs, and the order of the first."""
    wrong: list[str] = []
    shuffled, again, unshuffled = (subject.batches(shuffle=shuffle) for shuffle in (True, True, False))
    plan = {
        "first": shuffled,
        "second": shuffled,
        "first again": again,
        "second again": again,
        "other seed": subject.batches(seed=1),
        "unshuffled": unshuffled,
        "second unshuffled": unshuffled,
    }
    epochs = {name: _read_epoch(batches, subject, wrong) for name, batches in plan.items()}
    orders = {name: [number for number, _ in seen] for name, seen in epochs.items()}
    same = subject.reference.same
    faults = [(3, fault) for fault in _order_faults(orders, same)] + [(4, fault) for fault in wrong[:1]]
    if not orders["first"]:
        faults.append((1, "the first epoch holds no image"))
    for name in ("first", "second", "unshuffled", "second unshuffled"):
        missing, extra = Counter(same) - Counter(orders[name]), Counter(orders[name]) - Counter(same)
        if orders[name] and (missing or extra):  # an epoch without images breaks promise 5
            faults.append((1, f"{name} epoch: {missing.total()} of {len(same)} missing, {extra.total()} too many"))
            break
    own = set(zip(same, subject.files.labels.tolist(), strict=True))
    for seen in epochs.values():
        if others := sum(one not in own for one in seen):
            faults.append((2, f"{others} of {len(seen)} with another label"))
            break
    count, second = len(orders["first"]), len(orders["second"])
    if second == 0 or count != second:
        faults.append((5, f"{count} images in the first pass, {second} in the second"))
    return faults, orders["first"]


def _read_epoch(batches: Iterable, subject: _Subject, wrong: list[str]) -> list[tuple[int, int | None]]:
    """Return the files' numbers and the labels of an epoch, and add to `wrong` what is wrong with the arrays."""
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
        numbers, faults = subject.reference.identify(images, subject.tolerance)
        wrong += faults
        missing = [None] * (len(images) - len(labels))
        seen += zip(numbers, [*labels[: len(images)].tolist(), *missing], strict=True)
    return seen


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


def _order_faults(orders: dict[str, list[int]], files_order: list[int]) -> Iterator[str]:
    if orders["first"] == orders["second"]:
        yield "both epochs have the same order"
    if (orders["first"], orders["second"]) != (orders["first again"], orders["second again"]):
        yield "the same seed gave another order"
    if orders["first"] == orders["other seed"]:
        yield "another seed gave the same order"
    for name in ("unshuffled", "second unshuffled"):
        # Each file once: promise 1 says already that one came twice.
        given = list(dict.fromkeys(orders[name]))
        if given != [number for number in dict.fromkeys(files_order) if number in given]:
            yield f"shuffle=False does not keep the files' order ({name} epoch)"
            break


# ---- promise 5: what stays -------------------------------------------------------------------------------------------


def _check_early_stops(subject: _Subject) -> list[Fault]:
    """Stop early again and again; count threads, processes and open files before and after."""

    def stop_early() -> Iterable:
        batches = subject.batches()
        iterator = iter(batches)
        next(iterator)
        del iterator
        gc.collect()
        return batches

    def stop_often() -> list[str]:
        before = _count_resources()
        for _ in range(_EARLY_STOPS):
            stop_early()
        deadline = time.monotonic() + _SETTLE_S  # for what is just ending
        while (leaks := _describe_leaks(before, _count_resources())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return leaks

    arrays = [np.asarray(images_and_labels(batch)[0]) for batch in subject.batches()]
    first = subject.first_order
    order = [n for images in arrays if can_be_recognised(images) for n in subject.reference.identify(images, np.inf)[0]]
    faults = [(3, "the same seed gave another order in another process")] if first not in (None, order) else []
    stop_early()  # a framework's own pools are made once and stay
    time.sleep(_SETTLE_S / 3)
    leaks = stop_often() and stop_often()  # in the first round, a thread pool may have been growing to its size
    faults += [(5, leak) for leak in leaks]
    begun_anew = _count_images(stop_early())
    if first is not None and begun_anew != len(first) and not leaks:
        faults.append((5, f"{begun_anew} images in the pass after an early stop, not {len(first)}"))
    return faults


def _check_fit(subject: _Subject, timeout: float) -> list[Fault]:
    """Tell how a program ends after an error in `fit`; nothing where `fit` takes no such batches."""
    code = "import pickle, sys; one = lambda: pickle.load(sys.stdin.buffer); sys.path[:] = one(); one()(*one())"
    given = [cloudpickle.dumps(one) for one in (sys.path, _fail_in_fit, (subject.pipeline, subject.files))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as program:
        try:
            said, _ = program.communicate(b"".join(given), timeout=min(timeout, _END_OF_FIT_S))
            how = f"ends the program with exit status {program.returncode}, not its own"
        except subprocess.TimeoutExpired:
            program.kill()
            said, _ = program.communicate()
            how = "never ends the program; helpers.epochs.end_reading_at_exit() does"
    is_bad = _FIT_FAILS in said and program.returncode != _STATUS
    return [(5, f"an error in fit {how}")] if is_bad else []


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


def _count_resources() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {
        "threads": process.num_threads(),
        "processes": sum(not _is_multiprocessing_helper(child) for child in process.children(recursive=True)),
        "open files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
    }


def _is_multiprocessing_helper(process: psutil.Process) -> bool:
    """Python keeps one process that cleans up shared memory, and one that forks others; they end with us."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return True
    return "resource_tracker" in command or "forkserver" in command


def _describe_leaks(before: dict[str, int], after: dict[str, int]) -> list[str]:
    # What each stop leaves adds up to one per stop; one that came or went meanwhile is nobody's fault.
    faults = [f"{after['processes']} processes still run"] if after["processes"] else []
    for kind in ("threads", "open files"):
        if (more := after[kind] - before[kind]) >= _EARLY_STOPS - 1:
            faults.append(f"{more} {kind} more after {_EARLY_STOPS} early stops")
    return faults


# ---- promise 6: memory ----------------------------------------------------------------------------------------------


def _check_memory(subject: _Subject, timeout: float) -> list[Fault]:
    """Judge the growth that `measure` reports; what is over a limit is looked at again.

    Worker processes that begin and end make the memory of one run differ from that of the next.
    """
    if subject.first_order == []:
        return []  # promise 1 says it
    many = renamed(subject.files, _MANY_TIMES, subject.folder)
    for _ in range(_LOOKS):
        one = measure(subject.pipeline, many, growth=True, batch_size=_BATCH_SIZE, timeout=timeout)
        per_1000, per_epoch = one.growth.mib_per_1000_files, one.growth.mib_per_epoch
        if per_1000 is None:
            return _unfinished(one, 6) if one.error else [(6, "several epochs do not finish")]
        excess = {
            f"{per_1000:,.0f} MiB per 1,000 files": per_1000 / _GROWTH_MIB_PER_1000_FILES,
            f"{per_epoch:,.1f} MiB per epoch of {len(many) // 4} files": per_epoch / _GROWTH_MIB_PER_EPOCH,
        }
        if not 1 < max(excess.values()) <= _FAR_OVER:
            break
    return [(6, text) for text, times in excess.items() if times > 1]


# ---- promise 7: broken files ----------------------------------------------------------------------------------------

_DAMAGES = {
    "truncated": lambda path: os.truncate(path, os.path.getsize(path) // 2),
    "empty": lambda path: os.truncate(path, 0),
    "not an image": lambda path: Path(path).write_bytes(b"<html>404 Not Found</html>" * 100),
}


def _check_broken_files(subject: _Subject) -> list[Fault]:
    """Put a broken file in the middle of the list, iterate, and tell what is wrong."""
    paths, middle, faults = list(subject.files.paths), len(subject.files) // 2, []
    whole = paths[middle]
    for kind, damage in _DAMAGES.items():
        paths[middle] = os.path.join(subject.folder, f"{kind.replace(' ', '-')}{Path(whole).suffix}")
        damage(shutil.copyfile(whole, paths[middle]))
        files = ImageFiles(tuple(paths), subject.files.labels, subject.files.class_names)
        if fault := _broken_fault(subject, files, paths[middle]):
            faults.append((7, f"{kind}: {fault}"))
    return faults


def _broken_fault(subject: _Subject, files: ImageFiles, broken: str) -> str | None:
    """Tell what is wrong; a pipeline that skips files names them in its batches' attribute ``skipped``."""
    try:
        batches = subject.batches(files, shuffle=False)
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


def _in_child(promise: int, check: Callable[[_Subject], list[Fault]], subject: _Subject, timeout: float) -> list[Fault]:
    result = run(check, subject, timeout=timeout)
    return result.value if result.outcome == Outcome.FINISHED else _unfinished(result, promise)


_CHECKS = (  # a check in a child process breaks its promise if it does not finish
    partial(_in_child, 5, _check_early_stops),
    _check_fit,
    _check_memory,
    partial(_in_child, 7, _check_broken_files),
)
