"""One running stack for all tests of a module: they look only at instances of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.planes import Origin, gateway, own_ports
from tests.site import Site
from tests.stack import Stack


@pytest.fixture(scope="module")
def running(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("stack"))
    made.environment.update({"QUEUE_GRACE": "3"})
    made.worker(concurrency=4)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def site(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with gateway(folder) as plane, Origin() as origin:
        stack = Stack(fresh_database(postgres), redis_server, folder, workflows="orchestrator.workflows")
        stack.environment.update(
            plane.environment
            | own_ports()
            | {
                "CERTIFICATES_DIR": str(folder / "certificates"),
                "PROXY_DRAIN": "10s",
                "WORKER_STREAM_BLOCK": "200ms",
                "QUEUE_GRACE": "3",
            }
        )
        stack.worker(concurrency=4)
        with stack.bridge():
            yield Site(stack, plane, origin, folder)
        stack.stop()
