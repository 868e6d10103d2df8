"""The second wall between tenants: what Postgres lets be seen when everything before it has failed."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from orchestrator.api import asked, gate
from orchestrator.config.settings import SCHEMA
from orchestrator.security.principals import Principal
from orchestrator.store import wall
from orchestrator.store.connection import Database
from tests.acceptance.test_security import routes
from tests.guarded import guarded, key
from tests.proofs.system import as_user
from tests.stack import Stack


def as_tenant(stack: Stack, tenant: str) -> psycopg.Connection[Any]:
    c = psycopg.connect(stack.database_url, autocommit=True)
    c.execute("select set_config('role', %s, false), set_config(%s, %s, false)", (wall.role_of(SCHEMA), wall.TENANT, tenant))
    return c


def test_every_table_that_knows_a_tenant_stands_behind_it(stack: Stack) -> None:
    with_tenant = {
        row[0]
        for row in stack.sql(
            "select table_name::text from information_schema.columns where column_name = 'tenant' and table_schema = 'orchestrator'"
        )
    }
    walled = {row[0] for row in stack.sql("select relname::text from pg_class where relrowsecurity")}
    assert with_tenant
    assert with_tenant <= walled
    # What belongs to an instance or a branch does, too.
    parts = {
        row[0]
        for row in stack.sql(
            "select table_name::text from information_schema.columns where column_name in ('instance_id', 'branch_id') and table_schema = 'orchestrator' and table_name !~ '_[0-9]+$'"
        )
    }
    assert parts
    assert parts <= walled


def test_as_one_tenant_nothing_of_another_is_there(stack: Stack) -> None:
    stack.worker()
    ids = {tenant: stack.runner.start_workflow("numbered", input={"n": 1}, tenant=tenant) for tenant in ("a", "b")}
    for instance_id in ids.values():
        stack.ended(instance_id)
    for tenant in ("a", "b"):
        stack.runner.send_events([{"id": "1", "source": "s", "type": "t"}], tenant=tenant)
        stack.runner.put_trigger({"name": "x", "on": "nothing", "start": "numbered"}, tenant=tenant)
        stack.runner.schedules.add({"id": "s", "workflow": "numbered", "cron": "0 0 * * *"}, tenant=tenant)
        stack.runner.configs.save({"id": "numbered", "timeout": 5000}, tenant=tenant)
    with as_tenant(stack, "a") as c:
        assert c.execute("select id::text from instances").fetchall() == [(ids["a"],)]
        for table in ("branches", "checkpoints", "events", "triggers", "schedules", "audit"):
            mine = c.execute(f"select count(*) from {table}").fetchone()
            everything = stack.sql(f"select count(*) from {table}")
            assert 0 < mine[0] < everything[0][0], table  # type: ignore[index]
        assert c.execute("select distinct tenant from configs").fetchall() == [("a",)]
        assert c.execute("update instances set state = 'FAILED' where tenant = 'b'").rowcount == 0
        assert c.execute("delete from triggers where tenant = 'b'").rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            c.execute("insert into triggers (tenant, name, spec, origin) values ('b', 'mine', '{}', 'api')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            c.execute("update schedules set tenant = 'b'")
        # Everybody's definitions are read, and are not one tenant's to change.
        assert c.execute("select count(*) from definitions where tenant = 'default'").fetchone() != (0,)
        assert c.execute("update definitions set source = 'x' where tenant = 'default'").rowcount == 0
    with psycopg.connect(stack.database_url, autocommit=True) as c:
        c.execute(f"set role {wall.role_of(SCHEMA)}")
        assert c.execute("select count(*) from instances").fetchone() == (0,), "who names no tenant sees nothing"


def test_an_api_that_forgets_to_ask_whose_it_is_shows_nothing_all_the_same(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = guarded(stack).test_client()
    secret = stack.runner.start_workflow("numbered", input={"n": 4711}, tenant="a")
    stack.runner.send_events([{"id": "1", "source": "s", "type": "t", "data": "secret of a"}], tenant="a")
    mine, theirs = key(stack, "admin", tenant="a"), key(stack, "admin", tenant="b")
    # The first wall falls: nobody asks whose an instance is, every list is of all tenants, every name is found.
    monkeypatch.setattr(asked, "only_tenant", lambda: None)
    monkeypatch.setattr(gate, "_check_instance", lambda *_: None)
    monkeypatch.setattr(Principal, "may_touch", lambda *_: True)
    paths = [
        "/workflow/instances", "/workflow/history", f"/workflow/instance/{secret}", f"/workflow/instance/{secret}/history", "/workflow/events",
        "/workflow/audit", "/api/history", "/a/executions", f"/a/executions/{secret}",
    ]  # fmt: skip
    for path in paths:
        seen = client.get(path, headers=theirs)
        assert seen.status_code == 404 or secret not in seen.text, path
        assert "4711" not in seen.text, path
        assert "secret of a" not in seen.text, path
    assert secret in client.get("/workflow/instances", headers=mine).text
    # And afterwards the same thread serves who may see everything.
    assert secret in client.get("/workflow/instances", headers=key(stack, "admin")).text


def test_a_connection_that_is_made_anew_stands_behind_the_wall_again(stack: Stack) -> None:
    database = stack.runner.database
    stack.runner.start_workflow("numbered", input={"n": 1}, tenant="a")
    try:
        database.act_for("b")
        assert database.patiently(lambda c: c.execute("select count(*) from instances").fetchone()) == (0,)
        pid = database.connection().info.backend_pid
        with psycopg.connect(stack.database_url, autocommit=True) as c:
            c.execute("select pg_terminate_backend(%s)", (pid,))
        assert database.patiently(lambda c: c.execute("select count(*) from instances").fetchone()) == (0,)
        assert database.connection().info.backend_pid != pid
    finally:
        database.act_for(None)
    assert database.patiently(lambda c: c.execute("select count(*) from instances").fetchone()) == (1,)


def test_without_the_role_the_api_goes_on_and_says_so(stack: Stack) -> None:
    """Where the database's user may not make roles: the first wall stands, and the missing one is told."""
    with psycopg.connect(stack.database_url, autocommit=True) as c:
        c.execute("create role weak login password 'weak'")
        database = stack.database_url.rsplit("/", 1)[1]
        for what in (
            "schema orchestrator",
            "all tables in schema orchestrator",
            "all sequences in schema orchestrator",
            f"database {database}",
        ):
            c.execute(f"grant all on {what} to weak")
    weak = as_user(stack.database_url, "weak")
    try:
        database_of = Database(weak)
        database_of.act_for("a")
        assert database_of.connection().execute("select current_user::text").fetchone() == ("weak",)
        assert database_of.has_wall is False
        assert not wall.stands(database_of.connection(), SCHEMA)
        database_of.drop()
        assert wall.stands(stack.runner.database.connection(), SCHEMA)
    finally:
        with psycopg.connect(stack.database_url, autocommit=True) as c:
            c.execute("drop owned by weak")
            c.execute("drop role weak")


