"""Servers for the tests that need them: started once, on free ports, in a temporary folder, ended at the end."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator.config import process
from orchestrator.config.settings import SCHEMA
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.store import migrate
from tests.stack import Stack

# A stack that runs in this folder, or a developer's own variables, must not leak into the tests.
for name in ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"):
    os.environ.pop(name, None)
os.environ["ORCHESTRATOR_HOME"] = "/nonexistent/orchestrator-tests"


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


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("pg") / "postgres", any_free())
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
