"""How gunicorn serves the API (`orchestrator web`, or `gunicorn -c python:orchestrator.api.serving`): a worker knows the workflows and
has its connections before it is asked, and what gunicorn logs stands among the process's own lines, at LOG_LEVEL.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from gunicorn.glogging import Logger

from orchestrator.api.runner import runner
from orchestrator.config.settings import Settings
from orchestrator.errors import Invalid
from orchestrator.starting import EXIT_REFUSED, begin

logger = logging.getLogger("orchestrator.api")

# Its place is one for all of gunicorn's servers of a user, and this is not the only one.
control_socket_disable = True


class Logs(Logger):  # type: ignore[misc]
    """The first that gunicorn makes: settings that mean nothing end it here, before it listens."""

    def setup(self, cfg: Any) -> None:
        try:
            begin("web")
        except Invalid as error:
            print(error, file=sys.stderr)  # noqa: T201  # there is no log yet
            sys.exit(EXIT_REFUSED)
        super().setup(cfg)
        if cfg.errorlog == "-":
            self.error_log.handlers[:] = [one for one in self.error_log.handlers if not getattr(one, "_gunicorn", False)]
            self.error_log.propagate = True
            self.error_log.setLevel(logging.NOTSET)


logger_class = Logs
control_socket_disable = True  # its place is one for all programs of a user


def command(settings: Settings, *more: str) -> list[str]:
    """What gunicorn is told: where to listen and with how many processes and threads; further options are its own."""
    return [
        str(Path(sys.executable).parent / "gunicorn"),
        *("-c", "python:orchestrator.api.serving", "orchestrator.api:create_app()"),
        *("--bind", f"{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"),
        *("--workers", str(settings.web_workers), "--threads", str(settings.web_threads)),
        *more,
    ]


_served = threading.local()
# Up to so much gunicorn reads for itself what nobody has read of a body, and keeps the connection.
_LEFT_UNREAD = 32 * 1024


def pre_request(worker: Any, served: Any) -> None:
    _served.request = served


def close_where_unread(response: Response) -> Response:
    """A body that was refused is not read to its end: then the connection is closed, and the answer says so."""
    served = getattr(_served, "request", None)
    if served is not None and response.status_code >= 400 and (request.content_length is None or request.content_length > _LEFT_UNREAD):
        has_body = bool(request.content_length) or "chunked" in request.headers.get("Transfer-Encoding", "").lower()
        if has_body:
            served.force_close()
    return response


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
