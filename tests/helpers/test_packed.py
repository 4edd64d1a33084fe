"""What `helpers/packed.py` and `data_scripts/pack_images.py` promise: nothing is lost or mixed, and all is named."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers import packing as module
from helpers.folders import ImageFiles, course_images, find_images
from helpers.images import read_image
from helpers.packed import Packed
from helpers.packing import pack

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"image_size": (24, 32), "rows_per_shard": 8}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Twenty-one photographs, in folders of their own so that tests may ask the script to pack them."""
    return course_images(60).take(21)


def copied(files, folder):
    paths = []
    for number, path in enumerate(files.paths):
        copy = folder / files.class_names[files.labels[number]] / f"{number:03d}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(path).read_bytes())
        paths.append(str(copy))
    return ImageFiles(tuple(paths), files.labels, files.class_names)


@pytest.fixture
def copies(files, tmp_path):
    """The same photographs as files that a test may break."""
    return copied(files, tmp_path / "images")


def tree(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def expected(files, rows=None, **settings):
    paths = files.paths if rows is None else [files.paths[row] for row in rows]
    return np.stack([read_image(path, image_size=SMALL["image_size"], **settings) for path in paths])


@pytest.mark.parametrize("channels", [3, 1])
def test_rows_are_the_images_and_numpy_alone_reads_them(files, tmp_path, channels):
    packed = pack(files, tmp_path / "pack", channels=channels, **SMALL)
    assert (len(packed), packed.image_size, packed.channels) == (21, (24, 32), channels)
    np.testing.assert_array_equal(packed.read(range(21)), expected(files, channels=channels))
    np.testing.assert_array_equal(packed.labels, files.labels)
    assert (packed.class_names, packed.names(), packed.skipped) == (files.class_names, list(files.paths), ())
    shards = sorted((tmp_path / "pack").glob("*.raw"))
    rows = [np.memmap(shard, np.uint8, "r").reshape(-1, 24, 32, channels) for shard in shards]
    assert [len(one) for one in rows] == [8, 8, 5]
    np.testing.assert_array_equal(np.concatenate(rows), expected(files, channels=channels))
    assert not list(packed.faults())


def test_rows_in_any_order(files, tmp_path):
    packed = pack(files, tmp_path / "pack", **SMALL)
    order = [20, 0, 7, 8, 7]
    images = expected(files, order)
    np.testing.assert_array_equal(packed.read(order), images)
    np.testing.assert_array_equal(packed.read(np.array(order)), images)
    np.testing.assert_array_equal(packed[8], images[3])
    assert not packed[8].flags.writeable
    for row in (21, -1):
        with pytest.raises(IndexError):
            packed[row]


def test_reading_in_threads_from_more_shards_than_may_be_open(files, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.packed._MAPPED_SHARDS", 3)
    packed = pack(files, tmp_path / "pack", image_size=(24, 32), rows_per_shard=1)
    images = expected(files)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    def read(seed):
        order = np.random.default_rng(seed).permutation(21)
        return np.array_equal(packed.read(order), images[order])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_two_processes_pack_into_one_folder(tmp_path):
    copied(course_images(60), folder := tmp_path / "images")
    arguments = (folder, "--to", tmp_path / "pack", "--size", 224, "--rows-per-shard", 10)
    runs = [finished(process) for process in [script(*arguments) for _ in range(3)]]
    assert [code for code, _, _ in runs] == [0, 0, 0], runs
    assert not list(Packed(tmp_path / "pack").faults())


def test_the_wait_for_another_process_has_an_end(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.2)
    (tmp_path / "pack").mkdir()
    with module._held(tmp_path / "pack"), pytest.raises(BlockingIOError, match="another process"):
        pack(files, tmp_path / "pack", **SMALL)


def test_it_can_be_pickled(files, tmp_path):
    packed = pickle.loads(pickle.dumps(pack(files, tmp_path / "pack", **SMALL)))
    np.testing.assert_array_equal(packed.read([3]), expected(files, [3]))


def test_a_second_call_writes_nothing(files, tmp_path):
    pack(files, tmp_path / "pack", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()}
    assert len(pack(files, tmp_path / "pack", **SMALL)) == 21
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()} == before


@pytest.mark.parametrize(
    "other",
    [{"image_size": (32, 24)}, {"channels": 1}, {"rows_per_shard": 9}, {"kind": "jpeg"}],
    ids=lambda other: next(iter(other)),
)
def test_settings_are_not_mixed(files, tmp_path, other):
    pack(files, tmp_path / "pack", **SMALL)
    before = tree(tmp_path / "pack")
    with pytest.raises(ValueError, match=next(iter(other))):
        pack(files, tmp_path / "pack", **{**SMALL, **other})
    assert tree(tmp_path / "pack") == before


def test_other_files_are_not_taken_for_these(files, copies, tmp_path):
    pack(copies, tmp_path / "pack", **SMALL)
    with pytest.raises(ValueError, match="files_sha256"):
        pack(copies.take(20), tmp_path / "pack", **SMALL)
    Path(copies.paths[3]).write_bytes(Path(copies.paths[4]).read_bytes())
    with pytest.raises(ValueError, match="files_sha256"):
        pack(copies, tmp_path / "pack", **SMALL)


def test_a_folder_with_other_things_in_it_is_left_alone(files, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        pack(files, tmp_path, **SMALL)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
    os.truncate(path, 0)


def replace(path):
    Path(path).write_bytes(b"<html>404 Not Found</html>")


@pytest.mark.parametrize("damage", [truncate, empty, replace, os.unlink])
def test_a_broken_file_is_named_and_then_only_its_shard_is_made_again(copies, tmp_path, damage, monkeypatch):
    whole = Path(copies.paths[12]).read_bytes()
    times = os.stat(copies.paths[12])
    damage(copies.paths[12])
    with pytest.raises((ValueError, OSError), match=r"012\.jpg"):
        pack(copies, tmp_path / "pack", **SMALL)
    with pytest.raises(FileNotFoundError, match="interrupted"):
        Packed(tmp_path / "pack")
    Path(copies.paths[12]).write_bytes(whole)
    os.utime(copies.paths[12], ns=(times.st_atime_ns, times.st_mtime_ns))
    read = []
    monkeypatch.setattr(
        module, "read_image", lambda path, **settings: read.append(path) or read_image(path, **settings)
    )
    packed = pack(copies, tmp_path / "pack", **SMALL)
    assert sorted(read) == list(copies.paths[8:])  # the first shard of eight was finished
    np.testing.assert_array_equal(packed.read(range(21)), expected(copies))


def test_broken_files_are_skipped_and_named(copies, tmp_path):
    truncate(copies.paths[2])
    empty(copies.paths[12])
    packed = pack(copies, tmp_path / "pack", on_error="skip", **SMALL)
    good = [row for row in range(21) if row not in (2, 12)]
    assert [path for path, _ in packed.skipped] == [copies.paths[2], copies.paths[12]]
    assert "truncated" in packed.skipped[0][1] and "empty" in packed.skipped[1][1]
    np.testing.assert_array_equal(packed.read(range(19)), expected(copies, good))
    np.testing.assert_array_equal(packed.labels, copies.labels[good])
    assert packed.names() == [copies.paths[row] for row in good]
    with pytest.raises(ValueError, match=r"002\.jpg"):
        pack(copies, tmp_path / "pack", **SMALL)


def test_nothing_but_broken_files(copies, tmp_path):
    for path in copies.paths:
        empty(path)
    with pytest.raises(ValueError, match="none of the 21 files"):
        pack(copies, tmp_path / "pack", on_error="skip", **SMALL)


def test_grayscale_cmyk_and_webp_behind_a_jpeg_name(copies, tmp_path):
    pixels = expected(copies, [0])[0]
    from PIL import Image

    Image.fromarray(pixels).convert("L").save(copies.paths[0], quality=95)
    Image.fromarray(pixels).convert("CMYK").save(copies.paths[1], "JPEG", quality=95)
    Path(copies.paths[2]).write_bytes(cv2.imencode(".webp", pixels)[1].tobytes())
    packed = pack(copies, tmp_path / "pack", **SMALL)
    np.testing.assert_array_equal(packed.read(range(21)), expected(copies))


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda _: module.SPARE_BYTES + 20_000)
    with pytest.raises(OSError, match="nothing was written"):
        pack(files, tmp_path / "pack", **SMALL)
    assert os.listdir(tmp_path / "pack") == [".lock"]


def test_a_disk_that_fills_up_loses_no_finished_shard(files, tmp_path, monkeypatch):
    real, calls = module.os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:  # packing.json, the first shard and its sidecar went well
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*shard-00001"):
        pack(files, tmp_path / "pack", **SMALL)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "pack")) == [".lock", "packing.json", "shard-00000.raw", "shard-00000.raw.json"]
    np.testing.assert_array_equal(pack(files, tmp_path / "pack", **SMALL).read(range(21)), expected(files))


