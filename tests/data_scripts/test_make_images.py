"""What `data_scripts/make_images.py` promises: the same images always, like photographs, whatever interrupts it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import make_images as program
import numpy as np
import psutil
import pytest
from rendering import CLASS_NAMES, SIZES

PROGRAM = Path(program.__file__)
needs_posix_signals = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


def make(count, folder, **options):
    return program.make_images(count, folder, progress=False, **options)


def tree(folder):
    """Hash of every file under the folder by its relative path, hidden files included."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def images_in(folder):
    return sorted(folder.glob("*/*.jpg"), key=lambda path: path.name)


def start(folder, count, **options):
    """The command line in a process group of its own, as a terminal starts it; SIGINT works whoever runs the tests."""
    if os.name != "nt":
        options = {"process_group": 0, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options}
    command = [sys.executable, PROGRAM, "--count", str(count), "--to", folder, "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def workers_of(run):
    """The processes that make images; Python starts one more, which tracks its semaphores."""
    return [one for one in psutil.Process(run.pid).children() if "spawn_main" in " ".join(one.cmdline())]


def wait_for_images(folder, number, limit_s=20):
    deadline = time.monotonic() + limit_s
    while len(images_in(folder)) < number:
        assert time.monotonic() < deadline, f"no {number} images after {limit_s} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """Twenty images of seed 0, made by two workers without any disturbance; tests only read them."""
    folder = tmp_path_factory.mktemp("images") / "twenty"
    assert make(20, folder, workers=2) == 20
    return folder


@pytest.fixture(scope="module")
def pictures(twenty):
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in images_in(twenty)]


# ---- the same images -------------------------------------------------------------------------------------------------


def test_other_workers_same_files(twenty, tmp_path):
    make(20, tmp_path, workers=1)
    assert tree(tmp_path) == tree(twenty)


def test_fewer_images_are_a_prefix(twenty, tmp_path):
    make(13, tmp_path, workers=2)
    of_twenty = tree(twenty)
    assert len(images_in(tmp_path)) == 13
    assert tree(tmp_path).items() <= of_twenty.items()


def test_other_seed_other_images(twenty, tmp_path):
    make(4, tmp_path, seed=1, workers=1)
    images = {name: hash_ for name, hash_ in tree(tmp_path).items() if name.endswith(".jpg")}
    assert len(images) == 4
    assert not set(images.values()) & set(tree(twenty).values())


def test_no_two_images_are_equal(twenty):
    hashes = tree(twenty).values()
    assert len(set(hashes)) == len(hashes)


# ---- like photographs ------------------------------------------------------------------------------------------------


def test_ten_classes_in_label_order(twenty):
    folders = sorted(path.name for path in twenty.iterdir() if path.is_dir())
    assert tuple(folders) == CLASS_NAMES and len(folders) == 10
    for label, name in enumerate(folders):
        files = sorted(path.name for path in (twenty / name).iterdir())
        assert files == [f"{number:06d}.jpg" for number in range(label, 20, 10)]


def test_sizes_are_mixed_and_mostly_landscape(pictures):
    sizes = [picture.shape[1::-1] for picture in pictures]
    assert set(sizes) <= {(width_px, height_px) for width_px, height_px, _ in SIZES}
    assert len(set(sizes)) >= 4
    assert sum(width_px > height_px for width_px, height_px in sizes) > len(sizes) / 2
    assert any(width_px < height_px for width_px, height_px in sizes)


def test_all_images_are_in_colour(pictures):
    assert all(picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8 for picture in pictures)
    spread = [np.ptp(picture.astype(int), axis=2).mean() for picture in pictures]
    assert min(spread) > 1  # levels between the largest and the smallest of R, G and B


def _quantisation_table(content):
    """The first JPEG quantisation table: it tells the quality."""
    place = content.index(b"\xff\xdb")
    return content[place + 5 : place + 69]


def test_jpeg_qualities_are_92_to_95_and_mixed(twenty):
    blank = np.zeros((16, 16, 3), np.uint8)
    quality_of = {
        _quantisation_table(cv2.imencode(".jpg", blank, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()): quality
        for quality in range(80, 100)
    }
    qualities = {quality_of.get(_quantisation_table(path.read_bytes())) for path in images_in(twenty)}
    assert qualities <= {92, 93, 94, 95} and len(qualities) >= 3


def test_bytes_per_image_are_those_of_photographs(twenty):
    sizes_kb = np.array([path.stat().st_size for path in images_in(twenty)]) / 1e3
    assert 100 < sizes_kb.mean() < 170
    assert sizes_kb.mean() == pytest.approx(program.MEAN_KB, rel=0.15)
    assert sizes_kb.std() > 10


def test_amplitude_spectrum_falls_like_that_of_natural_images(pictures):
    side_px = 375
    window = np.hanning(side_px)[:, None] * np.hanning(side_px)
    y, x = np.indices((side_px, side_px)) - side_px // 2
    radius = np.hypot(x, y).astype(int).ravel()
    mean = 0
    for picture in pictures[:20]:
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[:side_px, :side_px].astype(float)
        amplitude = np.abs(np.fft.fftshift(np.fft.fft2((grey - grey.mean()) * window)))
        mean = mean + np.bincount(radius, amplitude.ravel()) / np.bincount(radius)
    frequency = np.arange(3, 150)
    slope = np.polyfit(np.log(frequency), np.log(mean[frequency]), 1)[0]
    assert -1.4 < slope < -0.8  # white noise has 0, a gradient about -2


# ---- interruptions ---------------------------------------------------------------------------------------------------


@needs_posix_signals
def test_goes_on_after_sigkill_and_leaves_no_worker(twenty, tmp_path):
    run = start(tmp_path, 20)
    wait_for_images(tmp_path, 2)
    helpers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers_of(run)) == 2
    run.kill()
    run.communicate()
    _, alive = psutil.wait_procs(helpers, timeout=4)
    assert not alive
    there = len(images_in(tmp_path))
    assert 2 <= there < 20
    leftover = tmp_path / CLASS_NAMES[0] / ".000030.jpg.0123abcd.part"  # as a killed worker leaves it
    leftover.write_bytes(b"\xff\xd8")
    assert make(20, tmp_path, workers=2) == 20 - there
    assert tree(tmp_path) == tree(twenty)


@needs_posix_signals
def test_ctrl_c_ends_quickly_in_one_line(tmp_path):
    run = start(tmp_path, 1000)
    wait_for_images(tmp_path, 4)
    workers = workers_of(run)
    os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = run.communicate(timeout=10)  # the rest would take longer
    assert run.returncode == 130
    assert errors.splitlines()[-1].startswith("make_images.py: stopped")
    assert "Traceback" not in errors
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
    assert not list(tmp_path.rglob("*.part"))


@needs_posix_signals
def test_a_killed_worker_is_reported(tmp_path):
    run = start(tmp_path, 60)
    wait_for_images(tmp_path, 2)
    workers_of(run)[0].kill()
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 1
    assert "-9" in errors.splitlines()[-1] and "Traceback" not in errors


def test_two_runs_at_once_share_the_work(twenty, tmp_path):
    runs = [start(tmp_path, 20) for _ in range(2)]
    endings = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], endings
    assert tree(tmp_path) == tree(twenty)
    made = [int(output.splitlines()[-1].split()[0]) for output, _ in endings]
    assert 20 <= sum(made) < 40  # an image may be made twice where the two meet, not more


def test_broken_files_are_made_again_and_no_other_is_touched(twenty, tmp_path):
    make(10, tmp_path, workers=2)
    of_twenty = tree(twenty)
    first, second, third, *others = images_in(tmp_path)
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-2])
    third.unlink()
    foreign = [tmp_path / "notes.txt", tmp_path / "red_ball" / "holiday.jpg", tmp_path / "red_ball" / ".draft.part"]
    for path in foreign:
        path.write_text("mine")
    before_ns = [path.stat().st_mtime_ns for path in others]
    assert make(10, tmp_path, workers=1) == 3
    assert [path.stat().st_mtime_ns for path in others] == before_ns
    for path in foreign:
        assert path.read_text() == "mine"
        path.unlink()
    assert tree(tmp_path).items() <= of_twenty.items() and len(images_in(tmp_path)) == 10


def test_a_larger_count_adds_the_missing_ones_only(twenty, tmp_path):
    assert make(6, tmp_path, workers=1) == 6
    assert make(9, tmp_path, workers=1) == 3
    assert make(9, tmp_path, workers=1) == 0
    assert make(2, tmp_path, workers=1) == 0
    assert len(images_in(tmp_path)) == 9


# ---- refusals --------------------------------------------------------------------------------------------------------


def run_main(capsys, *arguments):
    """Exit code and the one line of error of a command line run in this process."""
    try:
        code = program.main([str(argument) for argument in arguments])
    except SystemExit as ending:
        code = ending.code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    return code, errors[0]


@pytest.mark.parametrize(
    "record", [{"format_version": 1, "seed": 7}, {"format_version": 0, "seed": 0}, None, "rubbish"]
)
def test_images_of_another_run_are_not_mixed(record, capsys, tmp_path):
    image = tmp_path / "red_ball" / "000007.jpg"
    image.parent.mkdir()
    image.write_bytes(b"an image of another run")
    if record is not None:
        (tmp_path / "make_images.json").write_text(record if isinstance(record, str) else json.dumps(record))
    before = tree(tmp_path)
    code, error = run_main(capsys, "--count", 20, "--to", tmp_path)
    assert code == 2 and str(tmp_path) in error and "--to" in error
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--count", -3), "count is -3"),
        (("--count", 0), "count is 0"),
        (("--count", "many"), "'many'"),
        (("--count", 4, "--workers", 0), "workers is 0"),
        (("--count", 4, "--seed", -1), "seed is -1"),
        (("--count", 4, "--to", PROGRAM), "is a file"),
        (("--count", 4, "--to", PROGRAM / "below"), "is a file"),
    ],
)
def test_rubbish_arguments_give_one_line(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to = () if "--to" in arguments else ("--to", tmp_path / "new")
    code, error = run_main(capsys, *arguments, *to)
    assert code == 2 and word in error
    assert not list(tmp_path.iterdir())


def test_count_comes_from_the_environment(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_IMAGES", "3")
    assert program.main(["--to", str(tmp_path), "--workers", "1"]) == 0
    assert len(images_in(tmp_path)) == 3
    capsys.readouterr()
    monkeypatch.setenv("COURSE_IMAGES", "many")
    code, error = run_main(capsys, "--to", tmp_path)
    assert code == 2 and "COURSE_IMAGES" in error


def test_too_little_room_is_refused_before_anything_is_made(capsys, tmp_path, monkeypatch):
    asked = []

    def disk_usage(place):
        asked.append(Path(place))
        return type("Usage", (), {"free": int(200e6 + 9 * program.MEAN_KB * 1e3)})()

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    code, error = run_main(capsys, "--count", 10, "--to", tmp_path / "a" / "b")
    assert code == 1 and "room" in error
    assert asked == [tmp_path] and not list(tmp_path.iterdir())
    assert make(8, tmp_path / "a" / "b", workers=1) == 8


FULL_DISK = """
import builtins, errno

real_open, images = builtins.open, []

class FullDisk:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, content):
        images.append(1)
        if len(images) <= 3:
            return self.file.write(content)
        self.file.write(content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

def full_open(path, mode="r", *arguments, **options):
    file = real_open(path, mode, *arguments, **options)
    return FullDisk(file) if mode == "xb" else file

builtins.open = full_open
"""


def test_a_disk_that_fills_leaves_no_half_file(twenty, capsys, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # reaches the workers
    folder = tmp_path / "images"
    assert program.main(["--count", "20", "--to", str(folder), "--workers", "2"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" images")]
    assert len(lines) == 1 and "No space left" in lines[0]
    assert 3 <= len(images_in(folder)) <= 6
    assert tree(folder).items() <= tree(twenty).items()  # nothing half, nothing temporary


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_output_is_short_when_not_a_terminal(tmp_path):
    run = start(tmp_path, 25)
    output, errors = run.communicate(timeout=60)
    first, last = output.splitlines()
    assert run.returncode == 0
    assert first.startswith("25 images, about 3 MB")
    assert last.startswith("25 images made, 0 were there") and last.endswith(" s")
    assert 5 <= len(errors.splitlines()) <= 10


def test_quiet_on_request(capfd, tmp_path):
    make(3, tmp_path, workers=1)
    assert capfd.readouterr() == ("", "")
