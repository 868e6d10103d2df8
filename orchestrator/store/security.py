"""API keys by their hashes, security events, and the audit's chain of seals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store import locks
from orchestrator.store.connection import Connection, dumps

# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    name: str
    tenant: str
    digest: str
    roles: list[str]
    scopes: list[str]
    workflows: list[str]


def add_key(
    c: Connection,
    key: Key,
    lasts_s: float | None,
) -> None:
    c.execute(
        "insert into api_keys (id, name, tenant, digest, roles, scopes, workflows, expires_at)"
        " values (%s, %s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))",
        (key.id, key.name, key.tenant, key.digest, key.roles, key.scopes, key.workflows, lasts_s),
    )


def use_key(c: Connection, identity: str) -> Key | None:
    """One that holds; when it was used is noted, once a minute."""
    row = c.execute(
        "select id, name, tenant, digest, roles, scopes, workflows, used_at is null or used_at < now() - interval '1 minute' from api_keys"
        " where id = %s and revoked_at is null and (expires_at is null or expires_at > now())",
        (identity,),
    ).fetchone()
    if row is None:
        return None
    if row[7]:
        c.execute("update api_keys set used_at = now() where id = %s", (identity,))
    return Key(*row[:7])


def all_keys(c: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    rows = c.execute(
        "select id, name, tenant, roles, scopes, workflows, created_at, expires_at, revoked_at, used_at from api_keys"
        " where %(t)s::text is null or tenant = %(t)s order by created_at",
        {"t": tenant},
    ).fetchall()
    names = ("id", "name", "tenant", "roles", "scopes", "workflows", "created_at", "expires_at", "revoked_at", "used_at")
    return [{name: _text(value) for name, value in zip(names, row, strict=True)} for row in rows]


def revoke_key(c: Connection, identity: str, tenant: str | None = None, after_s: float = 0.0) -> bool:
    """At once, or when a successor has had time to take its place."""
    sql = "update api_keys set expires_at = least(expires_at, now() + make_interval(secs => %(after)s))" if after_s else ""
    row = c.execute(
        (sql or "update api_keys set revoked_at = now()")
        + " where id = %(id)s and revoked_at is null and (%(t)s::text is null or tenant = %(t)s) returning id",
        {"id": identity, "t": tenant, "after": after_s},
    ).fetchone()
    return row is not None


# ── security events ─────────────────────────────────────────────────────────────────────────────────────────────────


def report(c: Connection, type: str, severity: str, principal: str, tenant: str, address: str, detail: Any) -> None:
    c.execute(
        "insert into security_events (type, severity, principal, tenant, address, detail) values (%s, %s, %s, %s, %s, %s::jsonb)",
        (type, severity, principal, tenant, address, dumps(detail)),
    )


def reported(
    c: Connection, tenant: str | None, type: str | None = None, resolved: bool | None = None, before: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    rows = c.execute(
        """
        select id, at, type, severity, principal, tenant, address, detail, resolved_at, resolved_by, resolution from security_events
        where (%(t)s::text is null or tenant = %(t)s) and (%(type)s::text is null or type = %(type)s)
          and (%(resolved)s::bool is null or (resolved_at is not null) = %(resolved)s) and (%(before)s::bigint is null or id < %(before)s)
        order by id desc limit %(limit)s
        """,
        {"t": tenant, "type": type, "resolved": resolved, "before": before, "limit": limit},
    ).fetchall()
    names = ("id", "at", "type", "severity", "principal", "tenant", "address", "detail", "resolved_at", "resolved_by", "resolution")
    return [{name: _text(value) for name, value in zip(names, row, strict=True)} for row in rows]


def resolve(c: Connection, number: int, tenant: str | None, by: str, resolution: str) -> bool:
    row = c.execute(
        "update security_events set resolved_at = now(), resolved_by = %(by)s, resolution = %(how)s"
        " where id = %(id)s and resolved_at is null and (%(t)s::text is null or tenant = %(t)s) returning id",
        {"by": by, "how": resolution, "id": number, "t": tenant},
    ).fetchone()
    return row is not None


def count_events(c: Connection) -> dict[tuple[str, bool], int]:
    rows = c.execute("select type, resolved_at is not null, count(*) from security_events group by 1, 2").fetchall()
    return {(row[0], row[1]): row[2] for row in rows}


# ── who an instance belongs to ──────────────────────────────────────────────────────────────────────────────────────


def owner_of(c: Connection, instance_id: str) -> tuple[str, str, str] | None:
    """An instance's tenant, its workflow, and who started it."""
    return c.execute(
        "select i.tenant, i.workflow, coalesce((select a.actor from audit a where a.instance_id = i.id and a.action = 'start'"
        " order by a.id limit 1), '') from instances i where i.id = %s::uuid",
        (instance_id,),
    ).fetchone()


