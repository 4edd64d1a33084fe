"""What `helpers/packed.py` and `data_scripts/pack_images.py` promise: nothing is lost or mixed, and all is named."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers import packing as module
from helpers.folders import ImageFiles, course_images, find_images
from helpers.images import read_image
from helpers.packed import Packed
from helpers.packing import default_folder, default_packs_in, pack

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


def note_reading(monkeypatch, read):
    """Put each file that is decoded from now on into a list."""
    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda data, path, **kw: read.append(path) or decode(data, path, **kw))


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


# ---- files that have changed, or only seem so ------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch):
    """Let nothing be packed from now on when called."""
    return lambda: monkeypatch.setattr(module, "decode_image", lambda *_, **__: 1 / 0)


def replaced(path, content, *, keep_time=True):
    """Put another file in the place of one, as `rsync -a` does: of the same size and time."""
    status, new = os.stat(path), Path(f"{path}.new")
    new.write_bytes(content + bytes(status.st_size - len(content)))
    if keep_time:
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, path)


def smaller(path):
    """Return another image of fewer bytes than that of a file."""
    return cv2.imencode(".jpg", 255 - cv2.resize(cv2.imread(path), None, fx=0.5, fy=0.5))[1].tobytes()


def test_a_file_replaced_by_one_of_the_same_size_and_time(copies, tmp_path):
    with default_packs_in(tmp_path / "packs"):
        before = default_folder(copies, (24, 32))
        pack(copies, before, **SMALL)
        replaced(copies.paths[12], smaller(copies.paths[12]))
        with pytest.raises(ValueError, match="files_sha256"):
            pack(copies, before, **SMALL)
        assert default_folder(copies, (24, 32)) != before


def test_a_file_replaced_while_its_pack_is_unfinished(copies, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(module, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(copies, tmp_path / "pack", **SMALL)
    replaced(copies.paths[12], smaller(copies.paths[12]))
    read = []
    note_reading(monkeypatch, read)
    packed = pack(copies, tmp_path / "pack", **SMALL)
    assert sorted(read) == list(copies.paths[8:16])
    np.testing.assert_array_equal(packed.read(range(21)), expected(copies))


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".webp"])
def test_a_pixel_changed_in_the_middle_is_noticed(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path, lossless = str(tmp_path / f"1{suffix}"), [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    cv2.imwrite(path, pixels, lossless)
    files = ImageFiles((path,), [0], ("one",))
    pack(files, tmp_path / "pack", **SMALL)
    pixels[100, 100] ^= 1
    cv2.imwrite(path, pixels, lossless)
    with pytest.raises(ValueError, match="files_sha256"):
        pack(files, tmp_path / "pack", **SMALL)


def touch(path):
    os.utime(path, (1, 1))


def touch_mode(path):
    os.chmod(path, 0o600)


def copy_anew(path):
    replaced(path, Path(path).read_bytes(), keep_time=False)


@pytest.mark.parametrize("change", [touch, touch_mode, copy_anew])
def test_what_only_seems_to_have_changed_is_not_packed_again(copies, tmp_path, change, no_decoding):
    with default_packs_in(tmp_path / "packs"):
        pack(copies, default_folder(copies, (24, 32)), **SMALL)
        for path in copies.paths[:12]:
            change(path)
        no_decoding()
        assert len(pack(copies, default_folder(copies, (24, 32)), **SMALL)) == 21
    assert len(os.listdir(tmp_path / "packs")) == 1


@pytest.mark.parametrize("copy_file", [shutil.copy2, shutil.copy], ids=["with times", "without"])
def test_a_pack_that_is_copied_with_its_files_stays_usable(copies, tmp_path, copy_file, no_decoding):
    with default_packs_in(tmp_path / "images" / "packs"):
        pack(copies, default_folder(copies, (24, 32)), **SMALL)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere" / "images", copy_function=copy_file)
    shutil.rmtree(tmp_path / "images")
    moved = ImageFiles(
        tuple(path.replace("/images/", "/elsewhere/images/") for path in copies.paths),
        copies.labels,
        copies.class_names,
    )
    no_decoding()
    with default_packs_in(tmp_path / "elsewhere" / "images" / "packs"):
        packed = pack(moved, default_folder(moved, (24, 32)), **SMALL)
    np.testing.assert_array_equal(packed.read(range(21)), expected(moved))


def test_packs_from_before_a_change_are_removed_and_no_others(copies, tmp_path):
    def packed_by_default(files, **settings):
        return pack(files, default_folder(files, (24, 32)), **SMALL, **settings).folder

    with default_packs_in(tmp_path / "packs"), warnings.catch_warnings():
        warnings.simplefilter("error")
        others = [packed_by_default(copies.take(20)), default_folder(copies, (8, 8)), tmp_path / "packs" / "mine"]
        for folder in others[1:]:
            pack(copies, folder, image_size=(8, 8))
        negatives = copied(copies, tmp_path / "negatives" / "images")  # of the same names, in another place
        for path in negatives.paths:
            Path(path).write_bytes(smaller(path))
        others.append(packed_by_default(negatives))
        older = packed_by_default(copies)
        linked = older.with_name(older.name.replace("-24x", "0-24x"))
        linked.symlink_to(others[2])
        Path(copies.paths[3]).write_bytes(smaller(copies.paths[3]))
        with module._held(older):
            newer = packed_by_default(copies)  # another process still packs the older one, so it stays
        assert older.exists() and newer != older
        Path(copies.paths[3]).write_bytes(smaller(copies.paths[4]))
        with pytest.warns(UserWarning, match="removed, since its images have changed"):
            newest = packed_by_default(copies)
        np.testing.assert_array_equal(Packed(newest).read(range(21)), expected(copies))
        pack(copies, tmp_path / "packs" / "my own", **SMALL)
    assert sorted((tmp_path / "packs").iterdir()) == sorted([*others, linked, newest, tmp_path / "packs" / "my own"])


# ---- several users ---------------------------------------------------------------------------------------------------


def test_a_finished_pack_needs_no_lock_and_writes_nothing(files, tmp_path, monkeypatch):
    pack(files, tmp_path / "pack", **SMALL)
    (tmp_path / "pack" / "packing.json").write_text("{}")  # left by a run that was killed at its end

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("locked", "write_whole", "whole_file"):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(pack(files, tmp_path / "pack", **SMALL)) == 21
    assert len(pack(files, tmp_path / "pack", shard=(1, 2), **SMALL)) == 21


def test_a_pack_on_a_read_only_disk(copies, tmp_path, on_a_small_disk):
    steps = f"""
