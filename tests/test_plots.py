"""Figures are drawn from whatever a measurement holds, and show what they say."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_scoreboard import measurement

from helpers import plots
from helpers.pipelines import PIPELINES


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert plt.get_fignums() == []


def texts(figure) -> str:
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def png_size(figure) -> tuple[int, int]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return plt.imread(io.BytesIO(buffer.getvalue())).shape[1::-1]


def test_the_map_names_each_dot_and_both_lines():
    rows = [measurement("generator"), measurement("tf_data", peak_mib=650, first_epoch_images_per_s=1000.0)]
    figure = plots.memory_throughput_map(rows, budget_mib=400, ceiling_images_per_s=920)
    for name in ("generator", "tf_data", "budget 400 MiB", "ceiling 920 images/s"):
        assert name in texts(figure)
    (low, high), (left, right) = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()
    assert low < 500 and high > 1000 and left < 90 and right > 650
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert png_size(figure)[0] == 700


def test_the_map_shows_a_run_that_died():
    dead = measurement("generator", outcome="out of memory", first_epoch_images_per_s=None, images_per_s=None)
    assert "generator: out of memory" in texts(plots.memory_throughput_map([dead], budget_mib=90))


def test_the_map_may_be_empty():
    assert texts(plots.memory_throughput_map([], budget_mib=400)) == " budget 400 MiB"


def test_labels_of_dots_at_one_place_stand_apart():
    rows = [measurement(name) for name in ("generator", "tf_data", "keras_sequence")]
    figure = plots.memory_throughput_map(rows)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_every_pipeline_has_a_colour_and_a_marker_of_its_own():
    assert set(PIPELINES) <= set(plots.STYLES)
    colours = {to_rgb(colour) for colour, _ in plots.STYLES.values()}
    markers = {marker for _, marker in plots.STYLES.values()}
    assert len(colours) == len(markers) == len(plots.STYLES)


def test_the_strip_shows_each_run_and_the_budget():
    runs = {"list": measurement(), "array": measurement(outcome="out of memory")}
    figure = plots.memory_strip(runs, budget_mib=80)
    assert "list" in texts(figure) and "array: out of memory" in texts(figure) and "budget 80 MiB" in texts(figure)
    assert figure.axes[0].get_ylim()[1] > 90.5


def test_the_strip_of_a_run_without_samples():
    assert plots.memory_strip(measurement(memory_timeline=())).axes


def test_the_timeline_leaves_the_first_step_out():
    one = measurement(wait_ms=(900.0, 20.0, 20.0), compute_ms=(30.0, 30.0, 30.0))
    axes = plots.step_timeline(one).axes[0]
    ends = [path.vertices[:, 0].max() for bars in axes.collections for path in bars.get_paths()]
    assert max(ends) == pytest.approx(100)


def test_a_timeline_needs_an_accelerator():
    with pytest.raises(ValueError, match="accelerator="):
        plots.step_timeline(measurement())


@pytest.mark.parametrize(
    "image",
    [
        np.full((20, 30, 3), 200, np.uint8),
        np.full((20, 30, 1), 200, np.uint8),
        np.full((20, 30, 3), 0.5, np.float32),
    ],
)
def test_images_are_shown_as_jpeg(image):
    shown = plots.show_images([image] * 5, ["a"] * 5)
    assert shown.data.startswith(b"\xff\xd8") and len(shown.data) < 100_000


def before(files):
    return [path.lower() for path in files]


def after(files):
    return sorted(path for path in files if path < "<b>")


def test_a_change_is_shown_line_by_line():
    change = plots.show_change(before, after)
    lines = repr(change).splitlines()
    assert "-     return [path.lower() for path in files]" in lines
    assert any(line.startswith("+ ") and "sorted" in line for line in lines)
    page = change._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page
