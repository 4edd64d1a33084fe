"""Keep measurements: one JSON line each, a file per machine; `python -m helpers.scoreboard` prints them.

Called at the end of every lesson. This machine's file lies in ``results/local/`` (not committed); ``results/`` has the
reference machines. The environment variable COURSE_RESULTS names another folder for this machine's file.
`python -m helpers.scoreboard merge FILES…` puts the files of many machines into one table and one picture.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helpers.files import ExitStatus, locked
from helpers.measurement import Machine, Measurement, machine
from helpers.pipelines import PIPELINES

__all__ = ["LESSONS", "Merged", "fill", "load", "load_reference", "merge", "newest", "record", "table"]

LESSONS = {  # the name of a row -> the notebook that makes it
    "load_everything": "01_load_everything",
    "generator": "02_python_generator",
    "threaded_generator": "02_python_generator",
    "keras_sequence": "03_keras_sequence",
    "tf1_queues": "04_tf1_queues",
    "tf_data": "05_tf_data",
    "tf_data_fast": "06_tf_data_at_full_speed",
    "tf_data_packed": "06_tf_data_at_full_speed",
}

_RESULTS = Path(__file__).resolve().parent.parent / "results"
_LOCK_TIMEOUT_S = 20
_PICTURE_FORMATS = (".png", ".svg", ".pdf")
_TORN_LINES_NAMED = 3


def record(measurement: Measurement, path: str | os.PathLike | None = None) -> Path:
    """Append a measurement to this machine's file; several kernels may do so at once.

    Parameters
    ----------
    path : path, optional
        Another file than this machine's.

    Returns
    -------
    pathlib.Path
        The file that holds it now.

    Raises
    ------
    OSError
        If it could not be written, for example because the disk is full; what was there before is untouched.
    """
    path = local_path() if path is None else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = measurement.to_json().encode() + b"\n"
    busy = f"{path}: locked by another program for {_LOCK_TIMEOUT_S} s; measurement not kept"
    # Unbuffered: closing a buffered file would write again what found no room.
    with locked(f"{path}.lock", busy, wait_s=_LOCK_TIMEOUT_S), open(path, "ab", buffering=0) as file:
        _append(file, line)
    return path


def _append(file: io.FileIO, line: bytes) -> None:
    """Write one line as a whole or not at all; a line that a killed writer left unfinished is ended first."""
    size = file.seek(0, os.SEEK_END)
    with open(file.name, "rb") as reader:
        reader.seek(max(size - 1, 0))
        torn = size > 0 and reader.read(1) != b"\n"
    left = b"\n" + line if torn else line
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError:
        os.truncate(file.name, size)
        raise


def load(path: str | os.PathLike | None = None) -> list[Measurement]:
    """Return the measurements of one file, oldest first; of this machine when no file is named.

    A line that is no measurement is left out, with a warning that names it.
    """
    path = local_path() if path is None else Path(path)
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(Measurement.from_json(line.decode()))
        except ValueError as error:
            warnings.warn(f"{path}, line {number}: left out ({error})", stacklevel=2)
    return found


def load_reference() -> dict[str, list[Measurement]]:
    """Return the committed measurements of the reference machines, the newest of each name, by file name."""
    return {path.stem: newest(load(path)) for path in sorted(_RESULTS.glob("*.jsonl"))}


def newest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the last measurement of each name, the course's pipelines first and in its order."""
    last = {measurement.name: measurement for measurement in measurements}
    return sorted(last.values(), key=lambda one: _place(one.name))


def _place(name: str) -> int:
    order = list(PIPELINES)
    return order.index(name) if name in order else len(order)


def fill(
    own: Iterable[Measurement], references: Mapping[str, Iterable[Measurement]] | None = None
) -> tuple[list[Measurement], list[Measurement], str | None]:
    """Look up in a reference machine's rows what this machine has none of, so that a picture can be drawn.

    Parameters
    ----------
    own : iterable of Measurement
        This machine's, for example from `load`. A row without figures, of a run that failed, is kept, and a reference
        row stands beside it.
    references : mapping, optional
        Name to rows; by default the committed ones. The machine nearest to this one in its number of cores is taken.

    Returns
    -------
    own, borrowed : list of Measurement
        The newest of this machine; and the reference machine's of the course's pipelines that have no figures here.
    reference : str or None
        The name of the reference machine; None when nothing was borrowed.
    """
    own = newest(own)
    references = load_reference() if references is None else references
    missing = set(PIPELINES) - {one.name for one in own if one.alone.images_per_s and one.training.images_per_s}
    found = {name: [one for one in newest(rows) if one.name in missing] for name, rows in references.items()}
    here = machine().cores
    nearest = min(
        (name for name, rows in found.items() if rows),
        key=lambda name: (abs(math.log((found[name][-1].context.machine.cores or here) / here)), name),
        default=None,
    )
    return own, found.get(nearest, []), nearest


