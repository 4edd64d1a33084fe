"""Epochs by themselves: a pass is the next epoch, whatever came before; other processes can have them, too."""

import pickle
import subprocess
import sys

import cloudpickle

from helpers.epochs import Epochs


def test_each_pass_is_the_next_epoch():
    epochs = Epochs(lambda number: (number for _ in range(2)), file_count=4, batch_size=2)
    assert [list(epochs) for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]
    assert len(epochs) == 2 and list(Epochs(iter, 0, 1)) == []
    assert list(Epochs(lambda number: iter([number]), 1, 1)) == [0]  # an iterator that is no generator


def test_they_can_be_sent_to_another_process():
    epochs = Epochs(lambda number: iter([number]), 1, 1)
    assert list(epochs) == [0]
    again = pickle.loads(cloudpickle.dumps(epochs))
    assert type(again) is Epochs and list(again) == [1]


def test_also_once_keras_is_loaded():
    script = """
import keras, pickle, cloudpickle
from helpers.epochs import Epochs
again = pickle.loads(cloudpickle.dumps(Epochs(lambda number: iter([number]), 1, 1)))
assert isinstance(again, keras.utils.PyDataset) and type(again) is Epochs and list(again) == [0]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_fit_after_one_that_was_interrupted_gets_whole_epochs():
    """Also while threads of TensorFlow still read for the first, as in a notebook, which keeps the traceback."""
    script = """
import itertools, time
import keras
import numpy as np
from helpers.epochs import Epochs

def after(stop, seconds):
    def epoch(number):
        for batch in range(6):
            time.sleep(seconds)
            yield np.full((2, 1), 10 * number + batch, "float32"), np.zeros((2, 1), "float32")

    class Noting(keras.Sequential):
        def train_step(self, data):
            seen.append(int(data[0][0, 0]))
            return super().train_step(data)

    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == stop:
                raise KeyboardInterrupt

    seen, data, model = [], Epochs(epoch, 12, 2), Noting([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    try:
        model.fit(data, verbose=0, callbacks=[Stops()])
    except KeyboardInterrupt as interrupted:
        kept.append(interrupted)
    assert seen == list(range(stop + 1)), seen
    seen.clear()
    model.fit(data, epochs=2, verbose=0)
    assert seen == [*range(10, 16), *range(20, 26)], (stop, seconds, seen)

def also_in_part_and_for_the_validation():
    def epoch(number):
        for batch in range(6):
            yield np.full((2, 1), number, "float32"), np.zeros((2, 1), "float32")

    data, model = Epochs(epoch, 12, 2), keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for _ in range(2):
        model.fit(data, epochs=2, steps_per_epoch=3, validation_data=data, verbose=0)

also_in_part_and_for_the_validation()
kept = []
for stop, seconds in itertools.product((0, 3, 5), (0, 0.05)):
    after(stop, seconds)
assert len(kept) == 6
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
