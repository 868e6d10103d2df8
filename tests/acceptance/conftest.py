"""One running stack for all tests of a module: they look only at instances of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.stack import Stack


@pytest.fixture(scope="module")
def running(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("stack"))
    made.environment.update({"QUEUE_GRACE": "3"})
    made.worker(concurrency=4)
    yield made
    made.stop()
