"""Configurations of workflows: versions that are never changed, of which the newest holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store import locks
from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class Config:
    tenant: str
    environment: str
    workflow: str
    number: int
    spec: dict[str, Any] | None
    origin: str
    actor: str
    at: str


_COLUMNS = "tenant, environment, workflow, number, spec, origin, actor, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"


def put(c: Connection, tenant: str, environment: str, workflow: str, spec: dict[str, Any] | None, origin: str, actor: str) -> int | None:
    """A new version; None when it is what holds already."""
    locks.hold(c, "configs", tenant, environment, workflow)
    held = newest(c, tenant, environment, workflow)
    if (held.spec if held else None) == spec:
        return None
    number = held.number + 1 if held else 1
    c.execute(
        "insert into configs (tenant, environment, workflow, number, spec, origin, actor) values (%s, %s, %s, %s, %s::jsonb, %s, %s)",
        (tenant, environment, workflow, number, None if spec is None else dumps(spec), origin, actor),
    )
    return number


def newest(c: Connection, tenant: str, environment: str, workflow: str) -> Config | None:
    row = c.execute(
        f"select {_COLUMNS} from configs where tenant = %s and environment = %s and workflow = %s order by number desc limit 1",
        (tenant, environment, workflow),
    ).fetchone()
    return Config(*row) if row else None


def revision(c: Connection, tenant: str, environment: str, workflow: str) -> str | None:
    held = newest(c, tenant, environment, workflow)
    return str(held.number) if held is not None and held.spec is not None else None


def in_force(c: Connection, tenant: str, environment: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What holds under any of these keys: a tenant's own, else everybody's."""
    rows = c.execute(
        """
        select distinct on (tenant, workflow) tenant, workflow, spec from configs
        where tenant in (%s, 'default') and environment = %s and workflow = any (%s) order by tenant, workflow, number desc
        """,
        (tenant, environment, list(keys)),
    ).fetchall()
    for whose in dict.fromkeys((tenant, "default")):
        found = {key: spec for owner, key, spec in rows if owner == whose and spec is not None}
        if found:
            return found
    return {}


def named(c: Connection, tenant: str, environment: str, workflow: str) -> list[dict[str, Any]]:
    """All that holds for workflows of a name, in whatever namespace and version."""
    return [
        one.spec or {}
        for whose in dict.fromkeys((tenant, "default"))
        for one in all_in_force(c, whose, environment)
        if (one.spec or {}).get("id") == workflow
    ]


def version(c: Connection, tenant: str, environment: str, workflow: str, number: int) -> Config | None:
    row = c.execute(
        f"select {_COLUMNS} from configs where tenant = %s and environment = %s and workflow = %s and number = %s",
        (tenant, environment, workflow, number),
    ).fetchone()
    return Config(*row) if row else None


def versions(c: Connection, tenant: str, environment: str, workflow: str) -> list[Config]:
    """The newest first."""
    rows = c.execute(
        f"select {_COLUMNS} from configs where tenant = %s and environment = %s and workflow = %s order by number desc",
        (tenant, environment, workflow),
    ).fetchall()
    return [Config(*row) for row in rows]


def all_in_force(c: Connection, tenant: str, environment: str) -> list[Config]:
    rows = c.execute(
        f"select distinct on (workflow) {_COLUMNS} from configs where tenant = %s and environment = %s order by workflow, number desc",
        (tenant, environment),
    ).fetchall()
    return [found for row in rows if (found := Config(*row)).spec is not None]


def with_dependencies(c: Connection, tenant: str, environment: str) -> list[tuple[str | None, str, list[Any]]]:
    """(namespace, workflow, what it depends on) of the configurations that a tenant goes by."""
    rows = c.execute(
        """
        select spec ->> 'nameSpace', spec ->> 'id', spec -> 'dependencies' from (
            select distinct on (workflow, tenant) workflow, tenant, spec from configs
            where environment = %s and tenant in (%s, 'default') order by workflow, tenant, number desc
        ) held where jsonb_typeof(spec -> 'dependencies') = 'array'
        """,
        (environment, tenant),
    ).fetchall()
    return [(row[0], row[1], row[2]) for row in rows]


def that_alert(c: Connection, environment: str) -> list[tuple[str, str | None, str, dict[str, Any]]]:
    """(tenant, namespace, workflow, what its monitoring says) of configurations that ask for alerts."""
    rows = c.execute(
        """
        select tenant, spec ->> 'nameSpace', spec ->> 'id', spec -> 'monitoring' from (
            select distinct on (tenant, workflow) tenant, workflow, spec from configs where environment = %s
            order by tenant, workflow, number desc
        ) held
        where jsonb_typeof(spec #> '{monitoring,alerts}') = 'array' and coalesce((spec #>> '{monitoring,enabled}')::bool, true)
        """,
        (environment,),
    ).fetchall()
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def with_target(c: Connection, environment: str) -> list[tuple[str, str | None, str, float]]:
    """(tenant, namespace, workflow, seconds) where a configuration says how long it should take at most."""
    rows = c.execute(
        """
        select tenant, spec ->> 'nameSpace', spec ->> 'id', (spec #>> '{monitoring,sla}')::float8 / 1000 from (
            select distinct on (tenant, workflow) tenant, workflow, spec from configs where environment = %s
            order by tenant, workflow, number desc
        ) held
        where spec #> '{monitoring,sla}' is not null and coalesce((spec #>> '{monitoring,enabled}')::bool, true)
        """,
        (environment,),
    ).fetchall()
    return [(row[0], row[1], row[2], float(row[3])) for row in rows]


def note(c: Connection, name: str, data: Any) -> None:
    """Something to be remembered about files: whether they are watched, and what is wrong with them."""
    c.execute(
        "insert into chores (name, at, data) values (%s, now(), %s::jsonb) on conflict (name) do update set at = now(), data = excluded.data",
        (name, dumps(data)),
    )


def noted(c: Connection, name: str) -> Any:
    row = c.execute("select data from chores where name = %s", (name,)).fetchone()
    return row[0] if row else None


def noted_s_ago(c: Connection, name: str) -> float | None:
    row = c.execute("select extract(epoch from now() - at)::float8 from chores where name = %s", (name,)).fetchone()
    return max(0.0, float(row[0])) if row else None
