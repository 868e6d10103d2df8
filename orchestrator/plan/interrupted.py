"""What interrupts planning: a value that must be decided first, or a task that fails before it is done."""

from __future__ import annotations

from orchestrator.history import Failure
from orchestrator.plan.needs import Decide


class Pending(Exception):
    """A value must be decided first."""

    def __init__(self, need: Decide) -> None:
        self.need = need


class Fault(Exception):
    """A task fails while it is being planned: a bad expression, a schema, a raise."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
