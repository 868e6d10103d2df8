"""The one door: what remains of a branch goes to Celery here, and nowhere else.

Starting, resuming, retrying, recovering and rolling back all come through. Called after commit: dying before it costs
the queue grace, nothing more, because recovery publishes from Postgres. A broker that is away is no error here.

Messages that belong together leave together: one producer, one batch (a pipeline, where the broker is Redis). A single
walk, which nearly all messages are, is written with the app's own message maker rather than through a signature's
`apply_async`: the same message for a sixth of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from celery import Celery, Signature
from celery.utils import uuid
from kombu import Producer
from kombu.exceptions import BatchPublishError, OperationalError

from orchestrator.plan import canvas
from orchestrator.plan.canvas import Address
from orchestrator.plan.remaining import Plan
from orchestrator.store.branches import Published
from orchestrator.telemetry import tracing

logger = logging.getLogger("orchestrator.publish")


class Publisher:
    def __init__(self, app: Celery, *, helpers: int, is_there: Callable[[], bool] | None = None) -> None:
        """`is_there` is asked once, before the first message: what was never reached is not tried again and again."""
        self.app = app
        self.helpers = helpers
        self._is_there = is_there

    def plan(self, plan: Plan, address: Address, helpers: int | None = None) -> bool:
        """Send what a plan renders to; `helpers` is how many can run at once, as far as is known."""
        return self._send([canvas.render(plan, address, min(helpers or self.helpers, self.helpers), self.app)])

    def all(self, plans: Iterable[tuple[Plan, Address]], branches: Iterable[Published] = ()) -> bool:
        """Send many plans, and a walk for each branch that was queued, at once."""
        signatures = [canvas.render(plan, address, self.helpers, self.app) for plan, address in plans]
        return self._send([*signatures, *(canvas.walk(Address(*branch), app=self.app) for branch in branches)])

    def branches(self, published: Iterable[Published], name: str = "") -> bool:
        """Send one walk for each branch that was queued."""
        return self._send([canvas.walk(Address(*branch, name=name), app=self.app) for branch in published])

    def more_help(self, address: Address, number: int) -> None:
        """Further helpers for a fan-out whose ready branches became more than those who walk them."""
        self._send([canvas.help(address, tells=False, app=self.app) for _ in range(min(number, self.helpers))])

    def _send(self, signatures: Sequence[Signature]) -> bool:
        if not signatures:
            return True
        if self._is_there is not None:
            if not self._is_there():
                logger.warning("the broker is away; what was queued in Postgres is published again")
                return False
            self._is_there = None
        declared: set[str] = set()
        try:
            with self.app.producer_or_acquire() as producer, producer.batch():
                for signature in signatures:
                    if type(signature) is Signature and signature.options["ignore_result"]:
                        self._send_plain(signature, producer, declared)
                    else:
                        signature.apply_async(producer=producer, retry=False, **tracing.options())
        except (OperationalError, BatchPublishError, OSError) as error:
            logger.warning("the broker is away (%s); what was queued in Postgres is published again", error)
            return False
        return True

    def _send_plain(self, signature: Signature, producer: Producer, declared: set[str]) -> None:
        """One task that nobody waits for, as Celery's own `send_task` would write it."""
        task_id, parent, queue = uuid(), self.app.current_worker_task, signature.options["queue"]
        message = self.app.amqp.create_task_message(
            task_id,
            signature.task,
            signature.args,
            {},
            root_id=(parent.request.root_id or parent.request.id) if parent else task_id,
            parent_id=parent.request.id if parent else None,
            shadow=signature.options["shadow"],
            argsrepr=repr(signature.args),
            kwargsrepr="{}",
            ignore_result=True,
        )
        # Each queue is declared once per batch, with its first message.
        known = {"declare": ()} if queue in declared else {}
        declared.add(queue)
        self.app.amqp.send_task_message(producer, signature.task, message, queue=queue, retry=False, **known, **tracing.options())
