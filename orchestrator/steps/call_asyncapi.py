"""`call: asyncapi`: publish to, or consume from, a channel that an AsyncAPI 2 or 3 document describes.

Spoken here: http and https (publish), redis (pub/sub), amqp (by kombu), and ws (with the `asyncapi` extra). A
subscription gives the messages it consumed, in order; what is consumed stands in the history when the step is done.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from orchestrator import nesting
from orchestrator.definition.durations import seconds
from orchestrator.definition.expressions import Jq, embedded, evaluate, is_true
from orchestrator.definition.serverless.resources import parsed
from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, judged, send
from orchestrator.net.egress import Policy, resolved
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
            document = parsed(fetched(where, authentication(policy, context.secrets)), where)
            if not isinstance(document, dict):
                raise Problem("configuration", f"{where} is no AsyncAPI document")
            target = Target.find(document, given)
            if "message" in given:
                return _publish(target, given["message"] or {}, given.get("authentication"), context)
            return _consume(target, (context.literal or {}).get("subscription") or {}, context)


class Target:
    """Where a channel is: protocol, address, and how the server says to get there."""

    def __init__(self, protocol: str, url: str, channel: str) -> None:
        self.protocol = protocol
        self.url = url
        self.channel = channel

    @staticmethod
    def find(document: dict[str, Any], given: dict[str, Any]) -> Target:
        is_third = str(document.get("asyncapi", "")).startswith("3")
        channel = _third(document, given) if is_third else _second(document, given)
        name, server = _server(document, given)
        protocol = str(server.get("protocol", "")).lower()
        url = str(server.get("url") or "")
        if is_third:
            url = f"{protocol}://{server.get('host', '')}{server.get('pathname', '')}"
        elif "://" not in url:
            url = f"{protocol}://{url}"
        variables = {
            key: (given.get("server") or {}).get("variables", {}).get(key, held.get("default", "") if isinstance(held, dict) else "")
            for key, held in (server.get("variables") or {}).items()
        }
        for key, value in variables.items():
            url = url.replace("{" + key + "}", str(value))
        if not urlsplit(url).hostname:
            raise Problem("configuration", f"server '{name}' of the AsyncAPI document has no host")
        return Target(protocol, url, channel)


def _third(document: dict[str, Any], given: dict[str, Any]) -> str:
    operations = document.get("operations") or {}
    name = str(given.get("operation") or "")
    reference = None
    if name:
        held = operations.get(name.removeprefix("#/operations/"))
        if not isinstance(held, dict):
            raise Problem("configuration", f"the AsyncAPI document has no operation '{name}'; it has {', '.join(sorted(operations))}")
        reference = str((held.get("channel") or {}).get("$ref", "")).rsplit("/", 1)[-1].replace("~1", "/")
    channels = document.get("channels") or {}
    channel = channels.get(reference or given.get("channel"))
    if not isinstance(channel, dict):
        raise Problem("configuration", f"the AsyncAPI document has no channel '{reference or given.get('channel')}'")
    return str(channel.get("address") or reference or given.get("channel"))


def _second(document: dict[str, Any], given: dict[str, Any]) -> str:
    channels = document.get("channels") or {}
    if given.get("channel"):
        for name in (str(given["channel"]), str(given["channel"]).lstrip("/")):
            if name in channels:
                return name
        raise Problem("configuration", f"the AsyncAPI document has no channel '{given['channel']}'; it has {', '.join(sorted(channels))}")
    for name, held in channels.items():
        for verb in ("publish", "subscribe"):
            if isinstance(held, dict) and (held.get(verb) or {}).get("operationId") == given.get("operation"):
                return str(name)
    raise Problem("configuration", f"the AsyncAPI document has no operation '{given.get('operation')}'")


def _server(document: dict[str, Any], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    servers = {str(key): value for key, value in (document.get("servers") or {}).items() if isinstance(value, dict)}
    wanted = (given.get("server") or {}).get("name")
    if wanted is not None:
        if wanted not in servers:
            raise Problem("configuration", f"the AsyncAPI document has no server '{wanted}'; it has {', '.join(sorted(servers))}")
        return str(wanted), servers[wanted]
    for name, held in servers.items():
        if given.get("protocol") in (None, held.get("protocol")):
            return name, held
    raise Problem("configuration", f"the AsyncAPI document has no server for the protocol '{given.get('protocol')}'")


def _judge_address(url: str) -> None:
    parts = urlsplit(url)
    import httpcore

    try:
        resolved(str(parts.hostname), parts.port or 0, Policy.of_environment())
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
