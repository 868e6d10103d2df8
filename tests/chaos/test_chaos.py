"""What dies, when, and what must be true afterwards. The short form runs in CI; `make chaos` runs the long one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.config.settings import SCHEMA
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.store import migrate
from tests.chaos.crowd import LONG, QUICK, SHAPES, Crowd, kill_a_child, number, percentile, report, trouble
from tests.conftest import fresh_database
from tests.pace import patient
from tests.stack import Stack, Worker, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 180)]
PATIENCE_S = 600.0 if LONG else 120.0


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server that this test alone may restart."""
    server = Postgres(tmp_path / "pg" / "postgres", any_free())
    server.start()
    migrate.upgrade(server.url, SCHEMA)
    yield server
    server.stop()


@pytest.fixture
def chaotic(stack: Stack) -> Stack:
    stack.environment.update(QUICK)
    return stack


def test_killed_worker_children_lose_nothing_and_commit_nothing_twice(chaotic: Stack) -> None:
    chaotic.worker(concurrency=4)
    crowd = Crowd(chaotic, number(160))

    with trouble(lambda: kill_a_child(chaotic.workers), (0.3, 1.0)):
        crowd.start()
        took = crowd.wait(PATIENCE_S)

    report("worker children killed", took_s=took, **crowd.check())


def test_killed_workers_lose_nothing_and_commit_nothing_twice(chaotic: Stack) -> None:
    chaotic.worker()
    chaotic.worker()

    def lose_a_host() -> None:
        victim = random.choice([w for w in chaotic.workers if w.process.poll() is None])
        victim.kill()
        chaotic.worker(wait=False)

    crowd = Crowd(chaotic, number(120))
    with trouble(lose_a_host, (2.5, 5.0)):
        crowd.start()
        took = crowd.wait(PATIENCE_S)

    report("whole workers killed", took_s=took, **crowd.check())


def test_an_emptied_redis_loses_no_instance(chaotic: Stack) -> None:
    chaotic.worker(concurrency=4)
    crowd = Crowd(chaotic, number(160))

    with trouble(chaotic.redis.flushall, (0.5, 1.5)):
        crowd.start()
        took = crowd.wait(PATIENCE_S)

    report("Redis emptied", took_s=took, **crowd.check())


def test_a_redis_that_is_killed_and_comes_back_empty_loses_no_instance(chaotic: Stack) -> None:
    server = chaotic.redis_server
    chaotic.worker(concurrency=4)
    crowd = Crowd(chaotic, number(120))
    crowd.start()

    server.kill()
    for path in server.folder.rglob("*"):
        if path.is_file():
            path.unlink()
    # Starts are accepted all the same.
    late = chaotic.runner.start_workflow("sequence", input={})
    crowd.started[late] = "sequence"
    server.start()
    came_back = time.monotonic()
    crowd.wait(PATIENCE_S)

    report("Redis killed and emptied", all_ended_after_s=time.monotonic() - came_back, **crowd.check())


def test_postgres_restarts_lose_nothing(own_postgres: Postgres, redis_server: Redis, tmp_path: Path) -> None:
    chaotic = Stack(fresh_database(own_postgres), redis_server, tmp_path, environment=dict(QUICK))
    try:
        chaotic.worker(concurrency=4)
        crowd = Crowd(chaotic, number(120))
        with trouble(own_postgres.restart, (5, 40) if LONG else (2, 5)):
            crowd.start()
            took = crowd.wait(PATIENCE_S)
        report("Postgres restarted", took_s=took, **crowd.check())
    finally:
        chaotic.stop()


QUEUES = ("normal", "low", "high", "critical")


def test_messages_delivered_twice_change_nothing(chaotic: Stack) -> None:
    crowd = Crowd(chaotic, number(160))
    crowd.start()
    seen: set[str] = set()

    def double() -> None:
        for queue in QUEUES:
            for message in chaotic.redis.lrange(queue, 0, -1):
                if message not in seen:
                    seen.add(message)
                    chaotic.redis.lpush(queue, message)

    double()
    with trouble(double, (0.005, 0.01)):
        chaotic.worker(concurrency=4)
        took = crowd.wait(PATIENCE_S)

    assert len(seen) >= crowd.size
    report("every message twice", took_s=took, doubled=len(seen), **crowd.check())
    # No kill happened, so doubling alone must not even have repeated an effect.
    assert chaotic.sql("select 1 from ledger where what not like 'attempt%%' group by instance, position, what having count(*) > 1") == []


