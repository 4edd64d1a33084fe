"""What `tf_data_fast` and `tf_data_packed` do beyond the promises: sizes, broken files, orders, arrays, workers."""

from __future__ import annotations

import gc
import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_image
from PIL import Image

from helpers.files import usable_cores
from helpers.folders import ImageFiles, course_images
from helpers.images import jpeg_size, read_image, reduction
from helpers.pipelines import PIPELINES
from helpers.sandbox import run

SIZE = (64, 80)
NAMES = ("tf_data_fast", "tf_data_packed")
SOUND = ("jpeg", "progressive", "portrait", "tiny", "grayscale", "cmyk", "webp")
BROKEN = {
    "truncated": "truncated JPEG",
    "truncated in the header": "truncated JPEG",
    "empty": "an empty file",
    "html": "cannot decode",
    "missing": "No such file",
}


@pytest.fixture(autouse=True)
def packs_stay_here(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PACKED", str(tmp_path / "packs"))


# ---- sizes -----------------------------------------------------------------------------------------------------------


def jpeg(image: np.ndarray, **settings) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="JPEG", **{"quality": 95, **settings})
    return content.getvalue()


def with_thumbnail(whole: bytes, thumbnail: bytes) -> bytes:
    """Put a thumbnail into an EXIF segment at the beginning, as cameras do."""
    segment = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail
    return whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]


def test_the_size_is_that_of_the_image():
    landscape, portrait, tiny = (draw_image(n, size) for n, size in ((1, (480, 640)), (2, (640, 427)), (3, (9, 7))))
    whole = jpeg(landscape)
    cases = {
        "baseline": (whole, ((480, 640), 2)),
        "progressive": (jpeg(landscape, progressive=True), ((480, 640), 2)),
        "optimised": (jpeg(landscape, optimize=True), ((480, 640), 2)),
        "portrait": (jpeg(portrait), ((640, 427), 2)),
        "tiny": (jpeg(tiny), ((9, 7), 1)),
        "with a thumbnail": (with_thumbnail(whole, jpeg(tiny)), ((480, 640), 2)),
        "rotated by its header": (jpeg(landscape, exif=rotated()), ((480, 640), 2)),
        "with a comment": (jpeg(landscape, comment=b"\xff\xc0 looks like a frame"), ((480, 640), 2)),
        "with a byte that fills": (whole[:2] + b"\xff" + whole[2:], ((480, 640), 2)),
        "large": (jpeg(draw_image(4, (1800, 1900))), ((1800, 1900), 8)),
        "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(50), ((0, 0), 1)),
        "empty": (b"", ((0, 0), 1)),
        "no more than a start": (b"\xff\xd8", ((0, 0), 1)),
        "cut in the header": (whole[:30], ((0, 0), 1)),
        "noise after the start": (b"\xff\xd8" + bytes(range(200)), ((0, 0), 1)),
        "a segment of no length": (b"\xff\xd8\xff\xe0\0\0" + bytes(50), ((0, 0), 1)),
    }
    found = {name: (jpeg_size(data), reduction(jpeg_size(data), (224, 224))) for name, (data, _) in cases.items()}
    assert found == {name: expected for name, (_, expected) in cases.items()}


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def test_a_side_may_be_a_tenth_too_small_and_no_more():
    cases = {(360, 180): 2, (359, 180): 1, (360, 179): 1, (720, 360): 4, (1440, 720): 8, (9000, 9000): 8, (50, 50): 1}
    assert {size: reduction(size, (200, 100)) for size in cases} == cases


