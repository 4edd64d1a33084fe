"""Every figure of a measurement is what its definition says, whatever the pipeline does; none is lost when kept."""

import collections
import functools
import importlib.util
import json
import os
import random
import re
import signal
import string
import subprocess
import sys
import time
import types

import cloudpickle
import msgspec
import numpy as np
import pytest
from conftest import write_images
from msgspec.structs import replace

from helpers import measure as measuring
from helpers.accelerators import EmulatedAccelerator, KerasAccelerator
from helpers.folders import ImageFiles, find_images
from helpers.images import read_image
from helpers.measure import machine, measure, measure_ceiling
from helpers.measurement import Alone, Gpu, Growth, Measurement, MemoryUse, Training
from helpers.pipelines import PIPELINES, LazyPipeline
from helpers.sandbox import Outcome, run

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child process need not import pytest

SMALL = {"image_size": (32, 48), "batch_size": 8}


# ---- pipelines; all of them read in the files' order -----------------------------------------------------------------


def streaming(files, *, image_size=(224, 224), batch_size=32, shuffle=True, seed=0, channels=3):
    for start in range(0, len(files), batch_size):
        rows = range(start, min(start + batch_size, len(files)))
        yield np.stack([read_image(files.paths[row], image_size=image_size) for row in rows]), files.labels[rows]


class Streaming:
    """As `streaming`, for as many epochs as one likes."""

    def __init__(self, files, **settings):
        self.files, self.settings = files, settings

    def __iter__(self):
        return streaming(self.files, **self.settings)


class Keeping(Streaming):
    """Keeps each image as it comes."""

    kept = None

    def __iter__(self):
        self.kept = []
        for images, labels in super().__iter__():
            self.kept.append(images.copy())
            yield images, labels


class KeepingEpochs(Streaming):
    """Never lets go of an epoch."""

    def __init__(self, files, **settings):
        super().__init__(files, **settings)
        self.kept = []

    def __iter__(self):
        for images, labels in super().__iter__():
            self.kept.append(images.copy())
            yield images, labels


class ReadingAhead(Streaming):
    """Has up to six batches ready: more than a quarter of a small data set."""

    def __iter__(self):
        ready = collections.deque()
        for batch in super().__iter__():
            ready.append(batch)
            if len(ready) > 6:
                yield ready.popleft()
        while ready:
            yield ready.popleft()


class LeavingTheRestOut(Keeping):
    """Gives whole batches only."""

    def __iter__(self):
        return (batch for batch in super().__iter__() if len(batch[1]) == self.settings["batch_size"])


def batches_of_zeros(files, image_size, batch_size):
    for start in range(0, len(files), batch_size):
        labels = files.labels[start : start + batch_size]
        yield np.zeros((len(labels), *image_size, 3), np.uint8), labels


def slow(files, *, image_size, batch_size):
    """80 images/s when a batch holds 8."""
    for batch in batches_of_zeros(files, image_size, batch_size):
        time.sleep(0.1)
        yield batch


def slow_to_start(files, *, image_size, batch_size):
    time.sleep(0.5)
    yield from batches_of_zeros(files, image_size, batch_size)


def then(action):
    """A pipeline that gives two batches and then does something else."""

    def pipeline(files, *, image_size, batch_size):
        for number, batch in enumerate(batches_of_zeros(files, image_size, batch_size)):
            if number == 2:
                action()
            yield batch

    return pipeline


def raise_an_error():
    raise KeyError("no such file in the index: 0003.jpg")


def yielding(make):
    """A pipeline whose batches are what `make(images, labels)` returns."""

    def pipeline(files, *, image_size, batch_size):
        for images, labels in batches_of_zeros(files, image_size, batch_size):
            yield make(images, labels)

    return pipeline


# ---- the pipeline alone ----------------------------------------------------------------------------------------------


