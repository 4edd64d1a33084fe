"""Whatever the bytes, readers of packs, scoreboards, folders and images give what is right, or name the file.

Bounded here, and the same examples each time; `make fuzz` looks for new ones (FUZZ_EXAMPLES for each test). What it
found stands beside the test as an `@example`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import cloudpickle
import cv2
import numpy as np
import pytest
from conftest import draw_image, write_images
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from helpers import scoreboard
from helpers.files import printable
from helpers.folders import find_images, find_labelled_images
from helpers.images import decode_image
from helpers.listing import IMAGE_SUFFIXES
from helpers.measurement import Measurement
from helpers.packed import Packed
from helpers.packing import pack
from helpers.sandbox import report, run

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child process need not import pytest

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))


def settings_for(examples: int) -> settings:
    """So many examples, always the same ones; or new ones, as many as FUZZ_EXAMPLES says."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


# ---- damage ----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damages(draw):
    """A function that damages bytes somewhere: bits that flip, a part that is missing, other or there twice, an end."""
    changes = draw(
        st.lists(
            st.tuples(st.integers(0, 4), st.floats(0, 1), st.integers(1, 40), st.binary(min_size=1, max_size=8)),
            min_size=1,
            max_size=3,
        )
    )

    def damage(content: bytes) -> bytes:
        for kind, share, length, other in changes:
            place = int(share * len(content))
            rest = content[place:]
            if kind == 0 and rest:
                content = content[:place] + bytes([rest[0] ^ (1 << length % 8)]) + rest[1:]
            elif kind == 1:
                content = content[:place]
            elif kind == 2:
                content = content[:place] + rest[length:]
            elif kind == 3:
                content = content[:place] + other + rest[len(other) :]
            elif kind == 4:
                content = content[:place] + rest[:length] + rest
        return content

    return damage


@st.composite
def replacements(draw):
    """A function that puts any value into the place of another one in a JSON structure, or takes it out."""
    share, value, is_gone = draw(st.floats(0, 1)), draw(JSON), draw(st.booleans())

    def replace(structure):
        places = list(_places(structure))
        parent, key = places[min(int(share * len(places)), len(places) - 1)]
        if is_gone:
            del parent[key]
        else:
            parent[key] = value
        return structure

    return replace


def _places(structure):
    for key in list(structure) if isinstance(structure, dict) else range(len(structure)):
        yield structure, key
        if isinstance(structure[key], (dict, list)):
            yield from _places(structure[key])


# ---- packs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pack of ten small images in three shards, and what is in it."""
    folder = tmp_path_factory.mktemp("fuzz")
    files = find_images(write_images(folder / "images", 10))
    packed = pack(files, folder / "pack", image_size=(4, 5), rows_per_shard=4, workers=1)
    contents = {path.name: path.read_bytes() for path in (folder / "pack").iterdir() if path.name != ".lock"}
    return contents, everything(packed)


def everything(packed: Packed) -> tuple:
    rows = hashlib.sha256(packed.read(range(len(packed))).tobytes()).hexdigest()
    return packed.image_size, packed.channels, packed.class_names, packed.labels.tolist(), packed.names(), rows