# ---- files of every kind ---------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path) -> dict[str, Path]:
    """A file of each kind, all of them under names that end in .jpg."""
    image = draw_image(7, (160, 200))
    names = {kind: tmp_path / f"{kind.replace(' ', '-')}.jpg" for kind in (*SOUND, *BROKEN)}
    whole = jpeg(image)
    contents = {
        "jpeg": whole,
        "progressive": jpeg(image, progressive=True),
        "portrait": jpeg(np.ascontiguousarray(image.transpose(1, 0, 2))),
        "tiny": jpeg(image[:20, :16]),
        "truncated": whole[: len(whole) // 2],
        "truncated in the header": whole[:30],
        "empty": b"",
        "html": b"<html>404 Not Found</html>" * 100,
    }
    for kind, content in contents.items():
        names[kind].write_bytes(content)
    Image.fromarray(image).convert("L").save(names["grayscale"], format="JPEG", quality=95)
    Image.fromarray(image).convert("CMYK").save(names["cmyk"], format="JPEG", quality=95)
    Image.fromarray(image).save(names["webp"], format="WEBP", lossless=True)
    return names


def read_each(name: str, paths: dict[str, Path], channels: int) -> dict[str, np.ndarray | str]:
    """Return each file's pixels, or the text of its error."""
    found = {}
    for kind, path in paths.items():
        files = ImageFiles((str(path),), np.array([0]), ("only",))
        try:
            batches = PIPELINES[name](files, image_size=SIZE, channels=channels).as_numpy_iterator()
            ((images, _labels),) = batches
            found[kind] = images[0].copy()
        except Exception as error:
            found[kind] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("name", NAMES)
def test_sound_files_are_decoded_and_broken_ones_named(name, paths):
    found = read_each(name, paths, 3)
    for kind in SOUND:
        assert isinstance(found[kind], np.ndarray), found[kind]
        assert (found[kind].shape, found[kind].dtype) == ((*SIZE, 3), np.uint8)
        expected = read_image(str(paths[kind]), image_size=SIZE)
        assert np.abs(found[kind].astype(int) - expected).mean() < (4 if name == "tf_data_fast" else 0.01), kind
    for kind, what in BROKEN.items():
        assert isinstance(found[kind], str), f"{kind} was delivered as if it were whole"
        assert paths[kind].name in found[kind]
        assert what in found[kind]


@pytest.mark.parametrize("name", NAMES)
def test_one_channel(name, paths):
    sound = {kind: paths[kind] for kind in ("jpeg", "grayscale", "webp")}
    for kind, image in read_each(name, sound, 1).items():
        assert not isinstance(image, str), image
        assert image.shape == (*SIZE, 1)
        expected = read_image(str(sound[kind]), image_size=SIZE, channels=1)
        assert np.abs(image.astype(int) - expected).mean() < 4, kind


# ---- orders ----------------------------------------------------------------------------------------------------------


def epochs(name: str, files: ImageFiles, **settings) -> dict:
    """Return the row numbers and the sums of pixels of two epochs, and how many batches were promised."""
    files = ImageFiles(files.paths, np.arange(len(files)), files.paths)
    dataset = PIPELINES[name](files, **{"image_size": (16, 16), "batch_size": 8, **settings})
    seen = [[(y.tolist(), x.sum((1, 2, 3)).tolist()) for x, y in dataset.as_numpy_iterator()] for _ in range(2)]
    return {
        "length": len(dataset),
        "autotune": dataset.options().autotune.enabled,
        "rows": [[row for rows, _ in epoch for row in rows] for epoch in seen],
        "pixels": [[total for _, totals in epoch for total in totals] for epoch in seen],
    }


def epochs_of_each(cases: list[tuple[str, ImageFiles, dict]]) -> list[dict]:
    return [epochs(name, files, **settings) for name, files, settings in cases]


def test_orders_and_crops_come_again_in_another_process_and_with_other_workers(files, tmp_path):
    some = course_images(60).take(24)
    augmented = {"seed": 3, "augment": True, "image_size": (112, 112), "folder": tmp_path / "pack"}
    cases = [*((name, files, {"seed": 5}) for name in NAMES), ("tf_data_packed", some, augmented)]
    here = epochs_of_each(cases)
    cases[0] = ("tf_data_fast", files, {"seed": 5, "workers": 5})
    there = run(epochs_of_each, cases, timeout=200).unwrap()
    for (name, _, _), first, again in zip(cases, here, there, strict=True):
        assert first == again, name
        assert first["autotune"] is False, name
        assert first["rows"][0] != first["rows"][1], name
    for name, first in zip(NAMES, here, strict=False):
        assert first["length"] == 5, name
        assert [sorted(order) for order in first["rows"]] == [list(range(40))] * 2, name
    one, other = (dict(zip(*parts, strict=True)) for parts in zip(here[2]["rows"], here[2]["pixels"], strict=True))
    assert sum(one[row] != other[row] for row in range(24)) > 18, "new crops in the next epoch"


def test_the_place_of_a_crop_and_its_mirroring_are_drawn_independently():
    from helpers.pipelines.tf_data_packed import crop_and_flip

    row, out, drawn = np.zeros((64, 64, 3), np.uint8), np.empty((32, 32, 3), np.uint8), []
    row[..., 0], row[..., 1] = np.mgrid[:64, :64]
    for key in range(2000):
        crop_and_flip(row, out, np.random.default_rng(key))
        (top, left), right = out[0, 0, :2], out[0, -1, 1]
        drawn.append((int(top), int(min(left, right)), left > right))
    draws = np.array(drawn).T
    assert [len(set(part)) for part in draws] == [33, 33, 2]
    assert np.abs(np.corrcoef(draws)[np.triu_indices(3, 1)]).max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_one_row_and_a_batch_larger_than_the_list(name, files):
    assert epochs(name, files.take(1))["rows"] == [[0], [0]]
    assert epochs(name, files.take(5), batch_size=100)["length"] == 1


# ---- the arrays of batches -------------------------------------------------------------------------------------------


def taken_uncopied() -> list[bool]:
    import tensorflow as tf

    from helpers.pipelines.tf_data_fast import aligned_array

    found = []
    for shape in ((3, 5), (32, 16, 16, 3), (1,)):
        array = aligned_array(shape)
        array[...] = 0
        assert (array.shape, array.dtype, array.ctypes.data % 64) == (shape, np.uint8, 0)
        numbers = tf.data.Dataset.range(1)
        tensor = next(iter(numbers.map(lambda _, array=array: tf.numpy_function(lambda: array, [], tf.uint8))))
        array[...] = 7
        found.append(bool(tf.reduce_all(tensor == 7)))
    return found


def test_an_array_is_aligned_and_tensorflow_takes_it_uncopied():
    assert taken_uncopied() == [True] * 3


def batches_that_are_kept(files: ImageFiles, folder: Path) -> tuple[bool, int]:
    """Hold every batch of two epochs, and compare them afterwards with what they were when they came."""
    import tensorflow as tf

    from helpers.pipelines.tf_data_packed import tf_data_packed

    dataset = tf_data_packed(files, image_size=(32, 32), batch_size=4, folder=folder)
    kept = [(images, np.array(images)) for _ in range(2) for images, _ in dataset]
    kept += [(images, images.copy()) for _ in range(2) for images, _ in dataset.as_numpy_iterator()]
    kept += [(images[:2], np.array(images[:2])) for images, _ in dataset.map(lambda x, y: (tf.reverse(x, [0]), y))]
    kept += [(np.asarray(images), np.array(images)) for images, _ in dataset]
    kept += [(images[1:, ::2], images[1:, ::2].copy()) for images, _ in dataset.as_numpy_iterator()]
    gc.collect()
    for _ in dataset.repeat(3):
        pass
    return all(np.array_equal(np.asarray(images), then) for images, then in kept), len(kept)


def test_a_batch_that_somebody_keeps_never_changes(files, tmp_path):
    assert batches_that_are_kept(files, tmp_path / "pack") == (True, 70)


def arrays_made(count: int) -> int:
    """Return how many arrays the batches of three epochs took."""
    from unittest.mock import patch

    from helpers.pipelines import tf_data_fast as module

    def fill(rows, key, images):
        images[...] = rows[0]
        return rows

    with patch.object(module, "aligned_array", side_effect=module.aligned_array) as made:
        batches = module.map_rows(module.rows_of_batches(count, 4, shuffle=True, seed=0), fill, (8, 8, 3), 2)
        for _ in range(3):
            assert sum(len(rows) for _, rows in batches) == count
    return made.call_count


def test_arrays_are_filled_again_when_tensorflow_gives_them_back():
    assert arrays_made(403) < 30  # of 303 batches


# ---- workers ---------------------------------------------------------------------------------------------------------


def most_at_once(workers: int, count: int) -> tuple[list[int], int]:
    """Return the rows that arrive, and how many calls waited at the same time, as for slow storage."""
    import time

    from helpers.pipelines.tf_data_fast import map_rows, rows_of_batches

    waiting, most, lock = 0, 0, threading.Lock()

    def fill(rows, key, images):
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.2)
        with lock:
            waiting -= 1
        return rows

    batches = map_rows(rows_of_batches(count, 1, shuffle=False, seed=0), fill, (4, 4, 3), workers)
    rows = [int(rows[0]) for _, rows in batches]
    return rows, most


