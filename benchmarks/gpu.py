"""Measure every pipeline of the course beside a real model on this machine's GPU, and write it to results/.

`make gpu-bench` runs it, on a machine that does nothing else; by hand: `python benchmarks/gpu.py --minutes 25`. First
what the GPU trains when it never waits, for each model; then each pipeline beside one of them, in rounds. Each run is a
process of its own, and is kept as soon as it has ended: the same command goes on where the last one stopped. Keras'
backend is the one that KERAS_BACKEND names; the pipelines stay those of tf.data and numpy.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from helpers import scoreboard
from helpers.accelerators import MODELS, KerasAccelerator
from helpers.files import ExitStatus, locked, tolerant_streams, write_whole
from helpers.folders import ImageFiles, course_images
from helpers.gpu import gpus
from helpers.measure import measure, measure_ceiling
from helpers.measurement import Measurement
from helpers.packing import default_packs_in
from helpers.pipelines import PIPELINES
from helpers.plots import scoreboard_by_pipeline
from helpers.sandbox import ChildError

_ROOT = Path(__file__).resolve().parents[1]
_SHORTEST_RUN_S = 20.0  # assumed until one has been made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, write rows and picture."""
    tolerant_streams()
    options = _parse(arguments)
    if not gpus() and not options.without_gpu:
        print("no NVIDIA GPU here; --without-gpu runs the same on the CPU, to see that it works", file=sys.stderr)
        return ExitStatus.CANNOT
    kept = options.to / f"{Path(scoreboard.local_path().name).stem}--runs"
    kept.mkdir(parents=True, exist_ok=True)
    try:
        with locked(kept / ".lock", f"{kept}: another benchmark is running; two would measure each other"):
            _bench(options, kept)
    except BlockingIOError as error:
        print(error, file=sys.stderr)
        return ExitStatus.CANNOT
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return ExitStatus.FINE


def _bench(options: argparse.Namespace, kept: Path) -> None:
    for left in kept.glob("packs-*"):  # of a run that was killed
        shutil.rmtree(left)
    clock, files = _Clock(options.minutes), course_images(options.images)
    ceilings = _ceilings(options, kept / "ceilings.json", clock)
    rows = _rows(options, files, kept, clock)
    _print_ceilings(ceilings)
    _print_rows(rows)
    if rows:
        path = options.to / scoreboard.local_path().name
        path.unlink(missing_ok=True)
        for one in rows:
            scoreboard.record(one, path)
        scoreboard_by_pipeline({path.stem: rows}).savefig(path.with_suffix(".png"))
        print(f"rows: {path}")
    if clock.refused:
        print(f"{clock.refused} runs did not fit into {options.minutes:g} minutes; the same command goes on with them.")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="begin no run that would not end in time")
    parser.add_argument("--model", choices=MODELS, default="resnet50", help="that the pipelines feed")
    parser.add_argument("--ceilings", default=",".join(MODELS), metavar="A,B", help="models measured by themselves")
    parser.add_argument("--precision", default="mixed_bfloat16", help="Keras' dtype policy; float32 for none")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=6000, help="generated here where they are missing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pipelines", default=",".join(PIPELINES), metavar="A,B")
    parser.add_argument("--to", type=Path, metavar="DIR", help="by default results/; without a GPU build/gpu-bench")
    parser.add_argument("--without-gpu", action="store_true")
    options = parser.parse_args(arguments)
    # What a CPU gives here is no reference, and must not take the place of one.
    options.to = options.to or _ROOT / ("build/gpu-bench" if options.without_gpu else "results")
    options.pipelines, options.ceilings = options.pipelines.split(","), options.ceilings.split(",")
    unknown = [*(set(options.pipelines) - set(PIPELINES)), *(set(options.ceilings) - set(MODELS))]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join([*PIPELINES, *MODELS])}")
    if min(options.minutes, options.batch_size, options.images, options.rounds) <= 0:
        parser.error("all numbers must be above zero")
    return options