def local_path() -> Path:
    """Return this machine's file; it is named after its CPU, cores, memory and GPUs, not after its owner."""
    folder = Path(os.environ.get("COURSE_RESULTS") or _RESULTS / "local")
    return folder / f"{_kind_of(machine())}.jsonl"


def _kind_of(here: Machine) -> str:
    """Return what a machine's file is called: equal machines have the same name."""
    return re.sub(r"[^a-z0-9]+", "-", _describe(here).lower()).strip("-")


def _describe(here: Machine) -> str:
    """Return a machine in words; a file that somebody else wrote may leave anything out."""
    memory = "?" if here.memory_mib is None else f"{here.memory_mib / 1024:.0f}"
    return ", ".join([here.cpu, _cores_of(here), f"{memory} GiB", *here.gpus[:1]])


def _cores_of(here: Machine) -> str:
    return f"{'?' if here.cores is None else here.cores} cores"


def table(measurements: Iterable[Measurement], *, reference: Iterable[Measurement] = ()) -> Table:
    """Return a table of measurements that shows itself in a notebook and in a terminal.

    Parameters
    ----------
    reference : iterable of Measurement
        Rows of another machine, as `fill` finds them; marked, and sorted in.

    """
    measurements, reference = list(measurements), list(reference)
    shown = _empty_table("Scoreboard")
    shown.add_column("pipeline", no_wrap=True)
    for heading in ("files", "alone\nimages/s", "1st epoch\nimages/s", "training\nimages/s", "busy\n%", "peak\nMiB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("outcome", no_wrap=True)
    for one in sorted([*measurements, *reference], key=lambda one: _place(one.name)) if reference else measurements:
        alone, training, here = one.alone, one.training, one.context.machine
        figures = (
            alone.images_per_s, alone.first_epoch_images_per_s, training.images_per_s, training.utilisation_percent,
        )  # fmt: skip
        cells = ["–" if figure is None else f"{figure:,.0f}" for figure in figures]
        name = f"{one.name} (reference)" if any(one is other for other in reference) else one.name
        shown.add_row(name, f"{one.files:,}", *cells, f"{one.memory.peak_mib:,.0f}", one.outcome)
        shown.caption = f"{here.cpu}, {_cores_of(here)}; accelerator: {training.accelerator or 'none'}"
    return shown


def _empty_table(title: str, gap: int = 1) -> Table:
    left = {"title_justify": "left", "caption_justify": "left"}
    return Table(title=title, box=SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False, **left)


# ---- many machines ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merged:
    """The results of many machines, as far as they can be compared.

    Attributes
    ----------
    machines : dict
        A machine's name, which is its file's, to its newest rows in the course's order.
    setting : str
        What all rows have in common, in words: data set, number of images, image size, batch size.
    accelerator : str or None
        The one that most rows were trained with; a row with another one has no busy share here.
    left_out : tuple of str
        What is not in `machines`, and why: a line each.
    unread : tuple of str
        The files that gave nothing at all, and why: a line each.
    """

    machines: dict[str, list[Measurement]]
    setting: str
    accelerator: str | None
    left_out: tuple[str, ...]
    unread: tuple[str, ...]

    def busy_percent(self, one: Measurement) -> float | None:
        """Return a row's accelerator utilisation, or None when it stood beside another accelerator."""
        return one.training.utilisation_percent if one.training.accelerator == self.accelerator else None

    def pace(self) -> dict[str, float | None]:
        """Return how fast each machine is: its images/s over the median machine's, median over the pipelines."""
        median = {name: statistics.median(rates) for name, rates in self._rates().items()}
        found = {}
        for machine_name, rows in self.machines.items():
            shares = [_rate(one) / median[one.name] for one in rows if _rate(one)]
            found[machine_name] = statistics.median(shares) if shares else None
        return found

    def _rates(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for one in (one for rows in self.machines.values() for one in rows if _rate(one)):
            found.setdefault(one.name, []).append(_rate(one))
        return found


def _rate(one: Measurement) -> float | None:
    """Return the figure by which machines are compared: a whole first epoch, nothing excluded, as on the map."""
    rate = one.alone.first_epoch_images_per_s
    return rate if rate and rate > 0 else None


def merge(paths: Iterable[str | os.PathLike]) -> Merged:
    """Read the results files of many machines and keep what can be compared.

    Rows are compared when data set, number of images, image size and batch size are the same; of several such sets the
    one with the most rows is kept. Equal machines write files of the same name: in different folders they are different
    machines. A file that is a copy of another counts once.

    Parameters
    ----------
    paths : iterable of paths
        Files; of a folder, all ``*.jsonl`` below it.

    Returns
    -------
    Merged
        Without a machine where no file could be read.
    """
    files, unread, left_out = _results_files(paths)
    machines: dict[str, list[Measurement]] = {}
    for path, name in _distinct_names(files).items():
        rows, complaints = _load_quietly(path)
        if not rows:
            unread.append(f"{path}: left out; {'no line of it is a measurement' if complaints else 'it is empty'}")
            continue
        left_out += _few(complaints)
        kinds = sorted({_kind_of(one.context.machine) for one in rows})
        for kind in kinds:
            of_kind = [one for one in rows if _kind_of(one.context.machine) == kind]
            machines[name if len(kinds) == 1 else f"{name}: {kind}"] = of_kind
    setting, machines, not_compared = _comparable(machines)
    trained = Counter(
        one.training.accelerator for rows in machines.values() for one in rows if one.training.accelerator
    )
    accelerator = max(trained, key=trained.get, default=None)
    for other in trained.keys() - {accelerator}:
        left_out.append(
            f"busy share of {_counted(trained[other], 'row')} left out; trained with {other}, not {accelerator}"
        )
    return Merged(machines, setting, accelerator, (*left_out, *not_compared), tuple(unread))


def _results_files(paths: Iterable[str | os.PathLike]) -> tuple[list[Path], list[str], list[str]]:
    """Return the files that the paths stand for, each content once; what cannot be read; and what is there twice."""
    named: dict[Path, Path] = {}
    found: dict[bytes, Path] = {}
    files, unread, twice = [], [], []
    for path in map(Path, paths):
        below = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not below:
            unread.append(f"{path}: left out; no *.jsonl below it")
        named.update((one.resolve(), one) for one in below)
    for path in named.values():
        try:
            content = path.read_bytes().strip()
        except OSError as error:
            unread.append(f"{path}: left out; {error.strerror or error}")
            continue
        if content and content in found:
            twice.append(f"{path}: left out; a copy of {found[content]}")
            continue
        found[content] = path
        files.append(path)
    return files, unread, twice


def _distinct_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each file by the last parts of its path: as few as tell all of them apart, and none that all share."""
    parts = {path: path.resolve().parts[1:] for path in files}
    depth = 1
    while len({part[-depth:] for part in parts.values()}) < len(files):
        depth += 1
    while depth > 1 and len({part[-1] for part in parts.values()}) == 1:
        parts, depth = {path: part[:-1] for path, part in parts.items()}, depth - 1
    names = {path: "/".join(part[-depth:]).encode(errors="backslashreplace").decode() for path, part in parts.items()}
    short = {path: name.removesuffix(".jsonl") for path, name in names.items()}
    return short if len(set(short.values())) == len(files) else names


def _load_quietly(path: Path) -> tuple[list[Measurement], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = load(path)
    return rows, [str(one.message) for one in caught]


def _few(complaints: list[str]) -> list[str]:
    more = len(complaints) - _TORN_LINES_NAMED
    return complaints[:_TORN_LINES_NAMED] + ([f"and {_counted(more, 'line')} more of that file"] if more > 0 else [])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _comparable(machines: dict[str, list[Measurement]]) -> tuple[str, dict[str, list[Measurement]], list[str]]:
    """Keep the rows of the commonest setting, the newest of each name; say what a machine loses by that."""
    votes = {(where, one.name, one.files, _setting_of(one)) for where, rows in machines.items() for one in rows}
    counts = Counter((files, setting) for _, _, files, setting in votes)
    _, kept = max(counts, key=lambda key: (counts[key], key), default=(0, ""))
    compared, lost = {}, []
    for where, rows in machines.items():
        same = newest(one for one in rows if _setting_of(one) == kept)
        if same:
            compared[where] = same
        names = {one.name for one in same}
        without = Counter(_setting_of(one) for one in newest(rows) if one.name not in names)
        lost += [
            f"{where}: {_counted(count, 'row')} left out; {setting}, not {kept}" for setting, count in without.items()
        ]
    return kept, compared, lost


def _setting_of(one: Measurement) -> str:
    size = "×".join(str(side) for side in one.image_size)
    return f"{one.files:,} images of {one.context.dataset.name} at {size}, batches of {one.batch_size:,}"


def _ends(rates: dict[int, float]) -> tuple[int, int]:
    """Return the numbers of the slowest and the fastest machine."""
    return min(rates, key=rates.get, default=0), max(rates, key=rates.get, default=0)


def _merged_tables(merged: Merged) -> list:
    """Return two tables: a row for each pipeline, a row for each machine."""
    numbers = {name: number for number, name in enumerate(merged.machines, 1)}
    by_pipeline = _empty_table(f"{_counted(len(numbers), 'machine')}: {escape(merged.setting)}", gap=0)
    by_pipeline.add_column("pipeline", no_wrap=True)
    rates_of = ("images/s\nmedian", "lowest\n(machine)", "highest\n(machine)")
    for heading in ("runs", *rates_of, "busy %\nmedian", "\nlowest", "peak MiB\nhighest"):
        by_pipeline.add_column(heading, justify="right", no_wrap=True)
    names = {one.name: None for rows in merged.machines.values() for one in rows}
    for name in sorted(names, key=_place):
        rows = {numbers[where]: one for where, all_ in merged.machines.items() for one in all_ if one.name == name}
        rates = {number: _rate(one) for number, one in rows.items() if _rate(one)}
        busy = [percent for one in rows.values() if (percent := merged.busy_percent(one)) is not None]
        by_pipeline.add_row(
            escape(name),
            str(len(rows)),
            f"{statistics.median(rates.values()):,.0f}" if rates else "–",
            *(f"{rates[at]:,.0f} ({at})" if rates else "–" for at in _ends(rates)),
            *((f"{statistics.median(busy):.0f}", f"{min(busy):.0f}") if busy else ("–", "–")),
            f"{max(one.memory.peak_mib for one in rows.values()):,.0f}",
        )
    by_machine = _empty_table("")
    by_machine.add_column("", justify="right")
    by_machine.add_column("file", overflow="fold")
    by_machine.add_column("machine", overflow="fold")
    for heading in ("rows", "pace", "not finished"):
        by_machine.add_column(heading, justify="left" if heading == "not finished" else "right")
    by_machine.caption = "pace: images/s over the median machine's"
    pace = merged.pace()
    for name, rows in merged.machines.items():
        failed = "; ".join(f"{one.name} {one.outcome}" for one in rows if one.outcome != "finished")
        share = "–" if pace[name] is None else f"{pace[name]:.2f}"
        cells = (str(numbers[name]), name, _describe(rows[-1].context.machine), str(len(rows)), share, failed)
        by_machine.add_row(*map(escape, cells))
    return [by_pipeline, by_machine]


# ---- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    program = "python -m helpers.scoreboard"
    parser = argparse.ArgumentParser(
        usage=f"{program} [-h] [merge FILES… [--to PICTURE]]",
        description="Print this machine's scoreboard, or compare those of many machines.",
    )
    commands = parser.add_subparsers(dest="command", metavar="merge", prog=program)
    merging = commands.add_parser(
        "merge",
        help="compare the results of many machines",
        description="Put the results of many machines into one table and one picture.",
        epilog="Exit status: 0; 1 when a file could not be read (the others are shown) or nothing could be compared.",
    )
    merging.add_argument("files", nargs="+", metavar="FILES", help="results files, or folders with *.jsonl in them")
    merging.add_argument(
        "--to", type=_picture, default="machines.png", metavar="PICTURE", help="PNG, SVG or PDF (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return _print_merged(options.files, options.to) if options.command else _print_local()


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PICTURE_FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: name a picture that ends in {', '.join(_PICTURE_FORMATS)}")
    return path


def _print_local() -> int:
    rows = newest(load())
    if not rows:
        raise SystemExit(f"{local_path()}: no measurement yet; the lessons record one each (make course runs them all)")
    Console().print(table(rows))
    return ExitStatus.FINE


def _print_merged(files: Sequence[str], picture: Path) -> int:
    merged = merge(files)
    for line in (*merged.unread, *merged.left_out):
        print(line, file=sys.stderr)
    if not merged.machines:
        print("nothing to compare: name results files, as results/local/ has them", file=sys.stderr)
        return ExitStatus.FOUND
    for shown in _merged_tables(merged):
        Console().print(shown)
        print()
    methods = Counter(one.memory.method for rows in merged.machines.values() for one in rows)
    if len(methods) > 1:
        print(f"peak memory is not quite comparable: read by {', '.join(methods)}")
    os.environ.setdefault("MPLBACKEND", "agg")  # no window is needed, and there may be no screen
    from helpers.plots import scoreboard_by_pipeline

    figure = scoreboard_by_pipeline(merged.machines, accelerator=merged.accelerator, title=merged.setting)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture)
    except OSError as error:
        print(f"{picture}: not written; {error.strerror or error}", file=sys.stderr)
        return ExitStatus.FOUND
    print(f"picture: {picture}")
    return ExitStatus.FOUND if merged.unread else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
