"""`orchestrator up`: everything in one terminal. Servers, migration, web, worker, beat, bridge, gateway, Flower; Ctrl-C stops it all.

What was started is written to `.orchestrator/stack.json`, so that the CLI, `celery -A orchestrator.app …` and Flower in a second
terminal of the same folder find it. What dies is started again, sooner at first and then less often; when this process itself dies,
however it does, a guard beside it stops the rest (`guard.py`), and the next one finds what even that could not (`state.py`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from orchestrator import reach
from orchestrator.config import process as process_settings
from orchestrator.config.environment import ENVIRONMENT, FILE
from orchestrator.config.processes import began
from orchestrator.config.settings import Settings
from orchestrator.config.stack import FOLDER
from orchestrator.dev import guard
from orchestrator.dev.ending import SERVER, Process, end, process
from orchestrator.dev.ports import LOOPBACK, answers, any_free, is_free, usual_or_free
from orchestrator.dev.servers import Postgres, Redis, ServerError
from orchestrator.dev.state import GUARD, FolderError, Home
from orchestrator.dev.terminal import Terminal
from orchestrator.dev.watching import Watch, needs_a_new_start
from orchestrator.errors import Invalid
from orchestrator.store import definitions, migrate
from orchestrator.store.connection import Unfit, connect

READY_TIMEOUT_S = 60.0
LIVED_LONG_S = 30.0
LONGEST_PAUSE_S = 30.0
TRIES_AT_START = 3
EXIT_REFUSED = 2
# Not where a developer's own root shell is the only one there is.
WORKER_WARNING = "ignore:You're running the worker with superuser privileges"


class UpError(Exception):
    """Why the stack does not come up, in a sentence."""


def commands(settings: Settings, *, reloads: bool = False) -> dict[str, list[str]]:
    """What the Procfile runs, as this stack runs it."""
    python, cli = sys.executable, [sys.executable, "-m", "orchestrator.cli"]
    celery = [python, "-W", WORKER_WARNING, "-m", "celery", "-q", "-A", "orchestrator.app"]
    reloading = [python, "-W", WORKER_WARNING, "-m", "orchestrator.cli.reloading"]
    worker = ["-E", "--without-gossip", "--without-mingle"]
    return {
        "web": [*cli, "web"],
        "worker": [*reloading, "worker", *worker] if reloads else [*celery, "worker", *worker],
        "beat": [*celery, "beat", "--pidfile="],
        "bridge": [*reloading, "bridge"] if reloads else [*cli, "bridge"],
        **({"gateway": [*cli, "gateway"]} if settings.data_plane == "gateway" else {}),
        "flower": [*cli, "flower"],
    }


@dataclass(slots=True)
class Deaths:
    """How long to leave something alone that died: nothing at first, then longer and longer, until it lives long again."""

    number: int = 0
    again_at: float = 0.0

    def count(self, lived_s: float) -> float:
        """One more; gives the pause before the next start."""
        self.number = 1 if lived_s > LIVED_LONG_S else self.number + 1
        pause_s = 0.0 if self.number == 1 else min(LONGEST_PAUSE_S, 2.0 ** (self.number - 2))
        self.again_at = time.monotonic() + pause_s
        return pause_s

    @property
    def is_time(self) -> bool:
        return time.monotonic() >= self.again_at


@dataclass(slots=True)
class Service:
    """A process of this project."""

    name: str
    command: list[str]
    child: subprocess.Popen[str] | None = None
    since: float = 0.0
    deaths: Deaths = field(default_factory=Deaths)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class Supervisor:
    def __init__(self, home: Path | None = None, *, dev: bool = False, echo: Callable[[str], None] = print) -> None:
        self.dev = dev
        self.terminal = Terminal(echo)
        self.say = self.terminal.say
        self.services: dict[str, Service] = {}
        self.servers: list[Postgres | Redis] = []
        self.stopping = threading.Event()
        self.home = Home(home or Path(FOLDER))
        self._home_is_given = home is not None
        self._signals = 0
        self._guard: subprocess.Popen[str] | None = None
        self._server_deaths: dict[str, Deaths] = {}
        self._watch: Watch | None = None
        self._began_at: dict[str, float] = {}
        self._told_of_folder = False

    # ── the whole run ───────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` has it ignored: then a closed terminal is to change nothing.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._told)
        try:
            settings = self.start()
            self._await_ready(settings)
            if not self.stopping.is_set():
                self._print_addresses(settings)
            self._look_after()
        except Invalid as error:
            self.say(f"error: {error}")
            return EXIT_REFUSED
        except (UpError, ServerError, FolderError, reach.Away) as error:
            if not self.stopping.is_set():
                self.say(f"error: {error}")
                return 1
        finally:
            self.stop()
        return 0

    def _told(self, number: int, _: object) -> None:
        self._signals += 1
        self.stopping.set()
        if number == signal.SIGHUP:
            # Who closes a terminal does so once, and what hangs on it may be told more than once.
            self._signals = 1

    def start(self) -> Settings:
        loaded = process_settings.loaded()
        for warning in loaded.warnings:
            self.say(f"warning: {warning}")
        if not self._home_is_given:
            self.home = Home(Path(loaded.settings.home))
        self.home.take(self.say)
        self.home.end_left_behind(self.say)
        self._tell_guard()
        given = {name for name, source in loaded.sources.items() if source in (ENVIRONMENT, FILE)}
        environment = {**self._ports(loaded.settings, given), **self._paths(loaded.settings, given), **self._servers(given)}
        if self.dev:
            # What was compiled a second ago may be of the same second and size as what is there now.
            environment |= {"DEV_MODE": "true", "PYTHONDONTWRITEBYTECODE": "1"}
            # macOS ends children of processes that do not begin a program of their own; these connect to nothing before.
            environment |= {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"} if sys.platform == "darwin" else {}
        os.environ.update(environment)
        process_settings.forget()
        settings = process_settings.settings()
        self._migrate(settings)
        self.home.write_stack(environment)
        if self.dev:
            self._watch = Watch(Path.cwd(), settings.workflows)
        for name, command in commands(settings, reloads=self.dev).items():
            self.services[name] = Service(name, command)
            self._start_service(self.services[name])
        return settings

    # ── what it needs ───────────────────────────────────────────────────────────────────────────────────────────────

    def _ports(self, settings: Settings, given: set[str]) -> dict[str, str]:
        """The usual ports, or free ones where a default is taken: by a second stack, say. A port that somebody chose must be free."""
        chosen = {
            "port": "PORT",
            "flower_port": "FLOWER_PORT",
            "gateway_http_port": "GATEWAY_HTTP_PORT",
            "gateway_https_port": "GATEWAY_HTTPS_PORT",
        }
        quiet = {"metrics_port": "METRICS_PORT", "health_port": "HEALTH_PORT", "bridge_port": "BRIDGE_PORT"}
        found: dict[str, str] = {}
        for name, variable in (chosen | quiet).items():
            wanted = getattr(settings, name) or (9108 if name == "bridge_port" else 0)
            if name in given:
                if name in chosen and wanted and not is_free(wanted):
                    raise UpError(f"Port {wanted} is in use by another program: stop it, or set {variable} to a free port.")
                continue
            free = usual_or_free(wanted)
            found[variable] = str(free)
            if free != wanted and name in ("port", "flower_port"):
                self.say(f"port {wanted} is in use by another program; {variable} is {free} for this run")
        if "gateway_admin_url" not in given:
            found["GATEWAY_ADMIN_URL"] = f"http://{LOOPBACK}:{usual_or_free(9180)}"
        if "web_workers" not in given:
            found["WEB_WORKERS"] = "1"
        if "gateway_token" not in given:
            found["GATEWAY_TOKEN"] = secrets.token_urlsafe(24)
        return found

    def _paths(self, settings: Settings, given: set[str]) -> dict[str, str]:
        folder = self.home.folder
        wanted = {
            "gateway_state": ("GATEWAY_STATE", "gateway.json"),
            "certificates_dir": ("CERTIFICATES_DIR", "certificates"),
            "output_dir": ("OUTPUT_DIR", "output"),
        }
        return {variable: str(folder / file) for name, (variable, file) in wanted.items() if name not in given}

    def _servers(self, given: set[str]) -> dict[str, str]:
        environment: dict[str, str] = {}
        for name, variable, server_class, port in (
            ("database_url", "DATABASE_URL", Postgres, 5432),
            ("redis_url", "REDIS_URL", Redis, 6379),
        ):
            if name in given:
                continue
            server = server_class(self.home.folder / server_class.name, usual_or_free(port))
            server.tell = self.say
            server.is_given_up = self.stopping.is_set
            self.servers.append(server)
            self._server_deaths[server.name] = Deaths()
            self._start_on_a_free_port(server)
            environment[variable] = server.url
        return environment

    def _start_on_a_free_port(self, server: Postgres | Redis) -> None:
        """Between the look whether a port is free and the moment it is listened on, another program may take it."""
        for _ in range(TRIES_AT_START):
            try:
                return self._start_server(server)
            except ServerError:
                if self.stopping.is_set() or is_free(server.port):
                    raise
                server.port = any_free()
        return self._start_server(server)

    def _start_server(self, server: Postgres | Redis) -> None:
        self._began_at[server.name] = time.monotonic()
        try:
            server.start()
        finally:
            self._note()

    def _migrate(self, settings: Settings) -> None:
        reach.await_servers(patience_s=2.0, told=self.say)
        try:
            for remark in migrate.upgrade(settings.database_url, settings.database_schema):
                self.say(remark)
        except Unfit as error:
            raise UpError(str(error)) from None
        except psycopg.Error as error:
            raise UpError(f"The tables could not be brought to this version: {reach.why(error)}.") from None

    # ── what runs ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_service(self, service: Service) -> None:
        service.said.clear()
        service.since = time.monotonic()
        service.child = subprocess.Popen(
            service.command,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, errors="replace", env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        assert service.child.stdout is not None
        self.terminal.pump(service.child.stdout, service.name, service.said.append)
        self._note()

    def _running(self) -> list[Process]:
        services = [
            process(one.name, one.child.pid) for one in self.services.values() if one.child is not None and one.child.poll() is None
        ]
        servers = [
            process(one.name, one.process.pid, SERVER, one.stops_on) for one in self.servers if one.process is not None and one.is_running()
        ]
        own = [process(GUARD, self._guard.pid)] if self._guard is not None else []
        return [*services, *servers, *own]

    def _note(self) -> None:
        """For the guard, and for whoever comes after both of us: what runs now."""
        try:
            self.home.write_processes(self._running())
            self._told_of_folder = False
        except FolderError as error:
            if not self._told_of_folder:
                self.say(f"warning: {error}")
            self._told_of_folder = True
        self._tell_guard()

    def _tell_guard(self) -> None:
        told = {
            "processes": [one.to_json() for one in self._running() if one.name != GUARD],
            "files": [str(file) for file in self.home.files],
        }
        for _ in range(2):
            if self._guard is None or self._guard.poll() is not None:
                # It holds the lock, too: nobody starts a stack here while it is ending what is left of this one.
                self._guard = subprocess.Popen(
                    guard.command(self.home.folder),
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    text=True, start_new_session=True, pass_fds=(self.home.lock_descriptor,), cwd="/",
                )  # fmt: skip
            assert self._guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(json.dumps(told) + "\n")
                self._guard.stdin.flush()
                return

    def _await_ready(self, settings: Settings) -> None:
        checks: dict[str, Callable[[], bool]] = {
            "web": lambda: answers(settings.port, _reached_at(settings.host)),
            "worker": lambda: _has_worker(settings),
            "flower": lambda: answers(settings.flower_port, _reached_at(settings.flower_host)),
        }
        deadline = time.monotonic() + READY_TIMEOUT_S
        while checks and not self.stopping.is_set():
            self._restart_what_died()
            for name in list(checks):
                service = self.services[name]
                if service.deaths.number >= TRIES_AT_START:
                    raise UpError(f"{name} ends whenever it is started; its last words: {' / '.join(list(service.said)[-3:]) or 'none'}")
                if checks[name]():
                    del checks[name]
            if time.monotonic() > deadline:
                raise UpError(f"{', '.join(checks)} did not become ready within {READY_TIMEOUT_S:.0f} s.")
            self.stopping.wait(0.05)

    def _print_addresses(self, settings: Settings) -> None:
        database, redis_place = reach.postgres(), reach.redis_server()
        embedded = {server.name for server in self.servers}
        self.say(f"api       http://{_reached_at(settings.host)}:{settings.port}")
        if settings.data_plane == "gateway":
            self.say(f"proxies   http://{LOOPBACK}:{settings.gateway_http_port}, https on {settings.gateway_https_port}")
        if settings.bridge_port:
            self.say(f"bridge    http://{LOOPBACK}:{settings.bridge_port}/health and /metrics")
        self.say(f"flower    http://{_reached_at(settings.flower_host)}:{settings.flower_port}")
        self.say(f"postgres  {database.address}{'' if 'postgres' in embedded else f' (yours, from {database.source})'}")
        self.say(f"redis     {redis_place.address}{'' if 'redis' in embedded else f' (yours, from {redis_place.source})'}")
        self.say("in a second terminal, in this folder:")
        self.say(f"try       {_shown_program('orchestrator')} {first_command(settings)}")
        self.say(f'          eval "$({_shown_program("orchestrator")} env)"   for psql and redis-cli')
        if self.dev:
            self.say("dev       code is loaded again when it changes; used versions are raised")
        self.say("ready")

    def _look_after(self) -> None:
        """Until Ctrl-C: what dies is started again; what changes is loaded again."""
        while not self.stopping.wait(0.1 if self._watch is None else 0.05):
            self._restart_what_died()
            if self._watch is not None and (changed := self._watch.changed()):
                self._reload(changed)

    def _restart_what_died(self) -> None:
        for server in self.servers:
            self._look_after_server(server)
        for service in self.services.values():
            self._look_after_service(service)
        if self._guard is not None and self._guard.poll() is not None:
            self._tell_guard()

    def _look_after_server(self, server: Postgres | Redis) -> None:
        deaths = self._server_deaths[server.name]
        if server.is_running() or self.stopping.is_set():
            return
        if server.process is not None:
            pause_s = deaths.count(time.monotonic() - self._began_at[server.name])
            self.say(f"{server.name} ended: {server.last_words()} (see {server.log}); it is started again{_in(pause_s)}")
            server.process = None
        if deaths.is_time:
            try:
                self._start_server(server)
            except ServerError as error:
                server.process = None
                pause_s = deaths.count(0.0)
                self.say(f"{error}; it is tried again{_in(pause_s)}")

    def _look_after_service(self, service: Service) -> None:
        if service.child is not None:
            code = service.child.poll()
            if code is None:
                return
            # Children of its own that it left behind would work beside the next one.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(service.child.pid, signal.SIGKILL)
            pause_s = service.deaths.count(time.monotonic() - service.since)
            service.child = None
            self.say(f"{service.name} ended {_with(code)}; it is started again{_in(pause_s)}")
            self._note()
        if service.deaths.is_time and not self.stopping.is_set():
            self._start_service(service)

    # ── development ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reload(self, changed: set[Path]) -> None:
        shown = ", ".join(sorted(_short(path) for path in changed)[:3]) + (" …" if len(changed) > 3 else "")
        anew = needs_a_new_start(changed)
        self.say(f"{shown} changed: web, worker and bridge {'are started again' if anew else 'load it'}")
        for name in ("worker", "web", "bridge"):
            service = self.services[name]
            service.deaths = Deaths()
            if service.child is None or service.child.poll() is not None:
                continue
            service.child.send_signal(signal.SIGTERM if anew else signal.SIGHUP)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        if not self.home.is_locked_here:
            return  # the folder is another stack's
        had = bool(self.services)
        self._signals = min(self._signals, 1)
        if had:
            self.say("stopping (Ctrl-C once more: without waiting for running steps)")
        killed = end([one for one in self._running() if one.name != GUARD], hurry=lambda: self._signals > 1, reap=self._reap)
        if killed and had:
            self.say(
                f"{', '.join(killed)} did not end in time and {'was' if len(killed) == 1 else 'were'} killed; running steps are taken up again"
            )
        for server in self.servers:
            server.stop()
        self._dismiss_guard()
        self.home.forget()
        self.home.release()
        if had:
            self.say("stopped")

    def _reap(self) -> None:
        for child in [*(one.child for one in self.services.values()), *(one.process for one in self.servers)]:
            if child is not None:
                child.poll()

    def _dismiss_guard(self) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._guard.stdin.write("null\n")
            self._guard.stdin.close()
        try:
            self._guard.wait(5)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # it holds the lock, which the next stack needs
            self._guard.wait()


def _in(pause_s: float) -> str:
    return f" in {pause_s:g} s" if pause_s else ""


def _with(code: int) -> str:
    return f"with exit code {code}" if code >= 0 else f"by signal {signal.Signals(-code).name}"


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _shown_program(name: str) -> str:
    """As somebody in this folder would type it."""
    return _short(Path(sys.executable).parent / name)


def _reached_at(host: str) -> str:
    """Where a server that listens on this address is reached from here."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return LOOPBACK if address.version == 4 else "::1"


