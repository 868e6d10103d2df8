"""Streams with consumer groups in Postgres: what Redis Streams do, in three tables.

Ids are taken under the stream's lock, so that they become visible in their order and a group may read on from its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.store import locks, notices
from orchestrator.store.connection import Connection, dumps

Row = tuple[int, dict[str, str]]
CHANNEL = "streams"


def listen(c: Connection) -> None:
    notices.listen(c, CHANNEL)


def find(c: Connection, pattern: str) -> list[str]:
    rows = c.execute(
        """
        with recursive names as (
            (select stream from stream_entries order by stream limit 1)
            union all select (select e.stream from stream_entries e where e.stream > n.stream order by e.stream limit 1)
            from names n where n.stream is not null
        ) select stream from names where stream like replace(replace(%s, '_', '\\_'), '*', '%%') order by stream
        """,
        (pattern,),
    ).fetchall()
    return [row[0] for row in rows]


def publish(c: Connection, stream: str, fields: dict[str, str], length: int | None) -> int:
    with c.transaction():
        locks.hold(c, "stream", stream)
        row = c.execute(
            "insert into stream_entries (stream, fields) values (%s, %s::jsonb) returning id", (stream, dumps(fields))
        ).fetchone()
        notices.tell(c, CHANNEL, stream[:200])
    assert row is not None
    if length is not None and row[0] % 100 == 0:
        trim(c, stream, length)
    return int(row[0])


def trim(c: Connection, stream: str, length: int) -> None:
    """Keep about so many, and all that some group has not done with."""
    c.execute(
        """
        delete from stream_entries e where e.stream = %(stream)s
          and e.id < (select coalesce(min(k.id), 0) from (
                select id from stream_entries where stream = %(stream)s order by id desc limit %(length)s) k)
          and e.id <= (select coalesce(min(last_id), e.id) from stream_groups where stream = %(stream)s)
          and not exists (select 1 from stream_pending p where p.stream = e.stream and p.id = e.id)
        """,
        {"stream": stream, "length": length},
    )


def join(c: Connection, stream: str, group: str) -> bool:
    """Whether the group was made now."""
    return c.execute("insert into stream_groups (stream, name) values (%s, %s) on conflict do nothing", (stream, group)).rowcount > 0


def has_group(c: Connection, stream: str, group: str) -> bool:
    return c.execute("select 1 from stream_groups where stream = %s and name = %s", (stream, group)).fetchone() is not None


def read(c: Connection, stream: str, group: str, consumer: str, count: int) -> list[Row]:
    """The group's next entries, pending with this consumer from now on."""
    with c.transaction():
        row = c.execute("select last_id from stream_groups where stream = %s and name = %s for update", (stream, group)).fetchone()
        if row is None:
            return []
        found = c.execute(
            "select id, fields from stream_entries where stream = %s and id > %s order by id limit %s", (stream, row[0], count)
        ).fetchall()
        if found:
            c.execute("update stream_groups set last_id = %s where stream = %s and name = %s", (found[-1][0], stream, group))
            c.execute(
                "insert into stream_pending (stream, name, id, consumer) select %s, %s, unnest(%s::bigint[]), %s",
                (stream, group, [one[0] for one in found], consumer),
            )
    return found


def pending_of(c: Connection, stream: str, group: str, consumer: str, count: int, after: int) -> list[Row]:
    return c.execute(
        "select e.id, e.fields from stream_pending p join stream_entries e on e.stream = p.stream and e.id = p.id"
        " where p.stream = %s and p.name = %s and p.consumer = %s and p.id > %s order by p.id limit %s",
        (stream, group, consumer, after, count),
    ).fetchall()


def claim(c: Connection, stream: str, group: str, consumer: str, *, idle_s: float, count: int, of: str | None = None) -> list[Row]:
    return sorted(
        c.execute(
            """
            with old as (
                select p.id from stream_pending p
                where p.stream = %(stream)s and p.name = %(group)s and p.delivered_at <= clock_timestamp() - make_interval(secs => %(idle)s)
                  and (%(of)s::text is null or p.consumer = %(of)s)
                order by p.id limit %(count)s for update skip locked
            ), taken as (
                update stream_pending p set consumer = %(consumer)s, delivered_at = clock_timestamp(), deliveries = deliveries + 1
                from old where p.stream = %(stream)s and p.name = %(group)s and p.id = old.id returning p.id
            )
            select e.id, e.fields from taken join stream_entries e on e.stream = %(stream)s and e.id = taken.id
            """,
            {"stream": stream, "group": group, "consumer": consumer, "idle": idle_s, "count": count, "of": of},
        ).fetchall(),
        key=lambda row: row[0],
    )


