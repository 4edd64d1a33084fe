"""Write one archive from which the course sets itself up without a network: lock, packages, images, notebooks.

    python tools/offline.py [--platforms linux windows …] [--pythons 3.12 …] [--to FILE.zip]

Run by `make offline`, on a machine with a network. Sizes are printed before anything is fetched. Packages for several
systems and versions of Python may be in one archive, which is what a room of mixed laptops needs; pure Python is in it
once. `tools/set_up.sh` installs from the folder wheels/ where there is one, and asks no index then.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from helpers.files import ExitStatus, free_bytes, whole_file

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "build" / "offline" / "wheels"
TOP = "feeding-images"  # the folder that the archive unpacks to
PLATFORMS = {  # what TensorFlow has packages for, in uv's words
    "linux": "x86_64-manylinux_2_28",
    "linux-arm": "aarch64-manylinux_2_28",
    "macos": "aarch64-apple-darwin",
    "windows": "x86_64-pc-windows-msvc",
}
PYTHONS = ("3.11", "3.12", "3.13")
IMAGES_MB = 250  # as lesson 00 says
PACKED = {".whl", ".jpg", ".png"}  # suffixes of files that no compression makes smaller


def this_platform() -> str | None:
    """Return the name of this machine's system, or None where it is none of `PLATFORMS`."""
    here = f"{sys.platform} {platform.machine()}"
    names = {"linux x86_64": "linux", "linux aarch64": "linux-arm", "darwin arm64": "macos", "win32 AMD64": "windows"}
    return names.get(here)


def exact_versions(lock: Path, python: str) -> list[str]:
    """Return the versions of a Python, say 3.11 and 3.11.5, from which on a lock asks for other packages."""
    bounds = re.findall(rf"python_full_version \S+ '{re.escape(python)}\.(\d+)'", lock.read_text(encoding="utf-8"))
    return [python, *(f"{python}.{bound}" for bound in sorted(set(map(int, bounds))))]


def find_wheels(lock: Path, target: str, python: str) -> list[dict]:
    """Return the packages of a lock for one system and version of Python, each with the wheels that fit.

    Returns
    -------
    list of dict
        ``pin`` (name==version) and ``wheels``: file name -> (size in bytes, SHA-256), those named in the lock only.

    Raises
    ------
    ValueError
        If a package has no wheel that fits: nothing can be built without a network.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--format", "pylock.toml"]
    command += ["--python-platform", PLATFORMS[target], "--python-version", python, str(lock)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    hashes, packages = set(re.findall(r"--hash=sha256:(\w+)", lock.read_text(encoding="utf-8"))), []
    for package in tomllib.loads(run.stdout)["packages"]:
        pin = f"{package['name']}=={package['version']}"
        wheels = {
            unquote(urlsplit(one["url"]).path).rpartition("/")[2]: (one["size"], one["hashes"]["sha256"])
            for one in package.get("wheels", [])
            if one["hashes"]["sha256"] in hashes
        }
        if not wheels:
            raise ValueError(f"{pin} has no wheel for {target}, Python {python}, among those of {lock.name}")
        packages.append({"pin": pin, "wheels": wheels})
    return packages


def download(packages: list[dict], python: str, folder: Path) -> None:
    """Fetch the best wheel of each package that is not there yet; its hash must be one of the lock's."""
    tags = {tag for one in packages for name in one["wheels"] for tag in name[:-4].rpartition("-")[2].split(".")}
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--find-links", str(folder), "--python-version", python]
    for tag in sorted(tags - {"any"}, reverse=True):
        command += ["--platform", tag]
    with tempfile.TemporaryDirectory() as temporary:
        wanted = Path(temporary, "wanted.txt")
        lines = [" --hash=sha256:".join([one["pin"], *(sha for _, sha in one["wheels"].values())]) for one in packages]
        wanted.write_text("\n".join(lines))
        subprocess.run([*command, "-r", str(wanted)], check=True)


