"""OpenTelemetry spans, off unless TRACING is on. The context travels in message headers; where a message has none
(it was published by recovery), the instance's own trace id leads back to its trace.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

logger = logging.getLogger("orchestrator.tracing")

_tracer: list[Any] = [None]


def enable() -> None:
    """Spans go to whatever the process's tracer provider is; without one, to the exporter that OTEL_TRACES_EXPORTER names."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter and not isinstance(trace.get_tracer_provider(), TracerProvider):
        os.environ.setdefault("OTEL_SERVICE_NAME", "celery-orchestrator")
        provider = TracerProvider()
        for name in filter(None, map(str.strip, exporter.split(","))):
            found = [*entry_points(group="opentelemetry_traces_exporter", name=name)]
            if not found and name != "none":
                logger.error("OTEL_TRACES_EXPORTER names '%s', which no installed package provides; spans do not leave this process", name)
            for point in found:
                provider.add_span_processor(BatchSpanProcessor(point.load()()))
        trace.set_tracer_provider(provider)
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
def span(name: str, carrier: Mapping[str, Any] | None = None, *, trace_id: str | None = None, **attributes: Any) -> Iterator[None]:
    if _tracer[0] is None:
        yield
        return
    parent = _parent(carrier, trace_id)
    with _tracer[0].start_as_current_span(name, context=parent, attributes={k: v for k, v in attributes.items() if v is not None}):
        yield


def _parent(carrier: Mapping[str, Any] | None, trace_id: str | None) -> Any:
    from opentelemetry import propagate, trace

    current = propagate.extract(carrier) if carrier else None
    if current is not None and trace.get_current_span(current).get_span_context().is_valid:
        return current
    if trace_id is None or trace.get_current_span().get_span_context().is_valid:
        return None
    number = _number(trace_id)
    if number is None:
        return None
    # The span that started the instance is not here any more; its trace is.
    origin = trace.SpanContext(number, (number & 0xFFFFFFFFFFFFFFFF) or 1, is_remote=True, trace_flags=trace.TraceFlags(1))
    return trace.set_span_in_context(trace.NonRecordingSpan(origin))


def _number(trace_id: str) -> int | None:
    try:
        number = int(trace_id, 16)
    except ValueError:
        return None
    return number if 0 < number < 2**128 else None


def current_trace_id() -> str | None:
    """The trace this process is in, for an instance that starts inside of it."""
    if _tracer[0] is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def is_enabled() -> bool:
    return _tracer[0] is not None