def test_the_pipeline_alone(files):
    found = measure(Streaming, files, growth=False, name="mine", **SMALL)
    assert (found.name, found.outcome, found.error) == ("mine", "finished", None)
    assert (found.files, found.images_done, found.batches_done, found.dtype) == (40, 40, 5, "uint8")
    assert (found.image_size, found.batch_size) == ((32, 48), 8)
    assert found.alone.images_per_s > 0
    assert 0 < found.alone.first_batch_s < 60
    assert 0 < found.alone.first_epoch_images_per_s <= 40 / found.alone.first_batch_s
    assert 0 <= found.alone.cores_busy < 1000
    assert 0 < found.memory.baseline_mib <= found.memory.peak_mib
    assert found.alone.runs_images_per_s == (found.alone.images_per_s,)
    assert found.context.dataset.images == 40
    assert found.context.dataset.classes == 10
    assert found.context.dataset.name == os.path.basename(os.path.dirname(os.path.dirname(files.paths[0])))
    assert found.context.machine == machine()
    assert found.context.versions["numpy"] == np.__version__
    assert found.context.date.endswith("+00:00")


def test_what_was_not_measured_is_none(files):
    found = measure(Streaming, files, growth=False, **SMALL)
    assert (found.training, found.growth, found.gpu) == (Training(), Growth(), Gpu())
    for record in (Training(), Growth(), Gpu()):
        assert {getattr(record, name) for name in record.__struct_fields__} <= {None, ()}
    assert found.memory.budget_mib is None
    assert found.training.stall_percent is None


def test_waiting_for_the_first_batch_is_told_apart_from_the_rate(files):
    found = measure(slow_to_start, files.repeat_to(4000), growth=False, image_size=(4, 4), batch_size=8)
    assert found.alone.first_batch_s >= 0.5
    assert found.alone.first_epoch_images_per_s <= 4000 / 0.5
    assert found.alone.images_per_s > found.alone.first_epoch_images_per_s


def test_the_rate_leaves_the_first_batch_out(files):
    found = measure(slow, files, growth=False, **SMALL)
    assert 4 < found.alone.images_per_s <= 80
    assert found.alone.cores_busy < 0.9


def test_repeats_give_medians_and_the_spread(files):
    found = measure(Streaming, files, growth=False, repeats=3, **SMALL)
    assert len(found.alone.runs_images_per_s) == 3
    assert found.alone.images_per_s == sorted(found.alone.runs_images_per_s)[1]
    assert "median of 3" in str(found)


def test_a_limit_on_batches(files):
    found = measure(then(raise_an_error), files, batches=2, growth=True, **SMALL)  # it must not ask for a third
    assert (found.outcome, found.batches_done, found.images_done) == ("finished", 2, 16)
    assert found.growth.mib_per_1000_files is None
    whole = measure(Streaming, files, batches=100, growth=True, **SMALL)
    assert whole.batches_done == 5
    assert whole.growth.mib_per_1000_files is not None


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_files_than_a_batch(files, count):
    found = measure(Streaming, files.take(count), image_size=(32, 48), batch_size=64)
    assert (found.outcome, found.batches_done, found.images_done) == ("finished", 1, count)
    assert found.alone.images_per_s > 0
    assert "1 batches" in str(found)


def test_one_class(tmp_path):
    folder = write_images(tmp_path, 3, class_names=("only",))
    found = measure(Streaming, find_images(folder), accelerator=EmulatedAccelerator(1000), growth=False, **SMALL)
    assert found.outcome == "finished"
    assert found.context.dataset.classes == 1


def test_a_partial_has_its_functions_name(files):
    found = measure(functools.partial(streaming, seed=3), files, growth=False, **SMALL)
    assert (found.name, found.images_done) == ("streaming", 40)


# ---- with an accelerator ---------------------------------------------------------------------------------------------


