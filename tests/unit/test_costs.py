"""What a workflow costs grows as it does: counted in evaluations, facts folded and bytes, when it becomes twice as long."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.definition import native, programs
from orchestrator.definition.documents import read_document
from orchestrator.embedded import Embedded
from orchestrator.history import Kind
from orchestrator.plan.forward import Forward
from orchestrator.store.connection import dumps
from orchestrator.testing import ManualClock

HEAD = "document: {dsl: '1.0.3', namespace: tests, name: costs, version: '1.0.0'}\n"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often jq was asked, and with how many bytes; how often an expression was evaluated here; how many facts were folded."""
    counts: Counter[str] = Counter()

    def by_jq(source: str, names: tuple[str, ...], values: list[Any], made: Callable[..., Any] = programs.outputs) -> Any:
        counts["jq"] += 1
        counts["bytes"] += len(dumps(values))
        return made(source, names, values)

    def here(evaluator: Any, data: Any, scope: Any, made: Callable[..., Any] = native.value) -> Any:
        counts["evaluated"] += 1
        return made(evaluator, data, scope)

    def folded(self: Forward, fact: Any, made: Callable[..., Any] = Forward.apply) -> None:
        counts["facts"] += 1
        made(self, fact)

    monkeypatch.setattr(programs, "outputs", by_jq)
    monkeypatch.setattr(native, "value", here)
    monkeypatch.setattr(Forward, "apply", folded)
    return counts


def listen(until: str, events: int) -> Embedded:
    engine = Embedded(clock=ManualClock())
    body = f"do: [{{l: {{listen: {{to: {{any: [{{with: {{type: a}}}}], until: '{until}'}}}}}}}}]"
    instance = engine.start(read_document(HEAD + body), None)
    for number in range(events):
        engine.settle()
        engine.send({"specversion": "1.0", "id": str(number), "source": "/", "type": "a", "data": number})
    assert engine.finish(instance).state == "COMPLETED"
    return engine


def loop(body: str, rounds: int) -> Embedded:
    engine = Embedded(clock=ManualClock())
    instance = engine.start(read_document(f"{HEAD}do: [{{l: {{for: {{in: '[range({rounds})]'}}, do: [{body}]}}}}]"), {})
    assert engine.finish(instance).state == "COMPLETED"
    return engine


APPEND = "{a: {set: '${ {n: ((.n // []) + [$item])} }'}}"


@pytest.mark.parametrize(
    "run",
    [
        lambda n: listen(f". | length >= {n}", n),
        lambda n: listen(f".[-1] == {n - 1}", n),
        lambda n: loop(APPEND, n),
        lambda n: loop("{w: {wait: PT1M}}, {a: {set: {n: '${ $index }'}}}", n),
        lambda n: loop(f"{{w: {{wait: PT1M}}}}, {APPEND}", n),
    ],
    ids=["listen until there are so many", "listen until the last one", "append", "wait", "wait and append"],
)
def test_twice_as_much_costs_twice_as_much(run: Callable[[int], Embedded], counted: Counter[str]) -> None:
    run(100)
    before = Counter(counted)
    run(200)
    after = counted - before
    assert sum(before.values()) > 100
    for what, count in before.items():
        assert after[what] <= 2.1 * count + 10, (what, count, after[what])


def test_an_event_is_judged_once_however_many_come(counted: Counter[str]) -> None:
    """By an expression that jq must evaluate: once an event, though each time over all of them."""
    listen("[.[] | tojson | tonumber] | length >= 50", 50)
    assert counted["jq"] <= 2 * 50


def test_what_grows_in_every_round_is_not_recorded_in_every_round() -> None:
    def recorded(rounds: int) -> int:
        [instance] = loop(APPEND, rounds).instances.values()
        return sum(len(dumps(fact.data)) for fact in instance.history if fact.kind == Kind.DECIDED)

    assert recorded(3000) < 1.4 * recorded(2000)


def test_what_was_not_recorded_is_computed_again_from_the_history() -> None:
    engine = loop(APPEND, 2000)
    [instance] = engine.instances.values()
    assert {"slot": "set", "again": True} in [fact.data for fact in instance.history]

    again = engine.forward_of(instance, instance.root)

    assert again is not None
    assert again.need.output == instance.output == {"n": list(range(2000))}  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["1.0", "0.8", "graph"])
def test_reading_and_checking_a_document_does_the_same_for_each_of_its_tasks(form: str) -> None:
    # An interpreter of its own: one that profiles beside the threads of other tests may never come out of it (CPython 3.11).
    counting = subprocess.run([sys.executable, "-m", "tests.unit.calls", form, "200", "400"], check=True, capture_output=True, timeout=60)
    once, twice = json.loads(counting.stdout)
    assert twice - once <= 1.05 * once
    assert (twice - once) / 200 < 1500
