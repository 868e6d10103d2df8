"""How gunicorn serves the API (`-c python:orchestrator.api.serving`): a worker knows the workflows and has its connections before it is asked."""

from __future__ import annotations

import gc
import logging
from typing import Any

from flask import Flask

from orchestrator.api.runner import runner

logger = logging.getLogger("orchestrator.api")

# Its place is one for all of gunicorn's servers of a user, and this is not the only one.
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    warm(worker.wsgi)
    # What is there now stays: looking through it again and again would hold every thread up for a tenth of a second each time.
    gc.collect()
    gc.freeze()


def warm(app: Flask) -> None:
    """What the first request would have waited for. A server that is away is waited for by whoever asks."""
    try:
        with app.app_context():
            runner().initialize()
            runner().workflows()
            app.test_client().get("/openapi.json")
    except Exception as error:  # noqa: BLE001  # whatever it is, the first request says it
        logger.warning("not warm: %s", str(error).split("\n", 1)[0])
