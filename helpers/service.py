"""Run the two servers of tf.data service, and ask them whether they answer.

    python -m helpers.service dispatcher --port 5050 --work-dir DIR
    python -m helpers.service worker --dispatcher HOST:5050 --address HOST:5051
    python -m helpers.service check HOST:5050 [--workers N]
    python -m helpers.service check --worker HOST:5051

Lesson 09 and `deploy/` use it. It adds to `tf.data.experimental.service` what a cluster asks of a server: a journal on
disk, so that a dispatcher that is started again knows its jobs; an end within seconds on SIGTERM or Ctrl-C; errors for
a port or a journal that another server uses, and for a dispatcher that does not answer; a health check that imports no
TensorFlow. Nothing compares the versions of TensorFlow on two machines: give all of them the same image.

Exit status: 0; 1 where a check finds a fault; 2 for a server that cannot start.
The servers listen on every network interface and ask nobody for a password: keep them inside a private network.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from helpers.files import ExitStatus, locked
from helpers.quiet import quiet_tensorflow

__all__ = ["ServiceError", "await_workers", "registered_workers", "silent_workers"]

_PROBE_S = 2.0  # a healthy server answers within milliseconds
_RETRY_S = 0.5
_GET_WORKERS = "/tensorflow.data.DispatcherService/GetWorkers"
_GET_TASKS = "/tensorflow.data.WorkerService/GetWorkerTasks"


class ServiceError(RuntimeError):
    """A server that cannot start or does not answer; the message says which one, and what to do."""


# ---- asking; an address is host:port ---------------------------------------------------------------------------------


def registered_workers(dispatcher: str) -> list[str]:
    """Return the addresses of the workers that a dispatcher knows, including those that have died.

    Raises
    ------
    ServiceError
        If the dispatcher does not answer in time.
    """
    if (answer := _ask(dispatcher, _GET_WORKERS)) is None:
        raise ServiceError(f"{dispatcher} does not answer within {_PROBE_S:g} s")
    infos = [value for number, value in _fields(answer) if number == 1]
    return sorted(dict(_fields(info))[1].decode() for info in infos)


def silent_workers(dispatcher: str) -> list[str]:
    """Return the workers that a dispatcher knows and that do not answer; a ServiceError as `registered_workers`."""
    return [worker for worker in registered_workers(dispatcher) if _ask(worker, _GET_TASKS) is None]


def await_workers(dispatcher: str, count: int, wait_s: float) -> None:
    """Return when a dispatcher answers and ``count`` workers have registered there.

    Raises
    ------
    ServiceError
        After ``wait_s`` seconds; it says what was missing.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            found = len(registered_workers(dispatcher))
            if found >= count:
                return
            fault = f"{found} of {count} workers at {dispatcher} within {wait_s:g} s"
        except ServiceError:
            fault = f"no dispatcher at {dispatcher} within {wait_s:g} s; is it running, and is that its address?"
        if time.monotonic() + _RETRY_S > deadline:
            raise ServiceError(fault)
        time.sleep(_RETRY_S)


def _ask(address: str, method: str) -> bytes | None:
    """Call a method that takes an empty message; return the message that it answers with, None without an answer."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return channel.unary_unary(method)(b"", timeout=_PROBE_S)
        except grpc.RpcError:
            return None


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Return number and value of each field: the package of TensorFlow does not hold the messages' definitions."""
    return [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(message))]


# ---- serving ---------------------------------------------------------------------------------------------------------


def _dispatcher(options: argparse.Namespace) -> None:
    port, folder = options.port, options.work_dir
    with ExitStack() as until_the_end:  # then the journal is free again
        try:
            folder.mkdir(parents=True, exist_ok=True)
            busy = "another dispatcher writes its journal there; give each a folder of its own"
            until_the_end.enter_context(locked(folder / "dispatcher.lock", busy))
        except OSError as error:
            raise ServiceError(f"--work-dir {folder}: {error.strerror or error}") from None
        held = _held(port)
        quiet_tensorflow()
        import tensorflow as tf

        service = tf.data.experimental.service
        config = service.DispatcherConfig(
            port, work_dir=os.fspath(folder), fault_tolerant_mode=True, worker_addresses=options.workers
        )
        _serve(held, lambda: service.DispatchServer(config), f"dispatcher on port {port}, journal in {folder}")


def _worker(options: argparse.Namespace) -> None:
    dispatcher, address = options.dispatcher, options.address
    port = int(address.rpartition(":")[2])
    held = _held(port)
    quiet_tensorflow()
    import tensorflow as tf  # takes seconds, in which a dispatcher that starts at the same time comes up

    await_workers(dispatcher, 0, options.wait)
    service = tf.data.experimental.service
    config = service.WorkerConfig(dispatcher, address, port)
    _serve(held, lambda: service.WorkerServer(config), f"worker {address} of dispatcher {dispatcher}")


def _serve(held: socket.socket, start: Callable, what: str) -> None:
    """Run a server on the port that was held for it, until SIGTERM or Ctrl-C."""
    for name in (signal.SIGTERM, signal.SIGINT):
        # At once: what a dispatcher must keep is in its journal, and TensorFlow's threads would be waited for.
        signal.signal(name, lambda _signal, _frame: os._exit(ExitStatus.FINE))
    held.close()  # if another program takes the port at this moment, the server does not start
    try:
        server = start()
    except RuntimeError as error:  # how a status of the servers' C++ arrives
        raise ServiceError(f"{what}: {error}") from None
    print(f"{what}: ready", flush=True)
    while server:
        time.sleep(1.0)  # in short waits: not every system lets a signal end a long one


def _held(port: int) -> socket.socket:
    """Return a socket that keeps others off a port while TensorFlow is imported.

    It listens: servers of gRPC would share the port with each other, and each get some of the calls.
    """
    try:
        return socket.create_server(("", port))
    except OSError as error:
        taken = "another program listens on it; stop that, or give another port"
        reason = taken if error.errno == errno.EADDRINUSE else error.strerror
        raise ServiceError(f"port {port}: {reason}") from None


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
    check = commands.add_parser("check", help="exit status 0 if a server answers, 1 if not")
    check.set_defaults(run=_check)
    server = check.add_mutually_exclusive_group(required=True)
    server.add_argument("dispatcher", metavar="HOST:PORT", nargs="?")
    server.add_argument("--worker", metavar="HOST:PORT", help="ask a worker in place of the dispatcher")
    check.add_argument("--workers", metavar="N", type=int, help="ask the dispatcher's workers, too: N must answer")
    return parser.parse_args(arguments)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; give host:port, such as worker-0.workers:5051")
    return text


def _check(options: argparse.Namespace) -> None:
    """Print how the servers are; raise ServiceError if one does not answer or too few are there.

    Without ``--workers`` a dead worker is no fault of the dispatcher: a dispatcher that failed its readiness probe for
    it would lose its address in the cluster, and the worker could not come back.
    """
    if options.worker:
        if _ask(options.worker, _GET_TASKS) is None:
            raise ServiceError(f"{options.worker} does not answer within {_PROBE_S:g} s")
        print(f"worker {options.worker} answers")
        return
    workers = registered_workers(options.dispatcher)
    print(f"dispatcher {options.dispatcher} answers and knows {len(workers)} workers")
    if options.workers is None:
        return
    if silent := silent_workers(options.dispatcher):
        raise ServiceError(f"{len(silent)} of {len(workers)} workers do not answer: {', '.join(silent)}")
    if len(workers) < options.workers:
        raise ServiceError(f"{len(workers)} workers, not {options.workers}")


if __name__ == "__main__":
    sys.exit(main())