def test_with_an_emulated_accelerator(files):
    # 100 ms for a batch, then 200 ms for a step: busy two thirds of the time, more or less where sleeping takes longer.
    found = measure(slow, files, accelerator=EmulatedAccelerator(40), growth=False, **SMALL)
    assert found.training.accelerator == "emulated, 40 images/s"
    assert 4 < found.training.ceiling_images_per_s <= 40
    assert 2 < found.training.images_per_s <= 8 / 0.3
    assert 25 < found.training.utilisation_percent < 90
    assert found.training.stall_percent == 100 - found.training.utilisation_percent
    assert found.training.predicted_images_per_s == min(found.alone.images_per_s, found.training.ceiling_images_per_s)
    assert found.training.predicted_serial_images_per_s is None  # it does not share the cores
    assert 100 <= found.training.wait_ms_p50 <= found.training.wait_ms_p95 <= found.training.wait_ms_max
    assert len(found.training.wait_ms) == len(found.training.compute_ms) == 5
    assert min(found.training.wait_ms) >= 100
    assert min(found.training.compute_ms) >= 200
    assert found.training.peak_mib > 0
    assert (found.training.device, found.gpu.framework_peak_mib) == (None, None)
    assert "emulated" in str(found)


def test_with_a_keras_model(files, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = measure(Streaming, files, accelerator=KerasAccelerator(), growth=False, repeats=1, **SMALL)
    assert (found.outcome, found.error) == ("finished", None)
    training = found.training
    assert (training.accelerator, training.device) == ("small_cnn", "cpu:0")
    assert training.peak_mib > found.memory.peak_mib  # the framework is in it
    assert found.training.ceiling_images_per_s > 0
    assert found.training.images_per_s > 0
    assert 0 < found.training.utilisation_percent < 100
    one, other = found.alone.images_per_s, found.training.ceiling_images_per_s
    assert found.training.predicted_serial_images_per_s == pytest.approx(1 / (1 / one + 1 / other))
    assert (found.gpu.busy_percent, found.gpu.peak_mib, found.gpu.framework_peak_mib) == (None, None, None)


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("pipeline", [Streaming, PIPELINES["tf_data"]], ids=["arrays", "tensors"])
def test_with_another_keras_backend(files, monkeypatch, backend, pipeline):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    monkeypatch.setenv("KERAS_BACKEND", backend)
    found = measure(pipeline, files, accelerator=KerasAccelerator(), growth=False, **SMALL)
    assert (found.outcome, found.error) == ("finished", None)
    assert found.training.device is not None
    assert 0 < found.training.utilisation_percent < 100
    assert found.context.versions["keras backend"] == backend


def test_a_failure_while_training_is_told_apart(files):
    class Refusing(EmulatedAccelerator):
        def prepare(self, *arguments):
            raise ValueError("the model does not fit")

    found = measure(slow, files, accelerator=Refusing(100), growth=False, **SMALL)
    assert found.outcome == "raised"
    assert found.error == "while training: ValueError: the model does not fit"
    assert found.alone.images_per_s > 0
    assert found.training.images_per_s is None


def test_the_ceiling_alone():
    assert 20 < measure_ceiling(EmulatedAccelerator(400), batch_size=20) <= 400


# ---- memory ----------------------------------------------------------------------------------------------------------

IMAGE_MIB = 224 * 224 * 3 / 2**20


def test_growth_of_a_pipeline_that_keeps_everything(files):
    found = measure(Keeping, files.repeat_to(400), growth=True)
    assert found.growth.mib_per_1000_files == pytest.approx(1000 * IMAGE_MIB, rel=0.25)
    assert abs(found.growth.mib_per_epoch) < 0.25 * 100 * IMAGE_MIB
    assert found.memory.peak_mib - found.memory.baseline_mib > 0.9 * 400 * IMAGE_MIB


def test_growth_of_a_pipeline_that_streams(files):
    found = measure(Streaming, files.repeat_to(400), growth=True)
    assert abs(found.growth.mib_per_1000_files) < 250 * IMAGE_MIB
    assert abs(found.growth.mib_per_epoch) < 0.25 * 100 * IMAGE_MIB
    assert found.memory.peak_mib - found.memory.baseline_mib < 0.5 * 400 * IMAGE_MIB


class KeepingLessAndLess(Streaming):
    """Reads all images in advance, and lets go of each batch when it has been used."""

    def __iter__(self):
        batches = list(super().__iter__())
        while batches:
            yield batches.pop(0)


def test_growth_of_a_pipeline_that_reads_everything_in_advance(files):
    found = measure(KeepingLessAndLess, files.repeat_to(400), growth=True)
    assert found.growth.mib_per_1000_files == pytest.approx(1000 * IMAGE_MIB, rel=0.25)
    assert abs(found.growth.mib_per_epoch) < 0.25 * 100 * IMAGE_MIB


class FillingUp(Keeping):
    """Keeps no more than 200 images: growth at first, and none in the long run."""

    def __iter__(self):
        for batch in super().__iter__():
            del self.kept[:-7]
            yield batch


class KeepingByName(Streaming):
    by_name = {}  # noqa: RUF012

    def __iter__(self):
        for images, labels in super().__iter__():
            for image in images:
                self.by_name[self.files.paths[len(self.by_name) % len(self.files)]] = image.copy()
            yield images, labels


def test_a_small_data_set_is_looked_at_further_out(files):
    found = measure(FillingUp, files.repeat_to(240), growth=True)
    assert abs(found.growth.mib_per_1000_files) < 250 * IMAGE_MIB
    assert abs(found.growth.mib_per_epoch) < 0.25 * 60 * IMAGE_MIB
    found = measure(KeepingByName, files, growth=True)
    assert found.growth.mib_per_1000_files == pytest.approx(1000 * IMAGE_MIB, rel=0.25)


def test_growth_under_a_budget_that_holds_no_more(files):
    found = measure(Keeping, files.repeat_to(240), memory_budget=130, growth=True)
    assert found.outcome == "finished"
    assert found.growth.mib_per_1000_files == pytest.approx(1000 * IMAGE_MIB, rel=0.3)


def test_what_is_read_ahead_is_no_growth(files):
    found = measure(ReadingAhead, files.repeat_to(240), growth=True)
    assert abs(found.growth.mib_per_1000_files) < 250 * IMAGE_MIB


def test_growth_of_a_pipeline_that_leaves_the_rest_out(files):
    found = measure(LeavingTheRestOut, files.repeat_to(410), growth=True)
    assert found.images_done == 384
    assert found.growth.mib_per_1000_files == pytest.approx(1000 * IMAGE_MIB, rel=0.25)


def test_growth_from_epoch_to_epoch(files):
    found = measure(KeepingEpochs, files.repeat_to(400), growth=True)
    assert found.growth.mib_per_epoch == pytest.approx(100 * IMAGE_MIB, rel=0.25)


def readings_until_settled(with_child):
    """Return what `settled_mib` makes of readings that rise while children end, and how many it took."""
    from helpers import runs

    readings = iter((80.0, 150.0, 200.0, 200.5, 300.0))
    taken = []
    runs.memory.current = lambda: taken.append(next(readings)) or types.SimpleNamespace(held_mib=taken[-1])
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) if with_child else None
    try:
        return runs.settled_mib(), len(taken)
    finally:
        if child:
            child.communicate()


