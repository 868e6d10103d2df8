"""Configurations of workflows: each key's effect on the next start, versions, environments, and files that are read again."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Workflow
from orchestrator.api import create_app
from orchestrator.definition import configured
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Disabled, Invalid, NotFound
from tests.guarded import guarded, key
from tests.stack import Stack, until

SAMPLE = """
id: "data-processing"
nameSpace: "etl"
name: "Data Processing Pipeline"
version: "1.0"
enabled: true
maxRetries: 3
timeout: 300000  # 5 minutes
priority: "normal"
concurrency: 5
dependencies:
  - "data-validation"
properties:
  batchSize: 1000
  outputFormat: "json"
security:
  permissions: ["data:read", "data:write"]
  requireAuth: true
  allowedRoles: ["data-engineer", "admin"]
monitoring:
  enabled: true
  metrics: ["execution_time", "error_rate"]
  alerts: ["execution_timeout", "high_error_rate"]
"""


def at(stack: Stack, **settings: Any) -> WorkflowRunner:
    held = stack.runner.runtime
    return WorkflowRunner(Runtime(dataclasses.replace(held.settings, **settings), held.database, held.publisher))


# ── what they say ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sample_of_the_document_is_accepted_as_it_is(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    told = client.post("/workflow/configs/validate", data=SAMPLE, content_type="application/yaml").get_json()
    assert (told["isValid"], told["errors"]) == (True, [])
    assert {one["place"] for one in told["warnings"]} == {"/dependencies", "/id"}
    saved = client.post("/workflow/configs", data=SAMPLE, content_type="application/yaml")
    assert (saved.status_code, saved.get_json()["version_number"]) == (201, 1)
    listed = client.get("/workflow/configs?nameSpace=etl").get_json()["configs"]
    assert [(one["id"], one["name"], one["maxRetries"]) for one in listed] == [("data-processing", "Data Processing Pipeline", 3)]
    assert client.get("/workflow/configs?workflowId=other").get_json()["configs"] == []
    assert "batchSize: 1000" in client.get("/workflow/configs?format=yaml").text


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"maxRetries": 11}, "/maxRetries"),
        ({"maxRetries": True}, "/maxRetries"),
        ({"timeout": 999}, "/timeout"),
        ({"timeout": 3_600_001}, "/timeout"),
        ({"concurrency": 0}, "/concurrency"),
        ({"concurrency": 101}, "/concurrency"),
        ({"id": "a b"}, "/id"),
        ({"id": None}, "/id"),
        ({"priority": "urgent"}, "/priority"),
        ({"enabled": "yes"}, "/enabled"),
        ({"properties": []}, "/properties"),
        ({"dependencies": "x"}, "/dependencies"),
        ({"variants": [{"version": "1", "weight": -1}]}, "/variants/0/weight"),
        ({"variants": [{"version": "1", "weight": 0}]}, "/variants"),
        ({"security": {"allowedRoles": "admin"}}, "/security/allowedRoles"),
        ({"security": {"magic": True}}, "/security/magic"),
        ({"monitoring": {"alerts": ["doom"]}}, "/monitoring/alerts/0"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_faults_are_named(change: dict[str, Any], place: str) -> None:
    assert [fault.place for fault in configured.faults_of({"id": "x"} | change)] == [place]


# ── what they do ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_key_has_its_effect_on_the_next_start(stack: Stack) -> None:
    stack.worker()
    runner, configs = stack.runner, stack.runner.configs
    before = runner.start_workflow("waits-long", input={})
    configs.save({"id": "asked", "maxRetries": 2, "properties": {"fail": True, "deep": {"a": 1, "b": 2}}})
    failed = stack.run("asked", {"deep": {"b": 3}}, priority="low")
    assert (failed["status"], failed["input"]) == ("FAILED", {"fail": True, "deep": {"a": 1, "b": 3}})
    configs.save({"id": "waits-long", "timeout": 1000, "priority": "high", "concurrency": 1})
    limited = [runner.start_workflow("waits-long", input={}) for _ in range(2)]
    assert stack.sql("select priority, queue from instances i join branches b on b.instance_id = i.id where i.id = %s", limited[0]) == [
        (2, "high")
    ]
    assert stack.sql("select state from branches where instance_id = %s", limited[1]) == [("blocked",)]
    for instance_id in limited:
        ended = stack.ended(instance_id, 30)
        assert (ended["status"], ended["error"]["code"]) == ("FAILED", "timeout")
    # What began before goes on as it began; and a new version of the configuration holds from the next start on.
    assert stack.state(before) == "RUNNING"
    configs.save({"id": "waits-long", "enabled": False})
    with pytest.raises(Disabled):
        runner.start_workflow("waits-long", input={})
    client = create_app(runner).test_client()
    assert client.post("/workflow/start/waits-long", json={}).status_code == 409
    configs.save({"id": "numbered", "dependencies": ["asked"]})
    waiting = runner.start_workflow("numbered", input={"n": 1})
    assert stack.sql("select state from branches where instance_id = %s", waiting) == [("blocked",)]
    names = {stored.name for stored in runner.workflows()}
    assert len(names) == len([stored for stored in runner.workflows() if stored.tenant == "default"])


def test_attempts_follow_max_retries(stack: Stack) -> None:
    stack.worker()
    stack.runner.configs.save({"id": "flaky-always", "maxRetries": 1})
    stack.runner.register_workflow(Workflow("flaky-always").then("http", parameters={"url": "http://127.0.0.1:1/"}).build())
    ended = stack.run("flaky-always", {}, 30)
    assert ended["error"]["attempts"] == 2


def test_versions_are_drawn_by_weight(stack: Stack) -> None:
    for version in ("1", "2"):
        stack.runner.register_workflow(Workflow("ab", version).then("noop").build())
    stack.runner.configs.save({"id": "ab", "variants": [{"version": "1", "weight": 80}, {"version": "2", "weight": 20}]})
    for _ in range(300):
        stack.runner.start_workflow("ab", input={})
    counts = dict(stack.sql("select version, count(*) from instances group by version"))
    assert 200 <= counts["1"] <= 275, counts
    assert stack.runner.get_workflow_status(stack.runner.start_workflow("ab", "2", {}))["version"] == "2"
    # The same request is the same version.
    keyed = {stack.runner.start_workflow("ab", input={}, idempotency_key="k") for _ in range(5)}
    assert len(keyed) == 1


def test_a_workflow_asks_who_starts_it(stack: Stack) -> None:
    stack.runner.configs.save(
        {"id": "numbered", "security": {"requireAuth": True, "allowedRoles": ["data-engineer", "admin"], "permissions": ["data:read"]}}
    )
    engineer = key(stack, "user", name="eng", scopes=["data-engineer", "data:read"])
    half = key(stack, "user", name="half", scopes=["data-engineer"])
    other = key(stack, "developer", name="dev", scopes=["data:read"])
    # A name with a dot is no namespace's.
    stack.runner.register_workflow(Workflow("dotted.name").then("noop").build())
    stack.runner.configs.save({"id": "dotted.name", "security": {"allowedRoles": ["king"]}})
    assert create_app(stack.runner).test_client().post("/workflow/start/dotted.name", json={}, headers=engineer).status_code == 403
    for client in (create_app(stack.runner).test_client(), guarded(stack).test_client()):
        for path in (
            "/workflow/start/numbered",
            "/workflow/start/default.numbered",
            "/workflow/start/numbered@1",
            "/api/workflows/numbered/trigger",
            "/api/trigger/numbered",
        ):
            start = lambda headers, c=client, p=path: c.post(p, json={"n": 1}, headers=headers).status_code  # noqa: E731
            assert start({}) == 401, path
            assert (start(half), start(other)) == (403, 403), path
            assert start(engineer) in (201, 202), path
    assert {row[0] for row in stack.sql("select type from security_events")} >= {"authorization_failure"}


def test_and_who_makes_what_starts_it(stack: Stack) -> None:
    """A schedule, a trigger or an instance to go on from is no way around."""
    stack.runner.configs.save({"id": "numbered", "security": {"requireAuth": True, "permissions": ["data:read"]}})
    for name in ("comes-later", "comes.later"):
        stack.runner.configs.save({"id": name, "security": {"allowedRoles": ["king"]}})
    of_another = stack.runner.start_workflow("numbered", input={"n": 1})
    may = key(stack, "admin", name="may", scopes=["data:read"])
    may_not = key(stack, "admin", name="may-not")
    for client in (create_app(stack.runner).test_client(), guarded(stack).test_client()):

        def sent(method: str, path: str, body: Any, headers: dict[str, str], c: Any = client) -> int:
            return int(c.open(f"/workflow/{path}", method=method, json=body, headers=headers).status_code)

        schedule = {"id": "s", "workflow": "numbered", "cron": "0 0 * * *", "properties": {"n": 1}}
        harmless = {"id": "s", "workflow": "sequence", "cron": "0 0 * * *"}
        trigger = {"name": "t", "on": "x", "start": "numbered"}
        for body in (
            schedule,
            {**schedule, "workflow": {"id": "numbered", "nameSpace": "default", "version": "1"}},
            {**schedule, "workflow": "numbered@1"},
        ):
            assert sent("POST", "schedules", body, may_not) == 403
        for name in ("comes-later", "comes-later@2", "default.comes-later", "comes.later", "comes.later@1"):
            assert sent("POST", "schedules", {**schedule, "workflow": name}, may) == 403, name
        assert sent("POST", "triggers", trigger, may_not) == 403
        assert sent("POST", "triggers", {**trigger, "start": "${ .data.which }"}, may_not) == 403
        assert sent("POST", "triggers", {"triggers": [{**trigger, "name": "u", "start": "sequence"}, trigger]}, may_not) == 403
        assert sent("POST", f"instance/{of_another}/rerun", {"step": "note"}, may_not) == 403
        assert "s" not in {one["id"] for one in stack.runner.schedules.all()}
        assert not {"t", "u"} & {one["name"] for one in stack.runner.triggers()}
        # Nor by changing what is harmless, or by running what somebody else may run.
        assert sent("POST", "schedules", harmless, may_not) == 201
        assert sent("PUT", "schedules/s", schedule, may_not) == 403
        assert sent("PUT", "schedules/s", schedule, may) == 200
        assert sent("POST", "schedules/s/run", {}, may_not) == 403
        assert sent("POST", "schedules/s/backfill", {"from": "2026-01-01", "to": "2026-01-02"}, may_not) == 403
        assert sent("POST", "schedules/s/run", {}, may) == 202
        assert sent("DELETE", "schedules/s", None, may) == 200
        assert sent("POST", "triggers", trigger, may) == 201
        assert sent("DELETE", "triggers/t", None, may) == 200
    assert create_app(stack.runner).test_client().post("/workflow/schedules", json=schedule).status_code == 401


# ── versions and environments ───────────────────────────────────────────────────────────────────────────────────────


def test_versions_differ_and_roll_back(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    for retries in (1, 2):
        client.put(
            "/workflow/configs/numbered",
            json={"maxRetries": retries, "properties": {"a": retries}, **({"timeout": 5000} if retries == 2 else {})},
        )
    client.put("/workflow/configs/numbered", json={"maxRetries": 2, "properties": {"a": 2}, "timeout": 5000})  # nothing new
    numbers = [one["version_number"] for one in client.get("/workflow/configs/numbered/versions").get_json()["versions"]]
    assert numbers == [2, 1]
    changes = client.get("/workflow/configs/numbered/diff?from=1&to=2").get_json()["changes"]
    assert {(one["change"], one["place"]) for one in changes} == {
        ("modified", "/maxRetries"),
        ("modified", "/properties/a"),
        ("added", "/timeout"),
    }
    rolled = client.post("/workflow/configs/numbered/rollback", json={"to": 1}).get_json()
    assert (rolled["version_number"], rolled["maxRetries"]) == (3, 1)
    assert client.delete("/workflow/configs/numbered").status_code == 200
    assert client.get("/workflow/configs/numbered").status_code == 404
    assert client.put("/workflow/configs/numbered", json={"id": "other"}).status_code == 400
    assert client.get("/workflow/configs/numbered/diff?from=1&to=99").status_code == 404
    actions = [row[0] for row in stack.sql("select action from audit where action like '%%config' order by id")]
    assert actions == ["put-config"] * 3 + ["delete-config"]


def test_environments_are_apart_and_migrate_when_all_is_right(stack: Stack) -> None:
    configs, staging = stack.runner.configs, at(stack, environment="staging")
    configs.save({"id": "numbered", "properties": {"n": 5}})
    assert staging.configs.in_force("default", "numbered", "1") == {}
    assert configs.migrate("development", "staging") == {"migrated": ["numbered"], "unchanged": []}
    assert configs.migrate("development", "staging") == {"migrated": [], "unchanged": ["numbered"]}
    staging.runtime.configs.clear()
    assert staging.configs.in_force("default", "numbered", "1")["properties"] == {"n": 5}
    configs.save({"id": "numbered", "dependencies": ["nobody"]})
    configs.save({"id": "naps", "properties": {"x": 1}})
    with pytest.raises(Invalid, match="nobody"):
        configs.migrate("development", "production")
    assert configs.all(environment="production") == []
    with pytest.raises(Invalid, match="one of development"):
        configs.migrate("development", "moon")
    with pytest.raises(NotFound):
        configs.load("numbered", environment="production")


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_files_are_read_again_while_a_broken_one_keeps_what_held(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    (folder / "workflows").mkdir(parents=True)
    (folder / "environments" / "development" / "workflows").mkdir(parents=True)
    (folder / "schedules").mkdir()
    file = folder / "workflows" / "numbered.yml"
    file.write_text("id: numbered\nproperties: {batchSize: 1000, from: base}\n")
    (folder / "environments" / "development" / "workflows" / "numbered.yml").write_text("id: numbered\nproperties: {from: overlay}\n")
    stack.environment["CONFIG_DIR"] = str(folder)
    stack.worker()
    configs = at(stack, config_dir=str(folder)).configs

    def holds() -> Any:
        configs.runtime.configs.clear()
        return configs.in_force("default", "numbered", "1").get("properties")

    configs.load_files()
    assert holds() == {"batchSize": 1000, "from": "overlay"}
    file.write_text("id: numbered\nproperties: {batchSize: 500, from: base}\n")
    until(lambda: holds() == {"batchSize": 500, "from": "overlay"}, 15)
    file.write_text("id: numbered\nproperties: [broken\n")
    until(configs.faults, 15)
    assert (holds(), configs.faults()[0]["file"]) == ({"batchSize": 500, "from": "overlay"}, "workflows/numbered.yml")
    file.write_text("id: numbered\nmaxRetries: 99\n")
    until(lambda: "maxRetries" in str(configs.faults()), 15)
    file.write_text("id: numbered\nproperties: {batchSize: 7}\n")
    until(lambda: holds() == {"batchSize": 7, "from": "overlay"}, 15)
    until(lambda: configs.faults() == [], 5)
    # Schedules of the folder, too.
    (folder / "schedules" / "daily.yml").write_text("id: of-the-folder\nworkflow: numbered\ncron: '0 6 * * *'\n")
    until(lambda: [one["id"] for one in stack.runner.schedules.all()] == ["of-the-folder"], 15)
    # Switched off, a change has no effect; switched on again, it has.
    configs.watch(False)
    file.write_text("id: numbered\nproperties: {batchSize: 8}\n")
    os.utime(file, ns=(1, 1))
    time.sleep(2.5)  # more than two looks
    assert holds() == {"batchSize": 7, "from": "overlay"}
    configs.watch(True)
    until(lambda: holds() == {"batchSize": 8, "from": "overlay"}, 15)
    file.write_text("id: numbered\nproperties: {batchSize: 9}\n")
    until(lambda: holds() == {"batchSize": 9, "from": "overlay"}, 15)


def test_a_process_that_begins_elsewhere_takes_nothing_back(stack: Stack, tmp_path: Path) -> None:
    folder, other = tmp_path / "own", tmp_path / "other"
    for one in (folder, other):
        (one / "workflows").mkdir(parents=True)
    file = folder / "workflows" / "numbered.yml"
    file.write_text("id: numbered\nenabled: false\n")
    at(stack, config_dir=str(folder)).configs.load_files()
    # A folder that is not there; and one without this file, in a process that begins and in the command line.
    assert at(stack, config_dir=str(tmp_path / "nowhere")).configs.load_files()["gone"] == []
    at(stack, config_dir=str(other)).initialize()
    assert stack.cli("ls", CONFIG_DIR=str(other)).returncode == 0
    with pytest.raises(Disabled):
        stack.runner.start_workflow("numbered", input={"n": 1})
    # Whoever watches the folder says what is gone.
    file.unlink()
    assert at(stack, config_dir=str(folder)).configs.load_files()["gone"] == ["numbered"]
    stack.runner.runtime.configs.clear()
    assert stack.runner.start_workflow("numbered", input={"n": 1})


def test_the_command_line_shows_what_is_in_force(stack: Stack, tmp_path: Path) -> None:
    told = stack.cli("config").stdout
    assert "DATABASE_URL" in told
    assert "postgresql://postgres:***@127.0.0.1" in told
    assert "redis://:***@127.0.0.1" in told
    assert stack.redis_server.password not in told
    assert "environment" in told
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text("id: numbered\nmaxRetries: 3\n")
    bad.write_text("id: numbered\nmaxRetries: 99\n")
    assert stack.cli("configs", "validate", str(good)).returncode == 0
    refused = stack.cli("configs", "validate", str(bad))
    assert (refused.returncode, "maxRetries" in refused.stdout) == (1, True)
    assert "version 1 in development" in stack.cli("configs", "put", str(good)).stdout
    assert "maxRetries: 3" in stack.cli("configs", "show", "numbered").stdout
    assert "numbered" in stack.cli("configs").stdout
