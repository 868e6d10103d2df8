"""`call` of a function of a catalog: its definition is fetched once, recorded, and run as a workflow of its own.

What was fetched stands in the history: a catalog that changes changes nothing for an instance that has begun.
"""

from __future__ import annotations

import re
from typing import Any

from orchestrator.definition.serverless.resources import parsed
from orchestrator.net.authentication import authentication
from orchestrator.net.problems import Problem
from orchestrator.net.resources import fetched
from orchestrator.steps.call_http import endpoint_of
from orchestrator.steps.registry import StepContext, executor

OFFICIAL = "https://github.com/serverlessworkflow/catalog/tree/main"


@executor
class CallFunction:
    type = "call.function"

    def execute(self, context: StepContext) -> Any:
        given = context.parameters if isinstance(context.parameters, dict) else {}
        reference = str(given.get("reference"))
        policy = None
        if re.match(r"(https?|file)://", reference):
            address = raw(reference)
        else:
            name, _, rest = reference.partition(":")
            version, _, _catalog = rest.partition("@")
            where, policy = (OFFICIAL, None) if given.get("catalog") is None else endpoint_of(given["catalog"], context)
            address = f"{raw(where).rstrip('/')}/functions/{name}/{version}/function.yaml"
        function = parsed(fetched(address, authentication(policy, context.secrets)), address)
        if not isinstance(function, dict):
            raise Problem("configuration", f"{address} is no function")
        document = {
            "document": {"dsl": "1.0.3", "namespace": "functions", "name": "function", "version": "1.0.0"},
            "do": [{"function": function}],
        }
        return {"definition": document, "input": given.get("arguments") or {}}


def raw(address: str) -> str:
    """The address of the file itself, where a page about it was given."""
    found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)/(?:tree|blob)/([^/]+)(/.*)?", address)
    if found:
        return f"https://raw.githubusercontent.com/{found.group(1)}/refs/heads/{found.group(2)}{found.group(3) or ''}"
    return address.replace("/-/blob/", "/-/raw/").replace("/-/tree/", "/-/raw/")
