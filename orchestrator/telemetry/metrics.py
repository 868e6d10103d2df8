"""Prometheus counters and histograms of the engine, kept only when a port asks for them.

Counters live in memory-mapped files when `PROMETHEUS_MULTIPROC_DIR` is set, so that the children of a prefork worker
are seen together on the one port of their parent.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from orchestrator.ids import Scope
from orchestrator.telemetry.categories import category, severity

_enabled: list[bool] = [False]
_known: dict[str, Any] = {}

WHOSE = ["tenant", "namespace", "workflow"]
BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def enable() -> None:
    """Begin to count. Call before the first step, in the parent of a pool."""
    from prometheus_client import Counter, Gauge, Histogram, values

    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        # The client decides on import where counters live, and Celery's command line has imported it (by way of Flower).
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]

    if _known:
        return
    _known.update(
        steps=Counter("orchestrator_steps_total", "Attempts of steps by outcome", ["type", "outcome"]),
        step_seconds=Histogram("orchestrator_step_seconds", "Time inside a step", ["type"], buckets=BUCKETS_S),
        instances=Counter("orchestrator_instances_total", "Instances that ended, by workflow and state", [*WHOSE, "state"]),
        instance_seconds=Histogram("orchestrator_instance_seconds", "From start to end", WHOSE, buckets=BUCKETS_S),
        errors=Counter("orchestrator_errors_total", "Attempts that failed, by what went wrong", ["category", "severity"]),
        claims=Counter("orchestrator_claims_total", "Messages by what became of them", ["result"]),
        fenced=Counter("orchestrator_fenced_total", "Writers that were found to hold a branch no longer"),
        stumbles=Counter("orchestrator_internal_errors_total", "Walks that met an error nobody foresaw"),
        recoveries=Counter("orchestrator_recoveries_total", "Branches published again", ["reason"]),
        timer_lateness=Histogram("orchestrator_timer_lateness_seconds", "How late a timer fired", buckets=BUCKETS_S),
        bridged=Counter("orchestrator_bridge_entries_total", "Stream entries by what became of them", ["group", "result"]),
        bridge_errors=Counter("orchestrator_bridge_errors_total", "Attempts at events that failed, and events put aside", ["group"]),
        bridge_lost=Counter(
            "orchestrator_bridge_lost_total", "Entries that somebody removed from a stream before they were handled", ["stream"]
        ),
        bridge_failing=Gauge(
            "orchestrator_bridge_failing", "1 while a stream cannot be read", ["stream"], multiprocess_mode="livemostrecent"
        ),
        bridge_seconds=Histogram("orchestrator_bridge_batch_seconds", "From reading a batch to its commit", ["group"], buckets=BUCKETS_S),
        bridge_waiting=Gauge(
            "orchestrator_bridge_waiting", "Entries that the group has not read", ["group"], multiprocess_mode="livemostrecent"
        ),
        bridge_pending=Gauge(
            "orchestrator_bridge_pending", "Entries read and not acknowledged: the lag", ["group"], multiprocess_mode="livemostrecent"
        ),
        bridge_open=Gauge("orchestrator_bridge_open", "Entries whose effects are not over", ["group"], multiprocess_mode="livemostrecent"),
        # The names of an older system, for its dashboards.
        old_seconds=Histogram("workflow_event_processing_duration", "Seconds per event", buckets=BUCKETS_S),
        old_processed=Counter("workflow_events_processed", "Events processed"),
        old_errors=Counter("workflow_event_processing_errors", "Attempts at events that failed"),
        old_subscription=Counter("workflow_subscription_errors", "Reads of streams that failed"),
        old_dlq=Counter("workflow_event_dlq", "Events put aside in a dead-letter stream, whatever for"),
        late_events=Counter("orchestrator_late_events_total", "Events for instances that no longer waited for them"),
        untold=Counter("orchestrator_events_untold_total", "Events that could not be told, and were put aside in the outbox"),
        relayed=Counter("orchestrator_events_relayed_total", "Events sent to the stream"),
        chore_failures=Counter("orchestrator_chore_failures_total", "Chores of the keeper that failed", ["chore"]),
        chore_failing=Gauge(
            "orchestrator_chore_failing", "1 while a chore of the keeper fails", ["chore"], multiprocess_mode="livemostrecent"
        ),
        chore_seconds=Histogram("orchestrator_chore_seconds", "Time a chore of the keeper took", ["chore"], buckets=BUCKETS_S),
        unreadable=Counter("orchestrator_unreadable_messages_total", "What lay in a queue of the broker, was no message and was put aside"),
        slow=Counter("orchestrator_slow_statements_total", "Statements that took SLOW_QUERY or longer"),
    )
    _enabled[0] = True


@functools.lru_cache(maxsize=10_000)
def _of(name: str, *labels: str) -> Any:
    """A metric under its labels: finding it costs more than counting."""
    return _known[name].labels(*labels) if labels else _known[name]


def _count(name: str, amount: float = 1, *labels: str) -> None:
    if _enabled[0]:
        _of(name, *labels).inc(amount)


def step_ended(step: Any, verdict: Any, took_s: float) -> None:
    if _enabled[0]:
        type = getattr(step, "type", None) or f"undo:{step.step_type}"
        _of("steps", type, _OUTCOMES.get(verdict.__class__.__name__, "failed")).inc()
        _of("step_seconds", type).observe(took_s)
        failure = getattr(verdict, "failure", None)
        if failure is not None:
            kind = category(failure)
            gave_up = verdict.__class__.__name__ == "GaveUp"
            _of("errors", kind, severity(kind, gave_up=gave_up)).inc()


_OUTCOMES = {"Completed": "completed", "Later": "completed", "Again": "retried", "GaveUp": "failed"}


def is_enabled() -> bool:
    return _enabled[0]


def instance_ended(scope: Scope, state: str, took_s: float, monitoring: Mapping[str, Any]) -> None:
    """`monitoring` is what the workflow's configuration says of it: by itself, or not, and which."""
    if not _enabled[0] or monitoring.get("enabled") is False:
        return
    wanted = monitoring.get("metrics") or ("execution_time", "error_rate")
    if "error_rate" in wanted:
        _of("instances", scope.tenant, scope.namespace, scope.name, state).inc()
    if "execution_time" in wanted:
        _of("instance_seconds", scope.tenant, scope.namespace, scope.name).observe(took_s)


