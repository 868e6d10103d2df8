"""A Postgres that is somebody's already: the engine lives in a schema of its own, and leaves the rest as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests.proofs.system import as_user, schema_of
from tests.stack import Stack, until

pytestmark = [pytest.mark.proves(41), pytest.mark.slow]

THEIRS = """
create table customers (id int primary key, name text);
insert into customers values (1, 'Ada');
create table alembic_version (version_num varchar(32) primary key);
insert into alembic_version values ('8f2ab91c77d0');
create table workers (id int primary key, wage numeric);
create table instances (id int primary key, theirs text);
insert into instances values (1, 'x');
create function now(text) returns text language sql as 'select $1';
"""
_numbers = iter(range(1, 1000))


class Theirs:
    """Their database, and a user of theirs that is no superuser, unless wanted otherwise."""

    def __init__(self, postgres: Postgres, folder: Path, redis_url: str) -> None:
        self.name, self.user = f"theirs{next(_numbers)}", f"shop{os.getpid()}{next(_numbers)}"
        self.postgres, self.folder, self.redis_url = postgres, folder, redis_url
        with psycopg.connect(postgres.url, autocommit=True) as c:
            c.execute(f"create role {self.user} login password '{self.user}'")
            c.execute(f"create database {self.name} owner {self.user}")
        with self.connect() as c:
            c.execute(THEIRS)

    def connect(self, user: str | None = None) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(user), autocommit=True)

    def url(self, user: str | None = None) -> str:
        url = f"{self.postgres.url.rsplit('/', 1)[0]}/{self.name}"
        return url if user == "postgres" else as_user(url, user or self.user)

    def run(self, *command: str, user: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *command],
            env={**os.environ, "DATABASE_URL": self.url(user), "REDIS_URL": self.redis_url, "CONFIG_DIR": str(self.folder / "none"),
                 "ORCHESTRATOR_WORKFLOWS": "tests.workflows", **variables},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def tables(self, schema: str = "public") -> set[str]:
        with self.connect("postgres") as c:
            return {row[0] for row in c.execute("select tablename::text from pg_tables where schemaname = %s", (schema,)).fetchall()}


@pytest.fixture
def theirs(postgres: Postgres, redis_server: Redis, tmp_path: Path) -> Theirs:
    return Theirs(postgres, tmp_path, redis_server.url)


BEFORE = {"customers", "alembic_version", "workers", "instances"}


def test_their_tables_stay_and_nothing_is_added_to_them(theirs: Theirs) -> None:
    """A foreign `alembic_version`, tables of our names, a user who may not make roles."""
    done = theirs.run("migrate")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert theirs.tables() == BEFORE
    assert {"instances", "branches", "checkpoints", "alembic_version"} <= theirs.tables("orchestrator")
    with theirs.connect() as c:
        assert c.execute("select version_num from public.alembic_version").fetchall() == [("8f2ab91c77d0",)]
        assert c.execute("select * from public.instances").fetchall() == [(1, "x")]
    assert "tenants are kept apart by the API alone" in done.stderr
    again = theirs.run("migrate")
    assert again.returncode == 0, again.stderr


def test_the_role_of_tenants_may_touch_nothing_of_theirs(theirs: Theirs) -> None:
    """Neither what is there, nor what they make later, in whichever schema."""
    with theirs.connect() as c:
        c.execute("drop table alembic_version, workers, instances")
    done = theirs.run("migrate", user="postgres")
    with theirs.connect("postgres") as c:
        c.execute("create table later (id int)")
        roles = [row[0] for row in c.execute("select rolname::text from pg_roles where rolname ~ '_api$'").fetchall()]
        assert roles, done.stderr
        granted = c.execute(
            "select distinct table_schema || '.' || table_name from information_schema.role_table_grants where grantee = any (%s)", (roles,)
        ).fetchall()
    touched = {row[0] for row in granted}
    assert "public.customers" not in touched
    assert "public.later" not in touched
    assert {name for name in touched if not name.startswith("orchestrator.")} == set()
    assert not {name for name in touched if "secrets" in name or "alembic" in name}


def test_a_whole_engine_runs_beside_their_tables(theirs: Theirs, redis_server: Redis, tmp_path: Path) -> None:
    assert theirs.run("migrate").returncode == 0
    stack = Stack(theirs.url(), redis_server, tmp_path)
    try:
        stack.worker()
        started = theirs.run("start", "fork", "--wait", "--json")
        assert started.returncode == 0, started.stderr
        doctor = theirs.run("doctor")
        assert "Traceback" not in doctor.stderr
        with theirs.connect() as c:
            assert c.execute("select * from public.instances").fetchall() == [(1, "x")]
            schema = schema_of(c)
            assert c.execute(f'select state from "{schema}".instances').fetchall() == [("COMPLETED",)]
    finally:
        stack.stop()


def test_a_schema_that_is_anothers_is_refused_in_a_sentence(theirs: Theirs) -> None:
    with theirs.connect() as c:
        c.execute("create schema accounts")
        c.execute("create table accounts.ledger (id int)")
        c.execute("create schema versioned")
        c.execute("create table versioned.alembic_version (version_num text)")
        c.execute("insert into versioned.alembic_version values ('8f2ab91c77d0')")
    with theirs.connect("postgres") as c:
        c.execute("create schema closed")
    for schema, said in (
        ("accounts", "holds tables that are not the engine's (ledger); set DATABASE_SCHEMA to another name"),
        ("versioned", "is at revision '8f2ab91c77d0', which this version does not know"),
        ("closed", "may not create tables in the schema"),
        ("public", "DATABASE_SCHEMA"),
        ("pg_mine", "DATABASE_SCHEMA"),
    ):
        done = theirs.run("migrate", DATABASE_SCHEMA=schema)
        assert done.returncode == 2, f"{schema}: {done.stdout} {done.stderr}"
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert theirs.tables() == BEFORE


def test_a_user_who_may_not_make_schemas_is_told_what_an_owner_can_do(theirs: Theirs, postgres: Postgres) -> None:
    guest = f"{theirs.user}_guest"
    with theirs.connect("postgres") as c:
        c.execute(f"create role {guest} login password '{guest}'")
        c.execute(f"grant all on schema public to {guest}")
    done = theirs.run("migrate", user=guest)
    assert done.returncode == 2, done.stderr
    assert "create schema" in done.stderr
    assert guest in done.stderr
    with theirs.connect("postgres") as c:
        c.execute(f"create schema orchestrator authorization {guest}")
    done = theirs.run("migrate", user=guest)
    assert done.returncode == 0, done.stderr
    assert theirs.tables() == BEFORE


def test_two_engines_in_one_database_know_nothing_of_each_other(theirs: Theirs, redis_server: Redis, tmp_path: Path) -> None:
    """By schemas whose names need quoting, too; over one Redis."""
    names = ("billing", 'Ware "house", 7')
    stacks = []
    try:
        for number, name in enumerate(names):
            assert theirs.run("migrate", DATABASE_SCHEMA=name).returncode == 0
            folder = tmp_path / str(number)
            folder.mkdir()
            stack = Stack(theirs.url(), redis_server, folder)
            stack.environment.update({"DATABASE_SCHEMA": name, "QUEUE_GRACE": "120"})
            stacks.append(stack)
        for stack in stacks:
            stack.worker()
        ids: dict[str, list[str]] = {name: [] for name in names}
        for _ in range(3):
            for name in names:
                started = theirs.run("start", "fork", DATABASE_SCHEMA=name)
                assert started.returncode == 0, started.stderr
        with theirs.connect() as c:
            for name in names:
                quoted = '"' + name.replace('"', '""') + '"'
                # A message that the other engine's worker takes is lost until the grace of two minutes.
                until(
                    lambda q=quoted: c.execute(f"select count(*), count(*) filter (where state = 'COMPLETED') from {q}.instances").fetchone() == (3, 3),
                    30,
                    name,
                )  # fmt: skip
                ids[name] = [row[0] for row in c.execute(f"select id::text from {quoted}.instances").fetchall()]
                strangers = f"select count(*) from {quoted}.leadership where owner not in (select id from {quoted}.workers)"
                assert c.execute(strangers).fetchone() == (0,)
                assert c.execute(f"select count(*) from {quoted}.workers").fetchone() == (1,)
        assert not set(ids[names[0]]) & set(ids[names[1]])
        heads = {key.partition(":")[0] for key in stacks[0].redis.keys("*")}
        assert "billing" in heads
        assert len(heads) == 2, heads
        # Locks of one do not hold up the other: its migration waits for nobody.
        with theirs.connect() as c:
            c.execute('set search_path = "billing"')
            for key in (771, 772, 773, 0x0C_E1_E5_01):
                c.execute("select pg_advisory_lock(%s)", (key,))
            assert theirs.run("migrate", DATABASE_SCHEMA=names[1]).returncode == 0
    finally:
        for stack in stacks:
            stack.stop()
