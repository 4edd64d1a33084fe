"""Download a public data set of photographs, and unpack it as folders of classes.

    python data_scripts/download_images.py --list
    python data_scripts/download_images.py NAME [--to DIR] [--mirror URL] [--unlabelled]

Licence and size are shown first. An interrupted download goes on when the same command is given again. The size of
each archive is verified before it is unpacked, and its SHA-256 where one is published. Where none is, the first
complete download is trusted, and its SHA-256 is kept in data_scripts/first_downloads.json: later ones must match, also
on other machines that have this file. DIR appears when it is complete, and not before. The lessons need none of this:
`make_images.py` makes their images without a network.

A proxy and certificates are taken from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE.
In sizes, 1 MB is 1,000,000 bytes, as disks are sold. Exit status: 0; 1 where the download fails or what came is not
what it should be; 2 for what cannot be done, such as a full disk or a DIR that holds something else.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports, which take a second

import argparse
import csv
import dataclasses
import difflib
import io
import json
import os
import shutil
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import msgspec
import requests
from download import BROKEN, ArchiveError, DownloadError, fetch, unpack
from endings import run_command
from tqdm import tqdm

from helpers.files import ExitStatus, free_bytes, locked, printable, sha256_of, tolerant_streams, write_whole
from helpers.folders import IMAGE_SUFFIXES

_SPARE_BYTES = 200_000_000  # must stay free on the disk
_PROJECT_ROOT = Path(__file__).resolve().parents[1]
_RECORD = "download_images.json"
_FIRST_DOWNLOADS = Path(__file__).with_name("first_downloads.json")
_UNPACKED, _LOCK = "unpacked", ".lock"
_KAGGLE = "kaggle:"

# ---- where a file of an archive goes ---------------------------------------------------------------------------------

# From a path in the archive to one below the target, or to None for a file that is left out.
Place = Callable[[PurePosixPath], PurePosixPath | None]


def _folders(without: Sequence[str], archives: list[Path]) -> Place:
    """Leave the archive's own folders away: its class folders come to lie in the target."""

    def place(name: PurePosixPath) -> PurePosixPath:
        parts = name.parts
        for folder in without:
            parts = parts[1:] if parts[0] == folder and parts[1:] else parts
        return PurePosixPath(*parts)

    return place


def _flat(without: Sequence[str], archives: list[Path]) -> Place:
    return lambda name: PurePosixPath(name.name)


def _by_breed(without: Sequence[str], archives: list[Path]) -> Place:
    """Oxford-IIIT Pets: ``images/great_pyrenees_12.jpg`` is of the class ``great_pyrenees``."""

    def place(name: PurePosixPath) -> PurePosixPath | None:
        breed = name.stem.rpartition("_")[0]
        return PurePosixPath(breed, name.name) if breed and name.suffix == ".jpg" else None

    return place


def _by_main_category(without: Sequence[str], archives: list[Path]) -> Place:
    """COCO: an image is of the category whose instances cover the largest area; without instances it is left out."""
    category_of = _main_categories(archives[1], f"annotations/instances_{archives[0].stem}.json")

    def place(name: PurePosixPath) -> PurePosixPath | None:
        category = category_of.get(name.name)
        return PurePosixPath(category, name.name) if category else None

    return place


def _main_categories(archive: Path, member: str) -> dict[str, str]:
    def without_outlines(thing: dict) -> dict | tuple:
        if "segmentation" in thing:
            return thing["image_id"], thing["category_id"], thing["area"]
        return (thing["id"], thing["file_name"]) if "file_name" in thing else thing

    # The outlines are nine tenths of 450 MB of JSON; kept, they would be 3 GB of Python objects.
    with zipfile.ZipFile(archive) as file, io.TextIOWrapper(file.open(member), encoding="utf-8") as text:
        found = json.load(text, object_hook=without_outlines)
    names = {category["id"]: category["name"] for category in found["categories"]}
    areas: dict[int, Counter] = defaultdict(Counter)
    for image, category, area in found["annotations"]:
        areas[image][category] += area
    main = {image: max(sorted(by_category), key=by_category.get) for image, by_category in areas.items()}
    return {file_name: names[main[image]] for image, file_name in found["images"] if image in main}


def _by_driver(without: Sequence[str], archives: list[Path]) -> Place:
    """State Farm: all images of a driver go to ``train`` or all to ``val``, where every fifth driver goes."""
    with zipfile.ZipFile(archives[0]) as file, file.open("driver_imgs_list.csv") as table:
        rows = list(csv.DictReader(io.TextIOWrapper(table, encoding="utf-8")))
    driver_of = {row["img"]: row["subject"] for row in rows}
    held_out = set(sorted(set(driver_of.values()))[::5])

    def place(name: PurePosixPath) -> PurePosixPath:
        if name.parts[:2] == ("imgs", "train"):
            part = "val" if driver_of[name.name] in held_out else "train"
            return PurePosixPath(part, *name.parts[2:])
        return PurePosixPath(*name.parts[1:]) if name.parts[0] == "imgs" else name

    return place


