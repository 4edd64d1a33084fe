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
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median

from msgspec.structs import replace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from helpers.files import ExitStatus, locked, may_replace, printable, write_whole
from helpers.measurement import Machine, Measurement, machine
from helpers.pipelines import LESSONS, PIPELINES

__all__ = ["LESSONS", "Merged", "fill", "load", "load_reference", "merge", "newest", "record", "table"]

_RESULTS = Path(__file__).resolve().parent.parent / "results"
_LOCK_TIMEOUT_S = 20
_MADE_BY = "python -m helpers.scoreboard"  # so that a picture of ours is known when it is to be replaced
_PICTURE_FORMATS = (".png", ".svg", ".pdf")
_LOOKS = {"box": SIMPLE_HEAD, "show_edge": False, "title_justify": "left", "caption_justify": "left"}


def record(measurement: Measurement, path: str | os.PathLike | None = None) -> Path:
    """Add a measurement to this machine's file, or to another one; several kernels may do so at once.

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
    busy = f"{path}: locked by another program for {_LOCK_TIMEOUT_S} s; measurement not kept"
    with locked(f"{path}.lock", busy, wait_s=_LOCK_TIMEOUT_S):
        kept = path.read_bytes().rstrip() + b"\n" if path.exists() else b""
        write_whole(path, kept + measurement.to_json().encode() + b"\n")
    return path


def load(path: str | os.PathLike | None = None) -> list[Measurement]:
    """Return the measurements of one file, oldest first; of this machine when no file is named.

    A line that is no measurement is left out, with a warning that names it.
    """
    path = local_path() if path is None else Path(path)
    rows, complaints = _parsed(path, path.read_bytes() if path.exists() else b"")
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=2)
    return rows


def _parsed(path: Path, content: bytes) -> tuple[list[Measurement], list[str]]:
    rows, complaints = [], []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            rows += [Measurement.from_json(line.decode())] if line.strip() else []
        except ValueError as error:
            complaints.append(printable(f"{path}, line {number}: left out ({error})"))
    return rows, complaints


def load_reference() -> dict[str, list[Measurement]]:
    """Return the committed measurements of the reference machines, the newest of each name, by file name."""
    return {path.stem: newest(load(path)) for path in sorted(_RESULTS.glob("*.jsonl"))}


def newest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the last measurement of each name, the course's pipelines first and in its order."""
    last = {measurement.name: measurement for measurement in measurements}
    return [last[name] for name in sorted(last, key=_place)]


def _place(name: str) -> int:
    return list(PIPELINES).index(name) if name in PIPELINES else len(PIPELINES)


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
    own, here = newest(own), machine().cores
    missing = set(PIPELINES) - {one.name for one in own if one.alone.images_per_s and one.training.images_per_s}
    references = load_reference() if references is None else references
    found = {name: [one for one in newest(rows) if one.name in missing] for name, rows in references.items()}
    times = {name: (rows[-1].context.machine.cores or here) / here for name, rows in found.items() if rows}
    nearest = min(times, key=lambda name: (abs(math.log(times[name])), name), default=None)
    return own, found.get(nearest, []), nearest


def local_path() -> Path:
    """Return this machine's file; it is named after its CPU, cores, memory and GPUs, not after its owner."""
    return Path(os.environ.get("COURSE_RESULTS") or _RESULTS / "local", f"{_kind_of(machine())}.jsonl")


def _kind_of(here: Machine) -> str:
    """Return what a machine's file is called: equal machines have the same name."""
    return re.sub(r"[^a-z0-9]+", "-", _describe(here).lower()).strip("-")


def _describe(here: Machine) -> str:
    """Return a machine in words; a file that somebody else wrote may leave anything out."""
    memory = "?" if here.memory_mib is None else f"{here.memory_mib / 1024:.0f}"
    return ", ".join([here.cpu, f"{'?' if here.cores is None else here.cores} cores", f"{memory} GiB", *here.gpus[:1]])


def table(measurements: Iterable[Measurement], *, reference: Iterable[Measurement] = ()) -> Table:
    """Return a table of measurements that shows itself in a notebook and in a terminal.

    Parameters
    ----------
    reference : iterable of Measurement
        Rows of another machine, as `fill` finds them; marked.
    """
    headings = ("files", "alone\nimages/s", "1st epoch\nimages/s", "training\nimages/s", "busy\n%", "peak\nMiB")
    shown = _empty_table("Scoreboard", *headings)
    shown.add_column("outcome", no_wrap=True)
    rows = [(one, one.name) for one in measurements] + [(one, f"{one.name} (reference)") for one in reference]
    for one, name in sorted(rows, key=lambda row: _place(row[0].name)):
        alone, training = one.alone, one.training
        figures = (alone.images_per_s, alone.first_epoch_images_per_s, training.images_per_s)
        cells = map(_number, (one.files, *figures, training.utilisation_percent, one.memory.peak_mib))
        shown.add_row(_as_it_is(name), *cells, one.outcome)
        caption = f"{_describe(one.context.machine)}; accelerator: {training.accelerator or 'none'}"
        shown.caption = _as_it_is(caption, "table.caption")
    return shown


