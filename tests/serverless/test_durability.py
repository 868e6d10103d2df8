"""What only real workers show: tenants, children, listeners across restarts."""

from __future__ import annotations

from orchestrator.definition.documents import read_document
from tests.stack import Stack, until

DOC = "document: {dsl: '1.0.3', namespace: tests, name: %s, version: '1.0.0'}\n%s"


def test_the_same_name_means_another_workflow_for_another_tenant(running: Stack) -> None:
    for tenant, word in (("default", "everybody"), ("acme", "acme")):
        running.runner.register_workflow(read_document(DOC % ("whose", f"do: [{{s: {{set: {{of: {word}}}}}}}]")), tenant=tenant)
    assert running.run("tests.whose", {})["output"] == {"of": "everybody"}
    assert running.run("tests.whose", {}, tenant="acme")["output"] == {"of": "acme"}
    assert running.run("tests.whose", {}, tenant="other")["output"] == {"of": "everybody"}


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


def test_an_event_that_comes_while_no_worker_runs_is_taken_once(stack: Stack) -> None:
    body = "do: [{l: {listen: {to: {any: [{with: {type: t}}], until: '(. | length) == 3'}}}}]"
    stack.runner.register_workflow(read_document(DOC % ("patient", body)))
    first = stack.worker()
    instance_id = stack.runner.start_workflow("tests.patient", input={})

    def parked() -> bool:
        return stack.sql("select state from branches where instance_id = %s", instance_id) == [("parked",)]

    def send(number: int) -> None:
        stack.runner.send_event({"specversion": "1.0", "id": f"n{number}", "source": "/t", "type": "t", "data": number})

    until(parked)
    send(1)
    until(lambda: any(fact["kind"] == "event.received" for fact in stack.runner.history(instance_id)))
    until(parked)
    first.kill()
    send(2)
    send(2)
    stack.worker()
    until(parked)
    send(3)
    assert stack.ended(instance_id)["output"] == [1, 2, 3]


def test_a_wait_goes_on_after_everything_died(stack: Stack) -> None:
    stack.runner.register_workflow(
        read_document(DOC % ("waits", "do: [{a: {set: {n: 1}}}, {w: {wait: PT3S}}, {b: {set: {n: '${ .n + 1 }'}}}]"))
    )
    worker = stack.worker()
    instance_id = stack.runner.start_workflow("tests.waits", input={})
    until(lambda: stack.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s", instance_id))
    worker.kill()
    stack.redis.flushall()
    stack.worker()
    assert stack.ended(instance_id)["output"] == {"n": 2}
