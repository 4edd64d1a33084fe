"""Images behind an address: found, read through faults, each delivered once; and waits that end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import cv2
import fsspec
import numpy as np
import psutil
import pytest
from conftest import draw_image

from helpers import remote
from helpers.contract import check_pipeline
from helpers.folders import ImageFiles, find_images, find_labelled_images
from helpers.images import read_file, read_image
from helpers.listing import list_folder
from helpers.packing import pack
from helpers.pipelines import PIPELINES
from helpers.sandbox import run
from helpers.slow_store import SlowStore, slow_store

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child process need not import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_FLIGHT = {"keras_sequence": 12, "tf_data": 12, "tf_data_fast": 12}


@pytest.fixture(scope="module")
def store(image_folder):
    with slow_store(image_folder, s3=True, latency_ms=1) as one:
        yield one


@pytest.fixture(scope="module")
def here(image_folder) -> ImageFiles:
    return find_images(image_folder)


@pytest.fixture
def far(store, here, image_folder) -> ImageFiles:
    store.set(latency_ms=1)
    paths = [store.address(Path(path).relative_to(image_folder).as_posix()) for path in here.paths]
    return ImageFiles(tuple(paths), here.labels, here.class_names)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_FIRST_PAUSE_S", 0.01)


def test_a_bucket_is_listed_and_read(store, here, image_folder, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": store.url, "key": "x", "secret": "y"})
    store.set(latency_ms=1)
    system = fsspec.filesystem("s3")
    system.mkdir("pictures")
    names = [Path(path).relative_to(image_folder).as_posix() for path in here.paths]
    others = {"pictures/a/notes.txt": b"", "pictures/a/.hidden/1.jpg": b"", "pictures/a/1.tif": b""}
    there = {f"pictures/a/{name}": Path(path).read_bytes() for name, path in zip(names, here.paths, strict=True)}
    system.pipe(there | others)
    with pytest.warns(UserWarning, match=r"left out 1 \.tif"):
        files = find_images("s3://pictures/a/")
    assert files.paths == tuple(f"s3://pictures/a/{name}" for name in names)
    assert (files.class_names, files.labels.tolist()) == (here.class_names, here.labels.tolist())
    assert sorted(list_folder("s3://pictures/a").left_out) == [".tif", ".txt", "hidden"]
    for path, own in zip(files.paths[:3], here.paths, strict=False):
        assert read_file(os.fsencode(path)) == read_file(os.fsencode(own))  # TensorFlow gives bytes
        assert np.array_equal(read_image(path), read_image(own))
    with pytest.raises(FileNotFoundError, match=r"s3://pictures/a/none\.jpg"):
        read_file("s3://pictures/a/none.jpg")
    with pytest.raises(FileNotFoundError, match="s3://pictures/b: no images"):
        find_images("s3://pictures/b")


def test_a_manifest_behind_http(here, image_folder, tmp_path):
    names = [Path(path).relative_to(image_folder).as_posix() for path in here.paths]
    (tmp_path / "more").mkdir()
    (tmp_path / "data").symlink_to(image_folder)
    with slow_store(tmp_path, latency_ms=0) as one:
        elsewhere = f"https://elsewhere.example/{here.class_names[0]}/x.jpg"
        (tmp_path / "list.txt").write_text("\n".join([*names, "", elsewhere, f"{names[0]} größer.jpg"]))
        files = find_images(one.address("list.txt"))
        assert len(files) == len(here) + 2
        assert files.class_names == here.class_names
        assert files.paths[0] == one.address(names[0])
        assert elsewhere in files.paths
        (tmp_path / "page.html").write_text("<!doctype html>")
        with pytest.raises(ValueError, match=r"page\.html: a web page"):
            find_images(one.address("page.html"))


def test_a_package_that_is_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"abfs://bucket/images: .*pip install fsspec adlfs"):
        find_images("abfs://bucket/images")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ValueError, match=r"s3://bucket/1\.jpg: .*pip install fsspec s3fs"):
        read_file("s3://bucket/1.jpg")


def test_without_these_packages_helpers_work_and_say_what_to_install(here):
    hidden = "aiobotocore aiohttp botocore flask fsspec moto s3fs"
    code = f"""
import importlib, pkgutil, sys
for name in {hidden.split()}:
    sys.modules[name] = None  # as if it were not installed
