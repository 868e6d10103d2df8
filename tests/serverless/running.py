"""A document run in one process, told in few words."""

from __future__ import annotations

import textwrap
from typing import Any

from orchestrator.definition.documents import read_document
from orchestrator.definition.tree import Definition
from orchestrator.definition.validate import check
from orchestrator.embedded import Embedded, Instance
from orchestrator.steps.registry import REGISTRY
from orchestrator.testing import ManualClock

HEAD = "document: {dsl: '1.0.3', namespace: tests, name: %s, version: '1.0.0'}\n"


def definition(body: str, name: str = "case") -> Definition:
    made = read_document(HEAD % name + textwrap.dedent(body), "case.yaml")
    check(made, REGISTRY)
    return made


def run(body: str, input: Any = None, *, events: list[dict[str, Any]] | None = None) -> Instance:
    """To its end, or to where nothing more can happen without an event."""
    engine = Embedded(clock=ManualClock())
    instance = engine.start(definition(body), input)
    engine.settle()
    for number, event in enumerate(events or ()):
        engine.send({"specversion": "1.0", "id": f"e{number}", "source": "/tests", **event})
        engine.settle()
    return engine.finish(instance)


def output(body: str, input: Any = None, **options: Any) -> Any:
    instance = run(body, input, **options)
    assert instance.state == "COMPLETED", (instance.state, instance.error)
    return instance.output


def fault(body: str, input: Any = None, **options: Any) -> dict[str, Any]:
    """The problem a faulted workflow ended with."""
    from orchestrator.history import Failure
    from orchestrator.plan.catching import problem

    instance = run(body, input, **options)
    assert instance.state == "FAILED", (instance.state, instance.output)
    assert instance.error is not None
    return problem(Failure.from_json(instance.error))