@pytest.mark.parametrize("break_it", [truncate, replace])
def test_a_damaged_shard_of_an_interrupted_pack_is_made_again(files, tmp_path, break_it, monkeypatch):
    pack(files, tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(files, tmp_path / "pack", **SMALL)
    break_it(tmp_path / "pack" / "shard-00001.raw")
    pack(files, tmp_path / "pack", **SMALL)
    assert tree(tmp_path / "pack") == tree(tmp_path / "whole")


def test_a_damaged_pack_is_noticed(files, tmp_path):
    packed = pack(files, tmp_path / "pack", **SMALL)
    shard = tmp_path / "pack" / "shard-00001.raw"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert [fault.split(":")[0] for fault in packed.faults()] == [str(shard)]
    os.truncate(shard, 1000)
    with pytest.raises(ValueError, match="shard-00001"):
        packed.check()
    with pytest.raises(ValueError, match=r"shard-00001.raw: 1,000 bytes, not 18,432"):
        Packed(tmp_path / "pack")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"version": 2}', b"\xff\xfe", b'{"version": 1, "image_size": 3}'], ids=repr
)
def test_an_index_that_is_none(files, tmp_path, content):
    pack(files, tmp_path / "pack", **SMALL)
    (tmp_path / "pack" / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"index.json"):
        Packed(tmp_path / "pack")


