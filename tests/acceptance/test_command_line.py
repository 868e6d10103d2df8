"""The `orchestrator` command and the API, as their users call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import create_app
from tests.stack import Stack, until

CLI = [str(Path(sys.executable).parent / "orchestrator")]


def cli(stack: Stack, *arguments: str, input: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return stack.cli(*arguments, input=input, **variables)


def test_start_wait_show_history_and_replay(running: Stack) -> None:
    started = cli(running, "start", "sequence", "--input", '{"n": 1}', "--wait", "--json")
    assert started.returncode == 0, started.stderr
    instance_id = json.loads(started.stdout)["id"]

    shown = cli(running, "show", instance_id)
    assert shown.returncode == 0
    assert "✔ a" in shown.stdout
    assert "Workflow completed successfully" in shown.stdout
    assert len(json.loads(cli(running, "history", instance_id, "--json").stdout)) == 5
    assert cli(running, "replay", instance_id, "--at", "2").stdout.count("✔") == 2
    assert instance_id in cli(running, "ls", "--workflow", "sequence").stdout


def test_exit_codes_and_sentences_for_scripts(running: Stack) -> None:
    failed = cli(running, "start", "asked", "--input", '{"fail": true}', "--wait")
    assert failed.returncode == 1
    assert "asked to fail" in failed.stdout

    assert cli(running, "show", "01a1f826-0000-7000-8000-000000000000").returncode == 3
    unknown = cli(running, "start", "no-such-workflow")
    assert unknown.returncode == 3
    assert "orchestrator workflows" in unknown.stderr
    wrong = cli(running, "start", "sequence", "--input", "{oops")
    assert wrong.returncode == 2
    assert "is no JSON" in wrong.stderr
    away = cli(running, "ls", DATABASE_URL="postgresql://postgres@127.0.0.1:1/postgres")
    assert away.returncode == 4
    assert "make up" in away.stderr
    assert "Traceback" not in away.stderr


def test_verbs_move_instances_and_refuse_by_name(running: Stack) -> None:
    instance_id = cli(running, "start", "waits-for-yes").stdout.strip()
    until(lambda: running.runner.get_workflow_status(instance_id)["waits_for"])

    assert "paused" in cli(running, "pause", instance_id).stdout
    assert "resumed" in cli(running, "resume", instance_id).stdout
    assert cli(running, "retry", instance_id).returncode == 2
    until(lambda: running.runner.get_workflow_status(instance_id)["waits_for"])
    assert "manager approved" in cli(running, "approve", instance_id).stdout
    assert running.ended(instance_id)["status"] == "COMPLETED"
    assert [row["action"] for row in json.loads(cli(running, "audit", "--instance", instance_id, "--json").stdout)][:3] == [
        "complete",
        "approve",
        "resume",
    ]


def test_documents_are_validated_registered_and_run_without_services(running: Stack, tmp_path: Path) -> None:
    good = tmp_path / "doc.yaml"
    good.write_text("type: from_file\nsteps:\n  - {id: a, type: log, parameters: {message: hello}}\n")
    bad = tmp_path / "bad.yaml"
    bad.write_text("type: bad\nsteps:\n  - {id: a, type: warp}\n")

    assert cli(running, "validate", str(good)).returncode == 0
    refused = cli(running, "validate", str(bad))
    assert refused.returncode == 2
    assert "no executor found for step type: warp" in refused.stderr
    ran = cli(running, "run", str(good), "--json", DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")
    assert json.loads(ran.stdout)["state"] == "COMPLETED"
    assert "registered from_file@1" in cli(running, "register", str(good)).stdout
    assert cli(running, "start", "from_file", "--wait").returncode == 0


def test_doctor_stats_timers_and_dead_letters(running: Stack) -> None:
    doctor = cli(running, "doctor", "--json")
    checks = {check["check"]: check["ok"] for check in json.loads(doctor.stdout)}
    assert checks["postgres"]
    assert checks["workers"]
    assert checks["redis"]
    for command in ("stats", "timers", "dead-letters", "workflows"):
        assert cli(running, command).returncode == 0
        json.loads(cli(running, command, "--json").stdout)


def test_celery_call_starts_a_workflow(running: Stack) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "orchestrator.app",
            "call",
            "orchestrator.start",
            "--args",
            '["sequence", {"from": "celery call"}]',
        ],
        env=running.variables(),
        check=True,
        capture_output=True,
        timeout=60,
    )
    until(lambda: running.sql("select 1 from instances where source = 'celery' and input->>'from' = 'celery call' and state = 'COMPLETED'"))


@pytest.fixture
def client(running: Stack) -> object:
    return create_app(running.runner).test_client()


def test_the_api_starts_shows_moves_and_cancels(running: Stack, client: object) -> None:
    http: object = client
    started = http.post(
        "/workflow/start/waits-long?version=1",
        json={"data": {"x": 1}, "priority": "high"},
        headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
    )  # type: ignore[attr-defined]
    assert started.status_code == 201
    instance_id = started.get_json()["instanceId"]
    until(lambda: running.sql("select 1 from branches where instance_id = %s and state = 'parked'", instance_id))

    assert http.get(f"/workflow/instance/{instance_id}").get_json()["trace_id"] == "a" * 32  # type: ignore[attr-defined]
    assert http.post(f"/workflow/instance/{instance_id}/pause").get_json()["status"] == "paused"  # type: ignore[attr-defined]
    assert http.post(f"/workflow/instance/{instance_id}/resume").status_code == 200  # type: ignore[attr-defined]
    assert http.delete(f"/workflow/instance/{instance_id}", json={"reason": "enough"}).status_code == 200  # type: ignore[attr-defined]
    again = http.post(f"/workflow/instance/{instance_id}/pause")  # type: ignore[attr-defined]
    assert again.status_code == 409
    assert "Cannot pause workflow in CANCELLED state" in again.get_json()["message"]


DOCUMENT = """
document: {dsl: '1.0.3', namespace: api, name: by-api, version: '1.0.0'}
do:
  - wait: {listen: {to: {one: {with: {type: api.go}}}}}
