"""Undoing a `log` step: there is nothing to undo, and it says so."""

import logging

from orchestrator.steps.registry import StepContext, compensation

logger = logging.getLogger("orchestrator.steps.log")


@compensation
class LogCompensation:
    type = "log"

    def compensate(self, context: StepContext) -> None:
        logger.info("compensating log step %s", context.name)
