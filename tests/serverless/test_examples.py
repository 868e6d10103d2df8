"""The specification's examples: all that are valid register; those that can run here do, against stand-ins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.definition.drawing import mermaid
from orchestrator.definition.validate import check
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import Invalid
from orchestrator.steps.registry import REGISTRY
from orchestrator.testing import ManualClock
from tests.serverless.standins import StandIn

FOLDER = Path(os.environ.get("DSL_EXAMPLES", Path(__file__).parents[3] / "shared" / "serverless-workflow"))
V1 = sorted((FOLDER / "examples").glob("*.yaml"))
V08 = sorted((FOLDER / "0.8" / "examples").glob("*.*"))
# Not YAML; or of a shape that the 0.8 schema refuses; or with a transition to a state that is not there.
BROKEN = {
    "eventbasedswitchstate.yaml",
    "patientonboarding.yaml",
    "eventbasedswitchstate.json",
    "booklending.yaml",
    "booklending.json",
}
pytestmark = pytest.mark.skipif(not V1, reason=f"no examples in {FOLDER}; set DSL_EXAMPLES")


@pytest.mark.parametrize("path", [*V1, *V08], ids=lambda path: path.name)
def test_valid_examples_register_and_can_be_drawn(path: Path) -> None:
    def read() -> str:
        made = read_document(path.read_text(), path.name)
        check(made, REGISTRY)
        return mermaid(made)

    if path.name in BROKEN:
        with pytest.raises(Invalid):
            read()
    else:
        assert read().startswith("flowchart TD")


def run(name: str, standin: StandIn, input: Any = None, events: list[dict[str, Any]] | None = None) -> Instance:
    made = read_document(standin.moved((FOLDER / "examples" / f"{name}.yaml").read_text()))
    engine = Embedded(clock=ManualClock())
    instance = engine.start(made, input)
    engine.settle()
    for number, event in enumerate(events or ()):
        engine.send({"specversion": "1.0", "id": f"e{number}", "source": "/x", **event})
        engine.settle()
    return engine.finish(instance)


PET = {"petId": 1}


@pytest.mark.parametrize(
    ("name", "input", "events", "expected"),
    [
        ("authentication-bearer", {"token": "t"}, [], lambda out: out["name"] == "Milou"),
        ("authentication-bearer-uri-format", {**PET, "token": "t"}, [], lambda out: out["id"] == 1),
        ("authentication-reusable", {**PET, "token": "t"}, [], lambda out: out["id"] == 1),
        ("call-custom-function-inline", {}, [], None),
        ("call-http-endpoint-interpolation", PET, [], lambda out: out["id"] == 1),
        ("call-http-endpoint-interpolation-shorthand", PET, [], lambda out: out["id"] == 1),
        ("call-openapi", {}, [], lambda out: len(out) == 2),
        ("call-openapi-redirect", {}, [], lambda out: len(out) == 2),
        ("do-single", PET, [], lambda out: out["id"] == 1),
        ("emit", {}, [], lambda out: out["type"] == "com.petstore.order.placed.v1"),
        ("for-inline-array", {}, [], lambda out: [c["name"] for c in out["processed"]] == ["red", "green", "blue"]),
        ("listen-to-any", {}, [{"type": "x", "data": 1}], lambda out: out == [1]),
        ("listen-to-any-until-condition", {}, [{"type": "x", "data": n} for n in range(4)], lambda out: out == [0, 1, 2, 3]),
        (
            "listen-to-all",
            {},
            [
                {"type": "com.fake-hospital.vitals.measurements.temperature", "data": {"temperature": 39}},
                {"type": "com.fake-hospital.vitals.measurements.bpm", "data": {"bpm": 50}},
            ],
            lambda out: out == [{"temperature": 39}, {"bpm": 50}],
        ),
        (
            "listen-to-any-until-consumed",
            {},
            [
                {"type": "com.fake-hospital.vitals.measurements.bpm", "data": {"bpm": 50}},
                {"type": "com.fake-hospital.vitals.measurements.bpm", "data": {"bpm": 80}},
                {"type": "com.fake-hospital.patient.checked-out"},
            ],
            lambda out: out == [{"bpm": 50}],
        ),
        ("set", {"a": 1}, [], None),
        ("switch-then-string", {"orderType": "electronic"}, [], lambda out: out == {"validate": True, "status": "fulfilled"}),
        ("switch-then-string", {"orderType": "physical"}, [], lambda out: out["items"] == 1),
        ("switch-then-string", {"orderType": "other"}, [], lambda out: out["log"] == "warn"),
        ("try-catch", {"petId": 77}, [], lambda out: out == {"petId": 77}),
        ("try-catch-retry-inline", PET, [], lambda out: out["id"] == 1),
        ("try-catch-retry-reusable", PET, [], lambda out: out["id"] == 1),
        ("wait-duration-inline", {"a": 1}, [], lambda out: out == {"a": 1}),
        ("wait-duration-iso8601", {"a": 1}, [], lambda out: out == {"a": 1}),
    ],
)
def test_examples_run(name: str, input: Any, events: list[dict[str, Any]], expected: Any, standin: StandIn) -> None:
    instance = run(name, standin, input, events)
    if expected is None:
        assert instance.state in ("COMPLETED", "FAILED")
        return
    assert instance.state == "COMPLETED", instance.error
    assert expected(instance.output), instance.output


def test_examples_that_end_in_an_error_say_so(standin: StandIn) -> None:
    raised = run("raise-inline", standin, {})
    assert raised.error is not None
    assert raised.error["detail"].startswith("The workflow 'raise-not-implemented:0.1.0'")
    underage = run("conditional-task", standin, {"customer": {"age": 12}})
    assert underage.error is not None
    assert underage.error["title"] == "Access Forbidden"


def test_the_mocked_service_is_not_called(standin: StandIn) -> None:
    # Its condition asks `startswith` of the endpoint first, so the endpoint must be a string for it to hold.
    text = (FOLDER / "examples" / "mock-service-extension.yaml").read_text()
    text = text.replace("endpoint:\n          uri: https://fake.com/sample", "endpoint: https://mocked.service.com/sample")
    engine = Embedded()
    instance = engine.finish(engine.start(read_document(text), {}))
    assert instance.state == "COMPLETED", instance.error
    assert instance.output["content"] == {"foo": {"bar": "baz"}}


def test_the_homeworld_is_found_by_way_of_the_context(standin: StandIn) -> None:
    standin.answers["GET", "/api/people/1"] = lambda _: (200, {"homeworld": f"{standin.address}/api/planets/1"})
    standin.answers["GET", "/api/planets/1"] = lambda _: (200, {"name": "Tatooine"})
    assert run("star-wars-homeworld", standin, {"id": 1}).output == {"name": "Tatooine"}


def test_programs_of_the_examples(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SHELL", "1")
    monkeypatch.setenv("RUN_SCRIPTS", "1")
    assert run("run-shell-stdin-and-arguments", standin, {}).output == "STDIN was: Hello World\nARGS are Foo Bar"
    assert run("run-script-with-stdin-and-arguments", standin, {}).output == "stdin >  Hello Workflow\narg >  hello\nenv >  bar"