import os, subprocess
from helpers import packing
from helpers.folders import find_images
from helpers.packing import default_folder, default_packs_in, pack
packing.SPARE_BYTES = 0
files = find_images({str(tmp_path / "images")!r})
with default_packs_in(disk):
    pack(files, default_folder(files, (8, 8)), image_size=(8, 8))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    os.utime(files.paths[0], (1, 1))  # its new time cannot be noted
    print(len(pack(files, default_folder(files, (8, 8)), image_size=(8, 8))))
"""
    assert on_a_small_disk(steps, 8) == "21\n"


def test_locks_are_the_groups(files, tmp_path):
    before = os.umask(0o077)
    try:
        pack(files, tmp_path / "pack", shard=(1, 2), **SMALL)
    finally:
        os.umask(before)
    locks = sorted((tmp_path / "pack").glob(".lock*"))
    assert [lock.name for lock in locks] == [".lock", ".lock-1-of-2"]
    assert [lock.stat().st_mode & 0o777 for lock in locks] == [0o664] * 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser can be several users")
def test_two_users_of_one_group_pack_and_a_third_one_joins(files):
    group = 12345
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        os.chmod(place, 0o755)
        own = copied(files, Path(place) / "images")
        folder = Path(place) / "pack"
        folder.mkdir()
        os.chown(folder, -1, group)
        os.chmod(folder, 0o2775)
        for number, shard in enumerate([(1, 2), (2, 2), None, None]):
            if (child := os.fork()) == 0:
                status = 1
                try:
                    signal.alarm(60)
                    os.setgroups([])
                    os.setgid(group)
                    os.setuid(20000 + number)
                    pack(own, folder, shard=shard, **SMALL)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0, f"user {number}"
        assert not list(Packed(folder).faults())


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
    note_reading(monkeypatch, read)
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
