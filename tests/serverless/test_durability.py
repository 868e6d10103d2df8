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
