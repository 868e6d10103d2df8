"""The store against a real PostgreSQL: migrations, registration, claims that race."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.rows import dict_row
from psycopg.types.json import Json
from sqlalchemy import create_engine

from orchestrator.config.settings import SCHEMA
from orchestrator.definition.tree import Definition, Do, Set
from orchestrator.dev.servers import Postgres
from orchestrator.errors import VersionClash
from orchestrator.ids import new_instance_id
from orchestrator.store import branches, definitions, facts, figures, instances, leases, migrate, partitions, retention, wall
from orchestrator.store.connection import Database, Unfit, connect, quoted
from orchestrator.store.instances import New
from orchestrator.store.schema import metadata
from tests.pooler import Pooler
from tests.proofs.system import as_user


def definition(version: str = "1", value: int = 1) -> Definition:
    from orchestrator.definition.expressions import Template

    return Definition(name="d", version=version, do=Do(tasks=(Set(name="s", value=Template({"v": value})),)))


def start(database: Database, number: int = 1) -> list[str]:
    c = database.connection()
    definition_id, _ = definitions.register(c, definition())
    ids = [str(new_instance_id()) for _ in range(number)]
    for instance_id in ids:
        instances.create(
            c,
            New(id=instance_id, definition_id=definition_id, workflow="d", version="1", namespace="default", tenant="default", input="{}"),
        )
    return ids


def test_migrations_and_metadata_say_the_same(database_url: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: connect(database_url, SCHEMA, autocommit=False))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = [d for d in compare_metadata(context, metadata) if not _is_index_or_key(d)]
    engine.dispose()
    assert differences == []


def _is_index_or_key(difference: object) -> bool:
    # Indexes, keys and defaults stand in the migration alone: the metadata serves queries.
    name = difference[0] if isinstance(difference, tuple) else difference[0][0]  # type: ignore[index]
    return str(name) in ("remove_index", "remove_constraint", "remove_fk", "modify_default", "remove_table")


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    before = migrate.current_revision(database_url, SCHEMA)
    migrate.upgrade(database_url, SCHEMA)
    assert migrate.current_revision(database_url, SCHEMA) == before is not None


def test_the_role_of_tenants_is_given_each_table_or_denied_it_by_name(database_url: str) -> None:
    """A migration that makes a table says in `store/wall.py` whether a tenant's statements may touch it."""
    with psycopg.connect(database_url) as c:
        rows = c.execute("select tablename::text from pg_tables where schemaname = %s", (SCHEMA,)).fetchall()
        made = {row[0] for row in rows if not row[0].removeprefix("checkpoints_").isdigit()}
        granted = c.execute(
            "select table_name::text, array_agg(privilege_type::text order by privilege_type::text) from information_schema.role_table_grants"
            " where grantee = %s and table_schema = %s group by 1",
            (wall.role_of(SCHEMA), SCHEMA),
        ).fetchall()
    assert made == {*wall.TABLES, *wall.PRIVATE}
    assert dict(granted) == {table: ["DELETE", "INSERT", "SELECT", "UPDATE"] for table in wall.TABLES}


def test_a_connection_sees_the_schema_alone_and_functions_of_postgres_alone(database_url: str) -> None:
    name = 'a "strange", name; --'
    with psycopg.connect(database_url, autocommit=True) as c:
        c.execute(f"create schema {quoted(name)}")
        c.execute(f"create function {quoted(name)}.now() returns text language sql as $$ select 'taken' $$")
        c.execute("create function public.only_there() returns text language sql as $$ select 'there' $$")
    with connect(database_url, name) as c:
        assert c.execute("select current_schema()::text, current_setting('enable_seqscan')").fetchone() == (name, "off")
        assert c.execute("select now() = transaction_timestamp()").fetchone() == (True,)
        with pytest.raises(psycopg.errors.UndefinedFunction):
            c.execute("select only_there()")
        c.execute("create temp table instances (id int)")
        c.execute(f"create table {quoted(name)}.instances (theirs int)")
        assert c.execute("select count(theirs) from instances").fetchone() == (0,)


