"""`delay`: done after a while. Parameter: delay ("30s", "100ms", "PT1M" or seconds). No worker is held meanwhile."""

from typing import ClassVar

from orchestrator.definition.parsing import Model, Seconds
from orchestrator.steps.registry import After, Result, StepContext, executor, given


class Parameters(Model):
    required: ClassVar[dict[object, str]] = {"delay": "delay step needs a 'delay' parameter"}

    delay: Seconds


@executor
class Delay:
    type = "delay"
    parameters = Parameters

    def execute(self, context: StepContext) -> After:
        length, written = given(context, Parameters).delay, context.parameter("delay")
        return After(length, Result({"delayed_for": written if isinstance(written, str) else f"{length:g}s"}))
