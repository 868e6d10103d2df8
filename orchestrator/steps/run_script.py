"""`run: script`: Python or JavaScript, inline or from a resource, in a process of its own. Off unless RUN_SCRIPTS is on.

A list of arguments is the script's argv. A map of them, as DSL 1.0.0 has it, is the script's variables.
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.config.process import settings
from orchestrator.definition.parsing import shown
from orchestrator.net import process
from orchestrator.net.authentication import authentication
from orchestrator.net.problems import Problem
from orchestrator.net.resources import fetched
from orchestrator.steps.call_http import endpoint_of
from orchestrator.steps.registry import StepContext, executor


@executor
class RunScript:
    type = "run.script"

    def execute(self, context: StepContext) -> Any:
        process.allowed("RUN_SCRIPTS", "scripts")
        given = {**(context.parameters or {}), **(context.literal or {})}
        code = given.get("code")
        if code is None:
            where, policy = endpoint_of((given.get("source") or {}).get("endpoint"), context)
            code = fetched(where, authentication(policy, context.secrets))
        if not isinstance(code, str):
            raise Problem("configuration", "a script needs `code`, or a `source` to read it from")
        named = given.get("arguments")
        variables = named if isinstance(named, dict) else None
        arguments = [] if variables is not None else arguments_of(named)
        language = given.get("language")
        if language == "python":
            with_variables = [] if variables is None else [_WITH_VARIABLES, json.dumps(variables)]
            command = [process.program("python3"), "-I", "-c", *with_variables, code, *arguments]
        elif language in ("js", "javascript"):
            flavour = "module" if _is_module(code) else "commonjs"
            memory = f"--max-old-space-size={settings().run_memory_mb}"
            code = code if variables is None else f"Object.assign(globalThis, {json.dumps(variables)}); {code}"
            # As for a file, `process.argv` is [node, name, …].
            command = [process.program("node"), memory, f"--input-type={flavour}", "--eval", code, "--", "script", *arguments]
        else:
            raise Problem("configuration", f"'{language}' is no script language here; write js or python")
        awaited = given.get("await", True) is not False
        ended = process.run(
            command,
            stdin=stdin_of(given.get("stdin")),
            environment=given.get("environment"),
            timeout_s=context.deadline_s,
            limit_memory=language == "python",
            awaited=awaited,
        )
        return context.input if not awaited else process.outcome(ended, given.get("return", "stdout"), "the script")


# Up to DSL 1.0.1 the arguments of a script were a map: its names are variables of the script.
_WITH_VARIABLES = """
import json, sys
_, variables, code = sys.argv
sys.argv = ["-c"]
exec(compile(code, "<script>", "exec"), {"__name__": "__main__", **json.loads(variables)})
"""


def _is_module(code: str) -> bool:
    return any(line.lstrip().startswith(("import ", "export ", "import{")) for line in code.splitlines()) or "await " in code


def arguments_of(given: Any) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise Problem("configuration", f"arguments must be a list, not {shown(given)}")
    return [item if isinstance(item, str) else json.dumps(item) for item in given]


def stdin_of(given: Any) -> str:
    if given is None:
        return ""
    return given if isinstance(given, str) else json.dumps(given)
