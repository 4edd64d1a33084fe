"""The doctor finds what can be wrong with a machine, one faked at a time, and runs where nothing is installed."""

import ast
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from helpers import doctor
from helpers import files as files_room
from helpers.doctor import CANNOT, FINE, FOUND
from helpers.sandbox import memory

REPOSITORY = doctor._ROOT


@pytest.fixture(autouse=True)
def no_import_is_remembered():
    doctor._imported.cache_clear()
    yield
    doctor._imported.cache_clear()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course that is not set up, in a folder with a space and a letter that ASCII lacks in its name."""
    root = tmp_path / "Übung 1"
    root.mkdir()
    monkeypatch.setattr(doctor, "_ROOT", root)
    monkeypatch.setattr(doctor, "_VENV", root / ".venv")
    monkeypatch.setattr(doctor, "_VENV_PYTHON", root / ".venv" / "bin" / "python")
    return root


@pytest.fixture
def other_python(monkeypatch):
    """A function that lets the doctor take this Python for another one."""

    def fake(version=(3, 12, 1), system="linux", machine="x86_64", libc="glibc", maxsize=2**63 - 1):
        names = {"version_info": version, "platform": system, "maxsize": maxsize, "prefix": "/p", "executable": "/p/py"}
        monkeypatch.setattr(doctor, "sys", SimpleNamespace(**names))
        monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
        monkeypatch.setattr(doctor.platform, "libc_ver", lambda: (libc, ""))

    return fake


def finds(check, status, words, fix=""):
    found = check()
    assert found[0] == status and words in found[1] and fix in found[2], found


@pytest.mark.parametrize("version", [(3, 9, 6), (3, 10, 13), (3, 14, 0)])
def test_a_python_that_tensorflow_is_not_made_for(other_python, version):
    other_python(version)
    finds(doctor._python, CANNOT, "needs 3.11, 3.12 or 3.13", "PYTHON=python3.12")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"system": "darwin", "libc": ""}, "darwin x86_64"),
        ({"system": "win32", "machine": "ARM64", "libc": ""}, "win32 ARM64"),
        ({"libc": ""}, "linux x86_64"),  # musl, as in Alpine
        ({"maxsize": 2**31 - 1}, "32 bits"),
    ],
)
def test_a_system_that_tensorflow_has_no_package_for(other_python, changed, words):
    other_python()
    assert doctor._python()[0] == FINE
    other_python(**changed)
    finds(doctor._python, CANNOT, words)


def test_an_archive_that_is_for_other_machines(other_python, root):
    other_python()
    (root / "wheels").mkdir()
    (root / "wheels" / "targets.txt").write_text("linux 3.11\nwindows 3.12\n")
    finds(doctor._python, CANNOT, "are for linux 3.11, windows 3.12", "make offline PYTHONS=3.12")
    (root / "wheels" / "targets.txt").write_text("linux 3.11\nlinux 3.12\n")
    assert doctor._python()[0] == FINE


def test_the_course_is_not_set_up(root, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "distributions", lambda name: [])
    finds(doctor._environment, FOUND, "not set up", doctor._MAKE)


def test_metadata_that_an_earlier_set_up_left_is_no_set_up(root, monkeypatch):
    left = SimpleNamespace(read_text=lambda name: None)  # feeding_images.egg-info, in the course's own folder
    monkeypatch.setattr(doctor.metadata, "distributions", lambda name: [left])
    finds(doctor._environment, FOUND, "not set up")
    origin = json.dumps({"url": root.as_uri(), "dir_info": {"editable": True}})
    there = SimpleNamespace(read_text=lambda name: origin)
    monkeypatch.setattr(doctor.metadata, "distributions", lambda name: [left, there])
    assert doctor._environment()[0] == FINE


def test_a_folder_that_was_moved(root, monkeypatch):
    origin = json.dumps({"url": (root.parent / "elsewhere").as_uri()})
    there = SimpleNamespace(read_text=lambda name: origin)
    monkeypatch.setattr(doctor.metadata, "distributions", lambda name: [there])
    finds(doctor._environment, FOUND, "elsewhere: this folder was moved", doctor._MAKE)


def test_an_environment_whose_python_is_gone(root):
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(root / "python3.11 that was upgraded")
    finds(doctor._environment, FOUND, "is gone", "rm -rf .venv")


def test_another_python_than_that_of_the_course(root):
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    finds(doctor._environment, FOUND, f"this is {sys.executable}", f"{root}/.venv/bin/python -m helpers.doctor")


def test_versions_that_are_not_those_of_the_lock(root, monkeypatch):
    here = f"numpy=={doctor.metadata.version('numpy')}\n    # via keras==9\n"
    lock = root / "requirements.txt"
    lock.write_text(f"# by make lock\n{here}not-for-here==1 ; sys_platform == 'mars'\n-e .\n")
    with pytest.raises(ImportError, match="environment comes first"):  # whose packages would it name?
        doctor._packages()
    monkeypatch.setattr(doctor, "_environment", lambda: (FINE, "set up", ""))
    finds(doctor._packages, FINE, "1, with")
    lock.write_text(f"{here}psutil==0.1\nnot-there==2.0\n")
    words = f"psutil is {psutil.__version__}, not 0.1, not-there is missing, not 2.0"
    finds(doctor._packages, FOUND, words, "pip install -r requirements.txt")
    lock.write_text("".join(f"not-there-{number}==1\n" for number in range(5)))
    finds(doctor._packages, FOUND, "and 2 more")


@pytest.mark.parametrize(
    ("mb", "is_set_up", "words"),
    [
        ({"root": 3900, "tmp": 9000}, False, "3,900 MB free"),
        ({"root": 2200, "tmp": 9000}, True, "2,200 MB free"),
        ({"root": 9000, "tmp": 900}, False, "900 MB free"),
    ],
)
def test_a_disk_that_is_too_full(root, monkeypatch, mb, is_set_up, words):
    monkeypatch.setattr(doctor, "free_bytes", lambda path: mb["root" if path == root else "tmp"] * 10**6)
    if is_set_up:
        (root / ".venv").mkdir()
    finds(doctor._disk, FOUND, words, "make room" if mb["root"] < 9000 else f"TMPDIR={root}")
    mb.update(root=4000, tmp=1000)
    assert doctor._disk()[0] == FINE


def test_a_stick_that_takes_no_links(root, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    finds(doctor._disk, CANNOT, "no environment can be made", "this machine's disk")
    assert not list(root.iterdir())


def test_a_read_only_folder(root):
    shutil.rmtree(root)  # root may write anywhere else
    finds(doctor._disk, CANNOT, "No such file or directory")


def test_a_processor_without_avx(monkeypatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : sse4_2 aes\n")
    finds(doctor._processor, CANNOT, "Illegal instruction")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : sse4_2 avx aes\n")
    assert doctor._processor()[0] != CANNOT


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to a core")
def test_a_single_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    finds(doctor._processor, FOUND, f"1 of {os.cpu_count()} cores")


def test_a_machine_whose_programs_cannot_reach_each_other(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    finds(doctor._ports, CANNOT, "Connection refused", "firewall")


def write_kernel(folder, monkeypatch, *argv):
    """Give this user a kernel of the usual name, as other courses leave one."""
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": [*argv], "display_name": "Python 3", "language": "python"}
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))


def test_a_kernel_that_is_another_python(tmp_path, monkeypatch):
    code = "import sys; sys.prefix = '/other'; from ipykernel.kernelapp import launch_new_instance as run; run()"
    write_kernel(tmp_path, monkeypatch, sys.executable, "-c", code, "-f", "{connection_file}")
    finds(doctor._jupyterlab, FOUND, "its kernel is that of /other", "kernelspec remove python3")


def test_a_kernel_that_dies(tmp_path, monkeypatch):
    write_kernel(tmp_path, monkeypatch, sys.executable, "-c", "raise SystemExit(1)", "{connection_file}")
    finds(doctor._jupyterlab, CANNOT, "no kernel answers", "ipykernel")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A function that writes the three modules that the doctor imports in a child, instead of TensorFlow's seconds."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(tensorflow="", backend="tensorflow", gpus="[]"):
        doctor._imported.cache_clear()
        (tmp_path / "cv2.py").write_text("")
        (tmp_path / "keras.py").write_text(
            f"__version__ = '3.15.1'\nclass config:\n    backend = staticmethod(lambda: {backend!r})\n"
        )
        (tmp_path / "tensorflow.py").write_text(
            "__version__ = '2.21.0'\nclass config:\n"
            f"    list_physical_devices = staticmethod(lambda kind: {gpus})\n{tensorflow}\n"
        )

    return write


@pytest.mark.parametrize(
    ("code", "status", "words", "fix"),
    [
        ("import os; os.kill(os.getpid(), 4)", CANNOT, "SIGILL", "another machine"),
        ("raise ImportError('DLL load failed')", FOUND, "ImportError: DLL load failed", "rm -rf .venv"),
    ],
)
def test_a_tensorflow_that_cannot_be_imported(modules, code, status, words, fix):
    modules(code)
    finds(doctor._tensorflow, status, words, fix)


def test_a_tensorflow_that_takes_too_long(monkeypatch):
    def wait(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(doctor.subprocess, "run", wait)
    finds(doctor._tensorflow, FOUND, "too long", "virus scanners")


def test_another_backend(modules):
    modules(backend="torch")
    finds(doctor._tensorflow, FOUND, "Keras runs on torch", "keras.json")


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def write(script):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return write


def test_a_gpu_that_tensorflow_does_not_see(modules, nvidia_smi):
    nvidia_smi("echo 'NVIDIA T4, 470.57.02'")
    modules()
    finds(doctor._gpu, FOUND, "NVIDIA T4, 470.57.02; TensorFlow does not see it", "tensorflow[and-cuda]")
    modules(gpus="['/physical_device:GPU:0']")
    finds(doctor._gpu, FINE, "NVIDIA T4")


def test_a_driver_that_does_not_answer(nvidia_smi):
    nvidia_smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    finds(doctor._gpu, FOUND, "Driver/library version mismatch", "restart")


def test_processes_that_cannot_share_a_lock(monkeypatch):
    def refuse():
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    finds(doctor._children, FOUND, "Function not implemented", "--shm-size")


def test_a_child_that_is_not_stopped(monkeypatch):
    ended = SimpleNamespace(outcome="killed", error="died by SIGSYS")
    monkeypatch.setattr("helpers.sandbox.run", lambda *_, **__: ended)
    finds(doctor._children, CANNOT, "killed, died by SIGSYS", "virus scanner")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kernel_that_tells_less_of_memory(tmp_path, monkeypatch):
    """As gVisor does, and /proc mounted with hidepid: there is no smaps_rollup."""
    (tmp_path / str(os.getpid())).mkdir()
    shutil.copy("/proc/self/status", tmp_path / str(os.getpid()) / "status")
    monkeypatch.setattr(memory, "_PROC", str(tmp_path))
    ended = SimpleNamespace(outcome="out of memory", error="")
    monkeypatch.setattr("helpers.sandbox.run", lambda *_, **__: ended)
    finds(doctor._children, FOUND, "read by rss-parts", "4.14")


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A function that puts this process into a container with that much memory, in MiB."""
    monkeypatch.setattr(files_room, "_CGROUP_MOUNT", tmp_path)
    monkeypatch.setattr(files_room, "_CGROUPS_OF_SELF", tmp_path / "of_self")
    (tmp_path / "of_self").write_text("0::/\n")

    def limit(mib, used_mib=0):
        (tmp_path / "memory.max").write_text(f"{mib << 20}\n")
        (tmp_path / "memory.current").write_text(f"{used_mib << 20}\n")
        (tmp_path / "memory.stat").write_text("")

    return limit


