"""`external`: the request of a task that somebody else does. See `definition/external.py` for the whole of it."""

from __future__ import annotations

from typing import Any

from orchestrator.steps.registry import StepContext, executor


@executor
class External:
    type = "external"

    def execute(self, context: StepContext) -> dict[str, Any]:
        return {
            "task_id": context.idempotency_key,
            "task_name": context.parameter("task_name"),
            "task_type": context.parameter("task_type"),
            "input": context.input,
            "context": {"workflow_input": context.input_of_instance, "variables": context.input, "task_outputs": {}},
            "config": {"retries": 3, "parameters": {}, **context.parameter("config", {})},
        }
