"""Servers, workers and waiting, shared by all measures."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from orchestrator.config.settings import SCHEMA
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.store import migrate

if TYPE_CHECKING:
    from orchestrator.engine.runner import WorkflowRunner

CONCURRENCY = 4


class Rig:
    """One PostgreSQL (with fsync) and one Redis for all; our workers are started by measures that need them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
        self.postgres = Postgres(self.folder / "pg" / "postgres", any_free())
        self.redis = Redis(self.folder / "redis" / "redis", any_free())
        self._runner: WorkflowRunner | None = None

    def start(self) -> None:
        self.postgres.start()
        self.redis.start()
        base = self.postgres.url.rsplit("/", 1)[0]
        with psycopg.connect(self.postgres.url, autocommit=True) as c:
            for name in ("ours", "floor", "dbos"):
                c.execute(f"create database {name}")
        migrate.upgrade(f"{base}/ours", SCHEMA)
        os.environ.update(
            DATABASE_URL=f"{base}/ours",
            REDIS_URL=self.redis.url,
            DBOS_URL=f"{base}/dbos",
            ORCHESTRATOR_WORKFLOWS="benchmarks.workflows",
            ORCHESTRATOR_HOME="/nonexistent",
        )
        self.base = base

    def stop(self) -> None:
        self.redis.stop()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, database: str, redis_number: int) -> dict[str, str]:
        return {**os.environ, "DATABASE_URL": f"{self.base}/{database}", "REDIS_URL": f"{self.redis.url[:-1]}{redis_number}"}

    @contextmanager
    def worker(
        self, app: str, database: str = "ours", redis_number: int = 0, *, concurrency: int = CONCURRENCY, **variables: str
    ) -> Iterator[int]:
        log = self.folder / f"{app}.log"
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-P", "prefork", "-c", str(concurrency), "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env={**self.environment(database, redis_number), **variables}, stdout=out, stderr=out)
        try:
            wait_for(lambda: "ready." in log.read_text(), 60, str(log))
            yield process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()

    @contextmanager
    def ours(self, **variables: str) -> Iterator[WorkflowRunner]:
        with self.worker("orchestrator.app", **variables):
            runner = self.runner
            # The first message of each child opens its connections and reads the definitions.
            for _ in range(40):
                runner.start_workflow("ten", input={})
            self.all_done()
            yield runner

    @property
    def runner(self) -> WorkflowRunner:
        from orchestrator.engine.runner import WorkflowRunner

        if self._runner is None:
            self._runner = WorkflowRunner.instance()
        return self._runner

    def sql(self, text: str, *arguments: Any) -> list[Any]:
        return self.runner.database.connection().execute(text, arguments).fetchall()

    def log_statements(self, *, on: bool) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as c:
            c.execute("alter system set log_line_prefix = '%a '")
            c.execute(f"alter system set log_statement = '{'all' if on else 'none'}'")
            c.execute("select pg_reload_conf()")
        time.sleep(0.2)  # until every backend has read it

    def all_done(self, workflow: str | None = None, timeout_s: float = 300) -> None:
        query = "select 1 from instances where state not in ('COMPLETED', 'FAILED', 'CANCELLED') and (%s::text is null or workflow = %s) limit 1"
        wait_for(lambda: not self.sql(query, workflow, workflow), timeout_s, "all instances end")


def wait_for(condition: Callable[[], Any], timeout_s: float = 60, what: str = "", pause_s: float = 0.01) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(pause_s)  # between two looks