def read_pack(contents: dict[str, bytes], right: tuple) -> None:
    """Right, or an error that names a file of the pack; what `faults` finds nothing in is right."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            Path(folder, name).write_bytes(content)
        try:
            packed = Packed(folder)
            faults = list(packed.faults())
            found = everything(packed)
        except (ValueError, OSError) as error:
            assert str(folder) in str(error), f"names no file: {error!r}"
        else:
            assert found == right or (faults and all(str(folder) in fault for fault in faults))


NAMES = ["index.json", "labels.npy", "names.json", "shard-00000.raw", "shard-00002.raw"]


@settings_for(150)
@given(st.sampled_from(NAMES), damages())
def test_a_damaged_pack(whole, name, damage):
    contents, right = whole
    read_pack({**contents, name: damage(contents[name])}, right)


@settings_for(150)
@given(replacements())
@example(lambda index: {**index, "shards": []})
@example(lambda index: {**index, "image_size": [5, 4]})  # as many bytes, other pictures
@example(lambda index: {**index, "kind": []})
@example(lambda index: {**index, "shards": [{**index["shards"][0], "name": "../../etc/passwd"}]})
def test_an_index_with_other_values(whole, replace):
    contents, right = whole
    index = replace(json.loads(contents["index.json"]))
    read_pack({**contents, "index.json": json.dumps(index).encode()}, right)


@settings_for(50)
@given(st.sampled_from(NAMES), st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example("labels.npy", b"")
@example("labels.npy", b"\0")
@example("names.json", b"[]")
@example("index.json", b"[" * 10_000)
def test_a_pack_with_a_file_that_is_none(whole, name, content):
    contents, right = whole
    read_pack({**contents, name: content}, right)


# ---- scoreboards -----------------------------------------------------------------------------------------------------


def a_row(name: str) -> Measurement:
    from test_scoreboard import measurement

    return measurement(name)


def line_with(**values) -> bytes:
    return json.dumps({**json.loads(a_row("damaged").to_json()), **values}).encode()


@st.composite
def lines(draw):
    """A line of a results file that is damaged, foreign, or right but for one value."""
    row = a_row("damaged").to_json()
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return draw(damages())(row.encode())
    if kind == 1:
        return json.dumps(draw(replacements())(json.loads(row))).encode()
    return draw(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))


@settings_for(150)
@given(st.lists(lines(), max_size=4))
@example([line_with(alone={"images_per_s": 10**400})])  # no float is as large
@example([line_with(context={"machine": {"memory_mib": 10**400, "cores": 10**400}})])
@example([b"[" * 10_000, b'{"name": NaN}', b"1" * 5000])
def test_a_scoreboard_with_other_lines(others):
    others = [line.replace(b"\n", b" ").replace(b"\r", b" ") for line in others]
    good = [a_row("generator"), a_row("tf_data")]
    content = b"\n".join([good[0].to_json().encode(), *others, good[1].to_json().encode(), b""])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "machine.jsonl")
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            rows = scoreboard.load(path)
        assert rows[0] == good[0] and rows[-1] == good[1]
        read = len(rows) - 2
        assert len(told) == sum(bool(line.strip()) for line in others) - read
        assert all(f"{path}, line " in str(warning.message) for warning in told)
        console = Console(file=io.StringIO(), width=120)
        console.print(scoreboard.table(scoreboard.newest(rows)))
        scoreboard.fill(rows, {"other": rows})
        merged = scoreboard.merge([path])
        merged.pace()
        for table in scoreboard._merged_tables(merged):
            console.print(table)


# ---- folders ---------------------------------------------------------------------------------------------------------

BYTES_OF_NAMES = st.binary(min_size=1, max_size=6).map(
    lambda name: os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"~"))
)
PLAIN_NAMES = st.sampled_from(["a", "b", ".hidden", "מבחן", "new\nline", "'quoted\"", "A", "sp ace", "😀", "x.csv"])
STEMS = (PLAIN_NAMES | BYTES_OF_NAMES).filter(lambda name: name not in (".", ".."))
ENTRIES = st.tuples(
    st.lists(STEMS, max_size=2),
    STEMS,
    st.sampled_from(["", ".jpg", ".JPEG", ".png", ".webp", ".txt"]),
    st.sampled_from(
        ["file", "file", "file", "folder", "link up", "link to itself", "link to nothing", "link to a class"]
    ),
)


def make_tree(folder: Path, entries) -> None:
    for parents, stem, suffix, kind in entries:
        place = folder.joinpath(*parents)
        path = place / f"{stem}{suffix}"
        with contextlib.suppress(OSError):  # two entries of one name, a file in the place of a folder
            place.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(b"x")
            elif kind == "folder":
                path.mkdir()
            else:
                targets = {"link up": "..", "link to itself": path.name, "link to nothing": "nowhere"}
                path.symlink_to(targets.get(kind, folder / "a"))


def plain_files(folder: Path) -> set[str]:
    """The images that lie in folders of classes, links left aside."""
    found = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        if Path(parent) != folder:
            found |= {
                os.path.join(parent, name) for name in names if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)
            }
    return {path for path in found if not os.path.islink(path)}


@contextlib.contextmanager
def a_tree(entries):
    folder = Path(tempfile.mkdtemp())
    try:
        make_tree(folder, entries)
        yield folder
    finally:
        shutil.rmtree(folder)


@settings_for(150)
@given(st.lists(ENTRIES, max_size=8))
@example([([], "a", ".jpg", "link to itself")])
def test_any_tree(entries):
    with a_tree(entries) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            files = find_images(folder)
        except (FileNotFoundError, ValueError) as error:
            assert printable(folder) in str(error) and str(error).encode()
            assert not plain_files(folder) or "; give" in str(error)
        else:
            assert plain_files(folder) <= set(files.paths) and len(set(files.paths)) == len(files)
            assert list(files.class_names) in (sorted(names := set(files.class_names)), sorted(names, key=len))
            for path, label in zip(files.paths, files.labels, strict=True):
                assert path.startswith(f"{folder}{os.sep}{files.class_names[label]}{os.sep}")
                assert path.lower().endswith(IMAGE_SUFFIXES) and os.path.lexists(path)


TABLES = st.lists(st.lists(STEMS | st.sampled_from(["a.jpg", "b.jpg", "a", "label", ""]), max_size=3), max_size=5)


@settings_for(150)
@given(
    TABLES.map(lambda rows: "\n".join(",".join(row) for row in rows).encode(errors="surrogateescape"))
    | st.binary(max_size=80)
)
@example(b"image,label\na.jpg,cat\nb.jpg,dog\n")
@example(b"image,label\na.jpg," + b"x" * 200_000)  # longer than the field that a reader of CSV takes
def test_any_table_of_labels(content):
    with a_tree([([], "a", ".jpg", "file"), ([], "b", ".jpg", "file")]) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (folder / "labels.csv").write_bytes(content)
        try:
            files = find_labelled_images(folder, folder / "labels.csv")
        except (FileNotFoundError, ValueError) as error:
            assert printable(folder / "labels.csv") in str(error) and printable(str(error))
        else:
            assert {os.path.basename(path) for path in files.paths} <= {"a.jpg", "b.jpg"} and len(files) > 0
            assert len(set(files.paths)) == len(files)


# ---- images ----------------------------------------------------------------------------------------------------------


def encoded() -> dict[str, bytes]:
    """One picture in the ways that files have: markers, thumbnails and what comes after the end."""
    bgr = draw_image(7, (48, 64))
    picture = Image.fromarray(bgr[:, :, ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {
        "baseline": cv2.imencode(".jpg", bgr)[1].tobytes(),
        "progressive": cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
        "restarts": cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes(),
        "png": cv2.imencode(".png", bgr)[1].tobytes(),
        "webp": cv2.imencode(".webp", bgr)[1].tobytes(),
        "bmp": cv2.imencode(".bmp", bgr[:16, :16])[1].tobytes(),
    }
    for name, mode in (("cmyk", "CMYK"), ("gray", "L")):
        picture.convert(mode).save(file := io.BytesIO(), "JPEG", exif=exif)
        found[name] = file.getvalue()
    return found


ENCODED = encoded()


def decode_damaged(examples, last: str, path: str) -> None:
    """Runs in the child: decode a thousand files that are none; note each before, for whoever finds a dead process."""

    @examples
    @given(st.sampled_from(sorted(ENCODED)), damages(), st.sampled_from([3, 1]), st.sampled_from([1, 2, 8]))
    def check(kind, damage, channels, reduce):
        data = damage(ENCODED[kind])
        Path(last).write_bytes(data)
        try:
            image = decode_image(data, path, channels=channels, reduce=reduce)
        except ValueError as error:
            assert path in str(error), error
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels and image.size

    check()
    report("done")


def test_damaged_images_end_no_process(tmp_path):
    last = tmp_path / "last"
    result = run(decode_damaged, settings_for(400), str(last), "odd/name.jpg", timeout=max(120, EXAMPLES))
    assert result.outcome == "finished", f"{result.outcome}: {result.error}; the file was {last.read_bytes()!r}"


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "cmyk", "gray"])
def test_a_jpeg_cut_anywhere_is_refused(kind):
    data = ENCODED[kind]
    assert decode_image(data, "whole.jpg").shape == (48, 64, 3)
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"odd\.jpg"):
            decode_image(data[:end], "odd.jpg")
