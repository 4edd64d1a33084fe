"""The archive of `make offline` sets a course up without a network, from the packages of the lock alone."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import offline
import pytest

REPOSITORY = offline.ROOT
HERE = f"cp3{sys.version_info[1]}"
PYTHON = f"3.{sys.version_info[1]}"
SYSTEM = offline.this_platform()
TAG = {"linux": "manylinux_2_17_x86_64", "linux-arm": "manylinux_2_17_aarch64", "macos": "macosx_11_0_arm64"}.get(
    SYSTEM
)
pytestmark = pytest.mark.skipif(TAG is None, reason="the set-up by make is for Linux and macOS")

BACKEND = """
import zipfile
import aaa  # it is installed for the build: no network is needed for that either


def build_editable(folder, *_):
    name, info = "course-1-py3-none-any.whl", "course-1.dist-info/"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: course\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
COURSE = {
    "data_scripts/make_images.py": "from pathlib import Path\n"
    "folder = Path(__file__).parents[1] / 'data' / 'generated' / 'ball'\n"
    "folder.mkdir(parents=True, exist_ok=True)\n(folder / '000000.jpg').write_bytes(b'an image')\n",
    "tools/run_course.py": "import aaa, bbb, sys\nprint('lessons run with', aaa.TAG, bbb.TAG)\n"
    "print(open('data/generated/ball/000000.jpg').read())\n",
    "backend.py": BACKEND,
    "pyproject.toml": '[build-system]\nrequires = ["aaa"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    '[project]\nname = "course"\nversion = "1"\n',
}


