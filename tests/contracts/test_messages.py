"""What the one door sends is what Celery itself would have sent."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest

from orchestrator.app import app
from orchestrator.engine.publish import Publisher
from orchestrator.plan import canvas
from orchestrator.plan.canvas import Address
from tests.stack import Stack

# What is another each time; `reply_to` is the queue of an answer that nobody gives.
OWN = {"id", "root_id", "correlation_id", "delivery_tag", "reply_to"}


def _messages(stack: Stack, queue: str = "normal") -> list[dict[str, Any]]:
    """Those of a queue, the oldest first, with their bodies read."""
    found = [json.loads(text) for text in reversed(stack.redis.lrange(queue, 0, -1))]  # type: ignore[union-attr]
    return [{**message, "body": json.loads(base64.b64decode(message["body"]))} for message in found]


def _alike(value: Any) -> Any:
    return {key: _alike(item) for key, item in value.items() if key not in OWN} if isinstance(value, dict) else value


@pytest.fixture
def publisher() -> Publisher:
    return Publisher(app, helpers=8)


def test_a_walk_is_sent_as_celery_sends_it(stack: Stack, publisher: Publisher) -> None:
    address = Address(str(uuid.uuid4()), "/graph/a", 3, "normal", "order")
    publisher.branches([(address.instance_id, address.position, address.generation, address.queue)], "order")
    canvas.walk(address, app=app).apply_async()
    ours, celerys = _messages(stack)
    assert _alike(ours) == _alike(celerys)
    assert ours["headers"]["id"] == ours["headers"]["root_id"] == ours["properties"]["correlation_id"] != celerys["headers"]["id"]


def test_many_messages_leave_together_in_their_order_each_to_its_queue(stack: Stack, publisher: Publisher) -> None:
    many = [(str(uuid.uuid4()), "", 1, ("normal", "high")[n % 2]) for n in range(2_500)]
    before = stack.redis.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0)  # type: ignore[union-attr]
    sent = stack.redis.info("stats")["total_reads_processed"]  # type: ignore[index]
    assert publisher.branches(many)
    reads = stack.redis.info("stats")["total_reads_processed"] - sent  # type: ignore[index]
    assert stack.redis.info("commandstats")["cmdstat_lpush"]["calls"] - before == 2_500  # type: ignore[index]
    assert reads < 500, f"{reads} reads for 2,500 messages: they did not leave together"
    for queue in ("normal", "high"):
        assert [message["body"][0][0] for message in _messages(stack, queue)] == [one[0] for one in many if one[3] == queue]