def test_what_is_held_is_read_until_children_have_ended():
    assert run(readings_until_settled, True).unwrap() == (200.5, 4)
    assert run(readings_until_settled, False).unwrap() == (80.0, 1)


def test_a_budget_that_holds(files):
    found = measure(Streaming, files, memory_budget=500, growth=False, **SMALL)
    assert (found.outcome, found.memory.budget_mib) == ("finished", 500)
    assert found.memory.peak_mib < 500
    assert "of 500 MiB budget" in str(found)


def test_out_of_memory_says_how_far_it_came(files):
    found = measure(Keeping, files.repeat_to(4000), memory_budget=150)
    assert found.outcome == "out of memory"
    assert "150 MiB" in found.error
    assert 0 < found.images_done < 150 / IMAGE_MIB
    assert found.images_done == 32 * found.batches_done
    assert (found.alone.images_per_s, found.growth.mib_per_1000_files) == (None, None)
    assert 0 < found.memory.baseline_mib < 150 <= found.memory.peak_mib


def test_a_budget_below_what_python_itself_needs(files):
    with pytest.raises(ValueError, match="give a larger budget"):
        measure(streaming, files, memory_budget=4)


def test_a_budget_below_what_the_pipeline_imports(files, monkeypatch, tmp_path):
    (tmp_path / "heavy_module.py").write_text(
        "import numpy\nkept = numpy.ones(200 * 2**20, numpy.uint8)\ndef heavy(files, **settings): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Heavy(LazyPipeline):
        def load(self):
            import heavy_module

            return heavy_module.heavy

    with pytest.raises(ValueError, match="what heavy imports needs more"):
        measure(Heavy("heavy"), files, memory_budget=150, **SMALL)


# ---- whatever else the pipeline does ---------------------------------------------------------------------------------


def test_a_pipeline_that_raises(files):
    found = measure(then(raise_an_error), files, **SMALL)
    assert found.outcome == "raised"
    assert found.error == "KeyError: 'no such file in the index: 0003.jpg'"
    assert (found.batches_done, found.images_done) == (2, 16)
    assert found.alone.images_per_s is None


def test_a_pipeline_that_hangs(files):
    found = measure(then(lambda: time.sleep(600)), files, timeout=3, **SMALL)
    assert found.outcome == "hung"
    assert (found.batches_done, found.images_done) == (2, 16)


def test_a_pipeline_that_kills_itself(files):
    found = measure(then(lambda: os.kill(os.getpid(), signal.SIGTERM)), files, **SMALL)
    assert found.outcome == "killed"
    assert "SIGTERM" in found.error


def test_an_unreadable_file_is_named(own_folder):
    path = find_images(own_folder).paths[17]
    os.truncate(path, 900)
    found = measure(Streaming, find_images(own_folder), **SMALL)
    assert found.outcome == "raised"
    assert path in found.error
    assert found.images_done == 16


def test_a_file_that_is_gone(files):
    gone = ImageFiles((*files.paths, "gone/far/away.jpg"), [*files.labels, 0], files.class_names)
    found = measure(Streaming, gone, **SMALL)
    assert (found.outcome, found.images_done) == ("raised", 40)
    assert "away.jpg" in found.error


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda images, labels: images, r"one ndarray of shape \(2, 8, 8, 3\); a batch is a pair"),
        (lambda images, labels: (images, labels, labels), "a tuple of 3; a batch is a pair"),
        (lambda images, labels: None, "a NoneType; a batch is a pair"),
        (lambda images, labels: (images, labels[:-1]), "2 images with 1 labels"),
        (lambda images, labels: (list(images), labels), "a list of 2 for images; a batch holds two arrays"),
        (lambda images, labels: (images, list(labels)), "a list of 2 for labels; a batch holds two arrays"),
        (lambda images, labels: (images, labels[0]), r"one int64 of shape \(\) for labels"),
    ],
)
def test_batches_that_are_none(files, make, error):
    found = measure(yielding(make), files, image_size=(8, 8), batch_size=2)  # two: an array of two can be unpacked
    assert found.outcome == "raised"
    assert re.search(error, found.error), found.error


