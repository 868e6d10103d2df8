"""Documents that a definition refers to, as data: JSON or YAML."""

from __future__ import annotations

from typing import Any

from orchestrator.definition.reading import RESOURCE, read


def parsed(text: str, name: str) -> Any:
    return read(text, name, RESOURCE)
