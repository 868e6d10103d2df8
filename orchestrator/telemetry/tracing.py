"""OpenTelemetry spans, off unless TRACING is on. The context travels in message headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_tracer: list[Any] = [None]


def enable() -> None:
    """Needs the `tracing` extra; exporters are configured by the standard OTEL_ variables of the SDK in use."""
    from opentelemetry import trace

    _tracer[0] = trace.get_tracer("celery-orchestrator")


def options() -> dict[str, Any]:
    """What a message carries of the current span."""
    if _tracer[0] is None:
        return {}
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {"headers": carrier}


@contextmanager
def span(name: str, carrier: Mapping[str, Any] | None = None, **attributes: Any) -> Iterator[None]:
    if _tracer[0] is None:
        yield
        return
    from opentelemetry import propagate

    parent = propagate.extract(carrier) if carrier else None
    with _tracer[0].start_as_current_span(name, context=parent, attributes={k: v for k, v in attributes.items() if v is not None}):
        yield


def is_enabled() -> bool:
    return _tracer[0] is not None
