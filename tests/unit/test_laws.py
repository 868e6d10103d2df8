"""The laws of planning, over generated definitions and histories."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.definition.codec import from_json, to_json
from orchestrator.definition.tree import Definition, Do, Fork, Graph, find, walk
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import BrokenHistory
from orchestrator.history import Fact, Kind, effective
from orchestrator.ids import new_instance_id
from orchestrator.plan import canvas
from orchestrator.plan.backward import backward
from orchestrator.plan.canvas import Address
from orchestrator.plan.forward import Forward
from orchestrator.plan.needs import Perform
from orchestrator.plan.remaining import Parallel, Segment, Sequence, of_task
from orchestrator.testing import ManualClock
from tests.unit.trees import definitions, registry, run, run_with_cuts

LAWS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def folds(instance: Instance) -> list[tuple[Forward, list[Fact]]]:
    """Each forward branch as it was at its beginning, with its facts."""
    engine = Embedded(clock=ManualClock(), registry=registry())
    found = []
    for branch in instance.branches():
        if branch.position.startswith("/undo"):
            continue
        facts, branch.facts = branch.facts, []
        forward = engine.forward_of(instance, branch)
        branch.facts = facts
        assert forward is not None
        found.append((forward, facts))
    return found


def settled(instance: Instance) -> Counter[tuple[str, str]]:
    kinds = (Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.UNDONE, Kind.UNDO_FAILED)
    return Counter(
        (fact.kind, fact.data.get("origin", fact.position) if fact.data else fact.position)
        for fact in instance.history
        if fact.kind in kinds
    )


@LAWS
@given(definitions())
def test_planning_is_total_every_definition_comes_to_an_end(definition: Definition) -> None:
    assert run(definition).state in ("COMPLETED", "FAILED")


@LAWS
@given(definitions())
def test_planning_is_deterministic_the_same_facts_give_the_same_need(definition: Definition) -> None:
    instance = run(definition)
    for one, facts in folds(instance):
        other = Forward(
            one.task,
            one.frames[0].position,
            one.frames[0].raw,
            variables=one.frames[0].vars,
            context=one.context,
            facts_of_instance=one.instance,
            seed=one.seed,
        )
        for fact in facts:
            if fact.kind == Kind.TASK_SKIPPED:
                break
            first, second = one.need, other.need
            assert type(first) is type(second)
            if isinstance(first, Perform) and isinstance(second, Perform):
                assert first == second
            one.apply(fact)
            other.apply(fact)


@LAWS
@given(definitions())
def test_no_plan_holds_a_finished_step(definition: Definition) -> None:
    for forward, facts in folds(run(definition)):
        done: set[str] = set()
        for fact in facts:
            if fact.kind == Kind.TASK_SKIPPED:
                break
            if isinstance(forward.need, Perform):
                assert forward.need.position not in done
            forward.apply(fact)
            if fact.kind in (Kind.STEP_COMPLETED, Kind.STEP_FAILED):
                done.add(fact.position)


@LAWS
@given(definitions(), st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 1.0]))
def test_cut_anywhere_plan_again_and_the_same_steps_are_done(definition: Definition, seed: int, share: float) -> None:
    id = new_instance_id()
    whole = run(definition, id=id)

    cut, cuts = run_with_cuts(definition, id=id, luck=random.Random(seed), share=share)

    assert cut.state == whole.state
    if not any(fact.kind == Kind.STEP_FAILED or (fact.kind == Kind.JOINED and "error" in fact.data) for fact in whole.history):
        assert settled(cut) == settled(whole)
        assert cut.output == whole.output
    # A failure stops the branches beside it wherever they are; what was done then is a matter of turns, what is undone is not.
    elif definition.saga and cut.state == "FAILED":
        done = [fact.position for fact in cut.history if fact.kind == Kind.STEP_COMPLETED]
        assert sorted(done) == sorted(fact.data["origin"] for fact in cut.history if fact.kind == Kind.UNDONE)
    assert cuts > 0 or share < 1 or not cut.history


@LAWS
@given(definitions())
def test_a_snapshot_at_any_fact_goes_on_as_the_history_does(definition: Definition) -> None:
    instance = run(definition)
    for forward, facts in folds(instance):
        for fact in facts:
            if fact.kind == Kind.TASK_SKIPPED:
                break
            frozen = json.loads(json.dumps(forward.snapshot()))
            again = Forward(forward.task, "", None, facts_of_instance=forward.instance, seed=forward.seed).restore(frozen, definition.do)
            assert type(again.need) is type(forward.need)
            if isinstance(forward.need, Perform):
                assert again.need == forward.need
            forward.apply(fact)


@LAWS
@given(definitions())
def test_undoing_visits_exactly_the_completed_compensable_steps_dependants_first(definition: Definition) -> None:
    instance = run(Definition(name="generated", version="1", do=definition.do, saga=True))
    if instance.state != "FAILED":
        return
    completed = [fact.position for fact in instance.history if fact.kind == Kind.STEP_COMPLETED]
    undone = [fact.data["origin"] for fact in instance.history if fact.kind == Kind.UNDONE]

    assert sorted(undone) == sorted(completed)
    order = {position: n for n, position in enumerate(undone)}
    for earlier, later in _dependences(definition.do, completed):
        assert order[later] < order[earlier], f"{earlier} was undone before {later}, which depended on it"


def _dependences(root: object, completed: list[str]) -> list[tuple[str, str]]:
    """Pairs of completed steps of which the later could only begin when the earlier was done: same sequence, or an edge."""
    pairs = []
    when = {position: n for n, position in enumerate(completed)}
    for place, task in walk(root):  # type: ignore[arg-type]
        if isinstance(task, Do):
            prefixes = [f"{place}{task.key}/{i}/{t.name}" for i, t in enumerate(task.tasks)]
            for a in prefixes:
                for b in prefixes:
                    if a != b:
                        pairs += [(p, q) for p in completed for q in completed if _in(p, a) and _in(q, b) and when[p] < when[q]]
        elif isinstance(task, Graph):
            for node in task.nodes:
                for name in node.after:
                    a, b = f"{place}/graph/{name}", f"{place}/graph/{node.task.name}"
                    pairs += [(p, q) for p in completed for q in completed if _in(p, a) and _in(q, b)]
    return pairs


def _in(position: str, prefix: str) -> bool:
    return position == prefix or position.startswith(prefix + "/")


@LAWS
@given(definitions())
def test_the_tree_survives_its_journey_as_json(definition: Definition) -> None:
    there = json.loads(json.dumps(to_json(definition)))

    back = from_json(there)

    assert to_json(back) == there
    assert settled(run(back, id="0" * 8)) == settled(run(definition, id="0" * 8))


@LAWS
@given(definitions())
def test_every_position_of_a_history_is_found_in_its_definition(definition: Definition) -> None:
    for fact in run(definition).history:
        if not fact.position.startswith("/undo"):
            find(definition.do, fact.position)


@LAWS
@given(definitions())
def test_the_canvas_sends_no_step_before_its_turn_and_no_data(definition: Definition) -> None:
    address = Address("01a1f826-1862-7cc8-8685-0763d48d3510", "", 3, "normal", "generated")

    signature = canvas.render(of_task(definition.do), address)

    links = signature.tasks if hasattr(signature, "tasks") else [signature]
    assert all(tuple(link.args) == (address.instance_id, "", 3) and not link.kwargs for link in links)
    assert len(json.dumps(links[0])) < 600


@given(st.integers(1, 5000), st.integers(1, 300))
def test_a_fan_out_never_has_more_helpers_than_branches_or_than_allowed(width: int, helpers: int) -> None:
    signature = canvas.render(Parallel(width, "fork"), Address("i", "", 1, "normal"), helpers)

    header = getattr(signature, "tasks", None) or [signature]
    assert 1 <= len(header) <= min(width, helpers)


@given(st.lists(st.sampled_from(["gpu", None, "mail"]), min_size=1, max_size=8))
def test_a_sequence_over_queues_is_a_chain_in_the_order_of_the_plan(queues: list[str | None]) -> None:
    plan = Sequence(tuple(Segment(queue) for queue in queues))

    signature = canvas.render(plan, Address("i", "", 1, "normal"))

    links = signature.tasks if len(queues) > 1 else [signature]
    assert [link.options["queue"] for link in links] == [queue or "normal" for queue in queues]


def test_a_history_of_another_definition_is_refused() -> None:
    instance = run(Definition(name="d", version="1", do=Do(tasks=(find_step("a1"), find_step("b1")))))
    other = Forward(Do(tasks=(find_step("c1"),)))

    with pytest.raises(BrokenHistory):
        other.apply_all(effective(instance.root.facts))


def find_step(name: str) -> object:
    from orchestrator.definition.tree import Step

    return Step(name=name, type="effect")


def test_backward_of_nothing_is_nothing() -> None:
    assert backward(Fork(branches=()), {}, lambda type: True) is None
