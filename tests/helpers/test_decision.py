"""The decision follows from rows and project: what fits, what the accelerator waits for, and the time from nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import write_images
from test_advice import RATES, row

from helpers.decision import Choice, Project, choose

ROWS = [row(name) for name in RATES]


def chosen(accelerator=500.0, *, images=100_000, epochs=30, rows=ROWS, **changes) -> Choice:
    room = {"memory_mib": 4000.0, "disk_bytes": 1e12, **changes}
    return choose(Project(images=images, epochs=epochs, accelerator_images_per_s=accelerator, **room), rows)


def test_a_pipeline_that_keeps_the_accelerator_busy_is_enough():
    choice = chosen(400.0)
    assert (choice.pipeline, choice.waits, choice.images_per_s) == ("generator", False, 400.0)
    assert choice.hours["generator"] == pytest.approx(100_000 * 30 / 400 / 3600)


def test_packing_pays_with_enough_epochs_only():
    # A millisecond an image to pack; then 3,000 images/s in the place of 1,390.
    assert chosen(3000.0, epochs=2).pipeline == "tf_data_fast"
    packed = chosen(3000.0, epochs=30)
    assert (packed.pipeline, packed.waits) == ("tf_data_packed", False)
    assert packed.hours["tf_data_packed"] == pytest.approx((100 + 30 * 100_000 / 3000) / 3600)


def test_loading_everything_waits_for_the_whole_decoding_first():
    assert chosen(500.0, images=1000, epochs=1).pipeline == "generator"
    assert chosen(500.0, images=1000, epochs=30).pipeline == "load_everything"


def test_what_does_not_fit_is_left_out_with_the_reason():
    choice = chosen(3000.0, disk_bytes=1e9)
    assert (choice.pipeline, choice.waits) == ("tf_data_fast", True)
    assert choice.left_out["tf_data_packed"] == "needs 15.1 GB of disk"
    assert choice.left_out["load_everything"] == "needs 25,000 MiB, more than 25% of the memory"
    assert "tf1_queues" not in {**choice.hours, **choice.left_out}
    died = [row(name, outcome="out of memory") for name in RATES]
    assert chosen(rows=died).pipeline is None
    assert set(chosen(rows=died).left_out.values()) == {"out of memory"}


def test_a_slow_disk_limits_what_is_read_in_each_epoch():
    slow = {"disk_mb_per_s": 60.0, "file_bytes": 120_000.0}  # 500 photographs or 398 packed images a second
    choice = chosen(3000.0, **slow)
    assert choice.images_per_s == pytest.approx(500)
    assert choice.pipeline == "generator"  # nothing is faster than the disk
    assert choice.hours["tf_data_packed"] > choice.hours["tf_data_fast"]
    # What fits into half of the free memory is read from the disk once.
    choice = chosen(3000.0, images=10_000, **slow)
    assert (choice.pipeline, choice.waits) == ("tf_data_packed", False)
    assert choice.hours["tf_data_packed"] == pytest.approx((10_000 / 500 + 30 * 10_000 / 3000) / 3600)


def test_cropping_the_photograph_itself_needs_all_of_its_pixels():
    choice = chosen(3000.0, crops_photographs=True)
    assert choice.pipeline == "tf_data"  # `keras_sequence` is less than 5 % faster, and harder to understand
    assert set(choice.left_out) == {"load_everything", "tf_data_fast", "tf_data_packed"}


def test_to_go_on_in_the_middle_of_an_epoch_needs_a_pipeline_that_can():
    choice = chosen(3000.0, resumes=True)
    assert choice.pipeline == "tf_data" and chosen(3000.0).pipeline == "tf_data_packed"
    reasons = {name for name, why in choice.left_out.items() if why == "cannot go on in the middle of an epoch"}
    assert reasons == {"generator", "threaded_generator", "tf_data_fast", "tf_data_packed"}
    assert "keras_sequence" in choice.hours and chosen(500.0, images=1000, resumes=True).pipeline == "load_everything"


def test_which_pipelines_can(tmp_path):
    import tensorflow as tf

    from helpers.folders import ImageFiles
    from helpers.pipelines import PIPELINES

    write_images(tmp_path, 12)
    paths = tuple(map(str, sorted(tmp_path.rglob("*.jpg"))))
    files = ImageFiles(paths, list(range(12)), tuple(map(str, range(12))))

    def made(name, **more):
        return PIPELINES[name](files, image_size=(8, 8), batch_size=3, **more)

    def labels(batches):
        return [np.asarray(some).tolist() for _, some in batches]

    sequence, again = made("keras_sequence"), made("keras_sequence")
    epochs = [labels(sequence) for _ in range(2)]
    again.go_to_epoch(1)
    assert labels(again.epoch[number] for number in range(2, 4)) == epochs[1][2:]
    loaded, again = made("load_everything"), made("load_everything")
    epochs = [labels(loaded) for _ in range(2)]
    for _ in range(2):
        again.on_epoch_begin()
    assert labels(again[number] for number in range(2, 4)) == epochs[1][2:]
    iterator, again = iter(made("tf_data")), iter(made("tf_data"))
    begun = labels(next(iterator) for _ in range(2))
    saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "saved"))
    tf.train.Checkpoint(iterator=again).restore(saved).expect_partial()
    rest = labels(again)
    assert rest == labels(iterator) and sorted(itertools.chain(*begun, *rest)) == list(range(12))
    for name, more in (
        ("tf_data", {"on_error": "skip"}),
        ("tf_data_fast", {}),
        ("tf_data_packed", {"folder": tmp_path / "packed"}),
    ):
        with pytest.raises(tf.errors.FailedPreconditionError, match="stateful"):
            tf.train.Checkpoint(iterator=iter(made(name, **more))).save(str(tmp_path / name))


def test_beside_another_accelerator_a_pipeline_overlaps_as_much_as_it_did():
    half = {"training": {"ceiling_images_per_s": 1000.0, "images_per_s": 300.0}}
    rows = [row("generator", **half)]  # 600 alone, 300 beside this accelerator
    assert chosen(1000.0, rows=rows).images_per_s == pytest.approx(300)
    assert chosen(400.0, rows=rows).images_per_s == pytest.approx(200)
    assert chosen(None, rows=rows).images_per_s == pytest.approx(300)


def test_files_that_come_late_ask_for_many_at_once():
    assert chosen(400.0).in_flight is None
    choice = chosen(400.0, first_byte_ms=50.0)
    assert (choice.pipeline, choice.images_per_s, choice.in_flight) == ("tf_data", 400.0, 20)
    assert choice.hours["generator"] == pytest.approx(100_000 * 30 / 20 / 3600)  # one file after the other
    assert chosen(3000.0, first_byte_ms=50.0).in_flight == 70  # of 1,390 images/s; packing waits for each file once
    packed = chosen(3000.0, first_byte_ms=50.0, epochs=300)
    assert (packed.pipeline, packed.in_flight) == ("tf_data_packed", None)
    assert packed.hours["tf_data_packed"] == pytest.approx((100_000 * (0.05 + 300 / 3000)) / 3600)
