"""Errors as the expressions and filters of a definition see them: RFC 7807 problems, and which of them a try catches."""

from __future__ import annotations

from typing import Any

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
    """The failure a raise task stands for."""
    if not isinstance(value, dict) or "type" not in value:
        return Failure("configuration", f"raise needs an error with a type, not {value!r}", position, "ConfigurationError")
    details = {"instance": pointer(position), **{key: item for key, item in value.items() if item is not None}}
    code = str(value["type"]).rstrip("/").rsplit("/", 1)[-1]
    message = str(value.get("detail") or value.get("title") or value["type"])
    return Failure(code, message, position, str(value.get("title") or code), details=details)


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
