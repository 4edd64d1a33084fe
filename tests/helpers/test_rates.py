"""One look at a folder finds what is broken, and rates that belong together."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from PIL import Image

from helpers.benchmark.advice import files_in_flight
from helpers.benchmark.rates import cold_mb_per_s, decode_rate, decode_reduced, find_limits, first_byte_ms
from helpers.folders import ImageFiles, find_images
from helpers.images import decode_image
from helpers.slow_store import slow_store


def test_kinds_sizes_and_faults(own_folder):
    paths = sorted(own_folder.rglob("*.jpg"))
    image = Image.open(paths[0])
    image.save(paths[0], format="PNG")
    image.convert("L").save(paths[1], format="JPEG")
    image.save(paths[2], format="WEBP")
    paths[3].write_bytes(b"")
    paths[4].write_bytes(paths[5].read_bytes()[:500])
    paths[6].unlink()
    paths[6].symlink_to("/nowhere")
    paths[7].write_bytes(b"<html>404</html>")
    paths[8].unlink()
    os.mkfifo(paths[8])  # would be waited for without end
    files = ImageFiles(tuple(map(str, paths)), np.zeros(len(paths), int), ("one",))
    limits = find_limits(files)
    assert limits.images == 35
    assert limits.kinds == {"JPEG": 33, "PNG": 1, "WebP": 1}
    assert [path for path, _ in limits.broken] == [str(paths[place]) for place in (3, 4, 6, 7, 8)]
    reasons = [reason for _, reason in limits.broken]
    for reason, words in zip(
        reasons, ("empty file", "truncated", "No such file", "cannot decode", "no regular file"), strict=True
    ):
        assert words in reason
    assert limits.median_size == (120, 160)
    sizes = [path.stat().st_size for path in paths if path.is_file() and str(path) not in dict(limits.broken)]
    assert limits.mean_bytes == pytest.approx(np.mean(sizes))
    assert min(limits.read_images_per_s, limits.decode_images_per_s, limits.reduced_images_per_s) > 0


def test_nothing_that_can_be_decoded(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of 1 files can be decoded.*1\.jpg"):
        find_limits(find_images(tmp_path))


def test_the_reduced_decode_gives_fewer_pixels(files):
    with open(files.paths[0], "rb") as file:
        data = file.read()
    assert decode_image(data, "x").shape == (120, 160, 3)
    assert decode_reduced((60, 80))(data, "x").shape == (60, 80, 3)
    assert decode_rate(decode_image, files, (32, 32)) > 0


def test_the_disk_is_measured_with_files_that_memory_has_forgotten(image_folder, monkeypatch):
    paths = list(find_images(image_folder).paths)
    assert cold_mb_per_s(paths) > 0
    monkeypatch.delattr(os, "posix_fadvise")
    assert cold_mb_per_s(paths) is None


def test_what_the_cores_decode_does_not_depend_on_how_far_the_images_are(image_folder, files):
    with slow_store(image_folder, latency_ms=250) as store:
        paths = [store.address(os.path.relpath(path, image_folder)) for path in files.paths]
        broken = store.address("none.jpg")
        far = ImageFiles((*paths, broken), [*files.labels, 0], files.class_names)
        limits = find_limits(far)
        at_once = store.counts()["most_at_once"]
    assert limits.images == len(files) and [path for path, _ in limits.broken] == [broken]
    assert limits.first_byte_ms >= 250
    assert at_once > 8
    # A thread for each core that waited for each image would give no more than four a second.
    assert limits.decode_images_per_s > 10 * 4 * limits.cores
    in_flight = files_in_flight(limits)
    assert in_flight == min(math.ceil(limits.reduced_images_per_s * limits.first_byte_ms / 1000), 256)
    assert in_flight > 2 * limits.cores


def test_the_first_byte_of_an_address_takes_its_latency(image_folder, files):
    assert 0 < first_byte_ms(files.paths[:5]) < 40
    with slow_store(image_folder, latency_ms=40) as store:
        paths = [store.address(os.path.relpath(path, image_folder)) for path in files.paths[:5]]
        assert first_byte_ms(paths) >= 40
        assert store.counts()["bytes"] == len(paths), "one byte each"
