"""How the office runs with a Celery worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from celery import bootsteps

from orchestrator.engine.catalog import tell
from orchestrator.engine.runtime import Runtime
from orchestrator.keeper import retention
from orchestrator.keeper.alerts import Alerts
from orchestrator.keeper.audit import Audit
from orchestrator.keeper.chore import MirrorLike, RelayLike
from orchestrator.keeper.events import Abandoned, Held, Settled, Windows
from orchestrator.keeper.files import Files
from orchestrator.keeper.limits import Lifetimes, Limits
from orchestrator.keeper.office import Lanes, Office
from orchestrator.keeper.outbox import Outbox, PutAside
from orchestrator.keeper.recovery import Admission, Deaths, Expired, Forgotten, Joins, Lost
from orchestrator.keeper.schedules import Fires, Listeners, Mirrored, Tended
from orchestrator.keeper.timers import Timers
from orchestrator.telemetry import scrape

logger = logging.getLogger("orchestrator.keeper")

KEEPER: Lanes = {
    "recovery": (Expired, Deaths, Lost, Joins, Admission, Forgotten),
    "outbox": (PutAside, Outbox),
    "events": (Held, Settled, Abandoned, Windows),
    "upkeep": (Lifetimes, Limits, Alerts, Files, Audit),
    "retention": (
        retention.Partitions,
        retention.Histories,
        retention.Events,
        retention.Fires,
        retention.Audit,
        retention.Resources,
    ),
}
TIMERS: Lanes = {
    "timers": (Timers,),
    "schedules": (Fires, Tended, Mirrored),
    "listeners": (Listeners,),
}


class QueuesStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells the operator at start which queues this worker serves, in which order."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        names = list(worker.app.amqp.queues.consume_from)
        logger.info("serves the queues %s", ", ".join(names))

    def stop(self, worker: Any) -> None:
        return None


class OfficeStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs the office with the worker."""

    requires = ("celery.worker.components:Pool",)
    runtime_of: ClassVar[Callable[[], Runtime]]
    relay_of: ClassVar[Callable[[Runtime], RelayLike]]
    mirror_of: ClassVar[Callable[[], MirrorLike]]

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.office: Office | None = None

    def start(self, worker: Any) -> None:
        runtime = type(self).runtime_of()
        tell(runtime.left_out)  # found before there was a log
        settings = runtime.settings
        pool = worker.pool

        def children() -> set[int]:
            inner = getattr(pool, "_pool", None)
            return {process.pid for process in getattr(inner, "_pool", ()) if process.is_alive()}

        posts: Mapping[str, Lanes] = {"keeper": KEEPER, **({"timers": TIMERS} if settings.timer_service_enabled else {})}
        if not settings.timer_service_enabled:
            logger.warning("TIMER_SERVICE_ENABLED is off: this worker fires no timers and no schedules; another one must")
        self.office = Office(
            runtime,
            posts,
            children,
            relay=type(self).relay_of(runtime),
            mirror=type(self).mirror_of(),
            concurrency=worker.concurrency or 0,
            queues=list(worker.app.amqp.queues.consume_from),
        )
        _tell_births(getattr(pool, "_pool", None), self.office.born)
        self.office.start()
        if settings.metrics_port:
            scrape.serve(settings.metrics_port, settings.metrics_host)
        if settings.health_port:
            scrape.health(settings.health_port, self.office.health, settings.metrics_host)

    def stop(self, worker: Any) -> None:
        if self.office is not None:
            self.office.stop()
            self.office.join(timeout=5)


def _tell_births(pool: Any, born: Callable[[int], None]) -> None:
    """Pools that fork say so to `on_process_up`, which may be somebody's already."""
    if not hasattr(pool, "on_process_up"):
        return
    before = pool.on_process_up

    def up(process: Any) -> None:
        if process.pid:
            born(process.pid)
        if before is not None:
            before(process)

    pool.on_process_up = up
