"""What only real workers show: tenants, children."""

from __future__ import annotations

from orchestrator.definition.documents import read_document
from tests.stack import Stack

DOC = "document: {dsl: '1.0.3', namespace: tests, name: %s, version: '1.0.0'}\n%s"


def test_the_same_name_means_another_workflow_for_another_tenant(running: Stack) -> None:
    for tenant, word in (("default", "everybody"), ("acme", "acme")):
        running.runner.register_workflow(read_document(DOC % ("whose", f"do: [{{s: {{set: {{of: {word}}}}}}}]")), tenant=tenant)
    assert running.run("tests.whose", {})["output"] == {"of": "everybody"}
    assert running.run("tests.whose", {}, tenant="acme")["output"] == {"of": "acme"}
    assert running.run("tests.whose", {}, tenant="other")["output"] == {"of": "everybody"}


def test_a_raised_error_is_shown_where_it_was_raised(running: Stack) -> None:
    body = "do: [{ok: {set: {a: 1}}}, {bad: {raise: {error: {type: https://x/y, status: 400, title: No}}}}, {never: {set: {b: 1}}}]"
    running.runner.register_workflow(read_document(DOC % ("raises", body)))
    status = running.run("tests.raises", {})
    assert [(step["name"], step["status"]) for step in status["steps"]] == [("ok", "COMPLETED"), ("bad", "FAILED"), ("never", "SKIPPED")]
    assert status["steps"][1]["error"]["details"]["title"] == "No"


def test_a_childs_fault_is_its_parents_and_can_be_caught(running: Stack) -> None:
    child = "do: [{r: {raise: {error: {type: https://x/child, status: 418, title: Teapot}}}}]"
    parent = """do:
  - t:
      try: [{c: {run: {workflow: {namespace: tests, name: faulty-child, version: latest}}}}]
      catch: {errors: {with: {type: https://x/child, status: 418}}, as: e, do: [{s: {set: {title: '${ $e.title }'}}}]}
"""
    running.runner.register_workflow(read_document(DOC % ("faulty-child", child)))
    running.runner.register_workflow(read_document(DOC % ("its-parent", parent)))
    assert running.run("tests.its-parent", {})["output"] == {"title": "Teapot"}


def test_some_of_several_branches_are_enough_and_the_others_are_stopped(running: Stack) -> None:
    sleeps = ["PT0.1S", "PT1H", "PT0.2S", "PT1H", "PT0.3S", "PT0.1S"]
    branches = "\n".join(f"      - {{name: b{n}, actions: [{{functionRef: f, sleep: {{before: {s}}}}}]}}" for n, s in enumerate(sleeps))
    text = f"""id: some
version: '1.0'
specVersion: '0.8'
functions: [{{name: f, type: expression, operation: '{{done: true}}'}}]
states:
  - name: s
    type: parallel
    completionType: atLeast
    numCompleted: 3
    branches:
{branches}
    end: true
"""
    running.runner.register_workflow(read_document(text))
    status = running.run("some", {"n": 1})
    assert (status["status"], status["output"]) == ("COMPLETED", {"n": 1, "done": True})
    outcomes = running.sql("select outcome from branches where instance_id = %s and parent_id is not null", status["id"])
    assert sum(outcome == "completed" for (outcome,) in outcomes) >= 3
    assert {outcome for (outcome,) in outcomes} == {"completed", "cancelled"}


def test_what_is_long_and_was_not_recorded_is_the_same_on_every_worker(running: Stack) -> None:
    body = "do: [{l: {for: {in: '[range(1500)]'}, do: [{a: {set: '${ {n: ((.n // []) + [{i: $item}])} }'}}]}}, {w: {wait: {seconds: 2}}}]"
    running.runner.register_workflow(read_document(DOC % ("long-list", body)))
    status = running.run("tests.long-list", {})
    assert status["output"] == {"n": [{"i": n} for n in range(1500)]}
    [[recorded]] = running.sql(
        "select sum(length(data::text)) from checkpoints c join branches b on b.id = c.branch_id where b.instance_id = %s", status["id"]
    )
    assert recorded < 3_000_000