def write_wheel(folder, name, tag):
    path, info = folder / f"{name}-1.0-{tag}.whl", f"{name}-1.0.dist-info/"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"TAG = {tag!r}\n")
        wheel.writestr(f"{info}METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}RECORD", f"{name}.py,,\n{info}METADATA,,\n{info}WHEEL,,\n{info}RECORD,,\n")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine: a pure package, one with a wheel for each system, and one for Windows alone."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, "aaa", "py3-none-any")
    for tag in (f"{HERE}-{HERE}-{TAG}", "cp310-cp310-" + TAG, f"{HERE}-{HERE}-win_amd64"):
        write_wheel(folder, "bbb", tag)
    write_wheel(folder, "ccc", "py3-none-any")

    class Index(BaseHTTPRequestHandler):
        def do_GET(self):
            kind, _, name = self.path.strip("/").partition("/")
            self.server.fetched += [name] * (kind == "files")
            if kind == "files":
                answer = (folder / name).read_bytes()
            else:
                files = [
                    {
                        "filename": path.name,
                        "url": f"/files/{path.name}",
                        "size": path.stat().st_size,
                        "hashes": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
                    }
                    for path in folder.glob(f"{name}-*")
                ]
                answer = json.dumps({"meta": {"api-version": "1.0"}, "name": name, "files": files}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.folder, server.fetched = folder, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/simple"
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": address, "PIP_NO_CACHE_DIR": "1"}
    settings |= {"UV_DEFAULT_INDEX": address, "UV_NO_CACHE": "1", "UV_NO_CONFIG": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def course(tmp_path, monkeypatch, index):
    """A clone of a course with three packages in its lock, in a folder with a space in its name."""
    root = tmp_path / "the course"
    for name, text in COURSE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("Makefile", "tools/set_up.sh"):
        shutil.copy(REPOSITORY / name, root / name)
    lines = []
    for name, marker in (("aaa", ""), ("bbb", ""), ("ccc", " ; sys_platform == 'win32'")):
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in index.folder.glob(f"{name}-*")]
        lines.append(" \\\n    --hash=sha256:".join([f"{name}==1.0{marker}", *hashes]) + "\n")
    (root / "requirements.lock").write_text("".join(lines))
    (root / "requirements.txt").write_text("aaa==1.0\nbbb==1.0\nccc==1.0 ; sys_platform == 'win32'\n-e .\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    (root / "notes.txt").write_text("the teacher's own")
    monkeypatch.setattr(offline, "ROOT", root)
    monkeypatch.setattr(offline, "WHEELS", root / "build" / "offline" / "wheels")
    monkeypatch.chdir(root)
    return root


def write(course, *options, platforms=(SYSTEM,)):
    archive = course.parent / "course.zip"
    arguments = ["--platforms", *platforms, "--pythons", PYTHON, "--to", str(archive)]
    return offline.main([*arguments, "--lock", str(course / "requirements.lock"), *options]), archive


def make_without_network(folder):
    """Run `make course` where there is no network, or at least no index, and none of this environment's settings."""
    isolated = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        isolated = []
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON", "UV_"))}
    env["PIP_INDEX_URL"] = "http://127.0.0.1:9/there-is-none"
    command = [*isolated, "make", "course", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def unpacked(archive, folder):
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "feeding-images"


def test_a_course_sets_itself_up_from_the_archive_alone(course, tmp_path, capfd):
    status, archive = write(course, platforms=(SYSTEM, "windows"))
    assert status == 0
    out = capfd.readouterr().out
    assert f"{SYSTEM}, Python {PYTHON}: 2 packages" in out and f"windows, Python {PYTHON}: 3 packages" in out
    there = unpacked(archive, tmp_path / "laptop 7")
    wheels = sorted(path.name for path in (there / "wheels").glob("*.whl"))
    tags = (f"{HERE}-{HERE}-{TAG}", f"{HERE}-{HERE}-win_amd64")
    assert wheels == sorted(
        ["aaa-1.0-py3-none-any.whl", *(f"bbb-1.0-{t}.whl" for t in tags), "ccc-1.0-py3-none-any.whl"]
    )
    assert not (there / "notes.txt").exists() and (there / "Makefile").exists()
    run = make_without_network(there)
    assert run.returncode == 0, run.stderr
    assert "from wheels/, without a network" in run.stdout
    assert run.stdout.endswith(f"lessons run with py3-none-any {HERE}-{HERE}-{TAG}\nan image\n")


def test_sizes_come_before_anything_is_fetched(course, index, monkeypatch, capsys):
    monkeypatch.setattr(offline, "free_bytes", lambda path: 10**6)
    status, archive = write(course)
    out, err = capsys.readouterr()
    assert status == 2 and "2 packages, about" in out and "archive: about 250 MB" in out
    assert "has 1 MB free, and 500 are needed" in err
    assert not archive.exists() and not index.fetched


def test_what_was_fetched_is_not_fetched_again_and_what_is_old_stays_out(course, index):
    assert write(course)[0] == 0
    write_wheel(offline.WHEELS, "old", "py3-none-any")
    index.fetched.clear()
    status, archive = write(course)
    assert status == 0 and not index.fetched
    assert "feeding-images/wheels/old-1.0-py3-none-any.whl" not in zipfile.ZipFile(archive).namelist()


def test_a_package_for_some_releases_of_a_python_is_there(course, tmp_path):
    """This Python is later than the first release of its version, for which the lock asks for another package."""
    for name in ("requirements.lock", "requirements.txt"):
        text = (course / name).read_text().replace("sys_platform == 'win32'", f"python_full_version >= '{PYTHON}.1'")
        (course / name).write_text(text)
    status, archive = write(course)
    there = unpacked(archive, tmp_path / "a")
    assert status == 0 and (there / "wheels" / "ccc-1.0-py3-none-any.whl").exists()
    assert (there / "wheels" / "targets.txt").read_text() == f"{SYSTEM} {PYTHON}\n"
    run = make_without_network(there)
    assert run.returncode == 0, run.stderr


def test_a_package_of_which_a_part_is_there_is_fetched_again(course, index):
    assert write(course)[0] == 0
    part = offline.WHEELS / "aaa-1.0-py3-none-any.whl"
    whole = part.read_bytes()
    part.write_bytes(whole[:100])  # as a full disk leaves it
    assert write(course)[0] == 0 and part.read_bytes() == whole


def test_a_package_that_is_not_that_of_the_lock_is_refused(course, index, capfd):
    for path in index.folder.glob("aaa-*"):  # an index that was broken into
        with zipfile.ZipFile(path, "a") as wheel:
            wheel.writestr("more.py", "")
    status, archive = write(course)
    assert status == 2 and "aaa==1.0 has no wheel" in capfd.readouterr().err and not archive.exists()


def test_a_system_without_a_package_is_named(course, capfd):
    other = "macos" if SYSTEM != "macos" else "linux"
    status, archive = write(course, platforms=(other,))
    assert status == 2 and "bbb" in capfd.readouterr().err and not archive.exists()


def test_an_archive_for_others_says_so(course, tmp_path):
    status, archive = write(course, platforms=("windows",))
    assert status == 0
    run = make_without_network(unpacked(archive, tmp_path / "a"))
    assert run.returncode == 2 and f"The packages in wheels/ are for windows {PYTHON}; this is" in run.stderr
    there = unpacked(archive, tmp_path / "b")
    (there / "wheels" / "targets.txt").write_text("linux 3.10\nmacos 3.10\n")
    run = make_without_network(there)
    assert run.returncode == 2 and "of a version in 3.10 (tried" in run.stderr
    assert "are for linux 3.10,macos 3.10." in run.stderr and not (there / ".venv").exists()


def test_a_stick_that_lost_a_package_is_copied_again(course, tmp_path):
    assert write(course)[0] == 0
    there = unpacked(tmp_path / "course.zip", tmp_path / "a")
    (there / "wheels" / "aaa-1.0-py3-none-any.whl").unlink()
    run = make_without_network(there)
    assert run.returncode == 2 and "unpack the archive again" in run.stderr
    assert make_without_network(unpacked(tmp_path / "course.zip", tmp_path / "a")).returncode == 0


def test_make_passes_the_systems_and_versions_on(course):
    (course / "requirements-dev.txt").touch()
    command = ["make", "--dry-run", "offline", "PLATFORMS=linux windows", "PYTHONS=3.11 3.12"]
    run = subprocess.run(command, cwd=course, capture_output=True, text=True, timeout=60)
    assert "tools/offline.py --platforms linux windows --pythons 3.11 3.12\n" in run.stdout, run.stderr


def test_a_folder_that_is_no_clone_is_refused(course, capsys):
    shutil.rmtree(course / ".git")
    with pytest.raises(SystemExit) as stop:
        write(course)
    assert stop.value.code == 2 and "no clone" in capsys.readouterr().err
