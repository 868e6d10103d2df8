"""Documents that a definition refers to, as data: JSON or YAML."""

from __future__ import annotations

import json
from typing import Any

import yaml

from orchestrator.errors import Fault, Invalid


def parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise Invalid([Fault(name, f"is neither JSON nor YAML: {str(error).splitlines()[0]}")], "resource") from None