@pytest.mark.parametrize("pipeline", [lambda files, **settings: [], lambda files, **settings: iter(())])
def test_a_pipeline_that_yields_nothing(files, pipeline):
    with pytest.raises(ValueError, match="mine yielded no images from 40 files"):
        measure(pipeline, files, name="mine")


def test_a_pipeline_that_returns_nothing(files):
    found = measure(lambda files, **settings: None, files)
    assert found.outcome == "raised"
    assert "NoneType" in found.error


def test_wrong_arguments_are_refused_before_anything_runs(files, monkeypatch):
    monkeypatch.setattr(measuring, "run", None)
    for error, text, change in (
        (ValueError, "no files", {"files": files.select([])}),
        (TypeError, "files is a list", {"files": list(files.paths)}),
        (TypeError, "the pipeline is a list", {"pipeline": [1]}),
        (TypeError, "the pipeline is a generator", {"pipeline": streaming(files)}),
        (ValueError, "at least 1", {"batch_size": 0}),
        (ValueError, "at least 1", {"repeats": 0}),
        (ValueError, "at least 1", {"batches": 0}),
        (ValueError, r"give \(height, width\)", {"image_size": 224}),
        (ValueError, r"give \(height, width\)", {"image_size": (224, 224, 3)}),
        (ValueError, r"give \(height, width\)", {"image_size": (0, 224)}),
    ):
        with pytest.raises(error, match=text):
            measure(**{"pipeline": streaming, "files": files, **change})


