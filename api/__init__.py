"""The HTTP API, put together: one blueprint per resource, one table of errors."""

from __future__ import annotations

from flask import Flask

from api import definitions, errors, events, health, instances, metrics, proxies, triggers
from orchestrator.engine.runner import WorkflowRunner


def create_app(runner: WorkflowRunner | None = None) -> Flask:
    """The app over a runner; without one, the process's own is made when first needed."""
    app = Flask("orchestrator")
    app.config["MAX_CONTENT_LENGTH"] = 4 * 1024 * 1024
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["runner"] = runner
    errors.register(app)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(instances.blueprint)
    app.register_blueprint(definitions.blueprint)
    app.register_blueprint(events.blueprint)
    app.register_blueprint(events.bus)
    app.register_blueprint(triggers.blueprint)
    app.register_blueprint(proxies.application)
    app.register_blueprint(proxies.instances)
    return app
