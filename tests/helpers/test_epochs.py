"""Epochs by themselves: a pass is the next epoch, and they can be sent to another process, with Keras or without."""

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
