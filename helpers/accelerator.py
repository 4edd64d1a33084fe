"""What consumes batches: a Keras model on the default device, or an emulated accelerator; and what NVML says of a GPU.

Called by `measure` and by the lessons. An accelerator is a small object with a `label` and a method
``prepare(image_size, channels, class_count, batch_sizes)`` that returns ``step(images, labels)``: it does the work of
one training step and comes back when it is done. Works under each Keras backend; Keras is imported in `prepare`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

__all__ = ["EmulatedAccelerator", "GpuSampler", "KerasAccelerator", "ceiling", "gpus", "small_cnn"]

_GPU_SAMPLE_S = 0.05
Step = Callable[[object, object], None]


@dataclass(frozen=True)
class EmulatedAccelerator:
    """Sleeps for as long as a named accelerator would compute, as the MLPerf Storage benchmark does.

    It uses no CPU, so that a laptop without a GPU shows what a GPU would wait.

    Parameters
    ----------
    images_per_s : float
        The rate that it stands for.
    """

    images_per_s: float
    kind: str = field(default="emulated", init=False)

    def __post_init__(self):
        if not self.images_per_s > 0:
            raise ValueError(f"images_per_s is {self.images_per_s}: give a rate above zero")

    @property
    def label(self) -> str:
        """Name for tables and figures; always says that it is emulated."""
        return f"emulated, {self.images_per_s:,.0f} images/s"

    def prepare(self, image_size: tuple[int, int], channels: int, class_count: int, batch_sizes: list[int]) -> Step:
        """Return the step; nothing needs to be built."""

        def step(images: object, labels: object) -> None:
            time.sleep(len(labels) / self.images_per_s)

        return step


def small_cnn(image_size: tuple[int, int], channels: int, class_count: int):
    """Build the course's small convolutional network, which a CPU can train faster than it can decode photographs.

    Parameters
    ----------
    image_size : (int, int)
        ``(height, width)`` in pixels.

    Returns
    -------
    keras.Model
        Takes uint8 images ``(n, height, width, channels)``, scales them to [-1, 1] in its first layer, and returns
        class probabilities ``(n, class_count)``. Not compiled.
    """
    import keras

    layers = keras.layers
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


@dataclass(frozen=True)
class KerasAccelerator:
    """Trains a Keras model on the default device: the GPU where Keras finds one, else the CPU.

    Parameters
    ----------
    build : callable
        ``build(image_size, channels, class_count)`` returns a Keras model that takes uint8 images and gives class
        probabilities; by default `small_cnn`.
    """

    build: Callable = small_cnn
    kind: str = field(default="keras", init=False)

    @property
    def label(self) -> str:
        """Name for tables and figures."""
        return self.build.__name__

    def prepare(self, image_size: tuple[int, int], channels: int, class_count: int, batch_sizes: list[int]) -> Step:
        """Build and compile the model, and run one step of each batch size so that no compilation is timed later."""
        model = self.build(image_size, channels, class_count)
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")

        def step(images: object, labels: object) -> None:
            model.train_on_batch(images, labels)  # gives the loss as a number, so the step has ended

        for batch_size in batch_sizes:
            images, labels = resident_batch(batch_size, image_size, channels, class_count)
            for _ in range(2):
                step(images, labels)
        return step


def resident_batch(batch_size: int, image_size: tuple[int, int], channels: int, class_count: int):
    """Return one random batch: images uint8 ``(batch_size, height, width, channels)``, labels int64."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *image_size, channels), dtype=np.uint8)
    return images, rng.integers(0, class_count, batch_size)


def ceiling(step: Step, images: object, labels: object, *, seconds: float = 2.0, min_steps: int = 5) -> float:
    """Feed one resident batch again and again: the rate that no pipeline can beat, in images/s.

    The median of the step times is used, so that a pause of the machine does not count. The method of DS-Analyzer
    (Mohan et al., VLDB 2021) and of MLPerf Storage.
    """
    step(images, labels)
    step_s = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(step_s) < min_steps:
        before = time.perf_counter()
        step(images, labels)
        step_s.append(time.perf_counter() - before)
    return len(labels) / float(np.median(step_s))


def to_device(images: np.ndarray, labels: np.ndarray, accelerator: object) -> tuple[object, object]:
    """Move a batch to where the accelerator computes, once."""
    if accelerator.kind != "keras":
        return images, labels
    import keras

    return keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)


def keras_device() -> str:
    """Return where Keras computes by default, for example ``gpu:0`` or ``cpu:0``."""
    import keras

    names = [str(name).lower() for name in keras.distribution.list_devices()]
    return next((name for name in names if "cpu" not in name), names[0] if names else "cpu:0")


def framework_gpu_peak_mib() -> float | None:
    """Return the GPU memory peak that the framework's own allocator counted, in MiB; None without a GPU."""
    import keras

    if "cpu" in keras_device():
        return None
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    elif backend == "jax":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    elif backend == "torch":
        import torch

        peak = torch.cuda.max_memory_allocated()
    else:
        peak = None
    return None if peak is None else peak / 2**20


@contextmanager
def _nvml():
    """Yield the NVML module, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs in this machine; an empty list where there is none."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


class GpuSampler:
    """Samples NVML in a thread while the `with` block runs.

    Attributes
    ----------
    busy_percent : float or None
        Mean share of time in which at least one kernel ran, in per cent: says nothing of how full the GPU was.
    peak_mib : float or None
        Largest GPU memory in use by all programs, in MiB.

    Both are None, not zero, where there is no GPU or the GPU does not tell.
    """

    def __init__(self, index: int = 0):
        self._index = index
        self._busy: list[float] = []
        self._used_mib: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> GpuSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    @property
    def busy_percent(self) -> float | None:
        return float(np.mean(self._busy)) if self._busy else None

    @property
    def peak_mib(self) -> float | None:
        return max(self._used_mib) if self._used_mib else None

    def _sample(self) -> None:
        with _nvml() as nvml:
            if nvml is None:
                return
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(_visible_index(self._index))
            except nvml.NVMLError:
                return
            while not self._stop.is_set():
                # A GPU may refuse one figure and give the other (a partitioned one has no utilisation).
                for store, read in (
                    (self._busy, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                    (self._used_mib, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20),
                ):
                    try:
                        store.append(read())
                    except nvml.NVMLError:
                        pass
                self._stop.wait(_GPU_SAMPLE_S)


def _visible_index(index: int) -> int:
    """Translate the framework's GPU number to NVML's: NVML does not heed CUDA_VISIBLE_DEVICES."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return int(visible[index]) if index < len(visible) and visible[index].isdigit() else index
