"""What was put on a stream is read, whatever stands beside it; and what is lost to somebody else's hand is said."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.proofs.system import create_app
from tests.stack import Stack, until

STREAM, GROUP, BUS = "events:workflow", "workflow-group", "events:bus"


@pytest.fixture
def streams(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("streams"))
    made.redis.flushdb()
    yield made
    made.stop()


def bridge(stack: Stack, **variables: str) -> contextlib.AbstractContextManager[Any]:
    return stack.bridge(WORKER_STREAM_BLOCK="100ms", WORKER_RECLAIM_IDLE="1s", **variables)


def group_of(stack: Stack, stream: str = STREAM) -> dict[str, Any]:
    with contextlib.suppress(Exception):
        for one in stack.redis.xinfo_groups(stream):
            if one["name"] == GROUP:
                return dict(one)
    return {}


def kept(stack: Stack) -> list[tuple[str, str]]:
    return stack.sql("select type, event_id from events where state <> 'dead' order by id")


@pytest.mark.proves(7)
def test_what_we_append_removes_nothing_that_was_not_read(streams: Stack) -> None:
    """A bridge that was here, and is away, while more than a stream's length is appended by a door of ours."""
    from orchestrator.proxies.application import Application

    with bridge(streams):
        until(lambda: group_of(streams))
    proxies = Application(streams.redis, length=200)
    for n in range(700):
        proxies.create(f"h{n}.example.com", {"target": "http://127.0.0.1:9"})
    assert streams.redis.xlen(STREAM) == 700

    with bridge(streams):
        until(lambda: streams.sql("select count(*) from events where type = 'proxy_created'") == [(700,)], 60)


@pytest.mark.proves(7)
def test_what_is_appended_before_anybody_read_waits_for_the_first_who_does(streams: Stack) -> None:
    from orchestrator.proxies.application import Application

    proxies = Application(streams.redis, length=200)
    for n in range(700):
        proxies.create(f"h{n}.example.com", {"target": "http://127.0.0.1:9"})

    with bridge(streams):
        until(lambda: streams.sql("select count(*) from events where type = 'proxy_created'") == [(700,)], 60)


@pytest.mark.proves(8)
def test_the_bus_of_the_api_keeps_events_of_one_id_and_two_types(streams: Stack) -> None:
    client: Any = create_app(streams.runner).test_client()
    for type in ("paid", "shipped", "paid"):
        assert client.post("/api/events", json={"eventType": type, "id": "1"}).status_code == 200
    assert kept(streams) == [("paid", "1"), ("shipped", "1")]


@pytest.mark.proves(7)
def test_what_somebody_else_removed_is_said_and_counted(streams: Stack) -> None:
    with bridge(streams):
        until(lambda: group_of(streams))
    for n in range(50):
        streams.redis.xadd(STREAM, {"type": "t", "n": str(n)})
    streams.redis.xtrim(STREAM, maxlen=20, approximate=False)

    with bridge(streams):
        until(lambda: len(kept(streams)) == 20, 30)
        until(lambda: streams.sql("select 1 from events where state = 'dead'"), 30, "what was lost is put aside")

    [(error,)] = streams.sql("select error from events where state = 'dead'")
    assert error["message"].startswith("30 entries were removed from events:workflow")


@pytest.mark.proves(8)
def test_two_events_of_one_id_and_no_source_are_two_when_their_types_differ(streams: Stack) -> None:
    entries: list[dict[Any, Any]] = [{"id": "1", "type": "paid"}, {"id": "1", "type": "shipped"}, {"id": "1", "type": "paid"}]
    for entry in entries:
        streams.redis.xadd(STREAM, {**entry, "data": json.dumps({"n": 1})})
    with bridge(streams):
        until(lambda: group_of(streams).get("lag") == 0 and group_of(streams).get("pending") == 0, 30)
    assert kept(streams) == [("paid", "1"), ("shipped", "1")]


@pytest.mark.proves(14)
def test_a_key_that_is_no_stream_stops_no_other_stream(streams: Stack) -> None:
    streams.redis.set(BUS, "x")
    with bridge(streams) as process:
        streams.redis.xadd(STREAM, {"type": "t", "id": "1"})
        until(lambda: kept(streams) == [("t", "1")], 20, "the other stream is read")
        time.sleep(2)  # a few more turns
        streams.redis.xadd(STREAM, {"type": "t", "id": "2"})
        until(lambda: len(kept(streams)) == 2, 20)
        assert process.poll() is None
        streams.redis.delete(BUS)
        streams.redis.xadd(BUS, {"type": "t", "id": "3"})
        until(lambda: len(kept(streams)) == 3, 60, "it is read when it is a stream again")


@pytest.mark.proves(14)
def test_a_stream_that_is_left_alone_is_a_finding(streams: Stack) -> None:
    streams.redis.set(BUS, "x")
    found = "select message from findings where kind = 'stream' and subject = 'events:bus'"
    with bridge(streams):
        until(lambda: streams.sql(found), 20)
        assert "no stream" in streams.sql(found)[0][0]
        assert "events:bus" in streams.cli("doctor").stdout
        streams.redis.delete(BUS)
        until(lambda: not streams.sql(found), 60)


@pytest.mark.proves(14)
def test_a_stream_that_is_left_alone_is_told_by_health(streams: Stack) -> None:
    port = any_free()
    client = create_app(streams.runner).test_client()

    def bridges() -> tuple[Any, Any]:
        """What the API says of the bridge, and what it says itself."""
        return client.get("/health").get_json(), httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json()

    with bridge(streams, BRIDGE_PORT=str(port)):
        until(lambda: bridges()[0]["components"]["bridge"]["status"] == "healthy", 20)
        assert bridges()[1]["status"] == "healthy"
        streams.redis.delete(BUS)
        streams.redis.set(BUS, "x")
        until(lambda: bridges()[1]["status"] == "degraded", 20)
        told, own = bridges()
        assert own["left_alone"] == [BUS]
        assert told["status"] == "degraded"
        assert not told["consumer_active"]
        by_name = {one["stream"]: one for one in told["components"]["bridge"]["streams"]}
        assert (by_name[BUS]["active"], by_name[STREAM]["active"]) == (False, True)
        assert by_name[BUS]["left_alone_since"]
        # It works, although one stream does not: it is not to be started again.
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        streams.redis.delete(BUS)
        until(lambda: bridges()[0]["components"]["bridge"]["status"] == "healthy", 60)


@pytest.mark.proves(15)
def test_events_whose_workflow_failed_are_counted_among_those_put_aside(streams: Stack) -> None:
    port = any_free()

    def count() -> float:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("workflow_event_dlq_total "))

    streams.runner.put_trigger({"name": "ask", "on": "ask", "start": "asked", "acknowledge": "ended"})
    streams.worker()
    with bridge(streams, BRIDGE_PORT=str(port)):
        streams.redis.xadd(STREAM, {"type": "ask", "data": '{"fail": true}'})
        streams.redis.xadd(STREAM, {"type": "ask", "data": '{"fail": false}'})
        streams.redis.xadd(STREAM, {"data": "{}"})
        until(lambda: streams.redis.xlen(f"{STREAM}:dlq") == 2, 30)
        until(lambda: count() >= 2, 10, lambda: f"{count()} counted")
        assert count() == 2
