"""Learn a style, and repaint pictures in it; lesson 10 explains how.

    python -m helpers.style train styles/strokes.yaml --images FOLDER --to RUN
    python -m helpers.style stylise RUN picture.jpg --to FOLDER
    python -m helpers.style preview styles/strokes.yaml --to target.png
    python -m helpers.style export RUN --to FOLDER

The settings are for a CPU and some minutes. On a GPU, with COCO's photographs:

    python -m helpers.style train styles/strokes.yaml --images train2014 --to RUN \\
        --set image_size=256 --set style_size=256 --set width=32 --set steps=41391 \\
        --set features=imagenet

A training that was stopped or killed goes on when the same command is given again.
`tensorboard --logdir RUN/logs` shows its losses and pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from helpers.files import ExitStatus, printable
from helpers.folders import find_unlabelled_images
from helpers.images import read_image
from helpers.quiet import quiet_tensorflow
from helpers.style.pictures import save_picture, shrunk, target_picture
from helpers.style.settings import load_settings, shortened

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return an `ExitStatus`, or 130 for an interruption."""
    options = _parse(arguments)
    try:
        options.command(options)
    except KeyboardInterrupt:
        print("stopped; a training goes on when the same command is given again", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"helpers.style: {shortened(printable(str(error)))}", file=sys.stderr)
        return ExitStatus.CANNOT
    return ExitStatus.FINE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.style", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function: Callable, what: str, to: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__.strip("_"), help=help, description=help)
        added.set_defaults(command=function)
        added.add_argument("--to", type=Path, required=True, metavar=to)
        if what == "settings":
            added.add_argument("settings", type=Path, metavar="SETTINGS.yaml")
            added.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="replace a setting")
        else:
            added.add_argument("network", type=Path, metavar="RUN", help="folder of a training, or a file .keras")
        return added

    train = command(_train, "settings", "RUN", "train a network for one style, or go on with a training")
    train.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="photographs, also in its folders")
    accepted = "go on with a run although its images have changed: a broken one was replaced"
    train.add_argument("--other-images", action="store_true", help=accepted)
    stylise = command(_stylise, "network", "FOLDER", "repaint pictures; write PNG files of the same names")
    stylise.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    stylise.add_argument("--longest-side", type=int, metavar="PX", help="shrink larger pictures to this first")
    command(_preview, "settings", "PICTURE.png", "write the style picture as the losses will see it")
    command(_export, "network", "FOLDER", "write a trained network as a SavedModel and as a file .keras")
    return parser.parse_args(arguments)


# TensorFlow is imported where it is needed: --help and a wrong setting should not wait for it.


def _train(options: argparse.Namespace) -> None:
    settings = load_settings(options.settings).changed(options.set)
    files = find_unlabelled_images(options.images)
    quiet_tensorflow()
    from helpers.style.training import train

    say = partial(print, flush=True)
    path = train(settings, files, options.to, say=say, other_images=options.other_images)
    print(f"trained: {printable(path)}")


def _stylise(options: argparse.Namespace) -> None:
    results = [options.to / f"{path.stem}.png" for path in options.pictures]
    if len({*results}) < len(results):
        raise ValueError("two of the pictures have the same name, and so would their results; give them one at a time")
    if {path.resolve() for path in results} & {path.resolve() for path in options.pictures}:
        raise ValueError(f"{printable(options.to)}: a result would replace one of the pictures; give another folder")
    pictures = [read_image(str(path)) for path in options.pictures]  # before anything is computed
    quiet_tensorflow()
    from helpers.style.trained import load_network, stylise

    network = load_network(options.network)
    for result, picture in zip(results, pictures, strict=True):
        picture = shrunk(picture, options.longest_side) if options.longest_side else picture
        save_picture(stylise(network, picture), result)
        print(printable(result), flush=True)


def _preview(options: argparse.Namespace) -> None:
    settings = load_settings(options.settings).changed(options.set)
    picture = target_picture(settings)
    save_picture(picture, options.to)
    height, width, side = *picture.shape[:2], settings.image_size
    print(f"{printable(options.to)}: {width}×{height} px; training images are {side}×{side}")


def _export(options: argparse.Namespace) -> None:
    quiet_tensorflow()
    from helpers.style.trained import export_network, load_network

    for path in export_network(load_network(options.network), options.to):
        print(printable(path))
