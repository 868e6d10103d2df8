"""The watch over PostgreSQL, without one."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from orchestrator.store.outage import DatabaseAway, Outage
from tests.stack import until


class Line:
    """As much of a connection as the watch needs; its answers are values, or raised."""

    closed = False

    def __init__(self, answers: list[BaseException | None]) -> None:
        self.answers = answers
        self.asked = 0

    def execute(self, _: str) -> None:
        self.asked += 1
        if self.answers and (error := self.answers.pop(0)) is not None:
            raise error

    def fileno(self) -> int:
        raise psycopg.OperationalError("the connection is closed")

    def close(self) -> None:
        return None


@pytest.mark.parametrize(
    "error", [ValueError("odd"), MemoryError(), OSError(24, "Too many open files"), psycopg.OperationalError("gone")], ids=repr
)
@pytest.mark.parametrize("place", ["connecting", "asking"])
def test_whatever_the_watch_meets_it_goes_on(error: Exception, place: str) -> None:
    line = Line([error] if place == "asking" else [])
    at_first: list[Exception] = [error] if place == "connecting" else []

    def connect() -> Any:
        if at_first:
            raise at_first.pop()
        return line

    outage = Outage(connect)

    def answers() -> bool:
        try:
            outage.check()
        except DatabaseAway:
            return False
        return line.asked >= 2

    until(answers, 10)
