"""What `tf_data` does beyond the seven promises: files of every kind, seeds, what a recipe holds, resuming."""

from __future__ import annotations

import os
import pickle
import shutil
import traceback
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_image
from PIL import Image

from helpers.files import usable_cores
from helpers.folders import ImageFiles
from helpers.images import read_image
from helpers.pipelines import PIPELINES
from helpers.sandbox import run

SIZE = (64, 80)
ANIMATED = ("animated gif", "animated png", "animated webp")  # the first picture counts
SOUND = (
    "jpeg",
    "progressive",
    "grayscale",
    "cmyk",
    "trailing bytes",
    "png",
    "gif",
    "bmp",
    "gray bmp",
    "webp",
    *ANIMATED,
    "name",
)
BROKEN = {  # what the error says beside the file's name
    "truncated": "truncated JPEG",
    "truncated in the header": "truncated JPEG",
    "truncated with a thumbnail": "truncated JPEG",
    "truncated png": "OpenCV cannot decode",
    "no bytes": "empty file",
    "one byte": "OpenCV cannot decode",
    "two bytes": "truncated JPEG",
    "html": "OpenCV cannot decode",
    "missing": "No such file",
    "folder": "",
}


def with_a_thumbnail(whole: bytes) -> bytes:
    """Return a JPEG with an APP1 segment that holds another one, end marker included, as cameras write it."""
    body = b"Exif\0\0" + cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    return whole[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + whole[2:]


def write_files(folder: Path) -> dict[str, Path]:
    """Write a file of each kind, all of them under names that end in .jpg."""
    image = Image.fromarray(draw_image(7, (160, 200)))
    names = {kind: folder / f"{kind.replace(' ', '-')}.jpg" for kind in (*SOUND, *BROKEN)}
    names["name"] = folder / "größer als 猫 ' $x.jpg"
    formats = {"png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WEBP"}
    for kind, name in formats.items():
        image.save(names[kind], format=name)
    for kind in ("jpeg", "name"):
        image.save(names[kind], format="JPEG", quality=95)
    image.save(names["progressive"], format="JPEG", quality=95, progressive=True)
    image.convert("L").save(names["grayscale"], format="JPEG", quality=95)
    image.convert("L").save(names["gray bmp"], format="BMP")
    for kind in ANIMATED:
        more = [Image.fromarray(draw_image(8, (160, 200)))]
        image.save(names[kind], format=kind.split()[1].upper(), save_all=True, append_images=more)
    image.convert("CMYK").save(names["cmyk"], format="JPEG", quality=95)
    whole, png = names["jpeg"].read_bytes(), names["png"].read_bytes()
    contents = {
        "trailing bytes": whole + b"\0" * 50,
        "truncated": whole[: len(whole) // 2],
        "truncated in the header": whole[:30],
        "truncated with a thumbnail": with_a_thumbnail(whole)[: len(whole) // 2],
        "truncated png": png[: len(png) // 2],
        "no bytes": b"",
        "one byte": b"\xff",
        "two bytes": b"\xff\xd8",
        "html": b"<html>404 Not Found</html>" * 100,
    }
    for kind, content in contents.items():
        names[kind].write_bytes(content)
    names["folder"].mkdir()
    return names


def read_each(paths: dict[str, Path], channels: int) -> dict[str, np.ndarray | str]:
    """Return each file's pixels, or the text of its error."""
    from helpers.pipelines.tf_data import tf_data

    found = {}
    for kind, path in paths.items():
        files = ImageFiles((str(path),), np.array([0]), ("only",))
        try:
            ((images, _labels),) = tf_data(files, image_size=SIZE, channels=channels).as_numpy_iterator()
            found[kind] = images[0]
        except Exception as error:
            found[kind] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def read(paths):
    """What came of each file, in colour."""
    return read_each(paths, 3)


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_file_is_decoded_by_its_bytes(read, paths, kind):
    image = read[kind]
    assert isinstance(image, np.ndarray), image
    assert image.shape == (*SIZE, 3)
    assert image.dtype == np.uint8
    expected = read_image(str(paths["grayscale" if kind in ("grayscale", "gray bmp") else "jpeg"]), image_size=SIZE)
    limit = 12 if "gif" in kind else 4  # a GIF has 256 colours
    assert np.abs(image.astype(int) - expected).mean() < limit


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(read, paths, kind):
    assert isinstance(read[kind], str), "delivered as if it were whole"
    assert paths[kind].name in read[kind]
    assert BROKEN[kind] in read[kind]


def test_wherever_a_file_with_a_thumbnail_is_cut_off_it_is_not_delivered(paths, tmp_path):
    whole = with_a_thumbnail(paths["jpeg"].read_bytes())
    end = whole.index(b"\xff\xd9") + 2  # of the thumbnail
    cuts = {end - 2, end - 1, end, end + 1, end + 2, end + 500, (end + len(whole)) // 2, len(whole) - 2, len(whole) - 1}
    broken = {str(cut): tmp_path / f"{cut}.jpg" for cut in cuts}
    for cut, path in broken.items():
        path.write_bytes(whole[: int(cut)])
    found = read_each(broken, 3)
    assert all(isinstance(error, str) for error in found.values()), found
    # Cut off just behind its thumbnail, a file ends as a whole one does, and only the decoder sees that it is not.
    assert {cut for cut, error in found.items() if f"{cut}.jpg" not in error} <= {str(end)}


def test_one_channel(paths):
    sound = {kind: paths[kind] for kind in ("jpeg", "grayscale", "png", "bmp", "gray bmp", "webp")}
    for kind, image in read_each(sound, 1).items():
        assert not isinstance(image, str), image
        assert image.shape == (*SIZE, 1)
        expected = read_image(str(sound[kind]), image_size=SIZE, channels=1)
        assert np.abs(image.astype(int) - expected).mean() < 4


def test_only_the_broken_one_of_many_is_named(files, tmp_path):
    copies = [shutil.copy(path, tmp_path / f"{number:03d}.jpg") for number, path in enumerate(files.paths)]
    os.truncate(copies[17], os.path.getsize(copies[17]) // 3)
    broken = ImageFiles(tuple(map(str, copies)), files.labels, files.class_names)
    with pytest.raises(Exception, match=r"017\.jpg") as raised:
        whole_epoch(broken)
    assert "016.jpg" not in "".join(traceback.format_exception(raised.value))


def whole_epoch(files, **settings):
    from helpers.pipelines.tf_data import tf_data

    batches = tf_data(files, **{"image_size": SIZE, "batch_size": 8, **settings}).as_numpy_iterator()
    return [labels.tolist() for _, labels in batches]


def row_numbers(files):
    """Return files whose labels are their row numbers."""
    return ImageFiles(files.paths, np.arange(len(files)), files.paths)


def orders(files, seed, seed_for_all=None):
    """Return the row numbers of three epochs, where the program has set a seed for all of TensorFlow, or none."""
    import tensorflow as tf

    from helpers.pipelines.tf_data import tf_data

    tf.random.set_seed(seed_for_all)
    dataset = tf_data(row_numbers(files), image_size=(8, 8), batch_size=8, seed=seed)
    try:
        return [np.concatenate([labels for _, labels in dataset.as_numpy_iterator()]).tolist() for _ in range(3)]
    finally:
        tf.random.set_seed(None)


def several_orders(files):
    return orders(files, 5), orders(files, 6), orders(files, 5, seed_for_all=3), orders(files, 5)


def test_orders_come_again_in_another_process(files):
    here, there = several_orders(files), run(several_orders, files, timeout=200).unwrap()
    assert here == there
    five, six, _under_a_seed_for_all, five_again = here
    assert five == five_again
    assert len({tuple(order) for order in five + six}) == 6
    assert {tuple(sorted(order)) for order in five} == {tuple(range(len(files)))}


def recipe(files):
    """Return what the dataset of some files holds, by kind; `values` counts what its functions have captured."""
    from helpers.pipelines.tf_data import tf_data

    dataset = tf_data(files, image_size=(8, 8), batch_size=8)
    found = {"length": len(dataset), "autotune": dataset.options().autotune.enabled, "values": 0}
    kinds, left = [], [dataset]
    while left:
        one = left.pop()
        kinds.append(type(one).__name__)
        for function in one._functions():
            found["values"] += sum(int(np.prod(value.shape)) for value in function.function.captured_inputs)
        left += one._inputs()
    return {**found, "kinds": kinds}


def test_a_recipe_captures_nothing_and_is_left_as_written(files):
    found = recipe(files)
    assert found["values"] == 0
    assert found["autotune"] is False
    assert found["length"] == 5
    assert any("ParallelMap" in kind for kind in found["kinds"])


def test_no_files_no_batches(files):
    assert whole_epoch(files.take(0)) == []


def test_a_batch_larger_than_the_list(files):
    assert [len(batch) for batch in whole_epoch(files, batch_size=100)] == [40]


def test_the_pipeline_travels_to_another_process(files):
    from helpers.measure import measure

    pipeline = pickle.loads(pickle.dumps(partial(PIPELINES["tf_data"], seed=3)))
    one = measure(pipeline, files, image_size=(32, 32), batch_size=8, growth=False)
    assert (one.outcome, one.images_done, one.dtype) == ("finished", 40, "uint8")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin a process to cores")
def test_calls_follow_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr("helpers.files.control_groups", lambda controller: [])  # no quota
    cores = os.sched_getaffinity(0)
    assert usable_cores() == len(cores)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


def part_of_epoch(files, folder, batches):
    """Go on from the checkpoint in the folder, if there is one; save another after so many batches."""
    import tensorflow as tf

    from helpers.pipelines.tf_data import tf_data

    iterator = iter(tf_data(row_numbers(files), image_size=(8, 8), batch_size=4))
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(iterator=iterator), folder, max_to_keep=1)
    manager.restore_or_initialize()
    rows = []
    for _, labels in iterator:
        rows += labels.numpy().tolist()
        if len(rows) == 4 * batches:
            manager.save()
            break
    return rows


def test_an_epoch_goes_on_from_a_checkpoint(files, tmp_path):
    parts = [run(part_of_epoch, files, str(tmp_path), 3, timeout=200).unwrap()]  # in another process
    parts += [part_of_epoch(files, str(tmp_path), batches) for batches in (2, 100)]
    assert [len(part) for part in parts] == [12, 8, 20]
    whole = part_of_epoch(files, str(tmp_path / "none"), 100)
    assert [row for part in parts for row in part] == whole


def decoded(path):
    """Return an image decoded by the module's own function, outside of a dataset."""
    import tensorflow as tf

    from helpers.pipelines.tf_data import decode

    return decode(tf.io.read_file(path), SIZE, 3).numpy()


def test_rounded_and_not_cut_off(tmp_path):
    path = str(tmp_path / "ramp.png")
    ramp = np.repeat(np.linspace(0, 255, 300).astype(np.uint8)[None, :, None], 3, axis=2)
    cv2.imwrite(path, np.repeat(ramp, 100, axis=0))
    image, expected = decoded(path), read_image(path, image_size=SIZE)
    assert abs((image.astype(int) - expected).mean()) < 0.25  # cut off, it would be darker by half a level
