"""What every worker does beside walking: one thread in its parent process. No extra process to operate.

Each worker watches its own children and frees at once what a dead one held. One worker at a time is the *keeper*:
it fires due timers, takes back expired leases, publishes what was lost, relays the outbox. The keeper's office is a
short lease in Postgres, renewed while it works; when it falls silent another takes over within seconds. Two keepers at
once would only waste effort: everything they do is claimed row by row.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from celery import bootsteps

from orchestrator.engine import alerting, effects, interrupt, limits, scheduling
from orchestrator.engine.admission import settle
from orchestrator.engine.broker import depth
from orchestrator.engine.runtime import Runtime
from orchestrator.store import admission, events, leases, partitions, resources, schedules, security, timers, workers
from orchestrator.store.branches import Published
from orchestrator.store.connection import BROKEN, Connection
from orchestrator.telemetry import metrics, scrape

logger = logging.getLogger("orchestrator.maintenance")

TICK_S = 0.25
LOOK_AGAIN_S = (0.0, 0.5, 2.0)
MOST_BETWEEN_PROBES_S = 5.0
OFFICE_S = 6.0
BEATS_GRACE_S = 0.3
TEND_EVERY_S = 1.0
SEAL_EVERY_S = 30.0
SEALED_AT_ONCE = 10_000
LOOK_AT_FILES_S = 1.0
ALERT_EVERY_S = 5.0
SWEEP_EVERY_S = 5.0
REQUEUE_EVERY_S = 1.0
WEIGH_EVERY_S = 60.0
CLEAN_EVERY_S = 300.0
SCHEDULES_KEPT_S = 90 * 86400.0
BATCH = 500


class RelayLike(Protocol):
    def drain(self, c: Connection) -> int: ...


class MirrorLike(Protocol):
    is_beating: bool

    def look(self, c: Connection) -> None: ...

    def sync(self, c: Connection) -> int: ...


class Every:
    """Something to be done every so often."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.next = 0.0

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + self.seconds
        return True


