"""Look into every file of a folder of images: what cannot be used, what is not what it seems, what is there twice.

Called by `data_scripts/check_images.py`. Each file is decoded by OpenCV and by TensorFlow, the two decoders of the
course's pipelines, in a watched child process: a file that crashes a decoder or hangs it is a finding. Too little
memory on this machine, or a disk that does not answer, says nothing about a file: such a file is undecided.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import stat
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from copies import equal_files, near_copies, small_picture
from PIL import Image

from helpers.files import usable_cores, write_whole
from helpers.folders import is_part
from helpers.images import MAX_FILE_BYTES, decode_image, read_file
from helpers.listing import NO_REGULAR_FILE, Listing, list_folder
from helpers.sandbox import ChildResult, Outcome, report, run
from helpers.tables import read_labels

__all__ = ["JSON_START", "KINDS", "UNDECIDED", "Finding", "Inspection", "inspect_folder", "save"]

ERROR, UNDECIDED, WARNING, NOTE = "error", "undecided", "warning", "note"
KINDS = {
    "unreadable": (ERROR, "cannot be read"),
    "empty": (ERROR, "no bytes at all"),
    "truncated": (ERROR, "ends too early"),
    "undecodable": (ERROR, "a decoder refuses it"),
    "too large": (ERROR, f"more pixels than --max-pixels, or more than {MAX_FILE_BYTES >> 20} MiB; not decoded"),
    "deadly": (ERROR, "crashes or hangs a decoder"),
    "two labels": (ERROR, "the same content in two classes"),
    "undecided": (UNDECIDED, "this machine could not tell: too little memory, or a disk that does not answer"),
    "damaged": (WARNING, "decoded with faults: the JPEG library warns of them, and fills in what it lacks"),
    "nearly black": (WARNING, "16 bits a channel, of which few are used: as 8 bits, nearly black"),
    "in two parts": (WARNING, "the same picture in two parts of the data, such as train and val"),
    "near copy, two labels": (WARNING, "nearly the same picture in two classes"),
    "no gray": (WARNING, "TensorFlow refuses it where one channel is asked for"),
    "misnamed": (WARNING, "another format than its name says"),
    "cmyk": (WARNING, "colours for print; decoders convert them differently"),
    "16-bit": (WARNING, "more than 8 bits a channel; the rest is dropped"),
    "rotated": (WARNING, "upright only after the rotation that its header asks for, which no pipeline here does"),
    "animated": (WARNING, "several pictures; the first one counts"),
    "decoders disagree": (WARNING, "OpenCV and TensorFlow give different pixels"),
    "duplicate": (WARNING, "the same content as another file of its class"),
    "near copy": (WARNING, "nearly the same picture as another file of its class: resized, or compressed again"),
    "few images": (WARNING, "a class with few images"),
    "transparent": (NOTE, "transparency is dropped"),
    "grayscale": (NOTE, "gray; decoded to three equal channels"),
    "not looked at": (NOTE, "no image by its name, or of a format that not every pipeline reads"),
}
JSON_START = b'{\n "folder": '  # of what `Inspection.to_json` gives
_FORMATS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG") | {".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
_NEARLY_BLACK = 16  # of 255, the brightest pixel of 12 bits in a file of 16
_DISAGREE_LEVELS = 6.0  # mean difference, of 255; two correct JPEG decoders differ by one or two
_ORIENTATION = 0x0112
_SILENCE_S = 60.0  # for which a single file may be read, and then decoded
_CHUNK_TIMEOUT_S = 24 * 3600.0
_OF_THE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
_CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP")}
_MOST_BYTES_PER_PIXEL = 12  # that decoders hold: of a progressive JPEG the pixels and all frequencies
_MOST_STALLS = 3  # files that a disk does not deliver, before no other is tried


@dataclass(frozen=True)
class Finding:
    """Something about one file, or one class.

    Attributes
    ----------
    path : str
        Below the folder.
    kind : str
        A key of `KINDS`.
    detail : str
    """

    path: str
    kind: str
    detail: str

    @property
    def severity(self) -> str:
        """``error`` for what ends a training or spoils it, ``warning`` for what surprises, ``note`` for the rest.

        ``undecided`` for a file that could not be looked into on this machine.
        """
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class Inspection:
    """What was found in a folder.

    Attributes
    ----------
    folder : Path
    files : int
        Looked into.
    findings : tuple of Finding
        In the order of `KINDS`, then of names.
    classes : dict
        Number of usable images in each class; those that have none under an empty name.
    seconds : float
    summary : tuple of str
        Lines that say what is in the folder, and what was not looked at.
    """

    folder: Path
    files: int
    findings: tuple[Finding, ...]
    classes: dict[str, int]
    seconds: float
    summary: tuple[str, ...] = ()

    def of(self, severity: str) -> list[Finding]:
        """Return the findings of one severity."""
        return [one for one in self.findings if one.severity == severity]

    def to_json(self) -> str:
        """Return all findings, and the counts, as indented JSON."""
        values = {
            "folder": str(self.folder),
            "files": self.files,
            "summary": self.summary,
            "classes": self.classes,
            "findings": [{**asdict(one), "severity": one.severity} for one in self.findings],
        }
        return json.dumps(values, indent=1)


def save(inspection: Inspection, path: str | os.PathLike) -> None:
    """Write what was found to a file, as JSON."""
    write_whole(path, inspection.to_json())


# ---- looking ---------------------------------------------------------------------------------------------------------


def inspect_folder(
    folder: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    label_column: str | None = None,
    max_pixels: int = 100_000_000,
    min_per_class: int = 10,
    on_progress: Callable[[int], object] = lambda count: None,
    on_total: Callable[[int], object] = lambda count: None,
    silence_s: float = _SILENCE_S,
) -> Inspection:
    """Decode every image below a folder twice, and say what is wrong with which.

    Parameters
    ----------
    folder : path
        One folder of images for each class, also in train/ and val/, or any other arrangement.
    labels, label_column : optional
        A table of classes, as for `folders.find_labelled_images`.
    max_pixels : int
        An image with more is not decoded: a small file can claim a picture that fills the memory.
    min_per_class : int
        Fewer usable images than that make a class a finding.
    on_progress, on_total : callable
        Told how many files have just been looked into, and before, how many there are.
    silence_s : float
        How long a single file may take to be read, and then to be decoded, in seconds.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError, RuntimeError
        If this machine cannot look into a single file.
    """
    started = time.monotonic()
    folder, listing = Path(folder), list_folder(folder)
    paths, findings = _listed(listing)
    named = None
    if labels is not None:
        table = read_labels(folder, listing.all_images(), labels, label_column=label_column)
        named = {os.path.relpath(path, folder): name for path, name in table.items()}
    where = _places(paths, named)
    on_total(len(paths))
    looks = _looks(folder, paths, max_pixels, on_progress, silence_s)
    findings += [Finding(path, kind, detail) for path, look in looks.items() for kind, detail in look["findings"]]
    unusable = {one.path for one in findings if one.severity == ERROR}
    findings += _same_pictures({path: look for path, look in looks.items() if path not in unusable}, where)
    counts = Counter(where(path) for path in looks if path not in unusable)
    empty = {where(os.path.join(name, "any")) for name, images in listing.images.items() if name and not images}
    for part, name in sorted({where(path) for path in looks} | empty):
        if name and counts[part, name] < min_per_class:
            findings.append(Finding(os.path.join(part, name), "few images", f"{counts[part, name]} usable"))
    classes = Counter()
    for (_, name), count in counts.items():
        classes[name] += count
    order = list(KINDS)
    findings.sort(key=lambda one: (order.index(one.kind), one.path))
    seconds = time.monotonic() - started
    summary = tuple(listing.describe())
    return Inspection(folder, len(paths), tuple(findings), dict(sorted(classes.items())), seconds, summary)


def _listed(listing: Listing) -> tuple[list[str], list[Finding]]:
    """Return the images of a folder, as `find_images` sees them, and what else is there or cannot be read."""
    found = [
        Finding(os.path.relpath(error.filename, listing.folder), "unreadable", error.strerror or str(error))
        for error in listing.unreadable
    ]
    for reason, paths in listing.left_out.items():
        kind = "unreadable" if reason == NO_REGULAR_FILE else "not looked at"
        found += [Finding(os.path.relpath(path, listing.folder), kind, reason) for path in paths if reason != "hidden"]
    return [os.path.relpath(path, listing.folder) for path in listing.all_images()], found


def _looks(
    folder: Path, paths: list[str], max_pixels: int, on_progress: Callable[[int], object], silence_s: float
) -> dict[str, dict]:
    """Return what was seen in each file. A child that dies is followed by one for each file that it had in hand."""
    looks: dict[str, dict] = {}
    left, stalls, stop = paths, 0, ""
    while left and not stop:
        try:
            suspects, how = _look_in_a_child(folder, left, max_pixels, on_progress, silence_s, looks)
            for path in suspects:
                _, alone = _look_in_a_child(folder, [path], max_pixels, on_progress, silence_s, looks)
                if path not in looks:
                    looks[path] = {"findings": [alone], "sha256": None}
                    on_progress(1)
                    stalls += alone == _STALLED
                    if stalls == _MOST_STALLS:
                        stop = f"not tried: the disk did not deliver {stalls} other files"
                        break
            still = [path for path in left if path not in looks]
            if len(still) == len(left):
                raise RuntimeError(f"no file in {folder} could be looked at: {how[1]}")
        except (ValueError, RuntimeError) as error:  # no child can work here, or no longer
            if not looks:
                raise
            stop, still = str(error), [path for path in left if path not in looks]
        left = still
    for path in left:
        looks[path] = {"findings": [("undecided", stop)], "sha256": None}
        on_progress(1)
    return {path: looks[path] for path in paths}


_STALLED = ("undecided", "the disk did not deliver it")


def _verdict(result: ChildResult) -> tuple[str, str]:
    """Return what the end of a child that looked at a single file says about it, as (kind, detail)."""
    how = f"{result.outcome}: {result.error}"
    if result.exit_code == errno.ETIMEDOUT:
        return _STALLED
    if result.exit_code == errno.ETIME:
        return "deadly", "hangs a decoder"
    is_by_itself = result.exit_code is not None and (result.exit_code > 0 or -result.exit_code in _CRASHES)
    if result.outcome == Outcome.KILLED and is_by_itself:
        return "deadly", how
    return "undecided", how  # out of memory, or killed from outside, as by the kernel where memory ends


def _look_in_a_child(
    folder: Path,
    paths: Sequence[str],
    max_pixels: int,
    on_progress: Callable[[int], object],
    silence_s: float,
    looks: dict[str, dict],
) -> tuple[list[str], tuple[str, str]]:
    """Add to `looks`; return the files that the child had in hand when it ended too early, and its `_verdict`."""
    with tempfile.TemporaryDirectory(prefix="inspection-") as place:
        notes = os.path.join(place, "notes.jsonl")
        Path(notes).touch()
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(notes, done, on_progress), daemon=True)
        watcher.start()
        try:
            result = run(_look_at_all, str(folder), list(paths), notes, max_pixels, silence_s, timeout=_CHUNK_TIMEOUT_S)
        finally:
            done.set()
            watcher.join(timeout=10)
        begun = set()
        with open(notes, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    continue  # torn by the end of the child
                number, look = json.loads(line)
                if look is None:
                    begun.add(number)
                else:
                    looks[paths[number]] = look
        suspects = [paths[number] for number in sorted(begun) if paths[number] not in looks]
        return suspects, _verdict(result)


def _watch(notes: str, done: threading.Event, on_progress: Callable[[int], object]) -> None:
    """Tell of files that are finished while the child works."""
    with contextlib.suppress(FileNotFoundError), open(notes, "rb") as file:  # a signal may end it all before it begins
        while True:
            ended = done.is_set()
            finished = sum(not line.endswith(b",null]\n") for line in file if line.endswith(b"\n"))
            if finished:
                on_progress(finished)
            if ended:
                return
            done.wait(0.2)


def _look_at_all(folder: str, paths: list[str], notes: str, max_pixels: int, silence_s: float) -> None:
    """Look at each file, in threads; note when one is begun and what was seen in it."""
    import tensorflow as tf

    cv2.setNumThreads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is looked after here
    lock = threading.Lock()
    in_hand: dict[int, tuple[float, int]] = {}  # since when, and the exit code where it takes too long
    with open(notes, "ab", buffering=0) as file:

        def note(number: int, look: dict | None) -> None:
            with lock:
                file.write(json.dumps([number, look], separators=(",", ":")).encode() + b"\n")
                if look is None:
                    in_hand[number] = time.monotonic(), errno.ETIMEDOUT
                else:
                    in_hand.pop(number, None)

        def work(number: int) -> None:
            def decode() -> None:
                with lock:
                    in_hand[number] = time.monotonic(), errno.ETIME

            note(number, None)
            note(number, _look_at(os.path.join(folder, paths[number]), max_pixels, decode))

        ended = threading.Event()
        guard = threading.Thread(target=_end_when_silent, args=(in_hand, lock, silence_s, ended), daemon=True)
        guard.start()
        with ThreadPoolExecutor(usable_cores()) as pool:
            for future in [pool.submit(work, number) for number in range(len(paths))]:
                future.result()
        ended.set()
    report("done")


def _end_when_silent(
    in_hand: dict[int, tuple[float, int]], lock: threading.Lock, silence_s: float, ended: threading.Event
) -> None:
    while not ended.wait(min(1.0, silence_s / 4)):
        with lock:
            since, exit_code = min(in_hand.values(), default=(time.monotonic(), 0))
        if time.monotonic() - since > silence_s:
            os._exit(exit_code)


def _look_at(path: str, max_pixels: int, on_read: Callable[[], object] = lambda: None) -> dict:
    """Return the hash of a file and what is wrong with it, as (kind, detail).

    Raises
    ------
    MemoryError, cv2.error, tensorflow.errors.ResourceExhaustedError
        If there is too little memory.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return {"findings": [("unreadable", "no regular file")], "sha256": None}
        if found.st_size > MAX_FILE_BYTES:
            return {"findings": [("too large", f"{found.st_size:,} bytes")], "sha256": None}
        data = read_file(path)
    except OSError as error:
        kind = "unreadable" if error.errno in _OF_THE_FILE else "undecided"
        return {"findings": [(kind, error.strerror or str(error))], "sha256": None}
    on_read()
    if not data:
        return {"findings": [("empty", "0 bytes")], "sha256": None}
    picture = None
    try:
        findings, is_safe = _header_findings(data, path, max_pixels)
        if is_safe:
            more, picture = _pixel_findings(data, path, {kind for kind, _ in findings})
            findings += more
    except Exception as error:  # whatever a library makes of a hostile file
        if isinstance(error, (MemoryError, cv2.error)) or type(error).__name__ == "ResourceExhaustedError":
            raise
        findings = [("undecodable", f"{type(error).__name__}: {error}")]
    small = picture and base64.b64encode(picture).decode()
    return {"findings": findings, "sha256": hashlib.sha256(data).hexdigest(), "picture": small}


