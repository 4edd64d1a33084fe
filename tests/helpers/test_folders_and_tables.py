"""Folders and tables as people have them: each is understood, or refused with a line that says what to give instead.

The layouts are those of public data sets and of questions that people asked about them.
"""

import gc
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.folders import find_any_images, find_images, find_labelled_images
from helpers.listing import list_folder

PICTURE = cv2.imencode(".jpg", np.full((8, 8, 3), 100, np.uint8))[1].tobytes()


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    return root


def numbered(folder: str, *numbers: int) -> list[str]:
    return [f"{folder}{number:04d}.jpg" for number in numbers]


def counts(found) -> dict[str, int]:
    return {name: int(np.sum(found.labels == number)) for number, name in enumerate(found.class_names)}


def quietly(function, *arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*arguments, **settings)


# ---- folders that are no classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, give",
    [
        (["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"], r"find_images\('.*/train'\)"),
        (["Training/cat/1.jpg", "Validation/cat/3.jpg", "test/9.jpg"], r"find_images\('.*/Training'\)"),
        (["fold1/cat/1.jpg", "fold_2/cat/2.jpg", "fold-10/dog/3.jpg"], r"find_images\('.*/fold-10'\)"),
        (["train2014/1.jpg", "val2014/2.jpg"], r"find_unlabelled_images\('.*/train2014'\)"),
        (["train/1.jpg", "test/2.jpg"], r"find_unlabelled_images\('.*/train'\)"),
        (["images/1.jpg", "masks/1.jpg"], r"find_unlabelled_images\('.*/images'\)"),
        (["images/1.jpg"], r"find_unlabelled_images\('.*/images'\)"),
        (["images/cat/1.jpg", "images/dog/1.jpg"], r"find_images\('.*/images'\)"),
        (["flowers/rose/1.jpg", "flowers/tulip/2.jpg"], r"all images are in folders of .*/flowers; give that$"),
        (
            ["flowers/flowers/rose/1.jpg", "flowers/flowers/tulip/2.jpg"],
            r"of .*/flowers/flowers; give that$",
        ),
        (["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg", "dog/test/4.jpg"], "put the parts above the classes"),
        (["siteA/ill/1.jpg", "siteA/well/2.jpg", "siteB/ill/3.jpg", "siteB/well/4.jpg"], r"find_images\('.*/siteA'\)"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, names, give):
    write(tmp_path, *names)
    with pytest.raises(ValueError, match=give):
        find_images(tmp_path)
    with pytest.raises(ValueError, match=give):
        find_any_images(tmp_path)


def test_a_kaggle_root_names_the_table_of_the_part(tmp_path):
    write(tmp_path, *numbered("train/", 1, 2), *numbered("test/", 3))
    (tmp_path / "sample_submission.CSV").write_text("id,label\n0003,a\n")
    (tmp_path / "train.csv").write_text("id,label\n0001,a\n0002,b\n")
    with pytest.raises(ValueError, match=r"find_labelled_images\('.*/train', '.*/train\.csv'\)"):
        find_any_images(tmp_path)


@pytest.mark.parametrize("names", [["train/1.jpg", "bus/2.jpg"], ["mask/1.jpg", "no_mask/2.jpg"], ["cat/a/1.jpg"]])
def test_classes_that_only_look_like_parts(tmp_path, names):
    assert len(quietly(find_images, write(tmp_path, *names))) == len(names)


def test_class_names_say_that_parts_are_classes(tmp_path):
    write(tmp_path, "train/1.jpg", "test/2.jpg")
    assert quietly(find_images, tmp_path, class_names=("train", "test")).class_names == ("train", "test")


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_a_class_that_is_missing_keeps_its_number(tmp_path):
    train = find_images(write(tmp_path / "train", "a/1.jpg", "b/2.jpg", "c/3.jpg"))
    write(tmp_path / "val", "a/1.jpg", "c/3.jpg", "b/.gitkeep")
    with pytest.warns(UserWarning, match="no images in b"):
        assert find_images(tmp_path / "val").class_names == ("a", "c")
    with pytest.warns(UserWarning, match="no images in b"):
        found = find_images(tmp_path / "val", class_names=train.class_names)
    assert counts(found) == {"a": 1, "b": 0, "c": 1}
    write(tmp_path / "val", "d/1.jpg")
    with pytest.raises(ValueError, match="d are not in class_names"):
        find_images(tmp_path / "val", class_names=train.class_names)


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    write(tmp_path, *(f"{number}/1.jpg" for number in (0, 1, 2, 10, 11)))
    assert find_images(tmp_path).class_names == ("0", "1", "2", "10", "11")
    write(tmp_path, "x/1.jpg")
    assert find_images(tmp_path).class_names == ("0", "1", "10", "11", "2", "x")


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_left_out(tmp_path):
    root = write(tmp_path / "root", "cat/1.jpg", "cat/2.tif", "cat/3.HEIC", "cat/4.tif", "dog/5.jfif", "dog/plain")
    write(root, "cat/@eaDir/1.jpg", "$RECYCLE.BIN/9.jpg", "lost+found/8.jpg", "scan/6.tif", "cat/readme.md", ".x.jpg")
    (root / "labels.csv").write_text("file,label\n")
    (root / "fox").symlink_to(write(tmp_path / "store", "7.jpg"))
    with pytest.warns(UserWarning) as caught:
        found = find_images(root)
    messages = [str(one.message).removeprefix(f"{root}: ") for one in caught]
    assert messages == ["left out 3 .tif, 1 .heic, which no pipeline reads; convert them", "no images in scan"]
    assert counts(found) == {"cat": 1, "dog": 2, "fox": 1}
    first, left_out, tables, links = found.summary.splitlines()
    assert first == "4 images, 3 classes: cat: 1, dog: 2, fox: 1"
    files, folders = {"3 .tif", "1 .heic", "1 .md", "1 hidden"}, {"@eaDir", "$RECYCLE.BIN", "lost+found"}
    assert set(left_out.removeprefix("left out: ").split(", ")) == files | {f"1 folders {name}" for name in folders}
    assert tables == "tables: labels.csv"
    assert re.fullmatch("followed 1 links to folders, such as .*/fox to .*/store", links)


def test_images_of_formats_that_nothing_reads(tmp_path):
    write(tmp_path, "cat/1.tif", "cat/2.tif", "dog/3.heic")
    with pytest.raises(FileNotFoundError, match=r"none but 2 \.tif, 1 \.heic: convert them"):
        find_images(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    store = write(tmp_path / "store", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    root = write(tmp_path / "root", "fox/4.jpg", "fox/young/5.jpg")
    (root / "cat").symlink_to(store / "cat")
    (root / "fox" / "linked").symlink_to(store / "dog")
    (root / "fox" / "again").symlink_to(root / "fox" / "young")
    (store / "dog" / "back").symlink_to(root)
    assert counts(find_images(root)) == {"cat": 2, "fox": 3}


def test_nothing_is_left_open(tmp_path):
    folder = write(tmp_path / "flat", "1.jpg", "2.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_any_images(folder)
        with pytest.raises(ValueError):
            find_images(folder)
        gc.collect()


def test_a_folder_is_listed_in_full(tmp_path):
    listing = list_folder(write(tmp_path, "b/2.jpg", "a/1.jpg", "0.jpg", "a/c/3.jpg"))
    assert [Path(path).name for path in listing.all_images()] == ["0.jpg", "1.jpg", "3.jpg", "2.jpg"]


# ---- tables: the column that names the files -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Six photographs in images/train and two elsewhere."""
    return write(tmp_path / "images", *(f"train/{n:04d}.JPG" for n in range(6)), "more/café 6.JPG", "more/0007.JPG")


def read(folder: Path, text: str | bytes, name: str = "labels.csv", **settings):
    table = folder.parent / name
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    return find_labelled_images(folder, table, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "{n:04d}.JPG",
        "{n:04d}.jpg",
        "{n:04d}",
        "train/{n:04d}.JPG",
        "train\\{n:04d}.JPG",
        "./train/{n:04d}.JPG",
        "train/{n:04d}",
        "images/train/{n:04d}.JPG",
        "/home/somebody/project/images/train/{n:04d}.JPG",
        "C:\\data\\images\\train\\{n:04d}.JPG",
        " {n:04d}.JPG ",
        '"{n:04d}.JPG "',
    ],
)
def test_names_match_however_they_are_written(folder, name):
    rows = "".join(f"{name.format(n=n)},{'odd' if n % 2 else 'even'}\n" for n in range(6))
    with pytest.warns(UserWarning, match="2 files are in no line"):
        found = read(folder, "file,label\n" + rows)
    assert {
        Path(path).stem: found.class_names[label] for path, label in zip(found.paths, found.labels, strict=True)
    } == {f"{n:04d}": "odd" if n % 2 else "even" for n in range(6)}


@pytest.mark.filterwarnings("ignore:.*files are in no line")
@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nfile;label\n0000.JPG;a\n0001.JPG;b\n",
        "file\tlabel\r\n0000.JPG\ta\r\n0001.JPG\tb\r\n".encode("utf-16"),
        "file,label\n0000.JPG,a,\n0001.JPG,b,\n",
        "file, label\n0000.JPG , a\n0001.JPG , b \n",
        "0000.JPG,a\n0001.JPG,b\n",
        "0000.JPG a\n0001.JPG b\n",
        ",file,diagnosis\n0,0000.JPG,a\n1,0001.JPG,b\n",
        "\ufefffile|label\n\n0000.JPG|a\n0001.JPG|b\n\n",
        "image,a,b\n0000,1.0,0.0\n0001,0,1\n",
        "label,file\na,0000.JPG\nb,0001.JPG\n",
    ],
)
def test_tables_as_programs_write_them(folder, text):
    found = read(folder, text)
    assert ([Path(path).stem for path in found.paths], found.labels.tolist()) == (["0000", "0001"], [0, 1])
    assert found.class_names == ("a", "b")


@pytest.mark.filterwarnings("ignore:.*files are in no line")
def test_unicode_has_two_forms_of_one_name(folder):
    assert len(read(folder, "file,label\ncafe\u0301 6.jpg,a\n")) == 1


@pytest.mark.filterwarnings("ignore:.*(files are in no line|name files that are not there)")
def test_zeros_that_a_spreadsheet_dropped(folder):
    with pytest.warns(UserWarning, match="leading zeros are missing in file, as in 0"):
        found = read(folder, "file,label\n0,a\n1,b\n4711,b\n")
    assert [Path(path).stem for path in found.paths] == ["0000", "0001"]


def test_labels_that_are_names_of_files_too(tmp_path):
    folder = write(tmp_path / "set", *(f"{n}.jpg" for n in range(12)))
    table = "id,label\n" + "".join(f"{n},{n % 3}\n" for n in range(40))
    with pytest.warns(UserWarning, match="28 lines name files that are not there"):
        assert counts(read(folder, table)) == {"0": 4, "1": 4, "2": 4}


def test_a_table_of_two_parts_gives_each_its_own_labels(tmp_path):
    folder = write(tmp_path / "train", "1.jpg", "2.jpg")
    with pytest.warns(UserWarning, match="2 lines name files that are not there"):
        found = read(folder, "file,label\ntest/1.jpg,x\ntest/2.jpg,x\ntrain/1.jpg,a\ntrain/2.jpg,b\n")
    assert counts(found) == {"a": 1, "b": 1}


def test_a_table_of_other_files_shows_a_name_of_each(folder):
    with pytest.raises(ValueError, match=r"it says 'x1\.png', and a file there is '.*JPG'"):
        read(folder, "file,label\nx1.png,a\n")


# ---- tables: the column of classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, why",
    [
        ("file,label\n0000.JPG,a\n0000.JPG,b\n", r"line 3: 0000\.JPG has several labels \(a and b\); keep one line"),
        ("file,label\n0000.JPG,a|b\n0001.JPG,a\n0002.JPG,b\n", r"several labels in one cell, such as 'a\|b'"),
        ("file,tags\n" + "".join(f"{n:04d}.JPG,{n % 2} {n // 2}\n" for n in range(6)), None),
        ("file,label\n0000.JPG,0.37\n0001.JPG,1.5\n", r"labels are real numbers, such as (0\.37|1\.5)"),
        ("image,a,b\n0000,1,0\n0001,1,1\n", "line 3: 2 of 2 classes are 1"),
        ("image,a,b\n0000,1,0\n0001,0,0\n", "line 3: 0 of 2 classes are 1"),
        ("file,label\n0000.JPG,\n0001.JPG,a\n", "line 2: no label"),
        ("file,label\n0000.JPG,a, big\n", "line 2: 3 fields, and the first line has 2"),
        ("file,label\n0000.JPG\n", "line 2: 1 fields, and the first line has 2"),
        ("file,width,height\n0000.JPG,3,4\n", "which of the columns file, width, height holds the classes"),
        ("file,label\n0000.JPG,a\n", None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*files are in no line")
def test_what_is_no_class_for_each_image_is_refused(folder, text, why):
    if why is None:
        assert len(read(folder, text)) > 0
    else:
        with pytest.raises(ValueError, match=why):
            read(folder, text)


def test_many_combinations_of_few_words_are_several_labels(tmp_path):
    names = [f"{n:02d}.jpg" for n in range(25)]
    words = ["clear", "haze", "water", "road"]
    cells = [" ".join(word for bit, word in enumerate(words) if n >> bit & 1) or "none" for n in range(16)]
    rows = "".join(f"{name},{cells[n % 16]}\n" for n, name in enumerate(names))
    with pytest.raises(ValueError, match="several labels in one cell"):
        read(write(tmp_path / "planet", *names), "image_name,tags\n" + rows)


def test_a_column_of_remarks_is_no_column_of_classes(tmp_path):
    names = [f"{n:02d}.jpg" for n in range(25)]
    rows = "".join(f"{name},remark{n}\n" for n, name in enumerate(names))
    folder = write(tmp_path / "set", *names)
    with pytest.raises(ValueError, match="every line has another label, such as 'remark0'"):
        read(folder, "file,note\n" + rows)
    assert len(read(folder, "file,note\n" + rows, label_column="note")) == 25


@pytest.mark.filterwarnings("ignore:.*files are in no line")
def test_blanks_and_decimal_points_make_no_new_class(folder):
    assert read(folder, "file,label\n0000.JPG,cat\n0001.JPG,cat \n0002.JPG, cat\n").class_names == ("cat",)
    assert read(folder, "file,label\n0000.JPG,10.0\n0001.JPG,2\n").class_names == ("2", "10")


def test_the_table_beside_flat_images_is_found(tmp_path):
    folder = write(tmp_path / "set", "1.jpg", "2.jpg")
    (folder / "readme.txt").write_text("about these images\n")
    (folder / "LABELS.TSV").write_text("file\tlabel\n1.jpg\ta\n2.jpg\tb\n")
    found, call = quietly(find_any_images, folder)
    assert found.class_names == ("a", "b") and call.startswith("find_labelled_images(")
    (folder / "other.txt").write_text("1.jpg x\n2.jpg x\n")
    with pytest.raises(ValueError, match=r"LABELS\.TSV, other\.txt all name images; give one of them"):
        find_any_images(folder)
