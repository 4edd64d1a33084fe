"""Run the two servers of tf.data service, and ask them how they are; lesson 09 shows what for.

    python -m helpers.service dispatcher --port 5050 --work-dir DIR
    python -m helpers.service worker --dispatcher HOST:5050 --address HOST:5051 [--tensorflow 2.21.0]
    python -m helpers.service check HOST:5050 [--workers N]
    python -m helpers.service check --worker HOST:5051

It adds to `tf.data.experimental.service` what a cluster asks of a server: a journal on disk, so that a dispatcher that
is started again knows its jobs; an end within seconds on SIGTERM or Ctrl-C; errors for a taken port and for a
dispatcher that does not answer; a health check that imports no TensorFlow. A worker of another TensorFlow is refused
only where the two speak different protocols, which releases seldom do; with ``--tensorflow`` it refuses itself.

Exit status: 0; 1 where a check finds a fault; 2 for a server that cannot start.
The servers listen on every network interface, and ask nobody for a password: keep them inside a private network.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from helpers.files import ExitStatus
from helpers.quiet import quiet_tensorflow

__all__ = ["ServiceError", "answers", "await_workers", "protocol_version", "registered_workers", "silent_workers"]

PROBE_S = 2.0  # a healthy server answers within milliseconds
_LONGEST_STOP_S = 5.0
_RETRY_S = 0.5
_GET_VERSION = "/tensorflow.data.DispatcherService/GetVersion"
_GET_WORKERS = "/tensorflow.data.DispatcherService/GetWorkers"
_GET_TASKS = "/tensorflow.data.WorkerService/GetWorkerTasks"


class ServiceError(RuntimeError):
    """A server that cannot start, or does not answer; the message says which, and what to do."""


# ---- asking; an address is host:port, and who does not answer in time is a ServiceError ------------------------------


def protocol_version(dispatcher: str, *, timeout_s: float = PROBE_S) -> int:
    """Return the version of the protocol that a dispatcher speaks; TensorFlow refuses to work with another one."""
    return dict(_fields(_ask(dispatcher, _GET_VERSION, timeout_s))).get(1, 0)


def registered_workers(dispatcher: str, *, timeout_s: float = PROBE_S) -> list[str]:
    """Return the addresses of the workers that a dispatcher knows, also of those that have died."""
    infos = [value for number, value in _fields(_ask(dispatcher, _GET_WORKERS, timeout_s)) if number == 1]
    return sorted(dict(_fields(info))[1].decode() for info in infos)


def answers(worker: str, *, timeout_s: float = PROBE_S) -> bool:
    """Return whether a worker answers in time."""
    try:
        return _ask(worker, _GET_TASKS, timeout_s) is not None
    except ServiceError:
        return False


def silent_workers(dispatcher: str, *, timeout_s: float = PROBE_S) -> list[str]:
    """Return the workers that do not answer, of those that a dispatcher knows."""
    known = registered_workers(dispatcher, timeout_s=timeout_s)
    return [worker for worker in known if not answers(worker, timeout_s=timeout_s)]


def await_workers(dispatcher: str, count: int, wait_s: float) -> None:
    """Return when a dispatcher answers and ``count`` workers have registered there, ``wait_s`` seconds at most."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            protocol_version(dispatcher, timeout_s=max(0.1, min(PROBE_S, deadline - time.monotonic())))
            found = len(registered_workers(dispatcher)) if count else 0
            fault = f"{found} of {count} workers at {dispatcher} within {wait_s:g} s"
        except ServiceError:
            found = -1
            fault = f"no dispatcher at {dispatcher} within {wait_s:g} s; is it running, and is that its address?"
        if found >= count:
            return
        if time.monotonic() + _RETRY_S > deadline:
            raise ServiceError(fault)
        time.sleep(_RETRY_S)


def _ask(address: str, method: str, timeout_s: float) -> bytes:
    """Call a method that takes an empty message, and return the message that it answers with."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return channel.unary_unary(method)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            raise ServiceError(f"{address} does not answer within {timeout_s:g} s ({error.code().name})") from None


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Return number and value of each field: the package of TensorFlow does not hold the messages' definitions."""
    return [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(message))]


# ---- serving ---------------------------------------------------------------------------------------------------------


def _dispatcher(options: argparse.Namespace) -> None:
    port, folder = options.port, options.work_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(f"{folder}: {error.strerror}; give a folder for --work-dir that can be written") from None
    held = _held(port)
    quiet_tensorflow()
    import tensorflow as tf

    service, settings = tf.data.experimental.service, {"fault_tolerant_mode": True, "worker_addresses": options.workers}
    config = service.DispatcherConfig(port, work_dir=os.fspath(folder), **settings)
    _serve(held, lambda: service.DispatchServer(config), f"dispatcher on port {port}, journal in {folder}")


