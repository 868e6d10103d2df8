"""Real worker processes under a test's control: started, killed, frozen and ended by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import redis

from orchestrator.app import app
from orchestrator.config.settings import Settings
from orchestrator.dev.servers import Redis
from orchestrator.engine.publish import Publisher
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.store.connection import Database
from tests import commands
from tests.pace import patient

T = TypeVar("T")
LEDGER = (
    "create table if not exists ledger (id bigserial primary key, instance text, position text, what text, pid int,"
    " at timestamptz default clock_timestamp())"
)


def until(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "") -> T:
    """Wait for a condition, with a deadline; gives what the condition gave."""
    deadline = time.monotonic() + patient(timeout_s)
    pause = 0.005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patient(timeout_s):.0f} s: {(what() if callable(what) else what) or condition}")
        time.sleep(pause)  # between two looks at a condition
        pause = min(pause * 1.5, 0.1)


@dataclass
class Worker:
    process: commands.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []

    def kill(self) -> None:
        """As a host that is lost: parent and children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def terminate(self, timeout_s: float = 30) -> int:
        self.process.terminate()
        return self.process.wait(timeout_s)


@dataclass
class Stack:
    database_url: str
    redis_server: Redis
    folder: Path
    workflows: str = "tests.workflows"
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    _runner: WorkflowRunner | None = None

    def __post_init__(self) -> None:
        # Every test begins with an empty Redis; the app's connections to it are those of the whole session.
        self.redis_url = self.redis_server.url
        self.redis = redis.Redis.from_url(self.redis_url, decode_responses=True)
        self.redis.flushall()
        with psycopg.connect(self.database_url, autocommit=True) as c:
            c.execute(LEDGER)
        app.conf.update(broker_url=self.redis_url, result_backend=self.redis_url)

    @property
    def settings(self) -> Settings:
        return Settings(
            database_url=self.database_url,
            redis_url=self.redis_url,
            workflows=tuple(self.workflows.split(",")),
            config_dir=str(self.folder / "config"),
        )

    @property
    def runner(self) -> WorkflowRunner:
        if self._runner is None:
            runtime = Runtime(self.settings, Database(self.database_url), Publisher(app, helpers=256))
            self._runner = WorkflowRunner(runtime)
            self._runner.initialize()
        return self._runner

    def variables(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "ORCHESTRATOR_WORKFLOWS": self.workflows,
            "CONFIG_DIR": str(self.folder / "config"),
            "OUTPUT_DIR": str(self.folder / "output"),
            "PYTHONUNBUFFERED": "1",
            # Several workers at once, here and in other runs on this machine.
            "METRICS_PORT": "0",
            "HEALTH_PORT": "0",
            "PYTHONWARNINGS": "default",
            **self.environment,
            **more,
        }

    def worker(self, *arguments: str, concurrency: int = 2, wait: bool = True, **variables: str) -> Worker:
        log = self.folder / f"worker-{len(self.workers)}.log"
        with log.open("wb") as out:
            process = commands.start(
                [
                    "celery", "-A", "orchestrator.app", "worker", "-c", str(concurrency), "--loglevel", "INFO",
                    "-n", f"w{len(self.workers)}-{os.getpid()}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat",
                    *arguments,
                ],
                self.variables(**variables), out, start_new_session=True,
            )  # fmt: skip
        worker = Worker(process, log)
        self.workers.append(worker)
        if wait:
            until(lambda: "ready." in log.read_text() or process.poll() is not None, 60, f"worker ready: {log}")
            assert process.poll() is None, log.read_text()
        return worker

    @contextlib.contextmanager
    def bridge(self, **variables: str) -> Iterator[commands.Process]:
        log = self.folder / f"bridge-{len(list(self.folder.glob('bridge-*')))}.log"
        with log.open("wb") as out:
            process = commands.start(["orchestrator", "bridge"], self.variables(**variables), out)
        try:
            until(lambda: "reads" in log.read_text() or process.poll() is not None, 30, str(log))
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()
            process.wait()

    def cli(self, *arguments: str, input: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return commands.run(arguments, self.variables(**variables), input=input)

    def run(self, workflow: str, input: Any = None, timeout_s: float = 30.0, **options: Any) -> dict[str, Any]:
        """Start and wait for the end."""
        return self.ended(self.runner.start_workflow(workflow, input=input, **options), timeout_s)

    def state(self, instance_id: str) -> str:
        row = self.runner.database.connection().execute("select state from instances where id = %s", (instance_id,)).fetchone()
        assert row is not None
        return str(row[0])

    def ended(self, instance_id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        until(lambda: self.state(instance_id) in ("COMPLETED", "FAILED", "CANCELLED"), timeout_s, f"{instance_id} ends; {self.logs()}")
        return self.runner.get_workflow_status(instance_id)

    def logs(self) -> str:
        return "\n".join(f"--- {worker.log}\n{worker.log.read_text()[-3000:]}" for worker in self.workers)

    def stands(self) -> str:
        """What lies where, for whoever reads of a failure: branches that are not closed, the broker's keys and clients, logs."""
        told = [
            *self.sql(
                "select instance_id::text, position, state, generation, claims, queue, owner, queued_at from branches where state <> 'closed'"
            ),
            *self.sql("select id::text, workflow, state, error from instances order by created_at desc limit 20"),
            *((key, self.redis.type(key), self._size(key)) for key in sorted(self.redis.keys("*"))[:60]),  # type: ignore[arg-type]
            *((client["addr"], client["cmd"], client["idle"], client["flags"]) for client in self.redis.client_list()),
        ]
        return "\n".join([*map(repr, told), self.logs()])

    def _size(self, key: str) -> object:
        match self.redis.type(key):
            case "list":
                return self.redis.llen(key)
            case "set":
                return self.redis.smembers(key)
            case "hash":
                return self.redis.hlen(key)
        return ""

    def sql(self, text: str, *arguments: Any) -> list[Any]:
        return self.runner.database.connection().execute(text, arguments).fetchall()

    def stop(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.thaw()
                worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
        if self._runner is not None:
            self._runner.database.drop()
        self.redis.close()
