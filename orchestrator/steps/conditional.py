"""`conditional`: a yes or no. Parameter: condition (`always_true`, `always_false`, or the name of a key in the data)."""

from typing import ClassVar

from orchestrator.definition.parsing import Model, Name
from orchestrator.steps.registry import Result, StepContext, executor, given


class Parameters(Model):
    required: ClassVar[dict[object, str]] = {"condition": "conditional step needs a 'condition' parameter"}

    condition: Name


@executor
class Conditional:
    type = "conditional"
    parameters = Parameters

    def execute(self, context: StepContext) -> Result:
        condition = given(context, Parameters).condition
        if condition in ("always_true", "always_false"):
            return Result({"result": condition == "always_true"})
        held = context.input.get(condition) if isinstance(context.input, dict) else None
        return Result({"result": bool(held)})
