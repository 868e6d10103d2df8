"""`fail`: always fails. Parameter: message. For trying out what happens then."""

from orchestrator.definition.parsing import Model
from orchestrator.errors import StepError
from orchestrator.steps.registry import StepContext, executor, given


class IntendedFailure(StepError):
    code = "failed"
    retryable = True


class Parameters(Model):
    message: str = "Step intentionally failed"


@executor
class Fail:
    type = "fail"
    parameters = Parameters

    def execute(self, context: StepContext) -> None:
        raise IntendedFailure(given(context, Parameters).message)
