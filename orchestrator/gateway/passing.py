"""One request from a client to its target and back: streamed both ways, WebSockets passed through."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
from typing import Any

import aiohttp
from aiohttp import ClientSession, ClientTimeout, TCPConnector, WSMsgType, web
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from orchestrator.gateway.hosts import Host
from orchestrator.net.egress import Policy
from orchestrator.net.problems import Problem

logger = logging.getLogger("orchestrator.gateway")

CONNECT_S = 10.0
# RFC 9110: these belong to one connection and are not passed on.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-connection",
    }
)
# What nobody but this gateway may say of where a request came from.
FORWARDED = frozenset({"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"})
CHUNK = 64 * 1024
BODILESS = frozenset({204, 304})
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class JudgedResolver(AbstractResolver):
    """Every address is judged by the egress policy before it is connected to."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._inner = aiohttp.resolver.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            self.policy.check(host, ipaddress.ip_address(one["host"].partition("%")[0]))
        return found

    async def close(self) -> None:
        await self._inner.close()


class Passing:
    """The client side of the gateway: connections to targets are kept and shared."""

    def __init__(self) -> None:
        self.policy = Policy.of_process()
        self.session = self._made(TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=15, resolver=JudgedResolver(self.policy)))
        # A kept connection may be closed by its target just when it is used again. What may be repeated is repeated then;
        # everything else gets a connection of its own.
        self.session_once = self._made(TCPConnector(limit=0, force_close=True, resolver=JudgedResolver(self.policy)))

    def _made(self, connector: TCPConnector) -> ClientSession:
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S)
        return ClientSession(connector=connector, auto_decompress=False, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        await self.session.close()
        await self.session_once.close()

    async def serve(self, host: Host, request: web.BaseRequest) -> web.StreamResponse:
        target = host.target_of(request.path)
        extra = host.proxy.headers
        if target is None:
            said = {"hostname": host.proxy.hostname, "status": "served"}
            return web.Response(text=json.dumps(said), content_type="application/json", headers={"Server": "gateway", **extra})
        url = _joined(target, request.raw_path)
        try:
            self._judge_literal(url)
            if _is_websocket(request):
                return await self._socket(host, request, url)
            return await self._pass(request, url, extra)
        except Problem as problem:
            logger.warning("%s is not passed on: %s", host.proxy.hostname, problem)
            return _refusal(502, "its target may not be called")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("%s: the target does not answer: %s", host.proxy.hostname, error)
            return _refusal(502, "its target does not answer")

    def _judge_literal(self, url: URL) -> None:
        """An address that is written out is not resolved, and judged here."""
        with contextlib.suppress(ValueError):
            self.policy.check(str(url.host), ipaddress.ip_address(str(url.host)))

    async def _pass(self, request: web.BaseRequest, url: URL, extra: dict[str, str]) -> web.StreamResponse:
        has_body = request.body_exists
        session = self.session if request.method in REPEATABLE and not has_body else self.session_once
        async with session.request(
            request.method,
            url,
            headers=_onward(request),
            data=request.content.iter_chunked(CHUNK) if has_body else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as answer:
            headers = _kept(answer.headers)
            headers.update(extra)
            headers.setdefault("Server", "gateway")
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
            if request.version < aiohttp.HttpVersion11:
                response.force_close()
            await response.prepare(request)
            try:
                if request.method != "HEAD" and answer.status not in BODILESS:
                    # Not `iter_chunks`: of an answer without a body it gives empty chunks for ever.
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
                await response.write_eof()
            except (aiohttp.ClientError, TimeoutError, OSError):
                # Half of an answer was sent: the client must see that it is half, and nothing else after it.
                if request.transport is not None:
                    request.transport.abort()
            return response

    async def _socket(self, host: Host, request: web.BaseRequest, url: URL) -> web.StreamResponse:
        wanted = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()]
        headers = CIMultiDict((k, v) for k, v in _onward(request).items() if not k.lower().startswith("sec-websocket"))
        scheme = {"http": "ws", "https": "wss"}.get(url.scheme, url.scheme)
        async with self.session.ws_connect(
            url.with_scheme(scheme), headers=headers, protocols=wanted, autoping=False, max_msg_size=0
        ) as far:
            near = web.WebSocketResponse(protocols=[far.protocol] if far.protocol else (), autoping=False, max_msg_size=0)
            await near.prepare(request)
            host.sockets.add(near)
            try:
                done, left = await asyncio.wait(
                    [asyncio.create_task(_pump(near, far)), asyncio.create_task(_pump(far, near))], return_when=asyncio.FIRST_COMPLETED
                )
                for task in left:
                    task.cancel()
                await asyncio.gather(*done, *left, return_exceptions=True)
            finally:
                host.sockets.discard(near)
                await near.close()
            return near


async def _pump(source: Any, sink: Any) -> None:
    async for message in source:
        match message.type:
            case WSMsgType.TEXT:
                await sink.send_str(message.data)
            case WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            case WSMsgType.PING:
                await sink.ping(message.data)
            case WSMsgType.PONG:
                await sink.pong(message.data)
    await sink.close(code=source.close_code or 1000)


def _joined(target: str, raw_path: str) -> URL:
    """The target with the path and query exactly as the client wrote them."""
    base = target.rstrip("/")
    return URL(base + (raw_path if raw_path.startswith("/") else f"/{raw_path}"), encoded=True)


def _is_websocket(request: web.BaseRequest) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket" and "upgrade" in request.headers.get("Connection", "").lower()


def _onward(request: web.BaseRequest) -> CIMultiDict[str]:
    headers = _kept(request.headers)
    for name in FORWARDED:
        headers.popall(name, None)
    headers["X-Forwarded-For"] = str(request.remote or "")
    headers["X-Forwarded-Proto"] = request.scheme
    headers["X-Forwarded-Host"] = request.host
    headers["Host"] = request.host
    return headers


def _kept(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict((key, value) for key, value in headers.items() if key.lower() not in HOP_BY_HOP and key.lower() not in named)


def _refusal(status: int, why: str) -> web.Response:
    return web.Response(status=status, text=json.dumps({"error": why}), content_type="application/json")
