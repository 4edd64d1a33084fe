"""Figures are drawn from whatever a measurement holds, and show what they say."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_scoreboard import measurement

from helpers import plots
from helpers.files import printable
from helpers.pipelines import PIPELINES
from helpers.sandbox import Outcome, run

NO_RATE = {"first_epoch_images_per_s": None, "images_per_s": None}


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
    rows = [
        measurement("generator"),
        measurement("tf_data", memory={"peak_mib": 650.0}, alone={"first_epoch_images_per_s": 1000.0}),
    ]
    figure = plots.memory_throughput_map(rows, budget_mib=400, ceiling_images_per_s=920)
    for name in ("generator", "tf_data", "budget 400 MiB", "ceiling 920 images/s"):
        assert name in texts(figure)
    (low, high), (left, right) = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()
    assert low < 500 and high > 1000 and left < 90 and right > 650
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_ylabel() == "images/s, first epoch"
    assert png_size(figure)[0] == 700


def test_the_map_shows_memory_above_the_imports_and_the_rate_while_training():
    memory = {"peak_mib": 650.0, "baseline_mib": 500.0}
    row = measurement("tf_data", training={"ceiling_images_per_s": 900.0, "images_per_s": 850.0}, memory=memory)
    figure = plots.memory_throughput_map([row, measurement("generator")])
    assert figure.axes[0].get_ylabel() == "images/s while training"
    (dot,) = [line for line in figure.axes[0].lines if line.get_marker() != "x"]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (150.0, 850.0)
    assert "generator: not measured" in texts(figure)


def test_the_map_shows_a_run_that_died():
    dead = measurement("generator", outcome="out of memory", alone=NO_RATE)
    assert "generator: out of memory" in texts(plots.memory_throughput_map([dead], budget_mib=90))


def test_the_map_may_be_empty():
    assert texts(plots.memory_throughput_map([], budget_mib=400)) == " budget 400 MiB"


def test_labels_of_dots_at_one_place_stand_apart():
    rows = [measurement(name) for name in PIPELINES]
    for ceiling in (None, 1.01 * rows[0].alone.first_epoch_images_per_s):
        figure = plots.memory_throughput_map(rows, ceiling_images_per_s=ceiling)
        labels = [text for text in figure.axes[0].texts if isinstance(text, plt.Annotation)]
        for label in labels:
            label.update_positions(figure._get_renderer())
        boxes = [plt.Text.get_window_extent(label) for label in labels]  # without the lines, which may cross
        assert len(boxes) == len(PIPELINES)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        at_y = figure.axes[0].transData.transform((1, ceiling))[1] if ceiling else -1
        assert not any(box.y0 < at_y < box.y1 for box in boxes)


def test_every_pipeline_has_a_colour_and_a_marker_of_its_own():
    assert set(PIPELINES) <= set(plots.STYLES)
    colours = {to_rgb(colour) for colour, _ in plots.STYLES.values()}
    markers = {marker for _, marker in plots.STYLES.values()}
    assert len(colours) == len(markers) == len(plots.STYLES)


def test_the_map_draws_another_machines_rows_hollow():
    died = measurement("generator", outcome="hung", alone=NO_RATE)
    figure = plots.memory_throughput_map([measurement("tf_data")], reference=[measurement("tf_data_fast"), died])
    assert texts(figure) == "generator (reference): hung | tf_data | tf_data_fast (reference)"
    faces = {line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() != "x"}
    assert faces == {plots.style("tf_data")[0], "white"}


def trained(name="generator", *, alone, **figures):
    training = {"ceiling_images_per_s": 900.0, "images_per_s": 360.0, **figures}
    return measurement(name, training=training, alone=alone)


def test_the_prediction_reaches_from_taking_turns_to_working_side_by_side():
    rows = [trained("tf_data", alone={"images_per_s": 600.0}), measurement("keras_sequence")]
    axes = plots.predicted_and_measured(rows, reference=[trained("generator", alone={"images_per_s": 1800.0})]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["generator (reference)", "tf_data"]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [
        pytest.approx((600, 900)),
        pytest.approx((360, 600)),
    ]


def test_predictions_of_nothing():
    assert plots.predicted_and_measured([measurement()]).axes


def machines(*paces, **figures):
    return {
        f"laptop {number}": [
            trained(name, alone={"first_epoch_images_per_s": 500.0 * pace}, utilisation_percent=50.0, **figures)
            for name in ("generator", "tf_data")
        ]
        for number, pace in enumerate(paces, 1)
    }


def test_many_machines_have_a_dot_each_a_median_and_a_number_for_the_odd_one():
    figure = plots.scoreboard_by_pipeline(machines(1.0, 1.1, 0.9, 0.2), title="all")
    rates, busy, _ = figure.axes
    dots = [line for line in rates.lines if line.get_marker() not in ("None", "", None)]
    assert len(dots) == 8 and rates.get_xscale() == "log" and busy.get_xlim() == (-22, 105)
    assert [text.get_text() for text in rates.texts] == ["4", "475"] * 2
    assert [label.get_text() for label in rates.get_yticklabels()] == ["generator", "tf_data"]
    assert figure.get_suptitle() == "all\none dot for each of 4 machines; | their median"
    assert png_size(figure)[0] == 700


def test_of_one_machine_the_values_are_written_and_the_reference_is_hollow():
    figure = plots.scoreboard_by_pipeline(
        {"this machine": machines(1)["laptop 1"]}, reference={"lab": machines(2)["laptop 1"]}
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["500", "500"]
    assert sum(line.get_markerfacecolor() == "white" for line in figure.axes[0].lines) == 2
    assert figure.get_suptitle() == "filled: this machine; hollow: lab"


def test_a_row_without_a_busy_share_has_its_other_figures():
    classes = {**machines(1), "other": [measurement(name) for name in ("generator", "tf_data")]}
    rates, busy, peaks = plots.scoreboard_by_pipeline(classes).axes
    assert [len(axes.texts) for axes in (rates, busy, peaks)] == [2, 0, 2]


def test_runs_that_failed_are_named_in_their_row():
    failed = measurement("tf_data", outcome="out of memory", alone=NO_RATE)
    classes = {**machines(1), "other": [failed], "third": [failed]}
    assert "out of memory: 2, 3" in texts(plots.scoreboard_by_pipeline(classes))
    assert "out of memory" in texts(plots.scoreboard_by_pipeline({"this machine": [failed]}))


@pytest.mark.parametrize("nothing", [{}, {"this machine": []}, {"a": [], "b": []}])
def test_a_scoreboard_without_rows(nothing):
    assert len(plots.scoreboard_by_pipeline(nothing).axes) == 3


def test_the_strip_shows_each_run_and_the_budget():
    runs = {"list": run(list, "a"), "array": replace(run(list, "b"), outcome=Outcome.OUT_OF_MEMORY)}
    figure = plots.memory_strip(runs, budget_mib=8000)
    assert "list" in texts(figure) and "array: out of memory" in texts(figure) and "budget 8,000 MiB" in texts(figure)
    assert figure.axes[0].get_ylim()[1] > 8000


def test_the_strip_of_a_run_without_samples():
    assert plots.memory_strip({"list": replace(run(list, "a"), timeline=[])}).axes


def test_the_timeline_leaves_the_first_step_out():
    one = measurement(training={"wait_ms": (900.0, 20.0, 20.0), "compute_ms": (30.0, 30.0, 30.0)})
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


@pytest.mark.parametrize("name", [r"a $\frac$ b", r"$x$ and \$", "\x1b[31mred", "\udcff"])
def test_names_are_drawn_as_they_are(name):
    row = trained(name, alone={"images_per_s": 600.0}, wait_ms=(1.0, 2.0), compute_ms=(1.0, 2.0))
    figures = [
        plots.memory_throughput_map([row], reference=[row]),
        plots.predicted_and_measured([row], reference=[row]),
        plots.scoreboard_by_pipeline({name: [row]}, reference={name: [row]}, title=name),
        plots.scoreboard_by_pipeline({name: [row], "other": [row]}, title=name),
        plots.step_timeline(row),
        plots.memory_strip({name: run(list, "a")}),
    ]
    for figure in figures:
        assert png_size(figure)[0] == 700
        written = [text for text in figure.findobj(plt.Text) if printable(name).replace("$", r"\$") in text.get_text()]
        assert written and not any("\x1b" in text.get_text() for text in written)
    assert plots.show_images([np.zeros((20, 30, 3), np.uint8)], [name]).data


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
