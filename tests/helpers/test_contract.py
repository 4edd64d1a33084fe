"""A good pipeline keeps all seven promises; for each promise there is a pipeline that breaks it and is found out."""

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types

import cloudpickle
import numpy as np
import pytest

from helpers import contract
from helpers.contract import PROMISES, ContractReport, Promise, check_pipeline
from helpers.folders import find_images
from helpers.images import read_image
from helpers.measurement import Growth
from helpers.sandbox import run

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child process need not import pytest

ALL = tuple(PROMISES)


# ---- pipelines: a good one, and others that differ from it in one thing ----------------------------------------------


class Good:
    """Batches of a generator; what the others change is a method each."""

    def __init__(self, files, *, image_size=(224, 224), batch_size=32, shuffle=True, seed=0, channels=3):
        self.files, self.image_size, self.batch_size, self.shuffle = files, image_size, batch_size, shuffle
        self.rng = np.random.default_rng(seed)

    def order(self):
        return self.rng.permutation(len(self.files)) if self.shuffle else np.arange(len(self.files))

    def rows(self):
        order = self.order()
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def read(self, row):
        return read_image(self.files.paths[row], image_size=self.image_size)

    def batch(self, rows):
        return np.stack([self.read(row) for row in rows]), self.files.labels[rows]

    def __iter__(self):
        for rows in self.rows():
            yield self.batch(rows)


class Skipping(Good):
    """Leaves broken files out and says which: promise 7 allows it."""

    def __init__(self, files, **settings):
        super().__init__(files, **settings)
        self.skipped = []

    def batch(self, rows):
        kept, images = [], []
        for row in rows:
            try:
                images.append(self.read(row))
                kept.append(row)
            except ValueError:
                self.skipped.append(self.files.paths[row])
        return np.stack(images), self.files.labels[kept]


class DropsTheLastBatch(Good):
    def rows(self):
        return super().rows()[:-1]


class GivesOneFileTwice(Good):
    def order(self):
        order = super().order()
        order[order == 1] = 0
        return order


class GivesLabelsInAnotherOrder(Good):
    def batch(self, rows):
        images, labels = super().batch(rows)
        return images, np.roll(labels, 1)


class GivesLabelsAtRandom(Good):
    def batch(self, rows):
        return super().batch(rows)[0], np.random.default_rng().integers(0, 10, len(rows))


class SameOrderEachEpoch(Good):
    def __init__(self, files, *, seed=0, **settings):
        super().__init__(files, seed=seed, **settings)
        self.seed = seed

    def order(self):
        self.rng = np.random.default_rng(self.seed)
        return super().order()


class AnotherOrderUnderTheSameSeed(Good):
    def __init__(self, files, *, seed=0, **settings):
        super().__init__(files, seed=None, **settings)


class TheSameOrderUnderAnySeed(Good):
    def __init__(self, files, *, seed=0, **settings):
        super().__init__(files, seed=0, **settings)


class SeedsOnlyTheFirstEpoch(Good):
    def order(self):
        order = super().order()
        self.rng = np.random.default_rng()
        return order


class BreaksThree(DropsTheLastBatch, GivesLabelsInAnotherOrder):
    def read(self, row):
        return super().read(row)[:, :, ::-1]


class DependsOnTheProcess(Good):
    """As one that goes through a set of names: their hashes differ from process to process."""

    def __init__(self, files, *, seed=0, **settings):
        super().__init__(files, seed=seed + os.getpid(), **settings)


class ShufflesAlways(Good):
    def __init__(self, files, *, shuffle=True, **settings):
        super().__init__(files, shuffle=True, **settings)


class ShufflesAtTheEndOfAnEpoch(Good):
    """The usual slip with `on_epoch_end`: the first epoch is in the files' order, later ones are not."""

    epochs = 0

    def order(self):
        self.epochs += 1
        return np.arange(len(self.files)) if self.epochs == 1 else super().order()


class ShufflesFromTheSecondEpochOn(Good):
    epochs = 0

    def order(self):
        self.epochs += 1
        return super().order() if self.shuffle or self.epochs == 1 else np.arange(len(self.files))[::-1]


