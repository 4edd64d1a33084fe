"""Decode and resize each image of a folder once, and keep them as shards; lesson 07 shows what for.

    python data_scripts/pack_images.py FOLDER --to DIR [--size 224] [--kind raw|jpeg] [--on-error raise|skip]
    python data_scripts/pack_images.py FOLDER --to DIR --shard 2/4    one of four processes, on as many machines
    python data_scripts/pack_images.py --verify DIR

FOLDER holds one folder of images for each class, or images and a table of their classes (--labels); it may be an
address, such as s3://bucket/train.
Raw shards hold pixels, 147 KiB an image at 224×224, about what the original JPEG weighs; a pipeline only
copies them. JPEG shards are smaller and have to be decoded again. An interrupted
run goes on where it stood when it is started again with the same arguments. With --shard i/n, n processes that know
nothing of each other write every n-th shard each; the same command without it, when they have ended, joins them: it
compares their shards with the hashes and packs what is missing. They may run as several users of one group, if the
group may write to DIR.

The format is described in `helpers/packed.py`; numpy alone reads it.

Exit status: 0; 1 where --verify finds a fault; 2 for what cannot be done, such as a broken image or a full disk.
In sizes, 1 MB is 1,000,000 bytes, as disks are sold.
"""

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

from helpers.files import ExitStatus, printable, shown_warnings, tolerant_streams
from helpers.folders import find_any_images
from helpers.packed import Packed
from helpers.packing import KINDS, ROWS_PER_SHARD, pack
from helpers.quiet import quiet_tensorflow
from helpers.remote import folder_or_address


def main(arguments: list[str] | None = None) -> int:
    """Pack or verify; return an `ExitStatus`, or 130 for an interruption."""
    tolerant_streams()
    options = _parse(arguments)
    try:
        return _verify(options.verify) if options.verify else _pack(options)
    except KeyboardInterrupt:
        print("\npack_images.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"pack_images.py: {printable(str(error))}", file=sys.stderr)
        return ExitStatus.CANNOT


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = {"type": folder_or_address}
    parser.add_argument("folder", nargs="?", **where, help="class folders, a table beside the images, or images")
    parser.add_argument("--labels", **where, metavar="TABLE", help="of classes; found if only one names images")
    parser.add_argument("--label-column", metavar="NAME", help="the table's column of classes")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where the shards go; made where it is missing")
    parser.add_argument("--size", type=_size, default=(224, 224), help="pixels: 224, or height x width as 240x320")
    parser.add_argument("--channels", type=int, choices=(3, 1), default=3, help="RGB or grayscale")
    parser.add_argument("--kind", choices=tuple(KINDS), default="raw")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG shards, 1 to 100")
    parser.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD)
    parser.add_argument("--workers", type=int, help="threads; by default one for each core")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="what a broken file does")
    parser.add_argument("--shard", type=_part, metavar="i/n", help="only every n-th shard, beginning with the i-th")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="compare a finished pack with its hashes")
    options = parser.parse_args(arguments)
    if not options.verify and not (options.folder and options.to):
        parser.error("give FOLDER and --to DIR, or --verify DIR")
    return options


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 224 or 240x320") from None


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; give i/n, such as 2/4, i from 1 to n")
    return int(number), int(count)


def _files_of(part: tuple[int, int], files: int, rows_per_shard: int) -> int:
    """Return how many files the shards of a part hold."""
    starts = range((part[0] - 1) * rows_per_shard, files, part[1] * rows_per_shard)
    return sum(min(rows_per_shard, files - start) for start in starts)


def _pack(options: argparse.Namespace) -> ExitStatus:
    with shown_warnings(lambda text: print(text, file=sys.stderr)):
        files, _ = find_any_images(options.folder, options.labels, label_column=options.label_column)
    print(files.summary)
    count = _files_of(options.shard or (1, 1), len(files), options.rows_per_shard)
    height, width = options.size
    raw_mb = len(files) * height * width * options.channels / 1e6
    kind = f"{raw_mb:,.0f} MB of pixels" if options.kind == "raw" else f"JPEG of quality {options.quality}"
    print(f"{len(files):,} images of {len(files.class_names)} classes, {height}×{width}: {kind}, in {options.to}")
    if options.kind == "jpeg":
        quiet_tensorflow()  # it writes the TFRecords
    started = time.monotonic()
    with tqdm(total=count, unit="image", ncols=90, disable=None) as bar:
        packed = pack(
            files,
            options.to,
            image_size=options.size,
            channels=options.channels,
            kind=options.kind,
            quality=options.quality,
            rows_per_shard=options.rows_per_shard,
            workers=options.workers,
            on_error=options.on_error,
            on_progress=bar.update,
            shard=options.shard,
        )
    if packed is None:
        number, parts = options.shard
        print(f"part {number} of {parts}: {count:,} images, {time.monotonic() - started:.1f} s;", end=" ")
        print("when all parts have ended, the same command without --shard joins them")
        return ExitStatus.FINE
    for path, reason in packed.skipped:
        print(f"left out: {reason if path in reason else f'{path}: {reason}'}")
    size_mb = sum(shard["bytes"] for shard in packed.settings["shards"]) / 1e6
    seconds = time.monotonic() - started
    print(f"{len(packed):,} packed, {len(packed.skipped):,} left out: {size_mb:,.1f} MB, {seconds:.1f} s")
    return ExitStatus.FINE


def _verify(folder: Path) -> ExitStatus:
    packed = Packed(folder)
    faults = list(packed.faults())
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{folder}: {len(packed):,} rows, {len(faults)} faults")
    return ExitStatus.FOUND if faults else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
