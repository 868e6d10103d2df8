"""A data plane and an origin behind it, as processes and threads of a test."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import httpx
from aiohttp import web
from cryptography import x509

from orchestrator.dev.ports import any_free
from orchestrator.proxies.caddy import CaddyPlane
from orchestrator.proxies.embedded import GatewayPlane
from orchestrator.proxies.plane import DataPlane
from tests import commands
from tests.pace import patient
from tests.stack import until

Found = TypeVar("Found")

PASSES_S = 2.0
"""Each server that Caddy lets go may take one connection more, however late, and answer it as before."""

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "caddy"


@functools.cache
def caddy_program() -> str | None:
    """The system's, or Debian's package unpacked into a folder of ours; nothing is installed. None: neither is there."""
    if found := shutil.which("caddy"):
        return found
    unpacked = CACHE / "usr/bin/caddy"
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock, contextlib.suppress(subprocess.SubprocessError, OSError, ValueError):
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of this run may be unpacking it
        if not unpacked.exists():
            subprocess.run(["apt-get", "download", "caddy"], cwd=CACHE, check=True, capture_output=True, timeout=90)
            [package] = CACHE.glob("caddy_*.deb")
            subprocess.run(["dpkg", "-x", str(package), str(CACHE)], check=True, capture_output=True, timeout=60)
            package.unlink()
    return str(unpacked) if unpacked.exists() else None


@functools.cache
def caddy_version() -> str:
    program = caddy_program()
    return subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout.strip().lstrip("v") if program else ""


class Origin:
    """What proxies lead to: says who it is and what it was asked; streams, waits, echoes over WebSockets."""

    def __init__(self, name: str = "origin") -> None:
        self.name = name
        self.port = any_free()
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Origin:
        self._thread.start()
        assert self._ready.wait(patient(10)), f"no origin at {self.url}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.get("/slow", self._slow),
                web.get("/drip", self._drip),
                web.get("/socket", self._socket),
                web.get("/status/{code}", self._status),
                web.get("/cookies", self._cookies),
                web.get("/zipped", self._zipped),
                web.get("/cut", self._cut),
                web.route("*", "/{rest:.*}", self._echo),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        said = {
            "name": self.name,
            "method": request.method,
            "path": request.raw_path,
            "headers": {key.lower(): value for key, value in request.headers.items()},
            "bytes": len(body),
        }
        return web.json_response(said, headers={"x-origin": self.name})

    async def _slow(self, request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query.get("s", "1")))
        return web.json_response({"name": self.name})

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["code"]), headers={"location": "/elsewhere"})

    async def _cookies(self, _: web.Request) -> web.Response:
        response = web.Response(text="ok")
        response.headers.add("set-cookie", "a=1")
        response.headers.add("set-cookie", "b=2")
        return response

    async def _zipped(self, _: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b"x" * 10_000), headers={"content-encoding": "gzip"})

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        """Dies in the middle of its answer."""
        response = web.StreamResponse(headers={"content-length": "1000000"})
        await response.prepare(request)
        await response.write(b"z" * 1000)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(5):
            with contextlib.suppress(ConnectionError):
                await response.write(f"{number}\n".encode())
            await asyncio.sleep(0.15)
        return response

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("chat",))
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{self.name}: {message.data}")
        return socket


@dataclass
class Plane:
    """A running data plane with its driver, and where it serves."""

    kind: str
    driver: DataPlane
    http_port: int
    https_port: int
    process: subprocess.Popen[bytes] | commands.Process
    environment: dict[str, str]

    def get(self, hostname: str, path: str = "/", *, port: int | None = None, **options: object) -> httpx.Response:
        deadline = time.monotonic() + PASSES_S
        while True:
            answer = self.calmly(lambda: self.ask(hostname, path, port=port, **options))
            if not self._before(answer) or time.monotonic() > deadline:
                return answer

    @contextlib.contextmanager
    def connection(self, hostname: str) -> Iterator[httpx.Client]:
        """One that the present configuration answers, and goes on to answer."""
        deadline = time.monotonic() + patient(PASSES_S)
        while True:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{self.http_port}", headers={"host": hostname}, timeout=10, trust_env=False
            ) as client:
                if not self._before(self.calmly(lambda one=client: one.get("/"))):  # type: ignore[misc]
                    yield client
                    return
            assert time.monotonic() < deadline, f"{hostname} is served by none"

    def _before(self, answer: httpx.Response) -> bool:
        """From a server that Caddy has let go, and which took one connection more: it knows nothing of a new hostname."""
        return self.kind == "caddy" and answer.status_code == 200 and answer.content == b""

    def serial(self, hostname: str | None, *, port: int | None = None) -> str:
        return self.calmly(lambda: serial(port or self.https_port, hostname))

    def https(self, hostname: str, path: str = "/") -> Any:
        return self.calmly(lambda: https(self.https_port, hostname, path))

    def ask(self, hostname: str, path: str = "/", *, port: int | None = None, **options: object) -> httpx.Response:
        """Once, whatever comes of it."""
        return httpx.get(
            f"http://127.0.0.1:{port or self.http_port}{path}", headers={"host": hostname}, timeout=10, trust_env=False, **options
        )  # type: ignore[arg-type]

    def calmly(self, act: Callable[[], Found]) -> Found:
        """Caddy hands its listeners over at each change: a connection that its old ones still accept is reset."""
        deadline = time.monotonic() + (5 if self.kind == "caddy" else 0)
        while True:
            try:
                return act()
            except (
                httpx.RemoteProtocolError,
                httpx.ReadError,
                aiohttp.ClientConnectionError,
                aiohttp.WSServerHandshakeError,
                ssl.SSLError,
                ConnectionError,
            ):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


class Settled(CaddyPlane):
    """Caddy answers before its old listeners are let go, and a busy machine takes its time over that."""

    def _change(self, change: Any, *own_ports: int | None) -> None:
        super()._change(change, *own_ports)
        time.sleep(0.5)


@contextlib.contextmanager
def gateway(folder: Path, **variables: str) -> Iterator[Plane]:
    http, https, admin = any_free(), any_free(), any_free()
    environment = {
        "GATEWAY_HTTP_PORT": str(http),
        "GATEWAY_HTTPS_PORT": str(https),
        "GATEWAY_ADMIN_URL": f"http://127.0.0.1:{admin}",
        "GATEWAY_TOKEN": "t0ken",
        "GATEWAY_STATE": str(folder / "gateway.json"),
        "DATA_PLANE": "gateway",
    }
    log = (folder / "gateway.log").open("ab")
    process = commands.start(["orchestrator", "gateway"], {**os.environ, **environment, **variables, "PYTHONWARNINGS": "default"}, log)
    driver = GatewayPlane(environment["GATEWAY_ADMIN_URL"], "t0ken")
    try:
        until(lambda: process.poll() is not None or _answers(driver), 30, (folder / "gateway.log").read_text())
        assert process.poll() is None, (folder / "gateway.log").read_text()
        yield Plane("gateway", driver, http, https, process, environment)
    finally:
        driver.close()
        process.kill()
        process.wait()
        log.close()


def own_ports() -> dict[str, str]:
    """Ranges in which proxies of this run get their ports: two processes of a run do not meet, two runs on one machine hardly."""
    number = 8 * (os.getpid() % 6) + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    return {"PROXY_HTTP_PORTS": str(12_000 + 80 * number), "PROXY_HTTPS_PORTS": str(16_000 + 80 * number)}


def _answers(driver: DataPlane) -> bool:
    with contextlib.suppress(Exception):
        driver.hostnames()
        return True
    return False


@contextlib.contextmanager
def caddy(folder: Path) -> Iterator[Plane]:
    program = caddy_program()
    assert program is not None
    http, https, admin = any_free(), any_free(), any_free()
    config = {"admin": {"listen": f"127.0.0.1:{admin}"}, "logging": {"logs": {"default": {"level": "WARN"}}}}
    (folder / "caddy.json").write_text(json.dumps(config))
    log = (folder / "caddy.log").open("ab")
    process = subprocess.Popen(
        [program, "run", "--config", str(folder / "caddy.json")],
        stdout=log,
        stderr=log,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
    )
    driver = Settled(f"http://127.0.0.1:{admin}", http_port=http, https_port=https, drain_s=5)
    environment = {
        "DATA_PLANE": "caddy",
        "CADDY_ADMIN_URL": f"http://127.0.0.1:{admin}",
        "GATEWAY_HTTP_PORT": str(http),
        "GATEWAY_HTTPS_PORT": str(https),
    }
    try:
        until(lambda: process.poll() is not None or _answers(driver), 30, "caddy")
        assert process.poll() is None, (folder / "caddy.log").read_text()
        yield Plane("caddy", driver, http, https, process, environment)
    finally:
        driver.close()
        process.kill()
        process.wait()
        log.close()


def serial(port: int, hostname: str | None) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw, server_hostname=hostname) as tls:
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        return f"{x509.load_der_x509_certificate(der).serial_number:X}"


def https(port: int, hostname: str, path: str = "/") -> Any:
    async def ask() -> Any:
        connector = aiohttp.TCPConnector(ssl=False)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://127.0.0.1:{port}{path}", headers={"host": hostname}, server_hostname=hostname) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    return asyncio.run(ask())


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