class GivesBgr(Good):
    def read(self, row):
        return super().read(row)[:, :, ::-1]


class GivesFloats(Good):
    def read(self, row):
        return super().read(row).astype(np.float32)


class GivesFloatsFromMinusOneToOne(Good):
    def read(self, row):
        return super().read(row).astype(np.float32) / 127.5 - 1


class SwapsHeightAndWidth(Good):
    def __init__(self, files, *, image_size=(224, 224), **settings):
        super().__init__(files, image_size=image_size[::-1], **settings)


class GivesDarkImages(Good):
    def read(self, row):
        return super().read(row) // 10 * 9


class GivesLabelsOf32Bits(Good):
    def batch(self, rows):
        images, labels = super().batch(rows)
        return images, labels.astype(np.int32)


class GivesBatchesOfItsOwnSize(Good):
    def __init__(self, files, *, batch_size=32, **settings):
        super().__init__(files, batch_size=4, **settings)


class GivesLists(Good):
    def batch(self, rows):
        images, labels = super().batch(rows)
        return list(images), labels


class GivesBareArrays(Good):
    def batch(self, rows):
        return super().batch(rows)[0]


class GivesThreeParts(Good):
    def batch(self, rows):
        return *super().batch(rows), rows


class GivesTooManyLabels(Good):
    def batch(self, rows):
        images, labels = super().batch(rows)
        return images, np.append(labels, 3)


class GivesTooFewLabels(Good):
    def batch(self, rows):
        images, labels = super().batch(rows)
        return images, labels[:-1]


class GivesGrayscale(Good):
    def read(self, row):
        return super().read(row)[:, :, :1]


def only_one_epoch(files, **settings):
    yield from Good(files, **settings)


class GoesOnWhereItStopped(Good):
    """An early stop leaves its place behind: the next pass is the rest."""

    rest = None

    def __iter__(self):
        self.rest = self.rest or self.rows()
        while self.rest:
            yield self.batch(self.rest.pop(0))


class LeavesAThread(Good):
    def __iter__(self):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        yield from super().__iter__()


class LeavesAProcess(Good):
    def __iter__(self):
        process = subprocess.Popen([sys.executable, "-IS", "-c", "import time; time.sleep(3600)"])
        yield from super().__iter__()
        process.kill()
        process.wait()


class LeavesAFile(Good):
    left = []  # noqa: RUF012

    def __iter__(self):
        self.left.append(os.open(self.files.paths[0], os.O_RDONLY))
        yield from super().__iter__()
        os.close(self.left.pop())


class KeepsAllImages(Good):
    def __init__(self, files, **settings):
        super().__init__(files, **settings)
        self.images = [super(KeepsAllImages, self).read(row) for row in range(len(files))]

    def read(self, row):
        return self.images[row]


class KeepsImagesUntilTheyAreUsed(Good):
    def __iter__(self):
        batches = list(super().__iter__())
        while batches:
            yield batches.pop(0)


class KeepsImagesByName(Good):
    images = {}  # noqa: RUF012

    def read(self, row):
        path = self.files.paths[row]
        if (path, self.image_size) not in self.images:
            self.images[path, self.image_size] = super().read(row)
        return self.images[path, self.image_size]


class KeepsEachEpoch(Good):
    kept = []  # noqa: RUF012

    def __iter__(self):
        for images, labels in super().__iter__():
            self.kept.append(images.copy())
            yield images, labels


class GivesGreyForBrokenFiles(Good):
    def read(self, row):
        try:
            return super().read(row)
        except ValueError:
            return np.full((*self.image_size, 3), 128, np.uint8)


class GivesGreyForTruncatedFiles(Good):
    def read(self, row):
        try:
            return super().read(row)
        except ValueError as error:
            if "truncated" in str(error):
                return np.full((*self.image_size, 3), 128, np.uint8)
            raise


class SkipsAndSaysNothing(Skipping):
    def batch(self, rows):
        try:
            return super().batch(rows)
        finally:
            self.skipped.clear()


class SkipsTheWrongName(Skipping):
    def batch(self, rows):
        batch = super().batch(rows)
        self.skipped[:] = self.files.paths[:1] * len(self.skipped)
        return batch