"""


def test_documents_and_events_by_the_api(running: Stack, client: Any) -> None:
    assert client.post("/workflow/definitions", data=DOCUMENT).get_json() == {
        "workflow": "by-api",
        "namespace": "api",
        "version": "1.0.0",
        "status": "registered",
    }
    assert {"by-api"} <= {item["workflow"] for item in client.get("/workflow/definitions").get_json()["definitions"]}
    started = client.post("/workflow/start/api.by-api", json={"data": {}}).get_json()["instanceId"]
    event = {"specversion": "1.0", "id": "go-1", "source": "/api", "type": "api.go", "data": 7}
    assert [client.post("/workflow/events", json=event).status_code for _ in range(2)] == [202, 200]
    assert running.ended(started)["output"] == [7]

    refused = client.post("/workflow/definitions", data=DOCUMENT.replace("listen:", "lisen:"))
    assert refused.status_code == 400
    [fault] = refused.get_json()["faults"]
    assert (fault["file"], fault["line"], fault["suggestion"]) == ("request.yaml", 4, 'Did you mean "listen"?')


def test_the_api_answers_problems_with_stable_codes(client: object) -> None:
    http: object = client
    assert http.post("/workflow/start/nothing").get_json()["code"] == "not_found"  # type: ignore[attr-defined]
    assert http.post("/workflow/start/sequence", data="{oops").status_code == 400  # type: ignore[attr-defined]
    assert http.get("/nowhere").content_type == "application/problem+json"  # type: ignore[attr-defined]
    health = http.get("/health").get_json()  # type: ignore[attr-defined]
    assert health["components"]["database"]["status"] == "healthy"


def test_events_triggers_and_webhooks_from_the_shell(running: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_S", "secret")
    file = tmp_path / "triggers.yaml"
    file.write_text("triggers:\n  - {name: shell, on: shell.said, start: sequence}\n  - {name: broken, on: shell.broke, start: nobody}\n")
    assert cli(running, "triggers", "put", str(file)).stdout == "put shell, broken\n"
    file.write_text("triggers:\n  - {name: shell, on: [], start: sequence, oops: 1}\n")
    wrong = cli(running, "triggers", "put", str(file))
    assert wrong.returncode == 2
    assert "/0/oops" in wrong.stderr
    file.write_text("triggers: [\n")
    assert "triggers.yaml:2" in cli(running, "triggers", "put", str(file)).stderr
    assert "shell.said" in cli(running, "triggers").stdout

    sent = cli(running, "events", "send", "shell.said", "-d", '{"n": 1}', "--id", "one").stdout
    assert "is taken" in sent
    assert "was here before" in cli(running, "events", "send", "shell.said", "-d", '{"n": 1}', "--id", "one").stdout
    number = sent.split()[1]
    shown = cli(running, "events", "show", number).stdout
    assert "shell.said" in shown
    assert "start" in shown
    assert [one["type"] for one in json.loads(cli(running, "events", "ls", "--type", "shell.*", "--json").stdout)] == ["shell.said"]
    assert f"replayed 1: {number}" in cli(running, "events", "replay", number).stdout
    assert cli(running, "events", "show", "999999").returncode == 3
    assert "name events" in cli(running, "events", "replay").stderr

    broken = cli(running, "events", "send", "shell.broke", EVENT_RETRY_ATTEMPTS="1").stdout
    assert "is dead" in broken
    assert "nobody" in cli(running, "events", "ls", "--state", "dead").stdout
    assert broken.split()[1] in cli(running, "events", "discard", "--state", "dead").stdout

    assert cli(running, "triggers", "disable", "shell").stdout == "disabled shell\n"
    assert cli(running, "triggers", "delete", "broken").returncode == 0
    assert cli(running, "triggers", "delete", "broken").returncode == 3
    assert cli(running, "webhooks", "put", "h", "http://127.0.0.1:9", "--secret", "s", "--type", "nothing").stdout == "put h\n"
    assert "127.0.0.1:9" in cli(running, "webhooks").stdout
    assert cli(running, "webhooks", "delete", "h").returncode == 0
    assert cli(running, "proxies").stdout.startswith("no proxies")
    folder = {"CERTIFICATES_DIR": str(tmp_path / "certificates")}
    assert "issued a.example.com" in cli(running, "certificates", "issue", "a.example.com", "--quiet", **folder).stdout
    assert "a.example.com" in cli(running, "certificates", **folder).stdout
    assert "renewed a.example.com" in cli(running, "certificates", "renew", "a.example.com", **folder).stdout
