"""What `check_images.py` finds, that nothing it meets can stop it, and that a quarantine loses nothing."""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib.util
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
import unittest.mock
import zlib
from pathlib import Path

import cv2
import inspection as module
import numpy as np
import psutil
import pytest
import quarantine as moving
from conftest import draw_image, write_images
from inspection import Finding, inspect_folder
from PIL import Image
from quarantine import put_back, quarantine

from helpers.folders import find_images

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_scripts" / "check_images.py"


def load_script():
    spec = importlib.util.spec_from_file_location("check_images", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of sound images, and one of each kind of trouble in the second."""
    folder = write_images(tmp_path_factory.mktemp("check"), 24, class_names=("good", "odd"))
    odd, image = folder / "odd", Image.fromarray(draw_image(99))
    whole = io.BytesIO()
    image.save(whole, format="JPEG", quality=95)
    whole = whole.getvalue()
    (odd / "empty.jpg").touch()
    (odd / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (odd / "html.jpg").write_bytes(b"<html>404</html>")
    (odd / "noise.jpg").write_bytes(whole[:200] + np.random.default_rng(0).bytes(2000) + b"\xff\xd9")
    (odd / "bomb.png").write_bytes(png_that_claims(60_000, 60_000))
    (odd / "gone.jpg").symlink_to("/nowhere")
    os.mkfifo(odd / "pipe.jpg")
    Image.fromarray(draw_image(91)).save(odd / "really a png.jpg", format="PNG")
    image.convert("CMYK").save(odd / "cmyk.jpg")
    Image.fromarray(draw_image(90)).convert("L").save(odd / "gray.jpg")
    cv2.imwrite(str(odd / "deep.png"), (draw_image(98).astype(np.uint16) << 8) + 7)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_image(97)).save(odd / "rotated.jpg", exif=exif)
    Image.fromarray(draw_image(96)).convert("RGBA").save(odd / "clear.png")
    frames = [Image.fromarray(draw_image(number)) for number in (94, 95)]
    frames[0].save(odd / "moves.webp", save_all=True, append_images=frames[1:])
    (odd / "again.jpg").write_bytes(sorted(odd.glob("0*.jpg"))[0].read_bytes())
    (odd / "mine too.jpg").write_bytes(sorted((folder / "good").glob("*.jpg"))[0].read_bytes())
    (odd / "notes.txt").write_text("x")
    (odd / "new\nline\udcff.jpg").write_bytes(b"")
    (folder / "few").mkdir()
    image.save(folder / "few" / "1.jpg")
    (odd / "loop").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def progress():
    """What was said of the progress of the inspection: the total and the steps."""
    return [], []


@pytest.fixture(scope="module")
def inspection(folder, progress):
    totals, steps = progress
    return inspect_folder(folder, on_total=totals.append, on_progress=steps.append)


@pytest.fixture
def looking_here(monkeypatch):
    """Look at the files in this process: each fresh one imports TensorFlow."""

    def look(folder, paths, max_pixels, on_progress, silence_s, looks):
        for path in paths:
            looks[path] = module._look_at(os.path.join(folder, path), max_pixels)
            on_progress(1)
        return [], ""

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(module, "_look_in_a_child", look)


EXPECTED = {
    "empty.jpg": {"empty"},
    "new\nline\udcff.jpg": {"empty"},
    "half.jpg": {"truncated"},
    "html.jpg": {"undecodable"},
    "bomb.png": {"too large"},
    "gone.jpg": {"unreadable"},
    "pipe.jpg": {"unreadable"},
    "really a png.jpg": {"misnamed"},
    "gray.jpg": {"grayscale"},
    "deep.png": {"16-bit"},
    "rotated.jpg": {"rotated"},
    "clear.png": {"transparent"},
    "moves.webp": {"animated"},
    "again.jpg": {"duplicate"},
    "mine too.jpg": {"two labels"},
    "notes.txt": {"not looked at"},
    "loop": {"not looked at"},
}


def kinds_of(findings) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in findings:
        found.setdefault(os.path.basename(one.path), set()).add(one.kind)
    return found


def test_each_kind_of_trouble_is_found_and_nothing_else(inspection):
    found = kinds_of(inspection.findings)
    assert "cmyk" in found.pop("cmyk.jpg")
    assert found.pop("noise.jpg") & {"undecodable", "truncated", "decoders disagree"}
    assert found.pop("few") == {"few images"}
    assert found == EXPECTED
    assert inspection.classes["good"] == 12
    assert inspection.classes["few"] == 1
    assert Finding("odd/again.jpg", "duplicate", "same bytes as odd/0001.jpg") in inspection.findings


def test_decoders_that_disagree(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "1.jpg"
    cv2.imwrite(str(path), draw_image(1))
    real = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda data, path: 255 - real(data, path))
    findings, _ = module._pixel_findings(path.read_bytes(), str(path), set())
    assert [kind for kind, _ in findings] == ["decoders disagree"]
    monkeypatch.setattr(module, "decode_image", lambda data, path: real(data, path)[:-1])
    (found,), _ = module._pixel_findings(path.read_bytes(), str(path), set())
    assert "(119, 160)" in found[1] and "(120, 160)" in found[1]


def crash_on(name: str, how) -> None:
    """Make decoding one file end the process; runs in the child, through the function that is sent there."""
    real = module._pixel_findings

    def decode(data, path, known):
        if path.endswith(name):
            how()
        return real(data, path, known)

    module._pixel_findings = decode


def without_tensorflow():
    sys.modules["tensorflow"] = types.SimpleNamespace(config=unittest.mock.MagicMock())  # it takes long to import
    module._pixel_findings = lambda data, path, known: ([], None)


def deadly_look_at_all(folder, paths, notes, max_pixels, silence_s):
    without_tensorflow()
    crash_on("0003.jpg", lambda: ctypes.string_at(0))
    crash_on("0006.jpg", lambda: time.sleep(600))
    module_look_at_all(folder, paths, notes, max_pixels, silence_s)


module_look_at_all = module._look_at_all


def found_in(folder, **settings):
    found = {}
    for one in inspect_folder(folder, min_per_class=0, **settings).findings:
        found.setdefault(one.kind, []).append(one.path)
    return found


def test_what_the_jpeg_library_only_warns_of(looking_here, tmp_path):
    folder = write_images(tmp_path / "images", 4, class_names=("a",))
    whole = cv2.imencode(".jpg", draw_image(50), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    middle = len(whole) // 2
    damaged = {
        "zeroed.jpg": whole[:middle] + bytes(60) + whole[middle + 60 :],
        "early end.jpg": whole[:middle] + b"\xff\xd9",
        "junk.jpg": whole[:-2] + np.random.default_rng(0).bytes(200).replace(b"\xff", b"") + b"\xff\xd9",
    }
    for name, data in damaged.items():
        (folder / "a" / name).write_bytes(data)
    assert sorted(found_in(folder)["damaged"]) == sorted(f"a/{name}" for name in damaged)


def test_sixteen_bits_of_which_twelve_are_used(looking_here, tmp_path):
    folder = write_images(tmp_path / "images", 2, class_names=("a",))
    deep = draw_image(3)[:, :, 0].astype(np.uint16)
    cv2.imwrite(str(folder / "a" / "twelve.png"), deep << 4)
    cv2.imwrite(str(folder / "a" / "sixteen.png"), deep << 8)
    found = found_in(folder)
    assert (found["nearly black"], len(found["16-bit"])) == (["a/twelve.png"], 2)


def test_it_sees_the_files_that_find_images_sees(looking_here, tmp_path):
    folder = write_images(tmp_path / "images", 6, class_names=("a", "b"))
    some = (folder / "a" / "0000.jpg").read_bytes()
    for name in ("a/plain", "a/5.jfif", "a/6.tif", "scan/7.tif", "a/@eaDir/8.jpg", "9.jpg"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(some + name.encode())
    (folder / "linked").symlink_to(write_images(tmp_path / "store", 2, class_names=("x",)) / "x")
    with pytest.warns(UserWarning):
        files = find_images(folder)
    inspection = inspect_folder(folder, min_per_class=1)
    assert inspection.files == len(files) + 1  # the one beside the class folders
    assert inspection.classes == {"": 1, "a": 5, "b": 3, "linked": 2}
    assert [(one.path, one.detail) for one in inspection.findings if one.kind == "few images"] == [("scan", "0 usable")]
    assert inspection.summary[0].startswith("left out: 2 .tif")


def test_copies_in_parts_and_classes(looking_here, tmp_path):
    folder = tmp_path / "images"
    for part in ("train", "val"):
        write_images(folder / part, 6, class_names=("a", "b"))
        for number, path in enumerate(sorted((folder / part).rglob("*.jpg"))):
            cv2.imwrite(str(path), draw_image(number + 100 * (part == "val")))
    image = draw_image(1000)
    cv2.imwrite(str(folder / "train/a/first.png"), image)
    cv2.imwrite(str(folder / "train/a/smaller.jpg"), cv2.resize(image, None, fx=0.7, fy=0.7))
    cv2.imwrite(str(folder / "val/a/leak.jpg"), image)
    cv2.imwrite(str(folder / "val/b/other.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 60])
    found = found_in(folder)
    assert found["near copy"] == ["train/a/smaller.jpg"]
    assert found["in two parts"] == ["val/a/leak.jpg"]
    assert found["near copy, two labels"] == ["val/b/other.jpg"]
    (folder / "val/a/same.png").write_bytes((folder / "train/a/first.png").read_bytes())
    (folder / "train/b/same.png").write_bytes((folder / "train/a/first.png").read_bytes())
    found = found_in(folder)
    assert (found["two labels"], "val/a/same.png" in found["in two parts"]) == (["train/b/same.png"], True)


def test_classes_from_a_table(looking_here, tmp_path):
    folder = write_images(tmp_path / "images", 4, class_names=("all",))
    (tmp_path / "labels.tsv").write_text("id\tlabel\n" + "".join(f"{n:04d}\t{'ab'[n % 2]}\n" for n in range(4)))
    assert inspect_folder(folder, labels=tmp_path / "labels.tsv").classes == {"a": 2, "b": 2}


def test_print_colours_are_refused_in_gray(looking_here, tmp_path):
    folder = write_images(tmp_path / "images", 2, class_names=("a",))
    Image.fromarray(draw_image(7)).convert("CMYK").save(folder / "a" / "print.jpg")
    assert found_in(folder)["no gray"] == ["a/print.jpg"]


def test_a_file_that_crashes_or_hangs_a_decoder_is_a_finding(tmp_path, monkeypatch):
    write_images(tmp_path, 12, class_names=("a",))
    monkeypatch.setattr(module, "_look_at_all", deadly_look_at_all)
    progress = []
    found = inspect_folder(tmp_path, min_per_class=1, on_progress=progress.append, silence_s=1.5)
    assert [(one.path, one.kind) for one in found.findings] == [("a/0003.jpg", "deadly"), ("a/0006.jpg", "deadly")]
    assert sum(progress) == 12
    assert found.classes == {"a": 10}


def hungry_look_at_all(folder, paths, notes, max_pixels, silence_s):
    without_tensorflow()
    crash_on("0003.jpg", lambda: np.ones(1 << 30, np.uint8))
    crash_on("0005.jpg", lambda: os.kill(os.getpid(), signal.SIGKILL))  # as the kernel does where memory ends
    crash_on("0007.jpg", lambda: bytes(1 << 50))
    module_look_at_all(folder, paths, notes, max_pixels, silence_s)


def test_too_little_memory_is_no_finding_about_a_file(tmp_path, monkeypatch):
    write_images(tmp_path / "set", 10, class_names=("a",))
    before = tree(tmp_path / "set")
    monkeypatch.setattr(module, "_look_at_all", hungry_look_at_all)
    monkeypatch.setattr(module, "run", functools.partial(module.run, memory_budget=400))
    found = inspect_folder(tmp_path / "set", min_per_class=1)
    assert [(one.path, one.kind) for one in found.findings] == [(f"a/000{n}.jpg", "undecided") for n in (3, 5, 7)]
    assert "budget 400 MiB" in found.findings[0].detail and not found.of("error")
    assert quarantine(found, tmp_path / "away", list(module.KINDS)) == 0
    assert tree(tmp_path / "set") == before


def stalled_look_at_all(folder, paths, notes, max_pixels, silence_s):
    without_tensorflow()
    real = module.read_file
    module.read_file = lambda path: time.sleep(600) if path.endswith(("5.jpg", "6.jpg", "7.jpg")) else real(path)
    module_look_at_all(folder, paths, notes, max_pixels, silence_s)


def test_a_disk_that_does_not_answer_is_left_after_a_few_files(tmp_path, monkeypatch):
    write_images(tmp_path, 40, class_names=("a",))
    monkeypatch.setattr(module, "_look_at_all", stalled_look_at_all)
    progress = []
    found = inspect_folder(tmp_path, min_per_class=1, on_progress=progress.append, silence_s=1.0)
    assert {one.kind for one in found.findings} == {"undecided"} and sum(progress) == 40
    details = {one.path: one.detail for one in found.findings}
    stalled = [path for path, detail in details.items() if detail == "the disk did not deliver it"]
    assert stalled == ["a/0005.jpg", "a/0006.jpg", "a/0007.jpg"]
    assert all("not tried" in details[f"a/00{n}{m}.jpg"] for n in (1, 2, 3) for m in (5, 6, 7))


def test_an_error_of_the_disk_is_no_finding_about_a_file(tmp_path, monkeypatch):
    (tmp_path / "1.jpg").write_bytes(b"x")
    for code, kind in ((errno.EIO, "undecided"), (errno.ENOMEM, "undecided"), (errno.EACCES, "unreadable")):
        monkeypatch.setattr(module, "read_file", unittest.mock.Mock(side_effect=OSError(code, os.strerror(code))))
        assert module._look_at(str(tmp_path / "1.jpg"), 10) == {"findings": [(kind, os.strerror(code))], "sha256": None}


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with open(tmp_path / "1.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert module._look_at(str(tmp_path / "1.jpg"), 10)["findings"] == [("too large", "1,099,511,627,776 bytes")]


def test_what_the_others_saw_is_kept_where_no_child_works_any_more(tmp_path, monkeypatch):
    write_images(tmp_path, 4, class_names=("a",))

    def look(folder, paths, max_pixels, on_progress, silence_s, looks):
        if looks:
            raise ValueError("this machine can spare only 64 MiB")
        looks[paths[0]] = {"findings": [("empty", "0 bytes")], "sha256": None}
        return [], ("undecided", "out of memory")

    monkeypatch.setattr(module, "_look_in_a_child", look)
    found = inspect_folder(tmp_path, min_per_class=1)
    assert [one.kind for one in found.findings] == ["empty", "undecided", "undecided", "undecided"]
    assert "only 64 MiB" in found.findings[1].detail


def test_progress(inspection, progress):
    totals, steps = progress
    assert totals == [inspection.files]
    assert sum(steps) == inspection.files


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        inspect_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert inspect_folder(tmp_path / "empty").files == 0


# ---- quarantine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    write_images(tmp_path / "set", 6, class_names=("a", "b"))
    (tmp_path / "set" / "a" / "bad.jpg").touch()
    (tmp_path / "set" / "b" / "bad.jpg").touch()
    return tmp_path / "set"


def test_a_quarantine_moves_and_puts_back(looking_here, small, tmp_path):
    before = tree(small)
    found = inspect_folder(small, min_per_class=1)
    assert quarantine(found, tmp_path / "away", ["empty"]) == 2
    assert len(tree(small)) == 6
    assert quarantine(inspect_folder(small, min_per_class=1), tmp_path / "away", ["empty"]) == 0
    assert put_back(tmp_path / "away") == (2, [])
    assert tree(small) == before
    with pytest.raises(FileNotFoundError, match="no quarantine"):
        put_back(tmp_path / "away")


def test_nothing_is_overwritten(looking_here, small, tmp_path):
    (tmp_path / "away" / "a").mkdir(parents=True)
    (tmp_path / "away" / "a" / "bad.jpg").write_text("another file of that name")
    quarantine(inspect_folder(small, min_per_class=1), tmp_path / "away", ["empty"])
    assert (tmp_path / "away" / "a" / "bad (2).jpg").exists()
    (small / "a" / "bad.jpg").write_text("a new one")
    moved, faults = put_back(tmp_path / "away")
    assert moved == 1 and len(faults) == 1
    assert (small / "a" / "bad.jpg").read_text() == "a new one"
    (small / "a" / "bad.jpg").unlink()
    assert put_back(tmp_path / "away") == (1, [])
    assert (tmp_path / "away" / "a" / "bad.jpg").read_text() == "another file of that name"


def test_another_disk(looking_here, small, tmp_path, monkeypatch):
    real = Path.rename

    def rename(self, target):
        if Path(target).parent != self.parent:
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    before = tree(small)
    quarantine(inspect_folder(small, min_per_class=1), tmp_path / "away", ["empty"])
    assert put_back(tmp_path / "away") == (2, [])
    assert tree(small) == before


def test_a_quarantine_that_is_interrupted_can_be_undone(looking_here, small, tmp_path, monkeypatch):
    before = tree(small)
    found = inspect_folder(small, min_per_class=1)
    real, calls = moving._move, []

    def move(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(moving, "_move", move)
    with pytest.raises(OSError, match="No space"):
        quarantine(found, tmp_path / "away", ["empty"])
    monkeypatch.undo()
    with open(tmp_path / "away" / "quarantine.jsonl", "ab") as log:
        log.write(b'{"from": "torn')
    assert put_back(tmp_path / "away") == (1, [])
    assert tree(small) == before


@pytest.fixture
def undone(looking_here, small, tmp_path):
    """A quarantine of two files, and what was there before."""
    before = tree(small)
    quarantine(inspect_folder(small, min_per_class=1), tmp_path / "away", ["empty"])
    return before


@pytest.mark.parametrize("name", ["aside", "deep/down/aside"])
def test_a_quarantine_that_was_renamed_can_be_undone(undone, small, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "away").rename(tmp_path / name)
    assert put_back(tmp_path / name) == (2, [])
    assert tree(small) == undone and not (tmp_path / name / "quarantine.jsonl").exists()


def test_a_tree_that_was_moved_can_be_undone(undone, small, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    for name in ("set", "away"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    monkeypatch.chdir(tmp_path / "new" / "away")
    assert put_back(".") == (2, [])
    assert tree(tmp_path / "new" / "set") == undone


def test_images_that_moved_by_themselves_are_asked_for(undone, small, tmp_path, capsys):
    small.rename(tmp_path / "elsewhere")
    log = (tmp_path / "away" / "quarantine.jsonl").read_bytes()
    script = load_script()
    assert script.main(["--undo", str(tmp_path / "away")]) == 1
    output, errors = capsys.readouterr()
    assert output == "0 files moved back\n" and f"2 files came from {small}" in errors
    assert (tmp_path / "away" / "quarantine.jsonl").read_bytes() == log
    assert script.main([str(tmp_path / "nowhere"), "--undo", str(tmp_path / "away")]) == 2
    assert script.main([str(tmp_path / "elsewhere"), "--undo", str(tmp_path / "away")]) == 0
    assert tree(tmp_path / "elsewhere") == undone


def test_of_two_folders_that_may_be_meant_none_is_taken(undone, small, tmp_path):
    shutil.copytree(tmp_path / "set", tmp_path / "copy" / "set")
    shutil.copytree(tmp_path / "away", tmp_path / "copy" / "away")
    moved, faults = put_back(tmp_path / "copy" / "away")
    assert moved == 0 and len(faults) == 1
    quarantine(inspect_folder(tmp_path / "copy" / "set"), tmp_path / "copy" / "away", ["empty"])  # it changes nothing
    assert put_back(tmp_path / "copy" / "away", tmp_path / "copy" / "set") == (2, [])
    assert tree(tmp_path / "copy" / "set") == undone and len(tree(small)) == 6


def test_lines_that_cannot_be_followed_stay_in_the_log(undone, small, tmp_path):
    log = tmp_path / "away" / "quarantine.jsonl"
    log.write_bytes(log.read_bytes() + b'{}\nrubbish\n{"from": 3, "to": []}\n{"torn')
    (tmp_path / "away" / "b" / "bad.jpg").unlink()
    moved, faults = put_back(tmp_path / "away")
    assert moved == 1 and len(faults) == 4
    assert len(log.read_bytes().splitlines()) == 4
    quarantine(inspect_folder(small, min_per_class=1), tmp_path / "away", ["empty"])
    moved, faults = put_back(tmp_path / "away")
    assert moved == 1 and len(faults) == 4


def test_a_log_of_an_earlier_version(small, tmp_path):
    log = tmp_path / "away" / "quarantine.jsonl"
    (tmp_path / "away" / "a").mkdir(parents=True)
    bad, away = small / "a" / "bad.jpg", tmp_path / "away" / "a" / "bad.jpg"
    bad.rename(away)
    log.write_text(json.dumps({"from": str(bad), "to": str(away), "why": "empty"}) + "\n")
    assert put_back(tmp_path / "away") == (1, [])
    assert bad.exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(looking_here, folder, small, tmp_path, capsys):
    script = load_script()
    assert script.main([str(folder), "--json", str(tmp_path / "found.json")]) == 1
    output = capsys.readouterr().out
    assert "too large" in output and "images/min" in output
    found = json.loads((tmp_path / "found.json").read_text())
    assert kinds_of([Finding(one["path"], one["kind"], "") for one in found["findings"]])["bomb.png"] == {"too large"}
    assert script.main([str(small), "--min-per-class", "1", "--quarantine", str(tmp_path / "away")]) == 1
    assert "2 files moved" in capsys.readouterr().out
    assert script.main([str(small), "--min-per-class", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert script.main(["--undo", str(tmp_path / "away")]) == 0
    assert script.main(["--undo", str(tmp_path / "away")]) == 2
    assert script.main([str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--undo", "y", "--json", "z"],
        ["x", "--kinds", "ugly"],
        ["x", "--kinds", "undecided"],
        ["x", "--max-pixels", "-1"],
        ["x", "--quarantine", "x/y"],
        ["x", "--json", "."],
        ["x", "--json", __file__],
        ["x", "--json", os.devnull],
    ],
)
def test_arguments_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        load_script().main(arguments)
    assert ended.value.code == 2


@pytest.mark.timeout(120)
def test_ctrl_c(image_folder):
    command = [sys.executable, str(SCRIPT), str(image_folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not psutil.Process(process.pid).children():
        time.sleep(0.05)  # until it looks at the images
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # it may have been quick
    assert "Traceback" not in error


def test_a_label_in_doubt_is_not_moved_unless_asked_for(looking_here, tmp_path, capsys):
    write_images(tmp_path / "set", 4, class_names=("a", "b"))
    first, second = (tmp_path / "set" / name for name in ("a/0000.jpg", "b/0001.jpg"))
    second.write_bytes(first.read_bytes())
    arguments = [str(tmp_path / "set"), "--min-per-class", "1", "--quarantine", str(tmp_path / "away")]
    assert load_script().main(arguments) == 1
    assert "0 files moved" in capsys.readouterr().out
    assert second.exists()
    assert load_script().main([*arguments, "--kinds", "two labels"]) == 1
    assert not second.exists() and first.exists()


def test_an_undecided_file_is_reported_apart(looking_here, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "set", 4, class_names=("a", "b"))
    monkeypatch.setattr(module, "read_file", unittest.mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    arguments = [str(tmp_path / "set"), "--min-per-class", "1", "--quarantine", str(tmp_path / "away")]
    assert load_script().main(arguments) == 2
    output = capsys.readouterr().out
    assert "0 errors, 0 warnings, 0 notes; 4 files undecided" in output and "0 files moved" in output
    (tmp_path / "set" / "a" / "gone.jpg").symlink_to("/nowhere")
    assert load_script().main(arguments) == 1


NAMES = ("写真.jpg", "a[b]b.jpg", "a[/b].jpg", ":cat:.jpg", "\x1b[31mred\x1b[2J.jpg", "two\nlines.jpg", "\udcff.jpg")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_no_name_stops_the_command_or_steers_the_terminal(looking_here, tmp_path, monkeypatch, encoding):
    (tmp_path / "set").mkdir()
    for name in NAMES:
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).touch()
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("COLUMNS", "200")
    away = tmp_path / "写\x1b"
    arguments = [str(tmp_path / "set"), "--json", str(tmp_path / "found.json"), "--quarantine", str(away)]
    assert load_script().main([*arguments, "--min-per-class", "0"]) == 1
    assert len(json.loads((tmp_path / "found.json").read_text())["findings"]) == len(NAMES)
    assert len(list(away.rglob("*.jpg"))) == len(NAMES)
    shown = output.buffer.getvalue().decode(encoding)
    assert "\x1b" not in shown and "\x1b" not in errors.buffer.getvalue().decode(encoding)
    for name in ("a[b]b.jpg", "a[/b].jpg", ":cat:.jpg", r"\x1b[31mred\x1b[2J.jpg", r"two\nlines.jpg"):
        assert name in shown
    assert ("写真.jpg" if encoding == "utf-8" else r"\u5199\u771f.jpg") in shown


def test_json_on_standard_output_is_nothing_else(looking_here, small, tmp_path, capsys):
    arguments = [str(small), "--min-per-class", "1", "--json", "-", "--quarantine", str(tmp_path / "away")]
    assert load_script().main(arguments) == 1
    output, errors = capsys.readouterr()
    assert len(json.loads(output)["findings"]) == 2
    assert "2 files moved" in errors


def test_findings_take_the_place_of_findings_only(looking_here, small, tmp_path, capsys):
    found, thesis = tmp_path / "found.json", tmp_path / "thesis.json"
    arguments = [str(small), "--min-per-class", "1", "--json"]
    for _ in range(2):
        assert load_script().main([*arguments, str(found)]) == 1
    thesis.write_text('{"years": "of work"}')
    with pytest.raises(SystemExit):
        load_script().main([*arguments, str(thesis)])
    assert "there is something else" in capsys.readouterr().err
    assert thesis.read_text() == '{"years": "of work"}'


def test_a_full_disk_spoils_neither_the_table_nor_the_exit_status(looking_here, small, tmp_path, monkeypatch, capsys):
    script = load_script()
    monkeypatch.setattr(script, "save", unittest.mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    assert script.main([str(small), "--json", str(tmp_path / "found.json")]) == 2
    output, errors = capsys.readouterr()
    assert "2 errors" in output and "No space left" in errors


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(image_folder, tmp_path, number):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), str(image_folder)]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while not (notes := list(tmp_path.glob("inspection-*/notes.jsonl"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert notes
    process.send_signal(number)
    assert process.wait(timeout=60) in (0, 128 + number)  # it may have been quick
    assert os.listdir(tmp_path) == ["errors"] and "Traceback" not in (tmp_path / "errors").read_text()


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("name", ["check_images", "download_images", "make_images", "make_styles"])
def test_ctrl_c_while_it_imports(name, tmp_path):
    (tmp_path / "numpy.py").write_text("import time\nopen(__file__ + '.begun', 'w').close()\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT.with_name(f"{name}.py")), "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "numpy.py.begun").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT, errors
    assert not errors and not output