class DoesNotNameTheFile(Good):
    def read(self, row):
        try:
            return super().read(row)
        except ValueError:
            raise RuntimeError("an image is broken") from None


class Raises(Good):
    def read(self, row):
        raise ZeroDivisionError("division by zero")


class KillsItself(Good):
    def read(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Good):
    def read(self, row):
        time.sleep(3600)


class HangsUp(BaseException):
    """Stands for a hang where waiting for one would take long."""


class HangsOnBrokenFiles(Good):
    def read(self, row):
        try:
            return super().read(row)
        except ValueError:
            raise HangsUp("no end") from None


class FillsABuffer(Good):
    """Keeps the last 200 images, as a shuffle buffer would."""

    def __init__(self, files, **settings):
        super().__init__(files, **settings)
        self.kept = []

    def batch(self, rows):
        images, labels = super().batch(rows)
        self.kept = [*self.kept, *images.copy()][-200:]
        return images, labels

    def __iter__(self):
        self.kept.clear()
        return super().__iter__()


# ---- promises, in child processes as for every reader ----------------------------------------------------------------


def assert_broken(report, pipeline, broken, found):
    assert not report.ok
    assert report.broken == broken, str(report)
    assert any(found in promise.found for promise in report.promises), str(report)
    assert report.name == pipeline.__name__


def ids(value):
    return getattr(value, "__name__", "-")


def test_a_good_pipeline_keeps_all_promises(files):
    report = check_pipeline(Good, files)
    assert report.broken == (), str(report)
    assert report.ok
    assert [promise.number for promise in report.promises] == [1, 2, 3, 4, 5, 6, 7]
    assert all(promise.found == "" for promise in report.promises)
    assert str(report).splitlines()[0].endswith("7 of 7 promises kept")


slow = functools.partial(pytest.param, marks=pytest.mark.slow)  # a kind of promise that another case breaks, too
WITHOUT_FIT = tuple(one for one in contract._CHECKS if one is not contract._check_fit)  # it imports TensorFlow


def hasty(function, *given):
    """Runs in the child: what is left behind here stays, so there is no point in waiting for its end."""
    contract._SETTLE_S = 0.3
    return function(*given)


@pytest.mark.parametrize(
    ("pipeline", "broken", "found"),
    [
        slow(DependsOnTheProcess, (3,), "the same seed gave another order in another process"),
        (LeavesAThread, (5,), "threads more after 6 early stops"),
        slow(LeavesAProcess, (5,), "processes still run"),
        slow(LeavesAFile, (5,), "open files more after 6 early stops"),
        (KeepsAllImages, (6,), "MiB per 1,000 files"),
        slow(KeepsImagesUntilTheyAreUsed, (6,), "MiB per 1,000 files"),
        slow(KeepsImagesByName, (6,), "MiB per 1,000 files"),
        (KeepsEachEpoch, (6,), "MiB per epoch of 75 files"),
        (KillsItself, ALL, "killed: died by SIGKILL"),
    ],
    ids=ids,
)
def test_a_broken_promise_is_found_and_no_other(files, pipeline, broken, found, monkeypatch):
    monkeypatch.setattr(contract, "_CHECKS", WITHOUT_FIT)
    monkeypatch.setattr(
        contract, "run", lambda function, *given, timeout: run(hasty, function, *given, timeout=timeout)
    )
    assert_broken(check_pipeline(pipeline, files), pipeline, broken, found)


def as_dataset(files, **settings):
    """A data set that reads in Python: after an error in `fit`, the program waits for its thread for ever."""
    import tensorflow as tf

    def slow():
        for batch in Good(files, **settings):
            time.sleep(0.3)  # so that it is still reading
            yield batch

    size = settings["image_size"]
    kinds = (tf.TensorSpec((None, *size, 3), tf.uint8), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(slow, output_signature=kinds).prefetch(64)


def as_dataset_with_the_remedy(files, **settings):
    from helpers.epochs import end_reading_at_exit

    end_reading_at_exit()
    return as_dataset(files, **settings)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("pipeline", "ends_well"), [slow(as_dataset, False), (as_dataset_with_the_remedy, True)], ids=ids
)
def test_the_end_of_a_program_after_an_error_in_fit(files, pipeline, ends_well):
    found = contract._check_fit(contract._Subject(pipeline, files, None, 2.0, ""), 90 if ends_well else 45)
    assert (found == []) == ends_well, found


