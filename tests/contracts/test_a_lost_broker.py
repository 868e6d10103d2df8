"""What a worker's consumer does in the moment in which Redis is lost, whatever its channels were doing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.utils.imports import symbol_by_name
from kombu import Connection, Queue
from kombu.common import ignore_errors

from orchestrator.app import app
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Redis
from orchestrator.engine.consumer import Consumer, close_channels
from orchestrator.engine.publish import Publisher


@pytest.fixture
def lost(tmp_path: Path) -> Any:
    """A connection whose Redis is gone, with two channels that hold messages, one of them waiting for more."""
    server = Redis(tmp_path / "redis", any_free())
    server.start()
    connection = Connection(server.url, transport_options={"socket_connect_timeout": 1})
    default, other = connection.default_channel, connection.channel()
    for channel, name in ((other, "a"), (default, "b")):
        Queue(name, channel=channel, routing_key=name).declare()
        for _ in range(2):
            connection.SimpleQueue(name, channel=channel).put({})
        Queue(name, channel=channel).get()
    default._active_queues.append("b")
    default._queue_cycle.update(["b"])
    default.client.connection = default.client.connection_pool.get_connection()
    default._brpop_start()
    server.kill()
    yield connection
    server.stop()


def lose(connection: Any) -> None:
    """As Celery's consumer does it: what hangs on it first, then the rest."""
    with contextlib.suppress(Exception):
        connection.collect(socket_timeout=1)
    ignore_errors(connection, connection.close)


def test_celery_alone_would_end_there(lost: Any) -> None:
    """If this fails, the consumer of our own is needed no more."""
    with pytest.raises(AttributeError, match="hostname"):
        lose(lost)


def test_a_lost_redis_does_not_end_a_worker(lost: Any) -> None:
    channels = [*lost.transport.channels]
    assert len(channels) == 2
    close_channels(lost)
    assert all(channel.closed for channel in channels)
    lose(lost)


def test_workers_have_this_consumer() -> None:
    assert symbol_by_name(app.conf.worker_consumer) is Consumer


def test_what_was_never_reached_is_asked_for_before_each_message_and_not_tried() -> None:
    """A command that starts something: the instance is kept in Postgres, and the command does not wait for a broker."""
    with Celery("test", broker="memory://", set_as_current=False) as other:
        there = [False, True]
        publisher = Publisher(other, helpers=1, is_there=lambda: there.pop(0))
        branch = ("01a1f826-0000-7000-8000-000000000000", "", 1, "normal")
        assert not publisher.branches([branch])
        assert publisher.branches([branch])
        assert publisher.branches([branch])
        assert there == []
