"""Every figure of the course. One colour and one marker per pipeline, the same in every notebook.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; markers differ too.
"""

from __future__ import annotations

import difflib
import html
import inspect
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from helpers.measurement import Measurement
from helpers.sandbox import ChildResult

__all__ = [
    "memory_strip",
    "memory_throughput_map",
    "predicted_and_measured",
    "scoreboard_by_pipeline",
    "show_change",
    "show_images",
    "step_timeline",
]

STYLES = {
    "load_everything": ("#D55E00", "s"),
    "generator": ("#E69F00", "o"),
    "threaded_generator": ("#8C6D1F", "D"),
    "keras_sequence": ("#CC79A7", "^"),
    "tf1_queues": ("#555555", "v"),
    "tf_data": ("#56B4E9", "P"),
    "tf_data_fast": ("#0072B2", "X"),
    "tf_data_packed": ("#009E73", "*"),
    # Lesson 10's; told apart by their marks rather than by colour.
    "torch": ("#7F3C8D", "p"),
    "grain": ("#7A4A1E", "h"),
    "spdl": ("#3D5A80", "<"),
    "webdataset": ("#000000", ">"),
    "dali": ("#6B6B6B", "H"),
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
    reference: Iterable[Measurement] = (),
    budget_mib: float | None = None,
    ceiling_images_per_s: float | None = None,
    title: str = "",
) -> Figure:
    """Draw the course's map: peak memory against throughput, a dot per pipeline.

    Parameters
    ----------
    measurements : iterable of Measurement
        A dot stands at `memory.peak_mib` and `alone.first_epoch_images_per_s`; of a run that ended early, a cross at
        its peak.
    reference : iterable of Measurement
        Rows of another machine: hollow, and labelled so.
    budget_mib : float, optional
        A vertical line: what lies to its right does not fit.
    ceiling_images_per_s : float, optional
        A horizontal line: what lies below it lets the accelerator wait.
    """
    figure, axes = _figure(4.0)
    axes.set(xscale="log", yscale="log", xlabel="peak memory (MiB)", ylabel="images/s, first epoch", title=title)
    reference = list(reference)
    measurements = [*measurements, *reference]
    rates = [one.alone.first_epoch_images_per_s for one in measurements if one.alone.first_epoch_images_per_s]
    xs = [one.memory.peak_mib for one in measurements] + ([budget_mib] if budget_mib else [])
    ys = rates + ([ceiling_images_per_s] if ceiling_images_per_s else [])
    axes.set_xlim(min([30, *(x / 2 for x in xs)]), max([3000, *(3 * x for x in xs)]))
    axes.set_ylim(min([100, *(y / 2 for y in ys)]), max([3000, *(2.5 * y for y in ys)]))
    labels = []
    for one in measurements:
        colour, marker = style(one.name)
        x, y, name = one.memory.peak_mib, one.alone.first_epoch_images_per_s, _marked(one, reference)
        if y:
            face = colour if name == one.name else "white"
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=10, zorder=3)
            labels.append((x, y, name, colour))
        else:
            y = axes.get_ylim()[0] * 1.3
            axes.plot(x, y, "x", color=colour, markersize=11, markeredgewidth=3, zorder=3)
            labels.append((x, y, f"{name}: {one.outcome}", colour))
    _label_apart(axes, labels)
    if budget_mib:
        axes.axvline(budget_mib, color=_BUDGET_COLOUR, linestyle="--", linewidth=1.2)
        where = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": 9}
        axes.text(budget_mib, 0.98, f" budget {budget_mib:,.0f} MiB", color=_BUDGET_COLOUR, **where)
    if ceiling_images_per_s:
        axes.axhline(ceiling_images_per_s, color=_CEILING_COLOUR, linestyle="--", linewidth=1.2)
        where = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": 9}
        text = f" accelerator's ceiling {ceiling_images_per_s:,.0f} images/s "
        axes.text(0.0, ceiling_images_per_s, text, color=_CEILING_COLOUR, **where)
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
        timeline = result.timeline if isinstance(result, ChildResult) else result.memory.timeline
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
    if any(not one.training.wait_ms for one in measurements):
        raise ValueError("a timeline needs measurements made with an accelerator: measure(…, accelerator=…)")
    figure, axes = _figure(0.9 + 0.55 * len(measurements))
    for row, one in enumerate(measurements):
        spans = np.array([one.training.wait_ms[1 : steps + 1], one.training.compute_ms[1 : steps + 1]]).T.ravel()
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


