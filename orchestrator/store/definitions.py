"""Definitions: immutable once used, found by name and version. 1, 1.0 and 1.0.0 are the same version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.definition.codec import to_json
from orchestrator.definition.tree import Definition
from orchestrator.definition.versions import parse_version, suffix
from orchestrator.errors import InUse, Refused, VersionClash
from orchestrator.store import locks
from orchestrator.store.connection import Connection, dumps

# No tenant can be named so.
CONFIGURED = "#"


@dataclass(frozen=True, slots=True)
class Stored:
    id: int
    namespace: str
    name: str
    version: str
    tree: Any
    source: str | None
    created_at: Any
    tenant: str = "default"


def digest(definition: Definition) -> str:
    return hashlib.sha256(dumps(to_json(definition)).encode()).hexdigest()


def register(c: Connection, definition: Definition, source: str | None = None, tenant: str = "default") -> tuple[int, bool]:
    """Store the definition; the same content again changes nothing. Gives its id and whether something changed.

    A version nobody used yet may be replaced; a used one raises `VersionClash`.
    """
    hashed = digest(definition)
    major, minor, patch = parse_version(definition.version)
    with c.transaction():
        # The lock keeps two registrations, and a registration and a first start, apart.
        locks.hold(c, "definition", tenant, definition.namespace, definition.name)
        row = c.execute(
            "select id, digest from definitions where tenant = %s and namespace = %s and name = %s and major = %s and minor = %s"
            " and patch = %s and coalesce(substring(version from '[-+].*$'), '') = %s",
            (tenant, definition.namespace, definition.name, major, minor, patch, suffix(definition.version)),
        ).fetchone()
        if row is not None and row[1] == hashed:
            return row[0], False
        if row is not None:
            if c.execute("select 1 from instances where definition_id = %s limit 1", (row[0],)).fetchone():
                raise VersionClash(definition.name, definition.version)
            # A new row instead of a changed one: workers may hold the old tree under its id.
            c.execute("delete from definitions where id = %s", (row[0],))
        fresh = c.execute(
            "insert into definitions (tenant, namespace, name, version, major, minor, patch, tree, digest, source)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s) returning id",
            (
                tenant,
                definition.namespace,
                definition.name,
                definition.version,
                major,
                minor,
                patch,
                dumps(to_json(definition)),
                hashed,
                source,
            ),
        ).fetchone()
        assert fresh is not None
        return fresh[0], True


@dataclass(frozen=True, slots=True)
class Newest:
    id: int
    version: str
    patch: int
    digest: str


def newest_patch(c: Connection, tenant: str, definition: Definition) -> Newest | None:
    """The newest there is of this workflow's major and minor version."""
    major, minor, _ = parse_version(definition.version)
    row = c.execute(
        "select id, version, patch, digest from definitions where tenant = %s and namespace = %s and name = %s and major = %s and minor = %s"
        " and coalesce(substring(version from '[-+].*$'), '') = %s order by patch desc limit 1",
        (tenant, definition.namespace, definition.name, major, minor, suffix(definition.version)),
    ).fetchone()
    return Newest(*row) if row else None


def withdraw(c: Connection, tenant: str, namespace: str, name: str) -> list[str]:
    """Found by nobody's name any more; kept for histories of instances that ended. Gives the versions."""
    locks.hold(c, "definition", tenant, namespace, name)
    rows = c.execute(
        "select id, version, source is null from definitions where tenant = %s and namespace = %s and name = %s for update",
        (tenant, namespace, name),
    ).fetchall()
    if any(is_code for _, _, is_code in rows):
        raise Refused(f"'{name}' is code: every worker would register it again; take it out of ORCHESTRATOR_WORKFLOWS")
    ids = [row[0] for row in rows]
    row = c.execute(
        "select count(*) from instances where namespace = %s and workflow = %s and state not in ('COMPLETED', 'FAILED', 'CANCELLED',"
        " 'CLEANING_UP') and (definition_id = any (%s) or tenant = %s)",
        (namespace, name, ids, tenant),
    ).fetchone()
    if row is not None and row[0]:
        raise InUse(f"{row[0]} instances of '{name}' have not ended; wait for them, or cancel them")
    # Who found it an instant ago may still begin with it: the row stays.
    c.execute("update definitions set tenant = %s || id where id = any (%s)", (f"{CONFIGURED}withdrawn:", ids))
    return [row[1] for row in rows]


