"""`run: shell`: a command, its arguments handed over as $1, $2 …, never put into its text. Off unless RUN_SHELL is on."""

from __future__ import annotations

from typing import Any

from orchestrator.net import process
from orchestrator.net.problems import Problem
from orchestrator.steps.registry import StepContext, executor
from orchestrator.steps.run_script import arguments_of, stdin_of


@executor
class RunShell:
    type = "run.shell"

    def execute(self, context: StepContext) -> Any:
        process.allowed("RUN_SHELL", "shell commands")
        given = {**(context.parameters or {}), **(context.literal or {})}
        command = given.get("command")
        if not isinstance(command, str):
            raise Problem("configuration", "a shell task needs a `command`")
        awaited = given.get("await", True) is not False
        ended = process.run(
            ["/bin/sh", "-c", command, "sh", *arguments_of(given.get("arguments"))],
            stdin=stdin_of(given.get("stdin")),
            environment=given.get("environment"),
            timeout_s=context.deadline_s,
            awaited=awaited,
        )
        return context.input if not awaited else process.outcome(ended, given.get("return", "stdout"), "the command")
