"""One page about one run of the benchmark: an HTML file that opens without a network.

Called by the benchmark command.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from helpers.benchmark.advice import Advice
from helpers.benchmark.rates import Limits
from helpers.files import printable
from helpers.measurement import Measurement
from helpers.plots import memory_throughput_map, step_timeline

__all__ = ["html_report"]

_MOST_BROKEN_LISTED = 1000


def html_report(
    measurements: Sequence[Measurement],
    limits: Limits,
    advice: Advice,
    *,
    name: str,
    all_images: int,
    budget_mib: float,
    rounds: int,
    code: str = "",
    interrupted: bool = False,
) -> str:
    """Return the page.

    Parameters
    ----------
    measurements : sequence of Measurement
        A row for each pipeline; at least one.
    name : str
        Of the data set.
    all_images : int
        How many there are; `limits` and `measurements` may be of a part of them.
    budget_mib : float
        Memory budget of each run.
    rounds : int
        How often each was measured.
    code : str
        How to use the recommended pipeline.
    """
    one = measurements[0]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    height, width = one.image_size
    return environment.get_template("report.html.j2").render(
        title=f"Which pipeline for {printable(name)}?",
        subtitle=f"{all_images:,} images, {height}×{width}, batches of {one.batch_size};"
        f" {one.files:,} of them measured; budget {budget_mib:,.0f} MiB",
        advice=advice,
        code=code,
        interrupted=interrupted,
        rows=[_row(measurement) for measurement in measurements],
        accelerator=one.training.accelerator or "none",
        rounds=rounds,
        figures=_figures(measurements, budget_mib),
        facts=_facts(limits),
        broken=[(printable(path), printable(reason)) for path, reason in limits.broken[:_MOST_BROKEN_LISTED]],
        broken_line=_broken_line(limits),
        machine=_machine(one),
        date=one.context.date.replace("T", " ").replace("+00:00", " UTC"),
    )


def _row(one: Measurement) -> dict:
    alone, training, spread = one.alone, one.training, "–"
    if len(alone.runs_images_per_s) > 1:
        spread = f"{min(alone.runs_images_per_s):,.0f} to {max(alone.runs_images_per_s):,.0f}"
    cells = [
        one.name,
        _figure(alone.images_per_s),
        spread,
        _figure(alone.first_epoch_images_per_s),
        _figure(training.images_per_s),
        _figure(training.utilisation_percent),
        "–" if alone.cores_busy is None else f"{alone.cores_busy:.1f}",
        _figure(one.memory.peak_mib),
    ]
    error = "" if one.error is None else f": {one.error}"
    return {"cells": cells, "outcome": printable(one.outcome + error)}


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _figures(measurements: Sequence[Measurement], budget_mib: float) -> list[dict]:
    ceilings = [top for one in measurements if (top := one.training.ceiling_images_per_s)]
    shown_budget_mib = budget_mib if budget_mib < 20 * max(one.memory.peak_mib for one in measurements) else None
    ceiling = sorted(ceilings)[len(ceilings) // 2] if ceilings else None
    drawn = memory_throughput_map(measurements, budget_mib=shown_budget_mib, ceiling_images_per_s=ceiling)
    figures = [
        {"svg": _svg(drawn), "caption": "Memory against throughput: up is faster, left is less memory."},
    ]
    timed = [one for one in measurements if one.training.wait_ms]
    if timed:
        figures.append({"svg": _svg(step_timeline(timed)), "caption": "The first training steps of each pipeline."})
    return figures


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "course"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _facts(limits: Limits) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in limits.kinds.items())
    height, width = limits.median_size
    return [
        ("looked at", f"{limits.images:,} sound files ({kinds}), {len(limits.broken):,} broken"),
        (
            "as stored",
            f"{height:,}×{width:,} pixels in the middle, {limits.mean_bytes / 1000:,.0f} kB a file on average",
        ),
        ("reading alone", f"{limits.read_images_per_s:,.0f} images/s on {limits.cores} cores"),
        ("decoding all pixels", f"{limits.decode_images_per_s:,.0f} images/s"),
        ("decoding what the size needs", f"{limits.reduced_images_per_s:,.0f} images/s"),
    ]


def _broken_line(limits: Limits) -> str:
    count = len(limits.broken)
    files = "1 file" if count == 1 else f"{count:,} files"
    more = f"; the first {_MOST_BROKEN_LISTED:,} are listed" if count > _MOST_BROKEN_LISTED else ""
    of_all = f"of {count + limits.images:,}"
    return f"{files} {of_all} cannot be read or decoded{more}. A training would stop at the first of them."


def _machine(one: Measurement) -> Iterable[tuple[str, str]]:
    here = one.context.machine
    yield "CPU", f"{here.cpu}, {here.cores} cores used"
    yield "memory", f"{here.memory_mib / 1024:,.0f} GiB"
    yield "GPU", ", ".join(here.gpus) or "none"
    yield "system", here.system
    yield "versions", ", ".join(f"{package} {version}" for package, version in one.context.versions.items())
