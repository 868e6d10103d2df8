"""`log`: a line in the log. Parameters: message (required), level (debug, info, warn, error; anything else is info)."""

import logging

from orchestrator.errors import Terminal
from orchestrator.steps.registry import Result, StepContext, executor

logger = logging.getLogger("orchestrator.steps.log")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "warning": logging.WARNING, "error": logging.ERROR}


@executor
class Log:
    type = "log"

    def execute(self, context: StepContext) -> Result:
        message = context.parameter("message")
        if not isinstance(message, str):
            raise Terminal("log step needs a 'message' parameter")
        level = LEVELS.get(str(context.parameter("level", "info")).lower(), logging.INFO)
        logger.log(level, message, extra={"instance": context.instance_id, "position": context.position, "step": context.name})
        return Result({"logged": True})
