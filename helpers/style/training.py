"""Train a style network so that nothing is lost: the same run, whether it was killed in between or not.

Called by `style`. The network, the losses and the feeding are those of lesson 09. A run is a folder:

    settings.yaml   what it was started with, its features resolved      style.png   the style picture, copied
    checkpoints/    the last two                                        logs/       for TensorBoard
    losses.csv      a line for each step                                network.keras  once it is trained
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock
from filelock import Timeout as LockTimeout

from helpers.files import printable
from helpers.folders import ImageFiles
from helpers.style.feeds import style_tf_data
from helpers.style.network import PerceptualLoss, style_features, style_network, training_step
from helpers.style.pictures import save_picture, target_picture
from helpers.style.settings import StyleSettings, load_settings, save_settings

__all__ = [
    "build_step",
    "epoch_order",
    "read_losses",
    "train",
]

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
    keras_home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")  # as keras.utils.get_file takes it
    cached = keras_home / "models" / _VGG_FILE
    is_whole = cached.is_file() and hashlib.md5(cached.read_bytes(), usedforsecurity=False).hexdigest() == _VGG_MD5
    return "imagenet" if is_whole else "random"


def build_step(settings: StyleSettings, style: np.ndarray) -> tuple[keras.Model, keras.Optimizer, Callable]:
    """Return network, optimizer and the function that trains one step; see `pipelines.style_network`.

    Parameters
    ----------
    settings : StyleSettings
    style : numpy.ndarray
        The style picture, uint8 ``(height, width, 3)``.
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
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _Run(settings, files, folder, say).train()
    except LockTimeout:
        raise OSError(f"{printable(folder)}: another training is writing there; give another folder") from None


class _Run:
    """One run: what is in its folder, and the objects that are trained."""

    def __init__(self, settings: StyleSettings, files: ImageFiles, folder: Path, say: Callable):
        self.settings, style = _started(settings, folder)
        self.files, self.folder, self.say = files, folder, say
        self.network, self.optimizer, self.train_step = build_step(self.settings, style)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.manager = checkpoints(folder, network=self.network, optimizer=self.optimizer, step=self.step)
        restore(self.manager.checkpoint, self.manager.latest_checkpoint)

    def train(self) -> Path:
        first = int(self.step)
        if first:
            self.say(f"going on after step {first:,}")
        path = self.folder / "losses.csv"
        _keep_losses(path, first)
        with open(path, "a", newline="", encoding="utf-8") as file, _summaries(self.folder / "logs") as summaries:
            self._steps(first, file, summaries)
        return self._save_network()

    def _steps(self, first: int, file, summaries) -> None:
        settings, losses = self.settings, csv.DictWriter(file, _COLUMNS)
        said_s = time.monotonic()
        numbers = range(first + 1, settings.steps + 1)
        for number, images in zip(numbers, self._batches(first), strict=False):
            values = {name: float(value) for name, value in self.train_step(images).items()}
            _refuse_nonsense(number, values)
            self.step.assign(number)
            losses.writerow({"step": number, **values})
            _log_losses(summaries, number, values)
            is_last = number == settings.steps
            if number % settings.save_every == 0 or is_last:
                file.flush()  # before the checkpoint: what it claims to have done must be in the file
                self._log_pictures(summaries, number, images)
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
                raise ValueError(_broken_image(error)) from error
            epoch, skipped = epoch + 1, 0

    def _log_pictures(self, summaries, number: int, images: tf.Tensor) -> None:
        """Note photographs and what the network makes of them, of the batch that was just trained on: no other."""
        images = images[:_PICTURES_LOGGED]
        painted = tf.cast(tf.round(self.network(images)), tf.uint8)
        with summaries.as_default(step=number):
            tf.summary.image("photograph and painted", tf.concat([images, painted], 2), max_outputs=_PICTURES_LOGGED)
        summaries.flush()

    def _save_network(self) -> Path:
        path, part = self.folder / "network.keras", self.folder / "part.network.keras"
        self.network.save(part)
        part.replace(path)
        return path


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
        features = before.features if settings.features == "auto" else features
        _refuse_changes(
            before, dataclasses.replace(settings, style_image=before.style_image, features=features), folder
        )
        if not np.array_equal(target_picture(before), style):
            raise ValueError(f"{printable(folder)}: holds a run of another style picture; give another folder")
    else:
        save_picture(style, picture)
    settings = dataclasses.replace(settings, style_image=picture.name, features=features)
    save_settings(settings, noted)
    return settings, style


def _refuse_changes(before: StyleSettings, now: StyleSettings, folder: Path) -> None:
    for name, value in dataclasses.asdict(before).items():
        if name not in _MAY_CHANGE and getattr(now, name) != value:
            raise ValueError(
                f"{printable(folder)}: holds a run with {name} {value}, and now {name} is {getattr(now, name)};"
                " give another folder, or the same settings"
            )


def checkpoints(folder: Path, **parts: object) -> tf.train.CheckpointManager:
    """Return the manager of a run's checkpoints of these parts."""
    return tf.train.CheckpointManager(tf.train.Checkpoint(**parts), os.fspath(folder / "checkpoints"), max_to_keep=2)


def restore(checkpoint: tf.train.Checkpoint, path: str | None) -> None:
    """Read the last checkpoint, if there is one; raise ValueError where its weights are those of another network."""
    if path is None:
        return
    try:
        checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
    except (ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{printable(path)}: these weights do not fit the network of settings.yaml ({reason}); put its width back"
        ) from error
    except tf.errors.OpError as error:
        raise ValueError(f"{printable(path)}: a damaged checkpoint; delete it and its line in the file checkpoint"
                         f" beside it ({error.message.splitlines()[0]})") from error  # fmt: skip


def _keep_losses(path: Path, last_step: int) -> None:
    """Leave out of a file of losses what a killed run wrote after its last checkpoint; make the file when missing."""
    kept = [row for row in read_losses(path) if row["step"] <= last_step]
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
    part.replace(path)


def read_losses(path: str | os.PathLike) -> list[dict[str, float]]:
    """Return the steps of a run's ``losses.csv``: step, total, content, style, variation; a torn line is left out."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    whole = [row for row in rows if all(row.get(name) for name in _COLUMNS)]
    return [{"step": int(row["step"]), **{name: float(row[name]) for name in LOSSES}} for row in whole]


@contextmanager
def _summaries(folder: Path) -> Iterator:
    writer = tf.summary.create_file_writer(os.fspath(folder))
    try:
        yield writer
    finally:
        writer.close()


def _refuse_nonsense(step: int, values: dict[str, float]) -> None:
    if not math.isfinite(values["total"]):
        raise ValueError(f"the loss of step {step:,} is {values['total']}: start again with a lower learning_rate")


def _log_losses(writer, step: int, values: dict[str, float]) -> None:
    with writer.as_default(step=step):
        for name, value in values.items():
            tf.summary.scalar(f"loss/{name}", value)


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


def _broken_image(error: tf.errors.OpError) -> str:
    return f"an image cannot be read: {error.message}; data_scripts/check_images.py finds all that are broken"
