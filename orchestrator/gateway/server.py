"""The gateway's process: one server for all listeners, which come and go while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from orchestrator.gateway.hosts import Certificate, Host, Hosts, context_of
from orchestrator.gateway.passing import Passing
from orchestrator.proxies.plane import PortTaken, Proxy, RefusedByPlane

logger = logging.getLogger("orchestrator.gateway")

DRAIN_S = 30.0
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Listens:
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    http_port: int = 8080
    https_port: int = 8443
    admin_host: str = "127.0.0.1"
    admin_port: int = 9180
    token: str = ""


class Gateway:
    def __init__(self, listens: Listens, state: Path | None) -> None:
        self.listens = listens
        self.hosts = Hosts(state)
        self.changing = asyncio.Lock()
        self._passing: Passing | None = None
        self._server: web.ServerRunner | None = None
        self._sites: dict[Key, web.TCPSite] = {}
        self._ports: dict[Key, int] = {}
        self._owners: dict[int | None, str] = {}

    # ── up and down ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        self._passing = Passing()
        self._server = web.ServerRunner(web.Server(self.handle, access_log=None, keepalive_timeout=75.0), shutdown_timeout=DRAIN_S)
        await self._server.setup()
        await self._listen(("", "http"), self.listens.http_port, None)
        await self._listen(("", "https"), self.listens.https_port, self._tls(None))
        for host in list(self.hosts.by_name.values()):
            # What was served before this process is served again; a port that is gone meanwhile is one host's trouble.
            try:
                await self._listen_for(host.proxy)
            except (PortTaken, OSError) as error:
                logger.error("%s is served at the shared ports only: %s", host.proxy.hostname, error)
        from orchestrator.gateway.admin import admin_app

        admin = web.AppRunner(admin_app(self), access_log=None)
        await admin.setup()
        await web.TCPSite(admin, self.listens.admin_host, self.listens.admin_port).start()
        self._admin = admin
        logger.info(
            "gateway serves http on %d, https on %d; its admin API is on %s:%d; %d hostnames",
            self.port("http"), self.port("https"), self.listens.admin_host, self.listens.admin_port, len(self.hosts.by_name),
        )  # fmt: skip

    async def stop(self) -> None:
        """New connections are refused, what is under way ends."""
        await self._admin.cleanup()
        for key in list(self._sites):
            await self._close(key)
        waiting = [host.quiet.wait() for host in self.hosts.by_name.values() if host.under_way]
        if waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*waiting), DRAIN_S)
        if self._server is not None:
            await self._server.cleanup()
        if self._passing is not None:
            await self._passing.close()

    def port(self, scheme: str, hostname: str = "") -> int:
        return self._ports.get((hostname, scheme), 0)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        host = self._host_of(request)
        if host is None or host.draining or not (host.proxy.https if request.secure else host.proxy.http):
            answer = web.Response(status=404, text=json.dumps({"error": "no such host is served here"}), content_type="application/json")
            answer.force_close()
            return answer
        assert self._passing is not None
        with host.serving():
            response = await self._passing.serve(host, request)
            if host.draining:
                response.force_close()
            return response

    def _host_of(self, request: web.BaseRequest) -> Host | None:
        """A hostname's own ports serve it whatever name is said; on the shared ones the name counts."""
        address = request.transport.get_extra_info("sockname") if request.transport else None
        port = address[1] if address else None
        owner = self._owners.get(port)
        return self.hosts.by_name.get(owner) if owner else self.hosts.of(request.host)

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def apply(self, proxy: Proxy) -> None:
        async with self.changing:
            if proxy.https and (proxy.certificate or "") not in self.hosts.certificates:
                raise RefusedByPlane(f"no certificate '{proxy.certificate}' was given to the gateway")
            known = self.hosts.by_name.get(proxy.hostname)
            if known is None or known.draining:
                await self._add(proxy)
            else:
                await self._change(known, proxy)
            self.hosts.write()

    async def _add(self, proxy: Proxy) -> None:
        self.hosts.by_name[proxy.hostname] = Host(proxy)
        try:
            await self._listen_for(proxy)
        except BaseException:
            del self.hosts.by_name[proxy.hostname]
            await self._close_all(proxy.hostname)
            raise

    async def _change(self, host: Host, proxy: Proxy) -> None:
        before, host.proxy = host.proxy, proxy
        try:
            await self._listen_for(proxy)
        except BaseException:
            host.proxy = before
            await self._listen_for(before)
            raise

    async def remove(self, hostname: str, drain_s: float) -> None:
        async with self.changing:
            host = self.hosts.by_name.get(hostname)
            if host is None:
                return
            host.draining = True
            await self._close_all(hostname)
            self.hosts.write()
        if host.under_way:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(host.quiet.wait(), drain_s)
        for socket in list(host.sockets):
            with contextlib.suppress(Exception):
                await socket.close(code=1001, message=b"going away")
        async with self.changing:
            if self.hosts.by_name.get(hostname) is host:
                del self.hosts.by_name[hostname]

    async def put_certificate(self, name: str, chain: str, key: str) -> None:
        async with self.changing:
            # Connections that are open keep what they have; the next handshake sees this one.
            self.hosts.certificates[name] = Certificate(chain, key, context_of(chain, key))
            self.hosts.write()

    async def drop_certificate(self, name: str) -> None:
        async with self.changing:
            users = [
                h for h, host in self.hosts.by_name.items() if host.proxy.https and host.proxy.certificate == name and not host.draining
            ]
            if users:
                raise RefusedByPlane(f"certificate '{name}' is used by {', '.join(users)}")
            self.hosts.certificates.pop(name, None)
            self.hosts.write()

    # ── listeners ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listen_for(self, proxy: Proxy) -> None:
        """Open and close this hostname's own ports, as it is described now."""
        for scheme, wanted, port in (("http", proxy.http, proxy.http_port), ("https", proxy.https, proxy.https_port)):
            key = (proxy.hostname, scheme)
            if key in self._sites and (not wanted or self._ports.get(key) != port):
                await self._close(key)
            if wanted and port and key not in self._sites:
                await self._listen(key, port, self._tls(proxy.hostname) if scheme == "https" else None)

    async def _listen(self, key: Key, port: int, tls: ssl.SSLContext | None) -> None:
        assert self._server is not None
        site = web.TCPSite(self._server, self.listens.host, port, ssl_context=tls, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            with contextlib.suppress(Exception):
                await site.stop()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(port) from None
            raise
        self._sites[key] = site
        sockets: Any = getattr(site._server, "sockets", ())
        self._ports[key] = next((s.getsockname()[1] for s in sockets), port)
        self._owners[self._ports[key]] = key[0]

    async def _close(self, key: Key) -> None:
        site = self._sites.pop(key, None)
        self._owners.pop(self._ports.pop(key, None), None)
        if site is not None:
            await site.stop()

    async def _close_all(self, hostname: str) -> None:
        for scheme in ("http", "https"):
            await self._close((hostname, scheme))

    def _tls(self, hostname: str | None) -> ssl.SSLContext:
        """A context that looks up the certificate at each handshake: by the name the client says, else the port's own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
            found = self.hosts.context_for(hostname or name)
            if found is None:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = found
            return None

        context.sni_callback = choose
        return context


async def serve(listens: Listens, state: Path | None) -> None:
    """Until SIGTERM or SIGINT."""
    gateway = Gateway(listens, state)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await gateway.start()
    await stopping.wait()
    await gateway.stop()
    logger.info("gateway has ended; what was under way was served")
