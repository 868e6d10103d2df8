"""Proxies put together, for the workflows, the API and the command line alike."""

from __future__ import annotations

import functools

from orchestrator.config.settings import Settings
from orchestrator.engine.runtime import Runtime
from orchestrator.proxies.application import Application
from orchestrator.proxies.registry import Proxies, certificates_of, plane_of
from orchestrator.stream.stores import publisher


@functools.lru_cache(maxsize=4)
def application(settings: Settings) -> Application:
    """What people configure. One per process: it holds connections to Redis."""
    return Application.at(
        settings.redis_url, length=settings.source_stream_length, publish=publisher(settings), prefix=settings.redis_prefix
    )


def proxies(runtime: Runtime) -> Proxies:
    """What became of it."""
    held = runtime.settings
    return Proxies(runtime.database, plane_of(held), certificates_of(held), held)