def _as_it_is(text: str, style: str = "") -> Text:
    """Return a name from a folder or a file for a table: rich would take `[b]` and `:cat:` for its own."""
    return Text(printable(text), style)


def _number(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:,.0f}"


def _empty_table(title: str, *headings: str, gap: int = 1) -> Table:
    """Return a table with a column for the pipeline's name and one for each figure."""
    columns = [Column("pipeline", no_wrap=True), *(Column(one, justify="right", no_wrap=True) for one in headings)]
    return Table(*columns, title=_as_it_is(title, "table.title"), padding=(0, gap, 0, 0), **_LOOKS)


# ---- many machines ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merged:
    """The results of many machines, as far as they can be compared.

    Attributes
    ----------
    machines : dict
        A machine's name, which is its file's, to its newest rows in the course's order. A row that was trained with
        another accelerator than most has no utilisation here.
    setting : str
        What all rows have in common, in words: data set, number of images, image size, batch size.
    left_out : tuple of str
        What is not in `machines`, and why: a line each.
    unread : tuple of str
        The files that gave nothing at all, and why: a line each.
    """

    machines: dict[str, list[Measurement]]
    setting: str
    left_out: tuple[str, ...]
    unread: tuple[str, ...]

    def pace(self) -> dict[str, float | None]:
        """Return how fast each machine is: its images/s over the median machine's, median over the pipelines."""
        rates: dict[str, list[float]] = {}
        for one in filter(_rate, chain(*self.machines.values())):
            rates.setdefault(one.name, []).append(_rate(one))
        shares = {
            where: [_rate(one) / median(rates[one.name]) for one in filter(_rate, rows)]
            for where, rows in self.machines.items()
        }
        return {where: median(some) if some else None for where, some in shares.items()}


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
    found, left_out, unread = _read_each_once(paths)
    machines: dict[str, list[Measurement]] = {}
    for rows, name in zip(found.values(), _distinct_names(found), strict=True):
        kinds: dict[str, list[Measurement]] = {}
        for one in rows:
            kinds.setdefault(_kind_of(one.context.machine), []).append(one)
        for kind in sorted(kinds):
            machines[name if len(kinds) == 1 else f"{name}: {kind}"] = kinds[kind]
    setting, machines, not_compared = _comparable(machines)
    trained = Counter(one.training.accelerator for one in chain(*machines.values()) if one.training.accelerator)
    usual = max(trained, key=trained.get, default=None)
    for other in trained.keys() - {usual}:
        rows = _counted(trained[other], "row")
        left_out.append(printable(f"busy share of {rows} left out; trained with {other}, not {usual}"))
    for rows in machines.values():
        for at, one in enumerate(rows):
            if one.training.accelerator != usual:
                rows[at] = replace(one, training=replace(one.training, utilisation_percent=None))
    return Merged(machines, setting, (*left_out, *not_compared), tuple(unread))


def _read_each_once(paths: Iterable[str | os.PathLike]) -> tuple[dict[Path, list[Measurement]], list[str], list[str]]:
    """Return the rows of each file that the paths stand for, what of them is left out, and files that give nothing."""
    files: dict[Path, Path] = {}
    found: dict[Path, list[Measurement]] = {}
    first: dict[bytes, Path] = {}
    left_out, unread = [], []
    for path in map(Path, paths):
        files.update((one.resolve(), one) for one in sorted(path.rglob("*.jsonl")) or [path])
    for path in files.values():
        try:
            content = path.read_bytes()
        except OSError as error:
            why = "no *.jsonl below it" if path.is_dir() else error.strerror or error
            unread.append(f"{printable(path)}: left out; {why}")
            continue
        if first.setdefault(content.strip(), path) != path:
            left_out.append(printable(f"{path}: left out; a copy of {first[content.strip()]}"))
            continue
        rows, complaints = _parsed(path, content)
        if rows:
            found[path] = rows
            more = f", and {_counted(len(complaints) - 1, 'line')} more of that file" if len(complaints) > 1 else ""
            left_out += [complaint + more for complaint in complaints[:1]]
        else:
            why = "no line of it is a measurement" if complaints else "it is empty"
            unread.append(f"{printable(path)}: left out; {why}")
    return found, left_out, unread


def _distinct_names(files: Iterable[Path]) -> list[str]:
    """Name each file by its path, without what all paths begin or end with."""
    parts = [path.resolve().parts for path in files]
    while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[1:] for part in parts]
    while len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    names = [printable("/".join(part)) for part in parts]
    short = [name.removesuffix(".jsonl") for name in names]
    return short if len(set(short)) == len(short) else names


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
        lost += [f"{where}: {_counted(count, 'row')} left out; {other}, not {kept}" for other, count in without.items()]
    return kept, compared, lost


