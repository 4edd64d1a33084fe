"""Train on a pipeline as a reader's program would, and end in one way; `test_pipelines` starts it.

python fit_and_end.py MODULE NAME END
"""

import importlib
import os
import signal
import sys
import time

import keras
import numpy as np

SIZE, BATCH_SIZE, COUNT = (32, 32), 4, 18


class End(keras.callbacks.Callback):
    """Ends the third step of `fit` in the way that is asked for."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2 and self.end != "file":
            print("begin of the end", time.time(), flush=True)
            if self.end == "raise":
                raise RuntimeError("from a callback")
            if self.end == "exit":
                sys.exit(3)
            os.kill(os.getpid(), signal.SIGINT)


def main(module, name, end):
    module = importlib.import_module(module)
    pipeline, find_images = getattr(module, name), getattr(module, "find_images", None)
    if find_images is None:
        from helpers.folders import find_images
    files = find_images(".")
    few = files.select(range(COUNT))

    def batches(some=few, **settings):
        return pipeline(some, image_size=SIZE, batch_size=BATCH_SIZE, **settings)

    seen = []

    class Noting(keras.Sequential):
        def train_step(self, batch):
            seen.append(np.asarray(batch[1]).tolist())
            return super().train_step(batch)

    def network(kind):
        dense = keras.layers.Dense(10, activation="softmax", kernel_initializer="zeros")
        model = kind([keras.Input((*SIZE, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), dense])
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=kind is Noting)
        return model

    if end == "raise":
        in_order = few.labels.tolist()
        model, validation = network(Noting), batches(shuffle=False)
        for shuffle in (False, True):
            fed = batches(shuffle=shuffle)
            model.fit(fed, validation_data=validation, epochs=2, shuffle=shuffle, verbose=0)
            model.fit(fed, epochs=1, verbose=0)  # again
        labels = np.concatenate(seen).reshape(6, COUNT).tolist()
        assert all(sorted(epoch) == sorted(in_order) for epoch in labels), labels
        assert labels[:2] == [in_order] * 2, "another order than that of the pipeline"
        assert len(set(map(tuple, labels[3:]))) == 3, "the same order twice"
        fed = batches(shuffle=False)
        losses = {round(model.evaluate(fed, verbose=0), 5) for _ in range(2)}
        assert len(losses) == 1, losses
        expected = model.predict(np.concatenate([images for images, _ in fed]), verbose=0)
        assert np.allclose(model.predict(fed, verbose=0), expected, atol=1e-5)
    global model_kept, fed_kept  # as in a program without functions
    model_kept, fed_kept = network(keras.Sequential), batches(files)
    model_kept.fit(fed_kept, epochs=2, shuffle=False, verbose=0, callbacks=[End(end)])


if __name__ == "__main__":
    main(*sys.argv[1:])
