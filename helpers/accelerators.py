"""What consumes batches: a Keras model on the default device, or an emulated accelerator.

Called by `measure` and by the lessons. An accelerator is a small object with a `label` and a method
``prepare(image_size, channels, class_count, batch_sizes)`` that returns ``step(images, labels)``: it does the work of
one training step and comes back when it is done. Works under each Keras backend; Keras is imported in `prepare`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

__all__ = ["MODELS", "EmulatedAccelerator", "KerasAccelerator", "ceiling", "small_cnn"]

Step = Callable[[object, object], None]


@dataclass(frozen=True)
class EmulatedAccelerator:
    """Sleeps for as long as an accelerator of this rate would compute, as the MLPerf Storage benchmark does.

    It uses no CPU, so that a laptop without a GPU shows what a GPU would wait.
    """

    images_per_s: float
    kind: str = field(default="emulated", init=False)

    def __post_init__(self):
        if not self.images_per_s > 0:
            raise ValueError(f"images_per_s is {self.images_per_s}: give a rate above zero")

    @property
    def label(self) -> str:
        """Name for tables and figures."""
        rate = f"{self.images_per_s:,.0f}" if self.images_per_s >= 10 else f"{self.images_per_s:.2g}"
        return f"emulated, {rate} images/s"

    def prepare(self, image_size: tuple[int, int], channels: int, class_count: int, batch_sizes: list[int]) -> Step:
        """Return the step; nothing needs to be built."""
        return lambda images, labels: time.sleep(len(labels) / self.images_per_s)


def small_cnn(image_size: tuple[int, int], channels: int, class_count: int):
    """Return the course's small convolutional network, which a CPU can train faster than it can decode photographs.

    It takes uint8 images ``(n, height, width, channels)``, scales them to [-1, 1] in its first layer, and returns class
    probabilities ``(n, class_count)``. Not compiled.
    """
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((*image_size, channels), dtype="uint8", name="images"),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(16, 5, strides=4, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(class_count, activation="softmax", name="classes"),
        ],
        name="small_cnn",
    )


def _application(keras_name: str, name: str) -> Callable:
    """Return a function that builds a model of `keras.applications`, untrained; for the rest like `small_cnn`."""

    def build(image_size: tuple[int, int], channels: int, class_count: int):
        import keras

        shape = (*image_size, channels)
        body = getattr(keras.applications, keras_name)(
            weights=None, classes=class_count, classifier_activation=None, input_shape=shape
        )
        images = keras.Input(shape, dtype="uint8", name="images")
        scores = body(keras.layers.Rescaling(1 / 127.5, offset=-1)(images))
        # In mixed precision the softmax stays in float32, as Keras' guide asks.
        return keras.Model(images, keras.layers.Activation("softmax", dtype="float32")(scores), name=body.name)

    build.__name__ = name
    return build


MODELS = {
    "resnet50": _application("ResNet50", "resnet50"),  # which most benchmarks of input pipelines feed
    "vgg16": _application("VGG16", "vgg16"),  # about four times the arithmetic
    "mobilenet_v2": _application("MobileNetV2", "mobilenet_v2"),  # so light that a GPU needs several times the images
    "small_cnn": small_cnn,
}


@dataclass(frozen=True)
class KerasAccelerator:
    """Trains a Keras model on the default device: the GPU where Keras finds one, else the CPU.

    Parameters
    ----------
    build : callable
        ``build(image_size, channels, class_count)`` returns a Keras model that takes uint8 images and gives class
        probabilities; by default `small_cnn`. `MODELS` has others.
    precision : str, optional
        Keras' dtype policy while the model is built, such as ``mixed_bfloat16``; by default the one that is set.
    """

    build: Callable = small_cnn
    precision: str | None = None
    kind: str = field(default="keras", init=False)

    @property
    def label(self) -> str:
        """Name for tables and figures."""
        return ", ".join(filter(None, (name_of(self.build), self.precision)))

    def prepare(self, image_size: tuple[int, int], channels: int, class_count: int, batch_sizes: list[int]) -> Step:
        """Build and compile the model, and run one step of each batch size so that no compilation is timed later."""
        import keras

        before = keras.config.dtype_policy()
        try:
            if self.precision is not None:
                keras.config.set_dtype_policy(self.precision)
            model = self.build(image_size, channels, class_count)
        finally:
            keras.config.set_dtype_policy(before)
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")

        def step(images: object, labels: object) -> None:
            # The loss comes back as a number, so the step has ended.
            model.train_on_batch(_for_keras(images), _for_keras(labels))

        for batch_size in batch_sizes:
            images, labels = resident_batch(batch_size, image_size, channels, class_count)
            for _ in range(2):
                step(images, labels)
        return step


def _for_keras(batch: object) -> object:
    """Return a tensor of TensorFlow as an array, without a copy, where Keras computes with something else."""
    is_foreign = keras_backend() != "tensorflow" and type(batch).__module__.startswith("tensorflow.")
    return batch.numpy() if is_foreign else batch


def name_of(function: Callable) -> str:
    """Return a function's name for tables and figures; of a `functools.partial`, that of its function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def resident_batch(batch_size: int, image_size: tuple[int, int], channels: int, class_count: int):
    """Return a random batch: images uint8 ``(batch_size, height, width, channels)``, labels int64."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *image_size, channels), dtype=np.uint8)
    return images, rng.integers(0, class_count, batch_size)


def ceiling(step: Step, images: object, labels: object, *, seconds: float = 2.0, min_steps: int = 5) -> float:
    """Feed one resident batch again and again: the rate that no pipeline can beat, in images/s.

    The median of the step times is used, so that a pause of the machine does not count. The method of DS-Analyzer
    (Mohan et al., VLDB 2021) and of MLPerf Storage.
    """
    step(images, labels)
    ends_s = [time.perf_counter()]
    while ends_s[-1] < ends_s[0] + seconds or len(ends_s) <= min_steps:
        step(images, labels)
        ends_s.append(time.perf_counter())
    return len(labels) / float(np.median(np.diff(ends_s)))


def to_device(images: np.ndarray, labels: np.ndarray, accelerator: object) -> tuple[object, object]:
    """Move a batch to where the accelerator computes, once."""
    if accelerator.kind != "keras":
        return images, labels
    import keras

    return keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)


def keras_backend() -> str:
    """Return the backend that Keras computes with: tensorflow, jax or torch."""
    import keras

    return keras.backend.backend()


def keras_device() -> str:
    """Return where Keras computes by default, for example ``gpu:0``, ``cuda:0`` or ``cpu:0``."""
    import keras

    if keras_backend() == "torch":  # has no list of devices in Keras
        return str(keras.ops.zeros(1).device)
    names = [str(name).lower() for name in keras.distribution.list_devices()]
    return next((name for name in names if "cpu" not in name), "cpu:0")


def framework_gpu_peak_mib() -> float | None:
    """Return the peak of GPU memory by the framework's own allocator, in MiB; None without a GPU."""
    if "cpu" in keras_device():
        return None
    peak = None
    if keras_backend() == "tensorflow":
        import tensorflow as tf

        with suppress(ValueError):  # a GPU whose plug-in does not count
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    elif keras_backend() == "jax":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    else:
        import torch

        peak = torch.cuda.max_memory_allocated()
    return None if peak is None else peak / 2**20