def keep_alive(c: Connection, stream: str, group: str, consumer: str, ids: Sequence[int]) -> None:
    c.execute(
        "update stream_pending set delivered_at = clock_timestamp(), consumer = %s where stream = %s and name = %s and id = any (%s::bigint[])",
        (consumer, stream, group, list(ids)),
    )


def held_by_others(c: Connection, stream: str, group: str, consumer: str, below: int) -> list[int]:
    rows = c.execute(
        "select id from stream_pending where stream = %s and name = %s and id < %s and consumer <> %s order by id",
        (stream, group, below, consumer),
    ).fetchall()
    return [row[0] for row in rows]


def fetch(c: Connection, stream: str, ids: Sequence[int]) -> list[Row]:
    return c.execute(
        "select id, fields from stream_entries where stream = %s and id = any (%s::bigint[]) order by id", (stream, list(ids))
    ).fetchall()


def entries(c: Connection, stream: str, after: int, limit: int) -> list[Row]:
    return c.execute(
        "select id, fields from stream_entries where stream = %s and id > %s order by id limit %s", (stream, after, limit)
    ).fetchall()


def ack(c: Connection, stream: str, group: str, ids: Sequence[int]) -> int:
    rows = c.execute(
        "delete from stream_pending where stream = %s and name = %s and id = any (%s::bigint[]) returning id", (stream, group, list(ids))
    ).fetchall()
    return len(rows)


def backlog(c: Connection, stream: str, group: str) -> tuple[int, int]:
    row = c.execute(
        "select (select count(*) from stream_entries e where e.stream = g.stream and e.id > g.last_id),"
        " (select count(*) from stream_pending p where p.stream = g.stream and p.name = g.name)"
        " from stream_groups g where g.stream = %s and g.name = %s",
        (stream, group),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def consumers(c: Connection, stream: str, group: str) -> list[tuple[str, int, float]]:
    return c.execute(
        "select consumer, count(*), extract(epoch from clock_timestamp() - max(delivered_at))::float8 from stream_pending"
        " where stream = %s and name = %s group by consumer order by consumer",
        (stream, group),
    ).fetchall()


def withdraw(c: Connection, stream: str, failure_id: str) -> None:
    c.execute("delete from stream_entries where stream = %s and fields ->> 'failure_id' = %s", (stream, failure_id))


# ── names of consumers ──────────────────────────────────────────────────────────────────────────────────────────────


def lease_name(c: Connection, role: str, owner: str, seconds: float) -> bool:
    """A name is somebody's as long as he says so."""
    row = c.execute(
        """
        insert into leadership (role, owner, until) values (%(role)s, %(owner)s, now() + make_interval(secs => %(s)s))
        on conflict (role) do update set owner = excluded.owner, until = excluded.until
        where leadership.owner = excluded.owner or leadership.until < now()
        returning role
        """,
        {"role": role, "owner": owner, "s": seconds},
    ).fetchone()
    return row is not None


def owner_of(c: Connection, role: str) -> str | None:
    row = c.execute("select owner from leadership where role = %s", (role,)).fetchone()
    return row[0] if row else None


def gone_names(c: Connection, prefix: str) -> list[str]:
    """Names whose owners fell silent."""
    rows = c.execute("select role from leadership where starts_with(role, %s) and until < now()", (prefix,)).fetchall()
    return [row[0] for row in rows]


def forget_name(c: Connection, role: str, owner: str | None = None) -> None:
    c.execute(
        "delete from leadership where role = %(role)s and (owner = %(owner)s or (%(owner)s::text is null and until < now()))",
        {"role": role, "owner": owner},
    )


def living_names(c: Connection, prefix: str) -> list[dict[str, Any]]:
    rows = c.execute(
        "select role, extract(epoch from until - now())::float8 from leadership where starts_with(role, %s) and until > now() order by role",
        (prefix,),
    ).fetchall()
    return [{"name": row[0].removeprefix(prefix), "for_s": row[1]} for row in rows]
