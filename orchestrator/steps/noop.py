"""`noop`: nothing; what flows in flows on."""

from orchestrator.steps.registry import StepContext, executor


@executor
class Noop:
    type = "noop"

    def execute(self, context: StepContext) -> None:
        return None
