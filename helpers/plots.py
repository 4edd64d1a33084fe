"""Every figure of the course. One colour and one marker per pipeline, the same in every notebook.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; markers differ too.
"""

from __future__ import annotations

import difflib
import html
import inspect
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from helpers.child import ChildResult
from helpers.measure import Measurement

__all__ = ["memory_strip", "memory_throughput_map", "show_change", "show_images", "step_timeline"]

STYLES = {
    "load_everything": ("#D55E00", "s"),
    "generator": ("#E69F00", "o"),
    "threaded_generator": ("#8C6D1F", "D"),
    "keras_sequence": ("#CC79A7", "^"),
    "tf1_queues": ("#555555", "v"),
    "tf_data": ("#56B4E9", "P"),
    "tf_data_fast": ("#0072B2", "X"),
    "tf_data_packed": ("#009E73", "*"),
}
_OTHER_STYLE = ("#000000", ".")
_WAITING, _COMPUTING = "#D0D0D0", "#0072B2"
_BUDGET_COLOUR, _CEILING_COLOUR = "#B22222", "#006D4F"
_WIDTH_IN, _DPI = 7.0, 100  # 700 pixels wide


def style(name: str) -> tuple[str, str]:
    """Return the colour and marker of a pipeline."""
    return STYLES.get(name, _OTHER_STYLE)


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain_numbers(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def memory_throughput_map(
    measurements: Iterable[Measurement],
    *,
    budget_mib: float | None = None,
    ceiling_images_per_s: float | None = None,
    title: str = "",
) -> Figure:
    """Draw the course's map: peak memory against throughput, a dot per pipeline.

    Parameters
    ----------
    measurements : iterable of Measurement
        A dot stands at `peak_mib` and `first_epoch_images_per_s`; a run that ended early is a cross at its peak.
    budget_mib : float, optional
        A vertical line: what lies to its right does not fit.
    ceiling_images_per_s : float, optional
        A horizontal line: what lies below it lets the accelerator wait.
    """
    figure, axes = _figure(4.0)
    axes.set(xscale="log", yscale="log", xlabel="peak memory (MiB)", ylabel="images/s, first epoch", title=title)
    measurements = list(measurements)
    done = [one for one in measurements if one.first_epoch_images_per_s]
    xs = [one.peak_mib for one in measurements] + ([budget_mib] if budget_mib else [])
    ys = [one.first_epoch_images_per_s for one in done] + ([ceiling_images_per_s] if ceiling_images_per_s else [])
    axes.set_xlim(min([30, *(x / 2 for x in xs)]), max([3000, *(3 * x for x in xs)]))
    axes.set_ylim(min([100, *(y / 2 for y in ys)]), max([3000, *(2.5 * y for y in ys)]))
    labels = []
    for one in measurements:
        colour, marker = style(one.name)
        if one.first_epoch_images_per_s:
            x, y = one.peak_mib, one.first_epoch_images_per_s
            axes.plot(x, y, marker, color=colour, markersize=10, zorder=3)
            labels.append((x, y, one.name, colour))
        else:
            x, y = one.peak_mib, axes.get_ylim()[0] * 1.3
            axes.plot(x, y, "x", color=colour, markersize=11, markeredgewidth=3, zorder=3)
            labels.append((x, y, f"{one.name}: {one.outcome}", colour))
    _label_apart(axes, labels)
    if budget_mib:
        axes.axvline(budget_mib, color=_BUDGET_COLOUR, linestyle="--", linewidth=1.2)
        where = axes.get_xaxis_transform()
        text = f" budget {budget_mib:,.0f} MiB"
        axes.text(budget_mib, 0.98, text, color=_BUDGET_COLOUR, transform=where, va="top", fontsize=9)
    if ceiling_images_per_s:
        axes.axhline(ceiling_images_per_s, color=_CEILING_COLOUR, linestyle="--", linewidth=1.2)
        where = axes.get_yaxis_transform()
        text = f"accelerator's ceiling {ceiling_images_per_s:,.0f} images/s "
        axes.text(
            0.0, ceiling_images_per_s, " " + text, color=_CEILING_COLOUR, transform=where, va="bottom", fontsize=9
        )
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.grid(which="major", color="#E8E8E8", zorder=0)
    plt.close(figure)
    return figure


def _label_apart(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write a label beside each dot, moved up where two would stand on each other."""
    taken: list[tuple[float, float]] = []
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        at_x, at_y = axes.transData.transform((x, y))
        target_y = at_y
        while any(abs(target_y - other_y) < 15 and abs(at_x - other_x) < 150 for other_x, other_y in taken):
            target_y += 3
        taken.append((at_x, target_y))
        axes.annotate(
            text, (x, y), (9, (target_y - at_y) * 72 / _DPI), textcoords="offset points", va="center", color=colour,
            fontsize=9,
        )  # fmt: skip


def memory_strip(
    runs: dict[str, ChildResult | Measurement] | ChildResult | Measurement,
    *,
    budget_mib: float | None = None,
    height_in: float = 2.2,
) -> Figure:
    """Draw memory held over time, one line for each run, with the budget as a line.

    Parameters
    ----------
    runs : dict or one run
        Label to result. Time starts with the process, imports included.
    """
    if not isinstance(runs, dict):
        runs = {getattr(runs, "name", "memory held"): runs}
    figure, axes = _figure(height_in)
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#555555"]
    longest = top = 0.0
    for number, (label, result) in enumerate(runs.items()):
        timeline = result.timeline if isinstance(result, ChildResult) else result.memory_timeline
        seconds, held = [point[0] for point in timeline], [point[1] for point in timeline]
        colour = style(label)[0] if label in STYLES else colours[number % len(colours)]
        axes.plot(seconds, held, color=colour, linewidth=1.6)
        if len(runs) == 1:
            axes.fill_between(seconds, held, color=colour, alpha=0.15, linewidth=0)
        if seconds:
            at_end = "x" if result.outcome != "finished" else "o"
            axes.plot(seconds[-1], held[-1], at_end, color=colour, markersize=6, markeredgewidth=2)
            died = result.outcome != "finished"
            text, place = (f"{label}: {result.outcome}", (7, -10)) if died else (label, (7, 0))
            where = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
            axes.annotate(text, (seconds[-1], held[-1]), place, color=colour, fontsize=9, **where)
            longest, top = max(longest, seconds[-1]), max(top, *held)
    if budget_mib:
        axes.axhline(budget_mib, color=_BUDGET_COLOUR, linestyle="--", linewidth=1.2)
        axes.text(0, budget_mib, f"budget {budget_mib:,.0f} MiB", color=_BUDGET_COLOUR, va="bottom", fontsize=9)
        top = max(top, budget_mib)
    axes.set(xlabel="seconds since the process started", ylabel="memory held (MiB)")
    axes.set_xlim(0, (longest or 1) * 1.32)
    axes.set_ylim(0, (top or 1) * 1.18)
    _plain_numbers(axes.yaxis)
    plt.close(figure)
    return figure


def step_timeline(measurements: Iterable[Measurement] | Measurement, *, steps: int = 12) -> Figure:
    """Draw the first training steps of each pipeline: when the accelerator waited and when it computed.

    Parameters
    ----------
    measurements : Measurement or iterable of them
        Measured with an accelerator; the first step, which is not counted, is left out.
    """
    measurements = [measurements] if isinstance(measurements, Measurement) else list(measurements)
    if any(not one.wait_ms for one in measurements):
        raise ValueError("a timeline needs measurements made with an accelerator: measure(…, accelerator=…)")
    figure, axes = _figure(0.9 + 0.55 * len(measurements))
    for row, one in enumerate(measurements):
        spans = np.array([one.wait_ms[1 : steps + 1], one.compute_ms[1 : steps + 1]]).T.ravel()
        ends = np.cumsum(spans)
        starts = ends - spans
        axes.broken_barh(list(zip(starts[::2], spans[::2], strict=True)), (row - 0.3, 0.6), color=_WAITING)
        axes.broken_barh(list(zip(starts[1::2], spans[1::2], strict=True)), (row - 0.3, 0.6), color=_COMPUTING)
    axes.set_yticks(range(len(measurements)), [one.name for one in measurements])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.text(0, 1.02, "accelerator computes", color=_COMPUTING, transform=axes.transAxes, fontsize=9)
    axes.text(0.27, 1.02, "waits for the pipeline", color="#888888", transform=axes.transAxes, fontsize=9)
    plt.close(figure)
    return figure


def show_images(images: Sequence[np.ndarray], titles: Sequence[str] = (), *, columns: int = 4) -> Image:
    """Show images in rows, with a title above each, as one JPEG: photographs weigh a fifth of what they do as PNG.

    Parameters
    ----------
    images : sequence of numpy.ndarray
        Each ``(height, width, 3)`` or ``(height, width, 1)``; uint8, or floats in [-1, 1], which are scaled back.
    """
    rows = -(-len(images) // columns)
    size_in = (_WIDTH_IN, rows * _WIDTH_IN / columns * 0.92)
    figure, grid = plt.subplots(rows, columns, figsize=size_in, dpi=_DPI, layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, image) in enumerate(zip(grid.flat, images, strict=False)):
        image = np.asarray(image)
        if np.issubdtype(image.dtype, np.floating):
            image = np.clip((image + 1) / 2, 0, 1)
        axes.imshow(image, cmap="gray" if image.shape[-1] == 1 else None)
        if number < len(titles):
            axes.set_title(titles[number], fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 85})
    plt.close(figure)
    return Image(buffer.getvalue(), format="jpeg")


class show_change:
    """Show what changed between two functions, line by line; removed lines red, added lines green.

    Parameters
    ----------
    before, after : callable or str
        Functions, also from notebook cells, or their source.
    """

    def __init__(self, before: Callable | str, after: Callable | str):
        lines = [_source(one).splitlines() for one in (before, after)]
        self._diff = [line for line in difflib.ndiff(*lines) if not line.startswith("?")]

    def __repr__(self) -> str:
        return "\n".join(self._diff)

    def _repr_html_(self) -> str:
        colours = {"-": "background:rgba(213,94,0,.18)", "+": "background:rgba(0,158,115,.22)"}
        rows = "".join(
            f"<div style='{colours.get(line[0], '')};white-space:pre'>{html.escape(line) or ' '}</div>"
            for line in self._diff
        )
        return f"<div style='font-family:monospace;font-size:90%;line-height:1.35;overflow-x:auto'>{rows}</div>"


def _source(function: Callable | str) -> str:
    return textwrap.dedent(function if isinstance(function, str) else inspect.getsource(function)).strip("\n")
