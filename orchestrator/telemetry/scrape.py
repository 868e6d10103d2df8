"""The worker's /metrics: what all of its processes counted, on one port."""

from __future__ import annotations

import logging
import os

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
        logger.error("METRICS_PORT %d cannot be opened: %s", port, error)