def test_a_pipeline_that_hangs_is_left_alone_after_one_timeout(files, monkeypatch):
    started = []

    def counting(function, *arguments, **limits):
        started.append(function.__name__)
        return run(function, *arguments, **limits)

    monkeypatch.setattr(contract, "run", counting)
    assert_broken(check_pipeline(Hangs, files, timeout=1), Hangs, ALL, "hung: no end after 1 s")
    assert len(started) == 1


def test_growth_that_ends_is_no_growth(files):
    """The more cores, the more buffers: a larger number of files holds more at first, and then no more."""
    report = check_pipeline(FillsABuffer, files)
    assert report.broken == (), str(report)


# ---- promises, tried in this process: many more ways to break one ----------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch):
    """Run what `check_pipeline` would run in child processes here; memory is left out."""

    def run_here(function, *arguments, timeout):
        result = {"value": None, "error": None}
        try:
            result["value"] = function(*arguments)
            result["outcome"] = "finished"
        except HangsUp as error:
            result.update(outcome="hung", error=str(error))
        except Exception as error:
            result.update(outcome="raised", error=f"{type(error).__name__}: {error}")
        return types.SimpleNamespace(**result)

    monkeypatch.setattr(contract, "run", run_here)
    flat = types.SimpleNamespace(growth=Growth(mib_per_1000_files=0.0, mib_per_epoch=0.0))
    monkeypatch.setattr(contract, "measure", lambda *arguments, **settings: flat)
    monkeypatch.setattr(contract, "renamed", lambda files, times, folder: files)
    monkeypatch.setattr(contract, "_SETTLE_S", 0.1)
    monkeypatch.setattr(contract, "_CHECKS", WITHOUT_FIT)
    gc.freeze()  # what pytest holds need not be looked through after each early stop
    yield
    gc.unfreeze()


@pytest.mark.parametrize("pipeline", [Good, functools.partial(Good, channels=3), Skipping], ids=ids)
def test_a_good_pipeline_keeps_all_promises_here_too(files, in_this_process, pipeline):
    assert check_pipeline(pipeline, files).broken == ()


@pytest.mark.parametrize(
    ("pipeline", "broken", "found"),
    [
        (BreaksThree, (1, 2, 4), "first epoch: 6 of 30 missing, 0 too many"),
        (DropsTheLastBatch, (1,), "first epoch: 6 of 30 missing, 0 too many"),
        (GivesOneFileTwice, (1,), "first epoch: 1 of 30 missing, 1 too many"),
        (GivesLabelsInAnotherOrder, (2,), "of 30 with another label"),
        (GivesLabelsAtRandom, (2,), "of 30 with another label"),
        (SameOrderEachEpoch, (3,), "both epochs have the same order"),
        (AnotherOrderUnderTheSameSeed, (3,), "the same seed gave another order"),
        (TheSameOrderUnderAnySeed, (3,), "another seed gave the same order"),
        (SeedsOnlyTheFirstEpoch, (3,), "the same seed gave another order"),
        (ShufflesAlways, (3,), "shuffle=False does not keep the files' order"),
        (ShufflesAtTheEndOfAnEpoch, (3,), "another seed gave the same order"),
        (ShufflesFromTheSecondEpochOn, (3,), "(second unshuffled epoch)"),
        (GivesBgr, (4,), "the channels are BGR, not RGB"),
        (GivesFloats, (4,), "images are float32, not uint8"),
        (GivesFloatsFromMinusOneToOne, (4,), "images are float32, not uint8"),
        (SwapsHeightAndWidth, (4,), "images of shape (8, 128, 96, 3), not (n, 96, 128, 3)"),
        (GivesDarkImages, (4,), "levels of 255 from the reference, 2 allowed"),
        (GivesLabelsOf32Bits, (4,), "labels are int32, not int64"),
        (GivesBatchesOfItsOwnSize, (4,), "a batch of 4 before the last, batch_size was 8"),
        (GivesGrayscale, (1, 2, 3, 4), "images of shape (8, 96, 128, 1)"),
        (GivesTooManyLabels, (4,), "8 images but labels of shape (9,)"),
        (GivesTooFewLabels, (2, 4), "8 images but labels of shape (7,)"),
        (GivesLists, (1, 2, 3, 4, 5, 7), "a list of 8 for images; a batch holds two arrays"),
        (GivesBareArrays, (1, 2, 3, 4, 5, 7), "one ndarray of shape (8, 96, 128, 3); a batch is a pair"),
        (GivesThreeParts, (1, 2, 3, 4, 5, 7), "a tuple of 3; a batch is a pair"),
        (only_one_epoch, (5,), "30 images in the first pass, 0 in the second"),
        (GoesOnWhereItStopped, (5,), "22 images in the pass after an early stop, not 30"),
        (GivesGreyForBrokenFiles, (7,), "not an image: delivered as if it were whole"),
        (GivesGreyForTruncatedFiles, (7,), "truncated: delivered as if it were whole"),
        (SkipsAndSaysNothing, (7,), "1 images missing, 0 named in `skipped`"),
        (SkipsTheWrongName, (7,), "1 images missing, 1 named in `skipped`"),
        (DoesNotNameTheFile, (7,), "the error does not name the file: an image is broken"),
        (HangsOnBrokenFiles, (7,), "hung: no end"),
        (lambda files, **settings: None, (1, 2, 3, 4, 5, 7), "'NoneType' object is not iterable"),
        (lambda files, **settings: [], (1, 3, 5, 7), "the first epoch holds no image"),
    ],
    ids=ids,
)
def test_another_way_to_break_a_promise(files, in_this_process, pipeline, broken, found):
    assert_broken(check_pipeline(pipeline, files), pipeline, broken, found)


