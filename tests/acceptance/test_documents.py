"""Documents across the death of everything: listeners and waits."""

from __future__ import annotations

from orchestrator.definition.documents import read_document
from tests.stack import Stack, until

DOC = "document: {dsl: '1.0.3', namespace: tests, name: %s, version: '1.0.0'}\n%s"


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
