"""A crowd of instances of every shape, and what must be true of each when all is over, whatever happened meanwhile."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from orchestrator.engine.rebuild import forward_of
from orchestrator.history import effective
from orchestrator.plan.needs import Failed, Finished
from orchestrator.store import history
from tests.pace import patient
from tests.stack import Stack, Worker

LONG = os.environ.get("CHAOS") == "long"
SHAPES = ("sequence", "fork", "diamond", "naps", "shaky", "saga", "saga-fork", "wide")
INPUTS: dict[str, Any] = {"wide": {"items": [1, 2, 3, 4, 5, 6]}}
EXPECTED = {"saga": "FAILED", "saga-fork": "FAILED", "poison": "FAILED"}
UNDONE = {
    "saga": {"/do/0/hotel", "/do/1/flight"},
    "saga-fork": {"/do/0/hotel", "/do/1/parallel/fork/0/branch1/do/0/car", "/do/1/parallel/fork/1/branch2/do/0/flight"},
}
QUICK = {"LEASE": "3", "HEARTBEAT": "0.7", "QUEUE_GRACE": "2", "STEP_PAUSE_S": "0.03"}


def number(short: int, long: int = 1000) -> int:
    return long if LONG else short


class Crowd:
    """Starts the instances, waits for their ends, and looks whether anything was lost or done twice."""

    def __init__(self, stack: Stack, size: int, shapes: tuple[str, ...] = SHAPES) -> None:
        self.stack = stack
        self.size = size
        self.shapes = shapes
        self.started: dict[str, str] = {}
        self.began = time.monotonic()

    def start(self) -> None:
        for i in range(self.size):
            shape = self.shapes[i % len(self.shapes)]
            instance_id = self.stack.runner.start_workflow(shape, input=INPUTS.get(shape, {}), source="chaos")
            self.started[instance_id] = shape

    def open(self) -> int:
        def ask(c: psycopg.Connection[Any]) -> int:
            row = c.execute("select count(*) from instances where state not in ('COMPLETED', 'FAILED', 'CANCELLED')").fetchone()
            assert row is not None
            return int(row[0])

        return self.stack.runner.database.patiently(ask)

    def wait(self, timeout_s: float) -> float:
        deadline = time.monotonic() + patient(timeout_s)
        while self.open():
            if time.monotonic() > deadline:
                stuck = self.stack.sql(
                    "select i.workflow, i.state, b.position, b.state, b.generation, b.crashes, b.owner from instances i join branches b"
                    " on b.instance_id = i.id where i.state not in ('COMPLETED', 'FAILED', 'CANCELLED') and b.state <> 'closed' limit 20"
                )
                raise AssertionError(f"{self.open()} instances did not end: {stuck}\n{self.stack.logs()}")
            time.sleep(0.05)  # between two looks
        return time.monotonic() - self.began

    def check(self) -> dict[str, Any]:
        """Nothing lost, nothing committed twice, every history whole. Gives what is worth reporting."""
        states = dict(self.stack.sql("select id::text, state from instances"))
        wrong = {i: (shape, states.get(i)) for i, shape in self.started.items() if states.get(i) != EXPECTED.get(shape, "COMPLETED")}
        assert not wrong, f"{len(wrong)} ended otherwise: {list(wrong.items())[:3]} {self._errors(list(wrong)[:3])}"
        self._no_position_twice()
        self._nothing_left_open()
        for instance_id, shape in self.started.items():
            self._history_is_whole(instance_id, shape)
        effects = Counter(
            row[0]
            for row in self.stack.sql(
                "select count(*) from ledger where what not like 'attempt%%' and what not like 'about%%' group by instance, position, what"
            )
        )
        return {
            "instances": len(self.started),
            "effects": sum(effects.values()),
            "repeated effects": sum(n for k, n in effects.items() if k > 1),
        }

    def _errors(self, ids: list[str]) -> Any:
        return self.stack.sql("select workflow, error from instances where id = any (%s::uuid[])", ids)

    def _no_position_twice(self) -> None:
        twice = self.stack.sql(
            "select b.instance_id, k.position, count(*) from checkpoints k join branches b on b.id = k.branch_id"
            " where k.kind in ('step.completed', 'step.compensated', 'branches.joined', 'wait.completed') group by 1, 2 having count(*) > 1"
        )
        assert not twice, f"committed twice: {twice[:5]}"

    def _nothing_left_open(self) -> None:
        left = self.stack.sql(
            "select i.workflow, b.position, b.state from branches b join instances i on i.id = b.instance_id where b.state <> 'closed' limit 5"
        )
        assert not left, f"branches left open: {left}"
        assert self.stack.sql("select count(*) from timers") == [(0,)]

    def _history_is_whole(self, instance_id: str, shape: str) -> None:
        """Folding every branch's facts from the start comes to its end, and a saga undid exactly what it had done."""
        runner = self.stack.runner
        told = history.of_instance(runner.database.connection(), instance_id)
        definition_id = self.stack.sql("select definition_id from instances where id = %s", instance_id)[0][0]
        definition = runner.runtime.definition(definition_id)
        for branch in told.branches:
            if branch.position.startswith("/undo"):
                continue
            facts = [row.fact for row in told.of_branch(branch.id)]
            forward = forward_of(definition, definition.do, branch, *told.flows_into(branch))
            forward.apply_all(effective(facts))
            assert isinstance(forward.need, Finished | Failed), (shape, branch.position, forward.need)
        if shape in UNDONE:
            undone = [row.fact.data["origin"] for row in told.facts if row.fact.kind == "step.compensated"]
            assert sorted(undone) == sorted(UNDONE[shape])


@contextmanager
def trouble(act: Callable[[], Any], every_s: tuple[float, float], times: list[float] | None = None) -> Iterator[list[str]]:
    """Do something bad again and again, until the block ends."""
    stop = threading.Event()
    failed: list[str] = []

    def loop() -> None:
        luck = random.Random(7)
        while not stop.wait(luck.uniform(*every_s)):
            try:
                act()
                if times is not None:
                    times.append(time.monotonic())
            except Exception as error:
                failed.append(repr(error))

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join(60)


def kill_a_child(workers: list[Worker]) -> None:
    import signal

    worker = random.choice([w for w in workers if w.process.poll() is None])
    children = worker.children()
    if children:
        os.kill(random.choice(children), signal.SIGKILL)


def report(name: str, **figures: Any) -> None:
    shown = "  ".join(
        f"{key.replace('_', ' ')}: {value:.2f}" if isinstance(value, float) else f"{key.replace('_', ' ')}: {value}"
        for key, value in figures.items()
    )
    print(f"\nchaos: {name:<34} {shown}")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


__all__ = ["LONG", "QUICK", "SHAPES", "Crowd", "kill_a_child", "number", "percentile", "report", "statistics", "trouble"]
