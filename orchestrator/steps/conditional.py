"""`conditional`: a yes or no. Parameter: condition (`always_true`, `always_false`, or the name of a key in the data)."""

from orchestrator.errors import Terminal
from orchestrator.steps.registry import Result, StepContext, executor


@executor
class Conditional:
    type = "conditional"

    def execute(self, context: StepContext) -> Result:
        condition = context.parameter("condition")
        if not isinstance(condition, str):
            raise Terminal("conditional step needs a 'condition' parameter")
        if condition in ("always_true", "always_false"):
            return Result({"result": condition == "always_true"})
        held = context.input.get(condition) if isinstance(context.input, dict) else None
        return Result({"result": bool(held)})
