"""Folders become lists, files become pixels, and whatever is wrong with either is said and named."""

import io
import os
import pickle
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CLASS_NAMES, draw_image
from PIL import Image

from helpers import images
from helpers.folders import ImageFiles, course_images, find_images, find_labelled_images, find_unlabelled_images
from helpers.images import MAX_PIXELS, BrokenFiles, read_file, read_image

needs_odd_names = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")


def encoded(suffix, image, *options):
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return data.tobytes()


def stored(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return str(folder / name)


PICTURE = draw_image(7)  # as OpenCV writes it: BGR
JPEG = encoded(".jpg", PICTURE)


# ---- find_images -----------------------------------------------------------------------------------------------------


def test_lists_classes_and_files_in_alphabetical_order(image_folder):
    files = find_images(image_folder)
    assert files.class_names == CLASS_NAMES
    assert len(files) == 40
    assert list(files.paths) == sorted(files.paths)
    assert all(os.path.isfile(path) for path in files.paths)
    assert [files.class_names[label] for label in files.labels] == [Path(path).parent.name for path in files.paths]
    assert files.labels.dtype == np.int64


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path):
    stored(tmp_path / "cat", "1.jpg", JPEG)
    stored(tmp_path / "cat" / "young" / "very", "2.jpg", JPEG)
    stored(tmp_path / "dog", "3.jpg", JPEG)
    files = find_images(tmp_path)
    assert [Path(path).name for path in files.paths] == ["1.jpg", "2.jpg", "3.jpg"]
    assert files.labels.tolist() == [0, 0, 1]


def test_leaves_out_what_is_hidden_and_what_is_no_image(tmp_path):
    stored(tmp_path / "cat", "1.jpg", JPEG)
    for name in (".2.jpg", "._1.jpg", "notes.txt", "3.jpg.part", ".jpg"):
        stored(tmp_path / "cat", name, JPEG)
    stored(tmp_path / "cat", "jpg", b"no image")
    stored(tmp_path / ".cache", "4.jpg", JPEG)
    stored(tmp_path / "cat" / ".thumbnails", "5.jpg", JPEG)
    stored(tmp_path, "cover.jpg", JPEG)
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning) as caught:
        files = find_images(tmp_path)
    assert "no images in empty" in str(caught[0].message)
    assert "left out 1 images beside the class folders, such as cover.jpg" in str(caught[1].message)
    assert [Path(path).name for path in files.paths] == ["1.jpg"]
    assert files.class_names == ("cat",)
    left_out = "left out: 5 hidden, 1 .part, 1 .txt, 1 images beside the class folders, 1 without ending"
    assert files.summary.splitlines() == ["1 images, 1 classes: cat: 1", left_out]


def test_suffixes_in_any_case(tmp_path):
    names = ["A.JPG", "b.Jpeg", "c.PNG", "d.bmp", "e.WebP"]
    for name in names:
        stored(tmp_path / "cat", name, JPEG)
    assert [Path(path).name for path in find_images(tmp_path).paths] == names


@needs_odd_names
def test_any_file_name_is_listed_and_can_be_read(tmp_path):
    names = [b"a b.jpg", b'it\'s "one".jpg', b"new\nline.jpg", b"caf\xe9.jpg", b"\xff\xfe.jpg", "ß✓.jpg".encode()]
    folder = os.fsencode(tmp_path / "cat")
    os.mkdir(folder)
    for name in names:
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(JPEG)
    files = find_images(tmp_path)
    assert sorted(os.fsencode(os.path.basename(path)) for path in files.paths) == sorted(names)
    assert all(read_image(path).shape == (120, 160, 3) for path in files.paths)
    assert pickle.loads(pickle.dumps(files)).paths == files.paths


@needs_odd_names
def test_an_error_about_an_odd_name_can_be_printed(tmp_path):
    path = stored(tmp_path, os.fsdecode(b"caf\xe9.jpg"), b"")
    with pytest.raises(ValueError, match=r"caf\\udce9\.jpg: an empty file") as caught:
        read_image(path)
    str(caught.value).encode("utf-8")


