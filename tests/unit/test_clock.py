"""When a keeper calls the database's clock set, and when an answer was only slow."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine import clock as watching
from orchestrator.engine.clock import Watch

# What the database said, when it was asked, when its answer was there; then the same again. And what is said of it.
CASES = [
    ((100, 0, 0.1), (101, 1, 1.1), None),
    ((100, 0, 0.1), (101, 1, 31), None),  # the second answer came half a minute late
    ((100, 0, 30), (131, 31, 31.1), None),  # the first did
    ((100, 0, 30), (101, 31, 31.1), None),  # it was asked late, and answered at once
    ((100, 0, 0.1), (161, 1, 1.1), ("set_forth", 59.9)),
    ((100, 0, 0.1), (41, 1, 1.1), ("set_back", 59.9)),
    ((100, 0, 0.1), (99.5, 1, 1.1), None),  # clocks that nobody sets differ, too
]


@pytest.mark.parametrize(("first", "second", "said"), CASES)
def test_only_what_no_slow_answer_explains_is_a_clock_that_was_set(
    first: tuple[float, ...], second: tuple[float, ...], said: tuple[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    for name in ("set_back", "set_forth"):
        monkeypatch.setattr(watching.clock, name, lambda c, by_s, lease_s, name=name: told.append((name, round(by_s, 1))))
    watch, connection = Watch(15.0), Any
    for now, asked, answered in (first, second):
        monkeypatch.setattr(watching.time, "monotonic", lambda answered=answered: answered)
        watch.look(connection, now, asked)  # type: ignore[arg-type]
    assert told == ([said] if said else [])
