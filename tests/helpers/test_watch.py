"""`watch_fit` knows what is known, leaves no trace in a model; `WatchFit` foretells; the command runs examples.

Sleeps are long against everything else, so that a busy machine changes nothing.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from pathlib import Path

import numpy as np
import pynvml
import pytest

from helpers import scoreboard
from helpers.files import usable_cores
from helpers.sandbox import memory
from helpers.watch import WatchFit, watch_fit
from helpers.watch.callback import Callback, mib_per_reading
from helpers.watch.callback import _sample as sample

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
EXAMPLES = sorted((HERE / "watch_examples").glob("*.py"))
BACKENDS = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
X, Y = np.ones((4, 8), "float32"), np.ones((4, 1), "float32")


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    inherited = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=inherited, cwd=cwd)


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


@pytest.fixture
def model(keras):
    made = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    made.compile("adam", "mse", metrics=["mae"])
    return made


def batches(seconds=0.0, count=10**6):
    for _ in range(count):
        time.sleep(seconds)
        yield X, Y


def dataset(seconds, count=1000):
    import tensorflow as tf

    def slow(number):
        time.sleep(seconds)
        return number

    numbers = tf.data.Dataset.range(count).map(lambda number: tf.numpy_function(slow, [number], tf.int64))
    return numbers.map(lambda _: (tf.constant(X), tf.constant(Y)))


def state(model):
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [np.array(one.numpy()) for one in variables]


def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# ---- the truth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_the_answer_is_known(backend):
    done = run(HERE / "watch_truth.py", KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # The source takes 3 steps' time: TensorFlow reads ahead meanwhile, the others read between the steps.
    step_ms = found["step_ms"]
    slept_ms = 3 * 200
    known = 100 * (1 - step_ms / slept_ms) if backend == "tensorflow" else 100 * slept_ms / (slept_ms + step_ms)
    assert found["slow data"] == pytest.approx(known, abs=5)
    assert found["slow model"] < 5
    assert found["as before"]


@pytest.mark.skipif("torch" not in BACKENDS, reason="not installed: torch")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_a_loader_of_pytorch(backend, workers):
    done = run(HERE / "watch_loader.py", workers, KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Workers read during a step; without them TensorFlow may, and with PyTorch nobody does.
    between_ms, step_ms = 3 * 200, found["step_ms"]
    hidden, in_turn = 100 * (1 - step_ms / between_ms), 100 * between_ms / (between_ms + step_ms)
    least, most = (in_turn if (backend, workers) == ("torch", 0) else hidden), (hidden if workers else in_turn)
    assert least - 5 < found["waits"] < most + 5
    assert found["kind"] == "dataloader" and found["as before"]
    assert "more workers for the DataLoader" in found["advice"]


def test_with_prefetch_and_without(keras):
    import tensorflow as tf

    class Sleeps(keras.layers.Layer):
        def call(self, inputs):
            slept = tf.numpy_function(lambda: time.sleep(0.2) or np.int64(0), [], tf.int64)
            with tf.control_dependencies([slept]):
                return tf.identity(inputs)

    model = keras.Sequential([keras.Input((8,)), Sleeps(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    without, ahead = watch_fit(model, dataset(0.6), steps=6), watch_fit(model, dataset(0.6).prefetch(2), steps=6)
    # TensorFlow may put a prefetch at the end by itself: then the step is hidden by the source in both.
    hidden, in_turn = 100 * (1 - without.step_ms / 600), 100 * 600 / (600 + without.step_ms)
    assert hidden - 5 < without.waits_percent < in_turn + 5
    assert ahead.waits_percent == pytest.approx(100 * (1 - ahead.step_ms / 600), abs=5)
    assert without.times_as_fast == pytest.approx(100 / (100 - without.waits_percent), rel=0.01)
    assert "prefetch (lesson 05)" in without.advice
    quick = watch_fit(model, dataset(0.02).prefetch(4), steps=8)
    assert quick.waits_percent < 5 and quick.advice == "stop here: the data are not your problem"


@pytest.mark.parametrize("settings", [{"steps_per_execution": 4}, {"jit_compile": True}])
def test_other_ways_to_compile(model, settings):
    model.compile("adam", "mse", **settings)
    report = watch_fit(model, batches(0.1), steps=16)
    assert report.waits_percent > 60 and report.steps >= 16 and report.kind == "generator"
    assert report.data_step_ms == pytest.approx(100, abs=25)
    assert (report.wait_ms is None) == ("steps_per_execution" in settings)


def test_a_dataset_without_end_one_of_three_batches_and_one_that_hides_its_length(model):
    endless = watch_fit(model, dataset(0.1).repeat(), steps=8)
    assert endless.waits_percent > 60 and endless.steps == 8 and endless.later_epoch_s is None
    for short in (dataset(0.1, count=3), dataset(0.1, count=3).filter(lambda x, y: True)):
        report = watch_fit(model, short, steps=8)
        assert report.waits_percent > 40 and report.held_batches == 3
        assert report.steps >= 8 and report.steps % 3 == 0 and report.later_epoch_s > 0.3


def test_a_cache_is_seen_as_a_first_epoch_that_takes_longer(model):
    report = watch_fit(model, dataset(0.15, count=14).cache(), steps=14)
    assert report.first_epoch_s > 2 and report.later_epoch_s < 0.7
    assert "the first epoch took" in str(report)


def test_names_outputs_and_weights(keras):
    inputs = {name: keras.Input((8,), name=name) for name in "ab"}
    both = keras.layers.BatchNormalization()(keras.layers.concatenate(list(inputs.values())))
    outputs = {"p": keras.layers.Dense(1, name="p")(both), "q": keras.layers.Dense(2, name="q")(both)}
    model = keras.Model(inputs, outputs)
    model.compile("adam", {"p": "mse", "q": "mse"})
    x = {name: np.ones((120, 8)) for name in "ab"}
    y, weights = {"p": np.ones((120, 1)), "q": np.ones((120, 2))}, {"p": np.ones(120), "q": np.ones(120)}
    before = [one.numpy() for one in model.variables]
    assert watch_fit(model, x, y, sample_weight=weights, batch_size=8, steps=8).kind == "arrays"
    few = [{name: value[:8] for name, value in part.items()} for part in (x, y, weights)]
    assert watch_fit(model, (tuple(few) for _ in itertools.count()), steps=8).images_per_s > 0
    assert same(before, [one.numpy() for one in model.variables])


def test_class_weights_lists_and_workers(keras):
    inputs = [keras.Input((8,)), keras.Input((8,))]
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.concatenate(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = [np.ones((64, 8))] * 2, np.zeros(64, "int64")
    assert watch_fit(model, x, y, class_weight={0: 1.0, 1: 2.0}, batch_size=4, steps=4).held_batches == 10

    class Slow(keras.utils.PyDataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            time.sleep(0.1)
            return tuple(x[0][:4] for _ in range(2)), y[:4]

    report = watch_fit(model, Slow(workers=2), class_weight={0: 1.0, 1: 2.0}, steps=8)
    assert report.waits_percent > 40 and "workers" in report.advice


def test_a_model_of_a_distribution_strategy(keras):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["cpu:0"]).scope():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        model.compile("adam", "mse", metrics=["mae"])
    before = [one.numpy() for one in model.variables]
    for data in (dataset(0.1), batches(0.1)):
        assert watch_fit(model, data, steps=8).waits_percent > 60
    assert same(before, [one.numpy() for one in model.variables]) and model.optimizer.iterations.numpy() == 0


def test_how_busy_the_gpu_was_on_the_data_and_on_the_batches_held(model, monkeypatch):
    sleeping = threading.Event()

    def slow():
        for batch in batches():
            sleeping.set()
            time.sleep(0.2)
            sleeping.clear()
            yield batch

    def busy(_gpu):
        if not driver["tells"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return types.SimpleNamespace(gpu=10 if sleeping.is_set() else 90)

    driver = {"tells": True}
    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: number)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", busy)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda *_, **__: types.SimpleNamespace(used=2**30))
    no_counts = types.SimpleNamespace(isSupportedDevice=0)
    monkeypatch.setattr(pynvml, "nvmlGpmQueryDeviceSupport", lambda gpu: no_counts)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    report = watch_fit(model, slow(), steps=8)
    assert 10 <= report.gpu_busy_percent < 50 and report.gpu_busy_held_percent == 90
    both = f"{report.gpu_busy_percent:.0f} %, on the batches held in memory 90 %"
    assert f"GPU busy (NVML): {both}" in str(report)
    driver["tells"] = False
    report = watch_fit(model, batches(), steps=8)
    assert report.gpu_busy_percent is None and "GPU" not in str(report)


# ---- as before -------------------------------------------------------------------------------------------------------


def test_the_model_is_as_before_also_in_its_further_training(model):
    data = np.random.default_rng(0).normal(size=(32, 8)), np.ones((32, 1))
    history = model.fit(*data, verbose=0, shuffle=False)
    before, states = state(model), (random.getstate(), np.random.get_state()[1].tolist())
    watch_fit(model, batches(), steps=8)
    assert same(before, state(model)) and model.history is history
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    losses = model.fit(*data, verbose=0, shuffle=False, epochs=2).history["loss"]  # with dropout
    for one, value in zip(
        [*model.variables, *model.metrics_variables, *model.optimizer.variables], before, strict=True
    ):
        one.assign(value)
    assert model.fit(*data, verbose=0, shuffle=False, epochs=2).history["loss"] == pytest.approx(losses, rel=1e-6)


def test_a_model_that_was_never_built_gets_its_first_weights(keras):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    watch_fit(model, batches(), steps=4)
    found = state(model)
    keras.utils.set_random_seed(1)
    other = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
    other.compile("adam", "mse")
    other.build((None, 8))
    other.optimizer.build(other.trainable_variables)
    assert all(map(np.array_equal, found[:4], state(other)))
    assert model.optimizer.iterations.numpy() == 0 and not any(one.any() for one in found[-8:] if one.ndim)


def test_also_when_it_is_interrupted_or_the_data_fail(keras, model):
    calls = itertools.count()

    class Stops(keras.layers.Layer):
        def call(self, inputs):
            if next(calls) == 25:
                raise KeyboardInterrupt
            return inputs

    stopped = keras.Sequential([keras.Input((8,)), Stops(), keras.layers.Dense(1)])
    stopped.compile("adam", "mse", run_eagerly=True)
    before = [one.numpy() for one in stopped.variables]
    with pytest.raises(KeyboardInterrupt):
        watch_fit(stopped, batches(), steps=30)
    assert same(before, [one.numpy() for one in stopped.variables]) and next(calls) == 26

    def failing():
        yield from batches(count=15)
        raise LookupError("of the reader's own")

    before = [one.numpy() for one in model.variables]
    with pytest.raises(LookupError, match="of the reader's own"):
        watch_fit(model, failing(), steps=30)
    assert same(before, [one.numpy() for one in model.variables])
    model.compiled = False
    with pytest.raises(ValueError, match="not compiled"):
        watch_fit(model, batches())


def test_a_generator_can_be_read_on_and_one_that_is_too_short_is_refused(model):
    numbers = itertools.count()
    mine = ((X, Y) for _ in numbers)
    report = watch_fit(model, mine, steps=8)
    assert next(numbers) == report.taken >= 20  # 10 are held
    next(mine)
    assert next(numbers) == report.taken + 2
    with pytest.raises(ValueError, match="give at least 14 batches"):
        watch_fit(model, batches(count=11), steps=8)
    with pytest.raises(ValueError, match="no batch"):
        watch_fit(model, batches(count=0))


def test_what_is_held_is_bounded(model, monkeypatch):
    monkeypatch.setattr("helpers.watch.data._MOST_HELD_MIB", 3 * X.nbytes / 2**20)
    report = watch_fit(model, batches(), steps=4)
    assert report.held_batches == 2 and "2 batches of it held in memory" in str(report)


def test_a_leak_is_seen_and_advice_names_lessons(model):
    kept = []

    def leaking():
        for batch in batches():
            kept.append(np.ones(2**20))  # 8 MiB
            yield batch

    report = watch_fit(model, leaking(), steps=12)
    assert report.grown_mib > 40 and 0 < report.steps_to_full < 10**6
    assert "memory will be full" in report.advice and "lesson 02" in report.advice
    assert f"memory grew {report.grown_mib:,.0f} MiB in 12 steps" in str(report)


def test_a_jump_of_memory_is_no_leak():
    steady, jump, filling = [8.0 * step for step in range(30)], [0.0] * 20 + [100.0] * 10, [50.0] * 5 + [60.0] * 25
    assert mib_per_reading(steady) == pytest.approx(8)
    assert mib_per_reading([mib + 3 * (step % 2) for step, mib in enumerate(steady)]) == pytest.approx(8, abs=0.5)
    assert mib_per_reading(jump) == mib_per_reading(filling) == mib_per_reading([1.0, 2.0]) == 0


def test_more_readers_are_not_advised_where_no_core_is_free(model, monkeypatch):
    report = watch_fit(model, batches(0.1), steps=8)
    assert f"{report.cores_busy:.1f} of {usable_cores()} cores busy" in str(report)
    assert "tf.data (lesson 05)" in report.advice  # its source sleeps
    monkeypatch.setattr("helpers.watch.fit._ALL_BUSY", 0.0)
    advice = watch_fit(model, batches(0.1), steps=8).advice
    assert advice.startswith("the cores are busy") and "decode less (lesson 06)" in advice


def test_what_is_fast_enough_is_decided_as_for_the_benchmark(model, monkeypatch):
    assert "tf.data (lesson 05)" in watch_fit(model, batches(0.1), steps=8).advice
    monkeypatch.setattr("helpers.decision.ENOUGH", 0.0)
    report = watch_fit(model, batches(0.1), steps=8)
    assert report.waits_percent > 60 and report.advice == "stop here: the data are not your problem"


def test_a_program_whose_data_fail_ends():
    code = """
