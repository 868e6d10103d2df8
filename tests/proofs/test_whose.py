"""A workflow is meant by its tenant, its namespace and its name: what differs in one of them never meets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.definition.expressions import Jq
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Definition, Do, Limits, Set, Step, Wait
from orchestrator.definition.validate import check
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.engine import lifecycle
from orchestrator.errors import Invalid, OrchestratorError
from orchestrator.steps.registry import REGISTRY
from tests.conftest import fresh_database
from tests.stack import Stack, until

BASE = ("acme", "one", "shared")
OTHERS = [("bcorp", "one", "shared"), ("acme", "two", "shared"), ("acme", "one", "other")]
# Names that are one text when they are put together without care.
ALIKE = [(("a", "b/c", "d"), ("a/b", "c", "d")), (("a", "b", "c/d"), ("a", "b/c", "d")), (("a", "b", "c~1d"), ("a", "b", "c/d"))]
PAIRS = [*((BASE, other) for other in OTHERS), *ALIKE]
NAMES = ["-".join(part for part in other) for _, other in PAIRS]


@pytest.fixture(scope="module")
def shared(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("whose"), workflows="tests.proofs.nothing")
    made.environment.update({"QUEUE_GRACE": "3"})
    made.worker(concurrency=4)
    yield made
    made.stop()


_numbers = itertools.count(1)


class Of:
    """One of three, under names that no other test has."""

    def __init__(self, stack: Stack, whose: tuple[str, str, str], number: int) -> None:
        self.stack = stack
        self.tenant, self.namespace, name = whose
        self.name = f"{name}-{number}"

    def register(self, **options: Any) -> None:
        tasks = options.pop("tasks", (Set(name="s"),))
        definition = Definition(name=self.name, namespace=self.namespace, version="1", do=Do(tasks=tasks), **options)
        self.stack.runner.register_workflow(definition, tenant=self.tenant)

    def start(self, input: Any = None, **options: Any) -> str:
        return self.stack.runner.start_workflow(f"{self.namespace}.{self.name}", input=input or {}, tenant=self.tenant, **options)

    def depend(self, on: str) -> str:
        """An instance of another workflow of the same namespace, which depends on this one."""
        dependant = dataclasses.replace(
            Definition(name=f"after-{next(_numbers)}", namespace=self.namespace, version="1", do=Do(tasks=(Set(name="s"),))),
            dependencies=(on,), dependency_timeout_s=60.0,
        )  # fmt: skip
        self.stack.runner.register_workflow(dependant, tenant=self.tenant)
        return self.stack.runner.start_workflow(f"{self.namespace}.{dependant.name}", input={}, tenant=self.tenant)


def both(stack: Stack, pair: tuple[tuple[str, str, str], tuple[str, str, str]]) -> tuple[Of, Of]:
    number = next(_numbers)
    return Of(stack, pair[0], number), Of(stack, pair[1], number)


@pytest.mark.proves(16)
@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_a_dependency_is_met_by_the_workflow_that_it_names_and_no_other(shared: Stack, pair: Any) -> None:
    one, other = both(shared, pair)
    one.register()
    other.register()
    waiting = [other.depend(other.name)]
    if "." not in other.name and "/" not in other.namespace:
        waiting.append(other.depend(f"{other.namespace}.{other.name}"))

    shared.ended(one.start())
    shared.ended(one.start())
    assert [shared.state(instance_id) for instance_id in waiting] == ["PENDING"] * len(waiting)

    shared.ended(other.start())
    for instance_id in waiting:
        assert shared.ended(instance_id, 10)["status"] == "COMPLETED"


@pytest.mark.proves(16)
@pytest.mark.parametrize("limits", [Limits(workflow=1), Limits(key=Jq(".customer"), per_key=1)], ids=["workflow", "key"])
def test_a_slot_is_of_one_workflow(shared: Stack, limits: Limits) -> None:
    long = (Wait(name="w", duration=60.0),)
    for pair in PAIRS:
        one, other = both(shared, pair)
        one.register(tasks=long, limits=limits)
        other.register(tasks=long, limits=limits)

        held, waits, free = one.start({"customer": 7}), one.start({"customer": 7}), other.start({"customer": 7})

        until(lambda i=free: shared.state(i) == "RUNNING", 5, f"{pair[1]} waits for {pair[0]}")  # type: ignore[misc]
        assert shared.state(waits) == "PENDING"
        for instance_id in (waits, held, free):
            shared.runner.cancel_workflow(instance_id)


@pytest.mark.proves(16)
@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_a_key_of_a_start_is_of_one_workflow(shared: Stack, pair: Any) -> None:
    one, other = both(shared, pair)
    one.register()
    other.register()

    first, second = one.start({"n": 1}, idempotency_key="k"), other.start({"n": 2}, idempotency_key="k")

    assert first != second
    assert one.start({"n": 1}, idempotency_key="k") == first
    assert other.start({"n": 2}, idempotency_key="k") == second


def test_a_breaker_that_one_tenants_calls_open_stops_no_other(shared: Stack) -> None:
    one, other = both(shared, (BASE, OTHERS[0]))
    step = Step(name="s", type="fail", breaker="target", retry=RetryPolicy(max_attempts=20, base_s=0.01, factor=1.0))
    one.register(tasks=(step,))
    other.register(tasks=(dataclasses.replace(step, type="noop"),))
    held = one.start()
    until(lambda: ("target@acme", "OPEN") in [(one["name"], one["state"]) for one in shared.runner.runtime.breakers.all()])

    assert shared.ended(other.start())["status"] == "COMPLETED"
    assert shared.runner.runtime.breakers.find("target@bcorp")["state"] == "CLOSED"
    shared.runner.cancel_workflow(held)


def test_no_name_of_a_breaker_looks_like_another_tenants() -> None:
    steps = (Step(name="s", type="noop", breaker="target@bcorp"),)
    with pytest.raises(Invalid, match="holds no '@'"):
        check(Definition(name="w", version="1", do=Do(tasks=steps)), REGISTRY)


def test_what_is_found_is_what_is_meant(shared: Stack) -> None:
    for pair in PAIRS:
        for whose in both(shared, pair):
            whose.register()
            found = lifecycle.find_definition(shared.runner.runtime, f"{whose.namespace}.{whose.name}", None, whose.tenant)
            assert (found.tenant, found.namespace, found.name) == (whose.tenant, whose.namespace, whose.name)


@pytest.mark.proves(16)
def test_nobody_waits_for_an_instance_of_another_tenant(shared: Stack) -> None:
    one, other = both(shared, (BASE, OTHERS[0]))
    one.register()
    other.register()
    foreign = one.start()
    shared.ended(foreign)

    with pytest.raises(Invalid, match="instance"):
        other.start(dependencies=[{"instance": foreign}])
    with pytest.raises(OrchestratorError):
        other.start(dependencies=[{"instance": "01a1f826-0000-7000-8000-000000000000"}])


def test_an_operators_configuration_is_of_one_workflow(shared: Stack) -> None:
    one, other = both(shared, (BASE, OTHERS[1]))
    one.register()
    other.register()
    shared.runner.configs.save({"id": one.name, "nameSpace": one.namespace, "enabled": False}, tenant=one.tenant)

    with pytest.raises(OrchestratorError, match="disabled"):
        one.start()
    assert shared.ended(other.start())["status"] == "COMPLETED"


@pytest.mark.proves(16)
def test_a_workflow_yet_to_come_is_waited_for_under_the_name_that_it_will_have(shared: Stack) -> None:
    one, other = both(shared, (BASE, OTHERS[1]))
    waiting = one.depend(f"{other.namespace}.{other.name}")
    assert f"{other.namespace}.{other.name}" in shared.runner.get_workflow_status(waiting)["message"]
    other.register()

    shared.ended(other.start())

    assert shared.ended(waiting, 10)["status"] == "COMPLETED"
