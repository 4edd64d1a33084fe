"""One page about one run of the benchmark: an HTML file that opens without a network.

Called by the benchmark command.
"""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from helpers.benchmark.advice import Advice
from helpers.benchmark.rates import Limits
from helpers.files import printable
from helpers.measurement import Measurement
from helpers.plots import memory_throughput_map, step_timeline

__all__ = ["Findings", "html_report"]


@dataclass(frozen=True)
class Findings:
    """What a run of the benchmark found."""

    measurements: list[Measurement]  # a row for each pipeline that was measured, at least one
    limits: Limits
    advice: Advice
    all_images: int  # of which a part may have been measured
    budget_mib: float
    stopped: int  # 0, or the exit status for the signal that ended the measuring early


def html_report(found: Findings, *, name: str, code: str) -> str:
    """Return the page; `name` is the data set's, `code` uses the recommended pipeline."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters |= {"number": _number, "printable": printable}
    return environment.get_template("report.html.j2").render(
        found=found,
        limits=found.limits,
        one=found.measurements[0],
        name=name,
        code=code,
        most_broken=1000,
        rounds=max(1, *(len(one.alone.runs_images_per_s) for one in found.measurements)),
        figures=_figures(found),
    )


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _figures(found: Findings) -> list[tuple[str, str]]:
    """Return each figure as SVG, and its caption."""
    ceilings = [top for one in found.measurements if (top := one.training.ceiling_images_per_s)]
    highest_mib = max(one.memory.own_mib for one in found.measurements)
    left_mib = found.budget_mib - max(one.memory.baseline_mib or 0 for one in found.measurements)
    drawn = memory_throughput_map(
        found.measurements,
        budget_mib=left_mib if 0 < left_mib < 20 * highest_mib else None,
        ceiling_images_per_s=statistics.median_low(ceilings) if ceilings else None,
    )
    figures = [(_svg(drawn), "Memory above the imports against throughput: up is faster, left is less memory.")]
    if timed := [one for one in found.measurements if one.training.wait_ms]:
        figures.append((_svg(step_timeline(timed)), "The first training steps of each pipeline."))
    return figures


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "course"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
