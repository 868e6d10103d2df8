"""Writing workflows: documents, builder, durations, retries, expressions, and every fault with its place."""

from __future__ import annotations

from dataclasses import dataclass

import pydantic
import pytest

from orchestrator import Limits, Retryable, RetryPolicy, StepContext, Terminal, Workflow, step
from orchestrator.definition.documents import definition_from, parse, read_document
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.expressions import ExpressionError, Jq, Template, evaluate, jq_value
from orchestrator.definition.tree import Around, Case, Definition, Do, For, Graph, Node, Set, Step, Switch
from orchestrator.definition.validate import check
from orchestrator.definition.versions import BadVersion, parse_version, same_version
from orchestrator.errors import Invalid
from orchestrator.steps.registry import REGISTRY
from orchestrator.testing import Lab


def faults(document: object) -> list[str]:
    with pytest.raises(Invalid) as caught:
        check(definition_from(document), REGISTRY)
    return [str(fault) for fault in caught.value.faults]


def document(*steps: dict[str, object], **more: object) -> dict[str, object]:
    return {"type": "t", "steps": list(steps), **more}


class TestDocuments:
    def test_the_readme_example_of_the_graph_form_runs_as_it_is(self) -> None:
        text = """
            type: pin_operation
            steps:
              - {id: validate, type: log, parameters: {message: Validating pin request}}
              - {id: execute, type: delay, parameters: {delay: 2s}, dependencies: [validate]}
            timeout: 5m
        """
        lab = Lab()
        began = lab.clock.now()

        run = lab.run(read_document(text)).assert_completed().assert_steps("validate", "execute")

        assert lab.clock.now() - began == pytest.approx(2.0)
        assert run.output == {"logged": True, "delayed_for": "2s"}

    def test_validation_lists_every_fault_with_its_place(self) -> None:
        assert faults(
            document(
                {"id": "a", "type": "log", "dependencies": ["ghost"]},
                {"id": "a", "type": "noop"},
                {"id": "b", "type": "warp", "dependencies": ["c"], "compensation": "unwarp"},
                {"id": "c", "type": "noop", "dependencies": ["b"]},
            )
        ) == [
            "duplicate step ID: 'a'",
            "/steps/0: unknown dependency 'ghost'",
            "circular dependency: b → c → b",
            "/steps/0/parameters/message: log step needs a 'message' parameter",
            "/steps/2: no executor found for step type: warp",
            "/steps/2/compensation: no compensation found for type: unwarp",
        ]

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"steps": [{"id": "a", "type": "log"}]}, "workflow type is required"),
            ({"type": "t", "steps": []}, "workflow must have at least one step"),
            (document({"id": "a", "type": "log", "timeout": "soon"}), "/steps/0/timeout: Invalid duration 'soon'"),
            (document({"id": "a", "type": "log", "retries": -1}), "/steps/0/retries: Expected a number at least 0, got -1."),
            (document({"id": "a", "type": "log"}, metadata={"saga": "yes"}), '/metadata/saga: Expected true or false, got "yes".'),
            (document({"id": "a", "type": "log", "retires": 3}), 'Did you mean "retries"?'),
            (document({"id": "a", "type": "log"}, metadata={"priority": "urgent"}), "Expected low, normal, high or critical"),
            (document({"id": "a", "type": "log", "parameters": {"message": "${ .a | }"}}), "jq:"),
            ("just text", "Expected a mapping"),
        ],
    )
    def test_each_fault_is_named(self, given: object, said: str) -> None:
        assert any(said in fault for fault in faults(given)), faults(given)

    def test_retries_are_extra_attempts_and_none_is_the_default(self) -> None:
        read = definition_from(
            document(
                {"id": "a", "type": "log", "retries": 0}, {"id": "b", "type": "log", "retries": 5}, {"id": "c", "type": "log"}, retries=3
            )
        )
        assert isinstance(read.do, Graph)
        a, b, c = (node.task for node in read.do.nodes)
        assert isinstance(a, Step)
        assert isinstance(b, Step)
        assert isinstance(c, Step)
        assert (a.retry, b.retry, c.retry, read.retry) == (
            RetryPolicy(max_attempts=1),
            RetryPolicy(max_attempts=6),
            None,
            RetryPolicy(max_attempts=4),
        )

    def test_yaml_is_of_version_1_2(self) -> None:
        assert parse("on: yes\nat: 12:30\nn: 0o17\nz: 08\nf: 1e3\nt: true") == {
            "z": 8,
            "on": "yes",
            "at": "12:30",
            "n": 15,
            "f": 1000.0,
            "t": True,
        }

    def test_a_syntax_error_names_its_line(self) -> None:
        with pytest.raises(Invalid, match=r"x\.yaml:[23]:"):
            parse("a: 1\nb: [1, 2", "x.yaml")
        with pytest.raises(Invalid, match="given twice"):
            parse("a: 1\na: 2")

    def test_sample_steps_behave_as_described(self) -> None:
        lab = Lab()
        run = lab.run(
            definition_from(
                document(
                    {"id": "log_progress", "type": "log", "parameters": {"message": "Processing started", "level": "info"}},
                    {"id": "wait", "type": "delay", "parameters": {"delay": "30s"}},
                    {"id": "check_condition", "type": "conditional", "parameters": {"condition": "always_true"}},
                )
            )
        )
        assert run.output["result"] is True
        failed = lab.run(
            definition_from(
                document({"id": "test_failure", "type": "fail", "parameters": {"message": "Intentional test failure"}, "retries": 0})
            )
        )
        assert failed.assert_failed("failed").error["message"] == "Intentional test failure"  # type: ignore[index]

    def test_dependencies_order_steps_and_a_skipped_dependency_skips(self) -> None:
        lab = Lab()
        run = lab.run(
            definition_from(
                document(
                    {"id": "d", "type": "noop", "dependencies": ["c"]},
                    {"id": "a", "type": "noop"},
                    {"id": "b", "type": "fail", "retries": 0},
                    {"id": "c", "type": "noop", "dependencies": ["a", "b"]},
                )
            )
        )
        run.assert_failed()
        assert run.steps == ["a", "b"]

    def test_independent_delays_run_side_by_side(self) -> None:
        lab = Lab()
        began = lab.clock.now()
        lab.run(
            definition_from(
                document(
                    {"id": "a", "type": "delay", "parameters": {"delay": "2s"}}, {"id": "b", "type": "delay", "parameters": {"delay": 2}}
                )
            )
        ).assert_completed()
        assert lab.clock.now() - began == pytest.approx(2.0)

    def test_a_step_timeout_below_its_delay_fails_the_attempt_and_is_retried(self) -> None:
        run = Lab().run(
            definition_from(document({"id": "a", "type": "delay", "parameters": {"delay": "10s"}, "timeout": "1s", "retries": 1}))
        )
        assert run.assert_failed("timeout").error["attempts"] == 2  # type: ignore[index]