@pytest.mark.skipif(sys.platform != "linux", reason="has control groups")
def test_the_memory_of_a_container(container):
    container(1024)
    finds(doctor._memory, CANNOT, "1.0, the limit of a container", "docker run --memory")
    container(2048)
    finds(doctor._memory, FOUND, "lesson 01 takes 3", "COURSE_IMAGES=500")
    container(4096, used_mib=2048)
    finds(doctor._memory, FOUND, "2.0 GiB free of 4.0")


def test_a_machine_that_is_busy(monkeypatch):
    monkeypatch.setattr(memory, "available_mib", lambda: 2000.0)
    monkeypatch.setattr(memory, "total_mib", lambda: 1e9)
    finds(doctor._memory, FOUND, "2.0 GiB free", "close other programs")


def test_memory_before_the_set_up(monkeypatch):
    monkeypatch.setitem(sys.modules, "helpers.sandbox", None)
    pages = {"SC_PHYS_PAGES": 2**18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    finds(doctor._memory, CANNOT, "free of 1.0")


def test_images_that_are_missing(root):
    finds(doctor._images, FOUND, "0 of 2,000", "data_scripts/make_images.py")
    folder = root / "data" / "generated" / "ball"
    folder.mkdir(parents=True)
    for number in range(2000):
        (folder / f"{number:06d}.jpg").write_bytes(b"x" * (number > 0))
    finds(doctor._images, FOUND, "1,999 of 2,000")
    (folder / "000000.jpg").write_bytes(b"x")
    assert doctor._images()[0] == FINE


def broken():
    raise ValueError("two\nlines")


def test_every_check_is_one_line_and_the_worst_decides(monkeypatch, capsys):
    def not_there():
        raise ImportError("No module named 'x'")

    checks = {"_a": lambda: (FINE, "good", ""), "_b": broken, "_c": not_there}
    for name, check in checks.items():
        check.__name__ = name
    monkeypatch.setattr(doctor, "_CHECKS", [checks["_a"], checks["_c"]])
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Ready."
    monkeypatch.setattr(doctor, "_CHECKS", [*checks.values()])
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == "FOUND b the check failed: ValueError: two lines. Fix: report this line"
    assert len(lines) == 4 and lines[2].startswith("-      c")
    cannot = lambda: (CANNOT, "bad", "go away")  # noqa: E731
    cannot.__name__ = "_d"
    monkeypatch.setattr(doctor, "_CHECKS", [cannot, *checks.values()])
    assert doctor.main(["--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed[0] == {"check": "d", "status": 2, "found": "bad", "fix": "go away"}
    assert [one["status"] for one in printed] == [2, 0, 1, None]


def run_doctor(*options, python=sys.executable, before=()):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [*before, python, *options, "-m", "helpers.doctor", "--json"]
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)


def test_all_checks_run_here():
    run = run_doctor()
    results = json.loads(run.stdout)
    assert len(results) == len(doctor._CHECKS) and not run.stderr
    assert not [one for one in results if "check failed" in one["found"] or one["status"] is None]


def test_nothing_but_python_is_needed():
    run = run_doctor("-S")
    results = {one["check"]: one for one in json.loads(run.stdout)}
    assert run.returncode in (1, 2) and not run.stderr
    assert not [one for one in results.values() if "check failed" in one["found"]]
    assert {name for name, one in results.items() if one["status"] is None} == {
        "packages", "jupyterlab", "tensorflow", "children",
    }  # fmt: skip
    assert results["environment"]["status"] == FOUND and results["disk"]["found"] and results["memory"]["found"]


def test_a_network_of_its_own_without_loopback():
    before = ["unshare", "--map-root-user", "--net"]
    probe = subprocess.run([*before, "true"], capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip("this system lets no test take the network away")
    run = run_doctor("-S", before=before)
    ports = next(one for one in json.loads(run.stdout) if one["check"] == "ports")
    assert run.returncode == 2 and ports["status"] == CANNOT and "no kernel starts" in ports["found"]


def test_an_old_python_gets_the_same_lines_and_no_syntax_error():
    for name in ("__init__", "quiet", "files", "doctor"):
        ast.parse((REPOSITORY / "helpers" / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    for python in filter(None, map(shutil.which, ("python3.8", "python3.9", "python3.10"))):
        run = run_doctor("-S", python=python)
        if run.returncode != 127:  # a shim of a version that is not chosen
            assert run.returncode == 2 and "needs 3.11" in run.stdout and not run.stderr, run.stderr
