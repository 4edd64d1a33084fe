"""The reader's data and model as `helpers.watch` handles them: some batches held, the model put back as it was."""

from __future__ import annotations

import functools
import itertools
import threading
import time
import types
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

__all__ = ["Source", "as_before", "as_dataset", "as_pydataset"]

_HELD_BATCHES, _MOST_HELD_MIB = 10, 256  # at least one batch is held, however large it is


class Source:
    """The reader's data, and what Keras needs beside them in `fit`."""

    def __init__(self, x: Any, inputs: dict[str, Any]):
        import keras

        self.x, self.inputs, self.length = x, inputs, None
        self.error: BaseException | None = None
        self.took_s: list[float] = []  # by a generator, for each of its batches
        self._lock, self._is_over = threading.Lock(), False
        names = {kind.__name__ for kind in type(x).__mro__}
        if isinstance(x, types.GeneratorType):
            self.kind, self.fed = "generator", self._batches()
        elif isinstance(x, keras.utils.PyDataset):
            self.kind, self.fed, self.length = "pydataset", x, x.num_batches
        elif "DatasetV2" in names:
            self.kind, self.fed, self.length = "dataset", x, int(x.cardinality())
        elif hasattr(x, "__iter__") and names & {"DataLoader", "MapDataset", "IterDataset"}:
            self.kind, self.fed = "dataloader", x
            with suppress(TypeError):
                self.length = len(x)
        else:
            self.kind, self.fed = "arrays", x
            self.images = len(keras.tree.flatten(x)[0])
            self.length = -(-self.images // (inputs.get("batch_size") or 32))
        self.length = None if self.length is None or self.length < 0 else self.length

    def _batches(self) -> Generator:
        """Pass on what the reader's generator gives; the lock says when no thread is in it any more."""
        while True:
            with self._lock:
                if self._is_over:
                    return
                started = time.perf_counter()
                try:
                    batch = next(self.x)
                except StopIteration:
                    return
                except BaseException as error:
                    self.error = error
                    raise
                self.took_s.append(time.perf_counter() - started)
            yield batch

    @property
    def ahead(self) -> int:
        """How many batches may lie ready before the first step, because their reader works in other processes."""
        workers = getattr(self.x, "workers", 0) if self.kind == "pydataset" else getattr(self.x, "num_workers", 0)
        if not workers or (self.kind == "pydataset" and workers == 1 and not self.x.use_multiprocessing):
            return 0
        return workers * (getattr(self.x, "prefetch_factor", 0) or 1) + getattr(self.x, "max_queue_size", 0)

    def stop(self) -> None:
        """Take nothing more from a generator: Keras reads ahead in a thread of its own."""
        self._is_over = True
        with self._lock:
            pass

    def hold(self) -> tuple[list[tuple], float]:
        """Return some batches as tuples of equal batch size, and the MiB that they take."""
        import keras

        batches: list[tuple] = []
        held_bytes = 0
        for batch in itertools.islice(self._looked_at(), _HELD_BATCHES):
            batch = _as_tuple(batch)
            leaves = keras.tree.flatten(batch)
            if batches and np.shape(leaves[0])[:1] != np.shape(keras.tree.flatten(batches[0])[0])[:1]:
                continue  # the last one of an epoch: a step on it takes less
            batch_bytes = sum(getattr(leaf, "nbytes", 0) or np.asarray(leaf).nbytes for leaf in leaves)
            if batches and held_bytes + batch_bytes > _MOST_HELD_MIB * 2**20:
                break
            batches.append(batch)
            held_bytes += batch_bytes
        if not batches:
            raise ValueError("the data gave no batch: there is nothing to train on")
        if keras.backend.backend() == "jax":  # takes no tensor of another framework
            batches = keras.tree.map_structure(lambda leaf: np.asarray(leaf), batches)
        return batches, held_bytes / 2**20

    def _looked_at(self) -> Iterator:
        if self.kind == "pydataset":
            return (self.x[i] for i in (itertools.count() if self.length is None else range(self.length)))
        if self.kind == "arrays":
            return self._slices(self.x, self.inputs.get("y"), self.inputs.get("sample_weight"))
        return iter(self.x.take(_HELD_BATCHES) if self.kind == "dataset" else self.fed)

    def _slices(self, *arrays: Any) -> Iterator[tuple]:
        import keras

        size, given = self.inputs.get("batch_size") or 32, tuple(one for one in arrays if one is not None)

        def part(array: Any, start: int) -> Any:
            some = array[start : start + size]
            some = some if hasattr(some, "dtype") and hasattr(some, "shape") else np.asarray(some)
            return some.astype(keras.config.floatx()) if some.dtype == np.float64 else some  # as Keras does

        for start in range(0, self.images, size):
            yield tuple(keras.tree.map_structure(functools.partial(part, start=start), one) for one in given)

    def like_it(self, held: list[tuple]) -> tuple[Any, dict]:
        """Return held batches that TensorFlow compiles the same step for, so that nothing is compiled later."""
        import keras

        if self.kind == "dataset":
            return as_dataset(held, len(held), self.x.element_spec), self.inputs
        if self.kind != "arrays":
            return as_pydataset(held, len(held)), self.inputs
        arrays = zip(*held, strict=True)
        whole = [keras.tree.map_structure(lambda *parts: np.concatenate(parts), *parts) for parts in arrays]
        names = [name for name in ("y", "sample_weight") if name in self.inputs]
        return whole[0], self.inputs | dict(zip(names, whole[1:], strict=True))


def _as_tuple(batch: Any) -> tuple:
    """Return a batch as tf.data takes it: lists are tuples, and nothing is said by None."""
    if isinstance(batch, dict) or not isinstance(batch, (tuple, list)):
        batch = (batch,)

    def without_lists(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: without_lists(one) for name, one in part.items()}
        return tuple(map(without_lists, part)) if isinstance(part, (tuple, list)) else part

    batch = without_lists(batch)
    while batch and batch[-1] is None:
        batch = batch[:-1]
    return batch


def as_dataset(held: list[tuple], count: int, spec: Any = None) -> Any:
    """Return a tf.data.Dataset of batches that are not copied, with the shapes that the reader's Dataset declares."""
    import tensorflow as tf

    one_after_another = functools.reduce(
        lambda before, after: before.concatenate(after), map(tf.data.Dataset.from_tensors, held)
    )
    if spec is not None:
        known = tf.nest.flatten(spec if isinstance(spec, tuple) else (spec,))

        def as_declared(*batch: Any) -> Any:
            leaves = [
                tf.compat.v1.placeholder_with_default(leaf, one.shape) if isinstance(leaf, tf.Tensor) else leaf
                for leaf, one in zip(tf.nest.flatten(batch), known, strict=True)
            ]
            packed = tf.nest.pack_sequence_as(batch, leaves)
            return packed if isinstance(spec, tuple) else packed[0]

        one_after_another = one_after_another.map(as_declared)
    options = tf.data.Options()  # the beginning of an epoch should cost as little as it can
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return one_after_another.repeat().take(count).with_options(options)


def as_pydataset(held: list[tuple], count: int) -> Any:
    import keras

    class Held(keras.utils.PyDataset):
        num_batches = count

        def __getitem__(self, index: int) -> tuple:
            return held[index % len(held)]

    return Held()


# ---- the model -------------------------------------------------------------------------------------------------------


@contextmanager
def as_before(model: Any, batch: tuple) -> Iterator[None]:
    """Let a block train a model, and put back what it was; a model that is not built gets its weights first."""
    import keras

    if not model.built:
        with suppress(NotImplementedError):  # a model of models, which has only a `train_step`
            model(batch[0])
    optimizers = [one for one in vars(model).values() if isinstance(one, keras.optimizers.Optimizer)]

    def variables() -> list:
        return [*model.variables, *model.metrics_variables, *(one for some in optimizers for one in some.variables)]

    kept = {id(one): (one, np.array(keras.ops.convert_to_numpy(one))) for one in variables()}
    attributes = {name: vars(model).get(name) for name in ("history", "stop_training") if name in vars(model)}
    try:
        yield
    finally:
        model.reset_metrics()
        for optimizer in optimizers:  # one that was built meanwhile: as a new one is
            if any(id(one) not in kept for one in optimizer.variables):
                new = type(optimizer).from_config(optimizer.get_config())
                new.build(optimizer._trainable_variables)
                for one, value in zip(optimizer.variables, new.variables, strict=True):
                    one.assign(keras.ops.convert_to_numpy(value))
        for one, value in kept.values():
            one.assign(value)
        if "history" not in attributes and "history" in vars(model):
            del model.history
        for name, value in attributes.items():
            setattr(model, name, value)
