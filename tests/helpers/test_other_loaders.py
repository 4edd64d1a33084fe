"""The other loaders of lesson 11: found where they are installed, and kept to the promises of the course."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest

from helpers.benchmark.other_loaders import LOADERS, Loader, epoch_order, installed, is_installed, write_shards
from helpers.contract import check_pipeline
from helpers.epochs import Epochs
from helpers.folders import ImageFiles, course_images, find_images
from helpers.pipelines import PIPELINES
from helpers.runs import loaded
from helpers.sandbox import run

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 80)
HERE = installed()


def needs(name: str):
    packages, _ = LOADERS[name]
    missing = [package for package in packages if not is_installed(package)]
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"))


each_loader = pytest.mark.parametrize("name", [needs(name) for name in LOADERS])


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- what is installed -----------------------------------------------------------------------------------------------


def test_without_any_package_the_module_is_imported_and_the_list_is_empty():
    hidden = sorted({package.partition(".")[0] for packages, _ in LOADERS.values() for package in packages})
    found = python(
        f"""
        import sys
        sys.modules.update(dict.fromkeys({hidden}))
        from helpers.benchmark.other_loaders import LOADERS, installed
        print(len(LOADERS), installed())
        """
    )
    assert found == f"{len(LOADERS)} {{}}"


def test_a_part_of_a_package_is_enough_to_be_missing():
    found = python(
        """
        import sys
        sys.modules["torch"] = None
        from helpers.benchmark.other_loaders import installed
        print(sorted({"torch", "webdataset"} & set(installed())))
        """
    )
    assert found == "[]"


def test_asking_what_is_installed_imports_nothing():
    found = python(
        """
        import sys
        from helpers.benchmark.other_loaders import installed
        installed()
        print(sorted({"torch", "grain", "webdataset", "nvidia.dali", "spdl.pipeline", "tensorflow"} & set(sys.modules)))
        """
    )
    assert found == "[]"


def test_the_list_is_right(tmp_path, monkeypatch):
    for name in ("aaa_there", "aaa_parent"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    some = {
        "there": (("aaa_there",), print),
        "absent": (("aaa_absent",), print),
        "one of two": (("aaa_there", "aaa_absent"), print),
        "part of what is there": (("aaa_parent.part",), print),
        "part of what is absent": (("aaa_absent.part",), print),
    }
    monkeypatch.setitem(installed.__globals__, "LOADERS", some)
    assert list(installed()) == ["there"]
    assert installed()["there"].load() is print


def test_a_loader_that_is_missing_says_what_it_needs(files):
    with pytest.raises(ModuleNotFoundError, match="aaa_absent"):
        Loader("absent", ("aaa_absent",), print)(files)


def test_none_is_a_pipeline_of_the_course():
    assert not set(LOADERS) & set(PIPELINES)


# ---- what they share -------------------------------------------------------------------------------------------------


def test_orders_are_new_each_epoch_and_can_be_had_again():
    orders = [epoch_order(100, True, seed, number).tolist() for seed, number in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[1] == epoch_order(100, True, 0, 1).tolist()
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert epoch_order(5, False, 0, 3).tolist() == [0, 1, 2, 3, 4]


def test_batches_of_nothing_are_refused():
    with pytest.raises(ValueError, match="batch_size is 0: give at least 1"):
        Epochs(iter, 10, 0)


def test_shards_hold_the_files_themselves_where_the_list_has_links_or_names_one_twice(files, tmp_path):
    import json
    import tarfile

    link = tmp_path / "link.jpg"
    link.symlink_to(files.paths[1])
    paths = (files.paths[0], files.paths[0], str(link))
    some = ImageFiles(paths, np.array([3, 3, 4]), files.class_names)
    (name,) = write_shards(some, np.array([2, 0, 1]), str(tmp_path), 1)
    with tarfile.open(tmp_path / name) as tar:
        contents = [(entry.name, tar.extractfile(entry).read()) for entry in tar]
    assert [name for name, _ in contents[::2]] == ["000000002.image", "000000000.image", "000000001.image"]
    first, second = (Path(path).read_bytes() for path in files.paths[:2])
    assert [data for _, data in contents[::2]] == [second, first, first]
    assert [json.loads(data) for _, data in contents[1::2]] == [
        {"path": str(link), "label": 4},
        {"path": files.paths[0], "label": 3},
        {"path": files.paths[0], "label": 3},
    ]


# ---- each installed one ----------------------------------------------------------------------------------------------


@each_loader
@pytest.mark.slow  # lesson 11 asks the same of each loader, and shows the answer
@pytest.mark.timeout(900)
def test_the_promises(name):
    report = check_pipeline(HERE[name], course_images(60), tolerance=28)
    assert report.ok, str(report)


def epochs_of(loader, files, count, **settings) -> list:
    """Return images and labels of some epochs, each put together."""
    batches = loaded(loader)(files, image_size=SIZE, **settings)
    epochs = [list(batches) for _ in range(count)]
    joined = [[np.concatenate([batch[part] for batch in epoch]) for part in (0, 1)] for epoch in epochs]
    return [len(batches), *joined]


@each_loader
def test_the_pixels_are_those_of_the_reduced_decode(name, files):
    from helpers.benchmark.other_loaders import Images

    _, (images, labels) = run(epochs_of, HERE[name], files, 1, shuffle=False, batch_size=16, timeout=200).unwrap()
    expected = np.stack([Images(files, SIZE, 3)[row][0] for row in range(len(files))])
    assert labels.tolist() == files.labels.tolist()
    apart = np.abs(images.astype(int) - expected).mean(axis=(1, 2, 3)).max()
    assert apart == 0 if name != "dali" else apart < 28


@each_loader
def test_grayscale_and_more_workers_than_batches(name, files):
    settings = {"channels": 1, "batch_size": 64, "workers": 4, "seed": 5}
    count, first, second = run(epochs_of, HERE[name], files, 2, **settings, timeout=200).unwrap()
    assert count == 1
    assert first[0].shape == (len(files), *SIZE, 1)
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == sorted(files.labels.tolist())


@each_loader
def test_more_workers_than_files(name, files):
    some = files.take(3)
    settings = {"batch_size": 2, "workers": 4}
    count, *epochs = run(epochs_of, HERE[name], some, 2, **settings, timeout=200).unwrap()
    assert count == 2
    assert [sorted(labels.tolist()) for _, labels in epochs] == [sorted(some.labels.tolist())] * 2


def epochs_of_nothing(loader) -> list:
    return list(loaded(loader)(ImageFiles((), np.array([], np.int64), ("a",))))


@each_loader
def test_no_files_are_no_batches(name):
    assert run(epochs_of_nothing, HERE[name], timeout=100).unwrap() == []


def messages_of_broken_files(loader, cases) -> dict[str, str]:
    messages = {}
    for kind, files in cases.items():
        messages[kind] = "no error"
        try:
            batches = loaded(loader)(files, image_size=SIZE, batch_size=8)
            for _ in range(2):
                for _batch in batches:
                    pass
        except Exception as error:
            messages[kind] = str(error)
    return messages


@each_loader
def test_a_broken_file_is_named_in_the_message_itself(name, image_folder, tmp_path):
    cases, broken = {}, {}
    for kind in ("truncated", "empty", "html", "gone"):
        cases[kind] = find_images(shutil.copytree(image_folder, tmp_path / kind))
        broken[kind] = Path(cases[kind].paths[23])
    broken["truncated"].write_bytes(broken["truncated"].read_bytes()[:900])
    broken["empty"].write_bytes(b"")
    broken["html"].write_bytes(b"<html>404</html>" * 100)
    broken["gone"].unlink()
    messages = run(messages_of_broken_files, HERE[name], cases, timeout=200).unwrap()
    assert {kind: str(path) in messages[kind] for kind, path in broken.items()} == dict.fromkeys(broken, True), messages


def stopped_early(loader, files) -> tuple[list, list, int]:
    """Stop after one batch; return the children and what is new in the temporary folder, and the labels of an epoch."""
    import gc
    import tempfile
    import time

    temporary = Path(tempfile.gettempdir())
    batches = loaded(loader)(files, image_size=SIZE, batch_size=4)
    for _images, _labels in batches:
        break
    count = sum(len(labels) for _, labels in batches)
    del batches, _images, _labels
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (left := workers_left()):
        time.sleep(0.1)
    return left, [path.name for path in temporary.glob("shards-*")], count


def workers_left() -> list[str]:
    """Return the command lines of child processes; those that Python itself keeps are left out."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [command for command in commands if "resource_tracker" not in command and "forkserver" not in command]


@each_loader
def test_nothing_is_left_after_stopping_early(name, files, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run(stopped_early, HERE[name], files, timeout=200).unwrap() == ([], [], len(files))


def stopped_and_trained(loader, files) -> tuple:
    """Stop early beside TensorFlow, then train with Keras."""
    import tensorflow as tf

    tf.random.uniform((2, 2)).numpy()
    stopped = stopped_early(loader, files)
    import keras

    from helpers.accelerators import small_cnn
    from helpers.pipelines.generator import forever

    model = small_cnn((*SIZE,), 3, 10)
    model.compile("adam", "sparse_categorical_crossentropy")
    batches = loaded(loader)(files, image_size=SIZE, batch_size=16)
    history = model.fit(forever(batches), steps_per_epoch=len(batches), epochs=3, verbose=0)
    assert keras.backend.backend() == "tensorflow"
    return stopped, history.history["loss"]


@each_loader
def test_keras_trains_from_it_and_nothing_is_left_beside_tensorflow(name, files, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    stopped, losses = run(stopped_and_trained, HERE[name], files, timeout=200).unwrap()
    assert stopped == ([], [], len(files))
    assert len(losses) == 3
    assert np.isfinite(losses).all()
