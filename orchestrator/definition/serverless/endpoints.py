"""URI templates: a literal address with `{name}` in it is expanded at the call; one that an expression gave is not."""

from __future__ import annotations

from typing import Any

from orchestrator.definition.expressions import embedded

TEMPLATE = "$uriTemplate"
_PLACES = ("endpoint", "uri", "authority", "server")


def marked(value: Any) -> Any:
    """Every literal address in a call's arguments that holds a template, told apart from what expressions will give."""
    if isinstance(value, dict):
        return {key: _address(item) if key in _PLACES else marked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item) for item in value]
    return value


def _address(value: Any) -> Any:
    if isinstance(value, str):
        return {TEMPLATE: value} if "{" in value and embedded(value) is None else value
    return marked(value)
