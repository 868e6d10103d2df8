"""A running stack for each module, one stand-in for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.serverless.standins import StandIn, standing_in
from tests.stack import Stack


@pytest.fixture(scope="package")
def standin() -> Iterator[StandIn]:
    with standing_in() as made:
        yield made


@pytest.fixture(scope="module")
def running(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("serverless"))
    made.environment.update({"QUEUE_GRACE": "3", "RUN_SCRIPTS": "1", "RUN_SHELL": "1", "SECRET_TOKEN": "s3cr3t-value"})
    made.worker(concurrency=4)
    yield made
    made.stop()