LAYOUTS = {
    "folders": _folders,
    "flat": _flat,
    "breed": _by_breed,
    "main category": _by_main_category,
    "driver": _by_driver,
}

# ---- the data sets ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file to download. Without a published hash, its size and the checksums inside it are all there is to verify."""

    url: str
    size_bytes: int
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The first archive holds the images, a second one what their labels are found in."""

    name: str
    title: str
    archives: tuple[Archive, ...]
    images: int
    classes: int
    licence: str
    licence_url: str
    layout: str  # a key of `LAYOUTS`
    without: tuple[str, ...] = ()  # folders of the archive that are left away
    note: str = ""

    @property
    def download_bytes(self) -> int:
        return sum(archive.size_bytes for archive in self.archives)

    @property
    def unpacked_bytes(self) -> int:
        """At most: photographs do not get much smaller in an archive, and a file takes whole blocks of a disk."""
        return int(1.1 * self.archives[0].size_bytes) + 4096 * self.images

    @property
    def is_hashed(self) -> bool:
        return all(archive.sha256 for archive in self.archives)


_TABLE = Path(__file__).with_name("datasets.toml")
DATASETS = {
    dataset.name: dataset
    for dataset in msgspec.toml.decode(_TABLE.read_bytes(), type=dict[str, list[Dataset]])["dataset"]
}

# ---- hashes of the first downloads -----------------------------------------------------------------------------------


def _first_hashes() -> dict[str, str]:
    """Return the SHA-256 that was kept of each archive without a published one, by its address.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    if not _FIRST_DOWNLOADS.exists():
        return {}
    try:
        return msgspec.json.decode(_FIRST_DOWNLOADS.read_bytes(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise ValueError(f"{_FIRST_DOWNLOADS}: damaged ({error}); restore it") from None


def _refuse_another(archive: Archive, path: Path, found: str) -> None:
    """Remove a file that is not the one of the first download, and raise DownloadError."""
    first = archive.sha256 or _first_hashes().get(archive.url, found)
    if first != found:
        path.unlink()
        raise DownloadError(
            f"{archive.url}: the SHA-256 is {found}, and the first download had {first}; the file was removed. Either"
            f" one of the two was changed on its way, or its source has a new one: if you know that it has, delete the"
            f" line in {_FIRST_DOWNLOADS}, and give the same command again"
        )


def _keep_first_hashes(dataset: Dataset, hashes: list[str]) -> str:
    """Keep what nobody publishes, and return a sentence about it."""
    found = {one.url: sha256 for one, sha256 in zip(dataset.archives, hashes, strict=True) if not one.sha256}
    kept = _first_hashes()
    if found.items() <= kept.items():
        return "the same as that of the first download"
    try:
        write_whole(_FIRST_DOWNLOADS, json.dumps(found | kept, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        return f"not kept for later downloads ({printable(str(error))})"
    return f"kept in {printable(_FIRST_DOWNLOADS)}: later downloads must match, on all machines that have this file"


# ---- downloading -----------------------------------------------------------------------------------------------------


def download(dataset: Dataset, target: Path, mirror: str | None = None) -> None:
    """Download and unpack one data set, unless it is there.

    Raises
    ------
    ValueError
        If `target` holds something else, or an archive is not what it should be.
    OSError
        If the disk has too little room, another run is at work, or the download fails.
    """
    target = target.resolve()
    if os.path.ismount(target):
        raise ValueError(f"{target} is a whole disk; give a folder on it: --to {target / dataset.name}")
    with _workplace(target) as work:
        if _is_there(dataset, target):
            print(f"{printable(target)}: there already")
        else:
            _refuse_full_disk(dataset, work)
            hashes = [_fetch(archive, work / archive.name, mirror) for archive in dataset.archives]
            for archive, found in zip(dataset.archives, hashes, strict=True):
                _refuse_another(archive, work / archive.name, found)
            tally = _unpack(dataset, work)
            _write_record(dataset, hashes, tally, work / _UNPACKED)
            about_hashes = "" if dataset.is_hashed else _keep_first_hashes(dataset, hashes)
            if target.exists():
                target.rmdir()  # it is empty; Windows would not rename over it
            (work / _UNPACKED).rename(target)
            _report(dataset, hashes, about_hashes, tally)
        ours = {archive.name for known in DATASETS.values() for archive in known.archives}
        for leftover in work.iterdir():
            if leftover.name.removesuffix(".version") in ours:
                leftover.unlink()


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Yield the hidden folder beside the target where archives grow; one run at a time has it."""
    work = target.with_name(f".{target.name}.download")
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / _LOCK, f"another run is downloading to {target}; wait for it, or stop it"):
        try:
            shutil.rmtree(work / _UNPACKED, ignore_errors=True)  # of a run that was killed
            yield work
        finally:
            shutil.rmtree(work / _UNPACKED, ignore_errors=True)
            if os.listdir(work) == [_LOCK]:
                shutil.rmtree(work, ignore_errors=True)


def _is_there(dataset: Dataset, target: Path) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads((target / _RECORD).read_bytes())
        if isinstance(record, dict) and record.get("name") == dataset.name:
            return True
    raise ValueError(f"{target} is there and is not {dataset.name}; give another folder: --to DIR")


def _refuse_full_disk(dataset: Dataset, work: Path) -> None:
    there = sum(path.stat().st_size for path in work.iterdir())
    needed = dataset.download_bytes - there + dataset.unpacked_bytes
    free = free_bytes(work)
    if needed + _SPARE_BYTES > free:
        raise OSError(
            f"{work.parent}: {dataset.name} needs {needed / 1e6:,.0f} MB more until it is unpacked, and"
            f" {_SPARE_BYTES / 1e6:,.0f} MB must stay free, but the disk has {free / 1e6:,.0f} MB; nothing was written"
        )


def _fetch(archive: Archive, path: Path, mirror: str | None) -> str:
    """Download one archive, and return its SHA-256."""
    if archive.url.startswith(_KAGGLE):
        return _fetch_from_kaggle(path)
    url = mirror.rstrip("/") + urlsplit(archive.url).path if mirror else archive.url
    with tqdm(
        desc=archive.name,
        initial=path.stat().st_size if path.exists() else 0,
        total=archive.size_bytes,
        unit="B",
        unit_scale=True,
        ncols=90,
        disable=None,
    ) as bar:
        return fetch(
            url,
            path,
            archive.size_bytes,
            archive.sha256,
            on_progress=lambda have: bar.update(have - bar.n),
            on_trouble=lambda text: bar.write(printable(text), file=sys.stderr),
        )


_KAGGLE_HELP = """These images come through Kaggle's client only. Once:
  1. {python} -m pip install kaggle
  2. https://www.kaggle.com/settings/api, "Generate New Token": save it as ~/.kaggle/access_token
  3. https://www.kaggle.com/competitions/{competition}/rules: accept them
Then give the same command again."""


def _fetch_from_kaggle(path: Path) -> str:
    """Let Kaggle's client download an archive; it goes on with an interrupted one, and has time limits of its own."""
    hint = _KAGGLE_HELP.format(python=sys.executable, competition=path.stem)
    try:
        with redirect_stdout(io.StringIO()):  # it prints a page of help where it finds no token
            from kaggle.api.kaggle_api_extended import KaggleApi

            client = KaggleApi()
            client.authenticate()
    except ImportError:
        raise OSError(f"the package kaggle is not installed. {hint}") from None
    except (SystemExit, OSError, ValueError):  # what it does without a token depends on its version
        raise OSError(f"Kaggle's client found no token that works. {hint}") from None
    try:
        client.competition_download_files(path.stem, path=str(path.parent), quiet=False)
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (401, 403):
            raise
        raise OSError(f"Kaggle answers {status}: a wrong token, or rules not accepted. {hint}") from None
    return sha256_of(path)


def _unpack(dataset: Dataset, work: Path) -> Counter:
    """Unpack the images to the folder `_UNPACKED`; return how many there are, and how many were left out."""
    paths = [work / archive.name for archive in dataset.archives]
    tally = Counter()
    try:
        place = _counted(LAYOUTS[dataset.layout](dataset.without, paths), tally)
        with tqdm(desc="unpacking", total=dataset.images, unit="file", ncols=90, disable=None) as bar:
            unpack(
                paths[0],
                work / _UNPACKED,
                place,
                max_bytes=2 * dataset.unpacked_bytes + 1_000_000,
                max_files=2 * dataset.images + 1000,
                on_progress=bar.update,
            )
        if not dataset.is_hashed and tally.total() != dataset.images:
            raise ArchiveError(f"{tally.total():,} images, not {dataset.images:,}")
    except (*BROKEN, LookupError, TypeError, csv.Error) as error:
        if not dataset.is_hashed:
            paths[0].unlink()
        remedy = "" if dataset.is_hashed else "; it was removed, and the same command downloads it anew"
        raise ArchiveError(f"{dataset.name}: {str(error) or type(error).__name__}{remedy}") from error
    return tally


def _counted(place: Place, tally: Counter) -> Place:
    def counted(name: PurePosixPath) -> PurePosixPath | None:
        if any(part.startswith(".") for part in name.parts):
            return None  # what macOS adds to archives
        target = place(name)
        if name.suffix.lower() in IMAGE_SUFFIXES:
            tally["images" if target else "left out"] += 1
        return target

    return counted


def _write_record(dataset: Dataset, hashes: list[str], tally: Counter, folder: Path) -> None:
    """Write into the folder what it is: a later call sees that the work is done, and a reader finds the licence."""
    archives = zip(dataset.archives, hashes, strict=True)
    record = {
        "name": dataset.name,
        "title": dataset.title,
        "licence": dataset.licence,
        "licence_url": dataset.licence_url,
        "images": tally["images"],
        "left_out": tally["left out"],
        "archives": [{"url": archive.url, "sha256": found} for archive, found in archives],
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# ---- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Download; return an `ExitStatus`, or 130 for an interruption."""
    tolerant_streams()
    options = _parse(arguments)
    if options.list:
        print(_table())
        return ExitStatus.FINE
    target = options.to or _PROJECT_ROOT / "data" / options.dataset.name
    try:
        _introduce(options.dataset, target, options.mirror)
        download(options.dataset, target, options.mirror)
        return ExitStatus.FINE
    except KeyboardInterrupt:
        print("\ndownload_images.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print("download_images.py:", "\n".join(map(printable, str(error).splitlines())), file=sys.stderr)
        of_the_network = isinstance(error, (ArchiveError, DownloadError, requests.RequestException))
        return ExitStatus.FOUND if of_the_network else ExitStatus.CANNOT


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", type=_dataset, metavar="NAME", help="one of those that --list shows")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where the class folders go (default: data/NAME)")
    parser.add_argument("--mirror", metavar="URL", help="another place with the same paths, as http://192.168.1.2:8000")
    parser.add_argument("--unlabelled", action="store_true", help="COCO: all images in one folder, for style transfer")
    parser.add_argument("--list", action="store_true", help="show the data sets")
    options = parser.parse_args(arguments)
    if not (options.dataset or options.list):
        parser.error("give NAME, or --list")
    if options.mirror and not options.mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror {options.mirror}: give a URL that begins with http:// or https://")
    if options.mirror and options.dataset and options.dataset.archives[0].url.startswith(_KAGGLE):
        parser.error(f"{options.dataset.name} comes from Kaggle only, not from a mirror")
    if options.dataset and options.unlabelled:
        if len(options.dataset.archives) == 1:
            parser.error(f"--unlabelled is for COCO; {options.dataset.name} has its labels in the names of its files")
        options.dataset = _without_labels(options.dataset)
    return options


def _dataset(name: str) -> Dataset:
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise argparse.ArgumentTypeError(f"no data set is called {name!r}; {hint}--list shows all")


def _without_labels(dataset: Dataset) -> Dataset:
    return dataclasses.replace(
        dataset, name=f"{dataset.name}-unlabelled", archives=dataset.archives[:1], classes=0, layout="flat", note=""
    )


def _table() -> str:
    lines = [f"{'name':<16}{'images':>8}{'classes':>9}{'MB':>9}  {'verified by':<13}licence"]
    for dataset in DATASETS.values():
        verified = "SHA-256" if dataset.is_hashed else "no hash known"
        megabytes = dataset.download_bytes / 1e6
        numbers = f"{dataset.images:>8,}{dataset.classes:>9}{megabytes:>9,.0f}"
        lines.append(f"{dataset.name:<16}{numbers}  {verified:<15}{dataset.licence}")
    return "\n".join(lines)


def _introduce(dataset: Dataset, target: Path, mirror: str | None) -> None:
    classes = f"{dataset.classes} classes" if dataset.classes else "without labels"
    print(f"{dataset.title}: {dataset.images:,} images, {classes}")
    print(f"licence: {dataset.licence}; {dataset.licence_url}")
    megabytes = f"{dataset.download_bytes / 1e6:,.0f} MB"
    print(f"to download: {megabytes}; then on the disk, in {printable(target)}: about as much")
    for archive in dataset.archives:
        if not archive.sha256:
            first = "" if archive.url in _first_hashes() else ", and no earlier download to compare with"
            risk = f"; {printable(mirror)} is not encrypted" if mirror and mirror.startswith("http:") else ""
            print(f"not verified: there is no published hash of {archive.name}{first}{risk}")
    print(dataset.note, end="\n" if dataset.note else "", flush=True)


def _report(dataset: Dataset, hashes: list[str], about_hashes: str, tally: Counter) -> None:
    for archive, found in zip(dataset.archives, hashes, strict=True):
        if not archive.sha256:
            print(f"{archive.name}: no hash is published to compare with; its SHA-256 is {found}, {about_hashes}")
    print(f"{tally['images']:,} images" + (f", {tally['left out']:,} left out" if tally["left out"] else ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
