"""Redis away, refusing or hanging: starts are accepted all the same, within seconds, and run when it is back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.proofs.served import served
from tests.stack import Stack

PACE = max(1.0, float(os.environ.get("TEST_PACE", "1")))
QUICK = {"QUEUE_GRACE": "2", "HEARTBEAT": "1", "LEASE": "5"}


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("own") / "redis", any_free())
    server.start()
    yield server
    with contextlib.suppress(psutil.Error, OSError):
        process_of(server).send_signal(signal.SIGCONT)
    server.stop()


@pytest.fixture
def own(postgres: Postgres, own_redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), own_redis, tmp_path_factory.mktemp("own"))
    made.environment.update(QUICK)
    yield made
    made.stop()


@pytest.fixture
def api(own: Stack) -> Iterator[httpx.Client]:
    own.runner  # noqa: B018  # its tables are there
    with served(own) as client:
        yield client


def process_of(server: Redis) -> psutil.Process:
    return next(
        child
        for child in psutil.Process().children(recursive=True)
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == server.port for one in child.net_connections("tcp"))
    )


def hangs(server: Redis) -> Callable[[], None]:
    process = process_of(server)
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT)


def refuses(server: Redis) -> Callable[[], None]:
    server.stop()
    return server.start


@pytest.mark.proves(13)
@pytest.mark.parametrize("make_away", [hangs, refuses])
def test_a_start_is_accepted_within_seconds_and_runs_when_redis_is_back(
    own: Stack, own_redis: Redis, api: httpx.Client, make_away: Callable[[Redis], Callable[[], None]]
) -> None:
    own.worker()
    began = api.post("/workflow/start/numbered", json={"data": {"n": 0}}).json()["instanceId"]
    own.ended(began)
    bring_back = make_away(own_redis)
    started, took = [], []
    try:
        for n in range(3):
            at = time.monotonic()
            answer = api.post("/workflow/start/numbered", json={"data": {"n": n}})
            took.append(time.monotonic() - at)
            assert answer.status_code == 201, answer.text
            started.append(answer.json()["instanceId"])
        at = time.monotonic()
        sent = api.post("/workflow/events", json={"id": "away", "source": "test", "type": "t", "data": {}})
        took.append(time.monotonic() - at)
        assert sent.status_code == 202
        at = time.monotonic()
        health = api.get("/health")
        took.append(time.monotonic() - at)
        assert health.json()["components"]["redis"]["status"] == "unhealthy"
    finally:
        bring_back()
    assert max(took) < 15 * PACE, took
    for instance_id in started:
        assert own.ended(instance_id, 60)["status"] == "COMPLETED"
