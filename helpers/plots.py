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
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from helpers.files import printable
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
    # Lesson 11's: their markers distinguish them better than their colours.
    "torch": ("#7F3C8D", "p"),
    "grain": ("#7A4A1E", "h"),
    "spdl": ("#3D5A80", "<"),
    "webdataset": ("#000000", ">"),
    "dali": ("#6B6B6B", "H"),
    "litdata": ("#A0522D", "d"),
}
_OTHER_STYLE = ("#000000", ".")
_STRIP_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#555555")
_WAITING, _COMPUTING = "#D0D0D0", "#0072B2"
_BUDGET_COLOUR, _CEILING_COLOUR = "#B22222", "#006D4F"
_WIDTH_IN, _DPI = 7.0, 100  # 700 pixels wide
_STEPS_SHOWN = 12


def style(name: str) -> tuple[str, str]:
    """Return the colour and marker of a pipeline."""
    return STYLES.get(name, _OTHER_STYLE)


def _as_it_is(name: str) -> str:
    """Return a name from a folder or a file for a figure: matplotlib would take what stands between $ for a formula."""
    return printable(name).replace("$", r"\$")


def _place(name: str) -> int:
    return list(STYLES).index(name) if name in STYLES else len(STYLES)


def _figure(height_in: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes; pyplot forgets it at once, so a notebook shows it only where it is returned."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E8E8E8"}):
        size = (_WIDTH_IN, height_in)
        figure, axes = plt.subplots(rows, columns, figsize=size, dpi=_DPI, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def _plain_numbers(*scales) -> None:
    for scale in scales:
        scale.set_major_formatter("{x:,.0f}")
        scale.set_minor_formatter("")


def _labelled(own: Iterable[Measurement], reference: Iterable[Measurement]) -> list[tuple[Measurement, str, str]]:
    """Return each row with its label and the colour inside its mark: another machine's rows are hollow."""
    filled = [(one, _as_it_is(one.name), style(one.name)[0]) for one in own]
    return filled + [(one, f"{_as_it_is(one.name)} (reference)", "white") for one in reference]


def memory_throughput_map(
    measurements: Iterable[Measurement],
    *,
    reference: Iterable[Measurement] = (),
    budget_mib: float | None = None,
    ceiling_images_per_s: float | None = None,
) -> Figure:
    """Draw the course's map: the memory that a pipeline takes itself against throughput, a dot per pipeline.

    Parameters
    ----------
    measurements : iterable of Measurement
        A dot stands at `memory.own_mib` and `training.images_per_s`, or, if no row was measured while training, at
        `alone.first_epoch_images_per_s`. A run without that figure is a cross at its memory.
    reference : iterable of Measurement
        Rows of another machine: hollow, and labelled so.
    budget_mib : float, optional
        A vertical line, in MiB above the imports: what lies to its right does not fit.
    ceiling_images_per_s : float, optional
        A horizontal line: what lies below it lets the accelerator wait.
    """
    figure, axes = _figure(4.0)
    rows = _labelled(measurements, reference)
    rates, ylabel = [one.training.images_per_s for one, *_ in rows], "images/s while training"
    if rows and not any(rates):
        rates, ylabel = [one.alone.first_epoch_images_per_s for one, *_ in rows], "images/s, first epoch"
    held_mib = [max(1, one.memory.own_mib) for one, *_ in rows]  # on a logarithmic scale 0 has no place
    xs = [x for x in (budget_mib, *held_mib) if x]
    ys = [y for y in (ceiling_images_per_s, *rates) if y]
    lowest = min([100, *(y / 2 for y in ys)])
    axes.set(
        xscale="log",
        xlabel="memory above the imports (MiB)",
        xlim=(min([5, *(x / 2 for x in xs)]), max([1500, *(3 * x for x in xs)])),
    )
    axes.set(yscale="log", ylabel=ylabel, ylim=(lowest, max([3000, *(2.5 * y for y in ys)])))
    labels = []
    for (one, label, face), x, y in zip(rows, held_mib, rates, strict=True):
        colour, marker = style(one.name)
        if y:
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=10, zorder=3)
        else:
            y, label = 1.3 * lowest, f"{label}: {one.outcome if one.outcome != 'finished' else 'not measured'}"
            axes.plot(x, y, "x", color=colour, markersize=11, markeredgewidth=3, zorder=3)
        labels.append((x, y, label, colour))
    _label_apart(axes, labels, ceiling_images_per_s)
    if budget_mib:
        where = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": 9, "color": _BUDGET_COLOUR}
        axes.axvline(budget_mib, color=_BUDGET_COLOUR, linestyle="--", linewidth=1.2)
        axes.text(budget_mib, 0.98, f" budget {budget_mib:,.0f} MiB", **where)
    if ceiling_images_per_s:
        where = {"transform": axes.get_yaxis_transform(), "va": "bottom", "ha": "right", "fontsize": 9}
        axes.axhline(ceiling_images_per_s, color=_CEILING_COLOUR, linestyle="--", linewidth=1.2)
        ceiling = f"accelerator's ceiling {ceiling_images_per_s:,.0f} images/s"
        axes.text(1, 1.02 * ceiling_images_per_s, ceiling, color=_CEILING_COLOUR, **where)
    _plain_numbers(axes.xaxis, axes.yaxis)
    axes.grid(which="major", zorder=0)
    return figure