class Maintenance(threading.Thread):
    """`children` gives the pids of the pool's processes as they are now."""

    def __init__(
        self,
        runtime: Runtime,
        relay: RelayLike | None,
        children: Callable[[], set[int]],
        *,
        concurrency: int = 0,
        queues: list[str] | None = None,
        mirror: MirrorLike | None = None,
    ) -> None:
        super().__init__(name="maintenance", daemon=True)
        self.runtime = runtime
        self.settings = runtime.settings
        self.relay = relay
        self.children = children
        self.concurrency = concurrency
        self.queues = queues or []
        self.mirror = mirror
        self.is_keeper = False
        self._moved_at = time.monotonic()
        self._stop_asked = threading.Event()
        self._known_children: set[int] = set()
        self._look_for: list[tuple[float, int]] = []
        self._next_timer: float | None = None
        self._listening: Connection | None = None
        # Shorter than a branch's lease: a host that is lost may have been the keeper, too.
        self.office_s = min(OFFICE_S, runtime.settings.lease_s * 0.5)
        self._renew, self._probe = Every(self.office_s / 3), Every(min(runtime.settings.timer_precision_s, MOST_BETWEEN_PROBES_S))
        self._sweep, self._overdue = Every(SWEEP_EVERY_S), Every(REQUEUE_EVERY_S)
        self._sign, self._clean = Every(runtime.settings.heartbeat_s), Every(CLEAN_EVERY_S)
        self._weigh, self._tend, self._seal = Every(WEIGH_EVERY_S), Every(TEND_EVERY_S), Every(SEAL_EVERY_S)
        self._look, self._alert = Every(LOOK_AT_FILES_S), Every(ALERT_EVERY_S)
        self._files: tuple[Any, ...] | None = None
        self._clean.next = time.monotonic() + CLEAN_EVERY_S

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        pause = 0.1
        if not self.settings.timer_service_enabled:
            logger.warning("TIMER_SERVICE_ENABLED is off: this worker fires no timers and recovers nothing; another one must")
        while not self._stop_asked.is_set():
            try:
                self._cycle()
                self._moved_at = time.monotonic()
                pause = 0.1
            except BROKEN as error:
                logger.warning("Postgres is away: %s", str(error).split("\n", 1)[0])
                self.runtime.database.drop()
                self._listening = None
                self.is_keeper = False
                # Spread, so that workers do not come back in step.
                self._stop_asked.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311 # a pause, no secret
                pause = min(pause * 2, 2.0)
            except Exception:
                logger.exception("maintenance failed and goes on")
                self._stop_asked.wait(1.0)
        self._leave()

    def stop(self) -> None:
        self._stop_asked.set()

    def health(self) -> dict[str, Any]:
        """Whether this thread moves, which it does only while Postgres answers."""
        silent_s = time.monotonic() - self._moved_at
        is_healthy = silent_s < max(5.0, 2 * self.settings.heartbeat_s)
        return {
            "status": "healthy" if is_healthy else "unhealthy",
            "database": {"type": self.settings.db_type, "silent_s": round(silent_s, 1)},
            "engine": self.settings.workflow_engine_type,
            "worker": self.runtime.worker_id,
            "keeper": self.is_keeper,
        }

    def _cycle(self) -> None:
        self._watch_children()
        c = self.runtime.database.connection()
        if self._sign.is_due():
            workers.sign(c, self.runtime.worker_id, self.settings.host_name, os.getpid(), self.concurrency, self.queues)
        if self._renew.is_due() and self.settings.timer_service_enabled:
            was, self.is_keeper = self.is_keeper, workers.lead(c, self.runtime.worker_id, self.office_s)
            if self.is_keeper and not was:
                logger.info("this worker keeps timers, recovery and the outbox now")
        if self.is_keeper:
            self._keep(c)
        self._listen(self._pause())

    def _pause(self) -> float:
        if self.is_keeper and self._next_timer is not None:
            return max(0.0, min(TICK_S, self._next_timer - time.monotonic()))
        return TICK_S

    def _listen(self, pause_s: float) -> None:
        """Sleep, unless somebody asks for a step to be interrupted."""
        c = self.runtime.database.connection()
        if self._listening is not c:
            workers.listen(c)
            self._listening = c
        for notice in c.notifies(timeout=pause_s, stop_after=1):
            self._interrupt(notice.payload)

    def _interrupt(self, payload: str) -> None:
        with contextlib.suppress(ValueError):
            for owner in json.loads(payload):
                host, worker, pid = str(owner).rsplit("/", 2)
                if worker == self.runtime.worker_id and host == self.settings.host_name and int(pid) in self.children() | {os.getpid()}:
                    os.kill(int(pid), interrupt.CANCEL_SIGNAL)

    def born(self, pid: int) -> None:
        """A pool process was started: one that dies before the next look is missed all the same."""
        self._known_children.add(pid)

    # ── children ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch_children(self) -> None:
        """A pool process that is gone held branches that nobody renews: they are freed now, not when the lease ends.

        Looked at again a little later: a claim that it sent before it died may be committed after it was missed.
        """
        known = frozenset(self._known_children)  # before who is alive is asked: none of these was born since
        now = time.monotonic()
        alive = self.children()
        for pid in known - alive:
            self._known_children.discard(pid)
            for later in LOOK_AGAIN_S:
                heapq.heappush(self._look_for, (now + later, pid))
        self._known_children |= alive
        while self._look_for and self._look_for[0][0] <= now:
            _, pid = heapq.heappop(self._look_for)
            owner = f"{self.settings.host_name}/{self.runtime.worker_id}/{pid}"
            self._publish("child died", leases.recover_owner(self.runtime.database.connection(), owner))

    # ── the keeper ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, c: Connection) -> None:
        due = self._next_timer is not None and self._next_timer <= time.monotonic()
        if due:
            self._fire(c)
        if not due and not self._probe.is_due():
            return
        grace_s = BEATS_GRACE_S if self.mirror is not None and self.mirror.is_beating else 0.0
        probe = timers.probe(c, self.settings.queue_grace_s, grace_s)
        self._next_timer = None if probe.next_timer is None else time.monotonic() + max(0.0, probe.next_timer - probe.now)
        if probe.has_outbox and self.relay is not None:
            self._relay(c)
        self._schedules(c, probe, grace_s)
        if probe.has_triggers:
            scheduling.hear(self.runtime)
        if probe.has_held:
            effects.work_off(self.runtime)
        if probe.has_working:
            events.settle_working(c)
        if probe.has_windows:
            effects.fire_windows(self.runtime)
        if probe.has_expired:
            self._publish("lease expired", leases.recover_expired(c, BATCH))
        if probe.has_overdue and self._overdue.is_due():
            self._requeue(c)
        if self._sweep.is_due():
            if probe.has_waiting:
                self._unblock(c)
            self._publish("event missed", events.wake_forgotten(c, BATCH))
            limits.enforce(self.runtime, with_disk=self._weigh.is_due())
        if self._alert.is_due():
            alerting.look(self.runtime)
        if self._look.is_due():
            self._look_at_files()
        if self._seal.is_due():
            while security.seal(c) == SEALED_AT_ONCE:
                pass
        if self._clean.is_due():
            self._clean_up()

    def _schedules(self, c: Connection, probe: timers.Probe, grace_s: float) -> None:
        """Beat has the first word, where there is one; what it missed is fired all the same."""
        if self.mirror is not None:
            self.mirror.look(c)
        if probe.has_schedules:
            scheduling.fire_due(self.runtime, grace_s=grace_s)
        if probe.has_unmirrored and self.mirror is not None:
            self.mirror.sync(c)
        if probe.has_fires and self._tend.is_due():
            scheduling.tend(self.runtime)

    def _look_at_files(self) -> None:
        """What is still being written is faulty, and read again at its next change."""
        from orchestrator.engine.runner import WorkflowRunner

        runner = WorkflowRunner(self.runtime)
        if not runner.configs.is_watching:
            self._files = None
            return
        self._files = runner.look_at_files(self._files)

    def _fire(self, c: Connection) -> None:
        while True:
            fired = timers.fire(c, BATCH)
            for timer in fired:
                metrics.timer_fired(timer.lateness_s)
                self.runtime.publisher.branches([timer.published])
            if len(fired) < BATCH:
                return

    def _relay(self, c: Connection) -> None:
        assert self.relay is not None
        while not self._stop_asked.is_set():
            if self.relay.drain(c) < BATCH:
                return

    def _requeue(self, c: Connection) -> None:
        """Branches published long ago that nobody claimed: as many as there are messages missing are sent again.

        A long queue is no loss: as long as the broker holds a message for each, nothing is sent.
        """
        for queue, overdue in leases.overdue_queues(c, self.settings.queue_grace_s):
            waiting = depth(self.runtime.publisher.app, queue)
            if waiting is None or waiting >= overdue:
                continue
            lost = leases.requeue_overdue(c, queue, self.settings.queue_grace_s, min(overdue - waiting, BATCH * 4))
            self._publish("message lost", lost)

    def _unblock(self, c: Connection) -> None:
        self._publish("join lost", leases.recover_joins(c, self.settings.queue_grace_s, BATCH))
        scopes = {*admission.orphaned_slots(c), *admission.stuck_scopes(c)}
        published = settle(c, admission.meet(c), sorted(scopes)) + admission.ready_instances(c)
        self._publish("admission lost", published)

    def _clean_up(self) -> None:
        from orchestrator.engine.runner import WorkflowRunner

        WorkflowRunner(self.runtime).cleanup()
        c = self.runtime.database.connection()
        while events.forget(c, self.settings.event_retention_s, 1000) == 1000:
            pass
        while schedules.forget(c, self.settings.retention_s or SCHEDULES_KEPT_S) == 10_000:
            pass
        while self.settings.audit_retention_s and security.let_go(c, self.settings.audit_retention_s):
            pass
        while resources.forget(c, self.settings.retention_s) == 10_000:
            pass
        for name in (*partitions.make_ahead(c), *partitions.drop_spent(c)):
            logger.info("partition %s was made or dropped", name)

    def _publish(self, reason: str, published: list[Published]) -> None:
        if published:
            metrics.recovered(reason, len(published))
            logger.info("published %d again: %s", len(published), reason)
            self.runtime.publisher.branches(published)

    def _leave(self) -> None:
        """A clean exit hands the office over at once."""
        with contextlib.suppress(*BROKEN):
            workers.leave(self.runtime.database.connection(), self.runtime.worker_id)
        self.runtime.database.drop()


class QueuesStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells the operator at start which queues this worker serves, in which order."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        names = list(worker.app.amqp.queues.consume_from)
        logger.info("serves the queues %s", ", ".join(names))

    def stop(self, worker: Any) -> None:
        return None


class MaintenanceStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs the maintenance thread with the worker."""

    requires = ("celery.worker.components:Pool",)
    runtime_of: ClassVar[Callable[[], Runtime]]
    relay_of: ClassVar[Callable[[Runtime], RelayLike]]
    mirror_of: ClassVar[Callable[[], MirrorLike]]

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.thread: Maintenance | None = None

    def start(self, worker: Any) -> None:
        runtime = type(self).runtime_of()
        pool = worker.pool

        def children() -> set[int]:
            inner = getattr(pool, "_pool", None)
            return {process.pid for process in getattr(inner, "_pool", ()) if process.is_alive()}

        self.thread = Maintenance(
            runtime,
            type(self).relay_of(runtime),
            children,
            concurrency=worker.concurrency or 0,
            queues=list(worker.app.amqp.queues.consume_from),
            mirror=type(self).mirror_of(),
        )
        _tell_births(getattr(pool, "_pool", None), self.thread.born)
        self.thread.start()
        if runtime.settings.metrics_port:
            scrape.serve(runtime.settings.metrics_port, runtime.settings.metrics_host)
        if runtime.settings.health_port:
            scrape.health(runtime.settings.health_port, self.thread.health, runtime.settings.metrics_host)

    def stop(self, worker: Any) -> None:
        if self.thread is not None:
            self.thread.stop()
            self.thread.join(timeout=5)


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
