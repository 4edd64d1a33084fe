"""What `watch_fit` says of a PyTorch DataLoader that sleeps; `test_watch` starts it under each backend.

python tests/helpers/watch_loader.py WORKERS
"""

import json
import os
import sys
import time

import keras
import numpy as np
import torch
from watch_truth import STEP_S, Sleeps, state

from helpers.watch import watch_fit

BATCH_SIZE = 4


class Rows(torch.utils.data.Dataset):
    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return np.full(8, index, "float32"), np.ones(1, "float32")


def main():
    workers = int(sys.argv[1])
    model = keras.Sequential([keras.Input((8,)), Sleeps(), keras.layers.Dense(1)])
    model.compile("adam", "mse", run_eagerly=keras.backend.backend() != "tensorflow")
    before = state(model)
    # A batch comes each three steps' time, however many workers share the work.
    rows = Rows(3 * STEP_S * max(1, workers) / BATCH_SIZE)
    loader = torch.utils.data.DataLoader(rows, BATCH_SIZE, shuffle=True, num_workers=workers)
    report = watch_fit(model, loader, steps=6)
    after = state(model)
    is_as_before = all(np.array_equal(one, other) for one, other in zip(before, after, strict=False))
    found = {
        "waits": report.waits_percent,
        "step_ms": report.step_ms,
        "kind": report.kind,
        "advice": report.advice,
        "as before": is_as_before and not any(np.any(one) for one in after[len(before) :]),
    }
    print(report)
    print(json.dumps(found), flush=True)
    os._exit(0)  # Keras may still be reading ahead, which does not matter here


if __name__ == "__main__":
    main()
