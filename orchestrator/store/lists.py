"""Instances by filters that change from call to call, so SQLAlchemy puts the questions together.

A worker lists nothing, and SQLAlchemy is a sixth of what it would import: whoever runs in one imports this where it lists.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import Float, Select, Text, cast, func, literal, or_, select, tuple_
from sqlalchemy.dialects import postgresql

from orchestrator.store import schema
from orchestrator.store.connection import Connection
from orchestrator.store.queries import Filter, plain

_DIALECT = postgresql.dialect(paramstyle="pyformat")  # type: ignore[no-untyped-call]


def instances(c: Connection, wanted: Filter) -> list[dict[str, Any]]:
    i = schema.instances.c
    columns = (
        i.id,
        i.namespace,
        i.workflow,
        i.version,
        i.state,
        i.outcome,
        i.phase,
        i.labels,
        i.priority,
        i.tenant,
        i.source,
        i.parent_id,
        i.error,
        i.created_at,
        i.started_at,
        i.ended_at,
        cast(func.round(func.extract("epoch", i.ended_at - func.coalesce(i.started_at, i.created_at)), 3), Float).label("duration_s"),
    )
    rows = _run(c, _page(_filtered(select(*columns), wanted), wanted))
    return [{key: plain(value) for key, value in row.items()} for row in rows]


def ids(c: Connection, wanted: Filter) -> list[str]:
    return [instance_id for _, instance_id in page(c, wanted)]


def page(c: Connection, wanted: Filter) -> list[tuple[dt.datetime, str]]:
    """When each was made, and its id: the last is where the next page begins (`after`)."""
    i = schema.instances.c
    return [(row["created_at"], str(row["id"])) for row in _run(c, _page(_filtered(select(i.created_at, i.id), wanted), wanted))]


def count(c: Connection, wanted: Filter) -> int:
    return int(_run(c, _filtered(select(func.count().label("n")), wanted).select_from(schema.instances))[0]["n"])


def count_by_state(c: Connection, wanted: Filter) -> dict[str, int]:
    state = schema.instances.c.state
    rows = _run(c, _filtered(select(state, func.count().label("n")), wanted).group_by(state).order_by(state))
    return {row["state"]: int(row["n"]) for row in rows}


def per_day(c: Connection, wanted: Filter) -> list[dict[str, Any]]:
    """The newest day first."""
    i = schema.instances.c
    day = func.to_char(func.timezone("UTC", i.created_at), "YYYY-MM-DD").label("day")
    counted = [
        func.count().label("total"),
        *(func.count().filter(i.outcome == outcome).label(outcome.lower()) for outcome in ("COMPLETED", "FAILED", "CANCELLED")),
        func.avg(func.extract("epoch", i.ended_at - i.started_at)).label("average_s"),
    ]
    rows = _run(c, _filtered(select(day, *counted), wanted).group_by(day).order_by(day.desc()).limit(1000))
    return [{**row, "average_s": None if row["average_s"] is None else round(float(row["average_s"]), 3)} for row in rows]


# ── putting them together ───────────────────────────────────────────────────────────────────────────────────────────


def _run(c: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    compiled = query.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    values = {key: Jsonb(value) if isinstance(value, dict) else value for key, value in compiled.params.items()}
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(str(compiled), values).fetchall()


def _filtered(query: Select[Any], wanted: Filter) -> Select[Any]:
    i = schema.instances.c
    if wanted.state:
        query = query.where(i.state.in_([state.upper() for state in wanted.state]))
    for column, value in (
        (i.namespace, wanted.namespace),
        (i.workflow, wanted.workflow),
        (i.version, wanted.version),
        (i.tenant, wanted.tenant),
        (i.parent_id, wanted.parent_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.labels:
        query = query.where(i.labels != {}).where(i.labels.contains(dict(wanted.labels)))
    if wanted.since:
        query = query.where(i.created_at >= wanted.since)
    if wanted.until:
        query = query.where(i.created_at < wanted.until)
    if wanted.id_prefix:
        query = query.where(func.cast(i.id, Text).startswith(wanted.id_prefix, autoescape=True))
    if wanted.search:
        texts = (i.workflow, i.error["message"].astext, func.cast(i.input, Text))
        query = query.where(or_(*(text.icontains(wanted.search, autoescape=True) for text in texts)))
    return query


def _page(query: Select[Any], wanted: Filter) -> Select[Any]:
    i = schema.instances.c
    if wanted.after:
        query = query.where(
            tuple_(i.created_at, i.id) < tuple_(literal(wanted.after[0], i.created_at.type), literal(wanted.after[1], i.id.type))
        )
    return query.order_by(i.created_at.desc(), i.id.desc()).limit(wanted.limit).offset(wanted.offset)
