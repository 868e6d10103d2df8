"""The wall between tenants: row-level security for whoever asks in the name of one.

The engine is the tables' owner, and none of this applies to it. Which rows a role sees is said by the migration that makes a
table (`m0012` for all that were there before); a test finds a table with a column `tenant` that has no wall. What the role may touch
at all is said here, table by table: nothing that somebody else keeps in the database, or in this schema, is given away.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
from psycopg import sql

TENANT = "orchestrator.tenant"
LONGEST = 63
TABLES = (
    "api_keys", "audit", "audit_seals", "branches", "checkpoints", "chores", "configs", "dead_letters", "definitions", "deliveries",
    "dependencies", "effects", "events", "fires", "instances", "leadership", "outbox", "resource_moves", "resources", "schedules",
    "security_events", "slots", "stream_entries", "stream_groups", "stream_pending", "subscriptions", "timers", "triggers", "webhooks",
    "windows", "workers", "findings",
)  # fmt: skip
# Nobody who asks for one tenant has any business with these.
PRIVATE = ("alembic_version", "secrets")


def role_of(schema: str) -> str:
    """Roles are the whole server's: each schema has one of its own. What is too long is cut as PostgreSQL does, before its end."""
    return schema.encode()[: LONGEST - 4].decode(errors="ignore") + "_api"


def refresh(c: psycopg.Connection[Any], schema: str) -> list[str]:
    """The role and what it may touch: after every migration, also where it could not be made before. Gives what is to be said."""
    role = role_of(schema)
    try:
        if not _exists(c, role):
            # Somebody else may have done it a moment ago.
            with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                c.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))
        with c.transaction():
            if not stands(c, schema):
                c.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(role)))
            c.execute(sql.SQL("grant usage on schema {} to {}").format(sql.Identifier(schema), sql.Identifier(role)))
            tables = sql.SQL(", ").join(sql.Identifier(schema, table) for table in TABLES)
            c.execute(sql.SQL("grant select, insert, update, delete on {} to {}").format(tables, sql.Identifier(role)))
    except psycopg.errors.InsufficientPrivilege as error:
        return [
            (
                f"tenants are kept apart by the API alone: {str(error).splitlines()[0]}. Let an administrator run `{remedy(c, schema)}`,"
                " then run `orchestrator migrate` again"
            )
        ]
    return []


def remedy(c: psycopg.Connection[Any], schema: str) -> str:
    """What an administrator does where this user may not."""
    role = sql.Identifier(role_of(schema)).as_string(c)
    grant = f"grant {role} to {sql.Identifier(c.info.user).as_string(c)}"
    return grant if _exists(c, role_of(schema)) else f"create role {role} nologin; {grant}"


def _exists(c: psycopg.Connection[Any], role: str) -> bool:
    return c.execute("select 1 from pg_roles where rolname = %s", (role,)).fetchone() is not None


def stands(c: psycopg.Connection[Any], schema: str) -> bool:
    """Whether this user can step behind it."""
    # Who made a role is its member from PostgreSQL 16 on, and may not become it before saying so.
    how = "SET" if c.info.server_version >= 160_000 else "MEMBER"
    row = c.execute(
        "select exists (select 1 from pg_roles where rolname = %s and pg_has_role(current_user, oid, %s))", (role_of(schema), how)
    ).fetchone()
    return bool(row and row[0])
