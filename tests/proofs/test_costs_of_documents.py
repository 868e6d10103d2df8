"""What long workflows cost: eight times as much takes about eight times as long, in processor time, and not sixty-four times."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.embedded import Embedded
from orchestrator.testing import ManualClock

HEAD = "document: {dsl: '1.0.3', namespace: proofs, name: long, version: '1.0.0'}\n"


def listen(events: int) -> None:
    engine = Embedded(clock=ManualClock())
    instance = engine.start(
        read_document(f"{HEAD}do: [{{l: {{listen: {{to: {{any: [{{with: {{type: a}}}}], until: '. | length >= {events}'}}}}}}}}]")
    )
    for number in range(events):
        engine.settle()
        engine.send({"specversion": "1.0", "id": str(number), "source": "/", "type": "a", "data": number})
    assert engine.finish(instance).state == "COMPLETED"


def loop(body: str, rounds: int) -> None:
    engine = Embedded(clock=ManualClock())
    instance = engine.start(read_document(f"{HEAD}do: [{{l: {{for: {{in: '[range({rounds})]'}}, do: [{body}]}}}}]"), {})
    assert engine.finish(instance).state == "COMPLETED"


@pytest.mark.proves(32)
@pytest.mark.parametrize(
    ("run", "size"),
    [
        (listen, 60),
        (lambda n: loop("{a: {set: '${ {n: ((.n // []) + [{i: $item, text: \"some text of some length\"}])} }'}}", n), 400),
        (lambda n: loop("{w: {wait: PT1M}}", n), 100),
    ],
    ids=["an event a time", "a list that grows", "a wait a round"],
)
def test_eight_times_as_much_costs_eight_times_as_much(run: Callable[[int], None], size: int) -> None:
    def took(count: int) -> float:
        began = time.process_time()
        run(count)
        return time.process_time() - began

    took(size)
    once = min(took(size) for _ in range(3))
    assert min(took(8 * size) for _ in range(2)) < 28 * once + 0.2
