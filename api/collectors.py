"""What is true at the moment of asking, for Prometheus. Counters that workers count are on their own port (METRICS_PORT).

Each family of figures is asked for by itself: what is away leaves the others standing, and is itself a figure.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import redis
from flask import current_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from orchestrator.api.health import database_answers, redis_answers
from orchestrator.api.hub import Hub
from orchestrator.api.runner import runner
from orchestrator.breakers import NUMBERS
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import PRIORITIES
from orchestrator.schedule import beats
from orchestrator.store import alerts, configs, events, figures, security, workers
from orchestrator.store.connection import Connection
from orchestrator.stream.bridge import standing
from orchestrator.stream.state import StateKeys
from orchestrator.stream.stores import StoreAway

logger = logging.getLogger("orchestrator.api")

SLA_OVER_S = 86_400.0
Families = Iterator[Any]


class Everything:
    """All families, whichever can be had."""

    def collect(self) -> Families:
        current = runner()
        up = GaugeMetricFamily("orchestrator_up", "Whether it answers", labels=["component"])
        up.add_metric(["database"], float(database_answers(current)))
        up.add_metric(["redis"], float(redis_answers(current)))
        yield up
        families: tuple[Callable[[WorkflowRunner, Connection], Families], ...] = (
            _runner, _scheduler, _lifecycle, _people, _queues, _streams, _security, _breakers,
        )  # fmt: skip
        for family in families:
            try:
                yield from list(family(current, current.database.connection()))
            except psycopg.Error:
                current.database.drop()
            except (redis.RedisError, StoreAway):
                continue


class Service:
    """The names of the scheduled-workflow service, for its dashboards."""

    def __init__(self, began: float) -> None:
        self.began = began

    def collect(self) -> Families:
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
        received = CounterMetricFamily("alerts_received", "Alerts that were sent here, by severity", labels=["severity"])
        for severity, count in runner().database.patiently(figures.alerts_received).items():
            received.add_metric([severity], count)
        yield received


def _runner(current: WorkflowRunner, c: Connection) -> Families:
    """Instances on their way, and what holds them up."""
    found = GaugeMetricFamily("orchestrator_instances", "Instances that have not ended, by state", labels=["state"])
    for state, count in figures.open_instances(c).items():
        found.add_metric([state], count)
    yield found
    branches = GaugeMetricFamily("orchestrator_branches", "Branches that have not closed, by state", labels=["state"])
    for state, count in figures.open_branches(c).items():
        branches.add_metric([state], count)
    yield branches
    for name, meaning, value in figures.backlogs(c):
        yield GaugeMetricFamily(f"orchestrator_{name}", meaning, value=value)
    at_fault = GaugeMetricFamily("orchestrator_findings", "What is at fault right now, by kind", labels=["kind"])
    for kind, count in figures.findings(c).items():
        at_fault.add_metric([kind], count)
    yield at_fault
    missing = GaugeMetricFamily("orchestrator_missing_code_branches", "Branches that wait for a worker that has the code", labels=["code"])
    waiting = GaugeMetricFamily("orchestrator_missing_code_seconds", "For how long they have waited", labels=["code"])
    for code, count, seconds in figures.lacking(c):
        missing.add_metric([code], count)
        waiting.add_metric([code], seconds)
    yield missing
    yield waiting
    connections, longest_s = figures.at_work_in_postgres(c)
    yield GaugeMetricFamily("orchestrator_database_connections", "Connections to the database, but for this one", value=connections)
    yield GaugeMetricFamily("orchestrator_longest_statement_seconds", "How long the oldest statement at work has run", value=longest_s)
    living = figures.living_workers(c)
    yield GaugeMetricFamily("orchestrator_workers", "Workers that live", value=living[0])
    yield GaugeMetricFamily("orchestrator_worker_processes", "Their processes", value=living[1])
    hub: Hub | None = current_app.extensions.get("hub")
    yield GaugeMetricFamily("orchestrator_onlookers", "Open server-sent streams of this process", value=0 if hub is None else len(hub))


def _scheduler(current: WorkflowRunner, c: Connection) -> Families:
    sums = figures.schedules(c)
    found = GaugeMetricFamily("orchestrator_schedules", "Schedules, by whether they are on", labels=["state"])
    found.add_metric(["active"], sums["active"])
    found.add_metric(["paused"], sums["paused"])
    yield found
    runs = CounterMetricFamily(
        "orchestrator_schedule_runs", "Planned times of the schedules that are there, by what became of them", labels=["outcome"]
    )
    for outcome in ("started", "skipped", "failed"):
        runs.add_metric([outcome], sums[outcome])
    yield runs
    beat = beats.standing(current.runtime.publisher.app, c)
    yield GaugeMetricFamily(
        "orchestrator_beat_up", "Whether a beat ticks; without one, the keeper fires schedules", value=float(beat.is_beating)
    )
    if beat.silent_s is not None:
        yield GaugeMetricFamily("orchestrator_beat_silent_seconds", "Since the last tick of a beat, within a day", value=beat.silent_s)
    yield GaugeMetricFamily("orchestrator_schedule_lateness_seconds", "How late the most overdue schedule is", value=sums["late_s"])


def _lifecycle(current: WorkflowRunner, c: Connection) -> Families:
    """How much of what completed did so in the time that its configuration gives it."""
    share = GaugeMetricFamily(
        "orchestrator_sla_ratio", "Share that completed within monitoring.sla, over a day", labels=["workflow", "tenant"]
    )
    for tenant, namespace, workflow, target_s in configs.with_target(c, current.configs.environment):
        within = alerts.within(c, tenant, namespace, workflow, target_s, SLA_OVER_S)
        if within is not None:
            share.add_metric([workflow, tenant], within)
    yield share


def _people(current: WorkflowRunner, c: Connection) -> Families:
    found = GaugeMetricFamily("orchestrator_actions", "Audited acts of the last day, by who and what", labels=["actor", "action"])
    for actor, action, count in figures.actions(c):
        found.add_metric([actor, action], count)
    yield found


def _queues(current: WorkflowRunner, c: Connection) -> Families:
    """Where the broker is Redis, a queue is a list."""
    unserved = GaugeMetricFamily("orchestrator_unserved_branches", "Branches in queues from which no worker takes", labels=["queue"])
    for one in workers.unserved(c):
        unserved.add_metric([one.queue], one.branches)
    yield unserved
    settings = current.runtime.settings
    if not settings.broker.startswith(("redis", "sentinel", "unix")):
        return
    client: Any = redis.Redis.from_url(settings.broker, socket_timeout=1, socket_connect_timeout=1, retry=None)
    try:
        found = GaugeMetricFamily("orchestrator_queue_depth", "Messages that wait", labels=["queue"])
        for queue in (*PRIORITIES, *settings.worker_queues):
            found.add_metric([queue], client.llen(queue))
    finally:
        client.close()
    yield found


def _streams(current: WorkflowRunner, c: Connection) -> Families:
    """Lag is seen also while nobody consumes."""
    settings = current.runtime.settings
    lag = GaugeMetricFamily(
        "orchestrator_stream_lag", "Entries not read yet, and read and not acknowledged", labels=["stream", "group", "what"]
    )
    active = GaugeMetricFamily("orchestrator_stream_consumers", "Consumers that are alive", labels=["stream", "group"])
    states = GaugeMetricFamily("orchestrator_events", "Events that wait, are at work, or were put aside", labels=["state"])
    for state, count in events.count_by_state(c).items():
        states.add_metric([state], count)
    yield states
    for one in standing(settings, c):
        lag.add_metric([one["stream"], one["group"], "waiting"], one["waiting"])
        lag.add_metric([one["stream"], one["group"], "pending"], one["pending"])
        active.add_metric([one["stream"], one["group"]], len(one["consumers"]))
    yield lag
    yield active
    keys = StateKeys(settings)
    info = keys.info()
    keys.close()
    for kind, meaning in (("processed", "Entries handled by all consumers"), ("errors", "Attempts that failed and events put aside")):
        counter = CounterMetricFamily(f"orchestrator_stream_{kind}", meaning)
        counter.add_metric([], info.get(f"{kind}_count", 0))
        yield counter


def _security(current: WorkflowRunner, c: Connection) -> Families:
    found = GaugeMetricFamily("orchestrator_security_events", "Security events that are kept", labels=["type", "resolved"])
    for (type, resolved), count in security.count_events(c).items():
        found.add_metric([type, str(resolved).lower()], count)
    yield found


def _breakers(current: WorkflowRunner, c: Connection) -> Families:
    found = GaugeMetricFamily("orchestrator_breaker_state", "0 closed, 1 half-open, 2 open", labels=["breaker"])
    for one in current.runtime.breakers.all():
        found.add_metric([one["name"]], NUMBERS[one["state"]])
    yield found
