"""`call: asyncapi`: publish to, or consume from, a channel that an AsyncAPI 2 or 3 document describes.

Spoken here: http and https (publish), redis (pub/sub), amqp (by kombu), and ws (with the `asyncapi` extra). A
subscription gives the messages it consumed, in order; what is consumed stands in the history when the step is done.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from orchestrator import nesting
from orchestrator.definition.durations import seconds
from orchestrator.definition.expressions import Jq, embedded, evaluate, is_true
from orchestrator.definition.parsing import shown
from orchestrator.definition.serverless.resources import parsed
from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, judged, send
from orchestrator.net.egress import Policy, resolved
from orchestrator.net.foreign import Foreign, read
from orchestrator.net.problems import Problem
from orchestrator.net.resources import fetched
from orchestrator.steps.call_http import endpoint_of, hidden
from orchestrator.steps.registry import StepContext, executor

LONGEST_S = 3600.0


@executor
class CallAsyncApi:
    type = "call.asyncapi"

    def execute(self, context: StepContext) -> Any:
        given = context.parameters if isinstance(context.parameters, dict) else {}
        with hidden(context):
            where, policy = endpoint_of((given.get("document") or {}).get("endpoint"), context)
            document = read(Document, parsed(fetched(where, authentication(policy, context.secrets)), where), where)
            target = Target.find(document, given, where)
            if "message" in given:
                return _publish(target, given["message"] or {}, given.get("authentication"), context)
            return _consume(target, (context.literal or {}).get("subscription") or {}, context)


class Variable(Foreign):
    default: Any = ""


class Server(Foreign):
    protocol: str = ""
    url: str = ""
    host: str = ""
    pathname: str = ""
    variables: dict[str, Variable] = {}


class Reference(Foreign):
    reference: str = Field("", alias="$ref")


class Operation(Foreign):
    channel: Reference | None = None


class Channel(Foreign):
    address: str | None = None
    publish: dict[str, Any] | None = None
    subscribe: dict[str, Any] | None = None


class Document(Foreign):
    """An AsyncAPI 2 or 3 document, as far as a call needs it."""

    asyncapi: Any = ""
    servers: dict[str, Server] = {}
    channels: dict[str, Channel] = {}
    operations: dict[str, Operation] = {}


class Target:
    """Where a channel is: protocol, address, and how the server says to get there."""

    def __init__(self, protocol: str, url: str, channel: str) -> None:
        self.protocol = protocol
        self.url = url
        self.channel = channel

    @staticmethod
    def find(document: Document, given: dict[str, Any], where: str) -> Target:
        is_third = str(document.asyncapi).startswith("3")
        channel = _third(document, given) if is_third else _second(document, given)
        name, server = _server(document, given)
        protocol = server.protocol.lower()
        url = server.url
        if is_third:
            url = f"{protocol}://{server.host}{server.pathname}"
        elif "://" not in url:
            url = f"{protocol}://{url}"
        named = (given.get("server") or {}).get("variables") or {}
        for key, variable in server.variables.items():
            url = url.replace("{" + key + "}", str(named.get(key, variable.default)))
        try:
            parts = urlsplit(url)
            is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            is_address = False
        if not is_address:
            raise Problem("configuration", f"{where}: the server '{name}' is not at an address: {shown(url)}")
        return Target(protocol, url, channel)


def _third(document: Document, given: dict[str, Any]) -> str:
    name = str(given.get("operation") or "")
    wanted = str(given.get("channel") or "")
    if name:
        held = document.operations.get(name.removeprefix("#/operations/"))
        if held is None:
            raise Problem("configuration", f"the AsyncAPI document has no operation '{name}'; it has {_listed(document.operations)}")
        reference = held.channel.reference if held.channel else ""
        wanted = reference.rsplit("/", 1)[-1].replace("~1", "/")
    channel = document.channels.get(wanted)
    if channel is None:
        raise Problem("configuration", f"the AsyncAPI document has no channel '{wanted}'; it has {_listed(document.channels)}")
    return channel.address or wanted


def _second(document: Document, given: dict[str, Any]) -> str:
    if given.get("channel"):
        for name in (str(given["channel"]), str(given["channel"]).lstrip("/")):
            if name in document.channels:
                return name
        raise Problem("configuration", f"the AsyncAPI document has no channel '{given['channel']}'; it has {_listed(document.channels)}")
    for name, channel in document.channels.items():
        for verb in (channel.publish, channel.subscribe):
            if verb is not None and verb.get("operationId") == given.get("operation"):
                return name
    raise Problem("configuration", f"the AsyncAPI document has no operation '{given.get('operation')}'")


def _server(document: Document, given: dict[str, Any]) -> tuple[str, Server]:
    wanted = (given.get("server") or {}).get("name")
    if wanted is not None:
        if wanted not in document.servers:
            raise Problem("configuration", f"the AsyncAPI document has no server '{wanted}'; it has {_listed(document.servers)}")
        return str(wanted), document.servers[wanted]
    for name, held in document.servers.items():
        if given.get("protocol") in (None, held.protocol):
            return name, held
    raise Problem("configuration", f"the AsyncAPI document has no server for the protocol '{given.get('protocol')}'")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:20])


def _judge_address(url: str) -> None:
    parts = urlsplit(url)
    import httpcore

    try:
        resolved(str(parts.hostname), parts.port or 0, Policy.of_process())
    except httpcore.ConnectError as error:
        raise Problem("communication", str(error), retryable=True) from None


def _unspoken(protocol: str, verb: str) -> Problem:
    return Problem("configuration", f"to {verb} by '{protocol}' is not spoken here; http, ws, redis and amqp are")


# ── publishing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _publish(target: Target, message: dict[str, Any], policy: Any, context: StepContext) -> Any:
    payload = message.get("payload")
    headers = {str(key): str(value) for key, value in (message.get("headers") or {}).items()}
    if target.protocol in ("http", "https"):
        auth = authentication(policy, context.secrets)
        url = f"{target.url.rstrip('/')}/{target.channel.lstrip('/')}"
        headers.setdefault("Idempotency-Key", context.idempotency_key)
        judged(send("POST", url, headers=headers, content=payload if payload is not None else "", auth=auth), redirect=False)
        return context.input
    _judge_address(target.url)
    if target.protocol in ("redis", "rediss"):
        import redis

        try:
            with redis.Redis.from_url(target.url, socket_timeout=TIMEOUT_S, socket_connect_timeout=5) as connection:
                connection.publish(target.channel, json.dumps(payload))
        except redis.RedisError as error:
            raise Problem("communication", f"{target.protocol}: {error}", retryable=True) from error
    elif target.protocol in ("amqp", "amqps"):
        import kombu

        try:
            with kombu.Connection(target.url, connect_timeout=5) as connection, connection.SimpleQueue(target.channel) as simple:
                simple.put(payload, serializer="json", headers=headers)
        except (OSError, kombu.exceptions.OperationalError) as error:
            raise Problem("communication", f"{target.protocol}: {error}", retryable=True) from error
    elif target.protocol in ("ws", "wss"):
        with _websocket(target) as socket:
            socket.send(json.dumps(payload))
    else:
        raise _unspoken(target.protocol, "publish")
    return context.input


# ── consuming ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _consume(target: Target, subscription: dict[str, Any], context: StepContext) -> list[Any]:
    consume = subscription.get("consume") or {}
    limit_s = seconds(consume["for"]) if "for" in consume else LONGEST_S
    deadline = time.monotonic() + min(limit_s, context.deadline_s or LONGEST_S)
    taken: list[Any] = []

    def holds(name: str) -> bool:
        return is_true(_judged(consume[name], taken, context))

    if "until" in consume and holds("until"):
        return taken
    for message in _received(target, deadline):
        wanted = subscription.get("filter")
        if wanted is not None and not is_true(_judged(wanted, message, context)):
            continue
        taken.append(message["payload"])
        if "amount" in consume and len(taken) >= int(consume["amount"]):
            return taken
        if "while" in consume and not holds("while"):
            return taken
        if "until" in consume and holds("until"):
            return taken
    if "for" not in consume:
        raise Problem("timeout", f"not enough messages came on '{target.channel}'")
    return taken


def _judged(text: str, data: Any, context: StepContext) -> Any:
    source = embedded(text)
    return evaluate(Jq(text if source is None else source), data, context.scope)


def _received(target: Target, deadline: float) -> Iterator[dict[str, Any]]:
    """Messages as `{headers, payload, correlationId}`, until the deadline."""
    _judge_address(target.url)
    if target.protocol in ("redis", "rediss"):
        yield from _from_redis(target, deadline)
    elif target.protocol in ("amqp", "amqps"):
        yield from _from_amqp(target, deadline)
    elif target.protocol in ("ws", "wss"):
        with _websocket(target) as socket:
            while (left := deadline - time.monotonic()) > 0:
                try:
                    yield _message(socket.recv(timeout=left))
                except TimeoutError:
                    return
    else:
        raise _unspoken(target.protocol, "subscribe")


def _from_redis(target: Target, deadline: float) -> Iterator[dict[str, Any]]:
    import redis

    try:
        with (
            redis.Redis.from_url(target.url, socket_connect_timeout=5) as connection,
            connection.pubsub(ignore_subscribe_messages=True) as heard,
        ):
            heard.subscribe(target.channel)
            while (left := deadline - time.monotonic()) > 0:
                message = heard.get_message(timeout=min(left, 1.0))
                if message is not None:
                    yield _message(message["data"])
    except redis.RedisError as error:
        raise Problem("communication", f"{target.protocol}: {error}", retryable=True) from error


def _from_amqp(target: Target, deadline: float) -> Iterator[dict[str, Any]]:
    import kombu

    try:
        with kombu.Connection(target.url, connect_timeout=5) as connection, connection.SimpleQueue(target.channel) as simple:
            while (left := deadline - time.monotonic()) > 0:
                try:
                    message = simple.get(timeout=min(left, 1.0))
                except queue.Empty:
                    continue
                message.ack()
                yield {"headers": message.headers, "payload": message.payload, "correlationId": message.properties.get("correlation_id")}
    except (OSError, kombu.exceptions.OperationalError) as error:
        raise Problem("communication", f"{target.protocol}: {error}", retryable=True) from error


def _message(raw: bytes | str) -> dict[str, Any]:
    """A text that is an object with a payload is the message itself; anything else is its payload."""
    text = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    try:
        found = nesting.parse(text)
    except ValueError:
        found = text
    if isinstance(found, dict) and "payload" in found:
        return {"headers": {}, **found}
    return {"headers": {}, "payload": found, "correlationId": found.get("correlationId") if isinstance(found, dict) else None}


def _websocket(target: Target) -> Any:
    if importlib.util.find_spec("websockets") is None:
        raise Problem("configuration", "AsyncAPI over ws needs the asyncapi extra: pip install 'celery-orchestrator[asyncapi]'")
    from websockets.sync.client import connect

    url = f"{target.url.rstrip('/')}/{target.channel.lstrip('/')}"
    try:
        return connect(url, open_timeout=10, max_size=8 * 1024 * 1024)
    except OSError as error:
        raise Problem("communication", f"{url}: {error}", retryable=True) from error
