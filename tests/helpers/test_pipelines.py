"""Every exported pipeline keeps the promises that its lesson says it keeps, and Keras' `fit` takes what it gives."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial

import pytest

from helpers.contract import check_pipeline
from helpers.folders import course_images
from helpers.pipelines import PIPELINES

BROKEN = {"load_everything": (6,)}  # by its nature: lesson 01 is about it
NOT_FOR_FIT_AS_THEY_ARE = {"generator", "threaded_generator", "tf1_queues"}  # lesson 02 shows why
VARIANTS = {
    "keras_sequence": [{"workers": 1}, {"workers": 4}, {"workers": 4, "use_multiprocessing": True}],
    "tf_data_fast": [{}, {"workers": 4}],
}
TOLERANCES = {"tf_data_fast": 28}  # it decodes fewer pixels: lesson 06 shows what that does
CASES = [(name, settings) for name in PIPELINES for settings in VARIANTS.get(name, [{}])]


@pytest.fixture(autouse=True)
def packs_leave_no_trace(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="packs-") as folder:
        monkeypatch.setenv("COURSE_PACKED", folder)
        yield


@pytest.mark.slow  # each lesson checks its own pipeline, and nbval its verdict
@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda part: str(part))
@pytest.mark.timeout(900)
def test_the_promises(name, settings):
    pipeline = PIPELINES[name]
    pipeline = partial(pipeline, **settings) if settings else pipeline
    report = check_pipeline(pipeline, course_images(60), tolerance=TOLERANCES.get(name, 2))
    assert report.broken == BROKEN.get(name, ()), str(report)
    assert not os.listdir(os.environ["COURSE_PACKED"]), "what a check packs goes with it"


def labels_that_fit_sees(name, files) -> list[int]:
    """Train for one epoch and return the labels that came to the model."""
    import keras
    import numpy as np

    seen = []

    class Noting(keras.Sequential):
        def train_step(self, batch):
            seen.extend(np.asarray(batch[1]).tolist())
            return super().train_step(batch)

    layers = [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = Noting(layers)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    batches = PIPELINES[name](files, image_size=(32, 32), batch_size=8)
    if name in NOT_FOR_FIT_AS_THEY_ARE:
        from helpers.pipelines.generator import forever

        endless = forever(batches)
        model.fit(endless, steps_per_epoch=len(batches), shuffle=False, verbose=0)
        endless.close()  # ends the threads of the queues
    else:
        model.fit(batches, verbose=0)
    return seen


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")  # by Keras itself, for a dataset
@pytest.mark.parametrize("name", PIPELINES)
def test_fit_sees_every_image_once(name):
    files = course_images(60).take(20)
    assert sorted(labels_that_fit_sees(name, files)) == sorted(files.labels.tolist())


def test_importing_the_helpers_imports_no_framework():
    code = (
        "import sys, helpers.pipelines, helpers.measure, helpers.contract;"
        "assert not {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