def test_more_workers_than_cores_wait_at_the_same_time():
    workers = 4 * usable_cores()
    rows, most = most_at_once(workers, 3 * workers)
    assert rows == list(range(3 * workers))
    assert usable_cores() < most <= workers


def test_a_worker_for_each_core_by_default(files):
    from helpers.pipelines.tf_data_fast import tf_data_fast

    assert tf_data_fast(files).options().threading.private_threadpool_size is None
    many = 2 * usable_cores()
    assert tf_data_fast(files, workers=many).options().threading.private_threadpool_size == many


# ---- nothing is left -------------------------------------------------------------------------------------------------


def closures_left(files: ImageFiles, folder: Path) -> dict[str, int]:
    """Build, read and forget datasets; count the lists and packs that still live."""
    import weakref

    from helpers.packing import pack
    from helpers.pipelines.tf_data_fast import tf_data_fast
    from helpers.pipelines.tf_data_packed import packed_batches

    alive = {"tf_data_fast": [], "packed_batches": []}
    for _ in range(5):
        own = files.take(20)
        packed = pack(files, folder, image_size=(16, 16))
        alive["tf_data_fast"].append(weakref.ref(own))
        alive["packed_batches"].append(weakref.ref(packed))
        for dataset in (tf_data_fast(own, image_size=(16, 16)), packed_batches(packed)):
            for _ in dataset:
                pass
            next(iter(dataset))  # stopped early
    del own, packed, dataset, _
    gc.collect()
    return {name: sum(one() is not None for one in ones) for name, ones in alive.items()}


