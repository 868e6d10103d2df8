"""The runner that serves the current app."""

from __future__ import annotations

from flask import current_app

from orchestrator.engine.runner import WorkflowRunner


def runner() -> WorkflowRunner:
    held: WorkflowRunner | None = current_app.extensions["runner"]
    if held is None:
        held = current_app.extensions["runner"] = WorkflowRunner.instance()
    return held
