"""Make photograph-like JPEG images in ten class folders; run by readers before the first lesson, and by the tests.

    python data_scripts/make_images.py [--count N] [--to DIR] [--seed S] [--workers W]

Files are ``<folder>/<class name>/<number>.jpg``; `rendering.py` draws them. Image ``number`` has the class
``number % 10`` and depends on the seed and its number only, so the first 240 of 2,000 are the same files as a run with
``--count 240``. After an interruption, the same command goes on; two runs at once on one folder share the work.

In file sizes, 1 KB is 1,000 bytes and 1 MB is 1,000,000 bytes, as disks are sold.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports, which take a second

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from endings import run_command
from rendering import CLASS_NAMES, complete_bytes, make_image
from tqdm import tqdm
from worker_processes import in_processes

from helpers.files import free_bytes, locked, printable, tolerant_streams, usable_cores, write_whole

FORMAT_VERSION = 1  # raise it whenever the same seed no longer gives the same images
MEAN_KB = 125  # measured: mean of the first 2,000 images of seed 0, in KB per image
SPARE_MB = 200  # room that must stay free on the disk
MAX_COUNT = 1_000_000  # six digits in a file name, so that names sort as numbers do

_DATA = Path(__file__).resolve().parents[1] / "data"
_RECORD_NAME = "make_images.json"
_GOES_ON = "the finished images are kept, and the same command goes on from there"
_LEFTOVER = re.compile(r"\.(\d{6}\.jpg|make_images\.json)\.[0-9a-f]{8}\.part")


def make_images(count: int, folder: Path, seed: int = 0, workers: int | None = None, progress: bool = True) -> int:
    """Make those of the images 0 ... count - 1 that are not in the folder yet, and return how many that were.

    Parameters
    ----------
    count : int
        Number of images that the folder holds in the end, at least.
    folder : Path
        Where the ten class folders are; made when missing. It holds the images of one seed.
    workers : int, optional
        Number of processes; one per usable core by default. It does not change the images.
    progress : bool
        Print the expected size, the progress and a summary.

    Raises
    ------
    ValueError
        The folder holds images of another seed, format version or origin.
    OSError, RuntimeError
        The disk has too little room, a file cannot be written, or a worker process died.
    """
    start_s = time.monotonic()
    _check_record(folder, seed)
    paths = [folder / CLASS_NAMES[number % len(CLASS_NAMES)] / f"{number:06d}.jpg" for number in range(count)]
    sizes = [complete_bytes(path) for path in paths]
    jobs = [(paths[number], seed, number) for number, size in enumerate(sizes) if not size]
    already, made, total_bytes = count - len(jobs), 0, sum(sizes)
    if progress:
        there = f"; {already:,} are there already" if already else ""
        print(f"{count:,} images, about {count * MEAN_KB / 1e3:,.0f} MB, in {printable(folder)}{there}", flush=True)
    _check_room(folder, len(jobs))
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(_joined(folder, seed)):
            jobs.reverse()  # two runs that start from both ends do not make the same images twice
        results = in_processes(make_image, jobs, min(workers or usable_cores(), len(jobs)))
        stack.enter_context(contextlib.closing(results))
        try:
            for is_new, size in _shown(results, count, already) if progress else results:
                made, total_bytes = made + is_new, total_bytes + size
        except OSError as error:
            raise RuntimeError(f"{error.filename or folder}: {error.strerror}; {_GOES_ON}") from error
    if progress:
        seconds = time.monotonic() - start_s
        print(f"{made:,} images made, {count - made:,} were there: {total_bytes / 1e6:,.1f} MB, {seconds:.1f} s")
    return made


def _check_record(folder: Path, seed: int) -> bool:
    """Return whether the folder has a record; raise ValueError where its images are not those of this seed."""
    wanted = {"format_version": FORMAT_VERSION, "seed": seed}
    advice = "choose another folder with --to, or delete that one"
    try:
        found = json.loads((folder / _RECORD_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(any(folder.glob(f"{name}/[0-9]*.jpg")) for name in CLASS_NAMES):
            raise ValueError(f"{folder} holds images, but no {_RECORD_NAME} tells their seed; {advice}") from None
        return False
    except ValueError:
        raise ValueError(f"{folder / _RECORD_NAME} is not the record of a run; {advice}") from None
    if found != wanted:
        raise ValueError(f"{folder} holds images of {found}, not of {wanted}; {advice}")
    return True


def _check_room(folder: Path, images: int) -> None:
    needed_mb, free_mb = images * MEAN_KB / 1e3, free_bytes(folder) / 1e6
    if images and needed_mb + SPARE_MB > free_mb:
        raise RuntimeError(
            f"too little room in {folder}: {images:,} images need about {needed_mb:,.0f} MB and {SPARE_MB} MB must "
            f"stay free, but only {free_mb:,.0f} MB are; choose another disk with --to, or fewer images with --count"
        )


@contextlib.contextmanager
def _joined(folder: Path, seed: int) -> Iterator[bool]:
    """Prepare the folder; yields whether no other run is at work in it, and holds its lock meanwhile if so."""
    for name in CLASS_NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", "", wait_s=1))
        except BlockingIOError:
            _check_record(folder, seed)  # within a second, the other run has written it
            yield False
            return
        if not _check_record(folder, seed):
            write_whole(folder / _RECORD_NAME, json.dumps({"format_version": FORMAT_VERSION, "seed": seed}) + "\n")
        for path in [*folder.iterdir(), *folder.glob("*/.*")]:
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)  # a killed run left it
        yield True


def _shown(results: Iterator[tuple[bool, int]], count: int, already: int) -> Iterator[tuple[bool, int]]:
    """Pass the results on and show progress: a bar in a terminal, else ten lines at most."""
    with tqdm(total=count, initial=already, unit=" images", disable=not sys.stderr.isatty()) as bar:
        for done, result in enumerate(results, already + 1):
            bar.update()
            if bar.disable and done * 10 // count > (done - 1) * 10 // count:
                print(f"{done:,} of {count:,} images", file=sys.stderr, flush=True)
            yield result


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {printable(message)}; see --help\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _OneLineParser(description="Make photograph-like JPEG images in ten class folders.")
    parser.add_argument("--count", type=int, metavar="N", help="images in all (default: COURSE_IMAGES, or 2000)")
    text = "folder for the class folders (default: data/generated of the project)"
    parser.add_argument("--to", type=Path, metavar="DIR", default=_DATA / "generated", help=text)
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="another seed gives other images (default: 0)")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: one per usable core)")
    options = parser.parse_args(arguments)
    if options.count is None:
        wish = os.environ.get("COURSE_IMAGES") or "2000"
        if not wish.isdecimal():
            parser.error(f"the environment variable COURSE_IMAGES is {wish!r}, not a number of images")
        options.count = int(wish)
    return options


def _check_arguments(options: argparse.Namespace) -> None:
    """Raise ValueError for what cannot be."""
    if not 1 <= options.count <= MAX_COUNT:
        raise ValueError(f"count is {options.count:,}; it must be between 1 and {MAX_COUNT:,}")
    if options.seed < 0:
        raise ValueError(f"seed is {options.seed}; it must be 0 or more")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers is {options.workers}; it must be 1 or more")
    if file := next((place for place in (options.to, *options.to.parents) if place.is_file()), None):
        raise ValueError(f"{file} is a file; the images need a folder")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 done, 1 no room or failed, 2 refused, 130 stopped by Ctrl-C."""
    tolerant_streams()
    options = _parse(arguments)
    try:
        _check_arguments(options)
        make_images(options.count, options.to, options.seed, options.workers)
        return 0
    except KeyboardInterrupt:
        message, code = f"stopped; {_GOES_ON}", 130
    except ValueError as error:
        message, code = str(error), 2
    except OSError as error:
        message, code = f"{error.filename or options.to}: {error.strerror}", 1
    except RuntimeError as error:
        message, code = str(error), 1
    print(f"make_images.py: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of NumPy in each worker: there is one for each core
    sys.exit(run_command(main))
