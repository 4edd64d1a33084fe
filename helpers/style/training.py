"""Train a style network so that nothing is lost: the same run, whether it was killed in between or not.

Called by `command`, `trained` and lesson 09, whose network, losses and feeding these are. A run is a folder:

    settings.yaml   what it was started with, its features resolved      style.png   the style picture, copied
    checkpoints/    the last two                                        logs/       for TensorBoard
    losses.csv      a line for each step                                network.keras  once it is trained
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import keras
import msgspec
import numpy as np
import tensorflow as tf

from helpers.files import locked, printable, write_whole
from helpers.folders import ImageFiles
from helpers.style.feeds import style_tf_data
from helpers.style.network import PerceptualLoss, style_features, style_network, training_step
from helpers.style.pictures import save_picture, target_picture
from helpers.style.settings import StyleSettings, load_settings, save_settings

__all__ = ["build_step", "epoch_order", "read_losses", "train"]

LOSSES = ("total", "content", "style", "variation")
_COLUMNS = ("step", *LOSSES)
_VGG_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
_VGG_MD5 = "6d6bbae143d832006294945121d1f1fc"  # as in keras.applications.vgg16
# What may change between two runs of `train` in one folder: nothing that the steps done so far depend on.
_MAY_CHANGE = ("steps", "save_every")
_PROGRESS_S = 5.0
_PICTURES_LOGGED = 3


def resolved_features(features: str) -> str:
    """Return which weights to take: ``auto`` means imagenet where Keras has the whole file already, else random."""
    if features != "auto":
        return features
    cached = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models" / _VGG_FILE
    is_whole = cached.is_file() and hashlib.md5(cached.read_bytes(), usedforsecurity=False).hexdigest() == _VGG_MD5
    return "imagenet" if is_whole else "random"


def build_step(settings: StyleSettings, style: np.ndarray) -> tuple[keras.Model, keras.Optimizer, Callable]:
    """Return network, optimizer and the function that trains one step, as `helpers.style.network` has it.

    The style picture is uint8 ``(height, width, 3)``.
    """
    keras.utils.set_random_seed(settings.seed)
    network = style_network(settings.width)
    optimizer = keras.optimizers.Adam(settings.learning_rate)
    optimizer.build(network.trainable_variables)
    loss = PerceptualLoss(style_features(resolved_features(settings.features)), style)
    weights = {name: getattr(settings, f"{name}_weight") for name in LOSSES[1:]}
    return network, optimizer, training_step(network, loss, optimizer, weights)


def train(settings: StyleSettings, files: ImageFiles, folder: str | os.PathLike, *, say: Callable = print) -> Path:
    """Train, or go on where a run in this folder stopped, was killed, or was to stop.

    Which images a step trains on follows from the seed and the step's number alone.

    Parameters
    ----------
    settings : StyleSettings
        To go on with a run, those that it was started with; `steps` and `save_every` may differ.
    files : ImageFiles
        The photographs; the same ones for the whole run.
    folder : path
        The run's; made when missing.
    say : callable
        Called with each line of progress.

    Returns
    -------
    pathlib.Path
        The trained network, ``network.keras``.

    Raises
    ------
    ValueError
        If there are fewer images than a batch, the folder holds a run of other settings, an image is broken (the
        message names it), or the loss is no number any more.
    FileNotFoundError
        If the style picture or an image is missing.
    OSError
        If another training writes to this folder, or the disk is full.
    """
    if len(files) < settings.batch_size:
        found = f"{len(files):,} images are less than one batch of {settings.batch_size}"
        raise ValueError(f"{found}; give more, or a smaller batch_size")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"{printable(folder)}: another training is writing there; give another folder"):
        return _Run(settings, files, folder, say).train()


class _Run:
    """One run: what is in its folder, and the objects that are trained."""

    def __init__(self, settings: StyleSettings, files: ImageFiles, folder: Path, say: Callable):
        self.settings, style = _started(settings, folder)
        self.files, self.folder, self.say = files, folder, say
        self.network, self.optimizer, self.train_step = build_step(self.settings, style)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.manager = checkpoints(folder, network=self.network, optimizer=self.optimizer, step=self.step)
        restore(self.manager)

    def train(self) -> Path:
        first = int(self.step)
        if first:
            self.say(f"going on after step {first:,}")
        path = self.folder / "losses.csv"
        _keep_losses(path, first)
        summaries = tf.summary.create_file_writer(os.fspath(self.folder / "logs"))
        with open(path, "a", encoding="utf-8") as file, closing(summaries):
            self._steps(first, file, summaries)
        network, part = self.folder / "network.keras", self.folder / "part.network.keras"
        self.network.save(part)  # Keras writes to a name with this ending, and to no open file
        part.replace(network)
        return network

    def _steps(self, first: int, file: TextIO, summaries: tf.summary.SummaryWriter) -> None:
        settings, said_s = self.settings, time.monotonic()
        for number, images in zip(range(first + 1, settings.steps + 1), self._batches(first), strict=False):
            values = {name: float(value) for name, value in self.train_step(images).items()}
            if not math.isfinite(values["total"]):
                found = f"the loss of step {number:,} is {values['total']}"
                raise ValueError(f"{found}: start again with a lower learning_rate")
            self.step.assign(number)
            file.write(_line(number, values))
            is_last = number == settings.steps
            is_saved = is_last or number % settings.save_every == 0
            self._log(summaries, number, values, images if is_saved else None)
            if is_saved:
                file.flush()  # before the checkpoint: what it claims to have done must be in the file
                self.manager.save(number)
            now_s = time.monotonic()
            if number == first + 1:
                begun_s = now_s  # the first step, with what is compiled for it, says nothing of the others
            elif now_s - said_s > _PROGRESS_S or is_last:
                said_s = now_s
                self.say(_progress(number, number - first - 1, settings, values, now_s - begun_s))

    def _batches(self, done: int) -> Iterator[tf.Tensor]:
        """Yield the batches after the first `done` steps, epoch after epoch; a last partial batch is left out."""
        size, count = self.settings.batch_size, len(self.files)
        image_size = (self.settings.image_size,) * 2
        epoch, skipped = divmod(done, count // size)
        while True:
            rest = self.files.select(epoch_order(count, size, self.settings.seed, epoch)[skipped * size :])
            try:
                for images, _names in style_tf_data(rest, image_size=image_size, batch_size=size):
                    yield images
            except tf.errors.OpError as error:
                hint = "data_scripts/check_images.py finds all that are broken"
                raise ValueError(f"an image cannot be read: {error.message}; {hint}") from error
            epoch, skipped = epoch + 1, 0

    def _log(self, summaries, step: int, losses: dict[str, float], images: tf.Tensor | None) -> None:
        """Note the losses, and images of the batch that was just trained on with what the network makes of them."""
        with summaries.as_default(step=step):
            for name, value in losses.items():
                tf.summary.scalar(f"loss/{name}", value)
            if images is not None:
                images = images[:_PICTURES_LOGGED]
                both = tf.concat([images, tf.cast(tf.round(self.network(images)), tf.uint8)], 2)
                tf.summary.image("photograph and painted", both, max_outputs=_PICTURES_LOGGED)
                summaries.flush()


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of the images of one epoch, in its order, as many as fill whole batches; int64."""
    return np.random.default_rng((seed, epoch)).permutation(count)[: count // batch_size * batch_size]


def _started(settings: StyleSettings, folder: Path) -> tuple[StyleSettings, np.ndarray]:
    """Return the settings in force and the style picture; note both in the folder, the settings last."""
    noted, picture = folder / "settings.yaml", folder / "style.png"
    style = target_picture(settings)
    features = resolved_features(settings.features)
    if noted.exists():
        before = load_settings(noted)
        if settings.features == "auto":
            features = before.features
        settings = msgspec.structs.replace(settings, style_image=before.style_image, features=features)
        for name in settings.__struct_fields__:
            old, new = getattr(before, name), getattr(settings, name)
            if name not in _MAY_CHANGE and old != new:
                found = f"{printable(folder)}: holds a run with {name} {old}, and now {name} is {new}"
                raise ValueError(f"{found}; give another folder, or the same settings")
        if not np.array_equal(target_picture(before), style):
            raise ValueError(f"{printable(folder)}: holds a run of another style picture; give another folder")
    else:
        save_picture(style, picture)
    settings = msgspec.structs.replace(settings, style_image=picture.name, features=features)
    save_settings(settings, noted)
    return settings, style


def checkpoints(folder: Path, **parts: object) -> tf.train.CheckpointManager:
    """Return the manager of a run's checkpoints of these parts."""
    return tf.train.CheckpointManager(tf.train.Checkpoint(**parts), os.fspath(folder / "checkpoints"), max_to_keep=2)


def restore(manager: tf.train.CheckpointManager) -> bool:
    """Read the last checkpoint, and return whether there is one.

    Raises
    ------
    ValueError
        If it is damaged, or its weights are those of another network.
    """
    path = manager.latest_checkpoint
    try:
        if path:
            manager.checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
    except (ValueError, AssertionError) as error:
        found = f"{printable(path)}: these weights do not fit the network of settings.yaml"
        raise ValueError(f"{found} ({first_line(error)}); put its width back") from error
    except tf.errors.OpError as error:
        found = f"{printable(path)}: a damaged checkpoint; delete it and its line in the file checkpoint beside it"
        raise ValueError(f"{found} ({error.message.splitlines()[0]})") from error
    return path is not None


def first_line(error: Exception) -> str:
    """Return how the text of an error begins: those of Keras and TensorFlow are long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _line(step: int, losses: dict[str, float]) -> str:
    return ",".join(map(str, (step, *(losses[name] for name in LOSSES)))) + "\n"


def _keep_losses(path: Path, last_step: int) -> None:
    """Leave out of a file of losses what a killed run wrote after its last checkpoint; make the file when missing."""
    kept = [_line(row["step"], row) for row in read_losses(path) if row["step"] <= last_step]
    write_whole(path, ",".join(_COLUMNS) + "\n" + "".join(kept))


def read_losses(path: str | os.PathLike) -> list[dict[str, float]]:
    """Return the steps of a run's ``losses.csv``: step, total, content, style, variation; a torn line is left out."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    whole = [row for row in rows if all(row.get(name) for name in _COLUMNS)]
    return [{"step": int(row["step"]), **{name: float(row[name]) for name in LOSSES}} for row in whole]


def _progress(step: int, done: int, settings: StyleSettings, values: dict[str, float], seconds: float) -> str:
    losses = ", ".join(f"{name} {values[name]:.3g}" for name in LOSSES)
    left_s = (settings.steps - step) * seconds / done
    rate = done * settings.batch_size / seconds
    return f"step {step:,} of {settings.steps:,}: {losses}; {rate:.1f} images/s, {_duration(left_s)} left"


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds // 60 % 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {int(seconds % 60):02} s" if minutes else f"{seconds:.0f} s"
