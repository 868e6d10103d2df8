"""Whether PostgreSQL answers, as a process knows it that serves requests: while it does not, nobody there waits for it.

A thread asks every half second over a connection of its own. When an answer is missing or late, whoever needs the database is refused at
once, and who waits in a statement is cut off. When an answer comes again, all go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import psycopg

logger = logging.getLogger("orchestrator.store")

EVERY_S = 0.5
LATE_S = 0.8
PATIENCE_S = 0.4
"""How long one request may try again: a connection that broke while it was idle is replaced in that time."""


class DatabaseAway(psycopg.OperationalError):
    """It is known not to answer, and was not asked."""


class Outage:
    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._held: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._pid = 0
        self._asked_at: float | None = None
        self._is_away = False

    def check(self) -> None:
        """Raises `DatabaseAway` while it does not answer."""
        self._ensure_watch()
        asked_at = self._asked_at
        if asked_at is not None and time.monotonic() - asked_at > LATE_S:
            self._begin("it does not answer in time")
        if self._is_away:
            raise DatabaseAway("the database does not answer")

    def add(self, connection: psycopg.Connection[Any]) -> None:
        """Cut off, should the server fall silent."""
        with self._lock:
            self._held.add(connection)

    def _ensure_watch(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            self._pid, self._asked_at, self._is_away = os.getpid(), None, False
            self._held = weakref.WeakSet()
        threading.Thread(target=self._watch, name="database-watch", daemon=True).start()

    def _watch(self) -> None:
        own: psycopg.Connection[Any] | None = None
        while True:
            self._asked_at = time.monotonic()
            try:
                if own is None or own.closed:
                    own = self._connect()
                    self.add(own)
                own.execute("select 1")
            except Exception as error:
                # Whatever it is: had the watch ended, the server would be said to be away for ever.
                if not isinstance(error, psycopg.Error):
                    logger.exception("PostgreSQL could not be asked, which is tried again")
                self._begin(str(error).split("\n", 1)[0] or type(error).__name__)
                if own is not None:
                    own.close()
                own = None
            else:
                self._end()
            self._asked_at = None
            time.sleep(EVERY_S)

    def _begin(self, why: str) -> None:
        with self._lock:
            if self._is_away:
                return
            self._is_away = True
            held, self._held = list(self._held), weakref.WeakSet()
        logger.warning("PostgreSQL is away, and requests that need it are refused until it answers: %s", why)
        for one in held:
            # Closed beneath whoever waits in it, who alone may close it properly.
            with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(one.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        with self._lock:
            was_away, self._is_away = self._is_away, False
        if was_away:
            logger.warning("PostgreSQL answers again")
