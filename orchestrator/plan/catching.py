"""Errors as the expressions and filters of a definition see them: RFC 7807 problems, and which of them a try catches."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.definition.parsing import shown
from orchestrator.history import Failure
from orchestrator.ids import Position, pointer

HOST = "https://open-workflow-specification.org"
STATUS_OF = {
    "configuration": 400,
    "validation": 400,
    "expression": 400,
    "authentication": 401,
    "authorization": 403,
    "timeout": 408,
    "communication": 500,
    "runtime": 500,
}


def problem(failure: Failure) -> dict[str, Any]:
    """A failure as `{type, status, title, detail, instance}`; what a raise or a call said of itself comes first."""
    code = failure.code if failure.code in STATUS_OF else "runtime"
    said = failure.details if isinstance(failure.details, dict) and "type" in failure.details else {}
    shown = {
        "type": f"{HOST}/spec/1.0.0/errors/{code}",
        "status": STATUS_OF[code],
        "title": failure.name or failure.code,
        "detail": failure.message,
        "instance": pointer(failure.position),
        "code": failure.code,
        **said,
    }
    return {key: value for key, value in shown.items() if value is not None}


def told(failure: Failure) -> dict[str, Any]:
    """An instance's error: the failure, and the same as a problem for those who read RFC 7807."""
    return {**problem(failure), **failure.to_json()}


def raised(value: Any, position: Position) -> Failure:
    """The failure a raise task stands for. What it says was computed: a title may be a number, a status may not be text."""
    if not isinstance(value, dict) or "type" not in value:
        return Failure("configuration", f"raise needs an error with a type, not {shown(value)}", position, "ConfigurationError")
    said = {key: item for key, item in value.items() if item is not None}
    status = said.get("status", 500)
    if isinstance(status, float) and status.is_integer():
        said["status"] = status = int(status)
    wrong = [
        f"its {name} must be text, not {shown(said[name])}"
        for name in ("type", "instance")
        if name in said and not (isinstance(said[name], str) and said[name])
    ]
    if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
        wrong.append(f"its status must be a number from 100 to 599, not {shown(status)}")
    if "type" not in said:
        wrong.append("it must have a type")
    if wrong:
        return Failure("configuration", f"raise: the error cannot be raised: {'; '.join(wrong)}", position, "ConfigurationError")
    for name in ("title", "detail"):
        if name in said and not isinstance(said[name], str):
            said[name] = json.dumps(said[name], ensure_ascii=False)
    details = {"instance": pointer(position), **said}
    code = str(said["type"]).rstrip("/").rsplit("/", 1)[-1]
    message = str(said.get("detail") or said.get("title") or said["type"])
    return Failure(code, message, position, str(said.get("title") or code), details=details)


def canonical(kind: Any) -> Any:
    """Error type URIs have had several hosts and paths; what they name is their last segment."""
    if not isinstance(kind, str):
        return kind
    for path in ("/spec/1.0.0/errors/", "/dsl/errors/types/"):
        if path in kind:
            return kind.rsplit("/", 1)[-1]
    return kind


def matches(errors: Any, shown: dict[str, Any]) -> bool:
    """Every attribute that the filter gives must be equal; no filter catches everything."""
    wanted = (errors or {}).get("with", errors) or {}
    for key, value in wanted.items():
        name = "detail" if key == "details" else key
        have = shown.get(name)
        if name == "type":
            value, have = canonical(value), canonical(have)
        if value != have:
            return False
    return True
