"""What users of the older systems look for, done as they would do it: how runs, executions and their tasks are shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from orchestrator.api import create_app
from tests.stack import Stack, until

STEPS: dict[str, Any] = {
    "document": {"dsl": "1.0.0", "namespace": "default", "name": "steps", "version": "1.0.0"},
    "do": [
        {"greet": {"set": {"text": '${ "Hello " + .name }'}}},
        {"nap": {"wait": {"milliseconds": 200}}},
        {"both": {"do": [{"inner": {"set": {"text": "${ .text }", "long": "${ [range(3000)] }"}}}]}},
    ],
}


@pytest.fixture
def client(stack: Stack) -> FlaskClient:
    return create_app(stack.runner).test_client()


def test_an_execution_shows_its_tasks_with_input_output_and_duration(stack: Stack, client: FlaskClient) -> None:
    stack.worker()
    client.post("/acme/workflows", json=STEPS)
    made = client.post("/acme/workflows/wf_steps/execute", json={"input": {"name": "Ada"}}).get_json()["id"]
    until(lambda: client.get(f"/acme/executions/{made}").get_json()["status"] == "completed", 20)

    shown = client.get(f"/acme/executions/{made}").get_json()
    assert shown["output"]["text"] == "Hello Ada"
    assert 200 <= shown["duration_ms"] < 10_000
    assert shown["completed_at"] > shown["started_at"]
    [listed] = client.get("/acme/executions").get_json()["executions"]
    assert listed["duration_ms"] == shown["duration_ms"]

    tasks = {task["name"]: task for task in shown["tasks"]}
    assert list(tasks) == ["greet", "nap", "both", "inner"]
    assert {task["status"] for task in shown["tasks"]} == {"COMPLETED"}
    assert (tasks["greet"]["input"], tasks["greet"]["output"]) == ({"name": "Ada"}, {"text": "Hello Ada"})
    assert tasks["nap"]["input"] == {"text": "Hello Ada"}
    assert tasks["nap"]["duration_ms"] >= 150
    assert tasks["inner"]["input"] == {"text": "Hello Ada"}
    assert "15,0" not in json.dumps(tasks["inner"]["output"])
    assert set(tasks["inner"]["output"]) == {"omitted"}
    assert client.get(f"/acme/executions/{made}?data=whole").get_json()["tasks"][3]["output"]["long"][-1] == 2999
    assert client.get(f"/acme/executions/{made}?data=some").status_code == 400

    steps = client.get(f"/workflow/instance/{made}").get_json()
    assert steps["duration_s"] == shown["duration_ms"] / 1000
    assert steps["steps"][0]["input"] == {"name": "Ada"}
    assert steps["steps"][0]["completed_at"]


def test_inputs_of_tasks_show_no_secrets(stack: Stack, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret-token")
    stack.environment["SECRET_TOKEN"] = "s3cret-token"
    stack.worker()
    with_secret = {
        "document": {"dsl": "1.0.0", "namespace": "default", "name": "secretive", "version": "1.0.0"},
        "use": {"secrets": ["TOKEN"]},
        "do": [{"use-it": {"input": {"from": {"held": '${ "Bearer " + $secrets.TOKEN }'}}, "set": {"length": "${ .held | length }"}}}],
    }
    client.post("/acme/workflows", json=with_secret)
    made = client.post("/acme/workflows/wf_secretive/execute", json={"input": {}}).get_json()["id"]
    until(lambda: client.get(f"/acme/executions/{made}").get_json()["status"] == "completed", 20)

    shown = client.get(f"/acme/executions/{made}?data=whole")
    assert shown.get_json()["tasks"][0]["output"] == {"length": 19}
    assert "s3cret" not in shown.text
    assert shown.get_json()["tasks"][0]["input"] == {"held": "Bearer ***"}


def test_recent_runs_say_at_which_step_they_are_and_what_steps_gave(stack: Stack, client: FlaskClient) -> None:
    stack.worker()
    made = client.post("/api/workflows/waits-for-yes/trigger", json={"inputData": {"n": 1}}).get_json()["runId"]

    def run() -> dict[str, Any]:
        [found] = client.get("/api/workflows/waits-for-yes/status").get_json()["recentRuns"]
        return dict(found)

    until(lambda: run()["currentStep"] == "decision", 20, lambda: str(run()))
    shown = run()
    assert shown["runId"] == made
    assert {"runId", "workflowId", "status", "startedAt", "completedAt", "currentStep", "stepResults", "error"} <= set(shown)
    assert shown["status"] == "running"
    before = shown["stepResults"]["before"]
    assert (before["status"], before["success"], before["attempts"]) == ("completed", True, 1)
    assert before["durationMs"] >= 0

    stack.runner.approve(shown["instanceId"], "manager")
    stack.ended(shown["instanceId"])
    ended = run()
    assert (ended["status"], ended["currentStep"]) == ("completed", None)
    assert {"before", "decision", "after"} <= set(ended["stepResults"])

    failed = stack.run("failing", {"n": 3})
    [told] = client.get("/api/workflows/failing/status").get_json()["recentRuns"]
    assert told["instanceId"] == failed["id"]
    assert (told["status"], told["error"]) == ("failed", failed["error"]["message"])
    assert [(result["success"], result["error"] is not None) for result in told["stepResults"].values()] == [(False, True)]
