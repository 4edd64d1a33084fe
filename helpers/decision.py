"""Which pipeline a training should use: one decision, for the benchmark's advice and for the lessons.

Nothing is measured here; every figure is arithmetic on measured rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from helpers.measurement import Measurement

__all__ = ["Choice", "Project", "choose"]

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
ENOUGH = 0.95  # of what the accelerator takes alone: MLPerf Storage asks 0.90 of ResNet-50 and of U-Net
_AS_GOOD = 0.95  # of the fastest: then the simpler one is better
_SHARE_FOR_IMAGES = 0.25  # of the free memory: the model, its training and other programs need memory too
_SHARE_FOR_CACHE = 0.5  # of the free memory: what the system keeps of files that are read again and again
_DECODE_FIRST = ("load_everything", "tf_data_packed")  # all images, before the first batch
TAKE_IN_FLIGHT = ("tf_data", "keras_sequence", "tf_data_fast")  # as many files at once as they are given
_CAN_RESUME = ("load_everything", "tf_data", "keras_sequence")  # by batch number, or by the iterator in a checkpoint
_READ_ONE_BY_ONE = ("load_everything", "generator")  # the others read a file for each core at once


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a training asks for, and what its machine has free.

    Parameters
    ----------
    images, epochs : int
    accelerator_images_per_s : float, optional
        What the accelerator takes of this model, in the precision that it trains in; unknown by default.
    memory_mib : float
        Free memory.
    disk_bytes : float
        Free disk space.
    disk_mb_per_s : float, optional
        What the disk reads of files that are not in memory, in 10^6 bytes; see `rates.cold_mb_per_s`. By default it is
        never the limit.
    file_bytes : float
        The mean size of an image file; it matters only with `disk_mb_per_s`.
    first_byte_ms : float
        How long a file lets one wait that the machine's memory does not keep, as behind an address; see
        `rates.first_byte_ms`. By default it is never the limit.
    crops_photographs : bool
        Whether the augmentation needs all the pixels of a photograph in each epoch, as a random crop before resizing.
    resumes : bool
        Whether a training that was killed must go on in the middle of an epoch, with no image seen twice. `tf_data` can
        do that with its iterator in a `tf.train.Checkpoint` (lesson 05), but not with ``on_error="skip"``.
    """

    images: int
    epochs: int
    accelerator_images_per_s: float | None = None
    memory_mib: float
    disk_bytes: float
    disk_mb_per_s: float | None = None
    file_bytes: float = 0.0
    first_byte_ms: float = 0.0
    crops_photographs: bool = False
    resumes: bool = False


@dataclass(frozen=True)
class Choice:
    """What to use, and what each pipeline would take."""

    pipeline: str | None  # None where none is possible
    waits: bool  # whether the accelerator waits for it
    images_per_s: float  # of a later epoch, beside the accelerator
    hours: dict[str, float]  # of the whole training, from nothing: decoding first, packing and a cold disk included
    left_out: dict[str, str]  # pipeline -> why it is not possible
    in_flight: int | None = None  # what to give the pipeline where files come late: images/s times seconds


def choose(project: Project, rows: Iterable[Measurement]) -> Choice:
    """Choose the simplest pipeline that the accelerator does not wait for, or else the simplest of the fastest.

    Parameters
    ----------
    rows : iterable of Measurement
        One for each pipeline, of one machine, with images and accelerator as near to the project's as possible.
    """
    measured = {one.name: one for one in rows if one.name in SIMPLEST_FIRST}
    left_out = {name: why for name, one in measured.items() if (why := _obstacle(one, project))}
    possible = {name: measured[name] for name in SIMPLEST_FIRST if name in measured and name not in left_out}
    if not possible:
        return Choice(None, False, 0.0, {}, left_out)
    hours = {name: _seconds(one, project) / 3600 for name, one in possible.items()}
    best, top = min(hours.values()), project.accelerator_images_per_s
    as_good = [name for name in possible if _AS_GOOD * hours[name] <= best]
    busy_hours = project.images * project.epochs / top / 3600 if top else 0.0
    chosen = next((name for name in possible if ENOUGH * hours[name] <= busy_hours), as_good[0])
    rate = _later_images_per_s(possible[chosen], project)
    late = project.first_byte_ms and chosen in TAKE_IN_FLIGHT
    in_flight = math.ceil(rate * project.first_byte_ms / 1000) if late else None
    return Choice(chosen, bool(top) and not keeps_busy(rate, top), rate, hours, left_out, in_flight)


