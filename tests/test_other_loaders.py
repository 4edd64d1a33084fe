"""The other loaders of lesson 11: found where they are installed, and kept to the promises of the course."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import numpy as np
import other_loaders
import psutil
import pytest
from other_loaders import LOADERS, WORKS, Loader, installed, is_installed
from row_loaders import Job, reduced
from shard_loaders import samples

from helpers.contract import check_pipeline
from helpers.folders import ImageFiles, course_images, find_images
from helpers.images import read_image
from helpers.packing import default_packs_in
from helpers.pipelines import PIPELINES
from helpers.runs import loaded
from helpers.sandbox import run

ROOT = Path(__file__).resolve().parents[1]
SIZE = (64, 80)
PACKAGES = sorted({package for loader in LOADERS for package in loader.packages})
OWN_DECODER = {("torch", "full"), ("spdl", "full"), ("dali", "full")}


def needs(loader: Loader):
    missing = loader.missing()
    skip = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
    return pytest.param(loader, marks=skip, id=f"{loader.__name__}-{loader.work}")


each_loader = pytest.mark.parametrize("loader", [needs(loader) for loader in LOADERS])
one_of_each = pytest.mark.parametrize("loader", [needs(loader) for loader in LOADERS if loader.work == "full"])


@pytest.fixture(autouse=True)
def own_packs(tmp_path):
    with default_packs_in(tmp_path / "packs"):
        yield


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", f"import sys; sys.path.append('benchmarks')\n{textwrap.dedent(code)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- what is installed -----------------------------------------------------------------------------------------------


def test_without_any_package_the_module_is_imported_and_nothing_is_installed():
    hidden = sorted({package.partition(".")[0] for package in PACKAGES})
    found = python(
        f"""
        sys.modules.update(dict.fromkeys({hidden}))
        from other_loaders import LOADERS, WORKS, installed
        print(len(LOADERS), [installed(work) for work in WORKS])
        """
    )
    assert found == f"{len(LOADERS)} {[{}] * len(WORKS)}"


def test_a_part_of_a_package_is_enough_to_be_missing():
    found = python(
        """
        sys.modules["torch"] = None
        from other_loaders import installed
        print(sorted({"torch", "webdataset", "litdata"} & set(installed("reduced"))))
        """
    )
    assert found == "[]"


def test_asking_what_is_installed_imports_nothing():
    found = python(
        f"""
        from other_loaders import LOADERS
        [loader.missing() for loader in LOADERS]
        print(sorted({{*{PACKAGES}, "tensorflow"}} & set(sys.modules)))
        """
    )
    assert found == "[]"


def test_the_list_is_right(tmp_path, monkeypatch):
    for name in ("aaa_there", "aaa_parent"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    some = {
        "there": ("aaa_there",),
        "absent": ("aaa_absent",),
        "one of two": ("aaa_there", "aaa_absent"),
        "part of what is there": ("aaa_parent.part",),
        "part of what is absent": ("aaa_absent.part",),
    }
    loaders = [Loader(name, "full", print, packages) for name, packages in some.items()]
    monkeypatch.setattr(other_loaders, "LOADERS", loaders)
    assert list(installed("full")) == ["there"]
    assert installed("reduced") == {}
    assert loaders[2].missing() == ["aaa_absent"]
    assert is_installed("aaa_there") and not is_installed("aaa_absent.part")


def test_a_loader_that_is_missing_says_what_it_needs(files):
    with pytest.raises(ModuleNotFoundError, match="aaa_absent"):
        Loader("absent", "full", print, ("aaa_absent",))(files)


def test_each_has_a_name_of_its_own():
    pairs = [(loader.__name__, loader.work) for loader in LOADERS]
    assert len(set(pairs)) == len(pairs)
    assert {work for _, work in pairs} == set(WORKS)
    assert not {name for name, _ in pairs} & set(PIPELINES)


# ---- what they share -------------------------------------------------------------------------------------------------


def test_orders_are_new_each_epoch_and_can_be_had_again(files):
    many = files.repeat_to(100)
    jobs = {seed: Job(many, seed=seed) for seed in (0, 1)}
    orders = [np.concatenate(jobs[s].rows_of_batches(n)).tolist() for s, n in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[1] == np.concatenate(Job(many).rows_of_batches(1)).tolist()
    assert all(sorted(order) == list(range(100)) for order in orders)
    in_order = Job(files.take(5), shuffle=False, batch_size=2).rows_of_batches(3)
    assert [batch.tolist() for batch in in_order] == [[0, 1], [2, 3], [4]]
    assert len({jobs[0].epoch_seed(number) for number in range(50)}) == 50


def test_batches_of_nothing_are_refused(files):
    with pytest.raises(ValueError, match="batch_size is 0: give at least 1"):
        Job(files, batch_size=0).epochs(iter)


def test_shards_hold_the_files_themselves_where_the_list_has_links_or_names_one_twice(files, tmp_path):
    link = tmp_path / "link.jpg"
    link.symlink_to(files.paths[1])
    some = ImageFiles((files.paths[0], files.paths[0], str(link)), np.array([3, 3, 4]), files.class_names)
    first, second = (Path(path).read_bytes() for path in files.paths[:2])
    kept = list(samples(Job(some, shuffle=False), pixels=False))
    assert [(one["data"], one["label"]) for one in kept] == [(first, 3), (first, 3), (second, 4)]
    assert [one["path"].decode() for one in kept] == list(some.paths)
    pixels = next(samples(Job(some, shuffle=False), pixels=True))["data"]
    assert np.array_equal(np.frombuffer(pixels, np.uint8), read_image(files.paths[0], image_size=(224, 224)).ravel())


# ---- each installed one ----------------------------------------------------------------------------------------------


@each_loader
@pytest.mark.slow  # lesson 11 asks some of them the same, and shows the answer
@pytest.mark.timeout(900)
def test_the_promises(loader):
    report = check_pipeline(loader, course_images(60), tolerance=28)
    assert report.ok, str(report)


def epochs_of(loader, files, count, **settings) -> list:
    """Return the number of batches, and images and labels of some epochs, each put together."""
    batches = loaded(loader)(files, image_size=SIZE, **settings)
    epochs = [list(batches) for _ in range(count)]
    joined = [[np.concatenate([batch[part] for batch in epoch]) for part in (0, 1)] for epoch in epochs]
    return [len(batches), *joined]


@each_loader
def test_the_pixels_are_those_of_its_decoder(loader, files):
    _, (images, labels) = run(epochs_of, loader, files, 1, shuffle=False, batch_size=16, timeout=200).unwrap()
    if loader.work == "reduced":
        expected = [reduced(Path(path).read_bytes(), path, SIZE, 3) for path in files.paths]
    else:
        expected = [read_image(path, image_size=SIZE) for path in files.paths]
    assert labels.tolist() == files.labels.tolist()
    apart = np.abs(images.astype(int) - np.stack(expected)).mean(axis=(1, 2, 3)).max()
    assert apart < 8 if (loader.__name__, loader.work) in OWN_DECODER else apart == 0


@one_of_each
def test_grayscale_and_more_workers_than_batches(loader, files):
    settings = {"channels": 1, "batch_size": 64, "workers": 4, "seed": 5}
    count, first, second = run(epochs_of, loader, files, 2, **settings, timeout=200).unwrap()
    assert count == 1
    assert first[0].shape == (len(files), *SIZE, 1)
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == sorted(files.labels.tolist())


@one_of_each
def test_more_workers_than_files(loader, files):
    some = files.take(3)
    settings = {"batch_size": 2, "workers": 4}
    count, *epochs = run(epochs_of, loader, some, 2, **settings, timeout=200).unwrap()
    assert count == 2
    assert [sorted(labels.tolist()) for _, labels in epochs] == [sorted(some.labels.tolist())] * 2


def epochs_of_nothing(loader) -> list:
    return list(loaded(loader)(ImageFiles((), np.array([], np.int64), ("a",))))


@each_loader
def test_no_files_are_no_batches(loader):
    assert run(epochs_of_nothing, loader, timeout=100).unwrap() == []


def errors_of_broken_files(loader, cases) -> dict[str, str]:
    errors = {}
    for kind, files in cases.items():
        errors[kind] = "no error"
        try:
            batches = loaded(loader)(files, image_size=SIZE, batch_size=8)
            for _ in range(2):
                for _batch in batches:
                    pass
        except Exception as error:
            errors[kind] = "".join(traceback.format_exception(error))
    return errors


@one_of_each
def test_a_broken_file_is_named(loader, image_folder, tmp_path):
    cases, broken = {}, {}
    for kind in ("truncated", "empty", "html", "gone"):
        cases[kind] = find_images(shutil.copytree(image_folder, tmp_path / kind))
        broken[kind] = Path(cases[kind].paths[23])
    broken["truncated"].write_bytes(broken["truncated"].read_bytes()[:900])
    broken["empty"].write_bytes(b"")
    broken["html"].write_bytes(b"<html>404</html>" * 100)
    broken["gone"].unlink()
    errors = run(errors_of_broken_files, loader, cases, timeout=200).unwrap()
    assert {kind: str(path) in errors[kind] for kind, path in broken.items()} == dict.fromkeys(broken, True), errors


def stopped_early(loader, files) -> tuple[list, int]:
    """Stop after one batch; return the processes that are left, and the labels of an epoch."""
    import gc
    import time

    batches = loaded(loader)(files, image_size=SIZE, batch_size=4)
    for _images, _labels in batches:
        break
    count = sum(len(labels) for _, labels in batches)
    del batches, _images, _labels
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (left := workers_left()):
        time.sleep(0.1)
    return left, count


def workers_left() -> list[str]:
    """Return the command lines of child processes; those that Python itself keeps are left out."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [command for command in commands if "resource_tracker" not in command and "forkserver" not in command]


@each_loader
def test_nothing_is_left_after_stopping_early(loader, files):
    assert run(stopped_early, loader, files, timeout=200).unwrap() == ([], len(files))


def stopped_and_trained(loader, files) -> tuple:
    """Stop early beside TensorFlow, then train with Keras."""
    import tensorflow as tf

    tf.random.uniform((2, 2)).numpy()
    stopped = stopped_early(loader, files)
    import keras

    from helpers.accelerators import small_cnn

    model = small_cnn((*SIZE,), 3, 10)
    model.compile("adam", "sparse_categorical_crossentropy")
    batches = loaded(loader)(files, image_size=SIZE, batch_size=16)
    history = model.fit(batches, epochs=3, verbose=0)
    assert keras.backend.backend() == "tensorflow"
    return stopped, history.history["loss"]


@one_of_each
def test_keras_trains_from_it_and_nothing_is_left_beside_tensorflow(loader, files):
    stopped, losses = run(stopped_and_trained, loader, files, timeout=200).unwrap()
    assert stopped == ([], len(files))
    assert len(losses) == 3
    assert np.isfinite(losses).all()