def says_from(c: Connection, address: str, agent: str) -> None:
    """What this connection audits from now on came from there."""
    c.execute("select set_config('orchestrator.address', %s, false), set_config('orchestrator.agent', %s, false)", (address, agent[:300]))


# ── the audit and its seals ─────────────────────────────────────────────────────────────────────────────────────────

_AUDIT = ("id", "at", "actor", "action", "source", "instance_id", "workflow", "from_state", "to_state", "detail", "address", "agent")
_AUDIT_ROW = (
    "a.id, to_char(a.at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), a.actor, a.action, a.source, a.instance_id::text, a.workflow,"
    " a.from_state, a.to_state, a.detail, a.address, a.agent"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    actor: str | None = None
    action: str | None = None
    source: str | None = None
    workflow: str | None = None
    instance_id: str | None = None
    tenant: str | None = None
    address: str | None = None
    since: str | None = None
    until: str | None = None


_WHERE = """
where (%(actor)s::text is null or a.actor = %(actor)s) and (%(action)s::text is null or a.action = %(action)s)
  and (%(source)s::text is null or a.source = %(source)s) and (%(workflow)s::text is null or a.workflow = %(workflow)s)
  and (%(instance_id)s::uuid is null or a.instance_id = %(instance_id)s) and (%(address)s::text is null or a.address = %(address)s)
  and (%(since)s::timestamptz is null or a.at >= %(since)s::timestamptz) and (%(until)s::timestamptz is null or a.at < %(until)s::timestamptz)
  and (%(tenant)s::text is null or coalesce((select i.tenant from instances i where i.id = a.instance_id), a.detail ->> 'tenant', 'default') = %(tenant)s)
"""


def _given(wanted: AuditFilter) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in wanted.__slots__}


# What the engine itself does (begin, complete, fail) is in the instance's own row: a row of the audit for each would be a tenth of all
# that an instance writes. It is shown in its place among what others did, and becomes a row before it is overwritten or deleted.
_OWN_MOVES = """
select null::bigint as id, i.started_at as at, 'engine' as actor, 'begin' as action, 'engine' as source, i.id as instance_id, i.workflow,
    'PENDING' as from_state, 'RUNNING' as to_state, null::jsonb as detail, null::text as address, null::text as agent
from instances i where {which} and i.started_at is not null and i.forked_from is null
union all
select null, i.ended_at, 'engine', case i.outcome when 'COMPLETED' then 'complete' when 'FAILED' then 'fail' else 'cancel' end, 'engine',
    i.id, i.workflow, 'RUNNING', i.outcome,
    case when i.error is null then null else jsonb_build_object('reason', i.error -> 'message') end, null, null
from instances i where {which} and i.ended_at is not null and i.outcome is not null
    and not exists (select 1 from audit e where e.instance_id = i.id and e.to_state = i.outcome and e.at >= i.ended_at)
"""
_OF_INSTANCE = f"""
(select id, at, actor, action, source, instance_id, workflow, from_state, to_state, detail, address, agent
 from audit where instance_id = %(instance_id)s union all {_OWN_MOVES.format(which="i.id = %(instance_id)s")}) a
"""


def audited(c: Connection, wanted: AuditFilter, limit: int, offset: int = 0, before: int | None = None) -> list[dict[str, Any]]:
    """The newest first. Of one instance, with what the engine did of itself, in rows without an id."""
    if wanted.instance_id is not None:
        return _audited_of_instance(c, wanted, limit, offset, before)
    rows = c.execute(
        f"select {_AUDIT_ROW} from audit a {_WHERE} and (%(before)s::bigint is null or a.id < %(before)s)"
        " order by a.id desc limit %(limit)s offset %(offset)s",
        {**_given(wanted), "limit": limit, "offset": offset, "before": before},
    ).fetchall()
    return [dict(zip(_AUDIT, row, strict=True)) for row in rows]


def _audited_of_instance(c: Connection, wanted: AuditFilter, limit: int, offset: int, before: int | None) -> list[dict[str, Any]]:
    rows = c.execute(
        f"select {_AUDIT_ROW} from {_OF_INSTANCE} {_WHERE} and (%(before)s::bigint is null"
        " or (a.at, coalesce(a.id, 0)) < (select l.at, l.id from audit l where l.id = %(before)s))"
        " order by a.at desc, a.id desc nulls last limit %(limit)s + 3 offset %(offset)s",
        {**_given(wanted), "limit": limit, "offset": offset, "before": before},
    ).fetchall()
    end = limit
    # What follows a page is found by the id of its last row.
    while end < len(rows) and rows[end - 1][0] is None:
        end += 1
    return [dict(zip(_AUDIT, row, strict=True)) for row in rows[:end]]