def predicted_and_measured(measurements: Iterable[Measurement], *, reference: Iterable[Measurement] = ()) -> Figure:
    """Draw what training was predicted to reach, as a bar, and what it reached, as a dot.

    Parameters
    ----------
    measurements, reference : iterable of Measurement
        Made with an accelerator; others are left out. The bar begins where pipeline and accelerator take turns,
        ``1 / (1 / alone + 1 / ceiling)``, and ends where they work side by side, ``min(alone, ceiling)``. Rows of
        another machine are hollow.
    """
    own, reference = (
        [
            one
            for one in rows
            if one.alone.images_per_s and one.training.ceiling_images_per_s and one.training.images_per_s
        ]
        for rows in (measurements, reference)
    )
    rows = sorted([*own, *reference], key=lambda one: _place(one.name))
    figure, axes = _figure(1.0 + 0.34 * len(rows))
    for place, one in enumerate(rows):
        colour, marker = style(one.name)
        borrowed = any(one is other for other in reference)
        alone, ceiling = one.alone.images_per_s, one.training.ceiling_images_per_s
        in_turn, side_by_side = 1 / (1 / alone + 1 / ceiling), min(alone, ceiling)
        axes.barh(place, side_by_side - in_turn, left=in_turn, height=0.5, color=_WAITING, zorder=2)
        face = "white" if borrowed else colour
        axes.plot(one.training.images_per_s, place, marker, color=colour, markerfacecolor=face, markersize=9, zorder=3)
    axes.set_yticks(range(len(rows)), [_marked(one, reference) for one in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("images/s while training")
    axes.set_title("grey: predicted, from taking turns (left end) to working side by side (right end)", fontsize=9)
    axes.grid(axis="x", color="#E8E8E8", zorder=0)
    _plain_numbers(axes.xaxis)
    plt.close(figure)
    return figure


def scoreboard_by_pipeline(
    machines: Mapping[str, Sequence[Measurement]],
    *,
    reference: Mapping[str, Sequence[Measurement]] | None = None,
    accelerator: str | None = None,
    title: str = "",
) -> Figure:
    """Draw images/s, the accelerator's busy share and peak memory, a row for each pipeline.

    Parameters
    ----------
    machines : mapping
        A machine's name to its measurements. Of one machine the dots are joined, so that one sees what each lesson
        changed. Of several, each has its dot, in the order given from top to bottom; a line marks the median, and a
        machine's number stands beside a dot that is under half or over twice the median. A run that ended early is a
        cross at its peak.
    reference : mapping, optional
        Other machines: hollow dots.
    accelerator : str, optional
        Only rows trained with this one have a place among the busy shares; by default all.
    """
    reference = reference or {}
    names = sorted({one.name for rows in [*machines.values(), *reference.values()] for one in rows}, key=_place)
    figure, panels = plt.subplots(
        1, 3, figsize=(_WIDTH_IN, 1.1 + 0.42 * len(names)), dpi=_DPI, layout="constrained", sharey=True,
        width_ratios=(5, 3, 3),
    )  # fmt: skip

    def busy(one: Measurement) -> float | None:
        return one.training.utilisation_percent if accelerator in (None, one.training.accelerator) else None

    figures = {
        "images/s, first epoch": lambda one: one.alone.first_epoch_images_per_s or None,
        "accelerator busy (%)": busy,
        "peak memory (MiB)": lambda one: one.memory.peak_mib or None,
    }
    for axes, (label, value) in zip(panels, figures.items(), strict=True):
        if value is not busy:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        _draw_rows(axes, names, list(machines.values()), list(reference.values()), value)
        _plain_numbers(axes.xaxis)
        axes.set_xlabel(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#E8E8E8", zorder=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.tick_params(axis="y", left=False)
    panels[0].set_yticks(range(len(names)), names)
    for tick, name in zip(panels[0].get_yticklabels(), names, strict=True):
        tick.set_color(style(name)[0])
    panels[0].set_ylim(max(len(names), 1) - 0.4, -0.6)
    panels[1].set_xlim(-5, 105)
    _name_the_failed(panels[0], names, list(machines.values()))
    figure.suptitle(_with_key(title, machines, reference), fontsize=9, x=0.01, ha="left")
    plt.close(figure)
    return figure


def _place(name: str) -> int:
    order = list(STYLES)
    return order.index(name) if name in order else len(order)


def _marked(one: Measurement, reference: Sequence[Measurement]) -> str:
    return f"{one.name} (reference)" if any(one is other for other in reference) else one.name


def _draw_rows(
    axes: Axes, names: list[str], machines: list[Sequence], reference: list[Sequence], value: Callable
) -> None:
    """Draw one figure of every machine, each at the height of its pipeline."""
    heights = np.linspace(-0.28, 0.28, len(machines)) if len(machines) > 1 else [0.0]
    size = 8 if len(machines) == 1 else max(3.5, 7 - len(machines) / 8)
    joined = []
    for place, name in enumerate(names):
        colour, marker = style(name)
        for one in (one for rows in reference for one in rows if one.name == name and value(one) is not None):
            axes.plot(value(one), place, marker, color=colour, markerfacecolor="white", markersize=7, zorder=2)
        found = {number: one for number, rows in enumerate(machines) for one in rows if one.name == name}
        found = {number: one for number, one in found.items() if value(one) is not None}
        values = {number: value(one) for number, one in found.items()}
        middle = float(np.median(list(values.values()))) if values else None
        for number, one in found.items():
            at = (values[number], place + heights[number])
            mark = marker if one.outcome == "finished" else "x"
            axes.plot(*at, mark, color=colour, markersize=size, alpha=0.8 if len(machines) > 1 else 1, zorder=3)
            if len(values) > 2 and not middle / 2 <= at[0] <= 2 * middle:
                axes.annotate(
                    str(number + 1), at, (6, 0), textcoords="offset points", va="center", fontsize=8, zorder=5
                )
        if len(machines) == 1 and values:
            label = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5, "zorder": 5}
            axes.annotate(f"{middle:,.0f}", (middle, place), (0, 6), color=colour, **label)
        elif len(values) > 1:
            axes.plot([middle, middle], [place - 0.38, place + 0.38], color="black", linewidth=1.5, zorder=4)
            axes.annotate(
                f"{middle:,.0f}", (middle, place - 0.36), (3, 0), textcoords="offset points", fontsize=7, zorder=5
            )
        is_step = len(machines) == 1 and values and name in STYLES and found[0].outcome == "finished"
        joined.append((middle, place) if is_step else (np.nan, place))  # no line across a row without a figure
    if joined:
        axes.plot(*zip(*joined, strict=True), color="#BBBBBB", linewidth=1, zorder=1)
    axes.margins(x=0.12)


def _name_the_failed(axes: Axes, names: list[str], machines: list[Sequence]) -> None:
    """Write in a pipeline's row what became of the runs that have no rate."""
    for place, name in enumerate(names):
        failed: dict[str, list[str]] = {}
        for number, rows in enumerate(machines, 1):
            for one in rows:
                if one.name == name and not one.alone.first_epoch_images_per_s:
                    failed.setdefault(one.outcome, []).append(str(number))
        text = "; ".join(
            outcome + (f": {', '.join(numbers)}" if len(machines) > 1 else "") for outcome, numbers in failed.items()
        )
        where = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
        if text:
            axes.text(1, place, text, color=_BUDGET_COLOUR, fontsize=7.5, zorder=5, **where)


def _with_key(title: str, machines: Mapping, reference: Mapping) -> str:
    """Return the title with a line below it that says what the marks are."""
    parts = [f"one dot for each of {len(machines)} machines; | their median"] if len(machines) > 1 else []
    if reference:
        parts += [f"filled: {', '.join(machines)}; hollow: {', '.join(reference)}"]
    return "\n".join(line for line in (title, *parts) if line)


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
