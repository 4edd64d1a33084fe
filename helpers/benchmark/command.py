"""Measure every pipeline of the course on a folder of images, and say which one to use.

    python -m helpers.benchmark FOLDER        your images; without FOLDER the course's own

FOLDER holds one folder of images for each class, or images and a CSV file of their classes, or just images; it may be
an address, such as s3://bucket/train. Then tf_data, tf_data_fast and keras_sequence get as many files in flight as the
cores can decode in the time until the first byte comes. Each pipeline runs in processes of its own, within one memory
budget, alone and beside an accelerator. A pipeline that runs out of memory is a result, not a failure. The outcome is
a table, an HTML page, and advice.

Exit status: 0; 1 if a pipeline raised, hung or died; 2 for images or arguments that make no sense, or if a result could
not be written; 130 for Ctrl-C and 143 for SIGTERM, after what was measured until then has been written and shown.
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
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from helpers import scoreboard
from helpers.accelerators import EmulatedAccelerator, KerasAccelerator
from helpers.benchmark.advice import Advice, advise, files_in_flight
from helpers.benchmark.rates import find_limits
from helpers.benchmark.report import Findings, html_report
from helpers.decision import TAKE_IN_FLIGHT
from helpers.files import (
    ExitStatus,
    free_bytes,
    locked,
    may_replace,
    printable,
    shown_warnings,
    tolerant_streams,
    write_whole,
)
from helpers.folders import ImageFiles, course_images, find_any_images
from helpers.gpu import gpus
from helpers.measure import Trial
from helpers.packing import default_packs_in
from helpers.pipelines import PIPELINES
from helpers.plots import scoreboard_by_pipeline
from helpers.remote import folder_or_address, is_address
from helpers.sandbox import ChildError, memory

__all__ = ["main"]

# An A100 takes 400 images in 0.435 s when it trains ResNet-50 in TF32, by MLPerf Storage.
_A100 = EmulatedAccelerator(400 / 0.435)
_ROOT = Path(__file__).resolve().parents[2]
_MADE_BY = "python -m helpers.benchmark"  # so that a file of ours is known when it is to be replaced
_DATA, _RESULTS = _ROOT / "data", _ROOT / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    tolerant_streams()
    options = _parse(arguments)
    try:
        with _on_signals(_stop), shown_warnings(_tell):
            if options.folder is None:
                files, call = course_images(), "course_images()"
            else:
                files, call = find_any_images(options.folder, options.labels, label_column=options.label_column)
                _tell(files.summary)
            with _workplace() as packs:
                found = _measured(files, options, packs)
    except ChildError as error:  # a file crashed a decoder, hung it, or filled the memory
        first_line = printable(str(error).partition("\n")[0])
        _tell(f"benchmark: looking at the images: {first_line}; check_images.py names the file")
        return ExitStatus.CANNOT
    except (ValueError, OSError, RuntimeError) as error:
        _tell(f"benchmark: {printable(str(error))}")
        return ExitStatus.CANNOT
    except KeyboardInterrupt as stopped:
        _tell("benchmark: stopped before anything was measured")
        return stopped.args[0]
    with _on_signals(signal.SIG_IGN):  # it takes seconds, and minutes of measuring would be lost
        written = _keep(found, options, call)
    try:
        _show(found, options)
        sys.stdout.flush()
    except OSError as error:  # a pipe that nobody reads any more, where Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _tell(f"benchmark: not everything was shown: {error}")
        written = False
    if found.stopped:
        return found.stopped
    failed = any(one.outcome not in ("finished", "out of memory") for one in found.measurements)
    return ExitStatus.CANNOT if not written else ExitStatus.FOUND if failed else ExitStatus.FINE


@contextmanager
def _on_signals(handler: Callable | signal.Handlers) -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM in this way while the block runs; what `_stop` has set stays."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, handler_before)


def _stop(number: int, _: object) -> None:
    """Raise KeyboardInterrupt with the exit status, and ignore later signals: clearing up must not be stopped."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt(128 + number)


# ---- what to measure -------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = parser.add_argument, ", ".join(PIPELINES)
    add("folder", nargs="?", type=folder_or_address, help="the images; by default the course's own")
    add("--labels", type=folder_or_address, metavar="CSV", help="classes of the images, where no folders give them")
    add("--label-column", metavar="NAME", help="the column of the classes, where that is not clear")
    add("--pipelines", type=_names, default=tuple(PIPELINES), metavar="A,B", help=f"of {names}")
    add("--batch-size", type=_count, default=32, metavar="N")
    add("--image-size", type=_size, default=(224, 224), metavar="N", help="224, or 240x320")
    add("--memory-budget", type=_budget_mib, metavar="MIB", help="by default 80 %% of what is free now")
    add(
        "--accelerator",
        type=_accelerator,
        default="real" if gpus() else f"emulated:{_A100.images_per_s}",
        metavar="real|emulated:RATE|none",
        help="a small Keras model on this machine, or one that takes RATE images/s and uses no CPU; by default the"
        f" first where there is a GPU, else emulated:{_A100.images_per_s:.0f}, an A100 that trains ResNet-50 in TF32",
    )
    add("--epochs", type=_count, default=30, metavar="N", help="of your training, for the advice: packing pays later")
    add("--repeats", type=_count, default=2, metavar="N", help="rounds; the median counts")
    add("--max-images", type=_count, default=2000, metavar="N", help="measure a part; by default 2,000")
    add("--timeout", type=_positive, default=600.0, metavar="S", help="of each run, in seconds")
    add("--json", type=Path, metavar="FILE", help="all figures; - for standard output")
    add("--reference", action="store_true", help="rewrite this machine's file and picture in results/, for a commit")
    options = parser.parse_args(arguments)
    if options.json and not _is_json_shown(options) and not may_replace(options.json, _MADE_BY.encode()):
        parser.error(f"--json {printable(options.json)}: there is something else; give another name")
    return options


