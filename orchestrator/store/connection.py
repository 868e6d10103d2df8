"""One connection per process and thread, kept open, reopened when it broke. Statements commit by themselves.

`psycopg` is used as it is: the protocol's statements are prepared once and sent as they stand. A fork does not share
a connection: a child opens its own.

Every connection is made by `connect`, and sees the engine's schema alone: names in statements mean its tables, whatever else the
database holds, and functions mean PostgreSQL's own.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.types.json import set_json_dumps, set_json_loads

from orchestrator.config.settings import SCHEMA, Settings
from orchestrator.definition.parsing import json_faults
from orchestrator.errors import Fault, NotJson, Refused, TooDeep, TooLarge
from orchestrator.nesting import DEEPEST, DEEPEST_KEPT, is_deep
from orchestrator.store import outage, sealing, wall
from orchestrator.store.slow import TimedConnection

logger = logging.getLogger("orchestrator.store")

T = TypeVar("T")
Connection = psycopg.Connection[Any]

# Said after connecting and not while it: a pooler knows few of the options that may come with a connection.
SESSION = {
    # A statement is planned once per connection, perhaps while the tables are still empty; a plan that reads whole tables
    # would then stay when they are full. Every statement of the protocol has an index to go by.
    "enable_seqscan": "off",
    "jit": "off",
    "idle_in_transaction_session_timeout": "60s",
}
# `pg_catalog` comes first without being named, so nobody's `now()` takes the place of PostgreSQL's; temporary tables come last.
SEARCH_PATH = "{}, pg_temp"

# What a restart, a failover or a cut line looks like. A statement that broke so may or may not have been committed.
BROKEN = (psycopg.OperationalError, psycopg.InterfaceError)
# Nothing can be written, whatever it is: also a server that takes no writes for now (a standby, an administrator's setting).
AWAY = (*BROKEN, psycopg.errors.ReadOnlySqlTransaction)


def first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]


def is_away(error: BaseException) -> bool:
    """Whether an error says that the server does not answer, and nothing of what it was asked: a statement that is stopped, a full
    disk, a deadlock are errors of operation, too, and no server is away for them."""
    if isinstance(error, psycopg.InterfaceError):
        return True
    if not isinstance(error, psycopg.OperationalError):
        return False
    state = error.sqlstate
    return state is None or state[:2] == "08" or state in ("57P01", "57P02", "57P03", "53300")


def still_answers(c: Connection) -> bool:
    """Whether the server of a connection that broke takes another one."""
    try:
        with psycopg.connect(c.info.dsn, password=c.info.password, connect_timeout=2, autocommit=True) as other:
            other.execute("select 1")
    except psycopg.Error:
        return False
    return True


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=sealing.unkept).encode
# U+0000 as JSON writes it, and not a backslash that is followed by the letters `u0000`.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
# A number above 1.8e308 has that many digits.
_LONG_NUMBER = b"0" * 309


def dumps(value: Any) -> str:
    """JSON as it is kept, in which nothing that was given looks sealed; else as `spelled`."""
    return sealing.escaped(spelled(value))


def spelled(value: Any) -> str:
    """JSON that Postgres could take, as it is told to others. Raises `NotJson` or `TooDeep`, and nothing else, for what it cannot take; U+0000, which
    jsonb cannot hold, becomes U+FFFD."""
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except RecursionError:
        raise TooDeep("what is to be kept", DEEPEST_KEPT) from None
    except (TypeError, ValueError) as error:
        raise _not_json("what is to be kept", value, error) from None
    if is_deep(value, text, DEEPEST_KEPT):
        raise TooDeep("what is to be kept", DEEPEST_KEPT)
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


def _not_json(what: str, value: Any, error: Exception | None = None) -> NotJson | TooDeep:
    faults = list(itertools.islice(json_faults(value), 100))
    if any("nested" in fault.message for fault in faults):
        return TooDeep(what, DEEPEST)
    return NotJson(what, faults or [Fault("", str(error))])


def sized(what: str, value: Any, limit_bytes: int) -> str:
    """The value's JSON. Raises `TooLarge` above the limit, `TooDeep` or `NotJson` for what cannot be kept."""
    try:
        text = dumps(value)
    except NotJson as error:
        raise NotJson(what, error.faults) from None
    if is_deep(value, text):
        raise TooDeep(what, DEEPEST)
    if len(text) >= len(_LONG_NUMBER) and _LONG_NUMBER in text.encode().translate(_DIGITS_ALIKE) and any(json_faults(value)):
        raise _not_json(what, value)
    if len(text) > limit_bytes // 4 and (size := len(text.encode())) > limit_bytes:
        raise TooLarge(what, size, limit_bytes)
    return text