@pytest.mark.parametrize("second_wall", [True, False])
def test_by_no_way_of_asking_does_a_tenant_read_what_is_anothers(stack: Stack, second_wall: bool) -> None:
    """Every GET there is, asked by another tenant's administrator, for names that are there: with the second wall, and without."""
    app = guarded(stack, rate_limit="")
    app.extensions["runner"].database.has_wall = second_wall
    client = app.test_client()
    a, b = key(stack, "admin", tenant="acme"), key(stack, "admin", tenant="other", name="b")
    secret = "needle-4711"
    instance = client.post(
        "/workflow/start/numbered", json={"data": {"n": 1, "x": secret}, "metadata": {"x": secret}}, headers=a
    ).get_json()
    stack.worker()
    stack.ended(instance["instanceId"])
    definition = {"name": secret, "version": 1, "steps": [{"id": secret, "type": "noop"}]}
    for method, path, body in (
        ("POST", "/workflow/workflows", definition),
        ("POST", "/workflow/events", {"id": secret, "source": secret, "type": "t", "data": secret}),
        ("POST", "/workflow/schedules", {"id": "x", "workflow": secret, "cron": "0 0 * * *", "properties": {"n": 1, "x": secret}}),
        ("POST", "/workflow/schedules/x/run", {}),
        ("POST", "/workflow/triggers", {"name": "x", "on": secret, "start": secret}),
        ("POST", "/workflow/webhooks", {"name": "x", "url": f"http://{secret}", "secret": secret}),
        ("POST", "/workflow/configs", {"id": "numbered", "properties": {"x": secret}}),
        ("POST", "/workflow/keys", {"name": secret, "roles": ["viewer"]}),
        ("POST", f"/workflow/instance/{instance['instanceId']}/signal", {"name": secret, "data": secret}),
        ("GET", "/workflow/instance/nobody", None),
    ):
        assert client.open(path, method=method, json=body, headers=a).status_code < 500, path
    asked = 0
    found_by_a = 0
    for endpoint, method, path, needed in routes(app):
        if method != "GET" or needed == gate.PUBLIC or endpoint in ("live.events", "live.instance"):
            continue
        for url in {
            path.replace("{instance}", instance["instanceId"]),
            path.replace("{instance}", "ex_" + instance["instanceId"]),
            path.replace("/numbered", f"/{secret}").replace("{instance}", instance["instanceId"]),
            path.replace("/default/", "/acme/").replace("{instance}", instance["instanceId"]),
        }:
            shown = client.get(url, headers=b)
            if shown.status_code < 400:  # what says that nothing is there repeats what was asked for
                assert secret not in shown.text, f"{url}: {shown.text[:500]}"
                assert instance["instanceId"] not in shown.text, f"{url}: {shown.text[:500]}"
            asked += 1
            found_by_a += secret in client.get(url, headers=a).text
    assert asked > 80
    assert found_by_a > 15, "the owner sees it"
