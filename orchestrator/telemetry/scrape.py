"""The worker's /metrics, what all of its processes counted, on one port; and its /health on another."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

logger = logging.getLogger("orchestrator.metrics")


def serve(port: int, host: str = "127.0.0.1") -> None:
    from prometheus_client import CollectorRegistry, multiprocess, start_http_server
    from prometheus_client.registry import REGISTRY

    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        logger.warning("METRICS_PORT %d is not open here: %s. Another worker has it? Give each its own, or 0", port, error)


def both(port: int, ask: Callable[[], dict[str, Any]], host: str = "127.0.0.1") -> None:
    """/health and /metrics of a process without children on one port."""
    from prometheus_client import generate_latest

    health(port, ask, host, lambda: generate_latest())


def health(port: int, ask: Callable[[], dict[str, Any]], host: str = "127.0.0.1", measures: Callable[[], bytes] | None = None) -> None:
    """`ask` says how the worker is; `status` decides the answer's code."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if measures is not None and self.path.split("?")[0] == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", measures())
                return
            said = ask() if self.path.split("?")[0] in ("/health", "/") else {"status": "unknown path"}
            status = {"healthy": 200, "unknown path": 404}.get(str(said["status"]), 503)
            self._answer(status, "application/json", json.dumps(said).encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        logger.warning("port %d for /health is not open here: %s. Another worker has it? Give each its own, or 0", port, error)
        return
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