def _header_findings(data: bytes, path: str, max_pixels: int) -> tuple[list[tuple[str, str]], bool]:
    """Return what the header says, and whether the file may be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception:  # whatever a library makes of a hostile header
        is_known = _is_known(data)
        return ([] if is_known else [("undecodable", f"no image; begins with {data[:12]!r}")]), is_known
    width, height = image.size
    if width * height > max_pixels:
        return [("too large", f"{width:,}×{height:,} pixels in {len(data):,} bytes")], False
    findings = []
    name_says = _FORMATS.get(os.path.splitext(path)[1].lower())
    found = {"MPO": "JPEG", "DIB": "BMP"}.get(image.format, image.format)
    if found != name_says and (ending := os.path.splitext(path)[1]):
        findings.append(("misnamed", f"{found}, named {ending}"))
    if image.mode == "CMYK":
        findings.append(("cmyk", "CMYK"))
    if image.mode.startswith(("I", "F")) or (found == "PNG" and data[24:25] == b"\x10"):
        findings.append(("16-bit", "16 bits a channel"))
    if image.mode in ("L", "LA", "1") or image.mode.startswith("I;16"):
        findings.append(("grayscale", image.mode))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        findings.append(("transparent", image.mode))
    if (orientation := _orientation(image)) not in (0, 1):
        findings.append(("rotated", f"EXIF orientation {orientation}"))
    if found != "JPEG" and (frames := getattr(image, "n_frames", 1)) > 1:
        findings.append(("animated", f"{frames:,} frames"))
    return findings, True


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole picture to look for it
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # a damaged header that no decoder needs
        return 1


def _is_known(data: bytes) -> bool:
    """Tell whether the bytes begin as an image that OpenCV may decode although Pillow does not."""
    return data.startswith((b"\xff\xd8", b"\x89PNG", b"BM")) or data[8:12] == b"WEBP"


def _pixel_findings(data: bytes, path: str, known: set[str]) -> tuple[list[tuple[str, str]], bytes | None]:
    """Decode with both decoders and compare; also return the picture, made small."""
    try:
        ours = decode_image(data, path)
    except ValueError as error:
        _require_memory(data)
        text = str(error).removeprefix(path).lstrip(": ")
        return [("truncated" if "truncated" in text else "undecodable", text.partition(";")[0])], None
    findings, picture = _jpeg_warnings(data), small_picture(ours)
    if "16-bit" in known and (brightest := int(ours.max())) < _NEARLY_BLACK:
        findings.append(("nearly black", f"no pixel above {brightest} of 255"))
    if data.startswith((b"\xff\xd8", b"\x89PNG")):  # the pipelines of TensorFlow leave the others to OpenCV
        findings += _of_tensorflow(data, ours, known)
    return findings, picture


def _jpeg_warnings(data: bytes) -> list[tuple[str, str]]:
    """Return what libjpeg warns of; OpenCV and TensorFlow pass over it. The size does not matter: decode 1/8 of it."""
    if not data.startswith(b"\xff\xd8"):
        return []
    least = {"min_height": 1, "min_width": 1, "min_factor": 8, "fastdct": True, "fastupsample": True}
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True, **least)
    except ValueError as error:
        if "orrupt" in str(error) or "remature" in str(error):
            return [("damaged", str(error))]
    return []


def _of_tensorflow(data: bytes, ours: np.ndarray, known: set[str]) -> list[tuple[str, str]]:
    """Decode as `tf_data` and `tf1_queues` do; say what differs from OpenCV's picture."""
    import tensorflow as tf

    findings = []
    shape, step = ours.shape, max(1, int((ours.shape[0] * ours.shape[1] / 100_000) ** 0.5))
    ours = ours[::step, ::step].astype(np.int16)  # so that a large picture is in memory once
    try:
        theirs = tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
        if "cmyk" in known:
            try:
                tf.io.decode_image(data, channels=1, expand_animations=False)
            except tf.errors.InvalidArgumentError:
                findings.append(("no gray", "print colours"))
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        _require_memory(data)
        text = " ".join(error.message.split("}} ")[-1].split(" [Op:")[0].split())
        is_cut = any(word in text.lower() for word in ("premature", "truncated", "end of"))
        return [("truncated" if is_cut else "undecodable", f"OpenCV decodes it, TensorFlow does not: {text[:80]}")]
    if shape != theirs.shape:
        return [("decoders disagree", f"OpenCV {shape[:2]}, TensorFlow {theirs.shape[:2]} (height, width)")]
    levels = float(np.abs(ours - theirs[::step, ::step].astype(np.int16)).mean())
    if levels > _DISAGREE_LEVELS:
        findings.append(("decoders disagree", f"by {levels:.0f} levels on average"))
    return findings