import keras, numpy as np
from helpers.watch import watch_fit
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
def batches():
    for number in range(20):
        yield np.ones((4, 8)), np.ones((4, 1))
    raise LookupError("mine")
watch_fit(model, batches())
"""
    done = run("-c", code)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "LookupError: mine"


# ---- the whole training ----------------------------------------------------------------------------------------------


def test_images_per_second_and_a_row(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    watching = WatchFit("mine")
    data = np.ones((50, 8)), np.ones((50, 1))
    model.fit(*data, batch_size=8, epochs=3, verbose=0, validation_data=data, callbacks=[watching])
    assert [(one.images, one.steps) for one in watching.epochs] == [(50, 7)] * 3
    assert "images/s" in capsys.readouterr().out and watching.full_in_epoch is None
    (path,) = tmp_path.glob("*--watch.jsonl")
    (row,) = scoreboard.load(path)
    assert (row.name, row.files, row.batches_done, row.images_done) == ("mine", 50, 21, 150)
    assert row.training.images_per_s == pytest.approx(watching.images_per_s)
    assert row.memory.peak_mib >= row.memory.baseline_mib > 0
    assert scoreboard.table([row]).row_count == 1
    full = tmp_path / "full"
    full.write_text("")
    monkeypatch.setenv("COURSE_RESULTS", str(full))  # no folder: nothing can be written
    with pytest.warns(UserWarning, match="was not written"):
        model.fit(*data, verbose=0, callbacks=[WatchFit()])


def test_the_end_of_memory_is_foretold_within_two_epochs(model, monkeypatch):
    kept, held_at_start = [], memory.read_status("self").held_mib
    monkeypatch.setattr(memory, "available_mib", lambda: 600 - (memory.read_status("self").held_mib - held_at_start))

    def leaking():
        for batch in batches():
            kept.append(np.ones(2**20))  # 8 MiB
            yield batch

    watching = WatchFit(row=None)
    seen = {}

    class Looks(type(watching)):
        def on_epoch_end(self, epoch, logs=None):
            if watching.full_in_epoch is not None:
                seen.setdefault("warned in", epoch + 1)
            if memory.available_mib() <= 0:
                seen.setdefault("full in", epoch + 1)
            else:
                seen["foretold"] = watching.full_in_epoch

    with pytest.warns(RuntimeWarning, match=r"memory will be full in .*epoch"):
        model.fit(leaking(), steps_per_epoch=5, epochs=20, verbose=0, callbacks=[watching, Looks(None)])
    assert seen["warned in"] < seen["full in"] - 2 and abs(seen["foretold"] - seen["full in"]) <= 2


def test_within_the_first_epoch_too(model, monkeypatch):
    kept, held_at_start = [], memory.read_status("self").held_mib
    monkeypatch.setattr("helpers.watch.callback._SAMPLE_S", 0.05)
    monkeypatch.setattr(memory, "available_mib", lambda: 1500 - (memory.read_status("self").held_mib - held_at_start))

    def leaking():
        for batch in batches(0.02):
            kept.append(np.ones(2**17))  # 1 MiB
            yield batch

    watching = WatchFit(row=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(leaking(), steps_per_epoch=10**5, epochs=1, verbose=0, callbacks=[watching, Stop(watching)])
    assert watching.full_in_epoch == 1 and any("of epoch 1, in" in str(one.message) for one in caught)


class Stop(Callback):
    """Ends the training once something was foretold, or after a minute."""

    def __init__(self, watching):
        self.watching, self.until = watching, time.monotonic() + 60

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.watching.full_in_epoch is not None or time.monotonic() > self.until


def test_it_reads_memory_twice_a_second_and_only_counts_for_each_batch(model, monkeypatch):
    readings = []
    monkeypatch.setattr(memory.TreeReader, "quick", lambda *_, **__: readings.append(1) or memory.read_status("self"))
    waited = threading.Event()
    seconds = []
    monkeypatch.setattr(waited, "wait", lambda timeout: seconds.append(timeout) or len(seconds) > 10)
    watching = WatchFit(None)
    watching.set_model(model)
    watching.on_train_begin()
    watching._stop.set()
    watching.on_epoch_begin(0)
    readings.clear()
    before = dict(vars(watching))
    for number in range(1000):
        watching.on_train_batch_end(number)
    assert {name for name, value in vars(watching).items() if before.get(name) is not value} == {"_steps"}
    assert watching._steps == 1000 and not readings and watching.async_safe
    assert watching.on_train_batch_begin._is_default  # Keras does not even call it
    sample(weakref.ref(watching), waited)
    assert seconds == [0.5] * 11 and len(readings) == 10


# ---- the command -----------------------------------------------------------------------------------------------------


def test_public_examples_with_one_line_changed(tmp_path):
    """All three in one process, since an import of TensorFlow takes longer than they do."""
    for example in EXAMPLES:
        source = example.read_text(encoding="utf-8")
        (line,) = [one for one in source.splitlines() if one.startswith("model.fit(")]
        data = "x_train, y_train, batch_size=128" if "x_train" in line else line[len("model.fit(") :].partition(",")[0]
        changed = f"from helpers.watch import watch_fit; print(watch_fit(model, {data}, steps=8)); {line}"
        (tmp_path / example.name).write_text(source.replace(line, changed), encoding="utf-8")
    program = tmp_path / "all_of_them.py"
    names = [example.name for example in EXAMPLES]
    program.write_text(f"import runpy\nfor name in {names}:\n    runpy.run_path(name, run_name='__main__')\n")
    done = run("-m", "helpers.watch", program.name, cwd=tmp_path, COURSE_RESULTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(EXAMPLES) == 3
    assert done.stdout.count("waits for data") == done.stdout.count("WatchFit: ") == 3
    assert done.stdout.count("images/s; compared with") == done.stdout.count("the step itself takes") == 3
    assert [one.name for one in scoreboard.load(next(tmp_path.glob("*.jsonl")))] == ["all_of_them"] * 3


def test_a_script_chooses_its_backend_gets_its_arguments_and_ends_as_by_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nassert 'keras' not in sys.modules\nprint(sys.argv[1:], __name__)\nsys.exit(7)\n")
    done = run("-m", "helpers.watch", script, "--epochs", "3")
    assert (done.returncode, done.stdout.strip()) == (7, "['--epochs', '3'] __main__")
    assert run("-m", "helpers.watch", tmp_path / "none.py").returncode == 2
