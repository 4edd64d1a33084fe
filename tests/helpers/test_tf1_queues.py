"""Lesson 04: the queues give what TensorFlow 1.15.5 gave, and the pipeline made of them always ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TEST_ALL

from helpers.folders import ImageFiles
from helpers.pipelines import PIPELINES
from helpers.sandbox import run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
# Without a seed of its own, an operation's seed is the number of operations before it: the versions build other graphs.
DIFFERENT = ("slice_producer_graph_seed_only",)
RECORDED = json.loads((FIXTURES / "tf1_results.json").read_text())
STOPS = 50 if TEST_ALL else 20


def test_same_results_as_tensorflow_1():
    command = [sys.executable, str(FIXTURES / "make_tf1_results.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    now, then = json.loads(ended.stdout), RECORDED
    assert then["tensorflow"] == "1.15.5"
    assert now["tensorflow"].startswith("2.")
    assert set(now["results"]) == set(then["results"])
    for program, result in then["results"].items():
        if program not in DIFFERENT:
            assert now["results"][program] == result, program
        else:  # the same elements in another order
            assert now["results"][program] != result, program
            assert sorted(now["results"][program]) == sorted(result), program


# ---- the pipeline --------------------------------------------------------------------------------------------------


def runner_threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate() if "QueueRunnerThread" in thread.name]


def stop_early(files: ImageFiles, seed: int, settings: dict) -> dict:
    """Stop many epochs at random batches, in one of three ways; note the most threads that were left."""
    import numpy as np
    import psutil

    from helpers.pipelines.tf1_queues import tf1_queues
    from helpers.sandbox import report

    rng = np.random.default_rng(seed)
    batches = tf1_queues(files, image_size=(32, 48), batch_size=8, **settings)
    counts, left, delivered = [], 0, []
    for number in range(STOPS):
        report((settings, number))
        iterator = iter(batches)
        wanted = int(rng.integers(0, len(batches) + 1))
        for _ in range(wanted):
            next(iterator)
        delivered.append(wanted)
        way = number % 3
        if way == 0:
            iterator.close()
        elif way == 1:
            del iterator
        else:
            try:
                iterator.throw(KeyboardInterrupt)
            except KeyboardInterrupt:
                pass
        left = max(left, len(runner_threads()))
        counts.append(psutil.Process().num_threads())
    whole = sorted(label for _, labels in batches for label in labels.tolist())
    return {"left": left, "delivered": delivered, "threads": counts, "whole": whole}


def test_early_stops_leave_nothing_and_never_hang(files):
    cases = [{}, {"num_threads": 1, "capacity": 1}, {"shuffle": False, "num_threads": 16, "capacity": 5}]
    result = run(lambda: [stop_early(files, 7, settings) for settings in cases], timeout=240)
    assert result.outcome == "finished", f"{result} at stop {result.progress}"
    for settings, found in zip(cases, result.value, strict=True):
        assert found["left"] == 0, settings
        assert len(set(found["delivered"])) > 3, settings
        assert found["threads"][-1] <= found["threads"][9] + 2, (settings, found["threads"])
        assert found["whole"] == sorted(files.labels.tolist()), settings


def read_all(files: ImageFiles, settings: dict) -> list[tuple[str, str, int, int]]:
    """Read three epochs; return how each ended, what was delivered before, and what was left."""
    from helpers.pipelines.tf1_queues import tf1_queues

    ends = []
    batches = tf1_queues(files, image_size=(32, 48), batch_size=8, **settings)
    for _ in range(3):
        delivered = 0
        try:
            for images, _ in batches:
                delivered += len(images)
            ends.append(("", "", delivered, len(runner_threads())))
        except Exception as error:
            ends.append((type(error).__name__, str(error), delivered, len(runner_threads())))
    return ends


DAMAGES = {
    "truncated": lambda path: os.truncate(path, os.path.getsize(path) // 2),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: Path(path).write_text("no image"),
    "missing": os.remove,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_error_in_a_runner_thread_names_the_file(own_folder, files, damage):
    paths = sorted(str(path) for path in own_folder.rglob("*.jpg"))
    own = ImageFiles(tuple(paths), files.labels, files.class_names)
    DAMAGES[damage](paths[29])
    for settings in ({"shuffle": False}, {"shuffle": True, "num_threads": 1, "capacity": 4}):
        for kind, message, delivered, left in read_all(own, settings):
            assert kind == "ValueError"
            assert paths[29] in message
            assert not any(path in message for path in paths if path != paths[29])
            assert left == 0
            if not settings["shuffle"]:
                assert delivered == 24, "the whole batches before the broken one are delivered"


def test_an_early_stop_before_a_broken_file_raises_nothing(own_folder, files):
    paths = sorted(str(path) for path in own_folder.rglob("*.jpg"))
    own = ImageFiles(tuple(paths), files.labels, files.class_names)
    os.remove(paths[10])

    from helpers.pipelines.tf1_queues import tf1_queues

    iterator = iter(tf1_queues(own, batch_size=4, shuffle=False))
    next(iterator)
    time.sleep(0.5)  # time enough for the runner to fail
    iterator.close()
    assert runner_threads() == []


def test_the_order_depends_on_seed_and_epoch_alone(files):
    def orders(**settings) -> list[list[int]]:
        from helpers.pipelines.tf1_queues import tf1_queues

        numbered = ImageFiles(files.paths, range(len(files)), files.paths)
        batches = tf1_queues(numbered, image_size=(16, 16), batch_size=8, **settings)
        return [[label for _, labels in batches for label in labels.tolist()] for _ in range(2)]

    one_thread = orders(num_threads=1)
    assert one_thread == orders(num_threads=16, capacity=4)
    assert one_thread[0] != one_thread[1]
    assert one_thread[0] != orders(seed=1)[0]
    assert orders(shuffle=False, num_threads=16) == [list(range(len(files)))] * 2


def test_other_file_types_and_grayscale(tmp_path):
    import cv2
    import numpy as np

    image = np.full((40, 60, 3), (200, 100, 50), np.uint8)  # BGR
    for suffix in (".png", ".jpg", ".bmp"):
        assert cv2.imwrite(str(tmp_path / f"one{suffix}"), image)
    own = ImageFiles(tuple(map(str, sorted(tmp_path.iterdir()))), [0, 0, 0], ("c",))

    from helpers.pipelines.tf1_queues import tf1_queues

    (images, _), *_ = tf1_queues(own, image_size=(20, 20), shuffle=False)
    ((grey, _),) = tf1_queues(own.select([1, 2]), image_size=(20, 20), channels=1)
    colours = images.mean((1, 2)).round()
    assert all(abs(value - want) <= 2 for colour in colours for value, want in zip(colour, (50, 100, 200), strict=True))
    assert grey.shape == (2, 20, 20, 1)


def test_eager_mode_goes_on_between_batches(files):
    import tensorflow as tf

    from helpers.pipelines.tf1_queues import tf1_queues

    batches = tf1_queues(files, image_size=(16, 16), batch_size=8)
    assert [tf.executing_eagerly() for _ in batches] == [True] * 5


def test_a_batch_size_below_one_is_refused(files):
    with pytest.raises(ValueError, match="batch_size is 0"):
        PIPELINES["tf1_queues"](files, batch_size=0)
