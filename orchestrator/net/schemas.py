"""Schemas that stand elsewhere: fetched as any resource is, under the egress policy."""

from __future__ import annotations

from typing import Any

from orchestrator.definition.schemas import set_fetch
from orchestrator.definition.serverless.endpoints import TEMPLATE
from orchestrator.definition.serverless.resources import parsed
from orchestrator.net.problems import Problem
from orchestrator.net.resources import fetched


def fetch(resource: Any) -> Any:
    endpoint = resource.get("endpoint") if isinstance(resource, dict) else resource
    address = endpoint.get("uri") if isinstance(endpoint, dict) else endpoint
    if isinstance(address, dict):
        address = address.get(TEMPLATE)
    if not isinstance(address, str):
        raise Problem("configuration", "a schema's resource needs an endpoint")
    return parsed(fetched(address), address)


def install() -> None:
    set_fetch(fetch)