def _label_apart(axes: Axes, labels: list[tuple[float, float, str, str]], ceiling: float | None) -> None:
    """Write a label beside each dot, off other dots, labels and the ceiling; a line leads to one that was moved."""
    pixels = _DPI / 72  # in a point
    dots = [tuple(axes.transData.transform((x, y))) for x, y, *_ in labels]
    taken = [(x - 6 * pixels, x + 6 * pixels, y) for x, y in dots]
    if ceiling:
        _, at_y = axes.transData.transform((1, ceiling))
        line, text = (-np.inf, np.inf, at_y), (axes.bbox.x1 - 200 * pixels, np.inf, at_y + 8 * pixels)
        taken += [line, text]
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        at_x, at_y = axes.transData.transform((x, y))
        places = []
        for side in (1, -1):
            low, high = sorted(at_x + side * pixels * points for points in (9, 9 + 6 * len(text)))
            near = [other_y for a, b, other_y in taken if low < b and a < high]
            moves = [move for move in range(-200, 200, 2) if all(abs(at_y + move - one) >= 11 * pixels for one in near)]
            move = min(moves, key=abs, default=0)
            places.append((abs(move) + 1000 * (low < axes.bbox.x0 or high > axes.bbox.x1), -side, move, low, high))
        _, left, move, *width = min(places)
        taken.append((*width, at_y + move))
        where = {"textcoords": "offset points", "va": "center", "color": colour, "fontsize": 9, "zorder": 2.5}
        where["ha"] = "right" if left == 1 else "left"
        if abs(move) > 8 * pixels:
            where["arrowprops"] = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # the lines stay out of the text
        axes.annotate(text, (x, y), (-9 * left, move / pixels), bbox=behind, **where)


def memory_strip(runs: Mapping[str, ChildResult], *, budget_mib: float | None = None) -> Figure:
    """Draw memory held over time, one line for each run, with the budget as a line.

    Parameters
    ----------
    runs : mapping
        Label to result. Time starts with the process, imports included.
    """
    figure, axes = _figure(2.2)
    for number, (label, result) in enumerate(runs.items()):
        if not result.timeline:
            continue
        seconds, held, *_ = zip(*result.timeline, strict=True)
        colour = style(label)[0] if label in STYLES else _STRIP_COLOURS[number % len(_STRIP_COLOURS)]
        axes.plot(seconds, held, color=colour, linewidth=1.6)
        if len(runs) == 1:
            axes.fill_between(seconds, held, color=colour, alpha=0.15, linewidth=0)
        end, died = (seconds[-1], held[-1]), result.outcome != "finished"
        axes.plot(*end, "x" if died else "o", color=colour, markersize=6, markeredgewidth=2)
        where = {"textcoords": "offset points", "va": "center", "annotation_clip": False, "fontsize": 9}
        text = _as_it_is(f"{label}: {result.outcome}" if died else label)
        axes.annotate(text, end, (7, -10 if died else 0), color=colour, **where)
    if budget_mib:
        axes.axhline(budget_mib, color=_BUDGET_COLOUR, linestyle="--", linewidth=1.2)
        axes.text(0, budget_mib, f"budget {budget_mib:,.0f} MiB", color=_BUDGET_COLOUR, va="bottom", fontsize=9)
    points = [point for result in runs.values() for point in result.timeline] or [(1, 1)]
    axes.set(xlabel="seconds since the process started", xlim=(0, 1.32 * max(point[0] for point in points)))
    axes.set(ylabel="memory held (MiB)", ylim=(0, 1.18 * max([budget_mib or 0, *(point[1] for point in points)])))
    _plain_numbers(axes.yaxis)
    return figure


