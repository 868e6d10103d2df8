"""What was lost is published again: expired leases, lost messages, lost joins, missed events, missed admissions."""

from __future__ import annotations

from orchestrator.engine import deaths
from orchestrator.engine.admission import settle
from orchestrator.engine.broker import depth
from orchestrator.keeper.chore import BATCH, Chore, Desk, Every
from orchestrator.store import admission, events, leases, workers
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe
from orchestrator.store.workers import Signed

SWEEP_EVERY_S = 5.0


class Expired(Chore):
    """Branches whose holder gave no sign of life for a lease."""

    name = "expired-leases"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_expired

    def do(self, c: Connection) -> None:
        self.desk.publish("lease expired", leases.recover_expired(c, BATCH))


class Deaths(Chore):
    """Workers that died whole.

    The machine is asked every second whether their processes are there, which costs nothing; the database only every few seconds
    which workers there are.
    """

    name = "dead-workers"
    every_s = 1.0

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._signed: list[Signed] = []
        self._asked = Every(SWEEP_EVERY_S)

    def do(self, c: Connection) -> None:
        if self._asked.is_due() or any(deaths.is_dead(worker) for worker in self._signed):
            self._signed = workers.signed(c)
            self.desk.publish("worker died", deaths.notice(self.runtime, self._signed))


class Lost(Chore):
    """Branches published long ago that nobody claimed: as many as there are messages missing are sent again.

    A long queue is no loss: as long as the broker holds a message for each, nothing is sent.
    """

    name = "lost-messages"
    every_s = 1.0

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_overdue

    def do(self, c: Connection) -> None:
        grace_s = self.settings.queue_grace_s
        for queue, overdue in leases.overdue_queues(c, grace_s):
            waiting = depth(self.runtime.publisher.app, queue)
            if waiting is not None and waiting < overdue:
                self.desk.publish("message lost", leases.requeue_overdue(c, queue, grace_s, min(overdue - waiting, BATCH * 4)))


class Joins(Chore):
    name = "lost-joins"
    every_s = SWEEP_EVERY_S

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_waiting

    def do(self, c: Connection) -> None:
        self.desk.publish("join lost", leases.recover_joins(c, self.settings.queue_grace_s, BATCH))


class Admission(Chore):
    """Slots and dependencies whose release was lost with the process that owed it."""

    name = "admission"
    every_s = SWEEP_EVERY_S

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_waiting

    def do(self, c: Connection) -> None:
        scopes = {*admission.orphaned_slots(c), *admission.stuck_scopes(c)}
        self.desk.publish("admission lost", settle(c, admission.meet(c), sorted(scopes)) + admission.ready_instances(c))


class Forgotten(Chore):
    """Listeners whose event came while nobody woke them."""

    name = "missed-events"
    every_s = SWEEP_EVERY_S

    def do(self, c: Connection) -> None:
        self.desk.publish("event missed", events.wake_forgotten(c, BATCH))
