"""A call of a function that no document declares: it is known to be missing only when it is called."""

from __future__ import annotations

from typing import Any

from orchestrator.net.problems import Problem
from orchestrator.steps.registry import StepContext, executor


@executor
class CallUndeclared:
    type = "call.undeclared"

    def execute(self, context: StepContext) -> Any:
        raise Problem("configuration", f"the function '{context.parameter('function')}' is not declared in this document")
