"""The external task: done by an executor in any language, which reads `io.flunq.task.requested` from the tenant's stream and
writes `io.flunq.task.completed` to it. Made of a step that puts the request together, emit, listen, switch and raise.

The task's id is the step's idempotency key: an executor that does each id once does each task once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.definition.expressions import Expression, Jq, Merge, Template
from orchestrator.definition.tree import Around, Case, Do, Emit, EventFilter, Listen, Raise, Set, Step, Switch

REQUESTED = "io.flunq.task.requested"
# What the trigger of `io.flunq.task.completed` makes of it, for the instance that asked alone.
COMPLETED = "external.completed"
TIMEOUT_S = 300.0


def external(
    name: str, type: str, input: Expression | None = None, timeout_s: float | None = None, config: Any = None, around: Around | None = None
) -> Do:
    """Gives what the executor gave; fails with its error when it says that it did not succeed."""
    request = Step(
        name="request",
        type="external",
        parameters=Template({"task_name": name, "task_type": type, "config": {"timeout": timeout_s or TIMEOUT_S, **(config or {})}}),
        around=Around(input_from=input) if input is not None else Around(),
    )
    asked = Emit(
        name="asked",
        event=Template({"type": REQUESTED, "subject": "${ .task_id }", "data": "${ . }"}),
        around=Around(output_as=Jq("$input")),
    )
    answer = Listen(
        name="answer",
        mode="one",
        filters=(EventFilter(attributes={"type": COMPLETED}, condition=Jq(".data.task_id == $input.task_id")),),
        around=Around(output_as=Jq(".[0] // {}")),
    )
    judged = Switch(name="judged", cases=(Case(name="failed", when=Jq(".success == false"), then="failed"), Case(name="done", then="done")))
    failed = Raise(
        name="failed",
        error=Template(
            {
                "type": "orchestrator/external_task_failed",
                "status": 500,
                "title": "external task failed",
                "detail": f'${{ "task \'{name}\' failed: \\(.error // "without a reason" | tostring)" }}',
            }
        ),
    )
    done = Set(name="done", value=Jq(".output"))
    outer = around or Around(output_as=Merge(name))
    around = replace(outer, timeout_s=outer.timeout_s or timeout_s or TIMEOUT_S)
    return Do(name=name, tasks=(request, asked, answer, judged, failed, done), around=around)
