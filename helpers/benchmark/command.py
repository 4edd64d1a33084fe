"""Measure every pipeline of the course on a folder of images, and say which one to use.

    python -m helpers.benchmark FOLDER        your images; without FOLDER the course's own

FOLDER holds one folder of images for each class, or images and a CSV file of their classes, or just images. Each
pipeline runs in processes of its own, within one memory budget, alone and beside an accelerator. A pipeline that runs
out of memory is a result, not a failure. The outcome is a table, an HTML page, and advice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from helpers import scoreboard
from helpers.accelerators import EmulatedAccelerator, KerasAccelerator
from helpers.benchmark.advice import Advice, advise
from helpers.benchmark.rates import Limits, find_limits
from helpers.benchmark.report import html_report
from helpers.files import ExitStatus, free_bytes, locked, printable, write_whole
from helpers.folders import ImageFiles, course_images, find_images, find_labelled_images, find_unlabelled_images
from helpers.gpu import gpus
from helpers.measure import Trial
from helpers.measurement import Measurement
from helpers.packing import default_packs_in
from helpers.pipelines import PIPELINES
from helpers.plots import scoreboard_by_pipeline
from helpers.sandbox import ChildError, memory

__all__ = ["Settings", "list_images", "main"]

# An A100 takes 400 images in 0.435 s when it trains ResNet-50: the figure of MLPerf Storage for that model.
A100_IMAGES_PER_S = 400 / 0.435
_ROOT = Path(__file__).resolve().parents[2]
_DATA, _RESULTS = _ROOT / "data", _ROOT / "results"
_MOST_BROKEN_SHOWN = 10
_START_S = 6.0  # of a process that imports TensorFlow, until the first round has shown it


@dataclass(frozen=True)
class Settings:
    """What is measured, and how; see `--help`."""

    pipelines: tuple[str, ...] = tuple(PIPELINES)
    image_size: tuple[int, int] = (224, 224)
    batch_size: int = 32
    budget_mib: float | None = None
    accelerator: object | None = None
    repeats: int = 2
    timeout_s: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """What a run of the benchmark found."""

    measurements: list[Measurement]
    limits: Limits
    advice: Advice
    all_images: int
    budget_mib: float
    interrupted: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns
    -------
    int
        0; 1 if a pipeline raised, hung or died; 2 for images or arguments that make no sense; 130 for Ctrl-C, after
        what was measured until then has been shown.
    """
    options = _parse(arguments)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is unfinished is cleared up
    try:
        files, call = _listed(options)
        settings = _settings(options)
        with _workplace() as folder:
            outcome = run_benchmark(files, settings, folder, max_images=options.max_images, tell=_tell)
    except ChildError as error:  # a file crashed a decoder, hung it, or filled the memory
        found = printable(str(error).partition("\n")[0])
        print(f"benchmark: looking at the images: {found}; check_images.py names the file", file=sys.stderr)
        return ExitStatus.CANNOT
    except (ValueError, OSError) as error:
        print(f"benchmark: {printable(str(error))}", file=sys.stderr)
        return ExitStatus.CANNOT
    except KeyboardInterrupt:
        print("benchmark: stopped before anything was measured", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _show(outcome)
    try:
        _keep(outcome, options, settings, call)
    except OSError as error:  # a full disk, or a folder that is not there
        print(f"benchmark: not everything was written: {printable(str(error))}", file=sys.stderr)
        return ExitStatus.CANNOT
    if outcome.interrupted:
        return 130
    failed = any(one.outcome not in ("finished", "out of memory") for one in outcome.measurements)
    return ExitStatus.FOUND if failed else ExitStatus.FINE


# ---- what to measure -------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0; 1 if a pipeline raised, hung or died; 2 for images or arguments that make no sense.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="the images; by default the course's own")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="classes of the images, where no folders give them")
    parser.add_argument("--label-column", metavar="NAME", help="the column of the classes, where that is not clear")
    parser.add_argument(
        "--pipelines", type=_names, default=tuple(PIPELINES), metavar="A,B", help=f"of {', '.join(PIPELINES)}"
    )
    parser.add_argument("--batch-size", type=_positive_int, default=32, metavar="N")
    parser.add_argument("--image-size", type=_size, default=(224, 224), metavar="N", help="224, or 240x320")
    parser.add_argument("--memory-budget", type=_positive, metavar="MIB", help="by default 80 %% of what is free now")
    parser.add_argument(
        "--accelerator",
        type=_accelerator,
        default="default",
        metavar="real|emulated:RATE|none",
        help="a small Keras model on this machine, or one that takes RATE images/s and uses no CPU; by default the"
        f" first where there is a GPU, else emulated:{A100_IMAGES_PER_S:.0f}, an A100 that trains ResNet-50",
    )
    parser.add_argument("--repeats", type=_positive_int, default=2, metavar="N", help="rounds; the median counts")
    parser.add_argument("--max-images", type=_positive_int, metavar="N", help="measure a part; by default 2,000")
    parser.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="of each run, in seconds")
    parser.add_argument("--report", type=Path, metavar="HTML", help="the page; by default in results/local")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures; - for standard output")
    parser.add_argument("--record", type=Path, metavar="JSONL", help="append the rows to this file instead")
    parser.add_argument(
        "--reference",
        action="store_true",
        help="make this machine's file and picture in results/ anew, to be committed",
    )
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in PIPELINES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or text!r}: give names of {', '.join(PIPELINES)}")
    return tuple(name for name in PIPELINES if name in names)


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 224, or height x width as 240x320")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _positive_int(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above zero")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above zero")
    return value