def test_nothing_is_kept_when_a_dataset_is_gone(files, tmp_path):
    assert closures_left(files, tmp_path / "pack") == {"tf_data_fast": 0, "packed_batches": 0}


def read_after_the_dataset_is_gone(files: ImageFiles) -> list[int]:
    """What holds on to a dataset holds on to the function that reads: an iterator, and what is built on top."""
    from helpers.pipelines.tf_data_fast import tf_data_fast

    def built():
        return tf_data_fast(files, image_size=(16, 16), batch_size=8)

    iterator = iter(built())
    on_top = built().map(lambda images, labels: (images, labels)).repeat(2)
    gc.collect()
    return [sum(1 for _ in iterator), sum(1 for _ in on_top), sum(1 for _ in built())]


def test_an_iterator_and_what_is_built_on_top_keep_the_reader(files):
    assert read_after_the_dataset_is_gone(files) == [5, 10, 5]


def memory_of_packed(folder: Path, passes: int) -> float:
    from helpers.packed import Packed
    from helpers.sandbox import memory

    start_mib = memory.current().held_mib
    packed = Packed(folder)
    for _ in range(passes):
        for start in range(0, len(packed) - 32, 32):
            packed.read(range(start, start + 32))
    return memory.current().held_mib - start_mib


def test_reading_a_pack_holds_no_pages(tmp_path):
    from helpers.packing import pack

    files = course_images(60).repeat_to(600)  # 84 MiB of rows
    pack(files, tmp_path / "pack", rows_per_shard=100)
    assert run(memory_of_packed, tmp_path / "pack", 3, timeout=200).unwrap() < 20


def test_a_shard_that_was_cut_is_found_before_it_is_read(files, tmp_path):
    from helpers.packing import pack

    pack(files, tmp_path / "pack", image_size=(16, 16))
    shard = tmp_path / "pack" / "shard-00000.raw"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"shard-00000\.raw"):
        PIPELINES["tf_data_packed"](files, image_size=(16, 16), folder=tmp_path / "pack")


# ---- a full disk -----------------------------------------------------------------------------------------------------

KEEP_ON_A_FULL_DISK = """
import json, os, shutil
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from pathlib import Path

numbers = tf.data.Dataset.range(100)
rows = numbers.map(lambda n: tf.random.stateless_uniform((25_000,), (0, n), None, None, tf.uint64))  # 20 MB
ballast = Path(disk, "ballast")
found = {}
for name, keep in {"cache": tf.data.Dataset.cache, "snapshot": tf.data.Dataset.snapshot}.items():
    folder = Path(disk, name)
    folder.mkdir()
    ballast.write_bytes(bytes(48_000_000))
    dataset, error = keep(rows, str(folder / "rows")), ""
    try:
        for _ in dataset:
            pass
    except tf.errors.ResourceExhaustedError as raised:
        error = raised.message
    del dataset
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ballast.unlink()
    again = sum(1 for _ in keep(rows, str(folder / "rows")))
    found[name] = {"error": error, "left": left, "again": again}
    shutil.rmtree(folder)
print(json.dumps(found))
"""


def test_keeping_on_a_full_disk_names_the_file_and_starts_again_when_there_is_room(on_a_small_disk):
    """As lesson 07, in depth, says: a cache clears up after itself, a snapshot does not."""
    found = json.loads(on_a_small_disk(KEEP_ON_A_FULL_DISK, 60).splitlines()[-1])
    for name, one in found.items():
        assert "No space left on device" in one["error"], name
        assert f"disk/{name}/rows" in one["error"]
        assert one["again"] == 100
    assert found["cache"]["left"] == 0
    assert found["snapshot"]["left"] > 10_000_000
