"""`orchestrator up`: everything in one terminal. Servers, migration, web, worker, beat, bridge, gateway, Flower; Ctrl-C stops it all.

What was started is written to `.orchestrator/stack.json`, so that the CLI, `celery -A orchestrator.app …` and Flower
in a second terminal of the same folder find it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psycopg
import redis

from orchestrator.config.settings import Settings, load
from orchestrator.config.stack import state_path
from orchestrator.dev.ports import LOOPBACK, answers, is_free, usual_or_free
from orchestrator.dev.servers import Postgres, Redis, ServerError
from orchestrator.store import migrate
from orchestrator.store.connection import Unfit, connect

COLOURS = {"web": 36, "worker": 32, "beat": 35, "flower": 33, "bridge": 96, "gateway": 95, "up": 34}
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 8.0


class UpError(Exception):
    """Why the stack does not come up, in a sentence."""


def processes(settings: Settings) -> dict[str, list[str]]:
    """The commands of the Procfile, as this stack runs them."""
    python = sys.executable
    celery = [python, "-m", "celery", "-A", "orchestrator.app"]
    return {
        "web": [
            python, "-m", "gunicorn", "-c", "python:orchestrator.api.serving", "orchestrator.api:create_app()", "--bind", f"{settings.host}:{settings.port}",
            "--workers", "1", "--threads", "8", "--log-level", "warning", "--no-control-socket",
        ],
        "worker": [*celery, "worker", "--loglevel", "INFO", "-E", "--without-gossip", "--without-mingle"],
        "beat": [*celery, "beat", "--loglevel", "WARNING", "--pidfile="],
        "bridge": [python, "-m", "orchestrator.cli", "bridge"],
        **({"gateway": [python, "-m", "orchestrator.cli", "gateway"]} if settings.data_plane == "gateway" else {}),
        "flower": [python, "-m", "orchestrator.cli", "flower", "--logging=warning"],
    }  # fmt: skip


@dataclass(slots=True)
class Child:
    name: str
    command: list[str]
    process: subprocess.Popen[str]
    since: float = field(default_factory=time.monotonic)
    restarts: int = 0


class Supervisor:
    def __init__(self, home: Path, *, echo: Callable[[str], None] = print) -> None:
        self.home = home
        self.echo = echo
        self.children: dict[str, Child] = {}
        self.servers: list[Postgres | Redis] = []
        self.stopping = threading.Event()
        self.coloured = sys.stdout.isatty()
        self._lock_file: IO[str] | None = None
        self._printing = threading.Lock()

    # ── the whole run ───────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        signal.signal(signal.SIGINT, lambda *_: self.stopping.set())
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        try:
            settings = self.start()
            self._await_ready(settings)
            if not self.stopping.is_set():
                self._print_addresses(settings)
            self._watch()
        except (UpError, ServerError) as error:
            self.say(f"error: {error}")
            return 1
        finally:
            self.stop()
        return 0

    def start(self) -> Settings:
        self._lock()
        environment = self._servers()
        os.environ.update(environment)
        settings = load()
        self._check_ports(settings)
        self._migrate(settings)
        self._write_state(environment)
        for name, command in processes(settings).items():
            self._start_child(name, command)
        return settings

    def _lock(self) -> None:
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.home / "lock").open("w")
        except OSError as error:
            raise UpError(f"the data folder {self.home} cannot be used: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UpError(f"a stack already runs from {self.home}; stop it first, or set ORCHESTRATOR_HOME to another folder") from None

    def _servers(self) -> dict[str, str]:
        # A state file of a run that was killed would point nowhere.
        state_path().unlink(missing_ok=True)
        environment = {}
        free = shutil.disk_usage(self.home).free
        if free < 200 * 1024 * 1024:
            raise UpError(f"only {free // 1024 // 1024} MiB are free where {self.home} lies; PostgreSQL needs room")
        for variable, server_class, port in (("DATABASE_URL", Postgres, 5432), ("REDIS_URL", Redis, 6379)):
            if os.environ.get(variable):
                continue
            server = server_class(self.home / server_class.name, usual_or_free(port))
            self.servers.append(server)
            server.start()
            environment[variable] = server.url
        return environment | self._gateway()

    def _gateway(self) -> dict[str, str]:
        """Its usual ports or free ones, a token of this run, and files in the data folder."""
        given = {
            "GATEWAY_HTTP_PORT": str(usual_or_free(8080)),
            "GATEWAY_HTTPS_PORT": str(usual_or_free(8443)),
            "GATEWAY_ADMIN_URL": f"http://{LOOPBACK}:{usual_or_free(9180)}",
            "GATEWAY_TOKEN": secrets.token_urlsafe(24),
            "GATEWAY_STATE": str(self.home / "gateway.json"),
            "CERTIFICATES_DIR": str(self.home / "certificates"),
            "BRIDGE_PORT": str(usual_or_free(9108)),
        }
        return {name: value for name, value in given.items() if not os.environ.get(name)}

    def _check_ports(self, settings: Settings) -> None:
        for variable, port in (("PORT", settings.port), ("FLOWER_PORT", settings.flower_port)):
            if not is_free(port):
                raise UpError(f"port {port} is in use by another program; stop it, or set {variable} to a free port")

    def _migrate(self, settings: Settings) -> None:
        try:
            for remark in migrate.upgrade(settings.database_url, settings.database_schema):
                self.say(remark)
        except Unfit as error:
            raise UpError(str(error)) from None
        except psycopg.OperationalError as error:
            raise UpError(f"the database does not answer: {str(error).strip().splitlines()[-1]}") from None
        try:
            redis.Redis.from_url(settings.redis_url, socket_connect_timeout=3).ping()
        except redis.RedisError as error:
            raise UpError(f"Redis does not answer: {error}") from None

    def _write_state(self, environment: dict[str, str]) -> None:
        path = state_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps({"pid": os.getpid(), "environment": environment}))

    # ── children ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_child(self, name: str, command: list[str], restarts: int = 0) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "ORCHESTRATOR_PROCESS": name}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        self.children[name] = Child(name, command, process, restarts=restarts)
        threading.Thread(target=self._pump, args=(name, process), daemon=True).start()

    def _pump(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                self.say(line.rstrip(), name)

    def say(self, text: str, name: str = "up") -> None:
        prefix = f"{name:<7}| "
        if self.coloured:
            prefix = f"\033[{COLOURS.get(name, 37)}m{prefix}\033[0m"
        with self._printing, contextlib.suppress(BrokenPipeError):
            self.echo(prefix + text)

    def _await_ready(self, settings: Settings) -> None:
        checks: dict[str, Callable[[], bool]] = {
            "web": lambda: answers(settings.port),
            "worker": lambda: _has_worker(settings),
            "flower": lambda: answers(settings.flower_port),
        }
        deadline = time.monotonic() + READY_TIMEOUT_S
        while checks and not self.stopping.is_set():
            for name in list(checks):
                code = self.children[name].process.poll()
                if code is not None:
                    raise UpError(f"{name} ended with exit code {code} while starting; its last lines stand above")
                if checks[name]():
                    del checks[name]
            if time.monotonic() > deadline:
                raise UpError(f"{', '.join(checks)} did not become ready within {READY_TIMEOUT_S:.0f} s")
            self.stopping.wait(0.05)

    def _print_addresses(self, settings: Settings) -> None:
        self.say(f"api      http://{settings.host}:{settings.port}")
        if settings.data_plane == "gateway":
            self.say(f"proxies  http://{LOOPBACK}:{settings.gateway_http_port} and https on {settings.gateway_https_port}, by Host and SNI")
        if settings.bridge_port:
            self.say(f"bridge   http://{LOOPBACK}:{settings.bridge_port}/health and /metrics")
        self.say(f"flower   http://{LOOPBACK}:{settings.flower_port}")
        self.say(f"postgres {settings.database_url.split('@')[-1] if '@' in settings.database_url else settings.database_url}")
        self.say(f"redis    {settings.redis_url.split('@')[-1]}")
        self.say("try      .venv/bin/orchestrator start hello --wait    (in a second terminal, same folder)")
        self.say("ready")

    def _watch(self) -> None:
        """Until Ctrl-C: a child that dies is started again."""
        while not self.stopping.wait(0.2):
            for server in self.servers:
                if server.process is not None and server.process.poll() is not None:
                    raise UpError(f"{server.name} ended; its log is {server.log}")
            for child in list(self.children.values()):
                code = child.process.poll()
                if code is None:
                    continue
                quick = time.monotonic() - child.since < 5
                restarts = child.restarts + 1 if quick else 0
                if restarts > 5:
                    raise UpError(f"{child.name} keeps ending at once (exit code {code})")
                self.say(f"{child.name} ended with exit code {code} and is started again")
                self._start_child(child.name, child.command, restarts)

    def stop(self) -> None:
        for child in self.children.values():
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in self.children.values():
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # What it held is taken back when its lease ends.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
        for server in reversed(self.servers):
            server.stop()
        state_path().unlink(missing_ok=True)
        if self.children:
            self.say("stopped")


def _has_worker(settings: Settings) -> bool:
    try:
        with connect(settings.database_url, settings.database_schema, timeout_s=2) as c:
            row = c.execute(
                "select 1 from workers where seen_at > now() - interval '15 seconds' and started_at > now() - interval '90 seconds'"
            ).fetchone()
            return row is not None
    except psycopg.Error:
        return False


def home_folder() -> Path:
    return state_path().parent