import helpers
for module in pkgutil.walk_packages(helpers.__path__, "helpers."):
    if not module.name.endswith(("__main__", "slow_store")):  # the store is lesson 12's
        importlib.import_module(module.name)
from helpers.folders import find_images
from helpers.pipelines import PIPELINES
files = find_images(sys.argv[1])
print(sum(len(labels) for _, labels in PIPELINES["tf_data"](files, in_flight=4)), files.bytes_on_disk() > 0)
for address in ("s3://bucket/images", "https://host/list.txt"):
    try:
        find_images(address)
    except ValueError as error:
        print(error)
"""
    folder = str(Path(here.paths[0]).parents[1])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment)
    came, *ends = done.stdout.splitlines()
    assert came == f"{len(here)} True", done.stderr
    assert [line.rpartition("; ")[2] for line in ends] == [
        "pip install fsspec s3fs to read s3://",
        "pip install fsspec aiohttp to read https://",
    ]


def test_the_size_of_what_is_far_away(store, far, here, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": store.url, "key": "x", "secret": "y"})
    system = fsspec.filesystem("s3")
    system.mkdir("sizes")
    system.pipe("sizes/1.jpg", bytes(12_345))
    both = ImageFiles((*far.paths, *here.paths, "s3://sizes/1.jpg"), [0] * (2 * len(here) + 1), ("x",))
    expected = 2 * here.bytes_on_disk() + 12_345
    store.set(latency_ms=1)
    assert both.bytes_on_disk() == expected
    assert store.counts()["bytes"] < 10_000, "sizes are asked for, not files"
    store.set(latency_ms=1, refused=0.2)
    assert both.bytes_on_disk() == expected
    assert store.counts()["refused"], "the test met no fault"
    store.set(latency_ms=1)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file"):
        ImageFiles((store.address("none.jpg"),), [0], ("x",)).bytes_on_disk()
    store.set(latency_ms=1, refused=1.0)
    with pytest.raises(OSError, match=r"attempt 5 of 5 failed.*503"):
        ImageFiles(far.paths[:1], [0], ("x",)).bytes_on_disk()


def test_an_address_that_has_become_a_path_is_refused():
    with pytest.raises(FileNotFoundError, match=r"s3:/bucket/images: no such folder; give an address as a str"):
        find_images(Path("s3://bucket/images"))
    assert remote.folder_or_address("s3://bucket/images") == "s3://bucket/images"
    assert remote.folder_or_address("images") == Path("images")


def test_a_table_of_classes_behind_an_address(tmp_path):
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), draw_image(number))
    (tmp_path / "list.txt").write_text("\n".join(f"{number}.jpg" for number in range(6)))
    lines = [f"{number},{'ab'[number % 2]}" for number in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,breed", *lines]))
    with slow_store(tmp_path, latency_ms=0) as one:
        files = find_labelled_images(one.address("list.txt"), one.address("labels.csv"))
        assert files.labels.tolist() == [0, 1] * 3
        assert files.paths[5] == one.address("5.jpg")


def test_packing_reads_many_at_once_and_each_image_once(store, far, here, tmp_path):
    small = {"image_size": (24, 32), "rows_per_shard": 16}
    expected = pack(here, tmp_path / "here", **small)
    store.set(latency_ms=40, refused=0.05, reset=0.05)
    packed = pack(far, tmp_path / "far", **small)
    counts = store.counts()
    assert counts["requests"] - counts["refused"] - counts["reset"] == len(far)
    assert counts["most_at_once"] > 8
    assert np.array_equal(packed.read(range(len(far))), expected.read(range(len(far))))
    store.set(latency_ms=1)
    pack(far, tmp_path / "far", **small)
    assert not store.counts()["requests"], "a pack that is there is taken as it is"


def test_the_commands_take_addresses_or_say_why_not(here, image_folder, tmp_path):
    for folder in image_folder.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    names = [Path(path).relative_to(image_folder).as_posix() for path in here.paths]
    (tmp_path / "list.txt").write_text("\n".join(names))

    def command(script: str, *arguments: object) -> subprocess.CompletedProcess:
        line = [sys.executable, ROOT / "data_scripts" / script, *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=200)

    with slow_store(tmp_path, latency_ms=0) as one:
        address = one.address("list.txt")
        done = command("pack_images.py", address, "--to", tmp_path / "pack", "--size", 24)
        assert not done.returncode, done.stderr
        assert f"{len(here)} packed, 0 left out" in done.stdout
        done = command("check_images.py", address)
        assert done.returncode == 2
        assert "an address; copy the images to this machine" in done.stderr


def test_a_contract_is_checked_with_files_of_this_machine(far):
    with pytest.raises(ValueError, match="an address; give files of this machine"):
        check_pipeline(PIPELINES["generator"], far)


def test_what_passes_is_tried_again_and_what_does_not_is_not(store, far, here):
    store.set(latency_ms=1, refused=0.1, reset=0.1)
    for path, own in zip(far.paths * 3, here.paths * 3, strict=True):
        assert read_file(path) == Path(own).read_bytes()
    counts = store.counts()
    assert counts["refused"] and counts["reset"], "the test met no fault"
    assert counts["requests"] == 3 * len(far) + counts["refused"] + counts["reset"]
    store.set(refused=1.0, latency_ms=1)
    with pytest.raises(OSError, match=r"files/.*attempt 5 of 5 failed.*503"):
        read_file(far.paths[0])
    assert store.counts()["requests"] == remote.ATTEMPTS
    store.set(latency_ms=1)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_file(store.address("none.jpg"))
    assert store.counts()["requests"] == 1


def test_a_connection_that_hangs_is_given_up(store, far, monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_ANSWER_S", 0.2)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    store.set(latency_ms=1, hung=1.0)
    with pytest.raises(OSError, match=r"attempt 2 of 2 failed: TimeoutError: no answer within 0\.2 s"):
        read_file(far.paths[0])
    assert store.counts()["hung"] == 2


def test_a_cache_that_hangs_is_given_up(store, far, monkeypatch, tmp_path):
    """fsspec reads through a cache without asyncio, and without a limit of its own."""
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path)})
    store.set(latency_ms=1)
    assert read_file(f"simplecache::{far.paths[1]}") == read_file(far.paths[1])
    monkeypatch.setattr(remote, "LONGEST_ANSWER_S", 0.2)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    store.set(latency_ms=1, hung=1.0)
    with pytest.raises(OSError, match=r"simplecache::http.*no answer within 0\.2 s"):
        read_file(f"simplecache::{far.paths[0]}")
    store.set(latency_ms=1)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_file(f"simplecache::{store.address('none.jpg')}")


def seen(batches) -> list[tuple[int, int]]:
    """Return label and checksum of each image that comes."""
    return [
        (int(label), int(image.astype(np.int64).sum()))
        for images, labels in batches
        for image, label in zip(np.asarray(images), np.asarray(labels), strict=True)
    ]


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in ("tf1_queues", "tf_data_packed")])
def test_a_pipeline_delivers_each_image_once_through_faults(name, store, far, here):
    settings = {"image_size": (32, 48), "batch_size": 8, "shuffle": False}
    expected = seen(PIPELINES[name](here, **settings))
    store.set(latency_ms=1, refused=0.05, reset=0.05, slow=0.02)
    more = {"in_flight": IN_FLIGHT[name]} if name in IN_FLIGHT else {}
    assert seen(PIPELINES[name](far, **settings, **more)) == expected
    counts = store.counts()
    assert counts["requests"] - counts["refused"] - counts["reset"] == len(far), "an image was asked for twice"


@pytest.mark.parametrize("name", IN_FLIGHT)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_missing_image_is_named(name, on_error, store, far):
    files = ImageFiles((*far.paths[:9], store.address("none.jpg"), *far.paths[10:20]), far.labels[:20], far.class_names)
    batches = PIPELINES[name](files, image_size=(32, 48), batch_size=8, in_flight=6, on_error=on_error)
    if on_error == "raise":
        with pytest.raises(Exception, match=r"none\.jpg"):
            seen(batches)
    else:
        assert len(seen(batches)) == 19
        assert list(batches.skipped) == [files.paths[9]]


@pytest.mark.parametrize("name", IN_FLIGHT)
def test_in_flight_is_what_is_asked_for_at_once(name, store, far):
    """And no more: memory is bounded by it."""
    store.set(latency_ms=40)
    assert len(seen(PIPELINES[name](far, image_size=(32, 48), batch_size=8, in_flight=IN_FLIGHT[name]))) == len(far)
    at_once = store.counts()["most_at_once"]
    assert 6 < at_once <= IN_FLIGHT[name], at_once


def epoch_with_a_fault(name: str, far: ImageFiles, here: ImageFiles, server: int, fault: str) -> tuple:
    """Stop or kill the store after the first batch; return what came, what should come, and the error."""
    remote.LONGEST_ANSWER_S, remote.LONGEST_FIRST_PAUSE_S = 0.7, 0.01
    settings = {"image_size": (32, 48), "batch_size": 8, "shuffle": False}
    expected, process, came, error = seen(PIPELINES[name](here, **settings)), psutil.Process(server), [], None
    try:
        for batch in PIPELINES[name](far, in_flight=64, **settings):
            if not came:
                getattr(process, fault)()
                if fault == "suspend":
                    threading.Timer(2.0, process.resume).start()
            came += seen([batch])
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return came, expected, error


def server_of(one: SlowStore) -> int:
    """Return the process id of a store: that of the child which listens at its port."""
    port = int(one.url.rpartition(":")[2])

    def listens(child: psutil.Process) -> bool:
        return any(end.status == psutil.CONN_LISTEN and end.laddr.port == port for end in child.net_connections())

    (server,) = filter(listens, psutil.Process().children())
    return server.pid


@pytest.mark.parametrize("fault", ["kill", "suspend"])
@pytest.mark.parametrize("name", IN_FLIGHT)
def test_a_store_that_fails_in_mid_epoch(name, fault, here, image_folder):
    """One that dies is an error that names an image; one that only hangs for a while costs time, and no image."""
    with slow_store(image_folder, latency_ms=5) as one:
        paths = [one.address(Path(path).relative_to(image_folder).as_posix()) for path in here.paths]
        far = ImageFiles(tuple(paths), here.labels, here.class_names).repeat_to(320)
        arguments = (far, here.repeat_to(320), server_of(one), fault)
        came, expected, error = run(epoch_with_a_fault, name, *arguments, timeout=120).unwrap()
    assert came == expected[: len(came)], "an image twice, or left out"
    if fault == "suspend":
        assert (len(came), error) == (320, None)
    else:
        assert 8 <= len(came) < 320
        assert "attempt 5 of 5 failed" in error and f"{one.url}/files/" in error


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_the_store_ends_with_the_process_that_started_it(how, tmp_path):
    code = (
        "import sys, time\nfrom helpers.slow_store import slow_store\n"
        "with slow_store(sys.argv[1]) as store:\n    print(store.url, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline().startswith("http://127.0.0.1:")
        (server,) = psutil.Process(program.pid).children()
        getattr(program, how)()
    server.wait(timeout=20)


def test_nothing_outside_of_the_folder_is_served(store):
    with pytest.raises(OSError):
        read_file(f"{store.url}/files/..%2f..%2f..%2fetc/passwd")


@pytest.mark.parametrize("name", IN_FLIGHT)
def test_a_program_ends_soon_after_ctrl_c_while_reads_hang(name, image_folder):
    """TensorFlow hears Ctrl-C only when a batch or an error has come, so it matters that every wait has a limit."""
    code = (
        "import os, signal, sys, threading, time\nfrom helpers import remote\n"
        "from helpers.pipelines import PIPELINES\nfrom helpers.folders import ImageFiles\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "remote.LONGEST_ANSWER_S, remote.ATTEMPTS = (300, 5) if sys.argv[2] == 'keras_sequence' else (2, 2)\n"
        "files = ImageFiles(tuple(f'{sys.argv[1]}/{n}.jpg' for n in range(64)), [0] * 64, ('x',))\n"
        "batches = iter(PIPELINES[sys.argv[2]](files, in_flight=64))\n"
        "threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "print(time.time(), flush=True)\nnext(batches)\n"
    )
    with slow_store(image_folder, latency_ms=1, hung=1.0) as one:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", code, one.address("x"), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        assert done.returncode, done.stdout
        assert time.time() - float(done.stdout) < 60, done.stderr
        assert "KeyboardInterrupt" in done.stderr


def test_settings_of_fsspec_reach_child_processes(store, monkeypatch):
    monkeypatch.setenv("FSSPEC_S3", json.dumps({"endpoint_url": store.url, "key": "x", "secret": "y"}))
    code = "import fsspec; print(fsspec.filesystem('s3').endpoint_url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == store.url, done.stderr
    assert threading.active_count() < 200