def cursor_after(rows: Sequence[dict[str, Any]]) -> int | None:
    """The id of the last row that has one; None: nothing follows."""
    return next((row["id"] for row in reversed(rows) if row["id"] is not None), None)


def count_audited(c: Connection, wanted: AuditFilter) -> int:
    source = "audit a" if wanted.instance_id is None else _OF_INSTANCE
    row = c.execute(f"select count(*) from {source} {_WHERE}", _given(wanted)).fetchone()
    return int(row[0]) if row else 0


def keep_moves(c: Connection, instance_ids: Sequence[str], *actions: str) -> None:
    """Make rows of what the engine did, before the instance's own row forgets it."""
    c.execute(
        "insert into audit (at, actor, action, source, instance_id, workflow, from_state, to_state, detail)"
        " select at, actor, action, source, instance_id, workflow, from_state, to_state, detail"
        f" from ({_OWN_MOVES.format(which='i.id = any (%(ids)s::uuid[])')}) m where action = any (%(actions)s)",
        {"ids": list(instance_ids), "actions": list(actions)},
    )


LET_GO = "let-audit-go"


def _between(c: Connection, first: int, last: int) -> list[tuple[Any, ...]]:
    return c.execute(f"select {_AUDIT_ROW} from audit a where a.id between %s and %s order by a.id", (first, last)).fetchall()


def _hash(previous: str, rows: Sequence[tuple[Any, ...]]) -> str:
    chained = hashlib.sha256(previous.encode())
    for row in rows:
        chained.update(json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
    return chained.hexdigest()


def seal(c: Connection, older_than_s: float = 120.0, limit: int = 10_000) -> int:
    """Chain what was audited before: each seal's hash covers its rows and the seal before it. Gives how many rows.

    What is younger waits: numbers are given before commits, and every commit below a seal must have happened.
    """
    with c.transaction():
        locks.hold(c, "audit")
        head = c.execute("select last_id, hash from audit_seals order by id desc limit 1").fetchone() or (0, "")
        row = c.execute(
            "select min(id), max(id) from (select id from audit where id > %s and at < now() - make_interval(secs => %s) order by id limit %s) a",
            (head[0], older_than_s, limit),
        ).fetchone()
        if row is None or row[0] is None:
            return 0
        rows = _between(c, head[0] + 1, row[1])
        c.execute(
            "insert into audit_seals (first_id, last_id, rows, hash) values (%s, %s, %s, %s)",
            (head[0] + 1, row[1], len(rows), _hash(head[1], rows)),
        )
    return len(rows)


def let_go(c: Connection, older_than_s: float, limit: int = 10) -> int:
    """The oldest seals, with the rows they cover, where all of these are old enough; gives how many rows.

    That they went is itself audited, with the hash at which the chain goes on: what is left can still be verified.
    """
    with c.transaction():
        locks.hold(c, "audit")
        old = c.execute(
            "select id, first_id, last_id, hash from audit_seals where at < now() - make_interval(secs => %s)"
            " and id < (select max(id) from audit_seals) order by id limit %s",
            (older_than_s, limit),
        ).fetchall()
        if not old:
            return 0
        last_id, last_hash = old[-1][2], old[-1][3]
        rows = c.execute("delete from audit where id between %s and %s", (old[0][1], last_id)).rowcount
        c.execute("delete from audit_seals where id = any (%s)", ([one[0] for one in old],))
        c.execute(
            "insert into audit (actor, action, source, detail) values ('engine', %s, 'engine', %s::jsonb)",
            (LET_GO, dumps({"until": last_id, "hash": last_hash, "rows": rows})),
        )
    return rows


def verify(c: Connection) -> tuple[int, int, list[str]]:
    """Gives seals, rows, and every place at which what is there is not what was sealed."""
    faults: list[str] = []
    previous, total, expected, seals = "", 0, 1, 0
    gone = c.execute("select detail from audit where action = %s order by id desc limit 1", (LET_GO,)).fetchone()
    if gone is not None:
        previous, expected = str(gone[0]["hash"]), int(gone[0]["until"]) + 1
    for number, first, last, count, kept in c.execute("select id, first_id, last_id, rows, hash from audit_seals order by id").fetchall():
        seals += 1
        rows = _between(c, first, last)
        total += len(rows)
        if first != expected:
            faults.append(f"seal {number} begins at {first}; the one before it ended at {expected - 1}: a seal is missing")
        if len(rows) != count:
            faults.append(f"seal {number} (rows {first} to {last}) covers {count} rows; {len(rows)} are there")
        elif _hash(previous, rows) != kept:
            faults.append(f"seal {number} (rows {first} to {last}): a row was changed, or a seal before it")
        previous, expected = kept, last + 1
    return seals, total, faults


def _text(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
