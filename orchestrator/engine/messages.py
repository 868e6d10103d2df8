"""What lies in a queue of Redis and is no message: it is put aside, told and counted, and the worker goes on.

By itself kombu raises what it met while it read, which ends the worker; and the next one, which finds nothing, does not know why.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis, virtual

from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.broker")

ASIDE = "unreadable:"
MOST_ASIDE = 1_000


class Unreadable(ValueError):
    """JSON that is no message. Holds it as it was read."""


class Message(virtual.Message):  # type: ignore[misc]
    def __init__(self, payload: Any, channel: Any = None, **more: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **more)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(payload) from error


class Sound:
    """A channel of Redis that outlives what it reads."""

    Message = Message

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except ValueError as error:
            self._put_aside(error)
            raise queue.Empty from None

    def _get(self, name: str) -> Any:
        try:
            return super()._get(name)  # type: ignore[misc]
        except ValueError as error:
            self._put_aside(error)
            raise queue.Empty from None

    def _put_aside(self, error: ValueError) -> None:
        text = _text_of(error)
        logger.error(
            "something in a queue is no message (%s, %d characters) and was put aside under %s", type(error).__name__, len(text), ASIDE
        )
        metrics.unreadable()
        with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
            client.lpush(ASIDE, text)
            client.ltrim(ASIDE, 0, MOST_ASIDE - 1)


def _text_of(error: ValueError) -> str:
    match error:
        case json.JSONDecodeError(doc=text):
            return text
        case UnicodeDecodeError(object=raw):
            return raw.decode(errors="backslashreplace")
        case Unreadable(args=(payload,)):
            return json.dumps(payload, default=repr)
    return repr(error)


@functools.cache
def _sound(transport: type) -> type:
    """The same transport, whose channels are sound."""
    channel = type("Channel", (Sound, transport.Channel), {})  # type: ignore[attr-defined]
    return type("Transport", (transport,), {"Channel": channel})


class SoundConnection(Connection):  # type: ignore[misc]
    def get_transport_cls(self) -> type:
        found = super().get_transport_cls()
        return _sound(found) if issubclass(found, redis.Transport) else found


class Amqp(AMQP):  # type: ignore[misc]
    """Celery's own, over connections whose channels are sound."""

    Connection = SoundConnection