def _worker(options: argparse.Namespace) -> None:
    dispatcher, address = options.dispatcher, options.address
    port = int(address.rpartition(":")[2])
    held = _held(port)
    quiet_tensorflow()
    import tensorflow as tf  # takes seconds, in which a dispatcher that starts at the same time comes up

    if options.tensorflow not in (None, tf.__version__):
        found = f"this is TensorFlow {tf.__version__}, not {options.tensorflow}"
        raise ServiceError(f"{found}; install that, or use one image")
    await_workers(dispatcher, 0, options.wait)
    service = tf.data.experimental.service
    config = service.WorkerConfig(dispatcher, address, port)
    _serve(held, lambda: service.WorkerServer(config), f"worker {address} of dispatcher {dispatcher}")


def _serve(held: socket.socket, start: Callable, what: str) -> None:
    """Run a server on the port that was held for it, until SIGTERM or Ctrl-C."""
    stopping = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda _signal, _frame: stopping.set())
    held.close()  # who takes the port in this moment holds it: then the server does not start
    try:
        server = start()
    except RuntimeError as error:  # how a status of the servers' C++ arrives
        raise ServiceError(f"{what}: {error}") from None
    print(f"{what}: ready", flush=True)
    while not stopping.wait(1.0):  # in short waits: not every system lets a signal end a long one
        pass
    ending = threading.Thread(target=server.stop, daemon=True)
    ending.start()
    ending.join(_LONGEST_STOP_S)
    try:
        print(f"{what}: stopped", flush=True)
    finally:  # also where nobody reads that any more
        os._exit(0)  # TensorFlow's threads would be waited for


def _held(port: int) -> socket.socket:
    """Return a socket that keeps others off a port while TensorFlow is imported.

    It listens: servers of gRPC would share the port with each other, and each get some of the calls.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # a port that a dead server left a moment ago is free
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("", port))
        held.listen()
    except OSError as error:
        held.close()
        taken = "another program listens on it; stop that, or give another port"
        reason = taken if error.errno == errno.EADDRINUSE else error.strerror
        raise ServiceError(f"port {port}: {reason}") from None
    return held


# ---- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Run the command."""
    options = _parse(arguments)
    try:
        options.run(options)
    except ServiceError as error:
        print(f"helpers.service: {error}", file=sys.stderr)
        return ExitStatus.FOUND if options.run is _check else ExitStatus.CANNOT
    return ExitStatus.FINE


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{dispatcher,worker,check}")
    dispatcher = commands.add_parser("dispatcher", help="hands out the work; one for a cluster")
    dispatcher.set_defaults(run=_dispatcher)
    dispatcher.add_argument("--port", type=int, default=5050)
    dispatcher.add_argument("--work-dir", type=Path, required=True, help="for its journal; on a disk that outlives it")
    static = "all addresses, for static sharding (FILE, DATA, FILE_OR_DATA, HINT); then no other worker may join"
    dispatcher.add_argument(
        "--workers", metavar="A,B", type=lambda text: [*map(_address, text.split(","))], help=static
    )
    worker = commands.add_parser("worker", help="reads and decodes; any number of them")
    worker.set_defaults(run=_worker)
    worker.add_argument("--dispatcher", metavar="HOST:PORT", type=_address, required=True)
    same = "how trainers reach it; started again under the same one, it gets its tasks back"
    worker.add_argument("--address", metavar="HOST:PORT", type=_address, required=True, help=same)
    worker.add_argument("--wait", metavar="SECONDS", type=float, default=60.0, help="for the dispatcher")
    worker.add_argument("--tensorflow", metavar="VERSION", help="refuse to start with another one")
    check = commands.add_parser("check", help="exit status 0 if a server and its workers answer, 1 if not")
    check.set_defaults(run=_check)
    server = check.add_mutually_exclusive_group(required=True)
    server.add_argument("dispatcher", metavar="HOST:PORT", nargs="?")
    server.add_argument("--worker", metavar="HOST:PORT", help="ask this worker alone")
    check.add_argument("--workers", metavar="N", type=int, default=0, help="fewer that answer are a fault")
    check.add_argument("--timeout", metavar="SECONDS", type=float, default=PROBE_S)
    return parser.parse_args(arguments)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; give host:port, such as worker-0.workers:5051")
    return text


def _check(options: argparse.Namespace) -> None:
    """Print how the servers are; raise ServiceError if one does not answer or too few are there."""
    if options.worker:
        _ask(options.worker, _GET_TASKS, options.timeout)
        print(f"worker {options.worker} answers")
        return
    version = protocol_version(options.dispatcher, timeout_s=options.timeout)
    workers = registered_workers(options.dispatcher, timeout_s=options.timeout)
    print(f"dispatcher {options.dispatcher} answers: protocol {version}, {len(workers)} workers")
    silent = [worker for worker in workers if not answers(worker, timeout_s=options.timeout)]
    for worker in workers:
        print(f"worker {worker} {'does not answer' if worker in silent else 'answers'}")
    if silent:
        raise ServiceError(f"{len(silent)} of {len(workers)} workers do not answer: {', '.join(silent)}")
    if len(workers) < options.workers:
        raise ServiceError(f"{len(workers)} workers, not {options.workers}")


if __name__ == "__main__":
    sys.exit(main())
