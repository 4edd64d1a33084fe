"""Every pipeline meets every hostile file: it is delivered right, or skipped and named, or named in an error."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hostile_images import BROKEN, GOOD, JPEG, write_hostile_images
from inspection import inspect_folder

from helpers.files import printable
from helpers.folders import ImageFiles, find_images
from helpers.images import read_image
from helpers.pipelines import PIPELINES
from helpers.sandbox import run

SIZE = (12, 16)  # a quarter of most of them, so that tf_data_fast decodes them reduced
# Mean difference from the reference, in levels. A reduced decode shrinks differently; TensorFlow rounds differently.
TOLERANCE = {"tf_data_fast": 28.0, "tf1_queues": 6.0, "tf_data": 6.0}
# TensorFlow takes the numbers of a palette's colours for levels of gray; tf_data refuses such a BMP.
KNOWN_WRONG = {"tf1_queues": {"palette.bmp"}}
# The other two read everything before the first batch, so no file can vanish in between.
READ_WHILE_TRAINING = [name for name in PIPELINES if name not in ("load_everything", "tf_data_packed")]
LONGEST_S, MEMORY_MIB = 240.0, 1500.0


@dataclass
class Seen:
    """What a pipeline did in one epoch: each delivered label's image, and what was skipped and told."""

    images: dict[int, np.ndarray]
    labels: list[int]
    skipped: dict[str, str]
    told: list[str]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The list of hostile files, each its own class, and the kind of each."""
    folder = tmp_path_factory.mktemp("hostile")
    kinds = write_hostile_images(folder / "all")
    with pytest.warns(UserWarning, match="left out 2 that are no regular files"):
        found = find_images(folder)
    assert sorted(found.paths) == sorted(kinds)
    return numbered(found.paths), kinds


def numbered(paths):
    """A list of files in which a label says which file it is."""
    return ImageFiles(tuple(paths), np.arange(len(paths)), tuple(str(number) for number in range(len(paths))))


def one_epoch(name, files, packs, **settings):
    """Go through one epoch, in a child that may die."""
    os.environ["COURSE_PACKED"] = os.fspath(packs)
    seen = Seen({}, [], {}, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = PIPELINES[name](files, image_size=SIZE, batch_size=16, **settings)
        for images, labels in batches:
            assert len(images) == len(labels) > 0
            seen.labels += np.asarray(labels).tolist()
            seen.images |= {int(label): np.array(image) for image, label in zip(images, labels, strict=True)}
    seen.skipped = dict(batches.skipped)
    seen.told = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return seen


def named(path, text):
    """Tell whether a text names a file, in one of the ways in which names that cannot be printed are written."""
    return any(form in text for form in (path, printable(path), repr(path)[1:-1], repr(os.fsencode(path))[2:-1]))


@pytest.mark.parametrize("name", PIPELINES)
def test_delivered_right_or_named(name, hostile, tmp_path):
    """One child goes through all of it, since most of the time would go into starting TensorFlow again."""
    files, kinds = hostile
    broken = files.select([row for row, path in enumerate(files.paths) if kinds[path] == BROKEN])
    some = broken.select(range(0, len(broken), 12 if name.startswith("tf") else 4))
    outcome = run(all_of_it, name, files, some, tmp_path, timeout=LONGEST_S, memory_budget=MEMORY_MIB)
    found = outcome.unwrap()
    check_skipped_and_named_or_delivered_right(name, files, kinds, found["skip"])
    for path, text in zip(some.paths, found["errors"], strict=True):
        assert text is not None, printable(path)
        decoders_own = name == "tf_data" and "DecodeImage" in text  # damage inside, which only the decoder sees
        assert named(path, text) or decoders_own, (printable(path), text)
    if name == "keras_sequence":
        assert set(found["processes"]) >= {path for path, kind in kinds.items() if kind == BROKEN}
    if name in READ_WHILE_TRAINING:
        labels, skipped = found["vandals"]
        assert len(set(labels)) == len(labels)
        assert len(labels) + len(skipped) == 400
        assert len(skipped) > 100
    if name in ("tf_data", "tf_data_fast"):  # Keras says then that its data ran out
        assert found["nothing"].labels == []
        assert len(found["nothing"].skipped) == 20
    else:
        assert re.search("not one of 20 files|none of the 20 files", found["nothing"])


def all_of_it(name, files, some_broken, folder):
    """Return what the pipeline made of all files, of single broken ones, of files that vanish, and of none."""
    found = {"skip": one_epoch(name, files, folder, on_error="skip")}
    if name == "keras_sequence":
        found["processes"] = with_processes(files)
    found["errors"] = errors_of(name, some_broken, folder)
    if name in READ_WHILE_TRAINING:
        found["vandals"] = epoch_among_vandals(name, folder)
    nowhere = numbered([os.fspath(folder / "nowhere" / f"{number}.jpg") for number in range(20)])
    try:
        found["nothing"] = one_epoch(name, nowhere, folder / "packs", on_error="skip")
    except Exception as error:
        found["nothing"] = str(error)
    return found


def check_skipped_and_named_or_delivered_right(name, files, kinds, seen):
    assert max(Counter(seen.labels).values()) == 1
    delivered = {files.paths[label] for label in seen.labels}
    assert not delivered & set(seen.skipped)
    assert delivered | set(seen.skipped) == set(files.paths)
    for path, kind in kinds.items():
        if kind != "either":
            assert (path in delivered) == (kind == GOOD), (printable(path), seen.skipped.get(path))
    assert all(named(path, reason) for path, reason in seen.skipped.items())
    assert len([text for text in seen.told if "left out" in text]) == 1
    for label, image in seen.images.items():
        path = files.paths[label]
        difference = np.abs(image.astype(float) - read_image(path, image_size=SIZE)).mean()
        if os.path.basename(path) not in KNOWN_WRONG.get(name, ()):
            assert difference <= TOLERANCE.get(name, 0.0), (printable(path), difference)


def errors_of(name, files, packs):
    """Give the pipeline one file at a time, and return what it raised for each."""
    texts = []
    for row in range(len(files)):
        try:
            one_epoch(name, files.select([row]), packs, on_error="raise")
            texts.append(None)
        except Exception as error:
            texts.append(str(error))
    return texts


def epoch_among_vandals(name, folder):
    """Remove, empty and replace most of the files after the first batch; return labels and skipped paths."""
    paths = [folder / f"{number:03d}.jpg" for number in range(400)]
    for path in paths:
        path.write_bytes(JPEG)
    batches = PIPELINES[name](
        numbered([os.fspath(path) for path in paths]), image_size=SIZE, batch_size=4, on_error="skip"
    )
    labels = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, some in batches:
            if not labels:
                for number, path in enumerate(paths):
                    vandalise(path, number % 5)
            labels += np.asarray(some).tolist()
    return labels, list(batches.skipped)


def vandalise(path, how):
    """Do one of five things to a file; the last one is nothing."""
    if how == 0:
        path.unlink()
    elif how == 1:
        path.write_bytes(b"")
    elif how == 2:
        path.unlink()
        path.mkdir()
    elif how == 3:
        path.with_suffix(".new").write_bytes(JPEG[:700])
        os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_word_than_raise_and_skip(name, files):
    with pytest.raises(ValueError, match="on_error"):
        PIPELINES[name](files, image_size=SIZE, on_error="ignore")


def with_processes(files):
    """Go through one epoch of a Sequence that reads in two processes; return what it skipped."""
    settings = {"image_size": SIZE, "batch_size": 16, "on_error": "skip"}
    batches = PIPELINES["keras_sequence"](files, use_multiprocessing=True, **settings)
    labels = [label for _, some in batches for label in some.tolist()]
    assert len(labels) + len(batches.skipped) == len(files)
    return batches.skipped


def test_training_goes_on_without_the_broken_ones(hostile):
    files, _ = hostile
    losses = run(trained, files, timeout=LONGEST_S).unwrap()
    assert len(losses) == len(PIPELINES)
    assert np.isfinite(losses).all()


def trained(files):
    """Train on each pipeline for an epoch; return the losses."""
    import keras

    from helpers.pipelines.generator import forever

    warnings.simplefilter("ignore")
    os.environ["COURSE_PACKED"] = os.path.join(os.path.dirname(files.paths[0]), ".packs")
    losses = []
    for name, pipeline in PIPELINES.items():
        layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(len(files))]
        model = keras.Sequential(layers)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        # The last batch is whole, too: a Sequence cannot leave out a batch in which no image is sound.
        size = next(size for size in range(32, 16, -1) if not 0 < len(files) % size < 16)
        batches = pipeline(files, image_size=SIZE, batch_size=size, on_error="skip")
        endless = name in ("generator", "threaded_generator", "tf1_queues")
        steps = {"steps_per_epoch": len(batches)} if endless else {}
        fed = forever(batches) if endless else batches
        losses += model.fit(fed, epochs=1, verbose=0, **steps).history["loss"]
    return losses


def test_check_images_finds_each_of_them(hostile):
    files, kinds = hostile
    found = inspect_folder(os.path.commonpath(files.paths))
    errors = {os.path.join(found.folder, one.path) for one in found.of("error")}
    assert {path for path, kind in kinds.items() if kind == BROKEN} <= errors
    assert not errors & {path for path, kind in kinds.items() if kind == GOOD}


def test_a_file_that_can_be_read_the_second_time_is_named_too(files):
    from helpers.images import BrokenFiles
    from helpers.pipelines.tf_data import name_broken

    broken, path = BrokenFiles("skip", warn=False), files.paths[0]
    assert not name_broken(os.fsencode(path), lambda path, label: None, broken)
    assert broken == {path: f"{path}: could not be read a moment ago"}