def claimed(*, void: bool) -> None:
    _count("claims", 1, "void" if void else "claimed")


def fenced() -> None:
    _count("fenced")


def stumbled() -> None:
    _count("stumbles")


def recovered(reason: str, number: int) -> None:
    if number:
        _count("recoveries", number, reason)


def timer_fired(lateness_s: float) -> None:
    if _enabled[0]:
        _known["timer_lateness"].observe(max(0.0, lateness_s))


def bridged(group: str, fresh: int, known: int, put_aside: int, took_s: float, entries: int) -> None:
    for result, number in (("kept", fresh), ("known", known), ("put aside", put_aside)):
        if number:
            _count("bridged", number, group, result)
    if _enabled[0]:
        _of("bridge_seconds", group).observe(took_s)
        _known["old_seconds"].observe(took_s / max(entries, 1))
        _known["old_processed"].inc(entries)


def bridge_put_aside() -> None:
    _count("old_dlq")


def bridge_error(group: str) -> None:
    _count("bridge_errors", 1, group)
    _count("old_errors")


def bridge_lost(stream: str, number: int) -> None:
    _count("bridge_lost", number, stream)


def bridge_failing(stream: str, *, failing: bool) -> None:
    if _enabled[0]:
        _of("bridge_failing", stream).set(int(failing))


def bridge_waits() -> None:
    _count("old_subscription")


def bridge_lag(group: str, waiting: int, pending: int, unfinished: int) -> None:
    if _enabled[0]:
        _of("bridge_waiting", group).set(waiting)
        _of("bridge_pending", group).set(pending)
        _of("bridge_open", group).set(unfinished)


def relayed(number: int) -> None:
    _count("relayed", number)


def came_late() -> None:
    _count("late_events")


def untold(number: int) -> None:
    _count("untold", number)


def slow_statement() -> None:
    _count("slow")


def unreadable() -> None:
    _count("unreadable")


def chore_failed(name: str, *, failing: bool) -> None:
    """A chore began to fail, failed again, or is well again."""
    if _enabled[0]:
        if failing:
            _of("chore_failures", name).inc()
        _of("chore_failing", name).set(int(failing))


def chore_took(name: str, took_s: float) -> None:
    if _enabled[0]:
        _of("chore_seconds", name).observe(took_s)