def tracked_files() -> list[Path]:
    """Return the course's own files: what git tracks, as it is in the folder now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def write_archive(path: Path, targets: list[str], wheels: list[Path], files: list[Path]) -> None:
    """Write the archive whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{TOP}/wheels/targets.txt", "".join(f"{target}\n" for target in targets))
        names = {one: f"wheels/{one.name}" for one in wheels} | {one: one.relative_to(ROOT).as_posix() for one in files}
        for one, name in names.items():
            kind = zipfile.ZIP_STORED if one.suffix in PACKED else zipfile.ZIP_DEFLATED
            archive.write(one, f"{TOP}/{name}", compress_type=kind)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="offline", description="Write an archive that needs no network.")
    parser.add_argument("--platforms", nargs="+", choices=PLATFORMS, default=[this_platform()], help="default: this")
    parser.add_argument("--pythons", nargs="+", choices=PYTHONS, default=[PYTHONS[1]], help="default: 3.12")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "offline" / f"{TOP}.zip", metavar="FILE.zip")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if None in options.platforms:
        parser.error(f"TensorFlow has no package for this machine; name others: --platforms {' '.join(PLATFORMS)}")
    if not shutil.which("git") or not (ROOT / ".git").exists():
        parser.error("this is no clone of the course: git lists what goes into the archive")
    targets = [(target, python) for target in options.platforms for python in options.pythons]
    try:
        return _write(targets, options.to.absolute(), options.lock)
    except (OSError, ValueError) as error:
        print(f"offline: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:  # it has said why
        print(f"offline: {' '.join(error.cmd[1:5])} … ended with status {error.returncode}", file=sys.stderr)
    return ExitStatus.CANNOT


def _write(targets: list[tuple[str, str]], path: Path, lock: Path) -> int:
    exact = [(target, version) for target, python in targets for version in exact_versions(lock, python)]
    found = {one: find_wheels(lock, *one) for one in exact}
    every = {name: one for some in found.values() for package in some for name, one in package["wheels"].items()}
    sizes: dict[str, int] = {}  # of the largest wheel that fits, the best one as a rule
    for (target, python), packages in found.items():
        largest = [max(one["wheels"].items(), key=lambda wheel: wheel[1]) for one in packages]
        sizes |= {name: size for name, (size, _) in largest}
        total_mb = sum(size for _, (size, _) in largest) / 1e6
        print(f"{target}, Python {python}: {len(packages)} packages, about {total_mb:,.0f} MB")
    for name, (size, _) in every.items():  # a download that was interrupted
        if (WHEELS / name).exists() and (WHEELS / name).stat().st_size != size:
            (WHEELS / name).unlink()
    missing_mb = sum(size for name, size in sizes.items() if not (WHEELS / name).exists()) / 1e6
    archive_mb = sum(sizes.values()) / 1e6 + IMAGES_MB
    print(
        f"to fetch: {missing_mb:,.0f} MB; images: about {IMAGES_MB} MB; archive: about {archive_mb:,.0f} MB", flush=True
    )
    needed_mb = missing_mb + IMAGES_MB + archive_mb  # on one disk; if the archive goes to another one, less on each
    for place in (WHEELS, path.parent):
        if (free_mb := free_bytes(place) / 1e6) < needed_mb:
            raise OSError(f"{place} has {free_mb:,.0f} MB free, and {needed_mb:,.0f} are needed")
    WHEELS.mkdir(parents=True, exist_ok=True)
    for (_, python), packages in found.items():
        download(packages, python, WHEELS)
    subprocess.run([sys.executable, str(ROOT / "data_scripts" / "make_images.py")], check=True)
    wheels = sorted(one for one in WHEELS.iterdir() if one.name in every)  # those of an earlier lock stay out
    images = [one for one in (ROOT / "data" / "generated").rglob("*") if one.suffix in (".jpg", ".json")]
    write_archive(path, [" ".join(target) for target in targets], wheels, [*tracked_files(), *sorted(images)])
    print(f"{os.path.relpath(path)}: {path.stat().st_size / 1e6:,.0f} MB")
    print(f"On each laptop: unpack it (python -m zipfile -e {path.name} .), cd {TOP}, make course")
    return ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