def _has_worker(settings: Settings) -> bool:
    try:
        with connect(settings.database_url, settings.database_schema, timeout_s=2) as c:
            row = c.execute(
                "select 1 from workers where seen_at > now() - interval '15 seconds' and started_at > now() - interval '90 seconds'"
            ).fetchone()
            return row is not None
    except psycopg.Error:
        return False


def first_command(settings: Settings) -> str:
    """A start that works here: of a workflow that needs no input and whose code some worker has; `hello` if it is one."""
    try:
        with connect(settings.database_url, settings.database_schema, timeout_s=2) as c:
            found = [one for one in definitions.all_definitions(c) if one.tenant == "default"]
            rows = c.execute("select code from workers where seen_at > now() - interval '15 seconds'").fetchall()
    except psycopg.Error:
        return "workflows"
    here = {code for row in rows for code in row[0] or ()}
    ready = [
        one
        for one in definitions.newest(found, "default")
        if not _needs_input(one.tree) and {f"step:{type}" for type in _steps(one.tree)} <= here
    ]
    if not ready:
        return "workflows"
    first = min(ready, key=lambda one: (one.name != "hello", one.namespace != "default", one.id))
    return f"start {shlex.quote(first.name if first.namespace == 'default' else f'{first.namespace}.{first.name}')} --wait"


def _needs_input(tree: Any) -> bool:
    schema = ((tree.get("do") or {}).get("around") or {}).get("input_schema")
    return schema is not None and (not isinstance(schema, dict) or bool(schema.get("required")))


def _steps(part: Any) -> Iterator[str]:
    """The types of all steps of a tree."""
    if isinstance(part, dict):
        if part.get("is") == "step":
            yield str(part["type"])
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _steps(one)


def down(folder: Path, say: Callable[[str], None], *, timeout_s: float = 60.0) -> bool:
    """Stop the stack of this folder, from another terminal; whatever an earlier one left behind, too. False: there was none."""
    home = Home(folder)
    if not home.folder.is_dir():
        return False
    held = home.stack
    if held is None or not held.is_running:
        home.take(say)
        try:
            return home.end_left_behind(say) > 0
        finally:
            home.release()
    os.kill(held.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while began(held.pid) == held.began:
        if time.monotonic() > deadline:
            raise FolderError(f"The stack (process {held.pid}) did not stop within {timeout_s:g} s; its terminal says why.")
        time.sleep(0.05)  # it is no child of this process, so nobody tells when it is gone
    return True
