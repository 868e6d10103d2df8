"""Five events, five workflows, of a few small steps that may be repeated at will. What fails for good is given up: a
creation leaves nothing behind, a change leaves what was before."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator import StepContext, Workflow, composition, step
from orchestrator.app import runtime
from orchestrator.definition.retry import RetryPolicy
from orchestrator.proxies.registry import Proxies

HOSTNAME = r"^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"

# Three attempts in all; 1 and 2 seconds between them.
THRICE = RetryPolicy(max_attempts=3, base_s=1.0, factor=2.0, jitter=0.0)


class About(BaseModel):
    """Of an event: the hostname, and whatever it says of its configuration."""

    model_config = ConfigDict(extra="allow")

    hostname: str = Field(pattern=HOSTNAME, max_length=253)


class Announced(About):
    cert_name: str | None = None


@functools.cache
def proxies() -> Proxies:
    return composition.proxies(runtime())


def host(data: dict[str, Any]) -> str:
    return str(data["hostname"]).lower().rstrip(".")


# ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@step(type="proxies.begin_creating", retry=THRICE, timeout="30s")
def begin_creating(context: StepContext, data: dict[str, Any]) -> dict[str, Any]:
    return proxies().begin_creating(context.instance_id, host(data), data)


@step(type="proxies.begin_changing", retry=THRICE, timeout="30s")
def begin_changing(context: StepContext, data: dict[str, Any]) -> dict[str, Any]:
    return proxies().begin_changing(context.instance_id, host(data), data)


@step(type="proxies.begin_deleting", retry=THRICE, timeout="30s")
def begin_deleting(context: StepContext, data: dict[str, Any]) -> dict[str, Any]:
    return proxies().begin_deleting(context.instance_id, host(data))


@begin_creating.undo(retry=THRICE)
@begin_changing.undo(retry=THRICE)
@begin_deleting.undo(retry=THRICE)
def give_up(context: StepContext) -> None:
    if not (context.output or {}).get("already"):
        proxies().give_up(context.instance_id, host(context.input))


@step(type="proxies.allocate_ports", retry=THRICE, timeout="30s")
def allocate_ports(data: dict[str, Any]) -> dict[str, Any]:
    return {"ports": proxies().allocate_ports(host(data))}


@step(type="proxies.serve_http", retry=THRICE, timeout="60s")
def serve_http(data: dict[str, Any]) -> dict[str, Any]:
    return proxies().serve(host(data), https=False)


@step(type="proxies.serve_https", retry=THRICE, timeout="60s")
def serve_https(data: dict[str, Any]) -> dict[str, Any]:
    return proxies().serve(host(data), https=True)


@step(type="proxies.finish", retry=THRICE, timeout="30s")
def finish(context: StepContext, data: dict[str, Any]) -> dict[str, Any]:
    return proxies().finish(context.instance_id, host(data), str(data.get("mode")))


@step(type="proxies.drain", retry=THRICE, timeout="65m")  # as long as PROXY_DRAIN may be, and a little
def drain(data: dict[str, Any]) -> None:
    proxies().clear(host(data))


@step(type="proxies.finish_deleting", retry=THRICE, timeout="30s")
def finish_deleting(context: StepContext, data: dict[str, Any]) -> None:
    proxies().finish_deleting(context.instance_id, host(data))


# ── workflows ───────────────────────────────────────────────────────────────────────────────────────────────────────

_NEW = "(.already // false) | not"
_DIFFERS = "(.already // false) and (.same == false)"

proxy_created = (
    Workflow("proxy-created", title="Create a proxy: HTTP at once, HTTPS when its certificate is there", saga=True, input=About)
    .start_with(begin_creating)
    .if_(_NEW, "unless-there")
    .do(lambda flow: flow.then(allocate_ports).then(serve_http).then(serve_https).then(finish))
    .if_(_DIFFERS, "if-it-differs")
    .do(lambda flow: flow.then(begin_changing).then(serve_https).then(finish))
)

proxy_updated = (
    Workflow("proxy-updated", title="Change a proxy in place", saga=True, input=About)
    .start_with(begin_changing)
    .then(serve_https)
    .then(finish)
)

route_changed = (
    Workflow("route-changed", title="Change a proxy's routes in place", saga=True, input=About)
    .start_with(begin_changing)
    .then(serve_https)
    .then(finish)
)

certificate_ready = (
    Workflow("certificate-ready", title="Serve a proxy by HTTPS, with a certificate that is new or renewed", saga=True, input=Announced)
    .start_with(begin_changing)
    .if_(_NEW, "unless-too-early")
    .do(lambda flow: flow.then(serve_https).then(finish))
)

proxy_deleted = (
    Workflow("proxy-deleted", title="Take a proxy away when its requests have ended", saga=True, input=About)
    .start_with(begin_deleting)
    .if_(_NEW, "unless-gone")
    .do(lambda flow: flow.then(drain).then(finish_deleting))
)