def test_links_that_lead_round_in_a_circle(tmp_path):
    root = tmp_path / "root"
    stored(root / "cat", "1.jpg", JPEG)
    (root / "here").symlink_to(root)
    (root / "up").symlink_to("..")
    (root / "itself").symlink_to("itself")
    (root / "nowhere").symlink_to("missing")
    (root / "cat" / "again").symlink_to(root / "cat")
    assert [Path(path).name for path in find_images(root).paths] == ["1.jpg"]


def test_a_class_folder_may_be_a_link_to_somewhere_else(tmp_path):
    stored(tmp_path / "elsewhere", "1.jpg", JPEG)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    files = find_images(tmp_path / "root")
    assert files.class_names == ("cat",)
    assert [Path(path).name for path in files.paths] == ["1.jpg"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    stored(tmp_path / "cat" / "album.jpg", "1.jpg", JPEG)
    assert [Path(path).name for path in find_images(tmp_path).paths] == ["1.jpg"]
    (tmp_path / "other" / "x.jpg").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images"):
        find_images(tmp_path / "other")


def test_a_folder_that_may_not_be_read_is_not_left_out_silently(tmp_path, monkeypatch):
    stored(tmp_path / "cat", "1.jpg", JPEG)
    stored(tmp_path / "dog", "2.jpg", JPEG)
    scandir = os.scandir

    def guarded(path="."):  # the superuser may read everything: permissions cannot be tested with chmod
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="dog"):
        find_images(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing: no such folder; .*make_images"):
        find_images(tmp_path / "missing")


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"1\.jpg: a file"):
        find_images(stored(tmp_path, "1.jpg", JPEG))


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images"):
        find_images(tmp_path)


def test_images_without_class_folders(tmp_path):
    stored(tmp_path, "1.jpg", JPEG)
    with pytest.raises(ValueError, match="images but no class folders; move them"):
        find_images(tmp_path)


# ---- ImageFiles ------------------------------------------------------------------------------------------------------


def listed(count, classes=4):
    return ImageFiles(
        tuple(f"{i}.jpg" for i in range(count)), np.arange(count) * classes // count, tuple("abcdefgh"[:classes])
    )


def test_labels_cannot_be_changed_by_accident():
    labels = np.array([0, 1])
    files = ImageFiles(("a", "b"), labels, ("x", "y"))
    with pytest.raises(ValueError, match="read-only"):
        files.labels[0] = 1
    labels[0] = 1  # the caller's own array stays free
    assert files.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "error"),
    [([0], ValueError), ([0, 2], ValueError), ([-1, 0], ValueError), ([0.0, 1.0], TypeError), ([[0], [1]], ValueError)],
)
def test_labels_that_do_not_fit_are_refused(labels, error):
    with pytest.raises(error):
        ImageFiles(("a", "b"), np.array(labels), ("x", "y"))


def test_select_keeps_each_label_with_its_path():
    files = listed(8).select([5, 0, -1])
    assert files.paths == ("5.jpg", "0.jpg", "7.jpg")
    assert files.labels.tolist() == [2, 0, 3]
    assert len(files.select([])) == 0


@pytest.mark.parametrize("indices", [np.array([True, False]), [0.5], ["0"]])
def test_select_refuses_what_is_no_index(indices):
    with pytest.raises(TypeError, match="give whole numbers"):
        listed(8).select(indices)


def test_take_spreads_over_the_classes():
    assert np.bincount(listed(40).take(8).labels).tolist() == [2, 2, 2, 2]
    assert listed(40).take(40).paths == listed(40).paths
    assert len(listed(40).take(0)) == 0
    with pytest.raises(ValueError, match=r"repeat_to\(\)"):
        listed(40).take(41)


