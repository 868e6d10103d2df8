"""The gateway's admin API: what is served, changed while it is served. On loopback, with a token where one is set.

GET    /hosts                      GET /hosts/{hostname}
PUT    /hosts/{hostname}           as it shall be
DELETE /hosts/{hostname}?drain=30  takes no more requests, lets those under way end
PUT    /certificates/{name}        {chain, key}      DELETE /certificates/{name}
GET    /health
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import psutil
from aiohttp import web

from orchestrator.gateway.hosts import BadCertificate
from orchestrator.proxies.plane import PortTaken, Proxy, RefusedByPlane

if TYPE_CHECKING:
    from orchestrator.gateway.server import Gateway

HOSTNAME = re.compile(r"(?=.{1,253}$)(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def admin_app(gateway: Gateway) -> web.Application:
    app = web.Application(middlewares=[_guard(gateway.listens.token), _faults], client_max_size=2 * 1024 * 1024)
    admin = _Admin(gateway)
    app.add_routes(
        [
            web.get("/health", admin.health),
            web.get("/hosts", admin.listing),
            web.get("/hosts/{name}", admin.show),
            web.put("/hosts/{name}", admin.put),
            web.delete("/hosts/{name}", admin.delete),
            web.put("/certificates/{name}", admin.put_certificate),
            web.delete("/certificates/{name}", admin.delete_certificate),
        ]
    )
    return app


def _guard(token: str) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """No page in a browser may act here, and nobody without the token where there is one."""
        if request.headers.get("Origin"):
            return _said(403, "requests of pages are refused")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and not given and request.path == "/health":
            return web.json_response({"status": "healthy"})  # that it lives, and nothing of what it serves
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            return _said(401, "the token is wrong")
        if request.method == "PUT" and request.content_type != "application/json":
            return _said(415, "the body must be JSON")
        return await handler(request)

    return guard


@web.middleware
async def _faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PortTaken as error:
        return _said(409, str(error), port=error.port)
    except (RefusedByPlane, BadCertificate, ValueError, TypeError) as error:
        return _said(400, str(error))


class _Admin:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def health(self, _: web.Request) -> web.Response:
        hosts = self.gateway.hosts
        return web.json_response(
            {
                "status": "healthy",
                "pid": os.getpid(),
                "hosts": len(hosts.by_name),
                "certificates": len(hosts.certificates),
                "under_way": sum(host.under_way for host in hosts.by_name.values()),
                "descriptors": psutil.Process().num_fds(),
                "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
                "http_port": self.gateway.port("http"),
                "https_port": self.gateway.port("https"),
            }
        )

    async def listing(self, _: web.Request) -> web.Response:
        return web.json_response({"hosts": sorted(name for name, host in self.gateway.hosts.by_name.items() if not host.draining)})

    async def show(self, request: web.Request) -> web.Response:
        host = self.gateway.hosts.by_name.get(request.match_info["name"])
        if host is None or host.draining:
            return _said(404, "no such host")
        return web.json_response(host.proxy.to_json())

    async def put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not HOSTNAME.fullmatch(name):
            raise ValueError(f"'{name}' is no hostname")
        data = await request.json()
        if not isinstance(data, dict):
            raise TypeError("the body must be an object")
        proxy = Proxy.from_json({**data, "hostname": name})
        for target in [proxy.target, *(route.target for route in proxy.routes)]:
            if target is not None and not re.match(r"https?://[^/\s]+", target):
                raise ValueError(f"'{target}' is no http or https address")
        for key, value in proxy.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", str(key)) or not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f]", value):
                raise ValueError(f"'{str(key)[:60]}' is no header, or its value is not one line of text")
        await self.gateway.apply(proxy)
        return web.json_response(proxy.to_json())

    async def delete(self, request: web.Request) -> web.Response:
        await self.gateway.remove(request.match_info["name"], min(float(request.query.get("drain", "30")), 3600.0))
        return web.json_response({})

    async def put_certificate(self, request: web.Request) -> web.Response:
        data = await request.json()
        await self.gateway.put_certificate(request.match_info["name"], str(data["chain"]), str(data["key"]))
        return web.json_response({})

    async def delete_certificate(self, request: web.Request) -> web.Response:
        await self.gateway.drop_certificate(request.match_info["name"])
        return web.json_response({})


def _said(status: int, message: str, **more: Any) -> web.Response:
    return web.Response(status=status, text=json.dumps({"message": message, **more}), content_type="application/json")
