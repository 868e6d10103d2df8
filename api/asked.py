"""What a request says: its body as an object, and who asks."""

from __future__ import annotations

from typing import Any

from flask import request

from orchestrator.errors import Fault, Invalid


def body() -> dict[str, Any]:
    if not request.get_data(cache=True):
        return {}
    found = request.get_json(force=True)
    if not isinstance(found, dict):
        raise Invalid([Fault("body", "must be a JSON object")], "request")
    return found


def actor() -> str:
    return request.headers.get("X-Actor", "anonymous")


def tenant() -> str:
    return request.headers.get("X-Tenant", "default")


def by_whom() -> dict[str, Any]:
    return {"actor": actor(), "source": "api"}


def number(name: str, default: int, most: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isdigit() or not 0 < int(text) <= most:
        raise Invalid([Fault(name, f"is '{text}'; a number from 1 to {most:,} is needed")], "request")
    return int(text)
