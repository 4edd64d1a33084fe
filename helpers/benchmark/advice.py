"""From measurements to a choice: which pipeline, which bottleneck, what packing would cost and give.

Called by the benchmark command. Nothing is measured here; every sentence is arithmetic on what was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from helpers.benchmark.rates import Limits
from helpers.decision import (
    SIMPLEST_FIRST,
    TAKE_IN_FLIGHT,
    Project,
    all_mib,
    choose,
    fits_in_memory,
    keeps_busy,
    pixel_bytes,
)
from helpers.measurement import Measurement

__all__ = ["Advice", "Packing", "advise", "files_in_flight"]

_DECODED_BEFORE = ("load_everything", "tf_data_packed")
_LATE_MS = 2.0  # a core decodes a photograph in about that time
_MOST_IN_FLIGHT = 256  # each is a thread, and the bytes of a file


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
    in_flight: int | None = None  # what to give the pipeline, where it takes that and files come late


def files_in_flight(limits: Limits, images_per_s: float = math.inf) -> int | None:
    """Return how many files must be on their way while the cores decode; None where they come at once.

    Parameters
    ----------
    images_per_s : float
        What the accelerator takes, where that is less than what the cores decode.
    """
    if limits.first_byte_ms < _LATE_MS:
        return None
    wanted = min(limits.reduced_images_per_s, images_per_s)
    return min(math.ceil(wanted * limits.first_byte_ms / 1000), _MOST_IN_FLIGHT)


def advise(
    measurements: Iterable[Measurement],
    limits: Limits,
    *,
    all_images: int,
    epochs: int,
    free_disk_bytes: float,
    budget_mib: float,
) -> Advice:
    """Choose a pipeline for a data set of ``all_images``, a part of which was measured: a row for each pipeline."""
    measured = {one.name: one for one in measurements}
    finished = {name: one for name, one in measured.items() if one.outcome == "finished"}
    packing = _packing(finished, all_images, free_disk_bytes)
    ceilings = [one.training.ceiling_images_per_s for one in finished.values() if one.training.ceiling_images_per_s]
    project = Project(
        images=all_images,
        epochs=epochs,
        accelerator_images_per_s=statistics.median_low(ceilings) if ceilings else None,
        memory_mib=budget_mib,
        disk_bytes=free_disk_bytes,
        disk_mb_per_s=limits.cold_mb_per_s,
        file_bytes=limits.mean_bytes,
        first_byte_ms=limits.first_byte_ms if limits.first_byte_ms >= _LATE_MS else 0.0,
    )
    choice = choose(project, measured.values())
    about_memory = _memory_sentences(measured, all_images, budget_mib)
    if choice.pipeline is None:
        text = "No pipeline can be recommended: none finished within the budget and the disk. See the errors above."
        return Advice(None, "unknown", (text, *about_memory), packing)
    chosen = finished[choice.pipeline]
    decoders = [one for name, one in finished.items() if name in SIMPLEST_FIRST and name not in _DECODED_BEFORE]
    bottleneck, why = _bottleneck(chosen, limits, max([0.0, *(one.alone.images_per_s or 0 for one in decoders)]))
    alone, percent = chosen.alone.images_per_s, chosen.training.utilisation_percent
    busy = "" if percent is None else f", keeps the accelerator busy {percent:.0f} %"
    use = f"Use {chosen.name}: {alone:,.0f} images/s alone{busy}, at most {chosen.memory.peak_mib:,.0f} MiB of memory."
    sentences = [use, why]
    number = files_in_flight(limits, chosen.training.ceiling_images_per_s or math.inf)
    if number is not None:
        late = f"A file that is not in memory takes {limits.first_byte_ms:,.0f} ms before its first byte comes: give"
        sentences.append(f"{late} {', '.join(TAKE_IN_FLIGHT)} in_flight={number} (lesson 12).")
    if chosen.name == "load_everything" and chosen.alone.first_batch_s:
        wait_s = chosen.alone.first_batch_s * all_images / max(chosen.images_done, 1)
        sentences.append(f"It decodes all {all_images:,} images first: the first batch comes after {wait_s:,.0f} s.")
    if packing is not None:
        sentences.append(_packing_sentence(packing, all_images, chosen.name, bottleneck))
    in_flight = number if chosen.name in TAKE_IN_FLIGHT else None
    return Advice(chosen.name, bottleneck, (*sentences, *about_memory), packing, in_flight)


def _rate(one: Measurement) -> float:
    """Return images/s while training where that was measured, else of the pipeline alone."""
    return one.training.images_per_s or one.alone.images_per_s or 0.0


def _bottleneck(one: Measurement, limits: Limits, reached_images_per_s: float) -> tuple[str, str]:
    """Return what limits a pipeline, and why; what a pipeline has reached, the cores can decode."""
    reading, decoding = limits.read_images_per_s, max(limits.reduced_images_per_s, reached_images_per_s)
    wanted = one.training.ceiling_images_per_s
    takes = f"The accelerator takes {wanted:,.0f} images/s" if wanted else "Without an accelerator beside it"
    rates = f"{takes}, {limits.cores} cores read {reading:,.0f} and decode {decoding:,.0f} images/s"
    if wanted and (keeps_busy(_rate(one), wanted) or keeps_busy(one.training.utilisation_percent or 0, 100)):
        return "accelerator", f"{rates}: the accelerator is the limit, and no pipeline can give more."
    if one.name in _DECODED_BEFORE:
        return "pipeline", f"{rates}: nothing is left to decode, and copying is the limit."
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
    size = all_images * pixel_bytes(packed)
    seconds = packed.alone.first_batch_s * all_images / packed.files
    decoding = [_rate(one) for name, one in finished.items() if name not in _DECODED_BEFORE]
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


def _memory_sentences(measured: dict[str, Measurement], all_images: int, budget_mib: float) -> list[str]:
    sentences = []
    everything = measured.get("load_everything")
    if everything is not None and everything.images_done:
        mib = all_mib(everything, all_images)
        size = f"{mib / 1024:,.1f} GiB" if mib >= 1024 else f"{mib:,.0f} MiB"
        room = "fit into" if fits_in_memory(mib, budget_mib) else "do not fit well into"
        sentences.append(f"Loaded at once, all {all_images:,} images hold {size}; they {room} {budget_mib:,.0f} MiB.")
    for one in measured.values():
        if one.outcome == "out of memory":
            when = " while training" if (one.error or "").startswith("while training") else ""
            reached = f"{one.memory.peak_mib:,.0f} MiB, after {one.images_done:,} images"
            sentences.append(f"{one.name} ran out of memory{when} at {reached}.")
    return sentences
