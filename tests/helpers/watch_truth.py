"""What `watch_fit` says where the answer is known; `test_watch` starts it under each backend."""

import json
import os
import time

import keras
import numpy as np

from helpers.watch import watch_fit

STEP_S = 0.2


@keras.saving.register_keras_serializable("watch_truth")
class Sleeps(keras.layers.Layer):
    """Takes its time in each step; but with TensorFlow, the model must run eagerly for that."""

    def call(self, inputs):
        if keras.backend.backend() != "tensorflow":
            time.sleep(STEP_S)
            return inputs
        import tensorflow as tf

        slept = tf.numpy_function(lambda: time.sleep(STEP_S) or np.int64(0), [], tf.int64)
        with tf.control_dependencies([slept]):
            return tf.identity(inputs)


class Source(keras.utils.PyDataset):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    num_batches = 1000

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return np.full((4, 8), index, "float32"), np.ones((4, 1), "float32")


def state(model):
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(one)) for one in variables]


def main():
    layers = [keras.Input((8,)), Sleeps(), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse", run_eagerly=keras.backend.backend() != "tensorflow")
    before = state(model)
    slow_data = watch_fit(model, Source(3 * STEP_S), steps=6)
    # TensorFlow reads ahead during a step; with the others, only a source that takes no time is never waited for.
    fast = Source(STEP_S / 4 if keras.backend.backend() == "tensorflow" else 0)
    slow_model = watch_fit(model, (batch for batch in map(fast.__getitem__, range(100))), steps=6)
    after = state(model)
    is_as_before = all(np.array_equal(one, other) for one, other in zip(before, after, strict=False))
    found = {
        "slow data": slow_data.waits_percent,
        "slow model": slow_model.waits_percent,
        "step_ms": slow_data.step_ms,
        "as before": is_as_before and not any(np.any(one) for one in after[len(before) :]),
    }
    print(slow_data, slow_model, sep="\n")
    print(json.dumps(found), flush=True)
    os._exit(0)  # Keras may still be reading ahead, which does not matter here


if __name__ == "__main__":
    main()