def _names(text: str) -> tuple[str, ...]:
    names = {name.strip() for name in text.split(",")}
    if unknown := names - set(PIPELINES):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or text!r}: give names of {', '.join(PIPELINES)}")
    return tuple(name for name in PIPELINES if name in names)


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 224, or height x width as 240x320")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _count(text: str) -> int:
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


def _budget_mib(text: str) -> float:
    budget_mib, machine_mib = _positive(text), memory.total_mib()
    if budget_mib > machine_mib:
        found = f"{budget_mib:,.0f} MiB is more than this machine's {machine_mib:,.0f} MiB"
        raise argparse.ArgumentTypeError(f"{found}; give the budget in MiB, 1 MiB being 1,048,576 bytes")
    return budget_mib


def _accelerator(text: str) -> EmulatedAccelerator | KerasAccelerator | None:
    kind, _, rate = text.partition(":")
    if text in ("real", "none"):
        return KerasAccelerator() if text == "real" else None
    if kind != "emulated":
        raise argparse.ArgumentTypeError(f"{text!r}: give real, none, or emulated:RATE with RATE in images/s")
    return EmulatedAccelerator(_positive(rate))


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measured(files: ImageFiles, options: argparse.Namespace, packs: Path) -> Findings:
    """Look at the images, let the pipelines take turns, and draw a conclusion.

    An interruption before any pipeline was measured is raised; a later one ends the measuring and is noted.
    """
    some = files.take(min(len(files), options.max_images))
    budget_mib = options.memory_budget or round(0.8 * memory.available_mib())
    _tell(f"looking at {len(some):,} of {len(files):,} images")
    limits = find_limits(some, options.image_size)
    for path, reason in limits.broken[:10]:  # the page names more
        _tell(f"broken, left out: {printable(reason if path in reason else f'{path}: {reason}')}")
    broken = dict(limits.broken)
    some = some.select([place for place, path in enumerate(some.paths) if path not in broken])
    pipelines = {name: PIPELINES[name] for name in options.pipelines}
    in_flight = files_in_flight(limits) if any(map(is_address, some.paths)) else None
    for name in set(pipelines) & set(TAKE_IN_FLIGHT) if in_flight else ():
        pipelines[name] = partial(PIPELINES[name], in_flight=in_flight)
    trials = [
        Trial(
            pipeline, some, accelerator=options.accelerator, memory_budget=budget_mib, name=name,
            image_size=options.image_size, batch_size=options.batch_size, timeout=options.timeout,
        )
        for name, pipeline in pipelines.items()
    ]  # fmt: skip
    stopped = 0
    try:
        _rounds(trials, options.repeats, packs)
    except KeyboardInterrupt as interruption:
        (stopped,) = interruption.args
        if not any(trial.runs for trial in trials):
            raise
    if not any(trial.runs for trial in trials):
        raise ValueError("no pipeline could be measured; see above")
    measurements = [trial.measurement() for trial in trials if trial.runs]
    room = {"free_disk_bytes": free_bytes(packs), "budget_mib": budget_mib}
    advice = advise(measurements, limits, all_images=len(files), epochs=options.epochs, **room)
    return Findings(measurements, limits, advice, len(files), budget_mib, stopped)


def _rounds(trials: list[Trial], repeats: int, packs: Path) -> None:
    started, number, runs = time.monotonic(), 0, len(trials) * repeats
    for _ in range(repeats):
        for trial in trials:
            number += 1
            if trial.failed:
                continue
            try:
                with default_packs_in(packs):
                    trial.run()
            except (ValueError, OSError, ChildError) as error:  # a budget below its imports; a machine without room
                _tell(f"{trial.name}: {printable(str(error).partition(chr(10))[0])}")
            if not trial.runs:
                continue
            left_s = (runs - number) * (time.monotonic() - started) / number
            left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
            _tell(f"[{number:{len(str(runs))}}/{runs}] {trial.name}: {_in_short(trial)}; about {left} left")
        shutil.rmtree(packs, ignore_errors=True)  # the first epoch of `tf_data_packed` is never free


