"""An API that asks who is there, and keys to it."""

from __future__ import annotations

import dataclasses
from typing import Any

from flask import Flask

from orchestrator.api import create_app
from orchestrator.engine import keyring
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from tests.stack import Stack


def guarded(stack: Stack, **settings: Any) -> Flask:
    """An app that asks who is there."""
    held = stack.runner.runtime
    changed = dataclasses.replace(held.settings, auth="on", **settings)
    runner = WorkflowRunner(Runtime(changed, held.database, held.publisher))
    return create_app(runner)


def key(stack: Stack, *roles: str, name: str = "", **more: Any) -> dict[str, str]:
    made = keyring.add(stack.runner.runtime, name or "-".join(roles), roles, **more)
    return {"Authorization": f"Bearer {made['key']}"}
