"""Checklist 11: the specification's own life-cycle events. On real workers."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.definition.documents import read_document
from tests.stack import Stack, until

DOC = """
document: {dsl: '1.0.3', namespace: tests, name: %s, version: '1.2.0'%s}
do:
  - a: {set: {x: 1}}
  - w: {wait: {milliseconds: 10}}
  - r: {run: {shell: {command: echo hi}}}
  - f: {if: '$context.fail', raise: {error: {type: https://x/boom, status: 500, title: Boom}}}
"""


def told(stack: Stack, instance_id: str) -> list[dict[str, Any]]:
    found = []
    for _, entry in stack.redis.xrange("orchestrator:cloudevents"):
        data = json.loads(entry["data"])
        if instance_id in json.dumps(data):
            found.append({**entry, "data": data})
    return found


def phases(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("io.serverlessworkflow.").removesuffix(".v1") for event in events]


def test_a_workflow_tells_when_it_starts_and_ends(running: Stack) -> None:
    running.runner.register_workflow(read_document(DOC % ("tells", "")))
    done = running.run("tests.tells", {})
    until(lambda: "workflow.completed" in phases(told(running, done["id"])), 5)
    started, completed = told(running, done["id"])
    assert (started["specversion"], started["source"]) == ("1.0", "/tests/tells/1.2.0")
    assert started["data"]["definition"] == {"namespace": "tests", "name": "tells", "version": "1.2.0"}
    assert started["data"]["name"] == f"{done['id']}.tests"
    assert completed["data"]["output"] == "hi"


def test_a_workflow_that_faults_tells_why(running: Stack) -> None:
    running.runner.register_workflow(read_document((DOC % ("faults", "")).replace("$context.fail", "true")))
    failed = running.run("tests.faults", {})
    until(lambda: "workflow.faulted" in phases(told(running, failed["id"])), 5)
    error = told(running, failed["id"])[-1]["data"]["error"]
    assert (error["type"], error["status"], error["instance"]) == ("https://x/boom", 500, "/do/3/f")


def test_tasks_tell_where_the_document_asks_for_it(running: Stack) -> None:
    running.runner.register_workflow(read_document(DOC % ("tells-all", ", metadata: {lifecycleEvents: tasks}")))
    done = running.run("tests.tells-all", {})
    until(lambda: "workflow.completed" in phases(told(running, done["id"])), 5)
    events = told(running, done["id"])
    of_tasks = [(event["data"]["task"], event["type"].split(".")[3]) for event in events if ".task." in event["type"]]
    assert of_tasks == [(place, phase) for place in ("/do/0/a", "/do/1/w", "/do/2/r") for phase in ("created", "started", "completed")]
