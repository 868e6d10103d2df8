"""`log`: a line in the log. Parameters: message (required), level (debug, info, warn, error)."""

import logging
from typing import ClassVar, Literal

from orchestrator.definition.parsing import Model
from orchestrator.steps.registry import Result, StepContext, executor, given

logger = logging.getLogger("orchestrator.steps.log")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "warning": logging.WARNING, "error": logging.ERROR}


class Parameters(Model):
    required: ClassVar[dict[object, str]] = {"message": "log step needs a 'message' parameter"}

    message: str
    level: Literal["debug", "info", "warn", "warning", "error"] = "info"


@executor
class Log:
    type = "log"
    parameters = Parameters

    def execute(self, context: StepContext) -> Result:
        asked = given(context, Parameters)
        about = {"instance": context.instance_id, "position": context.position, "step": context.name}
        logger.log(LEVELS[asked.level], asked.message, extra=about)
        return Result({"logged": True})