class TestDurations:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("30s", 30),
            ("100ms", 0.1),
            ("1m30s", 90),
            ("PT2S", 2),
            ("PT1H30M", 5400),
            ("P1D", 86400),
            ("P1W", 604800),
            (0.5, 0.5),
            ("1.5", 1.5),
            ({"minutes": 2, "seconds": 5}, 125),
            ("1d", 86400),
        ],
    )
    def test_all_the_ways_to_write_one(self, given: object, expected: float) -> None:
        assert seconds(given) == pytest.approx(expected)

    @pytest.mark.parametrize("given", ["", "soon", "P", "PT", -1, True, None, {"years": 1}, [], "-5s", float("nan"), "5 apples"])
    def test_what_is_none_is_refused(self, given: object) -> None:
        with pytest.raises(BadDuration):
            seconds(given)


class TestRetries:
    def test_exponential_linear_constant_and_cap(self) -> None:
        plain = RetryPolicy(jitter=0)
        assert [plain.delay_s(n, 0.9) for n in (1, 2, 3)] == [1, 2, 4]
        assert plain.delay_s(10, 0) == 300
        assert plain.delay_s(100_000, 0) == 300
        assert [RetryPolicy(backoff="linear", jitter=0).delay_s(n, 0) for n in (1, 2, 3)] == [1, 2, 3]
        assert [RetryPolicy(backoff="constant", jitter=0).delay_s(n, 0) for n in (1, 2, 3)] == [1, 1, 1]

    def test_jitter_takes_half_at_most(self) -> None:
        assert RetryPolicy().delay_s(1, 0.0) == 1.0
        assert 0.5 <= RetryPolicy().delay_s(1, 0.99) < 0.51

    def test_only_some_errors_deserve_another_attempt(self) -> None:
        calls: list[int] = []

        @step(type="picky", retry=RetryPolicy(max_attempts=3, jitter=0, no_retry_on=("KeyError",)))
        def picky(context: StepContext, kind: str) -> None:
            calls.append(context.attempt)
            raise {"key": KeyError("k"), "io": ConnectionError("gone"), "final": Terminal("no"), "type": TypeError("bug")}[kind]

        for kind, attempts in (("key", 1), ("io", 3), ("final", 1), ("type", 1)):
            calls.clear()
            Lab().run(Workflow(f"picky-{kind}").then(picky), {"kind": kind}).assert_failed()
            assert len(calls) == attempts, kind

    def test_a_step_may_say_when_to_come_back(self) -> None:
        @step(type="later", retry=RetryPolicy(max_attempts=2))
        def later(context: StepContext) -> None:
            if context.attempt == 1:
                raise Retryable("busy", after=120)

        lab = Lab()
        began = lab.clock.now()
        lab.run(Workflow("later").then(later)).assert_completed()
        assert lab.clock.now() - began == pytest.approx(120)


