"""One connection per process and thread, kept open, reopened when it broke. Statements commit by themselves.

`psycopg` is used as it is: the protocol's statements are prepared once and sent as they stand. A fork does not share
a connection: a child opens its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.types.json import set_json_dumps, set_json_loads

from orchestrator.errors import TooDeep, TooLarge
from orchestrator.nesting import DEEPEST, DEEPEST_KEPT, is_deep
from orchestrator.store import sealing, wall
from orchestrator.store.slow import TimedConnection

logger = logging.getLogger("orchestrator.store")

T = TypeVar("T")
Connection = psycopg.Connection[Any]

# A statement is planned once per connection, perhaps while the tables are still empty; a plan that reads whole tables
# would then stay when they are full. Every statement of the protocol has an index to go by.
OPTIONS = "-c enable_seqscan=off -c jit=off -c idle_in_transaction_session_timeout=60s"

# What a restart, a failover or a cut line looks like. A statement that broke so may or may not have been committed.
BROKEN = (psycopg.OperationalError, psycopg.InterfaceError)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: Any) -> str:
    """JSON as Postgres takes it: no NaN, no U+0000, which jsonb cannot hold, and nothing that is nested without end."""
    try:
        text = _encode(value)
    except RecursionError:
        raise TooDeep("what is to be kept", DEEPEST_KEPT) from None
    if is_deep(value, text, DEEPEST_KEPT):
        raise TooDeep("what is to be kept", DEEPEST_KEPT)
    return text.replace("\\u0000", "\\ufffd") if "\\u0000" in text else text


set_json_dumps(dumps)
set_json_loads(sealing.loads)


def sized(what: str, value: Any, limit_bytes: int) -> str:
    """The value's JSON; `TooLarge` when it is above the limit, `TooDeep` when it is nested too deeply."""
    text = dumps(value)
    if is_deep(value, text):
        raise TooDeep(what, DEEPEST)
    if len(text) > limit_bytes // 4 and (size := len(text.encode())) > limit_bytes:
        raise TooLarge(what, size, limit_bytes)
    return text


class Database:
    """Where the tables are. `connection()` is the calling thread's own."""

    def __init__(self, url: str, *, patience_s: float = 30.0, slow_s: float = 0.0, first_patience_s: float | None = None) -> None:
        """`first_patience_s`: how long a server is waited for that never answered; else as long as for one that is away."""
        self.url = url
        self.patience_s = patience_s
        self.first_patience_s = patience_s if first_patience_s is None else first_patience_s
        self.was_reached = False
        self.slow_s = slow_s
        self._local = threading.local()
        self.has_wall = True

    def connection(self) -> Connection:
        held: Connection | None = getattr(self._local, "connection", None)
        if held is None or self._local.pid != os.getpid() or held.closed:
            held = opened = TimedConnection.connect(
                self.url,
                autocommit=True,
                prepare_threshold=1,
                connect_timeout=5,
                options=OPTIONS,
                fallback_application_name="orchestrator",  # PGAPPNAME goes before it,
            )
            opened.slow_s = self.slow_s
            self.was_reached = True
            self._local.connection = held
            self._local.pid = os.getpid()
            self._local.acts_for = None
        wanted = getattr(self._local, "shall_act_for", None)
        if wanted != self._local.acts_for:
            self._change_role(held, wanted)
        return held

    def act_for(self, tenant: str | None) -> None:
        """From here on this thread's statements see what is one tenant's, whatever they ask for (`store/wall.py`). None: all."""
        self._local.shall_act_for = tenant

    def _change_role(self, held: Connection, tenant: str | None) -> None:
        try:
            if self.has_wall:
                held.execute(
                    "select set_config('role', %s, false), set_config(%s, %s, false)",
                    (wall.ROLE if tenant else "none", wall.TENANT, tenant or ""),
                )
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.InsufficientPrivilege) as error:
            self.has_wall = False
            logger.warning("tenants are kept apart by the API alone: %s", str(error).split("\n", 1)[0])
        self._local.acts_for = tenant

    def drop(self) -> None:
        """Close this thread's connection."""
        held = getattr(self._local, "connection", None)
        if held is not None and self._local.pid == os.getpid():
            held.close()
        self._local.connection = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        connection = self.connection()
        with connection.transaction():
            yield connection

    def patiently(self, act: Callable[[Connection], T]) -> T:
        """Do it, and when the line breaks do it again on a new one, until patience ends.

        The act may thus have happened twice: only acts that are harmless when repeated may come here.
        """
        deadline = time.monotonic() + (self.patience_s if self.was_reached else self.first_patience_s)
        pause = 0.02
        while True:
            try:
                return act(self.connection())
            except BROKEN as error:
                if isinstance(error, psycopg.errors.QueryCanceled) or time.monotonic() > deadline:
                    raise
                self.drop()
                time.sleep(pause)  # a server that restarts is not helped by haste
                pause = min(pause * 2, 0.5)
