"""The servers of tf.data service as commands: they start, answer, end and come back, and say what is wrong."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from helpers.folders import find_images
from helpers.packing import pack
from helpers.service import ServiceError, _fields, main, registered_workers, silent_workers

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # for a server to start on a machine that is busy with other tests
END_S = 20


def run_command(*arguments, timeout=LIMIT_S):
    command = [sys.executable, "-m", "helpers.service", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def free_addresses(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


class Servers:
    """A dispatcher and a worker whose processes a test may end and start again."""

    def __init__(self, folder):
        self.dispatcher, self.worker = free_addresses(2)
        self.journal = folder / "journal"
        port = self.dispatcher.partition(":")[2]
        self.arguments = {
            "dispatcher": ["dispatcher", "--port", port, "--work-dir", str(self.journal)],
            "worker": ["worker", "--dispatcher", self.dispatcher, "--address", self.worker],
        }
        self.processes = {}
        self.start("dispatcher")
        self.start("worker")
        self.await_ready()

    def start(self, name):
        command = [sys.executable, "-m", "helpers.service", *self.arguments[name]]
        self.processes[name] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def await_ready(self):
        deadline = time.monotonic() + LIMIT_S
        while not self.are_ready():
            assert all(one.poll() is None for one in self.processes.values()), "a server ended"
            assert time.monotonic() < deadline, f"no cluster after {LIMIT_S} s"
            time.sleep(0.2)

    def are_ready(self):
        try:
            return self.worker in registered_workers(self.dispatcher) and not silent_workers(self.dispatcher)
        except ServiceError:
            return False

    def end(self, name, how=signal.SIGTERM):
        """Return the exit status and what it printed."""
        process = self.processes[name]
        process.send_signal(how)
        return process.wait(END_S), process.stdout.read()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Shared: each test but the last leaves both servers running."""
    started = Servers(tmp_path_factory.mktemp("service"))
    yield started
    for process in started.processes.values():
        process.kill()
        process.wait(END_S)


def distributed(dataset, servers):
    import tensorflow as tf

    service = tf.data.experimental.service
    return dataset.apply(service.distribute(service.ShardingPolicy.DYNAMIC, f"grpc://{servers.dispatcher}"))


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_fields_of_a_message():
    assert _fields(b"") == []
    assert _fields(b"\x08\x09") == [(1, 9)]
    assert _fields(b"\x08\xac\x02\x12\x02ab") == [(1, 300), (2, b"ab")]


