"""What a lesson's first cell does where the course is not set up: on Colab, on Kaggle, or in another kernel.

`tools/setup_cell.py` puts that cell into the notebooks.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

__all__ = ["prepare"]

_ROOT = Path(__file__).resolve().parent.parent
_NOT_FOR_LESSONS = {"jupyterlab", "nbval"}  # what opens them, and what tests them
_COMPARED = ("tensorflow", "keras", "numpy", "opencv-python-headless")  # what stored outputs depend on most


def prepare() -> None:
    """Make this kernel ready for a lesson; do nothing where the course is set up.

    On Colab and Kaggle, packages that the lessons need and that are missing are installed. None that is there changes
    its version. What could not be installed, and which versions differ from those of the stored outputs, is printed.

    Raises
    ------
    RuntimeError
        If packages are missing in somebody's own Python, in which nothing is installed unasked.
    """
    if any(one.read_text("direct_url.json") for one in metadata.distributions(name="feeding-images")):
        return  # pip has installed this folder, and with it what requirements.txt asks for
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # Kaggle's image is built on Colab's, so the variable of Colab may be set there, too.
    where = "Kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "Colab" if "COLAB_RELEASE_TAG" in os.environ else ""
    missing = _missing()
    if missing and not where:
        names = ", ".join(missing)
        raise RuntimeError(f"{sys.executable} lacks {names}; choose the course's own kernel, or run `make course`")
    print(f"{where or sys.prefix}, Python {platform.python_version()}: the course runs from {_ROOT}")
    failed = _install(missing) if missing else {}
    if added := [name for name in missing if name not in failed]:
        print(f"installed: {', '.join(added)}; what was here has kept its version")
    for name, reason in failed.items():
        print(f"not installed: {name}, {reason}")
    if other := _other_versions():
        print(f"the stored outputs were made with other versions: {', '.join(other)}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _missing() -> dict[str, str]:
    """Return name -> requirement of what the lessons need and no package here provides."""
    files = [_ROOT / f"requirements{extra}.in" for extra in ("", "-far", "-store")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    wanted = {re.split(r"[\[~<>=; ]", line)[0]: line for line in lines if line[:1].isalpha()}
    return {name: line for name, line in wanted.items() if name not in _NOT_FOR_LESSONS and not _version(name)}


def _install(missing: dict[str, str]) -> dict[str, str]:
    """Install what is missing, while all that is here keeps its version; return name -> why it was not installed."""
    pip, failed = [sys.executable, "-m", "pip", "--disable-pip-version-check"], {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder, "here.txt")
        here.write_bytes(subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True).stdout)
        for name, requirement in missing.items():
            command = [*pip, "install", "--quiet", "--constraint", here, requirement]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode and "conflict" in run.stderr:
                failed[name] = "which does not go with a package that is here"
            elif run.returncode:
                failed[name] = f"{run.stderr.strip().splitlines()[-1]}; on Kaggle, switch Internet on in the settings"
    return failed


def _other_versions() -> list[str]:
    """Name each of `_COMPARED` that is not as in requirements.txt, with both versions."""
    from packaging.requirements import Requirement

    lines = (_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.startswith(_COMPARED) and "==" in line]
    pins = {pin.name: str(pin.specifier)[2:] for pin in pins if not pin.marker or pin.marker.evaluate()}
    return [f"{name} {pins[name]} (here {_version(name)})" for name in _COMPARED if _version(name) != pins[name]]