def test_numbers_of_numpy_are_kept_as_numbers(files):
    size = np.array([32, 48])
    found = measure(Streaming, files, growth=False, image_size=tuple(size), batch_size=np.int64(8))
    assert Measurement.from_json(found.to_json()) == found


def test_a_pipeline_that_was_not_exported_yet_says_so(files):
    assert all(name == pipeline.__name__ for name, pipeline in PIPELINES.items())
    with pytest.raises(ModuleNotFoundError, match=r"helpers/pipelines/missing\.py is missing; make export"):
        LazyPipeline("missing").load()


# ---- kept and shown --------------------------------------------------------------------------------------------------


def an_odd_string(rng):
    alphabet = string.printable + 'äß✓😀\u2028\u2029\x85\x00\ud800\udce9"\\'
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))


def anything(rng, kind):
    """A value of a kind, with anything in it that may be there."""
    if isinstance(kind, msgspec.inspect.StructType):
        return kind.cls(**{field.name: anything(rng, field.type) for field in kind.fields if field.name != "version"})
    if isinstance(kind, msgspec.inspect.UnionType):
        return None if rng.random() < 0.4 else anything(rng, kind.types[0])
    number = rng.choice([0.0, -1.5, 1e-300, 1e300, 1 / 3, rng.random(), float(rng.randrange(10**9))])
    if isinstance(kind, msgspec.inspect.TupleType):
        return tuple(anything(rng, part) for part in kind.item_types)
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return tuple(anything(rng, kind.item_type) for _ in range(rng.randrange(4)))
    return {
        msgspec.inspect.EnumType: rng.choice(list(Outcome)),
        msgspec.inspect.StrType: an_odd_string(rng),
        msgspec.inspect.IntType: rng.randrange(10**12),
        msgspec.inspect.FloatType: number,
        msgspec.inspect.DictType: {an_odd_string(rng): an_odd_string(rng)},
    }[type(kind)]


def a_measurement(rng):
    return anything(rng, msgspec.inspect.type_info(Measurement))


@pytest.mark.parametrize("seed", range(50))
def test_a_measurement_survives_one_line_of_json(seed):
    before = a_measurement(random.Random(seed))
    line = before.to_json()
    assert len(line.splitlines()) == 1
    assert Measurement.from_json(line.encode("utf-8").decode("utf-8")) == before


def test_fields_of_a_later_version_are_left_out():
    before = a_measurement(random.Random(0))
    line = json.dumps({**json.loads(before.to_json()), "something_new": 1})
    assert Measurement.from_json(line) == before


def changed(part=None, **values):
    row = json.loads(a_measurement(random.Random(0)).to_json())
    (row if part is None else row[part]).update(values)
    return json.dumps(row)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "7",
        "[]",
        "{}",
        '"text"',
        '{"name": "x"}',
        "[" * 100_000,
        changed(name=None),
        changed(name=7),
        changed(outcome="well"),
        changed(version=1),
        changed(memory=None),
        changed(memory="much"),
        changed("memory", peak_mib="much"),
        changed("memory", peak_mib=None),
        changed("memory", peak_mib=True),
        changed("memory", peak_mib=float("nan")),
        changed("memory", peak_mib=10**400),
        changed(files=True),
        changed(files=1.5),
        changed(files=10**400),
        changed("training", wait_ms=3),
        changed("context", machine="mine"),
        changed("alone", images_per_s=float("inf")),
        changed("alone", images_per_s=1).replace('"images_per_s": 1,', '"images_per_s": 1e999,'),
        changed(something_new=float("nan")),
    ],
)
def test_rubbish_is_no_measurement(line):
    with pytest.raises(ValueError) as refused:
        Measurement.from_json(line)
    assert len(str(refused.value).splitlines()) <= 1


