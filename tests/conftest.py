"""Servers for the tests that need them: started once, on free ports, in a temporary folder, ended at the end.

Of the processes that share the tests (pytest-xdist), each has servers and ports of its own; the tests of a file stay together.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from orchestrator.config import process
from orchestrator.config.settings import SCHEMA
from orchestrator.dev import ports
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.store import migrate
from tests.pace import patient
from tests.stack import Stack

# A stack that runs in this folder, or a developer's own variables, must not leak into the tests.
for name in ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"):
    os.environ.pop(name, None)
os.environ["ORCHESTRATOR_HOME"] = "/nonexistent/orchestrator-tests"

# Ports of tests lie below those that a stack under test takes for itself, and each process has its part of them.
_FIRST, _LAST = 21_000, 28_000
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_each = (_LAST - _FIRST) // _processes
_first = _FIRST + _each * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ports._RANGE, ports._given = (_first, _first + _each), deque(maxlen=min(1_000, _each // 2))

# How fast examples are made and tried is the machine's affair.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# These start stacks that take the usual ports where they are free: one after another.
USUAL_PORTS = (
    "integration/test_dev.py",
    "proofs/test_the_stack.py",
    "acceptance/test_examples.py",
    "acceptance/test_beginning.py",
    "docs/test_pages.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group("usual ports" if path.endswith(USUAL_PORTS) else path))
        limit = item.get_closest_marker("timeout")
        item.add_marker(pytest.mark.timeout(patient(float(limit.args[0] if limit else config.getini("timeout")))), append=False)


def _forgetting(act: Any) -> Any:
    """A variable that a test sets or takes away is read anew by the settings of its process."""

    @functools.wraps(act)
    def acted(*arguments: Any, **options: Any) -> Any:
        result = act(*arguments, **options)
        process.forget()
        return result

    return acted


for name in ("setenv", "delenv", "undo"):
    setattr(pytest.MonkeyPatch, name, _forgetting(getattr(pytest.MonkeyPatch, name)))


# Processes are waited for as long as this machine may need for them.
def _wait(self: Any, timeout: float | None = None, wait: Any = subprocess.Popen.wait) -> Any:
    return wait(self, timeout=None if timeout is None else patient(timeout))


def _communicate(self: Any, input: Any = None, timeout: float | None = None, communicate: Any = subprocess.Popen.communicate) -> Any:
    return communicate(self, input=input, timeout=None if timeout is None else patient(timeout))


subprocess.Popen.wait, subprocess.Popen.communicate = _wait, _communicate  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("pg") / "postgres", any_free(), durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis") / "redis", any_free())
    server.start()
    yield server
    server.stop()


_numbers = iter(range(1, 10_000))


def fresh_database(postgres: Postgres) -> str:
    """A database of its own, cloned from a migrated one."""
    with psycopg.connect(postgres.url, autocommit=True) as c:
        if not c.execute("select 1 from pg_database where datname = 'migrated'").fetchone():
            c.execute("create database migrated")
            migrate.upgrade(postgres.url.rsplit("/", 1)[0] + "/migrated", SCHEMA)
        name = f"test_{next(_numbers)}"
        c.execute(f"create database {name} template migrated")
        # For connections of the tests' own: they look into the engine's tables by their names.
        c.execute(f"alter database {name} set search_path = {SCHEMA}, public")
    return postgres.url.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    return fresh_database(postgres)


@pytest.fixture
def stack(postgres: Postgres, redis_server: Redis, tmp_path: Path) -> Iterator[Stack]:
    """Real workers on request, over a database and a Redis database of their own."""
    made = Stack(fresh_database(postgres), redis_server, tmp_path)
    yield made
    made.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test that failed on a stack says how that stands."""
    report = yield
    held = getattr(item, "funcargs", {}).get("stack")
    if report.failed and report.when == "call" and isinstance(held, Stack):
        try:
            report.sections.append(("the stack", held.stands()))
        except Exception as error:
            report.sections.append(("the stack", f"cannot be looked at: {error}"))
    return report