def variant(c: Connection, definition: Definition) -> int:
    """The definition as it is under a configuration: kept for instances that begin with it, found by nobody's name."""
    hashed = digest(definition)
    tenant = f"{CONFIGURED}{hashed[:24]}"
    major, minor, patch = parse_version(definition.version)
    c.execute(
        "insert into definitions (tenant, namespace, name, version, major, minor, patch, tree, digest)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s) on conflict do nothing",
        (tenant, definition.namespace, definition.name, definition.version, major, minor, patch, dumps(to_json(definition)), hashed),
    )
    row = c.execute(
        "select id from definitions where tenant = %s and namespace = %s and name = %s and version = %s",
        (tenant, definition.namespace, definition.name, definition.version),
    ).fetchone()
    assert row is not None
    return int(row[0])


_COLUMNS = "id, namespace, name, version, tree, source, created_at, tenant"


def by_id(c: Connection, definition_id: int) -> Stored | None:
    row = c.execute(f"select {_COLUMNS} from definitions where id = %s", (definition_id,)).fetchone()
    return Stored(*row) if row else None


def find(c: Connection, name: str, version: str | None, namespace: str | None = None, tenant: str = "default") -> Stored | None:
    """The newest version that fits: all of it, or of a major, or of a major and minor. A tenant's own come before everybody's."""
    parts, named = parse_parts(version), _named(version)
    row = c.execute(
        f"""
        select {_COLUMNS} from definitions
        where name = %s and tenant in (%s, 'default') and (%s::text is null or namespace = %s)
          and (%s::int is null or major = %s) and (%s::int is null or minor = %s) and (%s::int is null or patch = %s)
          and (%s = '' or version like '%%' || %s)
        order by (tenant = %s) desc, (namespace = 'default') desc,
            (major, minor) = (%s, %s) desc, major desc, minor desc, patch desc, (version ~ '-') asc, id desc limit 1
        """,
        (
            name, tenant, namespace, namespace, *(p for part in parts for p in (part, part)), *(suffix(version or ""),) * 2, tenant,
            *named,
        ),
    ).fetchone()  # fmt: skip
    return Stored(*row) if row else None


def namespaces_of(c: Connection, name: str, tenant: str) -> list[str]:
    """Where a tenant sees workflows of a name."""
    rows = c.execute("select distinct namespace from definitions where name = %s and tenant in (%s, 'default')", (name, tenant)).fetchall()
    return [row[0] for row in rows]


def dependants(c: Connection, tenant: str) -> list[Stored]:
    """Every version that a tenant sees, the newest first; of their trees, what they depend on."""
    rows = c.execute(
        """
        select id, namespace, name, version, jsonb_build_object('dependencies', tree -> 'dependencies'), null, created_at, tenant
        from definitions where tenant in (%s, 'default') order by namespace, name, major desc, minor desc, patch desc
        """,
        (tenant,),
    ).fetchall()
    return [Stored(*row) for row in rows]


def parse_parts(version: str | None) -> tuple[int | None, int | None, int | None]:
    """What a request fixes. "1" names a major's newest; and so does "1.0", which is the same version, where there is no 1.0.x."""
    if version is None or version in ("", "latest"):
        return None, None, None
    major, minor, patch = parse_version(version)
    written = _written(version)
    if written == 1 or (minor == 0 and written == 2):
        return major, None, None
    return (major, minor, patch) if written == 3 else (major, minor, None)


def _named(version: str | None) -> tuple[int, int]:
    """The major and minor whose newest goes before newer ones: who writes "1.0" means that where it is there."""
    return parse_version(version)[:2] if version not in (None, "", "latest") and _written(version or "") > 1 else (-1, -1)


def _written(version: str) -> int:
    return len(version.removesuffix(suffix(version)).split("."))


def newest(found: Iterable[Stored], tenant: str) -> list[Stored]:
    """Of all versions, the newest first, each workflow once; a tenant's own comes before everybody's."""
    held: dict[tuple[str, str], Stored] = {}
    for stored in found:
        name = (stored.namespace, stored.name)
        if name not in held or (held[name].tenant == "default" and stored.tenant == tenant != "default"):
            held[name] = stored
    return list(held.values())


def all_definitions(c: Connection) -> list[Stored]:
    rows = c.execute(
        f"select {_COLUMNS} from definitions where left(tenant, 1) <> '{CONFIGURED}' order by namespace, name, major desc, minor desc, patch desc"
    ).fetchall()
    return [Stored(*row) for row in rows]
