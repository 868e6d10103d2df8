"""`fail`: always fails. Parameter: message. For trying out what happens then."""

from orchestrator.errors import StepError
from orchestrator.steps.registry import StepContext, executor


class IntendedFailure(StepError):
    code = "failed"
    retryable = True


@executor
class Fail:
    type = "fail"

    def execute(self, context: StepContext) -> None:
        raise IntendedFailure(str(context.parameter("message", "Step intentionally failed")))