def test_the_tolerance_is_the_callers(files, in_this_process):
    assert check_pipeline(GivesDarkImages, files, tolerance=40).ok


def test_files_with_the_same_pixels_cannot_be_told_apart_and_need_not(files, in_this_process):
    twice = files.take(25).select([*range(25), 0, 1, 2, 3, 4])
    assert check_pipeline(Good, twice).ok
    assert 1 in check_pipeline(GivesOneFileTwice, twice).broken


# ---- what is checked before ------------------------------------------------------------------------------------------


def test_too_few_files(files, monkeypatch):
    monkeypatch.setattr(contract, "run", None)  # nothing runs
    with pytest.raises(ValueError, match="19 different images are too few"):
        check_pipeline(Good, files.take(19))
    with pytest.raises(ValueError, match="3 different images are too few"):
        check_pipeline(Good, files.take(3).repeat_to(40))


def test_an_unreadable_file_is_named_and_not_blamed_on_the_pipeline(own_folder, monkeypatch):
    monkeypatch.setattr(contract, "run", None)
    path = find_images(own_folder).paths[0]
    os.truncate(path, 900)
    with pytest.raises(ValueError, match=r"0000\.jpg: truncated JPEG"):
        check_pipeline(Good, find_images(own_folder))


# ---- the report ------------------------------------------------------------------------------------------------------


def test_the_report_can_be_read():
    promises = tuple(Promise(number, "" if number != 4 else "<uint8> & more") for number in PROMISES)
    report = ContractReport("<mine>", promises)
    lines = str(report).splitlines()
    assert lines[0] == "<mine>: 6 of 7 promises kept"
    assert lines[1] == "  1 kept   every file exactly once per epoch"
    assert lines[4] == "  4 BROKEN shape, dtype and colours as stated (<uint8> & more)"
    assert (report.ok, report.broken) == (False, (4,))
    page = report._repr_html_()
    assert "&lt;mine&gt;" in page
    assert "&lt;uint8&gt; &amp; more" in page
    assert page.count("<tr>") == 7


def test_a_long_error_is_told_on_one_line(files):
    def failing(files, **settings):
        raise ValueError("in user code:\n\n" + "  a line of somebody's program\n" * 50 + "the last word")

    found = check_pipeline(failing, files).promises[0].found
    assert found.startswith("raised: ValueError: in user code: a line") and found.endswith("the last word")
    assert "\n" not in found and len(found) < 310
