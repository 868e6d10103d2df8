"""Do PostgreSQL and Redis answer? And when one does not: the sentence that says where it was looked for, who said so, and what to do.

A process that starts waits for them as long as STARTUP_TIMEOUT says; a command does not wait for what refuses its connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import redis
from kombu import Connection

from orchestrator.config import process
from orchestrator.config.environment import DEFAULT, STACK
from orchestrator.config.settings import Loaded, without_password
from orchestrator.errors import WorldError
from orchestrator.store.connection import connect

logger = logging.getLogger("orchestrator.reach")

AT_THE_DOOR = ("password", "authenticat", "noauth", "wrongpass")
"""What servers say to whom they do not let in."""
PAUSE_S = 0.5
TELL_AFTER_S = 2.0


class Away(WorldError):
    """A server that is needed does not answer."""

    code = "server_away"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is looked for."""

    what: str
    variable: str
    address: str
    source: str

    def away(self, why: str) -> Away:
        if any(word in why.lower() for word in AT_THE_DOOR):
            return Away(
                f"A {self.what} answers at {self.address} ({self.variable}, from {_article(self.source)}), and lets nobody in who does not"
                f' know its password. If it is another\'s, start a stack in this folder with "make up"; else set {self.variable} with it.'
            )
        if self.source in (DEFAULT, ""):
            return Away(
                f"Nothing runs here: no {self.what} answers at {self.address} ({self.variable}, default): {why}."
                f' Start a stack in this folder with "make up" ("orchestrator up"), or set {self.variable}.'
            )
        if self.source == STACK:
            return Away(
                f"The stack that runs here is not ready: no {self.what} answers at {self.address}: {why}."
                ' Wait for its "ready", or look at its terminal ("make up").'
            )
        return Away(
            f"No {self.what} answers at {self.address} ({self.variable}, from {_article(self.source)}): {why}."
            f' Start it, correct {self.variable}, or remove it and run "make up".'
        )


def _article(source: str) -> str:
    return f"the {source}" if source == "environment" else source or DEFAULT


def postgres(loaded: Loaded | None = None) -> Place:
    held = loaded or process.loaded()
    return Place("PostgreSQL", "DATABASE_URL", _shown(held.settings.database_url, 5432), held.sources.get("database_url", DEFAULT))


def redis_server(loaded: Loaded | None = None) -> Place:
    held = loaded or process.loaded()
    return Place("Redis", "REDIS_URL", _shown(held.settings.redis_url, 6379), held.sources.get("redis_url", DEFAULT))


def broker(loaded: Loaded | None = None) -> Place:
    held = loaded or process.loaded()
    if not held.settings.broker_url:
        return redis_server(held)
    return Place("message broker", "CELERY_BROKER_URL", _shown(held.settings.broker_url, 0), held.sources.get("broker_url", DEFAULT))


def _shown(url: str, port: int) -> str:
    if "," in url:
        return without_password(url)
    parts = urlsplit(url)
    number = parts.port or port
    return f"{parts.hostname or 'localhost'}:{number}" if number else (parts.hostname or without_password(url))


def why(error: BaseException) -> str:
    """The last line of what a client library says, without what it repeats."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Is the server running")]
    said = (telling or lines or [type(error).__name__])[-1].rstrip(".")
    for words in ("Connection refused", "FATAL:  ", "failed: "):
        if words in said:
            return words.lower() if words == "Connection refused" else said.rpartition(words)[2].strip()
    return said


def check_postgres(loaded: Loaded | None = None) -> None:
    held = loaded or process.loaded()
    try:
        connect(held.settings.database_url, held.settings.database_schema).close()
    except psycopg.OperationalError as error:
        raise postgres(held).away(why(error)) from None


def check_redis(loaded: Loaded | None = None) -> None:
    held = loaded or process.loaded()
    client = redis.Redis.from_url(held.settings.redis_url, socket_connect_timeout=5, socket_timeout=5, retry=None)
    try:
        client.ping()
    except redis.RedisError as error:
        raise redis_server(held).away(why(error)) from None
    finally:
        client.close()


def check_broker(loaded: Loaded | None = None) -> None:
    """Where a connection to it is refused, that is final."""
    held = loaded or process.loaded()
    if not held.settings.broker_url:
        check_redis(held)
        return
    try:
        with Connection(held.settings.broker_url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except Exception as error:  # noqa: BLE001  # each transport has its errors; whichever it is, the broker was not reached
        raise broker(held).away(why(error)) from None


def await_servers(*checks: Callable[[], None], patience_s: float | None = None, told: Callable[[str], None] | None = None) -> None:
    """Wait until all answer. Raises `Away` for the first that does not within STARTUP_TIMEOUT."""
    began = time.monotonic()
    limit_s = process.settings().startup_timeout_s if patience_s is None else patience_s
    say = told or logger.warning
    told_at = began + TELL_AFTER_S - 5
    for check in checks or (check_postgres, check_redis):
        while True:
            try:
                check()
                break
            except Away as away:
                now = time.monotonic()
                if now - began >= limit_s:
                    raise
                if now - told_at >= 5:
                    told_at = now
                    say(f"waiting up to {limit_s:g} s (STARTUP_TIMEOUT): {away}")
                time.sleep(min(PAUSE_S, max(0.0, limit_s - (now - began))))  # servers tell nobody when they are there
