"""Packing in parts: processes and machines that know nothing of each other, joined and verified."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.files import locked
from helpers.folders import find_images
from helpers.packed import Packed
from helpers.packing import pack

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"image_size": (16, 24), "rows_per_shard": 7}
ARGUMENTS = ["--size", "16x24", "--rows-per-shard", "7"]


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "data_scripts" / "pack_images.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def shards_in(folder):
    return sorted(path.name for path in folder.glob("shard-*.raw"))


def content(folder):
    """Return everything that a reader sees of a pack."""
    packed = Packed(folder)
    return packed.settings, packed.labels.tolist(), packed.names(), packed.read(range(len(packed))).tobytes()


@pytest.fixture
def folder(tmp_path):
    """Where a pack goes."""
    return tmp_path / "pack"


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """The same images packed at once."""
    folder = tmp_path_factory.mktemp("whole") / "pack"
    pack(files, folder, **SETTINGS)
    return content(folder)


def test_a_part_is_every_nth_shard_and_no_pack_yet(files, folder):
    assert pack(files, folder, shard=(2, 4), **SETTINGS) is None
    assert shards_in(folder) == ["shard-00001.raw", "shard-00005.raw"]
    with pytest.raises(FileNotFoundError, match="no finished pack"):
        Packed(folder)


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 2, 3, 1)])
def test_joined_parts_are_the_pack_of_all(files, folder, whole, order):
    for number in order:
        pack(files, folder, shard=(number, 4), **SETTINGS)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.raw")}
    packed = pack(files, folder, **SETTINGS)
    assert content(folder) == whole
    assert list(packed.faults()) == []
    assert {path: path.stat().st_mtime_ns for path in written} == written, "a finished shard was written again"
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} <= {".lock"}


def test_joining_packs_what_is_missing(files, folder, whole):
    pack(files, folder, shard=(1, 3), **SETTINGS)
    pack(files, folder, **SETTINGS)
    assert content(folder) == whole


def test_joining_packs_again_what_was_damaged(files, folder, whole):
    for number in (1, 2):
        pack(files, folder, shard=(number, 2), **SETTINGS)
    path = folder / "shard-00003.raw"
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 0xFF
    path.write_bytes(damaged)
    pack(files, folder, **SETTINGS)
    assert content(folder) == whole


def test_more_machines_than_shards(files, folder):
    assert pack(files, folder, shard=(1000, 1000), **SETTINGS) is None
    assert shards_in(folder) == []


def test_a_part_of_a_joined_pack_finds_the_work_done(files, folder):
    pack(files, folder, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(pack(files, folder, shard=(1, 2), **SETTINGS)) == len(files)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}.items() <= before.items()


def test_parts_of_other_settings_are_refused(files, folder):
    pack(files, folder, shard=(1, 2), **SETTINGS)
    with pytest.raises(ValueError, match="holds another pack"):
        pack(files, folder, shard=(2, 2), image_size=(8, 8), rows_per_shard=7)


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (1, 0), (-1, 4)])
def test_a_part_that_is_none(files, folder, shard):
    with pytest.raises(ValueError, match="shard"):
        pack(files, folder, shard=shard, **SETTINGS)


def test_joining_waits_for_nobody_who_still_packs(files, folder):
    pack(files, folder, shard=(1, 2), **SETTINGS)
    with locked(folder / ".lock-2-of-2", ""):
        start = time.monotonic()
        with pytest.raises(BlockingIOError, match=re.escape("2/2")):
            pack(files, folder, **SETTINGS)
        assert time.monotonic() - start < 30
    assert len(pack(files, folder, **SETTINGS)) == len(files)


def test_a_part_leaves_alone_what_another_one_is_writing(files, folder):
    unfinished = folder / ".shard-00001.raw.0123abcd.part"
    pack(files, folder, shard=(1, 2), **SETTINGS)
    unfinished.write_bytes(b"half")
    pack(files, folder, shard=(1, 2), **SETTINGS)
    assert unfinished.exists()
    pack(files, folder, **SETTINGS)
    assert not unfinished.exists()


def test_broken_files_are_left_out_and_named(own_folder, folder):
    broken = Path(find_images(own_folder).paths[3])
    broken.write_bytes(b"no image")
    files = find_images(own_folder)
    with pytest.raises(ValueError, match=re.escape(broken.name)):
        pack(files, folder, shard=(1, 2), **SETTINGS)
    for number in (1, 2):
        pack(files, folder, shard=(number, 2), on_error="skip", **SETTINGS)
    packed = pack(files, folder, on_error="skip", **SETTINGS)
    assert (len(packed), [path for path, _ in packed.skipped]) == (len(files) - 1, [str(broken)])
    assert list(packed.faults()) == []


def test_joined_jpeg_shards_without_a_broken_file(own_folder, folder):
    import tensorflow as tf

    Path(find_images(own_folder).paths[3]).write_bytes(b"no image")
    files = find_images(own_folder)
    settings = {**SETTINGS, "kind": "jpeg", "on_error": "skip"}
    for number in (2, 1):
        pack(files, folder, shard=(number, 2), **settings)
    packed = pack(files, folder, **settings)
    records = tf.data.TFRecordDataset([str(path) for path in packed.shard_paths]).as_numpy_iterator()
    labels = [tf.train.Example.FromString(record).features.feature["label"].int64_list.value[0] for record in records]
    assert labels == packed.labels.tolist() and len(labels) == len(files) - 1


def test_four_processes_at_the_same_time(image_folder, folder, whole):
    script = [sys.executable, ROOT / "data_scripts" / "pack_images.py", image_folder, "--to", folder, *ARGUMENTS]
    parts = [subprocess.Popen([*script, "--shard", f"{number}/4"], stdout=subprocess.PIPE) for number in range(1, 5)]
    try:
        assert [part.wait(100) for part in parts] == [0] * 4
    finally:
        for part in parts:
            part.kill()
            part.stdout.close()
    assert run_script(image_folder, "--to", folder, *ARGUMENTS).returncode == 0
    assert "40 rows, 0 faults" in run_script("--verify", folder).stdout
    assert content(folder) == whole


def test_the_command_says_what_it_packed(image_folder, folder):
    done = run_script(image_folder, "--to", folder, *ARGUMENTS, "--shard", "2/4")
    assert done.returncode == 0, done.stderr
    assert "part 2 of 4: 12 images" in done.stdout  # shards 1 and 5 of 0 to 5: seven rows and five
    assert "without --shard" in done.stdout


@pytest.mark.parametrize("text", ["2", "0/4", "5/4", "a/b", "1/0"])
def test_the_command_refuses_what_is_no_part(image_folder, folder, text):
    done = run_script(image_folder, "--to", folder, "--shard", text)
    assert done.returncode == 2
    assert "give i/n" in done.stderr
    assert not folder.exists()
