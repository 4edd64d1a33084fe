"""A store of files that is far away, on this machine: HTTP and the S3 API behind a set latency, bandwidth and faults.

Started by lesson 12, its exercises and `make bench`. It runs in a process of its own, which ends with the `with` block,
and when the process that started it dies: it reads its standard input, and stops where that ends. S3 is moto's, if it
is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from aiohttp import ClientSession, web

__all__ = ["SlowStore", "slow_store"]

_FOLDER, _CONTROL = "/files/", "/control"
_LONGEST_START_S = 60.0
_HOP_BY_HOP = {"connection", "content-encoding", "content-length", "date", "server", "transfer-encoding"}


@dataclass
class Conditions:
    """How far away the store is, and what goes wrong; the last four are shares of all requests, 0 to 1."""

    latency_ms: float = 50.0  # before the first byte
    mb_per_s: float = 1000.0  # 10^6 bytes per second, of all answers together
    slow: float = 0.0  # with 20 times the latency
    refused: float = 0.0  # with 503, "slow down"
    reset: float = 0.0  # in the middle of the body
    hung: float = 0.0  # never answered


@dataclass(frozen=True)
class SlowStore:
    """A store that runs; `slow_store` starts it."""

    url: str

    def address(self, path: str) -> str:
        """Return where a file is found whose path is relative to the store's folder."""
        return f"{self.url}{_FOLDER}{quote(path)}"

    def set(self, **conditions: float) -> None:
        """Change the conditions, those not given back to their defaults; counts, and what fails, start again."""
        self._control(json.dumps(asdict(Conditions(**conditions))).encode())

    def counts(self) -> dict[str, int]:
        """Return requests, bytes, refused, reset and hung since the last `set`, and the most requests at once."""
        return self._control(None)

    def _control(self, data: bytes | None) -> dict[str, int]:
        with urllib.request.urlopen(self.url + _CONTROL, data, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def slow_store(folder: str | Path, *, s3: bool = False, **conditions: float) -> Iterator[SlowStore]:
    """Serve a folder while the block runs.

    Parameters
    ----------
    folder : path
        Its files are at ``store.address("cat/1.jpg")``.
    s3 : bool
        Whether to run an S3 API, too, empty at first; its endpoint is ``store.url``.
    **conditions : float
        As in `Conditions`; ``store.set`` changes them.

    Raises
    ------
    RuntimeError
        If it does not start.
    """
    start = json.dumps(
        {"folder": str(Path(folder).resolve()), "s3": s3, "conditions": asdict(Conditions(**conditions))}
    )
    command = [sys.executable, "-m", "helpers.slow_store", start]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the store did not start (exit status {process.wait(_LONGEST_START_S)})")
            yield SlowStore(url)
        finally:
            process.kill()


# ---- in the store's process ------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, folder: str, s3: bool, conditions: dict[str, float]):
        self.folder, self.conditions = Path(folder), Conditions(**conditions)
        self.moto, self.session, self.at_once, self.line_free_s = None, None, 0, 0.0
        self.counts: dict[str, int] = {}
        self._count_from_zero()
        if s3:
            import logging

            from moto.server import ThreadedMotoServer

            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            self.moto.start()

    def _count_from_zero(self) -> None:
        self.counts = dict.fromkeys(("requests", "bytes", "refused", "reset", "hung", "most_at_once"), 0)
        self.chance = random.Random(0)

    async def run(self) -> None:
        """Serve until standard input ends."""
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", _CONTROL, self.control)
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)  # where a client gives up
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with ClientSession(auto_decompress=False) as self.session:
            host, port = runner.addresses[0]
            print(f"http://{host}:{port}", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.conditions = Conditions(**await request.json())
            self._count_from_zero()
        return web.json_response(self.counts)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, as late and as badly as the conditions say."""
        self.counts["requests"] += 1
        self.at_once += 1
        self.counts["most_at_once"] = max(self.counts["most_at_once"], self.at_once)
        try:
            return await self._answer(request, self._fate())
        finally:
            self.at_once -= 1

    def _fate(self) -> str:
        drawn = self.chance.random()
        for name in ("slow", "refused", "reset", "hung"):
            drawn -= getattr(self.conditions, name)
            if drawn < 0:
                return name
        return ""

    async def _answer(self, request: web.Request, fate: str) -> web.StreamResponse:
        if fate in self.counts:
            self.counts[fate] += 1
        await asyncio.sleep(self.conditions.latency_ms / 1000 * (20 if fate == "slow" else 1))
        if fate == "hung":
            await asyncio.sleep(3600)
        if fate == "refused":
            return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>", content_type="text/xml")
        is_file = request.path.startswith(_FOLDER)
        whole = self._from_folder(request) if is_file else await self._from_moto(request)
        size = len(whole.body or b"") if request.method != "HEAD" else 0
        loop = asyncio.get_running_loop()
        self.line_free_s = max(self.line_free_s, loop.time()) + size / self.conditions.mb_per_s / 1e6
        await asyncio.sleep(self.line_free_s - loop.time())
        if fate == "reset":
            cut = web.StreamResponse(status=whole.status, headers={"Content-Length": str(size + 1)})
            await cut.prepare(request)
            await cut.write((whole.body or b"")[: size // 2])
            request.transport.abort()
            return cut
        self.counts["bytes"] += size
        return whole

    def _from_folder(self, request: web.Request) -> web.Response:
        path = Path(os.path.normpath(self.folder / request.path.removeprefix(_FOLDER)))  # links in it are followed
        if not path.is_relative_to(self.folder) or not path.is_file():
            return web.Response(status=404)
        data, part = path.read_bytes(), request.http_range
        if part.start is None and part.stop is None:
            return web.Response(body=data)
        first, end, _ = part.indices(len(data))
        headers = {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
        return web.Response(status=206, body=data[first:end], headers=headers)

    async def _from_moto(self, request: web.Request) -> web.Response:
        if self.moto is None:
            return web.Response(status=404)
        host, port = self.moto.get_host_and_port()
        url, body = f"http://{host}:{port}{request.raw_path}", await request.read()
        async with self.session.request(request.method, url, headers=request.headers, data=body) as answer:
            left_out = _HOP_BY_HOP - ({"content-length"} if request.method == "HEAD" else set())
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in left_out}
            return web.Response(status=answer.status, headers=headers, body=await answer.read())


if __name__ == "__main__":
    asyncio.run(_Server(**json.loads(sys.argv[1])).run())
