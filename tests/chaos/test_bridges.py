"""Events through two bridges while bridges are killed, and Redis and Postgres restart: every effect once, in its order."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from orchestrator.config.settings import SCHEMA
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.engine import effects
from orchestrator.store import events, migrate
from tests import commands
from tests.chaos.crowd import LONG, report
from tests.stack import Stack, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 240)]

COUNT = int(os.environ.get("EVENTS", "100000" if LONG else "4000"))
HOSTS = 200
POISON_EVERY = 500
STREAM, GROUP = "events:workflow", "workflow-group"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    """Servers of its own, which may be killed."""
    postgres, server = Postgres(tmp_path / "pg" / "postgres", any_free(), durable=False), Redis(tmp_path / "redis" / "redis", any_free())
    postgres.start()
    server.start()
    migrate.upgrade(postgres.url, SCHEMA)
    stack = Stack(postgres.url, server, tmp_path)
    stack.postgres = postgres  # type: ignore[attr-defined]
    yield stack
    stack.stop()
    server.stop()
    postgres.stop()


class Bridges:
    """Two of them, one of which is killed every few seconds and started again."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.killed = 0
        self.running = [self._start(), self._start()]

    def _start(self) -> tuple[commands.Process, Path]:
        variables = {"WORKER_STREAM_BLOCK": "200ms", "WORKER_RECLAIM_IDLE": "5s", "TRIGGER_QUEUE": ""}
        path = self.stack.folder / f"bridge-{time.monotonic_ns()}.log"
        with path.open("wb") as log:
            return commands.start(["orchestrator", "bridge"], self.stack.variables(**variables), log), path

    def kill_one(self) -> None:
        victim = random.randrange(2)
        process, _ = self.running[victim]
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.running[victim] = self._start()
        self.killed += 1

    def said(self) -> str:
        return "\n".join(path.read_text()[-2000:] for _, path in self.running)

    def stop(self) -> list[int]:
        for process, path in self.running:
            until(lambda path=path: "bridge reads" in path.read_text(), 30, self.said)  # the signal finds its handler
            process.terminate()
        return [process.wait(40) for process, _ in self.running]


def publish(server: Redis, stop: threading.Event) -> None:
    """In bursts, going on where it was when Redis is back: by the number that the stream's last entry has."""
    sent = 0
    client: Any = redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5)
    while sent < COUNT and not stop.is_set():
        try:
            last = client.xrevrange(STREAM, count=1)
            sent = int(last[0][1]["n"]) + 1 if last else 0
            pipeline = client.pipeline(transaction=True)
            for n in range(sent, min(sent + 200, COUNT)):
                if n % POISON_EVERY == 7:
                    pipeline.xadd(STREAM, {"n": str(n), "data": "{oops", "type": "t"})
                else:
                    pipeline.xadd(STREAM, {"n": str(n), "type": "t", "hostname": f"h{n % HOSTS}", "data": json.dumps({"n": n})})
            pipeline.execute()
            sent = min(sent + 200, COUNT)
        except redis.RedisError:
            time.sleep(0.1)  # it is being restarted
    client.close()


def test_a_flood_of_events_through_bridges_that_die(own: Stack) -> None:
    own.runner.put_trigger({"name": "chaos", "on": "t", "start": "numbered", "input": ".data"})
    postgres: Postgres = own.postgres  # type: ignore[attr-defined]
    bridges = Bridges(own)
    stop = threading.Event()
    begun = time.monotonic()
    publisher = threading.Thread(target=publish, args=(own.redis_server, stop))
    publisher.start()
    restarts = {"redis": 0, "postgres": 0}
    next_kill, next_redis, next_postgres = (begun + x for x in (3.0, 7.0, 11.0))
    poison = sum(n % POISON_EVERY == 7 for n in range(COUNT))

    def done() -> bool:
        nonlocal next_kill, next_redis, next_postgres
        now = time.monotonic()
        try:
            if now > next_kill:
                bridges.kill_one()
                next_kill = now + random.uniform(3, 6)
            if now > next_redis:
                own.redis_server.kill()
                own.redis_server.start()
                restarts["redis"] += 1
                next_redis = now + random.uniform(15, 30)
            if now > next_postgres:
                postgres.restart()
                restarts["postgres"] += 1
                next_postgres = now + random.uniform(20, 40)
            if publisher.is_alive():
                return False
            group = next(g for g in own.redis.xinfo_groups(STREAM) if g["name"] == GROUP)
            return bool(group["pending"] == 0 and group["last-delivered-id"] == own.redis.xinfo_stream(STREAM)["last-generated-id"])
        except (redis.RedisError, psycopg.Error, StopIteration):
            return False

    try:
        until(done, 1500 if LONG else 150, bridges.said)
        took = time.monotonic() - begun
    finally:
        stop.set()
        publisher.join()
        codes = bridges.stop()
    own.runner.database.drop()
    own.runner.database.patiently(events.duplicates)
    effects.work_off(own.runner.runtime)

    assert own.redis.xlen(STREAM) == COUNT
    rows = own.sql("select (i.input ->> 'n')::int from effects f join instances i on i.id = f.instance_id order by f.event_id")
    done_in_order = [row[0] for row in rows]
    assert len(done_in_order) == COUNT - poison
    assert len(set(done_in_order)) == COUNT - poison
    assert own.sql("select count(*) from instances") == [(COUNT - poison,)]
    last: dict[int, int] = {}
    for n in done_in_order:
        assert last.get(n % HOSTS, -1) < n, f"h{n % HOSTS}: {n} came after {last[n % HOSTS]}"
        last[n % HOSTS] = n
    assert sorted(int(fields["event"] and json.loads(fields["event"])["data"]["n"]) for _, fields in own.redis.xrange(f"{STREAM}:dlq")) == [
        n for n in range(COUNT) if n % POISON_EVERY == 7
    ]
    assert own.redis.xpending(STREAM, GROUP)["pending"] == 0
    assert codes == [0, 0]
    report("events through bridges that die", events=COUNT, took_s=took, killed=bridges.killed, put_aside=poison, **restarts)
