"""Train a style network so that nothing is lost: the same run, whether it was killed in between or not.

Called by `command`, `trained` and lesson 10, whose network, losses and feeding these are. A run is a folder:

    settings.yaml   what it was started with                            style.png   the style picture, copied
    images.sha256   of the list of images                               logs/       for TensorBoard
    checkpoints/    the last two                                        losses.csv  a line for each step
    network.keras   once it is trained
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import keras
import msgspec
import numpy as np
import tensorflow as tf

from helpers.files import locked, printable, write_whole
from helpers.folders import ImageFiles
from helpers.style.features import random_features, vgg16_features
from helpers.style.feeds import batches_after
from helpers.style.network import PerceptualLoss, style_network, training_step
from helpers.style.pictures import save_picture, target_picture
from helpers.style.settings import StyleSettings, load_settings, save_settings

__all__ = ["build_step", "read_losses", "train"]

LOSSES = ("total", "content", "style")
_COLUMNS = ("step", *LOSSES)
# What may differ between two calls of `train` for one folder; the picture itself is compared.
_MAY_CHANGE = ("steps", "save_every", "style_image")
_PROGRESS_S = 5.0
_PICTURES_LOGGED = 3


def build_step(settings: StyleSettings, style: np.ndarray) -> tuple[keras.Model, keras.Optimizer, Callable]:
    """Return network, optimizer and the function that trains one step, as `helpers.style.network` has it.

    The style picture is uint8 ``(height, width, 3)``.
    """
    keras.utils.set_random_seed(settings.seed)
    network = style_network(settings.width)
    optimizer = keras.optimizers.Adam(settings.learning_rate)
    optimizer.build(network.trainable_variables)
    features = vgg16_features() if settings.features == "imagenet" else random_features()
    loss = PerceptualLoss(features, style)
    weights = {name: getattr(settings, f"{name}_weight") for name in LOSSES[1:]}
    return network, optimizer, training_step(network, loss, optimizer, weights)


def train(
    settings: StyleSettings,
    files: ImageFiles,
    folder: str | os.PathLike,
    *,
    say: Callable = print,
    other_images: bool = False,
) -> Path:
    """Train, or go on where a run in this folder stopped or was killed; return the trained network's path.

    Which images a step trains on follows from the seed and the step's number alone. To go on with a run, give the same
    images and settings; `steps` and `save_every` may differ, and with `other_images` the images. `say` is called with
    each line of progress.

    Raises
    ------
    ValueError
        If there are fewer images than a batch, the folder holds a run of other settings or images, an image is broken
        (the message names it), or the loss is NaN or infinite.
    OSError
        If the style picture is missing, the folder holds files of something else, another training writes to it, or
        the disk is full.
    """
    if len(files) < settings.batch_size:
        found = f"{len(files):,} images are less than one batch of {settings.batch_size}"
        raise ValueError(f"{found}; give more, or a smaller batch_size")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"{printable(folder)}: another training is writing there; give another folder"):
        settings, style = _started(settings, files, folder, other_images)
        network, optimizer, train_step = build_step(settings, style)
        step = tf.Variable(0, dtype=tf.int64, trainable=False)
        manager = restored(folder, network=network, optimizer=optimizer, step=step)
        if first := int(step):
            say(f"going on after step {first:,}")
        _keep_losses(folder / "losses.csv", first)
        summaries = tf.summary.create_file_writer(os.fspath(folder / "logs"))
        numbers, said_s = range(first + 1, settings.steps + 1), time.monotonic()
        with open(folder / "losses.csv", "a", encoding="utf-8") as file, closing(summaries):
            for number, images in zip(numbers, _batches(settings, files, first), strict=False):
                losses = {name: float(value) for name, value in train_step(images).items()}
                if not math.isfinite(losses["total"]):
                    found = f"the loss of step {number:,} is {losses['total']}"
                    raise ValueError(f"{found}: start again with a lower learning_rate")
                step.assign(number)
                file.write(_line([number, *(losses[name] for name in LOSSES)]))
                is_saved = number == settings.steps or number % settings.save_every == 0
                _log(summaries, number, losses, network, images[: _PICTURES_LOGGED * is_saved])
                if is_saved:
                    file.flush()  # before the checkpoint: what it claims to have done must be in the file
                    manager.save(number)
                now_s = time.monotonic()
                if number == numbers[0]:
                    begun_s = now_s  # the first step, with what is compiled for it, says nothing of the others
                elif now_s - said_s > _PROGRESS_S or number == settings.steps:
                    said_s = now_s
                    say(_progress(settings, number, losses, (now_s - begun_s) / (number - numbers[0])))
        part = folder / "part.network.keras"
        network.save(part)  # Keras writes to a name with this ending, and to no open file
        return part.replace(folder / "network.keras")


def _batches(settings: StyleSettings, files: ImageFiles, done: int) -> Iterator[tf.Tensor]:
    """Yield the batches after the first `done` steps; a ValueError names a broken image."""
    shape = {"image_size": (settings.image_size,) * 2, "batch_size": settings.batch_size}
    try:
        yield from batches_after(done, files, seed=settings.seed, **shape)
    except tf.errors.OpError as error:
        named = re.search("ValueError: (.*)", error.message)  # by `read_image`, with much of TensorFlow's around it
        hint = "data_scripts/check_images.py finds all that are broken"
        raise ValueError(f"an image cannot be read: {named[1] if named else error.message}; {hint}") from error


def _log(summaries, number: int, losses: dict[str, float], network: keras.Model, images: tf.Tensor) -> None:
    """Note the losses of a step, and some images that it trained on with what the network makes of them."""
    with summaries.as_default(step=number):
        for name, value in losses.items():
            tf.summary.scalar(f"loss/{name}", value)
        if len(images):
            both = tf.concat([images, tf.cast(tf.round(network(images)), tf.uint8)], 2)
            tf.summary.image("photograph and painted", both, max_outputs=len(images))
            summaries.flush()


def _progress(settings: StyleSettings, number: int, losses: dict[str, float], step_s: float) -> str:
    values = ", ".join(f"{name} {losses[name]:.3g}" for name in LOSSES)
    left = timedelta(seconds=round((settings.steps - number) * step_s))
    return f"step {number:,} of {settings.steps:,}: {values}; {settings.batch_size / step_s:.1f} images/s, {left} left"


def _digest(files: ImageFiles) -> str:
    """Return a hash of the list of images: their names below the folder that holds them all, and their sizes."""
    paths = [os.path.abspath(path) for path in files.paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = "".join(f"{os.path.relpath(path, folder)}\0{os.path.getsize(path)}\0" for path in paths)
    return hashlib.sha256(os.fsencode(names)).hexdigest()


def _started(
    settings: StyleSettings, files: ImageFiles, folder: Path, other_images: bool
) -> tuple[StyleSettings, np.ndarray]:
    """Return the settings in force and the style picture; note them and the images in the folder, the settings last."""
    noted, picture, images = folder / "settings.yaml", folder / "style.png", folder / "images.sha256"
    style = target_picture(settings)
    before = load_settings(noted) if noted.exists() else None
    settings = msgspec.structs.replace(settings, style_image=picture.name)
    if before is None:
        foreign = [path.name for path in folder.iterdir() if path.name[0] != "." and path not in (picture, images)]
        if foreign:
            raise FileExistsError(f"{printable(folder)}: holds {foreign[0]} and no run; give another folder")
        save_picture(style, picture)
    elif before.style_image != os.path.normpath(picture):
        raise FileExistsError(f"{printable(noted)}: not the settings of a run; give another folder")
    else:
        old, new = (msgspec.structs.asdict(one) for one in (before, settings))
        other = [
            f"{name} {old[name]}, not {new[name]}" for name in old if old[name] != new[name] and name not in _MAY_CHANGE
        ]
        if not np.array_equal(target_picture(before), style):
            other.append("another style picture")
        if other:
            found = f"{printable(folder)}: holds a run with {', '.join(other)}"
            raise ValueError(f"{found}; give another folder, or the same settings")
        if not other_images and images.exists() and images.read_text() != _digest(files):
            found = f"{printable(folder)}: holds a run with other images"
            raise ValueError(f"{found}; give the same ones, another folder, or --other-images to go on with these")
    write_whole(images, _digest(files))
    save_settings(settings, noted)
    return settings, style


def restored(folder: Path, **parts: object) -> tf.train.CheckpointManager:
    """Return the manager of a run's checkpoints; these parts are as in the last one, if there is one.

    A ValueError says that it is damaged, or that its weights are those of another network.
    """
    checkpoint = tf.train.Checkpoint(**parts)
    manager = tf.train.CheckpointManager(checkpoint, os.fspath(folder / "checkpoints"), max_to_keep=2)
    path = manager.latest_checkpoint
    try:
        if path:
            checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
    except (ValueError, AssertionError) as error:
        found = f"{printable(path)}: these weights do not fit the network of settings.yaml"
        raise ValueError(f"{found} ({first_line(error)}); put its width back") from error
    except tf.errors.OpError as error:
        found = f"{printable(path)}: a damaged checkpoint; delete it and its line in the file checkpoint beside it"
        raise ValueError(f"{found} ({first_line(error)})") from error
    return manager


def first_line(error: Exception) -> str:
    """Return how the text of an error begins: those of Keras and TensorFlow are long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _line(values: Iterable) -> str:
    return ",".join(map(str, values)) + "\n"


def _keep_losses(path: Path, last_step: int) -> None:
    """Leave out of a file of losses what a killed run wrote after its last checkpoint; make the file when missing."""
    kept = [row for row in (read_losses(path) if path.exists() else []) if row["step"] <= last_step]
    write_whole(path, "".join(map(_line, [_COLUMNS, *(row.values() for row in kept)])))


def read_losses(path: str | os.PathLike) -> list[dict[str, float]]:
    """Return the steps of a run's ``losses.csv``: step, total, content and style; a torn line is left out."""
    with open(path, newline="", encoding="utf-8") as file:
        whole = [row for row in csv.DictReader(file) if all(row.get(name) for name in _COLUMNS)]
    return [{"step": int(row["step"]), **{name: float(row[name]) for name in LOSSES}} for row in whole]
