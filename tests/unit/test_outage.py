"""The watch over PostgreSQL, without one."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from orchestrator.store.outage import DatabaseAway, Outage
from tests.pace import patient
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


def test_who_waits_for_a_connection_is_let_go_when_the_server_is_silent() -> None:
    """And the connection, should it come after all, is kept by nobody."""
    silent, closed = threading.Event(), threading.Event()

    class Late(Line):
        def execute(self, _: str) -> None:
            silent.wait()

        def close(self) -> None:
            closed.set()

    def come_late() -> Any:
        silent.wait()
        return Late([])

    outage = Outage(lambda: Late([]))  # type: ignore[arg-type, return-value]
    with pytest.raises(DatabaseAway):
        outage.opened(come_late)
    assert not silent.is_set()
    silent.set()
    assert closed.wait(patient(10))


def test_what_keeps_a_connection_from_opening_is_raised_where_it_is_needed() -> None:
    def refuse() -> Any:
        raise psycopg.OperationalError("no such role")

    with pytest.raises(psycopg.OperationalError, match="no such role"):
        Outage(lambda: Line([])).opened(refuse)  # type: ignore[arg-type, return-value]