def _in_short(trial: Trial) -> str:
    one = trial.measurement()
    held = f"{one.memory.peak_mib:,.0f} MiB"
    if one.outcome != "finished":
        error = f" ({printable(one.error)})" if one.error and one.outcome != "out of memory" else ""
        return f"{one.outcome} after {one.images_done:,} images, {held}{error}"
    percent = one.training.utilisation_percent
    busy = "" if percent is None else f", accelerator busy {percent:.0f} %"
    return f"{one.alone.images_per_s:,.0f} images/s, {held}{busy}"


@contextmanager
def _workplace() -> Iterator[Path]:
    """Yield a folder for packed images, not made yet; nobody else measures meanwhile, which would spoil both."""
    folder = _DATA / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    packs = folder / "packs"
    with locked(folder / ".lock", "another benchmark is running; two at once would slow each other down"):
        shutil.rmtree(packs, ignore_errors=True)  # an earlier run may have been killed
        try:
            yield packs
        finally:
            shutil.rmtree(packs, ignore_errors=True)


# ---- telling ---------------------------------------------------------------------------------------------------------


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads it any more; what is measured is written all the same


def _keep(found: Findings, options: argparse.Namespace, call: str) -> bool:
    """Write rows, page and JSON, each as far as that is possible; return whether all were written."""
    rows = _rows_path(options)
    page, is_reference = rows.with_suffix(".html"), options.reference and not found.stopped
    rows = _RESULTS / scoreboard.local_path().name if is_reference else rows

    def write_rows() -> None:
        if is_reference:
            rows.unlink(missing_ok=True)
        for one in found.measurements:
            scoreboard.record(one, rows)
        if is_reference:
            scoreboard_by_pipeline({rows.stem: found.measurements}).savefig(rows.with_suffix(".png"))

    def write_page() -> None:
        page.parent.mkdir(parents=True, exist_ok=True)
        name = Path(options.folder).resolve().name if options.folder else "the course's images"
        html = html_report(found, name=name, code=_code(found.advice, call, options))
        write_whole(page, html.encode(errors="backslashreplace"))

    writers = {rows: write_rows, page: write_page}
    if options.json and not _is_json_shown(options):
        writers[options.json] = lambda: write_whole(options.json, _json(found))
    failed = 0
    for path, write in writers.items():
        try:
            write()
            _tell(f"written: {printable(path)}")
        except OSError as error:  # a full disk, or a folder that is not there
            _tell(f"benchmark: not everything was written: {printable(str(error))}")
            failed += 1
    return not failed


def _show(found: Findings, options: argparse.Namespace) -> None:
    """Print table and advice; where standard output is for JSON, to standard error."""
    file = sys.stderr if _is_json_shown(options) else sys.stdout
    console = Console(file=file, emoji=False)
    with console.capture() as table:  # rich itself would end the program when nobody reads a pipe any more
        console.print(scoreboard.table(found.measurements))
    print(table.get(), *found.advice.sentences, sep="\n", file=file)
    if found.limits.broken:
        print(f"{len(found.limits.broken):,} broken files were left out; the report names them.", file=file)
    if found.stopped:
        print("Stopped before the end: this is what was measured until then.", file=file)
    if _is_json_shown(options):
        print(_json(found))


def _is_json_shown(options: argparse.Namespace) -> bool:
    return str(options.json) == "-"


def _json(found: Findings) -> str:
    values = {
        "made_by": _MADE_BY,
        "limits": asdict(found.limits),
        "advice": asdict(found.advice),
        "all_images": found.all_images,
        "measurements": [json.loads(one.to_json()) for one in found.measurements],
    }
    return json.dumps(values, indent=1)


def _rows_path(options: argparse.Namespace) -> Path:
    """Return where rows go: the course's images as the lessons measure them beside the lessons' rows, others apart."""
    local, (height, width) = scoreboard.local_path(), options.image_size
    accelerator = options.accelerator.label if options.accelerator else "no accelerator"
    budget = f"budget {options.memory_budget:g}" if options.memory_budget else ""
    setting = f"{height}x{width} batch {options.batch_size} {options.max_images} images {budget} {accelerator}"
    folder = options.folder and Path(options.folder).resolve()
    if folder is None and setting == f"224x224 batch 32 2000 images  {_A100.label}":
        return local
    words = " ".join(("course",) if folder is None else folder.parts[-2:])
    slug = re.sub(r"[^a-z0-9]+", "-", printable(f"{words} {setting}").lower()).strip("-")[:120]
    if folder is not None:  # two folders may have one name, or a name without a Latin letter
        slug += f"-{zlib.crc32(os.fsencode(options.folder if is_address(options.folder) else folder)):08x}"
    return local.with_name(f"{local.stem}--{slug}.jsonl")


def _code(advice: Advice, call: str, options: argparse.Namespace) -> str:
    if advice.pipeline is None:
        return ""
    more = f", in_flight={advice.in_flight}" if advice.in_flight else ""
    return (
        f"from helpers.folders import {call.partition('(')[0]}\n"
        f"from helpers.pipelines import PIPELINES\n\n"
        f"files = {call}\n"
        f'batches = PIPELINES["{advice.pipeline}"](\n'
        f"    files, image_size={options.image_size}, batch_size={options.batch_size}{more}\n)"
    )
