"""How large a document may become while it is read: functions and extensions stand for tasks wherever they are used.

Counted as each task is made, so that a document of a few lines that means millions of tasks is refused after the first thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.definition.validate import DEEPEST_TREE, LARGEST_TREE
from orchestrator.errors import Fault


class TooLarge(Exception):
    """The one fault of a document that means more than can be kept."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.message)


class Growth:
    def __init__(self) -> None:
        self.tasks = 0
        self.depth = 0

    @contextmanager
    def inside(self, place: str) -> Iterator[None]:
        """One more task, and everything in it."""
        self.tasks += 1
        self.depth += 1
        if self.tasks > LARGEST_TREE:
            raise TooLarge(
                Fault("", f"With its functions and extensions in place, this workflow has more than {LARGEST_TREE:,} tasks (at {place}).")
            )
        if self.depth > DEEPEST_TREE:
            raise TooLarge(Fault(place, f"With functions in place, tasks are nested more than {DEEPEST_TREE} levels deep."))
        yield
        self.depth -= 1