def test_split_shares_no_image_and_keeps_the_proportions():
    files = listed(40)
    first, second = files.split(0.25)
    assert set(first.paths) | set(second.paths) == set(files.paths)
    assert not set(first.paths) & set(second.paths)
    assert np.bincount(second.labels).tolist() == [2, 2, 2, 2]
    assert files.split(0.25)[1].paths == second.paths
    assert files.split(0.25, seed=1)[1].paths != second.paths
    for fraction in (0, 1, -0.5, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            files.split(fraction)


def test_repeat_to_names_the_same_files_again():
    files = listed(4).repeat_to(10)
    assert files.paths == ("0.jpg", "1.jpg", "2.jpg", "3.jpg") * 2 + ("0.jpg", "1.jpg")
    assert files.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len(listed(4).repeat_to(2)) == 2
    for empty_or_negative in (lambda: listed(4).select([]).repeat_to(3), lambda: listed(4).repeat_to(-1)):
        with pytest.raises(ValueError, match="cannot repeat"):
            empty_or_negative()


def test_bytes_on_disk(tmp_path):
    path = stored(tmp_path, "1.jpg", JPEG)
    assert ImageFiles((path, path), [0, 0], ("x",)).bytes_on_disk() == 2 * len(JPEG)


# ---- read_image ------------------------------------------------------------------------------------------------------


def exif(orientation, thumbnail=b""):
    """An APP1 segment with an orientation and, if given, a thumbnail (Exif 2.32, section 4.5)."""
    first = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
    if thumbnail:
        start = 8 + len(first) + 4
        second = struct.pack("<HHHIIHHII", 2, 0x0201, 4, 1, start + 30, 0x0202, 4, 1, len(thumbnail))
        tiff = struct.pack("<2sHI", b"II", 42, 8) + first + struct.pack("<I", start) + second + bytes(4) + thumbnail
    else:
        tiff = struct.pack("<2sHI", b"II", 42, 8) + first + bytes(4)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def with_exif(*arguments):
    return JPEG[:2] + exif(*arguments) + JPEG[2:]


def rgb(image):
    return image[:, :, ::-1].astype(int)


def test_reads_rgb_of_the_size_asked_for(tmp_path):
    path = stored(tmp_path, "1.jpg", JPEG)
    image = read_image(path)
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
    assert np.abs(image - rgb(PICTURE)).mean() < 2
    assert np.abs(image[:, :, ::-1] - rgb(PICTURE)).mean() > 20
    assert read_image(path, image_size=(50, 70)).shape == (50, 70, 3)
    assert read_image(path, image_size=(50, 70), channels=1).shape == (50, 70, 1)
    assert read_image(path, channels=1).shape == (120, 160, 1)


@pytest.mark.parametrize("channels", [0, 2, 4, None])
def test_other_numbers_of_channels_are_refused(tmp_path, channels):
    with pytest.raises(ValueError, match="3 for RGB or 1 for grayscale"):
        read_image(stored(tmp_path, "1.jpg", JPEG), channels=channels)


def test_orientation_is_not_applied(tmp_path):
    plain = read_image(stored(tmp_path, "plain.jpg", JPEG))
    turned = stored(tmp_path, "turned.jpg", with_exif(6))
    assert cv2.imread(turned).shape == (160, 120, 3)  # the orientation is there: OpenCV alone would apply it
    assert np.array_equal(read_image(turned), plain)
    assert read_image(turned, channels=1).shape == (120, 160, 1)


@pytest.mark.parametrize(
    "data",
    [
        encoded(".png", PICTURE),
        encoded(".png", np.dstack([PICTURE, np.full((120, 160), 9, np.uint8)])),
        encoded(".png", PICTURE.astype(np.uint16) * 257),
        encoded(".bmp", PICTURE),
        encoded(".webp", PICTURE, cv2.IMWRITE_WEBP_QUALITY, 101),
    ],
    ids=["png", "png with alpha", "png of 16 bits", "bmp", "webp without loss"],
)
@pytest.mark.parametrize("name", ["right", "wrong.jpg"])
def test_other_formats_also_under_a_wrong_name(tmp_path, data, name):
    assert np.array_equal(read_image(stored(tmp_path, name, data)), rgb(PICTURE))


def test_grayscale_files_have_three_equal_channels(tmp_path):
    image = read_image(stored(tmp_path, "1.jpg", encoded(".jpg", PICTURE[:, :, 0])))
    assert image.shape == (120, 160, 3)
    assert np.array_equal(image[:, :, 0], image[:, :, 2])


def test_cmyk(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pillow.fromarray(PICTURE[:, :, ::-1]).convert("CMYK").save(buffer, "JPEG", quality=95)
    image = read_image(stored(tmp_path, "1.jpg", buffer.getvalue()))
    assert np.abs(image - rgb(PICTURE)).mean() < 6


@pytest.mark.parametrize("progressive", [0, 1])
def test_truncated_anywhere(tmp_path, progressive):
    data = encoded(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    lengths = {2, 3, 20, len(data) // 4, len(data) // 2, len(data) - 100, len(data) - 2, len(data) - 1}
    for length in sorted(lengths | set(range(3, len(data), 97))):
        path = stored(tmp_path, "broken.jpg", data[:length])
        with pytest.raises(ValueError, match=r"broken\.jpg: truncated JPEG \([\d,]+ bytes and no end\)"):
            read_image(path)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(tmp_path):
    thumbnail = encoded(".jpg", cv2.resize(PICTURE, (64, 48)))
    whole = with_exif(1, thumbnail)
    assert np.array_equal(
        read_image(stored(tmp_path, "whole.jpg", whole)), read_image(stored(tmp_path, "plain.jpg", JPEG))
    )
    header = whole.index(thumbnail) + len(thumbnail)
    for length in (header, header + 1, header + 200, len(whole) // 2 + header // 2, len(whole) - 2):
        with pytest.raises(ValueError, match=r"broken\.jpg: (truncated JPEG|[\d,]+ bytes that OpenCV cannot decode)"):
            read_image(stored(tmp_path, "broken.jpg", whole[:length]))


@pytest.mark.parametrize(
    "rest",
    [
        b"\0" * 500,
        b"\xff\xda garbage",
        b"\xff\xd8\xff\xe1 half a second image",
        np.random.default_rng(0).bytes(200_000),
    ],
)
def test_what_follows_the_end_of_the_image_does_not_matter(tmp_path, rest):
    plain = read_image(stored(tmp_path, "plain.jpg", JPEG))
    assert np.array_equal(read_image(stored(tmp_path, "more.jpg", JPEG + rest)), plain)


def test_truncation_is_seen_whatever_follows_in_the_header(tmp_path):
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 4) + b"\xff\xd9\xff\xd9"  # an end marker inside a segment is data
    data = JPEG[:2] + comment + JPEG[2:]
    assert read_image(stored(tmp_path, "whole.jpg", data)).shape == (120, 160, 3)
    with pytest.raises(ValueError, match="truncated JPEG"):
        read_image(stored(tmp_path, "broken.jpg", data[: len(data) // 2]))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_other_truncated_formats_are_named(tmp_path, suffix):
    data = encoded(suffix, PICTURE)
    for length in (1, 20, len(data) // 2, len(data) - 20):
        with pytest.raises(ValueError, match=r"broken.*bytes that OpenCV cannot decode"):
            read_image(stored(tmp_path, f"broken{suffix}", data[:length]))


def test_files_that_are_no_images_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"page\.jpg: 26 bytes that OpenCV cannot decode; remove it"):
        read_image(stored(tmp_path, "page.jpg", b"<html>404 Not Found</html>"))
    with pytest.raises(ValueError, match=r"nothing\.jpg: an empty file"):
        read_image(stored(tmp_path, "nothing.jpg", b""))
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        read_image(str(tmp_path / "missing.jpg"))
    with pytest.raises(IsADirectoryError if os.name == "posix" else PermissionError, match="album"):
        (tmp_path / "album.jpg").mkdir()
        read_image(str(tmp_path / "album.jpg"))


@needs_odd_names
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_neither_listed_nor_waited_for(tmp_path):
    folder = tmp_path / "cat"
    sound = stored(folder, "1.jpg", JPEG)
    os.mkfifo(folder / "2.jpg")
    (folder / "3.jpg").symlink_to("/dev/zero")
    (folder / "4.jpg").symlink_to("4.jpg")
    with pytest.warns(UserWarning, match="left out 2 that are no regular files.*2.jpg"):
        assert find_images(tmp_path).paths == (sound, str(folder / "4.jpg"))
    for name in ("2.jpg", "3.jpg"):
        with pytest.raises(ValueError, match=f"{name}: no regular file"):
            read_file(str(folder / name))
    with pytest.raises(OSError, match=r"4\.jpg"):
        read_file(str(folder / "4.jpg"))


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path):
    with open(tmp_path / "1.jpg", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"1\.jpg: 1,099,511,627,776 bytes are too many"):
        read_file(str(tmp_path / "1.jpg"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".gif"])
def test_the_size_in_the_header_is_read_before_the_pixels(suffix):
    data = encoded(suffix, PICTURE)
    assert images._stored_size(data) == PICTURE.shape[:2]
    assert images._stored_size(data[:15]) in ((0, 0), PICTURE.shape[:2])


@pytest.mark.parametrize("settings", [{"quality": 80}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_the_size_in_each_kind_of_webp(settings):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "WEBP", **settings)
    assert images._stored_size(buffer.getvalue()) == PICTURE.shape[:2]


def test_the_largest_image_that_is_decoded(tmp_path, monkeypatch):
    path = stored(tmp_path, "1.jpg", JPEG)
    monkeypatch.setattr(images, "MAX_PIXELS", 120 * 160)
    assert read_image(path).shape == (120, 160, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 120 * 160 - 1)
    with pytest.raises(ValueError, match=r"1\.jpg: 160×120 pixels by its header, and 19,199 are the limit"):
        read_image(path)
    assert MAX_PIXELS * 3 <= 2**29


def test_broken_files_are_raised_or_kept(tmp_path):
    with pytest.raises(FileNotFoundError), BrokenFiles("raise").caught("none"):
        read_image("none")
    broken = BrokenFiles("skip")
    with pytest.warns(UserWarning, match="none.*`.skipped` lists all of them") as caught:
        for path in ("none", "nothing", str(tmp_path)):
            with broken.caught(path):
                read_image(path)
    assert len(caught) == 1
    assert set(broken) == {"none", "nothing", str(tmp_path)}
    assert "No such file" in broken["nothing"]
    with pytest.raises(ZeroDivisionError), broken.caught("1.jpg"):
        print(1 / 0)
    broken.require(1)
    with pytest.raises(ValueError, match="not one of 3 files could be read"):
        broken.require(0)
    BrokenFiles("skip").require(0)  # an empty list is nobody's fault


# ---- course_images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_project(tmp_path, monkeypatch):
    """A project whose program for making images writes small ones, and notes each call."""
    script = tmp_path / "data_scripts" / "make_images.py"
    script.parent.mkdir()
    script.write_text(
        "import pathlib, sys\n"
        "count, folder = int(sys.argv[2]), pathlib.Path(sys.argv[4])\n"
        "with open(pathlib.Path(__file__).with_name('calls'), 'a') as file: print(count, file=file)\n"
        "if count > 100: sys.exit('the disk is full')\n"
        "for n in range(count):\n"
        "    (folder / 'ab'[n % 2]).mkdir(parents=True, exist_ok=True)\n"
        "    (folder / 'ab'[n % 2] / f'{n:06d}.jpg').touch()\n"
    )
    monkeypatch.setattr("helpers.folders._PROJECT_ROOT", tmp_path)
    return tmp_path


def test_course_images_are_made_once(own_project):
    assert len(course_images(6)) == 6
    assert sorted(Path(path).stem for path in course_images(4).paths) == ["000000", "000001", "000002", "000003"]
    assert len(course_images(6)) == 6
    assert (own_project / "data_scripts" / "calls").read_text() == "6\n"


def test_course_images_leave_out_what_is_not_theirs(own_project):
    course_images(4)
    stored(own_project / "data" / "generated" / "a", "holiday.jpg", JPEG)
    stored(own_project / "data" / "generated" / "a", "._000000.jpg", JPEG)
    assert len(course_images(4)) == 4


def test_the_number_of_course_images_comes_from_the_environment(own_project, monkeypatch):
    monkeypatch.setenv("COURSE_IMAGES", "3")
    assert len(course_images()) == 3


@pytest.mark.parametrize("count", ["many", "0", "-3", "2.5", ""])
def test_a_wrong_number_of_course_images_is_refused(own_project, monkeypatch, count):
    monkeypatch.setenv("COURSE_IMAGES", count)
    with pytest.raises(ValueError, match="COURSE_IMAGES"):
        course_images()


def test_why_course_images_could_not_be_made_is_told(own_project):
    with pytest.raises(RuntimeError, match="the disk is full"):
        course_images(200)


# ---- labels in a CSV file --------------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"photo {number}.jpg"), draw_image(number))
    return folder


def labels_of(found) -> dict:
    names = [found.class_names[label] for label in found.labels]
    return {Path(path).name: name for path, name in zip(found.paths, names, strict=True)}


@pytest.mark.parametrize(
    "header, line",
    [
        ("id,breed", "photo {n},{label}"),
        ("file;label", "photo {n}.jpg;{label}"),
        ("subject\tclassname\timg", "p{n}\t{label}\tphoto {n}.jpg"),
        ('"x","image"', '"{label}","./photo {n}.jpg"'),
    ],
)
def test_classes_from_a_csv_file(flat, header, line):
    lines = [line.format(n=n, label="cat" if n % 2 else "a dog") for n in range(6)]
    if "./" in line:
        lines = [one.replace("./", "") for one in lines]
    (flat / "labels.csv").write_text("\n".join([header, *lines]), encoding="utf-8-sig")
    found = find_labelled_images(flat, flat / "labels.csv")
    assert found.class_names == ("a dog", "cat")
    assert labels_of(found) == {f"photo {n}.jpg": "cat" if n % 2 else "a dog" for n in range(6)}


def test_paths_below_the_folder_tell_equal_names_apart(image_folder, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.jpg"), draw_image(1))
    table = tmp_path / "labels.csv"
    table.write_text("path,label\none/a.jpg,x\ntwo/a.jpg,y\n")
    assert find_labelled_images(tmp_path, table).class_names == ("x", "y")
    table.write_text("path,label\na.jpg,x\n")
    with pytest.raises(ValueError, match=r"a\.jpg names several files"):
        find_labelled_images(tmp_path, table)


def test_lines_without_file_and_files_without_line_are_counted(flat):
    (flat / "labels.csv").write_text("id,label\nphoto 1,a\nphoto 2,b\nphoto 99,b\n")
    with pytest.warns(UserWarning) as caught:
        found = find_labelled_images(flat, flat / "labels.csv")
    assert len(found) == 2
    assert "1 lines name files that are not there" in str(caught[0].message)
    assert "4 files are in no line" in str(caught[1].message)


def test_a_csv_file_that_says_too_little(flat):
    table = flat / "labels.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column names files"):
        find_labelled_images(flat, table)
    table.write_text("id,height,width\nphoto 1,3,4\n")
    with pytest.raises(ValueError, match="which of the columns id, height, width holds the classes"):
        find_labelled_images(flat, table)
    with pytest.warns(UserWarning, match="5 files"):
        assert find_labelled_images(flat, table, label_column="width").class_names == ("4",)
    table.write_text("")
    with pytest.raises(ValueError, match="no column names files"):
        find_labelled_images(flat, table)
    with pytest.raises(FileNotFoundError):
        find_labelled_images(flat / "nowhere", table)


def test_images_without_labels_are_one_class(flat):
    found = find_unlabelled_images(flat)
    assert (len(found), found.class_names, set(found.labels)) == (6, ("flat",), {0})
    (flat / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"):
        find_unlabelled_images(flat / "empty")
