"""`python`: a function by name. Parameters: function ("module:name", from a package in ORCHESTRATOR_WORKFLOWS), kwargs."""

from __future__ import annotations

import importlib
from typing import Any

from orchestrator.config.process import settings
from orchestrator.errors import Terminal
from orchestrator.steps.functions import Binding, StepFunction
from orchestrator.steps.registry import StepContext, executor


@executor
class Python:
    type = "python"

    def execute(self, context: StepContext) -> Any:
        name = context.parameter("function")
        if not isinstance(name, str) or ":" not in name:
            raise Terminal("python step needs a 'function' parameter such as 'workflows.orders:total'")
        module, _, attribute = name.partition(":")
        # A document may call what its project wrote, not the whole of Python's library.
        if not any(module == package or module.startswith(f"{package}.") for package in settings().workflows):
            raise Terminal(f"'{module}' is not in ORCHESTRATOR_WORKFLOWS; only functions of the project's own workflows may be called")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise Terminal(f"no function '{name}': {error}") from None
        body = found.body if isinstance(found, StepFunction) else found
        given = context.parameter("kwargs")
        bound = StepContext(
            instance_id=context.instance_id,
            workflow=context.workflow,
            position=context.position,
            name=context.name,
            type=context.type,
            input=context.input,
            parameters=given,
            attempt=context.attempt,
        )
        return Binding(body).call(bound)