def _require_memory(data: bytes) -> None:
    """Raise MemoryError where a decoder may have failed for want of memory: many do not say so."""
    try:
        width, height = Image.open(io.BytesIO(data)).size
    except OSError:
        return
    np.empty(_MOST_BYTES_PER_PIXEL * width * height, np.uint8)  # takes no memory until it is written


def _same_pictures(looks: dict[str, dict], where: Callable[[str], tuple[str, str]]) -> Iterator[Finding]:
    """Yield a finding for each file whose picture another one has, too: equal bytes, or nearly the same pixels."""
    equal = dict(equal_files({path: look["sha256"] for path, look in looks.items() if look["sha256"]}))
    pictures = {path: look["picture"] for path, look in looks.items() if look.get("picture") and path not in equal}
    near = near_copies({path: base64.b64decode(picture) for path, picture in pictures.items()})
    for pairs, how in ((equal.items(), "same bytes as"), (near, "nearly the same pixels as")):
        for path, first in pairs:
            (part, name), (first_part, first_name) = where(path), where(first)
            if name != first_name:
                kind = "two labels" if path in equal else "near copy, two labels"
            elif part != first_part:
                kind = "in two parts"
            else:
                kind = "duplicate" if path in equal else "near copy"
            yield Finding(path, kind, f"{how} {first}")


def _places(paths: Sequence[str], labels: dict[str, str] | None) -> Callable[[str], tuple[str, str]]:
    """Return a function that gives the part of the data (train, val) and the class of a path, or empty names."""
    tops = {path.partition(os.sep)[0] for path in paths if os.sep in path}
    depth = 1 if tops and all(is_part(name) for name in tops) else 0

    def where(path: str) -> tuple[str, str]:
        part, name = "", ""
        folders = path.split(os.sep)[:-1]
        if depth and folders:
            part = folders[0]
        if len(folders) > depth:
            name = folders[depth]
        return part, labels.get(path, "") if labels is not None else name

    return where
