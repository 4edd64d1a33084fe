"""Each command of the README runs as it is written there; `NOT_RUN` lists the exceptions, each with its reason."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import pytest
from conftest import draw_image, write_images
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600

SET_UP = "makes an environment from the package registry, as tools/set_up.sh does for `make course`"
WINDOWS = "needs Windows"
NOT_RUN = {
    "make course": "what continuous integration runs first",
    "make test": "what continuous integration runs second; this test is a part of it",
    "make test-depth": "what continuous integration runs last",
    "make test-all": "this test is a part of it",
    "make check": "runs before the tests in `make test`",
    "make lock": "needs the network",
    "make offline": "needs the network; tests/tools/test_offline.py runs it beside an index of its own",
    "make site": "needs the network once; tests/tools/test_make_site.py makes the pages",
    "make compat": "makes an environment of its own from the package registry, and runs all lessons in it",
    "make fuzz": "15 minutes; tests/test_fuzz.py is what it runs, here with fewer examples",
    "make gpu-bench": "needs a GPU; tests/test_gpu_benchmark.py runs it against a stand-in",
    "make bench": "10 minutes, and its figures mean something on a quiet machine only",
    "make reference": "10 minutes, and its figures mean something on a quiet machine only",
    "python3.12 -m venv .venv": SET_UP,
    ".venv/bin/python -m pip install -r requirements.txt": SET_UP,
    ".venv/bin/python tools/run_course.py": "what `make course` runs",
    "py -3.12 -m venv .venv": WINDOWS,
    r".venv\Scripts\python -m pip install -r requirements.txt": WINDOWS,
    r".venv\Scripts\python tools\run_course.py": WINDOWS,
    ".venv/bin/python data_scripts/download_images.py flowers": "needs the network",
}
SERVERS = ("make lab", "helpers.service dispatcher", "helpers.service worker")  # they have tests of their own
MINUTES = ("helpers.benchmark my/folder", "helpers.style train")  # left to `make test-all`


def readme_blocks():
    """Return the README's code blocks: their language, empty for a shell, and their text."""
    tokens = MarkdownIt().parse((ROOT / "README.md").read_text(encoding="utf-8"))
    return [(token.info, token.content) for token in tokens if token.type in ("fence", "code_block")]


def commands_of(text):
    return [re.sub(r"\s+# .*", "", line).strip() for line in text.splitlines() if line.strip()]


BLOCKS = [commands_of(text) for language, text in readme_blocks() if not language]
COMMANDS = [command for block in BLOCKS for command in block]


def blocks_to_run():
    """Return each block without the commands that are run elsewhere or not at all."""
    for block in BLOCKS:
        commands = [c for c in block if c not in NOT_RUN and not any(server in c for server in SERVERS)]
        slow = [pytest.mark.slow] if any(minutes in c for c in commands for minutes in MINUTES) else []
        if commands:
            yield pytest.param(commands, marks=slow, id=commands[0])


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tracked files with this environment, and the reader's own files that the README speaks of."""
    clone = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    (clone / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        (clone / ".venv" / entry.name).symlink_to(entry)
    for name in ("installed-requirements", "installed-requirements-dev"):  # newer than the locks: make installs nothing
        (clone / ".venv" / name).unlink(missing_ok=True)
        (clone / ".venv" / name).touch()
    write_images(clone / "my" / "folder", 40)
    write_images(clone / "data" / "generated", 40)
    cv2.imwrite(str(clone / "photograph.jpg"), draw_image(1))
    (clone / "results-of-each-machine").mkdir()
    for path in (ROOT / "results").glob("*.jsonl"):
        shutil.copy(path, clone / "results-of-each-machine")
    return clone


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(("COURSE_", "PYTEST_", "MAKE"))}


def shell(command, clone, **settings):
    settings = {"cwd": clone, "env": environment(), "text": True, **settings}
    return subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)


def test_the_exceptions_are_commands_of_the_readme():
    assert len(COMMANDS) > 20
    assert set(NOT_RUN) <= set(COMMANDS)
    assert all(any(part in command for command in COMMANDS) for part in (*SERVERS, *MINUTES))


@pytest.mark.parametrize("commands", list(blocks_to_run()))
@pytest.mark.timeout(900)
def test_the_commands_of_a_block(commands, clone):
    for command in commands:
        with shell(command, clone) as process:
            output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, f"{command}\n{output}"


def test_the_servers(clone):
    """A dispatcher and a worker, started as the README says, answer `helpers.service check`."""
    here = {"THIS_HOST": "127.0.0.1", "HOST": "127.0.0.1"}
    commands = [re.sub("THIS_HOST|HOST", lambda m: here[m[0]], c) for c in COMMANDS if "helpers.service" in c]
    assert len(commands) == 2
    servers = [shell(f"exec {command}", clone) for command in commands]
    check = [sys.executable, "-m", "helpers.service", "check", "127.0.0.1:5050", "--workers", "1"]
    try:
        deadline = time.monotonic() + 90
        while subprocess.run(check, cwd=clone, capture_output=True, timeout=60).returncode:
            assert all(server.poll() is None for server in servers) and time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        for server in servers:
            server.terminate()
            server.communicate(timeout=30)


def answer_of(address):
    """Return the JSON of an address; a server that has printed it may not listen yet."""
    for _ in range(60):
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)
        time.sleep(0.5)
    raise TimeoutError(address)


def test_jupyterlab_opens_with_the_lessons(clone, tmp_path):
    settings = {"allow_root": True, "open_browser": False, "port": 0, "token": "t"}
    (tmp_path / "jupyter_server_config.json").write_text(json.dumps({"ServerApp": settings}))
    env = {**environment(), "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    with shell("exec make lab", clone, env=env, start_new_session=True) as process:
        try:
            found = (re.search(r"http://(127\.0\.0\.1|localhost):\d+", line) for line in process.stdout)
            address = next(filter(None, found))[0]
            names = {entry["name"] for entry in answer_of(f"{address}/api/contents?token=t")["content"]}
        finally:
            os.killpg(process.pid, 15)
            process.communicate(timeout=30)
    assert "00_start_here.ipynb" in names


@pytest.mark.parametrize(
    ("number", "before", "expected"),
    [
        (
            0,
            "import keras, numpy as np\n"
            "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])\n"
            "model.compile('sgd', 'mse')\n"
            "data = ((np.zeros((8, 4)), np.zeros((8, 1))) for _ in range(100))\n",
            "the step itself takes",
        ),
        (1, "from helpers.pipelines.generator import generator as my_pipeline\n", "7 of 7 promises kept"),
    ],
    ids=["watch", "check"],
)
def test_the_readers_own_training_and_pipeline(clone, number, before, expected):
    code = [text for language, text in readme_blocks() if language == "python"][number]
    with shell(
        'exec .venv/bin/python -c "$PROGRAM"', clone, env={**environment(), "PROGRAM": before + code}
    ) as process:
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0 and expected in output, output
