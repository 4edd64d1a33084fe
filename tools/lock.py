"""Write requirements*.txt from requirements*.in: one lock for Linux, macOS and Windows, Python 3.11 to 3.13.

`requirements.lock` has the same versions as requirements.txt with the hashes of all their files, for
``pip install --require-hashes``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements", "requirements-dev")
EXTRAS = ("requirements-far.in", "requirements-store.in")  # a reader gets them, too
OWN_PACKAGE = "-e .\n"


def lock(source: str, target: str, *options: str) -> None:
    """Resolve one file, with more of them in `options`; uv keeps the versions that it finds in the old lock."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--custom-compile-command", "make lock", source, "--output-file", target, *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Resolve all files; end each with the course's own package, so that one ``pip install -r`` is a set-up."""
    paths = [ROOT / f"{name}.txt" for name in LOCKS]
    for path in paths:
        if path.exists():  # uv refuses it in a file that constrains another
            path.write_text(path.read_text().replace(OWN_PACKAGE, ""))
    try:
        for name, more in zip(LOCKS, (EXTRAS, ()), strict=True):  # requirements-dev.in names them itself
            lock(f"{name}.in", f"{name}.txt", *more)
        lock("requirements.txt", "requirements.lock", "--generate-hashes", "--no-annotate")
        lock("requirements-site.in", "requirements-site.txt")  # added to an environment that has the course
    finally:
        for path in paths:
            path.write_text(path.read_text() + OWN_PACKAGE)
    for path in paths:
        print(f"{path.name}: {sum('==' in line for line in path.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
