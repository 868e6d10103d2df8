"""`delay`: done after a while. Parameter: delay ("30s", "100ms", "PT1M" or seconds). No worker is held meanwhile."""

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.errors import Terminal
from orchestrator.steps.registry import After, Result, StepContext, executor


@executor
class Delay:
    type = "delay"

    def execute(self, context: StepContext) -> After:
        value = context.parameter("delay")
        if value is None:
            raise Terminal("delay step needs a 'delay' parameter")
        try:
            length = seconds(value)
        except BadDuration as error:
            raise Terminal(f"delay step: {error}") from None
        return After(length, Result({"delayed_for": value if isinstance(value, str) else f"{length:g}s"}))
