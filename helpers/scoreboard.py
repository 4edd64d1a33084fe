"""Keep measurements: one JSON line each, a file per machine; `python -m helpers.scoreboard` prints them.

Called at the end of every lesson. This machine's file lies in ``results/local/`` (not committed); ``results/`` has the
reference machines. The environment variable COURSE_RESULTS names another folder for this machine's file.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as LockTimeout

from helpers.measure import Measurement, machine
from helpers.pipelines import PIPELINES

__all__ = ["load", "load_reference", "newest", "record", "table"]

_RESULTS = Path(__file__).resolve().parent.parent / "results"
_LOCK_TIMEOUT_S = 20


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
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S), open(path, "ab") as file:
            _append(file, line)
    except LockTimeout:
        raise OSError(f"{path}: locked by another program for {_LOCK_TIMEOUT_S} s; measurement not kept") from None
    return path


def _append(file, line: bytes) -> None:
    """Write one line as a whole or not at all; a line that a killed writer left unfinished is ended first."""
    size = file.seek(0, os.SEEK_END)
    with open(file.name, "rb") as reader:
        reader.seek(max(size - 1, 0))
        torn = size > 0 and reader.read(1) != b"\n"
    try:
        file.write(b"\n" + line if torn else line)
        file.flush()
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
    """Return the committed measurements of the reference machines, by file name without suffix."""
    return {path.stem: load(path) for path in sorted(_RESULTS.glob("*.jsonl"))}


def newest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the last measurement of each name, the course's pipelines first and in its order."""
    last = {measurement.name: measurement for measurement in measurements}
    order = list(PIPELINES)
    return sorted(last.values(), key=lambda m: order.index(m.name) if m.name in order else len(order))


def local_path() -> Path:
    """Return this machine's file; it is named after its CPU, cores, memory and GPUs, not after its owner."""
    folder = Path(os.environ.get("COURSE_RESULTS") or _RESULTS / "local")
    here = machine()
    parts = [here["cpu"], f"{here['cores']} cores", f"{here['memory_mib'] / 1024:.0f} GiB", *here["gpus"][:1]]
    return folder / (re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-") + ".jsonl")


def table(measurements: Iterable[Measurement]):
    """Return a table of measurements that shows itself in a notebook and in a terminal.

    Returns
    -------
    rich.table.Table
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(
        title="Scoreboard",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown.add_column("pipeline", no_wrap=True)
    for heading in ("files", "alone\nimages/s", "1st epoch\nimages/s", "training\nimages/s", "busy\n%", "peak\nMiB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("outcome", no_wrap=True)
    for one in measurements:
        figures = (one.images_per_s, one.first_epoch_images_per_s, one.together_images_per_s, one.utilisation_percent)
        cells = ["–" if figure is None else f"{figure:,.0f}" for figure in figures]
        shown.add_row(one.name, f"{one.files:,}", *cells, f"{one.peak_mib:,.0f}", one.outcome)
        shown.caption = f"{one.machine.get('cpu', '?')}, {one.machine.get('cores', '?')} cores; accelerator: " + (
            one.accelerator or "none"
        )
    return shown


def main() -> None:
    """Print this machine's scoreboard."""
    from rich.console import Console

    rows = newest(load())
    if not rows:
        raise SystemExit(f"{local_path()}: no measurement yet; the lessons record one each (make course runs them all)")
    Console().print(table(rows))


if __name__ == "__main__":
    main()
