"""Bringing a database to the schema this version needs. Safe to call by several processes at once."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config

from orchestrator import migrations
from orchestrator.store import wall

_LOCK = 0x0C_E1_E5_01


def alembic_config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    # Alembic reads its options through configparser, in which a percent sign begins an interpolation.
    config.set_main_option("sqlalchemy.url", sqlalchemy_url(database_url).replace("%", "%%"))
    return config


def sqlalchemy_url(database_url: str) -> str:
    for prefix in ("postgresql://", "postgres://"):
        if database_url.startswith(prefix):
            return "postgresql+psycopg://" + database_url[len(prefix) :]
    return database_url


def upgrade(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as guard:
        guard.execute("select pg_advisory_lock(%s)", (_LOCK,))
        command.upgrade(alembic_config(database_url), "head")
        for statement in wall.refresh():
            guard.execute(statement)


def current_revision(database_url: str) -> str | None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        known = connection.execute("select to_regclass('alembic_version')").fetchone()
        if known is None or known[0] is None:
            return None
        row = connection.execute("select version_num from alembic_version").fetchone()
        return row[0] if row else None
