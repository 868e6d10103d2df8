"""`call: http`: one request as the Serverless Workflow DSL has it. Gives the content, the raw body, or the whole response."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from orchestrator.config.secrets import masked, values_in
from orchestrator.definition.serverless.endpoints import TEMPLATE
from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, Answer, judged, send
from orchestrator.net.problems import Problem
from orchestrator.steps.registry import StepContext, executor

SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
_NAME = re.compile(r"\{([^{}]*)\}")


@executor
class CallHttp:
    type = "call.http"

    def execute(self, context: StepContext) -> Any:
        given = context.parameters if isinstance(context.parameters, dict) else {}
        uri, policy = endpoint_of(given.get("endpoint"), context)
        headers = _strings(given.get("headers"), "headers")
        headers.setdefault("Idempotency-Key", context.idempotency_key)
        content = given.get("body")
        if isinstance(content, dict) and _header(headers, "content-type").startswith("application/x-www-form-urlencoded"):
            content = urlencode(content, doseq=True)
        redirect = given.get("redirect") is True
        with hidden(context):
            answer = send(
                str(given.get("method", "GET")),
                uri,
                headers=headers,
                query=_query(given.get("query")),
                content=content,
                auth=authentication(policy, context.secrets),
                follow=redirect,
                timeout_s=context.deadline_s or TIMEOUT_S,
            )
            return shown(judged(answer, redirect=redirect), given.get("output", "content"), context)


def endpoint_of(given: Any, context: StepContext) -> tuple[str, Mapping[str, Any] | None]:
    """Where to, and with what credentials: a string, or a mapping with `uri` and `authentication`."""
    policy = None
    if isinstance(given, dict) and TEMPLATE not in given:
        policy, given = given.get("authentication"), given.get("uri")
    if isinstance(given, dict) and TEMPLATE in given:
        given = expanded(str(given[TEMPLATE]), context.input)
    if not isinstance(given, str) or not given:
        raise Problem("configuration", "an endpoint is a URI, or a mapping with `uri`")
    return given, policy


def expanded(template: str, data: Any) -> str:
    """RFC 6570, simple expansion, of the data's own properties."""

    def filled(found: re.Match[str]) -> str:
        value = data.get(found.group(1)) if isinstance(data, dict) else None
        if value is None:
            return ""
        if isinstance(value, dict | list):
            raise Problem("expression", f"'{found.group(1)}' of '{template}' is {'an object' if isinstance(value, dict) else 'an array'}")
        if isinstance(value, bool):
            value = str(value).lower()
        return quote(str(value), safe="")

    return _NAME.sub(filled, template)


def _strings(given: Any, what: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Problem("configuration", f"{what} must be a mapping of names to values")
    return {str(key): _text(value) for key, value in given.items() if value is not None}


def _query(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Problem("configuration", "query must be a mapping of names to values")
    return {str(k): [_text(item) for item in v] if isinstance(v, list) else _text(v) for k, v in given.items() if v is not None}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        import json

        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _header(headers: Mapping[str, str], name: str) -> str:
    return next((value for key, value in headers.items() if key.lower() == name), "").lower()


def shown(answer: Answer, form: str, context: StepContext) -> Any:
    if form == "raw":
        return base64.b64encode(answer.body).decode()
    hidden_strings = values_in(list(context.secrets.values()))
    if form == "content":
        return masked(answer.content, hidden_strings)
    request_headers = {key: "***" if key.lower() in SECRET_HEADERS else value for key, value in answer.request_headers.items()}
    said = {
        "request": {"method": answer.method, "uri": answer.url, "headers": request_headers},
        "headers": answer.headers,
        "statusCode": answer.status,
        "content": answer.content,
    }
    return masked(said, hidden_strings)


class hidden:  # noqa: N801  # reads as what it does
    """Inside, no problem says a secret."""

    def __init__(self, context: StepContext) -> None:
        self.strings = values_in([value for value in context.secrets.values() if value is not None])

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.strings and isinstance(error, Problem):
            error.problem = masked(error.problem, self.strings)
            error.args = tuple(masked(list(error.args), self.strings))
