"""The worker's /metrics, what all of its processes counted, on one port; and its /health on another."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

logger = logging.getLogger("orchestrator.metrics")

AGAIN_S, TELL_AFTER_S = 0.5, 5.0


def serve(port: int, host: str = "127.0.0.1") -> None:
    from prometheus_client import CollectorRegistry, multiprocess, start_http_server
    from prometheus_client.registry import REGISTRY

    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    _opened(lambda: start_http_server(port, addr=host, registry=registry), f"METRICS_PORT {port}")


def both(port: int, ask: Callable[[], dict[str, Any]], host: str = "127.0.0.1") -> None:
    """/health and /metrics of a process without children on one port."""
    from prometheus_client import generate_latest

    health(port, ask, host, lambda: generate_latest())


def health(port: int, ask: Callable[[], dict[str, Any]], host: str = "127.0.0.1", measures: Callable[[], bytes] | None = None) -> None:
    """`ask` says how the process is. `status` decides the answer's code: one that works, although something that it works on does not,
    is not to be started again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if measures is not None and self.path.split("?")[0] == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", measures())
                return
            said = ask() if self.path.split("?")[0] in ("/health", "/") else {"status": "unknown path"}
            status = {"healthy": 200, "degraded": 200, "unknown path": 404}.get(str(said["status"]), 503)
            self._answer(status, "application/json", json.dumps(said).encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    def serve() -> None:
        server = ThreadingHTTPServer((host, port), Handler)
        threading.Thread(target=server.serve_forever, name="health", daemon=True).start()

    _opened(serve, f"port {port} for /health")


def _opened(act: Callable[[], Any], what: str) -> None:
    """Now, or when a process that is just ending has given its port back."""
    try:
        act()
    except OSError:
        threading.Thread(target=_retried, args=(act, what), name=f"opens {what}", daemon=True).start()


def _retried(act: Callable[[], Any], what: str) -> None:
    began, said = time.monotonic(), False
    while True:
        time.sleep(AGAIN_S)
        try:
            act()
        except OSError as error:
            if not said and time.monotonic() - began > TELL_AFTER_S:
                said = True
                logger.warning("%s is not open here: %s. Another worker has it? Give each its own, or 0", what, error)
            continue
        return
