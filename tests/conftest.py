"""What several tests share: small folders of images that a program can tell apart, and what `make test` leaves out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.folders import find_images

TEST_ALL = bool(os.environ.get("TEST_ALL"))  # `make test-all`: every case of tests that `make test` samples


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked `slow`, but not in `make test-all`."""
    if not TEST_ALL:
        left_out = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "slow" not in item.keywords]


CLASS_NAMES = ("ball", "bell", "bird", "boat", "book", "boot", "bowl", "brush", "bulb", "bus")
SIZES = ((120, 160), (160, 120), (107, 160), (128, 128))  # height, width


def draw_image(number, size=(120, 160)):
    """A picture of a few large patches of colour; two numbers look different, also as small thumbnails."""
    patches = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(patches, size[::-1], interpolation=cv2.INTER_CUBIC)


def write_images(folder, count, class_names=CLASS_NAMES):
    for number in range(count):
        path = folder / class_names[number % len(class_names)] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        bgr = draw_image(number, SIZES[number // len(class_names) % len(SIZES)])
        assert cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """40 JPEG files of mixed sizes in ten class folders. Read only: it is shared."""
    return write_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="session")
def files(image_folder):
    """The shared folder as `ImageFiles`."""
    return find_images(image_folder)


@pytest.fixture
def own_folder(image_folder, tmp_path):
    """A copy of the shared folder that a test may damage."""
    return shutil.copytree(image_folder, tmp_path / "own")


@pytest.fixture
def on_a_small_disk(tmp_path):
    """A function that runs Python code with a disk of so many MiB at the path ``disk``; it returns what was printed.

    The disk is a tmpfs in a namespace of its own, so it is gone with the process. Skips where the system allows none.
    """

    def run(code: str, mib: int) -> str:
        disk = tmp_path / "disk"
        disk.mkdir(exist_ok=True)
        mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        mounted = [*mount, 'mount -t tmpfs -o "size=$1m" none "$0" && shift && exec "$@"', str(disk), str(mib)]
        probe = subprocess.run([*mounted, "true"], capture_output=True, text=True) if shutil.which("unshare") else None
        if probe is None or probe.returncode:
            pytest.skip("this system lets no test mount a small disk")
        program = f"import sys\ndisk = {str(disk)!r}\n{code}"
        command = [*mounted, sys.executable, "-c", program]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=root)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
