"""The one door: what remains of a branch goes to Celery here, and nowhere else.

Starting, resuming, retrying, recovering and rolling back all come through. Called after commit: dying before it costs
the queue grace, nothing more, because recovery publishes from Postgres. A broker that is away is no error here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from celery import Celery, Signature
from kombu.exceptions import OperationalError

from orchestrator.plan import canvas
from orchestrator.plan.canvas import Address
from orchestrator.plan.remaining import Plan
from orchestrator.store.branches import Published
from orchestrator.telemetry import tracing

logger = logging.getLogger("orchestrator.publish")


class Publisher:
    def __init__(self, app: Celery, *, helpers: int) -> None:
        # Signatures are made without an app, to keep their making pure; they are sent by the process's default one.
        app.set_default()
        self.helpers = helpers

    def plan(self, plan: Plan, address: Address, helpers: int | None = None) -> bool:
        """Send what a plan renders to; `helpers` is how many can run at once, as far as is known."""
        return self._send(canvas.render(plan, address, min(helpers or self.helpers, self.helpers)))

    def branches(self, published: Iterable[Published], name: str = "") -> int:
        """Send one walk for each branch that was queued."""
        return sum(self._send(canvas.walk(Address(*branch, name=name))) for branch in published)

    def more_help(self, address: Address, number: int) -> None:
        """Further helpers for a fan-out whose ready branches became more than those who walk them."""
        for _ in range(min(number, self.helpers)):
            self._send(canvas.help(address, tells=False))

    def _send(self, signature: Signature) -> bool:
        try:
            signature.apply_async(retry=False, **tracing.options())
        except (OperationalError, OSError) as error:
            logger.warning("the broker is away (%s); the branch stays queued in Postgres and is published again", error)
            return False
        return True
