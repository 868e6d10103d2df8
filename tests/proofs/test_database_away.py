"""PostgreSQL away: the API says so at once, holds no thread for it, and goes on by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.proofs.served import answers, served
from tests.stack import Stack, until

PACE = max(1.0, float(os.environ.get("TEST_PACE", "1")))


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that nobody else uses."""
    server = Postgres(tmp_path_factory.mktemp("own") / "postgres", any_free(), durable=False)
    server.start()
    yield server
    with contextlib.suppress(psutil.Error):
        every(server, signal.SIGCONT)
    server.stop()


@pytest.fixture
def api(own_postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    stack = Stack(fresh_database(own_postgres), redis_server, tmp_path_factory.mktemp("web"))
    with served(stack) as client:
        yield client
    stack.stop()


def every(server: Postgres, sign: signal.Signals) -> None:
    pid = int((server.folder / "postmaster.pid").read_text().split()[0])
    for one in [psutil.Process(pid), *psutil.Process(pid).children()]:
        one.send_signal(sign)


def stopped(server: Postgres) -> Callable[[], None]:
    server.stop()
    return server.start


def frozen(server: Postgres) -> Callable[[], None]:
    every(server, signal.SIGSTOP)
    return lambda: every(server, signal.SIGCONT)


@pytest.mark.proves(13)
@pytest.mark.parametrize("make_away", [stopped, frozen])
def test_requests_are_refused_at_once_and_liveness_needs_no_database(
    api: httpx.Client, own_postgres: Postgres, make_away: Callable[[Postgres], Callable[[], None]]
) -> None:
    bring_back = make_away(own_postgres)
    threads = [threading.Thread(target=lambda: contextlib.suppress(Exception) and api.get("/workflow/instances")) for _ in range(12)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert api.get("/health/live").status_code == 200
    assert time.monotonic() - began < 5 * PACE, "a thread was free"
    for thread in threads:
        thread.join()

    took = []
    for _ in range(5):
        began = time.monotonic()
        answer = api.get("/workflow/instances")
        took.append(time.monotonic() - began)
        assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1")
    assert max(took) < PACE

    bring_back()
    until(lambda: answers(api), 20)


@pytest.mark.proves(65)
def test_a_server_that_takes_no_writes_is_away_for_writes_alone(api: httpx.Client, own_postgres: Postgres) -> None:
    import psycopg

    with psycopg.connect(own_postgres.url, autocommit=True) as c:
        c.execute("alter system set default_transaction_read_only = on")
        c.execute("select pg_reload_conf()")
    until(lambda: api.post("/workflow/events", json={"id": "1", "source": "s", "type": "t"}).status_code == 503, 20)
    assert api.get("/workflow/instances").status_code == 200
