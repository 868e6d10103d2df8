"""The conformance kit: Gherkin scenarios run against an engine. `make ctk` runs all of them on both engines."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gherkin.parser import Parser

from orchestrator.definition.documents import parse, read_document
from orchestrator.definition.tree import Definition
from orchestrator.embedded import Embedded
from orchestrator.ids import unescaped
from tests.serverless.standins import StandIn
from tests.stack import Stack

FOLDER = Path(os.environ.get("CTK", Path(__file__).parents[3] / "shared" / "serverless-workflow" / "ctk"))


_numbers = itertools.count(0, 1000)


@dataclass
class Outcome:
    state: str
    output: Any
    error: dict[str, Any] | None
    ran: list[str] = field(default_factory=list)


class Engine(Protocol):
    def run(self, definition: Definition, input: Any) -> Outcome: ...


class InProcess:
    def run(self, definition: Definition, input: Any) -> Outcome:
        engine = Embedded()
        instance = engine.finish(engine.start(definition, input))
        return Outcome(str(instance.state), instance.output, instance.error, _names([fact.position for fact in instance.history]))


class Durable:
    """Real workers, Postgres and Redis."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.number = next(_numbers)

    def run(self, definition: Definition, input: Any) -> Outcome:
        # Scenarios share names and versions; a used version is immutable.
        self.number += 1
        definition = replace(definition, name=f"{definition.name}-{self.number}")
        self.stack.runner.register_workflow(definition)
        status = self.stack.run(f"{definition.namespace}.{definition.name}", input, version=definition.version)
        facts = self.stack.runner.history(status["id"])
        return Outcome(status["status"], status["output"], status["error"], _names([fact["position"] for fact in facts]))


def _names(positions: list[str]) -> list[str]:
    """Tasks in the order in which they first left a trace; the root, loops' rounds and bodies of tries are no tasks."""
    seen: dict[str, None] = {}
    for position in positions:
        name = position.rsplit("/", 1)[-1].split("#")[0]
        if position and not name.isdigit() and name not in ("try", "catch"):
            seen.setdefault(unescaped(name))
    return list(seen)


@dataclass(frozen=True)
class Scenario:
    name: str
    steps: tuple[tuple[str, str | None], ...]

    def check(self, engine: Engine, standin: StandIn) -> None:
        """Raises AssertionError when a step does not hold."""
        definition: Definition | None = None
        given: Any = None
        outcome: Outcome | None = None
        for text, doc in self.steps:
            if text.startswith("a workflow with definition"):
                assert doc is not None
                definition = read_document(standin.moved(doc), "scenario.yaml")
            elif "workflow input is" in text:
                given = parse(doc or "", "input.yaml")
            elif text == "the workflow is executed":
                assert definition is not None
                outcome = engine.run(definition, given)
            else:
                assert outcome is not None
                _expect(text, doc, outcome)


def _expect(text: str, doc: str | None, outcome: Outcome) -> None:
    value = parse(doc, "expected.yaml") if doc is not None else None
    if re.fullmatch(r"the workflow should complete( with output:?)?", text):
        assert outcome.state == "COMPLETED", outcome
        assert doc is None or same(outcome.output, value), outcome
    elif re.fullmatch(r"the workflow should fault( with error:?)?", text):
        assert outcome.state == "FAILED", outcome
        if doc is not None:
            problem = (outcome.error or {}).get("details") or {}
            assert same({key: problem.get(key) for key in value}, value), outcome
    elif text == "the workflow should cancel":
        assert outcome.state == "CANCELLED", outcome
    elif found := re.fullmatch(r"the workflow output should have properties (.+)", text):
        for path in re.findall(r"'([^']+)'", found.group(1)):
            assert has(outcome.output, path), (path, outcome)
    elif found := re.fullmatch(r"the workflow output should have an? '([^']+)' property with value:?", text):
        assert same(at(outcome.output, found.group(1)), value), outcome
    elif found := re.fullmatch(r"the workflow output should have an? '([^']+)' property containing (\d+) items?", text):
        assert len(at(outcome.output, found.group(1))) == int(found.group(2)), outcome
    elif found := re.fullmatch(r"(\S+) should run (first|last)", text):
        assert outcome.ran[0 if found.group(2) == "first" else -1] == found.group(1), outcome
    elif found := re.fullmatch(r"(\S+) should run (before|after) (\S+)", text):
        one, other = outcome.ran.index(found.group(1)), outcome.ran.index(found.group(3))
        assert one < other if found.group(2) == "before" else one > other, outcome
    else:
        raise AssertionError(f"unknown step: {text}")


def at(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def has(data: Any, path: str) -> bool:
    try:
        at(data, path)
    except (KeyError, IndexError, TypeError, ValueError):
        return False
    return True


def same(one: Any, other: Any) -> bool:
    return bool(json.loads(json.dumps(one)) == json.loads(json.dumps(other)))


def scenarios(folder: Path = FOLDER) -> Iterator[tuple[str, Scenario]]:
    for file in sorted(folder.glob("**/*.feature")):
        feature = Parser().parse(file.read_text())["feature"]
        for child in feature["children"]:
            scenario = child["scenario"]
            steps = tuple((re.sub(r"^given ", "", s["text"].strip()), (s.get("docString") or {}).get("content")) for s in scenario["steps"])
            yield file.stem, Scenario(scenario["name"], tuple((text.rstrip(":"), doc) for text, doc in steps))