def quoted(name: str) -> str:
    """An identifier, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def connect(url: str, schema: str, *, autocommit: bool = True, timeout_s: int = 5, name: str | None = None) -> TimedConnection:
    """The one door to Postgres. The schema need not be there yet."""
    opened = TimedConnection.connect(
        url,
        autocommit=True,
        prepare_threshold=1,
        connect_timeout=timeout_s,
        fallback_application_name=name or "orchestrator",  # PGAPPNAME goes before it
    )
    # For this connection alone: a program's own connections read and write JSON as they always did.
    set_json_dumps(dumps, opened)
    set_json_loads(sealing.loads, opened)
    try:
        said = {**SESSION, "search_path": SEARCH_PATH.format(quoted(schema))}
        opened.execute(f"select {', '.join(['set_config(%s, %s, false)'] * len(said))}", [part for item in said.items() for part in item])
        opened.autocommit = autocommit
    except BaseException:
        opened.close()
        raise
    return opened


class Unfit(Refused):
    """The database, or the schema in it, cannot hold the engine's tables as it is."""

    code = "unfit_database"


_WHOLE: set[str] = set()
"""Addresses that are known to give each connection a session of its own. A forked child knows what its parent found out."""


def refuse_shared_sessions(url: str, schema: str, one: Connection) -> None:
    """Behind some poolers two connections end in one session, or one in several by turns: what is set for a session, locked by it or
    listened to in it would be anybody's, the tenant it acts for included."""
    if url in _WHOLE:
        return
    session = "select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()"
    with connect(url, schema) as other:
        seen = [tuple(c.execute(session, prepare=False).fetchone() for c in (one, other)) for _ in range(3)]
    if len(set(seen)) > 1 or seen[0][0] == seen[0][1]:
        raise Unfit(
            "DATABASE_URL leads to a pooler that gives a connection to somebody else after each transaction (PgBouncer's pool_mode"
            " transaction or statement). The engine holds locks, listens and acts for tenants by session: use pool_mode session,"
            " or PostgreSQL's own port"
        )
    _WHOLE.add(url)


class Database:
    """Where the tables are. `connection()` is the calling thread's own."""

    def __init__(
        self, url: str, schema: str = SCHEMA, *, patience_s: float = 30.0, slow_s: float = 0.0, first_patience_s: float | None = None
    ) -> None:
        self.url = url
        self.schema = schema
        self.patience_s = patience_s
        self.first_patience_s = patience_s if first_patience_s is None else first_patience_s
        self.was_reached = False
        self.slow_s = slow_s
        self._local = threading.local()
        self.has_wall = True
        self._outage: outage.Outage | None = None

    @classmethod
    def of(cls, settings: Settings, *, patience_s: float = 30.0, first_patience_s: float | None = None) -> Database:
        """`first_patience_s`: how long a server is waited for that never answered; else as long as for one that is away."""
        url, schema, slow_s = settings.database_url, settings.database_schema, settings.slow_query_s
        return cls(url, schema, patience_s=patience_s, slow_s=slow_s, first_patience_s=first_patience_s)

    def refuse_when_away(self) -> None:
        """From here on nobody in this process waits for a server that does not answer: see `store/outage.py`."""
        self.patience_s = self.first_patience_s = outage.PATIENCE_S
        self._outage = outage.Outage(lambda: connect(self.url, self.schema, timeout_s=2))

    def another(self, *, patience_s: float) -> Database:
        """The same tables, over connections of its own."""
        return Database(self.url, self.schema, patience_s=patience_s, slow_s=self.slow_s)

    def connection(self) -> Connection:
        if self._outage is not None:
            self._outage.check()
        held: Connection | None = getattr(self._local, "connection", None)
        if held is None or self._local.pid != os.getpid() or held.closed:
            held = self._open() if self._outage is None else self._outage.opened(self._open)
            self.was_reached = True
            self._local.connection = held
            self._local.pid = os.getpid()
            self._local.acts_for = None
        wanted = getattr(self._local, "shall_act_for", None)
        if wanted != self._local.acts_for:
            self._change_role(held, wanted)
        return held

    def _open(self) -> TimedConnection:
        opened = connect(self.url, self.schema)
        try:
            refuse_shared_sessions(self.url, self.schema, opened)
        except BaseException:
            opened.close()
            raise
        opened.slow_s = self.slow_s
        return opened

    def act_for(self, tenant: str | None) -> None:
        """From here on this thread's statements see what is one tenant's, whatever they ask for (`store/wall.py`). None: all."""
        self._local.shall_act_for = tenant

    def _change_role(self, held: Connection, tenant: str | None) -> None:
        try:
            if self.has_wall:
                held.execute(
                    "select set_config('role', %s, false), set_config(%s, %s, false)",
                    (wall.role_of(self.schema) if tenant else "none", wall.TENANT, tenant or ""),
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
                if isinstance(error, psycopg.errors.QueryCanceled | outage.DatabaseAway) or time.monotonic() > deadline:
                    raise
                self.drop()
                time.sleep(pause)  # a server that restarts is not helped by haste
                pause = min(pause * 2, 0.5)
