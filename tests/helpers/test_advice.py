"""The advice is arithmetic: given figures, the pipeline, the bottleneck and what packing costs follow."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from helpers.benchmark.advice import Advice, advise
from helpers.benchmark.rates import Limits
from helpers.measurement import Alone, Measurement, MemoryUse, Training
from helpers.sandbox import Outcome

LIMITS = Limits(1000, (), {"JPEG": 1000}, (480, 640), 120_000.0, 9000.0, 1200.0, 1400.0, 2)
RATES = {  # alone, of a machine with two cores
    "load_everything": 40_000,
    "generator": 600,
    "threaded_generator": 620,
    "keras_sequence": 1100,
    "tf1_queues": 700,
    "tf_data": 1050,
    "tf_data_fast": 1390,
    "tf_data_packed": 20_000,
}


def row(name: str, takes: float | None = 500, **changes) -> Measurement:
    """A row; a change of a part is a dictionary of the figures that change in it."""
    rate = RATES[name]
    together = None if takes is None else min(rate, takes)
    first_s = {"load_everything": 2.0, "tf_data_packed": 1.0}.get(name, 0.1)
    busy = None if takes is None else 100 * together / takes
    parts = {
        "alone": Alone(images_per_s=rate, first_batch_s=first_s, first_epoch_images_per_s=rate, cores_busy=2.0),
        "training": Training(ceiling_images_per_s=takes, images_per_s=together, utilisation_percent=busy),
        "memory": MemoryUse(
            peak_mib=450.0 if name == "load_everything" else 250.0, baseline_mib=200.0, method="pss", budget_mib=4000.0
        ),
    }
    parts = {part: replace(record, **changes.pop(part, {})) for part, record in parts.items()}
    values = {"outcome": Outcome.FINISHED, "files": 1000, "image_size": (224, 224), "batch_size": 32}
    values |= {"batches_done": 32, "images_done": 1000}
    return Measurement(name=name, **{**values, **parts, **changes})


def advised(takes: float | None = 500, *, all_images=100_000, disk=1e12, budget_mib=4000.0, **changes) -> Advice:
    rows = [row(name, takes, **changes.get(name, {})) for name in RATES if changes.get(name, {}) is not None]
    limits = changes.get("limits", LIMITS)
    return advise(rows, limits, all_images=all_images, epochs=30, free_disk_bytes=disk, budget_mib=budget_mib)


@pytest.mark.parametrize(
    "takes, expected, bottleneck",
    [
        (400, "generator", "accelerator"),
        (620, "generator", "accelerator"),  # 600 are 97 % of it
        (1000, "tf_data", "accelerator"),
        (1150, "keras_sequence", "accelerator"),
        (1400, "tf_data_fast", "accelerator"),
        (3000, "tf_data_packed", "accelerator"),
        (60_000, "tf_data_packed", "pipeline"),
        (None, "tf_data_packed", "pipeline"),
    ],
)
def test_the_simplest_pipeline_that_keeps_the_accelerator_busy(takes, expected, bottleneck):
    advice = advised(takes)
    assert (advice.pipeline, advice.bottleneck) == (expected, bottleneck)
    assert advice.sentences[0].startswith(f"Use {expected}:")


def test_a_small_data_set_may_be_loaded():
    assert advised(all_images=1000).pipeline == "load_everything"
    assert advised(all_images=3000).pipeline == "load_everything"
    big = advised(all_images=5000)  # 1,250 of 4,000 MiB
    assert big.pipeline == "generator"
    assert "all 5,000 images hold 1.2 GiB; they do not fit well into 4,000 MiB" in " ".join(big.sentences)


def test_without_room_for_a_pack_decoding_is_the_limit_and_cores_are_named():
    advice = advised(3000, disk=1e9)
    assert (advice.pipeline, advice.bottleneck) == ("tf_data_fast", "decoding")
    assert not advice.packing.fits
    text = " ".join(advice.sentences)
    assert "about 5 such cores are needed" in text  # 3,000 / 700
    assert "15.1 GB of disk" in text and "the disk has less room" in text


def test_a_slow_disk_is_named():
    slow = Limits(1000, (), {"JPEG": 1000}, (480, 640), 120_000.0, 300.0, 1200.0, 1400.0, 2)
    figures = {"alone": {"images_per_s": 290}, "training": {"images_per_s": 290, "utilisation_percent": 10}}
    rows = dict.fromkeys(RATES, figures)
    assert advised(3000, disk=0, limits=slow, **rows).bottleneck == "reading"


def test_what_packing_costs_and_when_it_pays():
    packing = advised(3000).packing
    assert packing.minutes == pytest.approx(100_000 / 1000 / 60)
    assert packing.gigabytes == pytest.approx(100_000 * 224 * 224 * 3 / 1e9)
    # An epoch takes 100,000/1,390 s decoding, 100,000/3,000 s packed; packing itself 100 s.
    assert packing.epochs_to_pay == pytest.approx(100 / (100_000 / 1390 - 100_000 / 3000))
    assert "pays after 3 epochs" in " ".join(advised(3000).sentences)
    assert advised(500).packing.epochs_to_pay is None
    assert advised(tf_data_packed=None).packing is None


def test_pipelines_that_did_not_finish_are_not_recommended():
    none = {"images_per_s": None, "first_batch_s": None}
    died = {"outcome": "out of memory", "alone": none, "images_done": 320}
    advice = advised(400, generator=died, threaded_generator={"outcome": "hung", "alone": none})
    assert advice.pipeline == "tf_data"
    assert "generator ran out of memory at 250 MiB, after 320 images." in advice.sentences
    none = advised(**dict.fromkeys(RATES, died))
    assert (none.pipeline, none.bottleneck) == (None, "unknown")
    assert none.sentences[0].startswith("No pipeline can be recommended")


def test_tf1_queues_are_never_recommended():
    only = [row("tf1_queues")]
    advice = advise(only, LIMITS, all_images=10, epochs=30, free_disk_bytes=1e12, budget_mib=4000)
    assert advice.pipeline is None


def test_on_a_cpu_model_and_decoding_share_the_cores():
    shared = {"training": {"device": "cpu:0", "images_per_s": 700, "utilisation_percent": 60}}
    rows = dict.fromkeys(RATES, shared)
    advice = advised(2000, disk=0, **rows)
    assert advice.bottleneck == "decoding"
    assert "on the same cores" in advice.sentences[1]
    assert not any("such cores are needed" in sentence for sentence in advice.sentences)


def test_late_first_bytes_are_named_with_what_to_give():
    late = Limits(1000, (), {"JPEG": 1000}, (480, 640), 120_000.0, 9000.0, 1200.0, 1400.0, 2, None, 50.0)
    advice = advised(1000, limits=late)
    assert advice.pipeline == "tf_data"
    text = " ".join(advice.sentences)
    assert "takes 50 ms before its first byte" in text and "in_flight=50 " in text
    assert advice.in_flight == 50
    without = dict.fromkeys(("tf_data", "keras_sequence", "tf_data_fast"))
    assert advised(1000, limits=late, **without).in_flight is None, "no other pipeline takes it"
    assert advised(1000).in_flight is None
    assert "first byte" not in " ".join(advised(1000).sentences)
