"""Is this machine ready for the course? One line for each check, with the cause and the fix.

    python -m helpers.doctor [--json]

Run by readers in the course's folder, before or after the set-up: it needs nothing but Python, and a package that is
missing is one more finding. Exit status: 0 all is well, 1 something was found, 2 the course cannot run here.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from helpers.files import ExitStatus, free_bytes, tolerant_streams, usable_cores

FINE, FOUND, CANNOT = ExitStatus

_ROOT = Path(__file__).resolve().parent.parent
_VENV = _ROOT / ".venv"
_VENV_PYTHON = _VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
_PLATFORMS = {  # that TensorFlow has packages for, and what tools/offline.py calls them
    "linux x86_64 glibc": "linux",
    "linux aarch64 glibc": "linux-arm",
    "darwin arm64 ": "macos",
    "win32 AMD64 ": "windows",
}
_SET_UP_MB, _LESSONS_MB, _UNPACKING_MB = 4000, 2300, 1000  # of disk; the lessons': images, and the pack of lesson 07
_MEMORY_GIB, _LEAST_MEMORY_GIB = 3, 1.5  # that lesson 01 takes; that TensorFlow and a small model take
_MAKE = "make course" if shutil.which("make") else "what README.md gives instead of make course"
_IMPORT = """import cv2, keras, tensorflow as tf
print(tf.__version__, keras.__version__, keras.config.backend(), tf.config.list_physical_devices("GPU"))"""


def _python():
    found = f"{platform.python_version()} of {sys.prefix}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        fix = "install Python 3.12, and give it by name: make course PYTHON=python3.12"
        return CANNOT, f"{found}; the course needs 3.11, 3.12 or 3.13", fix
    here = f"{sys.platform} {platform.machine()} {platform.libc_ver()[0]}{', 32 bits' * (sys.maxsize < 2**32)}"
    if here not in _PLATFORMS:
        fix = "a 64-bit Python made for this processor, another machine, or Codespaces"
        return CANNOT, f"{found}; TensorFlow has no package for {here}", fix
    archive, version = _ROOT / "wheels" / "targets.txt", ".".join(map(str, sys.version_info[:2]))
    targets = archive.read_text(encoding="utf-8").splitlines() if archive.exists() else []
    if targets and f"{_PLATFORMS[here]} {version}" not in targets:
        fix = f"one of those, by name: make course PYTHON=python3.12; or the archive of make offline PYTHONS={version}"
        return CANNOT, f"{found}; the packages in wheels/ are for {', '.join(targets)}", fix
    return FINE, found, ""


def _environment():
    if _VENV.exists():
        if not shutil.which(str(_VENV_PYTHON)):
            return FOUND, "the Python that .venv was made with is gone", f"rm -rf .venv; {_MAKE}"
        if Path(sys.prefix).resolve() != _VENV.resolve():
            return FOUND, f"this is {sys.executable}, not the Python of the course", f"{_VENV_PYTHON} -m helpers.doctor"
    origins = filter(None, (one.read_text("direct_url.json") for one in metadata.distributions(name="feeding-images")))
    if not (origin := next(origins, None)):
        return FOUND, "the course is not set up", f"{_MAKE}; without a network, from the archive of make offline"
    if json.loads(origin)["url"] != _ROOT.as_uri():
        return FOUND, f"set up for {json.loads(origin)['url']}: this folder was moved, or that one is meant", _MAKE
    return FINE, f"set up in {sys.prefix}", ""


def _packages():
    from packaging.requirements import Requirement

    if _environment()[0] != FINE:
        raise ImportError("the environment comes first")
    lines = (_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    locked = [Requirement(line) for line in lines if "==" in line and not line.lstrip().startswith("#")]
    wanted = {one.name: str(one.specifier)[2:] for one in locked if not one.marker or one.marker.evaluate()}
    there = {name: next((one.version for one in metadata.distributions(name=name)), "missing") for name in wanted}
    wrong = [f"{name} is {there[name]}, not {wanted[name]}" for name in wanted if there[name] != wanted[name]]
    if wrong:
        found = ", ".join(wrong[:3]) + f" and {len(wrong) - 3} more" * (len(wrong) > 3)
        return FOUND, found, f"{sys.executable} -m pip install -r requirements.txt"
    return FINE, f"{len(wanted)}, with the versions of requirements.txt", ""


def _disk():
    try:
        with tempfile.TemporaryDirectory(dir=_ROOT) as folder:
            os.name == "nt" or Path(folder, "link").symlink_to("nothing")  # environments are made of links
    except OSError as error:
        fix = "copy the course from the stick or share into a folder of your own on this machine's disk"
        return CANNOT, f"no environment can be made in {_ROOT} ({error.strerror})", fix
    needed = {_ROOT: _LESSONS_MB} if _VENV.exists() else {_ROOT: _SET_UP_MB, tempfile.gettempdir(): _UNPACKING_MB}
    for path, needed_mb in needed.items():
        if free_bytes(path) < needed_mb * 10**6:
            fix = "make room, or move the course" if path == _ROOT else f"unpack elsewhere: TMPDIR={_ROOT} {_MAKE}"
            return FOUND, f"{free_bytes(path) / 10**6:,.0f} MB free in {path}, {needed_mb:,} needed", fix
    return FINE, f"{free_bytes(_ROOT) / 10**9:,.0f} GB free", ""


def _processor():
    cores, cpuinfo = usable_cores(), Path("/proc/cpuinfo")
    found = f"{cores} of {os.cpu_count()} cores are usable"
    if platform.machine() == "x86_64" and cpuinfo.exists() and " avx " not in cpuinfo.read_text(errors="replace"):
        fix = "another machine; or let a virtual machine have the processor of its host"
        return CANNOT, f"{found}; without AVX, importing TensorFlow ends with 'Illegal instruction'", fix
    if cores < 2:
        return FOUND, f"{found}; on one, nothing runs side by side, and lessons take long", "let it have two cores"
    return FINE, found, ""


def _ports():
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(("localhost", port := server.getsockname()[1]), timeout=3).close()
    except OSError as error:
        fix = "let the firewall permit connections to localhost; the hosts file needs the line 127.0.0.1 localhost"
        return CANNOT, f"no program reaches another one on localhost ({error}), and no kernel starts", fix
    return FINE, f"{port} is free, and can be reached", ""


def _jupyterlab():
    """Start a kernel as JupyterLab does, and ask it which Python it is."""
    from jupyter_client.manager import run_kernel

    found, answers, quiet = metadata.version("jupyterlab"), [], ["--log-level=CRITICAL"]
    try:
        with run_kernel(kernel_name="python3", startup_timeout=6, extra_arguments=quiet) as client:
            client.execute_interactive("import sys; print(sys.prefix)", timeout=5, output_hook=answers.append)
    except (RuntimeError, OSError) as error:  # a timeout, too
        return CANNOT, f"no kernel answers ({error})", f"{sys.executable} -m pip install --force-reinstall ipykernel"
    if sys.prefix != (prefix := "".join(one["content"].get("text", "") for one in answers).strip()):
        return (
            FOUND,
            f"{found}; its kernel is that of {prefix}",
            f"{sys.executable} -m jupyter kernelspec remove python3",
        )
    return FINE, f"{found}, and its kernel answers", ""


@lru_cache
def _imported():
    """Import TensorFlow in another process: on some processors it dies of that."""
    try:
        return subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, timeout=12)
    except subprocess.TimeoutExpired:
        return None


def _tensorflow():
    metadata.version("tensorflow")
    if not (run := _imported()):
        fix = "try again, the second import is quicker; let virus scanners leave out .venv"
        return FOUND, "its import takes too long", fix
    if run.returncode < 0:
        return CANNOT, f"its import ends with {signal.Signals(-run.returncode).name}", "another machine, or more memory"
    backend_fix = "take another backend out of KERAS_BACKEND and ~/.keras/keras.json"
    if run.returncode:
        fix = f"{backend_fix}; else rm -rf .venv, and {_MAKE}"
        return FOUND, f"its import fails: {run.stderr.strip().splitlines()[-1]}", fix
    version, keras, backend, _ = run.stdout.split(maxsplit=3)
    if backend != "tensorflow":
        return FOUND, f"Keras runs on {backend}, and lessons behave otherwise", backend_fix
    return FINE, f"{version}, with Keras {keras} on {backend}", ""


def _gpu():
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        return FINE, "no NVIDIA GPU, and none is needed", ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, check=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError) as error:
        return FOUND, f"the driver fails ({getattr(error, 'stdout', '') or error})", "restart; install the driver again"
    found, run = "; ".join(asked.stdout.splitlines()), _imported()
    if os.name == "nt" or not run or run.returncode or "GPU" in run.stdout:
        return FINE, f"{found}{'; TensorFlow uses none on Windows' * (os.name == 'nt')}", ""
    fix = 'a driver from 525 on, no CUDA_VISIBLE_DEVICES, and pip install "tensorflow[and-cuda]~=2.21.0" in .venv'
    return FOUND, f"{found}; TensorFlow does not see it, and lessons run without it", fix


def _children():
    """Run what all lessons stand on: a child process that is stopped at its memory budget."""
    from helpers.sandbox import memory, run

    try:
        multiprocessing.Lock()
    except OSError as error:
        fix = "let the container have /dev/shm (docker run --shm-size=1g)"
        return FOUND, f"processes cannot share a lock ({error}), and lesson 03 needs that", fix
    ended = run(lambda: len(bytearray(400 * 2**20)), memory_budget=250, timeout=10)
    if ended.outcome != "out of memory":
        fix = "let no virus scanner or sandbox stop the child processes of Python"
        return CANNOT, f"a child that took too much memory was not stopped: {ended.outcome}, {ended.error}", fix
    method, methods = memory.current().method, multiprocessing.get_all_start_methods()
    if method not in ("pss", "uss"):
        fix = "a kernel from Linux 4.14 on, without gVisor; all else works"
        return FOUND, f"memory is read by {method}: what processes share counts in each of them", fix
    return FINE, f"stopped at their budget; memory read by {method}; {', '.join(methods)}", ""


def _memory():
    machine_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if os.name != "nt" else 0
    try:
        from helpers.sandbox import memory

        total_gib, free_gib = memory.total_mib() / 1024, memory.available_mib() / 1024
    except ImportError:
        if os.name == "nt":
            raise
        total_gib = free_gib = machine_gib
    found = f"{free_gib:.1f} GiB free of {total_gib:.1f}{', the limit of a container' * (total_gib < machine_gib)}"
    fix = "raise the limit (docker run --memory)" if total_gib < machine_gib else "close other programs"
    if total_gib < _LEAST_MEMORY_GIB:
        return CANNOT, f"{found}; TensorFlow and a small model take {_LEAST_MEMORY_GIB}", fix
    if free_gib < _MEMORY_GIB:
        return FOUND, f"{found}; lesson 01 takes {_MEMORY_GIB}", f"{fix}, or take fewer images: COURSE_IMAGES=500"
    return FINE, found, ""


def _images():
    made = sum(path.stat().st_size > 0 for path in _ROOT.glob("data/generated/*/[0-9]*.jpg"))
    if made < 2000:
        return FOUND, f"{made:,} of 2,000 made", f"lesson 00, or {sys.executable} data_scripts/make_images.py"
    return FINE, f"{made:,} made", ""


_CHECKS = (_python, _environment, _packages, _disk, _processor, _ports, _jupyterlab, _tensorflow, _gpu, _children)
_CHECKS += (_memory, _images)  # once no child of this program takes memory


def main(arguments=None):
    """Run from the command line; return the exit status."""
    tolerant_streams()
    parser = argparse.ArgumentParser(prog="python -m helpers.doctor", description="Is this machine ready?")
    parser.add_argument("--json", action="store_true", help="print a list: check, status, found, fix")
    is_json, results = parser.parse_args(arguments).json, []
    for check in _CHECKS:
        try:
            status, found, fix = check()
        except ImportError as error:  # `_environment` or `_packages` says what to do
            status, found, fix = None, f"not checked ({error})", ""
        except Exception as error:  # what breaks a check is worth a line, too
            status, found, fix = FOUND, f"the check failed: {type(error).__name__}: {error}", "report this line"
        results.append({"check": check.__name__[1:], "status": status, "found": found, "fix": fix})
        word = {None: "-", FINE: "fine", FOUND: "FOUND", CANNOT: "CANNOT"}[status]
        text = " ".join(f"{found}{'. Fix: ' * bool(fix)}{fix}".split())
        is_json or print(f"{word:6} {check.__name__[1:]:11} {text}", flush=True)
    worst = max(one["status"] or FINE for one in results)
    endings = {FINE: "Ready.", FOUND: "The course can run; look at what was found.", CANNOT: "Not ready."}
    print(json.dumps(results, indent=1) if is_json else endings[worst])
    return worst


if __name__ == "__main__":
    sys.exit(main())
