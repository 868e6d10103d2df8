"""Verbs of workflows written in Python: what they mean, and how they are refused when they are written wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import RetryPolicy, Terminal, Workflow, step
from orchestrator.definition.builder import Flow
from orchestrator.errors import Invalid
from orchestrator.testing import Lab


@step(type="verbs.small")
def small() -> dict[str, str]:
    return {"size": "small"}


@step(type="verbs.large")
def large() -> dict[str, str]:
    return {"size": "large"}


@step(type="verbs.told")
def told(error: dict[str, Any]) -> dict[str, str]:
    return {"because": error["code"]}


class TestSignals:
    def test_a_signal_wakes_the_workflow_and_its_data_is_under_its_name(self) -> None:
        run = Lab().start(Workflow("waits").wait_for("order.paid").then(small), {"id": 7})
        assert run.state == "RUNNING"

        run.signal("order.paid", {"by": "card"})

        assert run.assert_completed().output == {"id": 7, "paid": {"by": "card"}, "size": "small"}

    def test_data_that_is_no_object_is_kept_as_it_is(self) -> None:
        assert Lab().start(Workflow("waits").wait_for("n")).signal("n", 7).assert_completed().output == {"n": 7}
        assert Lab().start(Workflow("waits").wait_for("n", "mine"), [1]).signal("n").assert_completed().output == {"mine": None}

    def test_what_is_not_meant_by_the_condition_is_not_taken(self) -> None:
        run = Lab().start(Workflow("waits").wait_for("paid", where=".data.order == 7"))

        run.signal("paid", {"order": 8})
        assert run.state == "RUNNING"
        assert run.signal("paid", {"order": 7}).assert_completed().output == {"paid": {"order": 7}}

    def test_one_that_does_not_come_in_time_is_an_error_that_can_be_caught(self) -> None:
        Lab().run(Workflow("waits").wait_for("paid", timeout="1h")).assert_failed("timeout")

        flow = Workflow("waits").try_(lambda inside: inside.wait_for("paid", timeout="1h")).catch(told, on="timeout")
        assert Lab().run(flow, {"id": 7}).assert_completed().output == {"id": 7, "because": "timeout"}


class TestConditions:
    @pytest.mark.parametrize(("amount", "size"), [(1, "small"), (1000, "large")])
    def test_else_runs_when_the_condition_does_not_hold(self, amount: int, size: str) -> None:
        flow = Workflow("asks").if_(".amount > 100").do(large).else_(small).set({"size": "${ .size }"})
        assert Lab().run(flow, {"amount": amount}).assert_completed().output == {"size": size}

    def test_the_condition_is_looked_at_once_whatever_its_steps_change(self) -> None:
        flow = Workflow("changes").if_(".n == 1").do(lambda inside: inside.set({"n": 2})).else_(lambda inside: inside.set({"n": 3}))
        assert Lab().run(flow, {"n": 1}).assert_completed().output == {"n": 2}

    @pytest.mark.parametrize(("amount", "size"), [(1, "small"), (50, "middle"), (1000, "large")])
    def test_the_first_case_that_holds_runs_alone(self, amount: int, size: str) -> None:
        flow = (
            Workflow("sorts")
            .switch()
            .case(lambda data: data["amount"] > 100, large)
            .case(".amount > 10", lambda inside: inside.set({"size": "middle", "amount": 1000}), "middle")
            .default(small)
            .set({"size": "${ .size }"})
        )
        assert Lab().run(flow, {"amount": amount}).assert_completed().output == {"size": size}

    def test_without_a_default_nothing_runs_when_no_case_holds(self) -> None:
        flow = Workflow("sorts").switch().case(".amount > 100", large).then(small)
        run = Lab().run(flow, {"amount": 1}).assert_completed()
        assert run.steps == ["small"]


class TestErrors:
    def test_what_fails_is_handled_with_the_data_that_the_try_was_given(self) -> None:
        flow = Workflow("tries").try_(lambda inside: inside.set({"lost": True}).then("verbs.charge")).catch(told).then(small)
        run = Lab(stubs={"verbs.charge": Terminal("declined")}).run(flow, {"id": 7})
        assert run.assert_completed().output == {"id": 7, "because": "terminal", "size": "small"}

    def test_what_succeeds_is_not_handled(self) -> None:
        assert Lab().run(Workflow("tries").try_(large).catch(told), {}).assert_completed().output == {"size": "large"}

    @pytest.mark.parametrize("on", ["timeout", ["timeout", "validation"]])
    def test_errors_that_are_not_named_go_on(self, on: Any) -> None:
        flow = Workflow("tries").try_("verbs.charge").catch(told, on=on)
        Lab(stubs={"verbs.charge": Terminal("declined")}).run(flow).assert_failed("terminal")

    @pytest.mark.parametrize("on", ["ValueError", ["timeout", "ValueError"]])
    def test_an_exception_is_caught_by_its_name(self, on: Any) -> None:
        flow = Workflow("tries").try_(lambda inside: inside.then("verbs.charge", retries=0)).catch(small, on=on)
        Lab(stubs={"verbs.charge": ValueError("odd")}).run(flow).assert_completed()

    def test_all_of_it_is_tried_again_before_it_is_handled(self) -> None:
        flow = Workflow("tries").try_(lambda inside: inside.then(small).then("verbs.charge"), retries=2).catch(told)
        run = Lab(stubs={"verbs.charge": Terminal("declined")}).run(flow).assert_completed()
        assert run.steps == ["small", "charge"] * 3 + ["told"]

    def test_a_policy_says_how_often_and_how_long_between(self) -> None:
        lab = Lab(stubs={"verbs.charge": Terminal("declined")})
        began = lab.clock.now()
        lab.run(
            Workflow("tries").try_("verbs.charge", retry=RetryPolicy(max_attempts=2, base_s=60, jitter=0)).catch(small)
        ).assert_completed()
        assert lab.clock.now() - began == pytest.approx(60)

    def test_a_saga_undoes_what_was_done_in_a_try_that_failed_for_good(self) -> None:
        undone = []

        @step(type="verbs.reserve")
        def reserve() -> dict[str, int]:
            return {"n": 1}

        @reserve.undo
        def release(output: dict[str, int]) -> None:
            undone.append(output)

        flow = Workflow("goes-back", saga=True).try_(lambda inside: inside.then(reserve).then("verbs.charge")).catch("verbs.give_up")
        run = Lab(stubs={"verbs.charge": Terminal("declined"), "verbs.give_up": Terminal("no")}).run(flow)
        run.assert_failed("terminal").assert_compensated("reserve")
        assert undone == [{"n": 1}]


WRONG: dict[str, tuple[Callable[[Flow], Any], str]] = {
    "a join without branches": (lambda flow: flow.parallel().join(), "at least one branch"),
    "a graph without steps": (lambda flow: flow.graph().done(), "at least one step"),
    "a switch without cases": (lambda flow: flow.switch().done(), "at least one case"),
    "a switch with a default alone": (lambda flow: flow.switch().default("noop"), "at least one case"),
    "a switch that is left open": (lambda flow: flow.switch().case(".x", "noop"), r"\.default"),
    "two cases of one name": (lambda flow: flow.switch().case(".x", "noop", "a").case(".y", "noop", "a").done(), "is taken"),
    "a case with a reserved name": (lambda flow: flow.switch().case(".x", "noop", "exit").done(), "is taken"),
    "a try without a catch": (lambda flow: flow.try_("noop"), r"\.catch"),
    "an else without an if": (lambda flow: flow.then("noop").else_("noop"), r"\.if_"),
    "an else after another step": (lambda flow: flow.if_(".x").do("noop").then("noop").else_("noop"), r"\.if_"),
    "two elses": (lambda flow: flow.if_(".x").do("noop").else_("noop").else_("noop"), r"\.if_"),
    "retries and a policy that is none": (lambda flow: flow.try_("noop", retries=-1).catch("noop"), "retries"),
    "a number as an error": (lambda flow: flow.try_("noop").catch("noop", on=5), "on"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_written_wrongly_is_refused_with_its_line(name: str) -> None:
    write, said = WRONG[name]
    flow = Workflow("wrong").then("noop")
    write(flow)

    with pytest.raises(Invalid, match=said) as refused:
        flow.build()  # type: ignore[attr-defined]
    assert all(fault.file == __file__ and fault.line for fault in refused.value.faults)