def test_dropped_messages_cost_time_and_nothing_else(chaotic: Stack) -> None:
    crowd = Crowd(chaotic, number(160))
    crowd.start()
    dropped = 0

    def drop() -> None:
        nonlocal dropped
        for queue in QUEUES:
            if random.random() < 0.4 and chaotic.redis.lpop(queue) is not None:
                dropped += 1

    for _ in range(crowd.size // 2):
        drop()
    with trouble(drop, (0.02, 0.05)):
        chaotic.worker(concurrency=4)
        took = crowd.wait(PATIENCE_S)

    report("messages dropped", took_s=took, dropped=dropped, **crowd.check())
    assert dropped > 10


def test_a_step_that_kills_its_worker_fails_after_three_and_does_not_travel_for_ever(chaotic: Stack) -> None:
    chaotic.worker(concurrency=4)
    crowd = Crowd(chaotic, number(60), (*SHAPES, "poison"))

    crowd.start()
    took = crowd.wait(PATIENCE_S)

    poisoned = [instance_id for instance_id, shape in crowd.started.items() if shape == "poison"]
    for instance_id in poisoned:
        assert chaotic.runner.get_workflow_status(instance_id)["error"]["code"] == "worker_crashed"
        # Its neighbours in a process are never the ones that die, so each was hit three times: not fewer, not more.
        assert chaotic.sql("select count(*) from ledger where instance = %s and what = 'about to crash'", instance_id) == [(3,)]
    report("steps that segfault", took_s=took, poisoned=len(poisoned), **crowd.check())


def test_a_frozen_worker_that_comes_back_is_fenced(chaotic: Stack) -> None:
    frozen = chaotic.worker(concurrency=2)
    ids = [chaotic.runner.start_workflow("slowly", input={}) for _ in range(2)]
    until(lambda: chaotic.sql("select count(*) from ledger where what = 'begin'")[0][0] >= 2)
    frozen.freeze()
    chaotic.worker(concurrency=2)

    for instance_id in ids:
        assert chaotic.ended(instance_id, PATIENCE_S)["status"] == "COMPLETED"
    frozen.thaw()

    until(lambda: "nothing was committed here" in frozen.log.read_text(), 30, "the fenced writer says so")
    for instance_id in ids:
        assert len(chaotic.runner.history(instance_id)) == 3


def test_workers_frozen_past_their_leases_again_and_again_commit_nothing_twice(chaotic: Stack) -> None:
    chaotic.worker()
    chaotic.worker()
    frozen: list[Worker] = []

    def freeze_the_other() -> None:
        for worker in frozen:
            worker.thaw()
        before, frozen[:] = list(frozen), [random.choice([w for w in chaotic.workers if w not in frozen])]
        for worker in frozen:
            worker.freeze()
        assert before != frozen

    crowd = Crowd(chaotic, number(120))
    with trouble(freeze_the_other, (4.0, 5.0)):
        crowd.start()
        took = crowd.wait(PATIENCE_S)
    for worker in frozen:
        worker.thaw()

    fenced = sum(worker.log.read_text().count("nothing was committed here") for worker in chaotic.workers)
    report("workers frozen past their leases", took_s=took, fenced=fenced, **crowd.check())


def test_a_worker_whose_clock_is_an_hour_wrong_does_no_harm(chaotic: Stack, tmp_path: Path) -> None:
    skew = tmp_path / "skew"
    skew.mkdir()
    (skew / "sitecustomize.py").write_text(
        "import os, time\n_t = time.time\n_s = float(os.environ['SKEW'])\ntime.time = lambda: _t() + _s\n"
    )
    for seconds in ("3600", "-3600"):
        chaotic.worker(concurrency=2, PYTHONPATH=f"{skew}:{Path.cwd()}", SKEW=seconds)
    crowd = Crowd(chaotic, number(120))

    crowd.start()
    took = crowd.wait(PATIENCE_S)

    report("clocks an hour wrong", took_s=took, **crowd.check())
    spans = chaotic.sql(
        "select extract(epoch from max(l.at) - min(l.at))::float8 from ledger l join instances i on i.id::text = l.instance"
        " where i.workflow = 'naps' group by l.instance"
    )
    assert all(1.2 <= row[0] < 30 for row in spans)


def test_a_killed_child_is_replaced_long_before_its_lease_is_over(chaotic: Stack) -> None:
    worker = chaotic.worker(concurrency=2, LEASE="120", HEARTBEAT="5")
    delays = []
    for _ in range(number(4, 40)):
        instance_id = chaotic.runner.start_workflow("slowly", input={})
        until(lambda i=instance_id: chaotic.sql("select pid from ledger where instance = %s", i))  # type: ignore[misc]
        pid = chaotic.sql("select pid from ledger where instance = %s order by id desc limit 1", instance_id)[0][0]
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda i=instance_id, p=pid: chaotic.sql("select 1 from ledger where instance = %s and pid <> %s", i, p))  # type: ignore[misc]
        delays.append(time.monotonic() - killed)
        assert chaotic.ended(instance_id)["status"] == "COMPLETED"
    assert worker.process.poll() is None
    report("child killed → step runs again", p50_s=percentile(delays, 0.5), p99_s=percentile(delays, 0.99))
    assert max(delays) < 60


def test_a_lost_host_is_replaced_when_its_lease_is_over(chaotic: Stack) -> None:
    lease_s = 3.0
    delays = []
    for _ in range(number(2, 20)):
        doomed = chaotic.worker(concurrency=1)
        instance_id = chaotic.runner.start_workflow("slowly", input={})
        until(lambda i=instance_id: chaotic.sql("select 1 from ledger where instance = %s", i))  # type: ignore[misc]
        chaotic.worker(concurrency=1)
        pids = [row[0] for row in chaotic.sql("select distinct pid from ledger where instance = %s", instance_id)]
        if set(pids) & set(doomed.children()) and chaotic.state(instance_id) == "RUNNING":
            doomed.kill()
            killed = time.monotonic()
            until(lambda i=instance_id, p=pids: chaotic.sql("select 1 from ledger where instance = %s and pid <> all (%s)", i, p))  # type: ignore[misc]
            delays.append(time.monotonic() - killed)
        assert chaotic.ended(instance_id)["status"] == "COMPLETED"
        for worker in chaotic.workers:
            worker.kill()
    report("host lost → step runs again", p50_s=percentile(delays, 0.5), p99_s=percentile(delays, 0.99), lost=len(delays))
    assert all(delay <= lease_s + patient(10.0) for delay in delays)