def keeps_busy(images_per_s: float, accelerator_images_per_s: float) -> bool:
    """Tell whether an accelerator that takes so much alone gets enough of it, so that its data are not the problem."""
    return images_per_s >= ENOUGH * accelerator_images_per_s


def all_mib(one: Measurement, images: int) -> float:
    """Return what a pipeline that keeps every image would hold of all of them."""
    return one.memory.own_mib * images / max(one.images_done, 1)


def fits_in_memory(mib: float, free_mib: float) -> bool:
    """Tell whether images of this size leave enough of the free memory to others."""
    return mib <= _SHARE_FOR_IMAGES * free_mib


def pixel_bytes(one: Measurement) -> int:
    """Return the size of an image as the row's pipeline delivers it, three channels of uint8."""
    return math.prod(one.image_size) * 3


def _obstacle(one: Measurement, project: Project) -> str:
    if one.outcome != "finished":
        return str(one.outcome)
    if not one.alone.images_per_s:
        return "not measured"
    if one.name == "load_everything" and not fits_in_memory(mib := all_mib(one, project.images), project.memory_mib):
        return f"needs {mib:,.0f} MiB, more than {_SHARE_FOR_IMAGES:.0%} of the memory"
    if one.name == "tf_data_packed" and (size := project.images * pixel_bytes(one)) > project.disk_bytes:
        return f"needs {size / 1e9:,.1f} GB of disk"
    if project.crops_photographs and one.name in (*_DECODE_FIRST, "tf_data_fast"):
        return "does not deliver all pixels of a photograph"
    if project.resumes and one.name not in _CAN_RESUME:
        return "cannot go on in the middle of an epoch"
    return ""


def _seconds(one: Measurement, project: Project) -> float:
    """Return the time of the whole training."""
    files_per_s = _files_per_s(project, project.file_bytes)
    later_s = 1 / _later_images_per_s(one, project)
    if one.name in _DECODE_FIRST:
        waiting_s = project.first_byte_ms / 1000 / _files_at_once(one)
        first_s = max((one.alone.first_batch_s or 0) / one.files, 1 / files_per_s, waiting_s) + later_s
    else:
        first_s = max(later_s, 1 / files_per_s)
    return project.images * (first_s + (project.epochs - 1) * later_s)


def _later_images_per_s(one: Measurement, project: Project) -> float:
    """Return the rate beside the project's accelerator once the first epoch has filled what memory there is.

    As large a part of what pipeline and accelerator allow as in the row, where it was measured beside an accelerator.
    """
    alone, top = one.alone.images_per_s, one.training.ceiling_images_per_s
    part = one.training.images_per_s / min(alone, top) if one.training.images_per_s and top else 1.0
    wanted = project.accelerator_images_per_s or top or math.inf
    rate = min(part, 1.0) * min(alone, wanted)
    if project.first_byte_ms and one.name not in _DECODE_FIRST:
        rate = min(rate, _files_at_once(one) / project.first_byte_ms * 1000)
    read_bytes = {"load_everything": 0.0, "tf_data_packed": pixel_bytes(one)}.get(one.name, project.file_bytes)
    if read_bytes * project.images <= _SHARE_FOR_CACHE * project.memory_mib * 2**20:
        return rate
    return min(rate, _files_per_s(project, read_bytes))


def _files_at_once(one: Measurement) -> float:
    if one.name in TAKE_IN_FLIGHT:
        return math.inf
    return 1 if one.name in _READ_ONE_BY_ONE else one.context.machine.cores or 1


def _files_per_s(project: Project, size_bytes: float) -> float:
    return project.disk_mb_per_s * 1e6 / size_bytes if project.disk_mb_per_s and size_bytes else math.inf
