"""`/metrics`: what this process counted, and what is true of the event streams at the moment of asking, bridge or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from api.runner import runner
from orchestrator.store import events
from orchestrator.stream.bridge import standing
from orchestrator.stream.state import StateKeys
from orchestrator.stream.stores import StoreAway

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    registry = CollectorRegistry()
    registry.register(_Streams())
    return Response(generate_latest(registry), content_type="text/plain; version=0.0.4; charset=utf-8")


class _Streams:
    """Asked at each scrape: lag is seen also while nobody consumes."""

    def collect(self) -> Iterator[Any]:
        current = runner()
        settings = current.runtime.settings
        lag = GaugeMetricFamily(
            "orchestrator_stream_lag", "Entries not read yet, and read and not acknowledged", labels=["stream", "group", "what"]
        )
        active = GaugeMetricFamily("orchestrator_stream_consumers", "Consumers that are alive", labels=["stream", "group"])
        states = GaugeMetricFamily("orchestrator_events", "Events that wait, are at work, or were put aside", labels=["state"])
        try:
            for one in standing(settings, current.database.connection()):
                lag.add_metric([one["stream"], one["group"], "waiting"], one["waiting"])
                lag.add_metric([one["stream"], one["group"], "pending"], one["pending"])
                active.add_metric([one["stream"], one["group"]], len(one["consumers"]))
            for state, count in events.count_by_state(current.database.connection()).items():
                states.add_metric([state], count)
        except psycopg.Error:
            current.database.drop()
        except StoreAway:
            pass
        keys = StateKeys(settings)
        info = keys.info()
        keys.close()
        yield lag
        yield active
        yield states
        for kind, meaning in (("processed", "Entries handled by all consumers"), ("errors", "Attempts that failed and events put aside")):
            counter = CounterMetricFamily(f"orchestrator_stream_{kind}", meaning)
            counter.add_metric([], info.get(f"{kind}_count", 0))
            yield counter
