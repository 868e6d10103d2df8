"""What a call that went wrong raises: an RFC 7807 problem of one of the types that the DSL knows."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import OrchestratorError

TYPES = "https://open-workflow-specification.org/spec/1.0.0/errors"
STATUS = {
    "configuration": 400,
    "validation": 400,
    "expression": 400,
    "authentication": 401,
    "authorization": 403,
    "timeout": 408,
    "communication": 500,
    "runtime": 500,
}


class Problem(OrchestratorError):
    """`code` is the last part of the type; `retryable` says whether the same call may come out otherwise."""

    def __init__(self, code: str, detail: str, *, status: int | None = None, title: str | None = None, retryable: bool = False) -> None:
        self.code = code
        self.retryable = retryable
        self.problem: dict[str, Any] = {
            "type": f"{TYPES}/{code}",
            "status": status or STATUS[code],
            "title": title or f"{code.capitalize()} error",
            "detail": detail,
        }
        super().__init__(detail)