def _setting_of(one: Measurement) -> str:
    size = "×".join(str(side) for side in one.image_size)
    return f"{one.files:,} images of {printable(one.context.dataset.name)} at {size}, batches of {one.batch_size:,}"


def _merged_tables(merged: Merged) -> list[Table]:
    """Return two tables: a row for each pipeline, a row for each machine."""
    title = f"{_counted(len(merged.machines), 'machine')}: {merged.setting}"
    headings = ("images/s\nmedian", "lowest\n(machine)", "highest\n(machine)", "busy %\nmedian", "\nlowest")
    by_pipeline = _empty_table(title, "runs", *headings, "peak MiB\nhighest", gap=0)
    for name in sorted(dict.fromkeys(one.name for one in chain(*merged.machines.values())), key=_place):
        rows = {at: one for at, some in enumerate(merged.machines.values(), 1) for one in some if one.name == name}
        rates = {at: _rate(one) for at, one in rows.items() if _rate(one)}
        busy = [one.training.utilisation_percent for one in rows.values()]
        busy = [percent for percent in busy if percent is not None]
        order = sorted(rates, key=rates.get)
        ends = [f"{rates[at]:,.0f} ({at})" for at in order[:1] + order[-1:]] or ["–", "–"]
        by_pipeline.add_row(
            _as_it_is(name),
            str(len(rows)),
            _number(median(rates.values()) if rates else None),
            *ends,
            _number(median(busy) if busy else None),
            _number(min(busy, default=None)),
            _number(max(one.memory.peak_mib for one in rows.values())),
        )
    columns = [Column("", justify="right"), Column("file", overflow="fold"), Column("machine", overflow="fold")]
    columns += [Column("rows", justify="right"), Column("pace", justify="right"), Column("not finished")]
    by_machine = Table(*columns, caption="pace: images/s over the median machine's", padding=(0, 1, 0, 0), **_LOOKS)
    for at, ((name, rows), pace) in enumerate(zip(merged.machines.items(), merged.pace().values(), strict=True), 1):
        failed = "; ".join(f"{one.name} {one.outcome}" for one in rows if one.outcome != "finished")
        share, hardware = "–" if pace is None else f"{pace:.2f}", _describe(rows[-1].context.machine)
        by_machine.add_row(*map(_as_it_is, (str(at), name, hardware, str(len(rows)), share, failed)))
    return [by_pipeline, by_machine]


# ---- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.scoreboard",
        description="Print this machine's scoreboard, or put those of many machines into one table and one picture.",
        epilog="Exit status: 0; 1 when a file could not be read (the others are shown) or nothing could be compared.",
    )
    parser.add_argument("command", nargs="?", choices=["merge"], help="compare the results of many machines")
    parser.add_argument("files", nargs="*", metavar="FILES", help="results files, or folders with *.jsonl in them")
    parser.add_argument("--to", type=Path, default="machines.png", metavar="PICTURE", help="default: %(default)s")
    options = parser.parse_intermixed_args(arguments)
    if options.command and not options.files:
        parser.error("merge: FILES are missing")
    if options.to.suffix.lower() not in _PICTURE_FORMATS:
        parser.error(f"{options.to}: name a picture that ends in {', '.join(_PICTURE_FORMATS)}")
    if options.command and not may_replace(options.to, _MADE_BY.encode()):
        parser.error(f"{printable(options.to)}: there is something else; give another name (--to)")
    return _print_merged(options.files, options.to) if options.command else _print_local()


def _print_local() -> int:
    rows = newest(load())
    if not rows:
        raise SystemExit(
            f"{printable(local_path())}: no measurement yet; the lessons record one each (make course runs them all)"
        )
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
    methods = Counter(one.memory.method for one in chain(*merged.machines.values()))
    if len(methods) > 1:
        print(f"peak memory is not quite comparable: read by {printable(', '.join(methods))}")
    os.environ.setdefault("MPLBACKEND", "agg")  # no window is needed, and there may be no screen
    from helpers.plots import scoreboard_by_pipeline

    drawn = io.BytesIO()
    made_by = {"Software" if picture.suffix.lower() == ".png" else "Creator": _MADE_BY}
    figure = scoreboard_by_pipeline(merged.machines, title=merged.setting)
    figure.savefig(drawn, format=picture.suffix[1:].lower(), metadata=made_by)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_whole(picture, drawn.getvalue())
    except OSError as error:
        print(f"{printable(picture)}: not written; {error.strerror or error}", file=sys.stderr)
        return ExitStatus.FOUND
    print(f"picture: {printable(picture)}")
    return ExitStatus.FOUND if merged.unread else ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