def test_check_of_a_healthy_cluster(servers):
    done = run_command("check", servers.dispatcher, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "answers and knows 1 workers" in done.stdout
    assert run_command("check", "--worker", servers.worker).returncode == 0


def test_check_counts_the_workers(servers, capsys):
    assert main(["check", servers.dispatcher, "--workers", "3"]) == 1
    assert "1 workers, not 3" in capsys.readouterr().err


def test_check_imports_no_tensorflow(servers):
    code = (
        "import sys; from helpers.service import main;"
        f"status = main(['check', '{servers.dispatcher}']);"
        "sys.exit(status or ('tensorflow' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=LIMIT_S).returncode == 0


def test_check_of_nobody_is_an_error_in_time(capsys):
    (nobody,) = free_addresses(1)
    start = time.monotonic()
    assert main(["check", nobody]) == 1
    assert main(["check", "--worker", nobody]) == 1
    assert time.monotonic() - start < 10
    assert f"{nobody} does not answer" in capsys.readouterr().err


def test_a_program_that_says_nothing_is_no_server():
    with socket.create_server(("localhost", 0)) as mute:
        address = f"localhost:{mute.getsockname()[1]}"
        assert main(["check", "--worker", address]) == 1
        with pytest.raises(ServiceError, match=address):
            registered_workers(address)


@pytest.mark.parametrize("arguments", [["check"], ["check", "a:1", "--worker", "b:2"], []])
def test_unclear_commands_are_refused(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


# ---- what cannot start -----------------------------------------------------------------------------------------------


def test_a_taken_port_is_refused(tmp_path, capsys):
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["dispatcher", "--port", port, "--work-dir", str(tmp_path / "journal")]) == 2
        assert main(["worker", "--dispatcher", "localhost:1", "--address", f"localhost:{port}"]) == 2
    assert capsys.readouterr().err.count(f"port {port}: another program listens on it") == 2


def test_a_second_dispatcher_on_the_port_is_refused(servers, tmp_path, capsys):
    port = servers.dispatcher.partition(":")[2]
    assert main(["dispatcher", "--port", port, "--work-dir", str(tmp_path)]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_of_two_dispatchers_that_start_on_one_port_at_the_same_time_one_serves(tmp_path):
    port, started = free_addresses(1)[0].partition(":")[2], []
    for name in ("one", "two"):
        start = ["dispatcher", "--port", port, "--work-dir", str(tmp_path / name)]
        command = [sys.executable, "-m", "helpers.service", *start]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
    try:
        deadline = time.monotonic() + LIMIT_S
        while all(one.poll() is None for one in started):
            assert time.monotonic() < deadline, "both serve"
            time.sleep(0.1)
        ended, serving = sorted(started, key=lambda one: one.returncode is None)
        assert ended.returncode == 2
        (line,) = ended.stderr.read().splitlines()
        assert f"port {port}: another program listens on it" in line
        assert serving.stdout.readline().endswith("ready\n")
    finally:
        for one in started:
            one.kill()
            one.communicate(timeout=END_S)


def test_a_journal_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["dispatcher", "--work-dir", str(tmp_path / "file" / "journal")]) == 2
    assert "--work-dir" in capsys.readouterr().err


def test_a_second_dispatcher_with_the_same_journal_is_refused(servers, capsys):
    """On another port; both would write one journal, and hand out the same work."""
    other = free_addresses(1)[0].partition(":")[2]
    assert main(["dispatcher", "--port", other, "--work-dir", str(servers.journal)]) == 2
    assert f"--work-dir {servers.journal}: another dispatcher writes its journal there" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["worker-0", "worker-0:", "worker-0:many", ":5051", "worker-0:70000"])
def test_an_address_needs_a_host_and_a_port(address, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["worker", "--dispatcher", "localhost:5050", "--address", address])
    assert "give host:port" in capsys.readouterr().err


def test_a_dispatcher_that_does_not_answer_is_waited_for_not_for_ever(capsys):
    nobody, address = free_addresses(2)
    assert main(["worker", "--dispatcher", nobody, "--address", address, "--wait", "1"]) == 2
    assert f"no dispatcher at {nobody} within 1 s" in capsys.readouterr().err


def test_another_protocol_is_refused_by_tensorflow():
    class Older(grpc.GenericRpcHandler):
        def service(self, call):
            if call.method.endswith("/GetVersion"):
                return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Older(),))
    older = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        (address,) = free_addresses(1)
        done = run_command("worker", "--dispatcher", older, "--address", address)
    finally:
        server.stop(None)
    assert done.returncode == 2
    assert "Version mismatch" in done.stderr
    assert "Traceback" not in done.stderr


# ---- what works, ends and comes back ---------------------------------------------------------------------------------


def test_each_image_once_with_its_label(servers, files):
    import numpy as np

    from helpers.folders import ImageFiles
    from helpers.pipelines.tf_data import tf_data

    numbered = ImageFiles(files.paths, np.arange(len(files)), files.paths)
    here = {
        n: x.sum()
        for images, numbers in tf_data(numbered)
        for n, x in zip(numbers.numpy(), images.numpy(), strict=True)
    }
    there = Counter()
    for images, numbers in distributed(tf_data(numbered), servers):
        for number, image in zip(numbers.numpy(), images.numpy(), strict=True):
            there[number] += 1
            assert image.sum() == here[number]
    assert there == dict.fromkeys(range(len(files)), 1)