def step_timeline(measurements: Iterable[Measurement] | Measurement) -> Figure:
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
        steps = zip(one.training.wait_ms[1:], one.training.compute_ms[1:], strict=False)
        spans = np.array(list(steps)[:_STEPS_SHOWN]).ravel()
        bars = np.stack([np.cumsum(spans) - spans, spans], axis=1)  # start and length
        axes.broken_barh(bars[::2], (row - 0.3, 0.6), color=_WAITING)
        axes.broken_barh(bars[1::2], (row - 0.3, 0.6), color=_COMPUTING)
    axes.set_yticks(range(len(measurements)), [_as_it_is(one.name) for one in measurements])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.text(0, 1.02, "accelerator computes", color=_COMPUTING, transform=axes.transAxes, fontsize=9)
    axes.text(0.27, 1.02, "waits for the pipeline", color="#888888", transform=axes.transAxes, fontsize=9)
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
    figures = attrgetter("alone.images_per_s", "training.ceiling_images_per_s", "training.images_per_s")
    rows = [row for row in _labelled(measurements, reference) if all(figures(row[0]))]
    rows.sort(key=lambda row: _place(row[0].name))
    figure, axes = _figure(1.0 + 0.34 * len(rows))
    for place, (one, _, face) in enumerate(rows):
        colour, marker = style(one.name)
        alone, ceiling, together = figures(one)
        in_turn, side_by_side = 1 / (1 / alone + 1 / ceiling), min(alone, ceiling)
        axes.barh(place, side_by_side - in_turn, left=in_turn, height=0.5, color=_WAITING, zorder=2)
        axes.plot(together, place, marker, color=colour, markerfacecolor=face, markersize=9, zorder=3)
    axes.set_yticks(range(len(rows)), [label for _, label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("images/s while training")
    axes.set_title("grey: predicted, from taking turns (left end) to working side by side (right end)", fontsize=9)
    axes.grid(axis="x", zorder=0)
    _plain_numbers(axes.xaxis)
    return figure


def scoreboard_by_pipeline(
    machines: Mapping[str, Sequence[Measurement]],
    *,
    reference: Mapping[str, Sequence[Measurement]] | None = None,
    title: str = "",
) -> Figure:
    """Draw images/s, the accelerator's busy share and peak memory, a row for each pipeline.

    Parameters
    ----------
    machines : mapping
        A machine's name to its measurements. Of one machine the dots are joined, so that one sees what each lesson
        changed. Of several, each has its dot, in the order given from top to bottom; a line marks the median. The two
        lowest and the highest have their machine's number if they are under half or over twice the median. A run that
        ended early is a cross at its peak.
    reference : mapping, optional
        Other machines: hollow dots.
    """
    reference = reference or {}
    rows, hollow = list(machines.values()), list(chain(*reference.values()))
    names = sorted(dict.fromkeys(one.name for one in chain(*rows, hollow)), key=_place)
    figure, panels = _figure(1.1 + 0.42 * len(names), 1, 3, sharey=True, width_ratios=(5, 3, 3))
    figures = {
        "images/s, first epoch": attrgetter("alone.first_epoch_images_per_s"),
        "accelerator busy (%)": attrgetter("training.utilisation_percent"),
        "peak memory (MiB)": attrgetter("memory.peak_mib"),
    }
    for axes, (label, value) in zip(panels, figures.items(), strict=True):
        if axes is not panels[1]:
            axes.set_xscale("log")
        middles = [_draw_row(axes, place, name, rows, hollow, value) for place, name in enumerate(names)]
        if len(rows) == 1:
            axes.plot(middles, range(len(names)), color="#BBBBBB", linewidth=1, zorder=1)
        axes.margins(x=0.16 if len(rows) > 1 else 0.12)  # for numbers beside the outermost dots
        if axes is not panels[1]:
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,)))
        _plain_numbers(axes.xaxis)
        axes.set_xlabel(label, fontsize=9)
        axes.grid(axis="x", zorder=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.tick_params(axis="y", left=False)
    panels[0].set_yticks(range(len(names)), map(_as_it_is, names))
    panels[0].set_ylim(max(len(names), 1) - 0.4, -0.6)
    panels[1].set_xlim(-22 if len(rows) > 1 else -5, 105)
    where = {"transform": panels[0].get_yaxis_transform(), "va": "center", "ha": "right", "color": _BUDGET_COLOUR}
    for place, (tick, name) in enumerate(zip(panels[0].get_yticklabels(), names, strict=True)):
        tick.set_color(style(name)[0])
        if failed := _failed(name, rows):
            panels[0].text(1, place + 0.43 * (len(rows) > 1), failed, fontsize=7, zorder=5, **where)
    lines = [_as_it_is(title), f"one dot for each of {len(rows)} machines; | their median" if len(rows) > 1 else ""]
    lines += [_as_it_is(f"filled: {', '.join(machines)}; hollow: {', '.join(reference)}") if reference else ""]
    figure.suptitle("\n".join(filter(None, lines)), fontsize=9, x=0.01, ha="left")
    return figure


def _draw_row(
    axes: Axes, place: int, name: str, machines: list[Sequence], hollow: list[Measurement], value: Callable
) -> float:
    """Draw one figure of one pipeline; return the median to which a line may lead, else NaN."""
    colour, marker = style(name)
    for other in (value(one) for one in hollow if one.name == name):
        axes.plot(other or np.nan, place, marker, color=colour, markerfacecolor="white", markersize=7, zorder=2)
    found = {number: one for number, rows in enumerate(machines) for one in rows if one.name == name and value(one)}
    if not found:
        return np.nan
    several, middle = len(machines) > 1, float(np.median([value(one) for one in found.values()]))
    size, opacity = (max(3.5, 7 - len(machines) / 8), 0.8) if several else (8, 1)
    note = partial(axes.annotate, textcoords="offset points", zorder=5)
    order = sorted(found, key=lambda number: value(found[number])) if len(found) > 2 else []
    ends = {*order[:2], *order[-1:]}
    for number, one in found.items():
        at = (value(one), place + (0.56 * number / (len(machines) - 1) - 0.28 if several else 0))
        mark = marker if one.outcome == "finished" else "x"
        axes.plot(*at, mark, color=colour, markersize=size, alpha=opacity, zorder=3)
        if number in ends and not middle / 2 <= at[0] <= 2 * middle:
            aside, end = (-6, "right") if at[0] < middle else (6, "left")
            note(str(number + 1), at, (aside, 0), va="center", ha=end, fontsize=8)
    if not several:
        note(f"{middle:,.0f}", (middle, place), (0, 6), ha="center", color=colour, fontsize=7.5)
    elif len(found) > 1:
        axes.plot([middle, middle], [place - 0.38, place + 0.38], color="black", linewidth=1.5, zorder=4)
        note(f"{middle:,.0f}", (middle, place - 0.36), (3, 0), fontsize=7)
    return middle if name in STYLES and all(one.outcome == "finished" for one in found.values()) else np.nan


def _failed(name: str, machines: list[Sequence]) -> str:
    """Return what became of a pipeline's runs that have no rate, with their machines' numbers if there are several."""
    failed: dict[str, list[str]] = {}
    for number, rows in enumerate(machines, 1):
        for one in rows:
            if one.name == name and not one.alone.first_epoch_images_per_s:
                failed.setdefault(one.outcome, []).append(str(number))
    return "; ".join(f"{why}: {', '.join(at)}" if len(machines) > 1 else why for why, at in failed.items())


def show_images(images: Sequence[np.ndarray], titles: Sequence[str] = (), *, columns: int = 4) -> Image:
    """Show images in rows, with a title above each, as one JPEG: photographs weigh a fifth of what they do as PNG.

    Parameters
    ----------
    images : sequence of numpy.ndarray
        Each ``(height, width, 3)`` or ``(height, width, 1)``; uint8, or floats in [-1, 1], which are scaled back.
    """
    rows = -(-len(images) // columns)
    figure, grid = _figure(rows * _WIDTH_IN / columns * 0.92, rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image in zip(grid.flat, map(np.asarray, images), strict=False):
        if np.issubdtype(image.dtype, np.floating):
            image = np.clip((image + 1) / 2, 0, 1)
        axes.imshow(image, cmap="gray" if image.shape[-1] == 1 else None)
    for axes, title in zip(grid.flat, titles, strict=False):
        axes.set_title(_as_it_is(title), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 85})
    return Image(buffer.getvalue(), format="jpeg")


class show_change:
    """Show what changed between two functions, line by line; removed lines red, added lines green."""

    def __init__(self, before: Callable, after: Callable):
        lines = [textwrap.dedent(inspect.getsource(one)).strip("\n").splitlines() for one in (before, after)]
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
