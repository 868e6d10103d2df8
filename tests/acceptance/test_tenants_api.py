"""The dialect of the Serverless Workflow system: workflows and executions below a tenant."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from orchestrator.api import create_app
from tests.guarded import guarded, key
from tests.stack import Stack, until


def document(version: str = "1.0.0", greeting: str = "Hello", **document: Any) -> dict[str, Any]:
    return {
        "document": {"dsl": "1.0.0", "namespace": "default", "name": "greet", "version": version, **document},
        "input": {"schema": {"document": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}},
        "do": [{"say": {"set": {"text": f'${{ "{greeting} " + .name }}'}}}],
    }


@pytest.fixture
def client(stack: Stack) -> FlaskClient:
    return create_app(stack.runner).test_client()


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_a_workflow_is_made_executed_and_looked_at(stack: Stack, client: FlaskClient, prefix: str) -> None:
    stack.worker()
    base = f"{prefix}/acme"
    made = client.post(f"{base}/workflows", json={"name": "greet", "description": "says hello", "definition": document()})
    assert (made.status_code, made.get_json()["id"]) == (201, "wf_greet")
    assert made.get_json()["description"] == "says hello"
    assert client.get(f"{base}/workflows/wf_greet").get_json()["definition"]["do"][0]["say"]
    assert "wf_greet" in [one["id"] for one in client.get(f"{base}/workflows").get_json()["workflows"]]
    assert client.get(f"{prefix}/other/workflows/wf_greet").status_code == 404

    refused = client.post(f"{base}/workflows/wf_greet/execute", json={"input": {"name": 7}})
    assert (refused.status_code, refused.get_json()["code"]) == (400, "invalid")
    sent = client.post(f"{base}/workflows/wf_greet/execute", json={"input": {"name": "Ada"}, "correlation_id": "c-1"})
    assert sent.status_code == 202
    execution = sent.get_json()
    assert execution["id"].startswith("ex_")
    assert (execution["status"], execution["correlation_id"], execution["workflow_id"]) == ("pending", "c-1", "wf_greet")
    until(lambda: client.get(f"{base}/executions/{execution['id']}").get_json()["status"] == "completed", 20)
    shown = client.get(f"{base}/executions/{execution['id']}").get_json()
    assert (shown["output"], shown["tenant_id"]) == ({"text": "Hello Ada"}, "acme")
    assert client.get(f"{prefix}/other/executions/{execution['id']}").status_code == 404

    listed = client.get(f"{base}/executions?workflow_id=wf_greet&status=completed&limit=1").get_json()
    assert ([one["id"] for one in listed["executions"]], listed["total"]) == ([execution["id"]], 1)
    assert client.get(f"{base}/executions?status=nonsense").status_code == 400
    told = client.get(f"{base}/executions/{execution['id']}/events").get_json()
    assert told["count"] >= 1
    assert {one["executionid"] for one in told["events"]} == {execution["id"]}
    later = client.get(
        f"{base}/workflows/wf_greet/events", query_string={"execution_id": execution["id"], "since": told["events"][-1]["time"]}
    )
    assert later.get_json()["count"] <= told["count"]
    # The same instance, through the other door.
    assert client.get(f"/workflow/instance/{execution['id'][3:]}").get_json()["outcome"] == "COMPLETED"


def test_a_change_is_the_next_version_and_what_runs_keeps_its_own(client: FlaskClient) -> None:
    assert client.post("/acme/workflows", json=document()).status_code == 201
    again = client.post("/acme/workflows", json=document(greeting="Hi"))
    assert (again.status_code, again.get_json()["code"]) == (409, "version_clash")
    assert client.put("/acme/workflows/wf_greet", json=document("1.1.0", "Hi")).get_json()["version"] == "1.1.0"
    assert client.put("/acme/workflows/wf_greet", json=document("1.2.0", name="other")).status_code == 400
    assert client.put("/acme/workflows/wf_nobody", json=document()).status_code == 404
    # What is everybody's is not one tenant's to change.
    assert client.delete("/acme/workflows/wf_numbered").status_code == 404
    assert client.post("/acme/workflows", json={"name": "x", "definition": {"steps": 1}}).status_code == 400


def test_a_workflow_goes_when_nothing_of_it_runs(stack: Stack, client: FlaskClient) -> None:
    stack.worker()
    slow = document()
    slow["do"] = [{"rest": {"wait": {"hours": 1}}}]
    client.post("/acme/workflows", json=slow)
    first = client.post("/acme/workflows/wf_greet/execute", json={"input": {"name": "A"}}).get_json()["id"]
    busy = client.delete("/acme/workflows/wf_greet")
    assert (busy.status_code, busy.get_json()["code"]) == (409, "in_use")
    assert client.post(f"/acme/executions/{first}", json={"action": "explode"}).status_code == 400
    until(lambda: client.get(f"/acme/executions/{first}").get_json()["status"] == "running", 20)
    assert client.post(f"/acme/executions/{first}", json={"action": "pause"}).get_json()["status"] == "paused"
    assert client.post(f"/acme/executions/{first}", json={"action": "cancel", "reason": "enough"}).get_json()["status"] == "cancelled"
    assert client.delete("/acme/workflows/wf_greet").get_json() == {"id": "wf_greet", "deleted": True}
    assert client.post("/acme/workflows/wf_greet/execute", json={"input": {"name": "A"}}).status_code == 404
    # Its history stays readable, and the name is free again.
    assert client.get(f"/acme/executions/{first}/events").status_code == 200
    assert client.get(f"/acme/executions/{first}").get_json()["status"] == "cancelled"
    assert client.post("/acme/workflows", json=document()).status_code == 201
    assert stack.sql("select 1 from audit where action = 'withdraw-workflow'")


def test_keys_of_one_tenant_open_nothing_of_another(stack: Stack) -> None:
    client = guarded(stack).test_client()
    mine = key(stack, "developer", tenant="acme")
    assert client.get("/acme/workflows").status_code == 401
    assert client.post("/acme/workflows", json=document(), headers=mine).status_code == 201
    started = client.post("/acme/workflows/wf_greet/execute", json={"input": {"name": "A"}}, headers=mine)
    assert started.status_code == 202
    for path in ("/other/workflows", "/other/executions", f"/other/executions/{started.get_json()['id']}"):
        assert client.get(path, headers=mine).status_code == 403
    theirs = key(stack, "developer", tenant="other")
    assert client.get(f"/acme/executions/{started.get_json()['id']}", headers=theirs).status_code in (403, 404)
    only = key(stack, "user", tenant="acme", name="only", workflows=["greet"])
    assert client.post("/acme/workflows/wf_greet/execute", json={"input": {"name": "A"}}, headers=only).status_code == 202
    assert client.post("/acme/workflows/wf_numbered/execute", json={"input": {"n": 1}}, headers=only).status_code == 403
