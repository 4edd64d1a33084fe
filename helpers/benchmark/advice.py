"""From measurements to a choice: which pipeline, which bottleneck, what packing would cost and give.

Called by the benchmark command. Nothing is measured here; every sentence is arithmetic on what was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from helpers.benchmark.rates import Limits
from helpers.measurement import Measurement, keeps_busy

__all__ = ["Advice", "Packing", "advise"]

# From the fewest things to understand to the most. TF1's queues are history: they are measured, and not recommended.
SIMPLEST_FIRST = (
    "load_everything",
    "generator",
    "threaded_generator",
    "tf_data",
    "keras_sequence",
    "tf_data_fast",
    "tf_data_packed",
)
_AS_GOOD = 0.95  # of the best rate: then the simpler one is better
_SHARE_FOR_IMAGES = 0.25  # of the budget: the model, its training and other programs need memory too


@dataclass(frozen=True)
class Packing:
    """What it would cost to decode all images once, and what it would give."""

    minutes: float
    gigabytes: float  # of 1e9 bytes
    fits: bool  # on the disk, as it is now
    images_per_s: float  # afterwards
    epochs_to_pay: float | None  # until less time has gone by than with the best pipeline that decodes; None if never


@dataclass(frozen=True)
class Advice:
    """What to use, and why."""

    pipeline: str | None  # None where none finished
    bottleneck: str  # accelerator, decoding, reading, unknown, or pipeline where the machine would allow more
    sentences: tuple[str, ...]  # the most important first
    packing: Packing | None  # None where `tf_data_packed` was not measured


def advise(
    measurements: Iterable[Measurement], limits: Limits, *, all_images: int, free_disk_bytes: float, budget_mib: float
) -> Advice:
    """Choose a pipeline for a data set of ``all_images``, a part of which was measured: a row for each pipeline."""
    measured = {one.name: one for one in measurements}
    finished = {name: one for name, one in measured.items() if one.outcome == "finished"}
    packing = _packing(finished, all_images, free_disk_bytes)
    possible = {name: finished[name] for name in SIMPLEST_FIRST if name in finished}
    if packing is not None and not packing.fits:
        del possible["tf_data_packed"]
    everything = possible.get("load_everything")
    if everything is not None and _all_mib(everything, all_images) > _SHARE_FOR_IMAGES * budget_mib:
        del possible["load_everything"]
    about_memory = _memory_sentences(measured, all_images, budget_mib)
    if not possible:
        text = "No pipeline can be recommended: none finished within the budget and the disk. See the errors above."
        return Advice(None, "unknown", (text, *about_memory), packing)
    chosen = _choose(possible)
    bottleneck, why = _bottleneck(chosen, limits)
    alone, percent = chosen.alone.images_per_s, chosen.training.utilisation_percent
    busy = "" if percent is None else f", keeps the accelerator busy {percent:.0f} %"
    use = f"Use {chosen.name}: {alone:,.0f} images/s alone{busy}, at most {chosen.memory.peak_mib:,.0f} MiB of memory."
    sentences = [use, why]
    if chosen is everything and chosen.alone.first_batch_s:
        wait_s = chosen.alone.first_batch_s * all_images / max(chosen.images_done, 1)
        sentences.append(f"It decodes all {all_images:,} images first: the first batch comes after {wait_s:,.0f} s.")
    if packing is not None:
        sentences.append(_packing_sentence(packing, all_images, chosen.name, bottleneck))
    return Advice(chosen.name, bottleneck, (*sentences, *about_memory), packing)


def _rate(one: Measurement) -> float:
    """Return images/s while training where that was measured, else of the pipeline alone."""
    return one.training.images_per_s or one.alone.images_per_s or 0.0


def _choose(possible: dict[str, Measurement]) -> Measurement:
    """Return the simplest pipeline that keeps the accelerator busy; if none does, the simplest of the fastest."""
    best = max(_rate(one) for one in possible.values())
    as_good = (one for one in possible.values() if _rate(one) >= _AS_GOOD * best)
    return next(filter(_is_enough, possible.values()), None) or next(as_good)


def _is_enough(one: Measurement) -> bool:
    top = one.training.ceiling_images_per_s
    return bool(top) and keeps_busy(_rate(one), top, one.training.utilisation_percent)


def _bottleneck(one: Measurement, limits: Limits) -> tuple[str, str]:
    reading, decoding = limits.read_images_per_s, limits.reduced_images_per_s
    wanted = one.training.ceiling_images_per_s
    takes = f"The accelerator takes {wanted:,.0f} images/s" if wanted else "Without an accelerator beside it"
    rates = f"{takes}, {limits.cores} cores read {reading:,.0f} and decode {decoding:,.0f} images/s"
    if _is_enough(one):
        return "accelerator", f"{rates}: the accelerator is the limit, and no pipeline can give more."
    if one.name in ("tf_data_packed", "load_everything"):
        return "pipeline", f"{rates}: nothing is decoded any more, and what is left is copying."
    if "cpu" in (one.training.device or ""):
        return "decoding", f"{rates}, on the same cores: model and decoding take turns."
    cores = math.ceil(wanted * limits.cores / decoding) if wanted else 1
    more = f" To decode as fast as the accelerator takes, about {cores} such cores are needed." if cores > 1 else ""
    if reading < 1.1 * decoding:
        return "reading", f"{rates}: reading is the limit. A faster or nearer disk, or smaller files, help.{more}"
    if (one.alone.images_per_s or 0) >= 0.8 * min(limits.decode_images_per_s, decoding):
        return "decoding", f"{rates}: decoding is the limit.{more}"
    return "pipeline", f"{rates}: the pipeline itself is the limit.{more}"


def _packing(finished: dict[str, Measurement], all_images: int, free_disk_bytes: float) -> Packing | None:
    packed = finished.get("tf_data_packed")
    if packed is None or not packed.alone.images_per_s or not packed.alone.first_batch_s:
        return None
    height, width = packed.image_size
    size = all_images * height * width * 3
    seconds = packed.alone.first_batch_s * all_images / packed.files
    decoding = [_rate(one) for name, one in finished.items() if name not in ("load_everything", "tf_data_packed")]
    saved_s = all_images / max(decoding) - all_images / _rate(packed) if decoding and max(decoding) else 0
    pays = seconds / saved_s if saved_s > 0.02 * all_images / _rate(packed) else None
    return Packing(seconds / 60, size / 1e9, size < free_disk_bytes, packed.alone.images_per_s, pays)


def _packing_sentence(packing: Packing, all_images: int, chosen: str, bottleneck: str) -> str:
    time = f"{packing.minutes:.0f} min" if packing.minutes >= 1.5 else f"{60 * packing.minutes:.0f} s"
    text = (
        f"Packing all {all_images:,} images would take {time} once and {packing.gigabytes:,.1f} GB of disk,"
        f" and give {packing.images_per_s:,.0f} images/s"
    )
    if not packing.fits:
        return text + "; the disk has less room than that."
    if chosen != "tf_data_packed" and bottleneck == "accelerator":
        return text + ", which this accelerator does not need."
    if packing.epochs_to_pay is None:
        return text + "; training would be no faster."
    epochs = math.ceil(packing.epochs_to_pay)
    return text + f"; it pays after {epochs:,} epoch{'s' if epochs != 1 else ''}."


def _all_mib(one: Measurement, all_images: int) -> float:
    """Return what a pipeline that keeps every image would hold of all of them."""
    return one.memory.own_mib * all_images / max(one.images_done, 1)


def _memory_sentences(measured: dict[str, Measurement], all_images: int, budget_mib: float) -> list[str]:
    sentences = []
    everything = measured.get("load_everything")
    if everything is not None and everything.images_done:
        mib = _all_mib(everything, all_images)
        size = f"{mib / 1024:,.1f} GiB" if mib >= 1024 else f"{mib:,.0f} MiB"
        room = "fit into" if mib <= _SHARE_FOR_IMAGES * budget_mib else "do not fit well into"
        sentences.append(f"Loaded at once, all {all_images:,} images hold {size}; they {room} {budget_mib:,.0f} MiB.")
    for one in measured.values():
        if one.outcome == "out of memory":
            when = " while training" if (one.error or "").startswith("while training") else ""
            reached = f"{one.memory.peak_mib:,.0f} MiB, after {one.images_done:,} images"
            sentences.append(f"{one.name} ran out of memory{when} at {reached}.")
    return sentences
