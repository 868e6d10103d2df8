"""What kind of thing went wrong: the categories and severities by which errors are counted."""

from __future__ import annotations

from orchestrator.history import Failure

NETWORK, TIMEOUT, VALIDATION, PERMISSION, RESOURCE, SYSTEM, UNKNOWN = (
    "network", "timeout", "validation", "permission", "resource", "system", "unknown",
)  # fmt: skip

_BY_CODE = {
    "timeout": TIMEOUT, "invalid": VALIDATION, "validation": VALIDATION, "expression": VALIDATION, "communication": NETWORK,
    "authentication": PERMISSION, "authorization": PERMISSION, "forbidden": PERMISSION, "too_large": RESOURCE, "resource": RESOURCE,
    "circuit_open": NETWORK, "poison": SYSTEM, "internal": SYSTEM, "worker_crashed": SYSTEM, "outcome_unknown": SYSTEM, "broken_history": SYSTEM,
}  # fmt: skip
_BY_NAME = (
    (TIMEOUT, ("Timeout",)),
    (NETWORK, ("Connection", "Connect", "Network", "Transport", "DNS", "gaierror", "BrokenPipe", "RemoteProtocol", "BreakerOpen")),
    (PERMISSION, ("Permission", "Forbidden", "Unauthorized", "Authentication")),
    (RESOURCE, ("Memory", "TooLarge", "Resource", "Exhausted", "DiskFull")),
    (VALIDATION, ("Validation", "ValueError", "TypeError", "KeyError", "Invalid", "Expression", "JSONDecode")),
    (SYSTEM, ("OSError", "SystemError", "ImportError", "AttributeError", "NameError", "NotImplemented", "OperationalError")),
)


def category(failure: Failure) -> str:
    """By the status of an answer, by the code, by the name of the error."""
    status = failure.details.get("status") if isinstance(failure.details, dict) else None
    if isinstance(status, int) and status >= 400:
        return _by_status(status)
    if failure.code in _BY_CODE:
        return _BY_CODE[failure.code]
    return next((found for found, parts in _BY_NAME if any(part in failure.name for part in parts)), UNKNOWN)


def _by_status(status: int) -> str:
    if status in (408, 504):
        return TIMEOUT
    if status in (401, 403):
        return PERMISSION
    if status in (413, 429, 507):
        return RESOURCE
    return VALIDATION if status < 500 else NETWORK


def severity(found: str, *, gave_up: bool) -> str:
    """What will be tried again is low; what nobody outside can mend is critical."""
    if not gave_up:
        return "low"
    return {SYSTEM: "critical", RESOURCE: "high", PERMISSION: "high"}.get(found, "medium")
