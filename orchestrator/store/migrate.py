"""Bringing a database to the schema this version needs. Safe to call by several processes at once.

Everything lives in a schema of its own (DATABASE_SCHEMA), Alembic's table of versions with it: a database that is somebody's already
is left as it is.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql

from orchestrator import migrations
from orchestrator.store import wall
from orchestrator.store.connection import Connection, Unfit, connect, refuse_shared_sessions

VERSIONS = "alembic_version"
# Tables by which an earlier arrangement of the engine is known.
_KNOWN_BY = ("branches", "checkpoints", "instances")


def alembic_config(database_url: str, schema: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["open"] = lambda: connect(database_url, schema, autocommit=False)
    config.attributes["schema"] = schema
    return config


def upgrade(database_url: str, schema: str) -> list[str]:
    """Gives what somebody should know of it, in sentences."""
    with connect(database_url, schema) as guard:
        refuse_shared_sessions(database_url, schema, guard)
        guard.execute("select pg_advisory_lock(hashtextextended(%s, 13))", (f"migrate/{schema}",))
        remarks = _make_schema(guard, schema)
        config = alembic_config(database_url, schema)
        _refuse_others_tables(guard, schema, ScriptDirectory.from_config(config))
        command.upgrade(config, "head")
        return [*remarks, *wall.refresh(guard, schema)]


def current_revision(database_url: str, schema: str) -> str | None:
    with connect(database_url, schema) as connection:
        return revision_of(connection)


def revision_of(c: Connection) -> str | None:
    row = c.execute("select to_regclass(%s)", (VERSIONS,)).fetchone()
    if row is None or row[0] is None:
        return None
    found = c.execute(f"select version_num from {VERSIONS}").fetchone()
    return str(found[0]) if found else None


def _make_schema(c: Connection, schema: str) -> list[str]:
    remarks: list[str] = []
    if c.execute("select 1 from pg_namespace where nspname = %s", (schema,)).fetchone() is None:
        user = sql.Identifier(c.info.user).as_string(c)
        name = sql.Identifier(schema).as_string(c)
        try:
            c.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        except psycopg.errors.InsufficientPrivilege:
            raise Unfit(
                f"user {user} may not create the schema {name} in database {sql.Identifier(c.info.dbname).as_string(c)};"
                f" let its owner run `create schema {name} authorization {user}`, then run `orchestrator migrate` again"
            ) from None
        remarks = _of_old_tables(c, name)
    row = c.execute("select has_schema_privilege(%s, 'create')", (schema,)).fetchone()
    if row is None or not row[0]:
        name, user = sql.Identifier(schema).as_string(c), sql.Identifier(c.info.user).as_string(c)
        raise Unfit(f"user {user} may not create tables in the schema {name}; let its owner run `grant all on schema {name} to {user}`")
    return remarks


def _of_old_tables(c: Connection, name: str) -> list[str]:
    """The engine once lived in `public`; what it left there is nobody's but its user's to throw away."""
    found = c.execute(
        "select count(*) from pg_class where relnamespace = to_regnamespace('public') and relname = any (%s)", (list(_KNOWN_BY),)
    ).fetchone()
    if found is None or found[0] < len(_KNOWN_BY):
        return []
    return [
        (
            f"the schema public holds tables named as the engine's ({', '.join(_KNOWN_BY)}). If an earlier version made them, their"
            f" instances are not taken over into {name}: nothing reads them any more, and they may be dropped"
        )
    ]


def _refuse_others_tables(c: Connection, schema: str, scripts: ScriptDirectory) -> None:
    """What is there must have been made by these migrations."""
    name = sql.Identifier(schema).as_string(c)
    revision = revision_of(c)
    if revision is None:
        rows = c.execute(
            "select relname::text from pg_class where relnamespace = to_regnamespace(quote_ident(%s)) and relkind in ('r', 'p', 'v', 'm', 'f')"
            " and relname <> %s order by 1",
            (schema, VERSIONS),
        ).fetchall()
        if rows:
            names = ", ".join(row[0] for row in rows[:5]) + (", …" if len(rows) > 5 else "")
            raise Unfit(f"the schema {name} holds tables that are not the engine's ({names}); set DATABASE_SCHEMA to another name")
        return
    if revision not in {script.revision for script in scripts.walk_revisions()}:
        raise Unfit(
            f"the schema {name} is at revision '{revision}', which this version does not know: either a newer version of the engine made"
            " it (then install that version or a newer one), or another program did (then set DATABASE_SCHEMA to another name)"
        )
