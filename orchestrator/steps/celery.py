"""`celery`: a Celery task that exists already, called in this worker. Parameters: task (its name), args, kwargs.

The task's body runs here and now, inside the step: its result is checkpointed, its exception is the step's failure.
"""

from __future__ import annotations

from typing import Any

from celery import current_app

from orchestrator.errors import Terminal
from orchestrator.steps.registry import StepContext, executor


@executor
class CeleryTask:
    type = "celery"

    def execute(self, context: StepContext) -> Any:
        name = context.parameter("task")
        task = current_app.tasks.get(name)
        if task is None:
            raise Terminal(f"no Celery task '{name}' in this worker; import its module in ORCHESTRATOR_WORKFLOWS")
        kwargs = context.parameter("kwargs")
        args = context.parameter("args") or []
        if not isinstance(args, list) or not isinstance(kwargs, dict | None):
            raise Terminal("celery step: 'args' must be a list, 'kwargs' a mapping")
        return task(*args, **(kwargs or {}))