@pytest.fixture(scope="module")
def trainer():
    """The program that the manifests start, as a module."""
    spec = importlib.util.spec_from_file_location("trainer", ROOT / "deploy" / "trainer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory, image_folder):
    return str(pack(find_images(image_folder), tmp_path_factory.mktemp("shards"), kind="jpeg", rows_per_shard=8).folder)


def test_the_trainer_of_the_manifests(servers, trainer, shards, capsys):
    start = ["--dispatcher", servers.dispatcher, "--shards", shards]
    assert trainer.main([*start, "--epochs", "1"]) == 0
    assert "epoch 1: 40 of 40 images, loss" in capsys.readouterr().out


def test_the_trainer_does_not_wait_for_ever(servers, trainer, shards, capsys):
    start = ["--dispatcher", servers.dispatcher, "--shards", shards]
    assert trainer.main([*start, "--workers", "9", "--wait", "1"]) == 2
    assert "1 of 9 workers" in capsys.readouterr().err


def test_the_trainer_says_what_it_needs(trainer, tmp_path, image_folder, capsys):
    assert trainer.main(["--dispatcher", "localhost:1", "--shards", str(tmp_path)]) == 2
    raw = pack(find_images(image_folder), tmp_path / "raw", image_size=(8, 8)).folder
    assert trainer.main(["--dispatcher", "localhost:1", "--shards", str(raw)]) == 2
    missing, wrong = capsys.readouterr().err.splitlines()
    assert "no finished pack" in missing
    assert "--kind jpeg" in wrong


def test_what_is_watched_comes_as_it_is(trainer):
    assert list(trainer.watched(range(5), "localhost:1", 60)) == list(range(5))


def test_an_error_of_the_pipeline_comes_through_the_watchdog(trainer):
    def broken():
        yield 1
        raise OSError("a shard is cut off")

    batches = trainer.watched(broken(), "localhost:1", 60)
    assert next(batches) == 1
    with pytest.raises(OSError, match="cut off"):
        next(batches)


def test_the_watchdog_names_a_dispatcher_that_is_gone(trainer):
    (nobody,) = free_addresses(1)
    forever = threading.Event()
    with pytest.raises(ServiceError, match=f"{nobody} does not answer"):
        next(trainer.watched((forever.wait() for _ in range(1)), nobody, 0.2))
    forever.set()


def test_the_watchdog_waits_for_a_slow_worker(servers, trainer):
    slow = (time.sleep(1.0) or number for number in range(2))
    assert list(trainer.watched(slow, servers.dispatcher, 0.2)) == [0, 1]


def test_a_dispatcher_that_is_killed_and_started_again_knows_its_epoch(servers):
    import tensorflow as tf

    seen = Counter()
    for step, batch in enumerate(distributed(tf.data.Dataset.range(600).batch(8), servers)):
        seen.update(batch.numpy().tolist())
        if step == 20:
            servers.end("dispatcher", signal.SIGKILL)
            servers.start("dispatcher")
            servers.await_ready()
    # The journal is written before the answer: one number per worker may be in between when the dispatcher dies.
    assert max(seen.values()) == 1
    assert len(seen) >= 600 - 1, set(range(600)) - set(seen)


def test_a_worker_that_ends_is_missed_by_the_trainer_and_comes_back(servers, shards):
    command = [sys.executable, "deploy/trainer.py", "--dispatcher", servers.dispatcher, "--shards", shards]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--epochs", "1000", "--patience", "2"], cwd=ROOT, **pipes) as trainer:
        try:
            assert trainer.stdout.readline().startswith("epoch 1: 40 of 40 images"), trainer.stderr.read()
            assert servers.end("worker")[0] == 0
            _, error = trainer.communicate(timeout=LIMIT_S)
        finally:
            trainer.kill()
    assert trainer.returncode == 2
    assert f"no batch for 2 s, and no answer from {servers.worker}" in error
    assert silent_workers(servers.dispatcher) == [servers.worker]
    assert main(["check", servers.dispatcher]) == 0
    assert main(["check", servers.dispatcher, "--workers", "1"]) == 1
    servers.start("worker")
    servers.await_ready()
    import tensorflow as tf

    seen = [n for batch in distributed(tf.data.Dataset.range(100).batch(8), servers) for n in batch.numpy()]
    assert sorted(seen) == list(range(100))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_server_ends_also_where_nobody_reads_what_it_says(tmp_path):
    port = free_addresses(1)[0].partition(":")[2]
    start = ["dispatcher", "--port", port, "--work-dir", str(tmp_path)]
    command = [sys.executable, "-m", "helpers.service", *start]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        process.terminate()
        try:
            assert process.wait(END_S) == 0
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_dispatcher(servers):
    status, said = servers.end("dispatcher", signal.SIGINT)  # the last test: it is not started again
    assert status == 0
    assert said.splitlines()[0].endswith("ready")
    assert list(servers.journal.iterdir())
