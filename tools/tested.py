"""Tell whether the tests went through on exactly these files, so that `make test` need not run them again.

    python tools/tested.py            exit status 0 and a line when nothing has changed since; 1 otherwise
    python tools/tested.py --note     note that they went through; `make test` calls it at its end

What counts is the content of every file that git tracks or would add, and the Python that runs.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def state(root: Path) -> str | None:
    """Return a hash of the files, or None where git cannot list them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        return None
    digest = hashlib.sha256(sys.version.encode())
    for name in sorted({name for name in names if name}):
        path = root / name.decode(errors="surrogateescape")
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b"gone") + b"\0")
    return digest.hexdigest()


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Compare with the note, or write it."""
    note, now = root / "build" / "tested", state(root)
    if arguments == ["--note"]:
        if now is not None:
            note.parent.mkdir(exist_ok=True)
            note.write_text(now)
        return 0
    if now is None or not note.exists() or note.read_text() != now:
        return 1
    print("Nothing has changed since the tests went through (make test AGAIN=1 runs them again)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