def _accelerator(text: str) -> object | None:
    kind, _, rate = text.partition(":")
    if kind == "default":
        return KerasAccelerator() if gpus() else EmulatedAccelerator(A100_IMAGES_PER_S)
    if text in ("real", "none"):
        return KerasAccelerator() if text == "real" else None
    if kind != "emulated":
        raise argparse.ArgumentTypeError(f"{text!r}: give real, none, or emulated:RATE with RATE in images/s")
    return EmulatedAccelerator(_positive(rate or "0"))


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        options.pipelines,
        options.image_size,
        options.batch_size,
        options.memory_budget,
        options.accelerator,
        options.repeats,
        options.timeout,
    )


def _listed(options: argparse.Namespace) -> tuple[ImageFiles, str]:
    if options.folder is None:
        return course_images(), "course_images()"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files, call = list_images(options.folder, options.labels, label_column=options.label_column)
    for warning in caught:
        _tell(str(warning.message))
    return files, call


def list_images(folder: Path, labels: Path | None = None, *, label_column: str | None = None) -> tuple[ImageFiles, str]:
    """List a folder of images as it is in life: class folders, a CSV file of classes, or neither.

    Parameters
    ----------
    folder : path
    labels : path, optional
        A CSV file; by default the only one in the folder, where there are no class folders.
    label_column : str, optional
        As for `folders.find_labelled_images`.

    Returns
    -------
    ImageFiles, str
        The list, and the call of `helpers.images` that gives it.

    Raises
    ------
    OSError, ValueError
        As `folders.find_images` and `folders.find_labelled_images` do.
    """
    if labels is None:
        try:
            files = find_images(folder)
        except ValueError:  # images, and no class folders
            files = None
        tables = sorted(folder.glob("*.csv"))
        if len(tables) == 1 and (files is None or len(files.class_names) == 1):
            labels = tables[0]
        elif files is not None:
            return files, f"find_images({printable(folder)!r})"
        else:
            return find_unlabelled_images(folder), f"find_unlabelled_images({printable(folder)!r})"
    column = f", label_column={label_column!r}" if label_column else ""
    call = f"find_labelled_images({printable(folder)!r}, {printable(labels)!r}{column})"
    return find_labelled_images(folder, labels, label_column=label_column), call


# ---- measuring -------------------------------------------------------------------------------------------------------


