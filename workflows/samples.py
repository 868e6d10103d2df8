"""Four small workflows, one per pattern: sequence, parallel, condition, loop. Written as classes with `build`.

orchestrator start loop-workflow --input '{"items": [1, 2, 3]}'
"""

from __future__ import annotations

from typing import Any

from orchestrator import WorkflowBase, step
from orchestrator.definition.builder import Flow


@step(type="samples.initialize")
def initialize() -> dict[str, Any]:
    return {"initialized": True}


@step(type="samples.process_data")
def process_data() -> dict[str, Any]:
    return {"processed": True}


@step(type="samples.save_results")
def save_results() -> dict[str, Any]:
    return {"saved": True}


@step(type="samples.cleanup")
def cleanup() -> dict[str, Any]:
    return {"cleaned": True}


@step(type="samples.process_type")
def process_type(kind: str) -> dict[str, Any]:
    return {f"processed_{kind}": True}


@step(type="samples.validate_type")
def validate_type(kind: str) -> dict[str, Any]:
    return {f"validated_{kind}": True}


@step(type="samples.combine_results")
def combine_results(processed_a: bool, processed_b: bool) -> dict[str, Any]:
    return {"combined": processed_a and processed_b}


@step(type="samples.finalize")
def finalize() -> dict[str, Any]:
    return {"finalized": True}


@step(type="samples.check_condition")
def check_condition(condition: str | None = None) -> dict[str, Any]:
    return {"checked": condition}


@step(type="samples.process_path")
def process_path(path: str) -> dict[str, Any]:
    return {"path": path}


@step(type="samples.process_item")
def process_item(item: Any, done: list[Any] | None = None) -> dict[str, Any]:
    return {"done": [*(done or []), item]}


@step(type="samples.validate_item")
def validate_item(item: Any) -> dict[str, Any]:
    return {"last_valid": item}


@step(type="samples.aggregate")
def aggregate(done: list[Any] | None = None) -> dict[str, Any]:
    return {"count": len(done or [])}


class SimpleWorkflow(WorkflowBase):
    id = "simple-workflow"
    version = 1

    def build(self, builder: Flow) -> None:
        builder.start_with(initialize).then(process_data).then(save_results).then(cleanup)


class ParallelWorkflow(WorkflowBase):
    id = "parallel-workflow"
    version = 1

    def build(self, builder: Flow) -> None:
        def branch(kind: str) -> Any:
            parameters = {"kind": kind}
            return lambda b: b.start_with(process_type, parameters=parameters).then(validate_type, parameters=parameters)

        builder.start_with(initialize).parallel().do(branch("a")).do(branch("b")).join_with(combine_results).then(finalize)


class ConditionalWorkflow(WorkflowBase):
    id = "conditional-workflow"
    version = 1

    def build(self, builder: Flow) -> None:
        (
            builder.start_with(check_condition)
            .if_(lambda data: data.get("condition") == "A", "if-a")
            .do(lambda then: then.start_with(process_path, parameters={"path": "A"}))
            .if_(lambda data: data.get("condition") == "B", "if-b")
            .do(lambda then: then.start_with(process_path, parameters={"path": "B"}))
            .then(finalize)
        )


class LoopWorkflow(WorkflowBase):
    id = "loop-workflow"
    version = 1

    def build(self, builder: Flow) -> None:
        (
            builder.start_with(initialize)
            .foreach(lambda data: data.get("items") or [])
            .do(lambda each: each.start_with(process_item).then(validate_item))
            .then(aggregate)
        )
