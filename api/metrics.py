"""`/metrics`: what this process counted, and what is true of the event streams at the moment of asking, bridge or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import redis
from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from api.runner import runner
from orchestrator.breakers import NUMBERS
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.store import events, security
from orchestrator.stream.bridge import standing
from orchestrator.stream.state import StateKeys
from orchestrator.stream.stores import StoreAway

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    return shown(_Streams())


def shown(*collectors: Any) -> Response:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return Response(generate_latest(registry), content_type="text/plain; version=0.0.4; charset=utf-8")


class Service:
    """The names of the scheduled-workflow service, for its dashboards."""

    def __init__(self, began: float) -> None:
        self.began = began

    def collect(self) -> Iterator[Any]:
        stats = runner().get_workflow_stats()
        runs = CounterMetricFamily("workflow_runs", "Runs by workflow and how they ended", labels=["workflow", "status"])
        average = GaugeMetricFamily("workflow_duration_ms_avg", "Average time of a run that completed", labels=["workflow"])
        for one in stats["workflows"]:
            runs.add_metric([one["workflow"], "completed"], one["completed"])
            runs.add_metric([one["workflow"], "failed"], one["failed"])
            if one["average_s"] is not None:
                average.add_metric([one["workflow"]], one["average_s"] * 1000)
        yield runs
        yield average
        yield GaugeMetricFamily("workflow_orchestrator_uptime_seconds", "Since this process began", value=time.monotonic() - self.began)
        names = {(stored.namespace, stored.name) for stored in runner().workflows()}
        yield GaugeMetricFamily("workflows_registered_total", "Workflows, each once", value=len(names))


def _security(current: WorkflowRunner) -> Iterator[Any]:
    found = GaugeMetricFamily("orchestrator_security_events", "Security events that are kept", labels=["type", "resolved"])
    try:
        for (type, resolved), count in security.count_events(current.database.connection()).items():
            found.add_metric([type, str(resolved).lower()], count)
    except psycopg.Error:
        current.database.drop()
    yield found


def _breakers(current: WorkflowRunner) -> Iterator[Any]:
    found = GaugeMetricFamily("orchestrator_breaker_state", "0 closed, 1 half-open, 2 open", labels=["breaker"])
    try:
        for one in current.runtime.breakers.all():
            found.add_metric([one["name"]], NUMBERS[one["state"]])
    except redis.RedisError:
        pass
    yield found


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
        yield from _security(current)
        yield from _breakers(current)
        yield lag
        yield active
        yield states
        for kind, meaning in (("processed", "Entries handled by all consumers"), ("errors", "Attempts that failed and events put aside")):
            counter = CounterMetricFamily(f"orchestrator_stream_{kind}", meaning)
            counter.add_metric([], info.get(f"{kind}_count", 0))
            yield counter
