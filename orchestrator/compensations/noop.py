"""Undoing by doing nothing: for steps whose effect may stay."""

from orchestrator.steps.registry import StepContext, compensation


@compensation
class NoopCompensation:
    type = "noop"

    def compensate(self, context: StepContext) -> None:
        return None
