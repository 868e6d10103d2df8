"""Documents that a definition refers to, as data: JSON or YAML."""

from __future__ import annotations

import json
from typing import Any

import yaml

from orchestrator.definition.yaml12 import CoreLoader
from orchestrator.errors import Fault, Invalid


def parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.load(text, Loader=CoreLoader)  # noqa: S506  # nosec B506 # a SafeLoader with other resolvers
    except (yaml.YAMLError, RecursionError) as error:
        raise Invalid([Fault(name, f"is neither JSON nor YAML: {str(error).splitlines()[0]}")], "resource") from None