def test_tables_that_an_earlier_version_left_in_public_are_told_and_left(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as c:
        c.execute("create database earlier")
    url = f"{postgres.url.rsplit('/', 1)[0]}/earlier"
    with psycopg.connect(url, autocommit=True) as c:
        for table in ("instances", "branches", "checkpoints"):
            c.execute(f"create table {table} (theirs int)")
    [remark] = migrate.upgrade(url, SCHEMA)
    assert "schema public holds tables named as the engine's (branches, checkpoints, instances)" in remark
    assert migrate.upgrade(url, SCHEMA) == []
    with psycopg.connect(url) as c:
        assert c.execute("select count(theirs) from public.instances").fetchone() == (0,)


def test_a_programs_own_connections_read_json_as_they_always_did(database_url: str) -> None:
    with psycopg.connect(database_url) as own:
        assert own.execute("""select '{"$sealed": "x"}'::jsonb""").fetchone() == ({"$sealed": "x"},)
        with pytest.raises(TypeError):
            own.execute("select %s", (Json({"a": object()}),))
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            own.execute("select %s::jsonb", (Json("a\0b"),))


def test_who_made_the_role_may_not_be_it_before_saying_so(postgres: Postgres, database_url: str) -> None:
    """From PostgreSQL 16 on a user with CREATEROLE is a member of what it makes, without the right to become it."""
    with psycopg.connect(postgres.url, autocommit=True) as c:
        c.execute("create role maker login createrole password 'maker'")
        c.execute(f"grant create on database {database_url.rsplit('/', 1)[1]} to maker")
    url = as_user(database_url, "maker")
    try:
        assert migrate.upgrade(url, 'Made "of", 7') == []
        made = Database(url, 'Made "of", 7')
        made.act_for("a")
        assert made.connection().execute("select current_user::text").fetchone() == ('Made "of", 7_api',)
        assert made.connection().execute("select count(*) from instances").fetchone() == (0,)
        made.drop()
    finally:
        with psycopg.connect(database_url, autocommit=True) as c:
            c.execute("drop owned by maker cascade")
            c.execute('drop role "Made ""of"", 7_api"')
            c.execute("drop role maker")


def test_sessions_that_others_get_between_transactions_are_refused(postgres: Postgres, database_url: str) -> None:
    with Pooler(database_url) as pooler:
        url = database_url.replace(f":{postgres.port}/", f":{pooler.port}/")
        with pytest.raises(Unfit, match="use pool_mode session"):
            migrate.upgrade(url, SCHEMA)
        database = Database(url)
        with pytest.raises(Unfit, match="use pool_mode session"):
            database.connection()
        database.drop()
    database = Database(database_url)
    assert database.connection().execute("select 1").fetchone() == (1,)
    database.drop()


def test_migrations_go_down_and_up_again(database_url: str) -> None:
    config = migrate.alembic_config(database_url, SCHEMA)
    command.downgrade(config, "base")
    with psycopg.connect(database_url) as c:
        assert c.execute("select count(*) from pg_tables where schemaname = %s", (SCHEMA,)).fetchone() == (1,)
    migrate.upgrade(database_url, SCHEMA)


def facts_of(database: Database, branch: int) -> int:
    return int(database.connection().execute("select count(*) from checkpoints where branch_id = %s", (branch,)).fetchone()[0])  # type: ignore[index]


def test_ranges_of_histories_are_attached_ahead_and_dropped_when_spent(database_url: str) -> None:
    database, size = Database(database_url), partitions.BRANCHES_EACH
    c = database.connection()
    old, kept = start(database, 2)
    c.execute("select setval(pg_get_serial_sequence('branches', 'id'), %s)", (size + size // 5,))
    assert partitions.make_ahead(c) == ["checkpoints_4"]
    [new] = start(database)
    ids = dict(c.execute("select instance_id::text, id from branches").fetchall())
    for branch in ids.values():
        c.execute("insert into checkpoints (branch_id, seq, position, kind) values (%s, 1, '/do/0/s', 'step.completed')", (branch,))
    c.execute("update instances set state = 'COMPLETED', ended_at = now() - interval '1 day'")

    retention.strip(c, [old])
    assert partitions.drop_spent(c) == []  # one of its branches is left
    assert facts_of(database, ids[kept]) == 1
    retention.strip(c, [kept])
    assert partitions.drop_spent(c) == ["checkpoints_0"]
    assert partitions.make_ahead(c) == []
    assert facts_of(database, ids[old]) == facts_of(database, ids[kept]) == 0
    assert facts_of(database, ids[new]) == 1

    retention.strip(c, [new])
    assert facts_of(database, ids[new]) == 0  # its range is being written: row by row
    database.drop()


def test_a_branch_whose_holder_fell_silent_is_taken_back_by_recovery_alone_and_that_counts_as_a_crash(database_url: str) -> None:
    database = Database(database_url)
    c = database.connection()
    [instance_id] = start(database)
    crashes = []
    for number, owner in enumerate(("a", "b", "c"), 1):
        held = branches.claim(c, instance_id, "", number, owner, 15)
        assert held is not None
        crashes.append(held.crashes)
        c.execute("update branches set lease_until = now() - interval '1 second'")
        assert branches.claim(c, instance_id, "", number, "redelivered", 15) is None
        assert len(leases.recover_expired(c, 10)) == 1
    assert crashes == [0, 1, 2]
    database.drop()


def test_of_many_who_claim_one_branch_exactly_one_gets_it(database_url: str) -> None:
    database = Database(database_url)
    [instance_id] = start(database)
    won: list[str] = []
    barrier = threading.Barrier(8)

    def claim(name: str) -> None:
        own = Database(database_url)
        connection = own.connection()
        barrier.wait()
        if branches.claim(connection, instance_id, "", 1, name, 15) is not None:
            won.append(name)
        own.drop()

    threads = [threading.Thread(target=claim, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    database.drop()


def test_of_two_who_write_the_same_number_the_first_wins(database_url: str) -> None:
    from orchestrator.history import Fact
    from orchestrator.ids import Position

    database = Database(database_url)
    [instance_id] = start(database)
    c = database.connection()
    held = branches.claim(c, instance_id, "", 1, "me", 15)
    assert held is not None

    assert facts.commit(c, held, 0, [Fact(Position("/do/0/s"), "decided", {"n": 1})], []) == ("RUNNING", False)
    assert facts.commit(c, held, 0, [Fact(Position("/do/0/s"), "decided", {"n": 2})], []) is None

    assert [fact.data for fact in facts.after(c, held, 0)] == [{"n": 1}]
    database.drop()


def test_a_message_of_an_older_generation_is_void(database_url: str) -> None:
    database = Database(database_url)
    [instance_id] = start(database)
    c = database.connection()
    assert branches.claim(c, instance_id, "", 1, "dead", -1) is not None
    [recovered] = leases.recover_expired(c, 10)

    assert recovered[2] == 2
    assert branches.claim(c, instance_id, "", 1, "late", 15) is None
    assert branches.claim(c, instance_id, "", 2, "next", 15) is not None
    database.drop()


def test_a_used_version_is_immutable_an_unused_one_is_not(database_url: str) -> None:
    database = Database(database_url)
    c = database.connection()
    first, fresh = definitions.register(c, definition(value=1))
    assert fresh
    assert definitions.register(c, definition(value=1)) == (first, False)
    assert definitions.register(c, definition("1.0.0", value=2))[1]
    instance_id = str(new_instance_id())
    used, _ = definitions.register(c, definition(value=2))
    instances.create(
        c, New(id=instance_id, definition_id=used, workflow="d", version="1", namespace="default", tenant="default", input="{}")
    )

    with pytest.raises(VersionClash, match="raise the version"):
        definitions.register(c, definition(value=3))
    database.drop()


def test_a_major_means_its_newest(database_url: str) -> None:
    database = Database(database_url)
    c = database.connection()
    for version in ("1.0.0", "1.2.0", "1.10.1", "2.0.0"):
        definitions.register(c, definition(version))

    found = {asked: definitions.find(c, "d", asked) for asked in ("1", "1.0", "1.0.0", "1.2", None)}

    assert {asked: stored.version for asked, stored in found.items() if stored} == {
        "1": "1.10.1",
        "1.0": "1.0.0",
        "1.0.0": "1.0.0",
        "1.2": "1.2.0",
        None: "2.0.0",
    }
    database.drop()


def test_a_broken_line_is_mended_and_the_act_repeated(database_url: str) -> None:
    database = Database(database_url)
    pid = database.connection().info.backend_pid
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s)", (pid,))

    assert database.patiently(lambda c: c.execute("select 1").fetchone()) == (1,)
    database.drop()


def test_the_moves_of_resources_are_forgotten_in_the_end_and_deleted_ones_with_them(database_url: str) -> None:
    from orchestrator.store import resources

    with psycopg.connect(database_url, autocommit=True) as c:
        for name in ("old", "new"):
            for to in ("PENDING", "CREATING", "ACTIVE", "DELETING", "DELETED"):
                resources.move(c, "proxy", name, to)
        with pytest.raises(ValueError, match="DELETED"):
            resources.move(c, "proxy", "new", "UPDATING")
        c.execute("update resource_moves set at = now() - interval '2 days' where name = 'old'")
        c.execute("update resources set changed_at = now() - interval '2 days' where name = 'old'")
        assert resources.forget(c, 86400.0) == 5
        assert [one.name for one in resources.all_resources(c)] == ["new"]
        assert [move["to"] for move in resources.moves(c, "proxy", "new")] == ["PENDING", "CREATING", "ACTIVE", "DELETING", "DELETED"]


def test_events_are_forgotten_when_they_are_done_with_and_old(database_url: str) -> None:
    from orchestrator.store import events
    from orchestrator.store.events import Arrival

    with psycopg.connect(database_url, autocommit=True) as c:
        arrivals = [
            Arrival({"id": str(n), "source": "s", "type": "t"}, state=state) for n, state in enumerate(("taken", "held", "working", "dead"))
        ]
        events.keep_all(c, arrivals)
        assert events.forget(c, 3600.0, 10) == 0
        c.execute("update events set at = now() - interval '2 hours'")
        assert events.forget(c, 3600.0, 10) == 1
        assert sorted(row[0] for row in c.execute("select state from events").fetchall()) == ["dead", "held", "working"]


def test_a_statement_that_takes_long_is_told_without_its_values(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(database_url, slow_s=0.1)
    c = database.connection()
    c.execute("select pg_sleep(%s), %s", (0.0, "s3cret"))
    assert not caplog.records
    c.execute("select pg_sleep(%s),\n   %s", (0.15, "s3cret"))
    c.execute("set statement_timeout = 150")
    with pytest.raises(psycopg.errors.QueryCanceled), c.cursor(row_factory=dict_row) as cursor:
        cursor.execute("select pg_sleep(5)")
    told = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"\d+ ms", "N ms", line) for line in told] == [
        "a statement took N ms: select pg_sleep(%s), %s",
        "a statement took N ms: select pg_sleep(5)",
    ]
    assert figures.at_work_in_postgres(c)[1] < 1
    with ThreadPoolExecutor(1) as other, psycopg.connect(database_url) as busy:
        asleep = other.submit(busy.execute, "select pg_sleep(0.6)")
        time.sleep(0.4)
        assert 0.2 < figures.at_work_in_postgres(c)[1] < 0.6
        asleep.result()
    database.drop()