def test_a_figure_that_is_no_number_is_not_written():
    with pytest.raises(ValueError):
        replace(BARE, memory=MemoryUse(peak_mib=float("nan"), method="pss")).to_json()


BARE = Measurement(
    name="mine",
    outcome=Outcome.FINISHED,
    files=40,
    image_size=(224, 224),
    batch_size=32,
    batches_done=0,
    images_done=0,
    memory=MemoryUse(peak_mib=1234.5, method="pss"),
)


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_can_be_shown(outcome):
    error = None if outcome == "finished" else "ValueError: <b>0003.jpg</b> & more"
    bare = replace(BARE, outcome=outcome, error=error)
    rows = dict(bare.rows())
    assert rows["outcome"] == (outcome if error is None else f"{outcome}: {error}")
    assert rows["peak memory"] == "1,234 MiB"
    assert not any("None" in text or "nan" in text for row in rows.items() for text in row)
    assert str(bare).splitlines()[0] == "mine"
    page = bare._repr_html_()
    assert "<b>0003" not in page
    assert ("&lt;b&gt;0003.jpg&lt;/b&gt; &amp; more" in page) == (error is not None)


def test_every_figure_is_shown_with_its_unit():
    full = replace(
        BARE,
        name="<mine>",
        alone=Alone(
            images_per_s=1234.0,
            first_batch_s=0.25,
            first_epoch_images_per_s=1000.0,
            cores_busy=1.5,
            runs_images_per_s=(1200.0, 1234.0, 1300.0),
        ),
        training=Training(
            accelerator="small_cnn",
            device="gpu:0",
            ceiling_images_per_s=5000.0,
            images_per_s=900.0,
            predicted_images_per_s=1234.0,
            predicted_serial_images_per_s=990.0,
            utilisation_percent=18.0,
            wait_ms_p50=1.0,
            wait_ms_p95=2.0,
            wait_ms_max=3.0,
            peak_mib=1500.0,
        ),
        memory=replace(BARE.memory, baseline_mib=234.5, budget_mib=2000.0),
        growth=Growth(mib_per_1000_files=147.0, mib_per_epoch=0.5),
        gpu=Gpu(busy_percent=12.0, peak_mib=800.0, framework_peak_mib=300.0),
    )
    assert full.rows()[1:] == [
        ("delivered", "0 images in 0 batches, 40 files given"),
        ("pipeline alone", "1,234 images/s (median of 3: 1,200 to 1,300)"),
        ("first batch after", "0.25 s"),
        ("first epoch, all included", "1,000 images/s"),
        ("CPU cores busy", "1.5"),
        ("peak memory", "1,234 MiB of 2,000 MiB budget, 1,000 above the start"),
        ("growth", "147 MiB per 1,000 files"),
        ("growth per epoch", "0.5 MiB"),
        ("accelerator alone (small_cnn on gpu:0)", "5,000 images/s"),
        ("together", "900 images/s"),
        ("predicted, side by side", "1,234 images/s"),
        ("predicted, sharing the cores", "990 images/s"),
        ("accelerator busy", "18 % of the time"),
        ("waited per step, p50 / p95 / max", "1 / 2 / 3 ms"),
        ("peak memory, training", "1,500 MiB"),
        ("GPU busy (NVML)", "12 %"),
        ("GPU memory peak (NVML)", "800 MiB"),
        ("GPU memory peak (framework)", "300 MiB"),
    ]
    assert "&lt;mine&gt;" in full._repr_html_()
