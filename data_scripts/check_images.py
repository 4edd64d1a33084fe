"""Look into every image of a folder before a training meets it: what is broken, what is not what it seems.

    python data_scripts/check_images.py FOLDER [--json FILE] [--max-pixels N] [--min-per-class N]
    python data_scripts/check_images.py FOLDER --labels TABLE [--label-column NAME]
    python data_scripts/check_images.py FOLDER --quarantine DIR [--kinds empty,truncated]
    python data_scripts/check_images.py --undo DIR
    python data_scripts/check_images.py FOLDER --undo DIR    where FOLDER has moved since

Each file is really decoded, by both decoders of the course, in a process that is watched: a file that crashes a
decoder is named like any other. A file for which this machine has too little memory, or which its disk does not
deliver, is undecided, and never moved. A quarantine moves files and deletes none; --undo moves them back, also when
the quarantine, or all of it with FOLDER, has another name or place by now.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports, which take a second

import argparse
import sys
from pathlib import Path

from endings import run_command
from inspection import JSON_START, KINDS, UNDECIDED, Inspection, inspect_folder, save
from quarantine import put_back, quarantine
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from helpers.files import ExitStatus, may_replace, printable, shown_warnings, tolerant_streams
from helpers.remote import is_address

_MOST_CLASSES = 20
_MOST_SHOWN = {"error": 10, UNDECIDED: 10, "warning": 3, "note": 1}  # of each kind
# Which of two labels is the right one, only the user knows: those files stay unless they are asked for.
_UNUSABLE = tuple(kind for kind, (severity, _) in KINDS.items() if severity == "error" and kind != "two labels")


def main(arguments: list[str] | None = None) -> int:
    """Look, tell and move; return an `ExitStatus`, or 130 for an interruption."""
    tolerant_streams()
    options = _parse(arguments)
    try:
        if options.undo:
            return _undo(options.undo, options.folder)
        return _check(options)
    except KeyboardInterrupt:
        print("\ncheck_images.py: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"check_images.py: {printable(str(error))}", file=sys.stderr)
        return ExitStatus.CANNOT


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    kinds = "\n".join(f"  {kind:18}{severity:11}{text}" for kind, (severity, text) in KINDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""kinds of findings:\n{kinds}

Exit status: 0; 1 where errors were found, or --undo could not move all files back; 2 for what cannot be done, also
where no errors were found but some files are undecided.""",
    )
    parser.add_argument("folder", nargs="?", type=_folder, help="images, usually one folder of them for each class")
    parser.add_argument("--labels", type=Path, metavar="TABLE", help="of classes: CSV, TSV or text")
    parser.add_argument("--label-column", metavar="NAME", help="the table's column of classes")
    parser.add_argument("--json", metavar="FILE", help="all findings; - for standard output")
    parser.add_argument("--max-pixels", type=_count, default=100_000_000, metavar="N", help="more are not decoded")
    parser.add_argument("--min-per-class", type=_count, default=10, metavar="N", help="fewer make a class a finding")
    parser.add_argument("--quarantine", type=Path, metavar="DIR", help="move what was found to this folder")
    parser.add_argument(
        "--kinds",
        type=_kinds,
        default=_UNUSABLE,
        metavar="A,B",
        help="which findings to move; by default what cannot be used",
    )
    parser.add_argument("--undo", type=Path, metavar="DIR", help="move everything in a quarantine back")
    options = parser.parse_args(arguments)
    if not (options.folder or options.undo):
        parser.error("give FOLDER, or --undo DIR")
    if options.undo and (options.json or options.quarantine):
        parser.error("--undo goes with no other option")
    if options.json not in (None, "-") and not may_replace(options.json, JSON_START):
        parser.error(f"--json {printable(options.json)}: there is something else; give another name")
    if options.quarantine and options.quarantine.resolve().is_relative_to(options.folder.resolve()):
        parser.error("a quarantine inside FOLDER would be found again; give a folder outside it")
    return options


def _folder(text: str) -> Path:
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{text}: an address; copy the images to this machine, and give that folder")
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number")
    return int(text)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(kind.strip() for kind in text.split(","))
    movable = [kind for kind, (severity, _) in KINDS.items() if severity != UNDECIDED]
    if unknown := [kind for kind in kinds if kind not in movable]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: give kinds of {', '.join(movable)}")
    return kinds


def _check(options: argparse.Namespace) -> ExitStatus:
    with tqdm(unit="image", ncols=90, disable=None) as bar:

        def expect(total: int) -> None:
            bar.total = total
            bar.refresh()

        with shown_warnings(lambda text: print(text, file=sys.stderr)):
            inspection = inspect_folder(
                options.folder,
                labels=options.labels,
                label_column=options.label_column,
                max_pixels=options.max_pixels,
                min_per_class=options.min_per_class,
                on_progress=bar.update,
                on_total=expect,
            )
    # What took long is kept first; a full disk or a closed pipe then spoils nothing else.
    moved = 0
    try:
        if options.json not in (None, "-"):
            save(inspection, options.json)
        if options.quarantine:
            moved = quarantine(inspection, options.quarantine, options.kinds)
    finally:
        stream = sys.stderr if options.json == "-" else sys.stdout
        _show(inspection, Console(file=stream, markup=False, emoji=False, highlight=False))
    if options.quarantine:
        to = printable(options.quarantine)
        print(f"{moved:,} files moved to {to}; --undo {to} moves them back", file=stream)
    if options.json == "-":
        print(inspection.to_json())
    if inspection.of("error"):
        return ExitStatus.FOUND
    return ExitStatus.CANNOT if inspection.of(UNDECIDED) else ExitStatus.FINE


def _show(inspection: Inspection, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading, justify in (("", "left"), ("found", "left"), ("files", "right"), ("for example", "left")):
        table.add_column(heading, justify=justify, overflow="fold")
    for kind, (severity, text) in KINDS.items():
        found = [one for one in inspection.findings if one.kind == kind]
        if found:
            shown = _MOST_SHOWN[severity]
            examples = [f"{printable(one.path)} ({printable(one.detail)})" for one in found[:shown]]
            more = [f"… {len(found) - shown:,} more"] if len(found) > shown else []
            table.add_row(severity, f"{kind}: {text}", f"{len(found):,}", "\n".join(examples + more))
    if table.row_count:
        console.print(table)
        console.print()
    counts = ", ".join(f"{len(inspection.of(severity)):,} {severity}s" for severity in ("error", "warning", "note"))
    counts += f"; {undecided:,} files undecided" if (undecided := len(inspection.of(UNDECIDED))) else ""
    rate = f"{60 * inspection.files / max(inspection.seconds, 1e-9):,.0f} images/min"
    named = [f"{printable(name)}: {count:,}" for name, count in inspection.classes.items() if name]
    more = [f"and {len(named) - _MOST_CLASSES:,} more"] if len(named) > _MOST_CLASSES else []
    for line in (f"usable: {', '.join(named[:_MOST_CLASSES] + more)}" if named else "", *inspection.summary):
        console.print(line, end="\n" if line else "")
    classes = f"{len(inspection.classes)} classes"
    console.print(f"{inspection.files:,} images of {classes}: {counts}; {inspection.seconds:.1f} s, {rate}")


def _undo(folder: Path, images: Path | None) -> ExitStatus:
    moved, faults = put_back(folder, images)
    for fault in faults:
        print(printable(fault), file=sys.stderr)
    print(f"{moved:,} files moved back")
    return ExitStatus.FOUND if faults else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(run_command(main))