def run_benchmark(
    files: ImageFiles,
    settings: Settings,
    folder: Path,
    *,
    max_images: int | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Outcome:
    """Look at the images, let the pipelines take turns, and draw a conclusion.

    Parameters
    ----------
    folder : path
        For packed images, 150 kB each at 224×224; emptied after each round.
    max_images : int, optional
        Measure so many, spread evenly over the list; by default 2,000.
    tell : callable
        Given a line of progress now and then.

    Raises
    ------
    ValueError
        If no image can be decoded.
    KeyboardInterrupt
        If it comes before any pipeline was measured; later ones end the measuring and are noted.
    """
    some = files.take(min(len(files), max_images or 2000))
    budget_mib = settings.budget_mib or round(0.8 * memory.available_mib())
    tell(f"looking at {len(some):,} of {len(files):,} images")
    limits = find_limits(some, settings.image_size)
    for path, reason in limits.broken[:_MOST_BROKEN_SHOWN]:
        tell(f"broken, left out: {printable(reason if path in reason else f'{path}: {reason}')}")
    if len(limits.broken) > _MOST_BROKEN_SHOWN:
        tell(f"broken, left out: {len(limits.broken) - _MOST_BROKEN_SHOWN:,} more; the report names them")
    broken = {path for path, _ in limits.broken}
    some = some.select([place for place, path in enumerate(some.paths) if path not in broken])
    trials = {
        name: Trial(
            PIPELINES[name], some, accelerator=settings.accelerator, memory_budget=budget_mib, name=name,
            image_size=settings.image_size, batch_size=settings.batch_size, timeout=settings.timeout_s,
        )
        for name in settings.pipelines
    }  # fmt: skip
    clock = _Clock(len(trials) * settings.repeats, _expected_s(some, limits, settings))
    interrupted = False
    try:
        _rounds(trials, settings, clock, tell, folder)
    except KeyboardInterrupt:
        if not any(trial.runs for trial in trials.values()):
            raise
        interrupted = True
    measurements = [trial.measurement() for trial in trials.values() if trial.runs]
    room = {"free_disk_bytes": free_bytes(folder), "budget_mib": budget_mib}
    advice = advise(measurements, limits, all_images=len(files), **room)
    return Outcome(measurements, limits, advice, len(files), budget_mib, interrupted)


def _rounds(trials: dict[str, Trial], settings: Settings, clock: _Clock, tell: Callable, folder: Path) -> None:
    for number in range(settings.repeats):
        # Each round packs again: the first epoch of `tf_data_packed` is not free.
        packs = folder / f"round-{number}"
        for name, trial in trials.items():
            if trial.failed:
                clock.skip()
                continue
            clock.start()
            try:
                with default_packs_in(packs):
                    trial.run()
            except ValueError as error:  # the budget holds not even what it imports
                tell(f"{name}: {error}")
            tell(f"{clock.done(name)}: {_in_short(trial)}; {clock.left()}")
        shutil.rmtree(packs, ignore_errors=True)


def _expected_s(files: ImageFiles, limits: Limits, settings: Settings) -> float:
    """Return how long one pipeline may take, before anything is known of it."""
    alone_s = _START_S + 1.5 * len(files) / limits.decode_images_per_s
    if settings.accelerator is None:
        return alone_s
    rate = getattr(settings.accelerator, "images_per_s", float("inf"))
    return 2 * alone_s + 2 + len(files) / rate


class _Clock:
    """Tells how far the measuring is, and when it may end."""

    def __init__(self, runs: int, expected_s: float):
        self._runs, self._number, self._expected_s = runs, 0, expected_s
        self._took_s: list[float] = []

    def start(self) -> None:
        self._number += 1
        self._started = time.monotonic()

    def skip(self) -> None:
        self._number += 1

    def done(self, name: str) -> str:
        self._took_s.append(time.monotonic() - self._started)
        return f"[{self._number:{len(str(self._runs))}}/{self._runs}] {name}"

    def left(self) -> str:
        mean_s = sum(self._took_s) / len(self._took_s)
        if len(self._took_s) < 3:
            mean_s = max(mean_s, self._expected_s)
        seconds = (self._runs - self._number) * mean_s
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def _in_short(trial: Trial) -> str:
    one = trial.measurement()
    if one.outcome != "finished":
        return f"{one.outcome} after {one.images_done:,} images, {one.memory.peak_mib:,.0f} MiB" + (
            f" ({printable(one.error)})" if one.error and one.outcome != "out of memory" else ""
        )
    percent = one.training.utilisation_percent
    busy = "" if percent is None else f", accelerator busy {percent:.0f} %"
    return f"{one.alone.images_per_s:,.0f} images/s, {one.memory.peak_mib:,.0f} MiB{busy}"


@contextmanager
def _workplace() -> Iterator[Path]:
    """Yield an empty folder for packed images; nobody else measures meanwhile, which would spoil both."""
    folder = _DATA / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", "another benchmark is running; two at once would slow each other down"):
        _empty(folder)  # an earlier run may have been killed
        try:
            yield folder
        finally:
            _empty(folder)


def _empty(folder: Path) -> None:
    for path in folder.glob("round-*"):
        shutil.rmtree(path, ignore_errors=True)


# ---- telling ---------------------------------------------------------------------------------------------------------


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(outcome: Outcome) -> None:
    console = Console()
    console.print(scoreboard.table(outcome.measurements))
    console.print()
    for sentence in outcome.advice.sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    broken = len(outcome.limits.broken)
    if broken:
        console.print(f"{broken:,} broken files were left out; the report names them.", highlight=False)
    if outcome.interrupted:
        console.print("Stopped before the end: this is what was measured until then.", highlight=False)


def _keep(outcome: Outcome, options: argparse.Namespace, settings: Settings, call: str) -> None:
    usual = _record_path(options, settings)
    record = options.record or usual
    report = options.report or usual.with_suffix(".html")
    if options.reference and not outcome.interrupted:
        record = _RESULTS / scoreboard.local_path().name
        record.unlink(missing_ok=True)
        record.parent.mkdir(parents=True, exist_ok=True)
        scoreboard_by_pipeline({record.stem: outcome.measurements}).savefig(record.with_suffix(".png"))
    for one in outcome.measurements:
        scoreboard.record(one, record)
    page = html_report(
        outcome.measurements,
        outcome.limits,
        outcome.advice,
        name=options.folder.resolve().name if options.folder else "the course's images",
        all_images=outcome.all_images,
        budget_mib=outcome.budget_mib,
        rounds=max(1, *(len(one.alone.runs_images_per_s) for one in outcome.measurements)),
        code=_code(outcome.advice.pipeline, call, settings),
        interrupted=outcome.interrupted,
    )
    report.parent.mkdir(parents=True, exist_ok=True)
    write_whole(report, page.encode(errors="backslashreplace"))
    _tell(f"rows: {record}")
    _tell(f"page: {report}")
    if options.json:
        values = {
            "limits": asdict(outcome.limits),
            "advice": asdict(outcome.advice),
            "all_images": outcome.all_images,
            "measurements": [json.loads(one.to_json()) for one in outcome.measurements],
        }
        text = json.dumps(values, indent=1)
        if str(options.json) == "-":
            print(text)
        else:
            options.json.write_text(text, encoding="utf-8")


def _record_path(options: argparse.Namespace, settings: Settings) -> Path:
    """Return where rows go: the course's images as the lessons measure them beside the lessons' rows, others apart."""
    local = scoreboard.local_path()
    usual = Settings(accelerator=EmulatedAccelerator(A100_IMAGES_PER_S))
    as_lessons = replace(settings, pipelines=usual.pipelines, repeats=usual.repeats, timeout_s=usual.timeout_s) == usual
    if options.folder is None and options.max_images is None and as_lessons:
        return local
    parts = ("course",) if options.folder is None else options.folder.resolve().parts[-2:]
    height, width = settings.image_size
    words = [*parts, f"{height}x{width}", f"batch {settings.batch_size}"]
    words += [f"{options.max_images} images"] if options.max_images else []
    words += ["budget"] if settings.budget_mib else []
    words += [settings.accelerator.label if settings.accelerator else "no accelerator"]
    slug = re.sub(r"[^a-z0-9]+", "-", printable(" ".join(words)).lower()).strip("-")[:120]
    if options.folder is not None:  # two folders may have one name, or a name without a Latin letter
        slug += f"-{zlib.crc32(os.fsencode(options.folder.resolve())):08x}"
    return local.with_name(f"{local.stem}--{slug}.jsonl")


def _code(pipeline: str | None, call: str, settings: Settings) -> str:
    if pipeline is None:
        return ""
    return (
        f"from helpers.images import {call.partition('(')[0]}\n"
        f"from helpers.pipelines import PIPELINES\n\n"
        f"files = {call}\n"
        f'batches = PIPELINES["{pipeline}"](\n'
        f"    files, image_size={settings.image_size}, batch_size={settings.batch_size}\n)"
    )