class TestSteps:
    def test_typed_inputs_are_validated_with_every_fault(self) -> None:
        class Guest(pydantic.BaseModel):
            name: str
            age: int

        @step(type="greet_guest")
        def greet_guest(guest: Guest) -> str:
            return f"{guest.name} is {guest.age}"

        workflow = Workflow("guests").then(greet_guest)
        assert Lab().run(workflow, {"name": "Ada", "age": "36"}).output["greet_guest"] == "Ada is 36"
        failed = Lab().run(workflow, {"age": "old"}).assert_failed("validation")
        assert failed.error is not None
        assert "guest.name" in failed.error["message"]
        assert "guest.age" in failed.error["message"]

    def test_a_dataclass_and_a_coroutine_serve_as_well(self) -> None:
        @dataclass
        class Pair:
            a: int
            b: int

        @step(type="add_up")
        async def add_up(pair: Pair) -> dict[str, int]:
            return {"sum": pair.a + pair.b}

        assert Lab().run(Workflow("adding").then(add_up), {"a": 1, "b": 2}).output["sum"] == 3

    def test_a_step_is_still_a_function(self) -> None:
        @step(type="twice")
        def twice(n: int) -> int:
            return 2 * n

        assert twice(4) == 8

    def test_what_is_no_json_is_refused(self) -> None:
        @step(type="opaque", retries=0)
        def opaque() -> object:
            return {"x": object()}

        assert "JSON" in Lab().run(Workflow("opaque").then(opaque)).assert_failed().error["message"]  # type: ignore[index]


class TestBuilder:
    def test_one_failing_branch_fails_the_workflow_and_the_join_is_not_run(self) -> None:
        flow = (
            Workflow("one-fails")
            .then("noop", "begin")
            .parallel()
            .do(lambda b: b.then("noop", "left"))
            .do(lambda b: b.then("fail", "right", retries=0))
            .join_with("noop", "joined")
        )
        run = Lab().run(flow, {}).assert_failed()
        assert "joined" not in run.steps

    def test_a_branch_does_not_cover_what_another_wrote(self) -> None:
        flow = Workflow("covers").parallel().do(lambda b: b.set({"status": 1, "kept": "${ .kept }"})).do(lambda b: b.then("noop")).join()
        assert Lab().run(flow, {"status": 0, "kept": True}).output == {"status": 1, "kept": True}

    def test_loops_may_run_side_by_side_and_gather_what_each_gave(self) -> None:
        @step(type="square")
        def square(item: int) -> dict[str, int]:
            return {"square": item * item}

        flow = Workflow("squares").foreach([1, 2, 3], parallel=True, name="squares").do(square)
        assert [entry["square"] for entry in Lab().run(flow, {}).output["squares"]] == [1, 4, 9]

    def test_unreachable_targets_and_duplicate_names_are_found(self) -> None:
        tree = Do(
            tasks=(Set(name="a", around=Around(then="nowhere")), Set(name="a"), Switch(name="s", cases=(Case(name="x"), Case(name="y"))))
        )
        with pytest.raises(Invalid) as caught:
            check(Definition(name="x", version="one", do=tree), REGISTRY)
        said = str(caught.value)
        for part in ('Invalid version "one"', "unreachable target 'nowhere'", "duplicate task name: 'a'", "more than one default case"):
            assert part in said

    def test_limits_and_loops_without_end_condition_are_checked(self) -> None:
        with pytest.raises(Invalid, match="at least 1"):
            check(Definition(name="x", version="1", limits=Limits(workflow=0), do=Do(tasks=(Set(name="a"),))), REGISTRY)
        with pytest.raises(Invalid, match="needs items or a condition"):
            check(Definition(name="x", version="1", do=Do(tasks=(For(name="f"),))), REGISTRY)

    def test_a_long_cycle_is_drawn(self) -> None:
        nodes = tuple(Node(task=Step(name=f"n{i}"), after=(f"n{(i + 1) % 500}",)) for i in range(500))
        with pytest.raises(Invalid, match="circular dependency: n"):
            check(Definition(name="x", version="1", do=Graph(nodes=nodes)), REGISTRY)


class TestVersions:
    def test_one_version_written_three_ways(self) -> None:
        assert same_version("1", "1.0")
        assert same_version(1, "1.0.0")
        assert parse_version("2.10.3") == (2, 10, 3)
        for wrong in ("", "v1", "1.2.3.4", "1.x", True):
            with pytest.raises(BadVersion):
                parse_version(wrong)


class TestExpressions:
    def test_the_environment_is_not_to_be_seen(self) -> None:
        assert jq_value("$ENV", {}, {}) == {}
        assert jq_value("env", {}, {}) == {}

    @pytest.mark.parametrize("source", ['import "x" as $d {search: "/tmp"}; $d', ".a) | (1", "halt", "input", "."[:0], "$unbound"])
    def test_what_reaches_outside_is_refused(self, source: str) -> None:
        with pytest.raises(ExpressionError):
            jq_value(source, {"a": 1}, {})

    def test_templates_are_filled_and_data_is_never_evaluated(self) -> None:
        template = Template({"a": "${ .x }", "b": ["plain", "${ $who }"]})
        assert evaluate(template, {"x": "${ .secret }", "secret": 1}, {"who": "me"}) == {"a": "${ .secret }", "b": ["plain", "me"]}

    def test_what_may_change_says_so(self) -> None:
        assert Jq(".now_at").is_stable
        assert not Jq("now").is_stable
        assert not Template({"at": "${ now }"}).is_stable