class _Clock:
    """Says whether another run still fits, by the longest of its kind so far."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes
        self._longest_s: dict[str, float] = {}
        self.refused = 0

    def has_room_for(self, kind: str) -> bool:
        fits = time.monotonic() + self._longest_s.get(kind, _SHORTEST_RUN_S) <= self._end
        self.refused += not fits
        return fits

    def remaining_s(self) -> float:
        return max(self._end - time.monotonic(), 1.0)

    def took(self, kind: str, seconds: float) -> None:
        self._longest_s[kind] = max(seconds, self._longest_s.get(kind, 0.0))


def _accelerator(model: str, options: argparse.Namespace) -> KerasAccelerator:
    precision = None if options.precision == "float32" else options.precision
    return KerasAccelerator(MODELS[model], precision=precision)


def _ceilings(options: argparse.Namespace, path: Path, clock: _Clock) -> dict[str, float]:
    """Return images/s of each model on one resident batch, by label and batch size."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for model in options.ceilings:
        accelerator = _accelerator(model, options)
        key = f"{accelerator.label}, batches of {options.batch_size}"
        if key in found or not clock.has_room_for("ceiling"):
            continue
        started = time.monotonic()
        try:
            found[key] = measure_ceiling(accelerator, batch_size=options.batch_size, timeout=clock.remaining_s())
        except ChildError as error:  # a model that does not fit into the GPU's memory is no end of the benchmark
            print(f"{key}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        clock.took("ceiling", time.monotonic() - started)
        write_whole(path, json.dumps(found, indent=1))
    return found


def _rows(options: argparse.Namespace, files: ImageFiles, kept: Path, clock: _Clock) -> list[Measurement]:
    """Return a row for each pipeline: its median round, with the figures of all rounds."""
    accelerator = _accelerator(options.model, options)
    runs: dict[str, list[Measurement]] = {name: [] for name in options.pipelines}
    for number in range(options.rounds):
        for name in options.pipelines:
            one = _one_run(name, number, accelerator, options, files, kept, clock)
            if one is not None:
                runs[name].append(one)
    return [_median_of(rounds) for rounds in runs.values() if rounds]


def _one_run(
    name: str,
    number: int,
    accelerator: KerasAccelerator,
    options: argparse.Namespace,
    files: ImageFiles,
    kept: Path,
    clock: _Clock,
) -> Measurement | None:
    words = (name, accelerator.label, f"{options.batch_size}", f"{len(files)} images", f"round {number + 1}")
    path = kept / ("--".join(words).replace(", ", "-").replace(" ", "-") + ".json")
    if path.exists():
        return Measurement.from_json(path.read_text())
    if not clock.has_room_for(name):
        return None
    started = time.monotonic()
    print(f"{name}, round {number + 1} …", flush=True)
    with tempfile.TemporaryDirectory(prefix="packs-", dir=kept) as packs, default_packs_in(packs):
        one = measure(
            PIPELINES[name],
            files,
            accelerator=accelerator,
            batch_size=options.batch_size,
            growth=False,
            timeout=clock.remaining_s(),
        )
    clock.took(name, time.monotonic() - started)
    if one.outcome == "hung":
        return None  # the time limit was what is left of ours, so this says nothing about the pipeline
    write_whole(path, one.to_json())
    return one


def _median_of(rounds: list[Measurement]) -> Measurement:
    trained = [one for one in rounds if one.training.images_per_s]
    finished = sorted(trained, key=lambda one: one.training.images_per_s)
    if len(finished) < len(rounds):
        return next(one for one in rounds if one not in finished)
    middle = finished[(len(finished) - 1) // 2]
    alone = replace(middle.alone, runs_images_per_s=tuple(one.alone.images_per_s for one in rounds))
    training = replace(middle.training, runs_images_per_s=tuple(one.training.images_per_s for one in rounds))
    return replace(middle, alone=alone, training=training)


def _print_ceilings(ceilings: dict[str, float]) -> None:
    table = Table("model on resident data", "images/s", title=", ".join(gpus()) or "no GPU")
    for key, rate in ceilings.items():
        table.add_row(key, f"{rate:,.0f}")
    Console(width=100).print(table)


def _print_rows(rows: list[Measurement]) -> None:
    """Print each pipeline; three figures say how busy the GPU was, and they measure different things."""
    table = Table("pipeline", "alone", "together", "ceiling", "AU", "by rates", "kernels", "SMs", "cores", "GPU MiB")
    for one in rows:
        rate, cores_busy = one.alone.images_per_s, one.alone.cores_busy
        together, top, gpu = one.training.images_per_s, one.training.ceiling_images_per_s, one.gpu
        if not together or not top:
            table.add_row(one.name, one.outcome)
            continue
        cores = cores_busy and rate and top / (rate / cores_busy)
        table.add_row(
            one.name,
            f"{rate:,.0f}",
            f"{together:,.0f}",
            f"{top:,.0f}",
            f"{one.training.utilisation_percent:.1f} %",
            f"{100 * together / top:.1f} %",
            _percent(gpu.busy_percent),
            _percent(gpu.sm_percent),
            f"{math.ceil(cores)}" if cores else "?",
            f"{gpu.framework_peak_mib:,.0f}" if gpu.framework_peak_mib else "?",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        "images/s. AU: time in the step over all time. By rates: together over ceiling. kernels: share of time with "
        "any kernel at work (NVML). SMs: share of multiprocessors at work (NVML, from Hopper on). cores: CPU cores "
        "like these that it takes to feed this GPU, if the pipeline uses them as well as those here.",
        highlight=False,
    )


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f} %"


if __name__ == "__main__":
    sys.exit(main())
