"""The HTTP API, put together: one blueprint per resource, one table of errors."""

from __future__ import annotations

import logging

from flask import Flask
from flask_compress import Compress
from werkzeug.middleware.proxy_fix import ProxyFix

from orchestrator.api import (
    alerts,
    asked,
    breakers,
    conditional,
    configs,
    definitions,
    errors,
    events,
    gate,
    health,
    history,
    instances,
    live,
    metrics,
    openapi,
    proxies,
    schedules,
    security,
    service,
    serving,
    tenants,
    triggers,
)
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.starting import begin


def create_app(runner: WorkflowRunner | None = None) -> Flask:
    """The app over a runner; without one, the process's own is made when first needed."""
    app = Flask("orchestrator")
    app.request_class = asked.Asked
    settings = runner.runtime.settings if runner is not None else begin("web", logging_is_ours=not logging.getLogger().handlers)
    app.config["MAX_CONTENT_LENGTH"] = settings.request_limit_bytes
    app.json = asked.Json(app)
    app.extensions["runner"] = runner
    app.config["COMPRESS_ALGORITHM"] = ["gzip"]
    Compress(app)
    errors.register(app)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(instances.blueprint)
    app.register_blueprint(history.blueprint)
    app.register_blueprint(live.blueprint)
    app.register_blueprint(definitions.blueprint)
    app.register_blueprint(events.blueprint)
    app.register_blueprint(events.bus)
    app.register_blueprint(triggers.blueprint)
    app.register_blueprint(schedules.blueprint)
    app.register_blueprint(proxies.application)
    app.register_blueprint(proxies.instances)
    app.register_blueprint(breakers.blueprint)
    app.register_blueprint(configs.blueprint)
    app.register_blueprint(security.blueprint)
    app.register_blueprint(service.blueprint)
    app.register_blueprint(alerts.blueprint)
    app.register_blueprint(tenants.blueprint)
    app.register_blueprint(openapi.blueprint)
    gate.register(app)
    openapi.check(app)
    app.before_request(openapi.check_request)
    conditional.register(app)
    app.after_request(serving.close_where_unread)
    if behind := settings.trusted_proxies:
        # Addresses in the audit and in limits, the prefix under which links lie: as the outermost trusted proxy saw them.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=behind, x_proto=behind, x_host=behind, x_prefix=behind)  # type: ignore[method-assign]
    gate.check_host(settings.host, is_on=settings.auth == "on")
    return app