def test_jpeg_shards(files, tmp_path):
    from helpers.sandbox import run

    def packed_and_read(folder):
        import tensorflow as tf

        packed = pack(files, folder, kind="jpeg", image_size=(96, 128), rows_per_shard=8)
        features = {name: tf.io.FixedLenFeature([], kind) for name, kind in KINDS.items()}
        records = tf.data.TFRecordDataset([str(path) for path in packed.shard_paths])
        found = [tf.io.parse_single_example(record, features) for record in records]
        images = np.stack([tf.io.decode_jpeg(one["image"]).numpy() for one in found])
        faults = list(packed.faults())
        return images, [int(one["label"]) for one in found], faults

    KINDS = {"image": "string", "label": "int64"}
    images, labels, faults = run(packed_and_read, tmp_path / "pack", timeout=120).unwrap()
    reference = np.stack([read_image(path, image_size=(96, 128)) for path in files.paths])
    assert np.abs(images.astype(int) - reference).mean() < 4
    assert (labels, faults) == (files.labels.tolist(), [])
    with pytest.raises(ValueError, match="TFRecords"):
        Packed(tmp_path / "pack").read([0])


@pytest.mark.parametrize(
    "settings", [{"kind": "png"}, {"on_error": "ignore"}, {"channels": 4}, {"image_size": (0, 8)}, {"quality": 0}]
)
def test_settings_that_make_no_sense(files, tmp_path, settings):
    with pytest.raises(ValueError):
        pack(files, tmp_path / "pack", **settings)
    assert not (tmp_path / "pack").exists()


# ---- the script ------------------------------------------------------------------------------------------------------


def script(*arguments, **settings):
    command = [sys.executable, str(ROOT / "data_scripts" / "pack_images.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def finished(process):
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_the_script_packs_and_verifies(copies, tmp_path):
    folder = tmp_path / "pack"
    code, output, _ = finished(script(tmp_path / "images", "--to", folder, "--size", "24x32"))
    assert code == 0 and "21 packed, 0 left out" in output
    images = find_images(tmp_path / "images")
    np.testing.assert_array_equal(Packed(folder).read(range(21)), expected(images))
    assert finished(script("--verify", folder))[:2] == (0, f"{folder}: 21 rows, 0 faults\n")
    (folder / "labels.npy").write_bytes((folder / "labels.npy").read_bytes()[:-1] + b"\x01")
    code, output, _ = finished(script("--verify", folder))
    assert code == 1 and "labels.npy: not what was written" in output


def test_the_script_names_what_is_wrong_in_one_line(copies, tmp_path):
    truncate(copies.paths[4])
    code, _, errors = finished(script(tmp_path / "images", "--to", tmp_path / "pack", "--size", 24))
    assert code == 2 and "004.jpg: truncated JPEG" in errors and "Traceback" not in errors
    code, output, _ = finished(
        script(tmp_path / "images", "--to", tmp_path / "pack", "--size", 24, "--on-error", "skip")
    )
    assert code == 0 and "left out" in output and "004.jpg" in output and "20 packed, 1 left out" in output
    (tmp_path / "nothing").mkdir()
    for arguments in (["--verify", tmp_path], [tmp_path / "nothing", "--to", tmp_path / "x"], [tmp_path / "images"]):
        code, _, errors = finished(script(*arguments))
        assert code in (1, 2) and "Traceback" not in errors and errors.strip()


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, number):
    copied(course_images(60), folder := tmp_path / "images")
    arguments = (folder, "--size", 448, "--rows-per-shard", 10)
    assert finished(script(*arguments, "--to", tmp_path / "whole"))[0] == 0
    process = script(*arguments, "--to", tmp_path / "pack", start_new_session=True)
    end = time.monotonic() + 60
    while not list((tmp_path / "pack").glob("shard-00001.raw")) and time.monotonic() < end:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    code, _, errors = finished(process)
    if code not in (0, -number):
        assert code == 130 and "the same command goes on" in errors and "Traceback" not in errors
    assert finished(script(*arguments, "--to", tmp_path / "pack"))[0] == 0
    assert tree(tmp_path / "pack") == tree(tmp_path / "whole")
    assert json.loads((tmp_path / "pack" / "index.json").read_text())["rows"] == len(find_images(folder))
