"""For authors: run a workflow in-process, without services, with a clock you hold and executors you replace.

from orchestrator.testing import Lab

def test_an_order_that_cannot_be_paid_is_refunded():
    lab = Lab(stubs={"charge": Terminal("card declined")})
    run = lab.run(order, {"id": 7})
    assert run.state == "FAILED"
    assert run.steps == ["reserve", "charge"]
    run.assert_compensated("reserve")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.definition.builder import Workflow
from orchestrator.definition.parsing import shown, suggestion_for
from orchestrator.definition.tree import Definition, Step, walk
from orchestrator.definition.validate import check
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import Fault, IllegalMove, Invalid
from orchestrator.history import Fact, Kind
from orchestrator.state import TERMINAL
from orchestrator.steps.registry import REGISTRY, Registry, StepContext


class ManualClock:
    """Time that stands still until it is moved."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def wait_until(self, instant: float) -> None:
        self._now = max(self._now, instant)


class _Stub:
    """Stands in for an executor: a value, an exception to raise, or a function of the step's context."""

    def __init__(self, type: str, given: Any) -> None:
        self.type = type
        self.given = given

    def execute(self, context: StepContext) -> Any:
        given = self.given
        if isinstance(given, list):
            given = given[min(context.attempt, len(given)) - 1]
        if isinstance(given, BaseException) or (isinstance(given, type) and issubclass(given, BaseException)):
            raise given
        return given(context) if callable(given) else given


class Run:
    """An instance under test."""

    def __init__(self, lab: Lab, instance: Instance) -> None:
        self._lab = lab
        self.instance = instance

    @property
    def state(self) -> str:
        return str(self.instance.state)

    @property
    def output(self) -> Any:
        return self.instance.output

    @property
    def error(self) -> dict[str, Any] | None:
        return self.instance.error

    @property
    def history(self) -> list[Fact]:
        return self.instance.history

    @property
    def steps(self) -> list[str]:
        """The names of the steps that were performed forwards, attempt by attempt."""
        return [_name(position) for position in self.instance.performed if not position.startswith("/undo")]

    @property
    def compensated(self) -> list[str]:
        """The names of the steps that were undone, in that order."""
        return [_name(fact.data["origin"]) for fact in self.history if fact.kind == Kind.UNDONE]

    def signal(self, name: str, data: Any = None) -> Run:
        self._lab.engine.signal(self.instance, name, data)
        return self._settled()

    def approve(self, step: str, *, approved: bool = True) -> Run:
        """Answer an approval that waits; any other name is refused."""
        self._lab.engine.approve(self.instance, step, approved=approved, by="test")
        return self._settled()

    def advance(self, seconds: float) -> Run:
        """Let so much time pass; what falls due on the way happens at its time."""
        until = self._lab.clock.now() + seconds
        self._lab.engine.settle(until)
        self._lab.clock.wait_until(until)
        return self._settled()

    def pause(self) -> Run:
        self._lab.engine.pause(self.instance)
        return self

    def resume(self) -> Run:
        self._lab.engine.resume(self.instance)
        return self._settled()

    def cancel(self) -> Run:
        self._lab.engine.cancel(self.instance)
        return self._settled()

    def _settled(self) -> Run:
        self._lab.engine.settle()
        return self

    def assert_completed(self) -> Run:
        assert self.state == "COMPLETED", f"is {self.state}: {self.error}"
        return self

    def assert_failed(self, code: str | None = None) -> Run:
        assert self.state == "FAILED", f"is {self.state}"
        if code is not None:
            assert self.error is not None
            assert self.error["code"] == code, f"failed with {self.error['code']}: {self.error['message']}"
        return self

    def assert_steps(self, *names: str) -> Run:
        assert self.steps == list(names), f"performed {self.steps}"
        return self

    def assert_compensated(self, *names: str) -> Run:
        assert self.compensated == list(names), f"compensated {self.compensated}"
        return self


def _name(position: str) -> str:
    return position.rsplit("/", 1)[-1].split("#")[0]


class Lab:
    """A place to run workflows in, each checked first as the engine does when it registers one.

    `stubs` replace executors by step type, those of `@step` functions and built-in ones, too; one for a type that no step has is refused
    when a workflow starts. `workflows` are what children may be.
    """

    def __init__(self, *, stubs: Mapping[str, Any] | None = None, workflows: tuple[Workflow | Definition, ...] = ()) -> None:
        self.clock = ManualClock()
        registry = Registry()
        REGISTRY.load()
        registry.executors = dict(REGISTRY.executors)
        registry.handlers = dict(REGISTRY.handlers)
        registry._loaded = True
        self._made_up = set(stubs or ()) - set(registry.executors)
        registry.executors |= {type: _Stub(type, given) for type, given in (stubs or {}).items()}
        self.engine = Embedded(clock=self.clock, registry=registry)
        for workflow in workflows:
            self.engine.register(self._checked(workflow))

    def start(self, workflow: Workflow | Definition, input: Any = None) -> Run:
        """Start, and run to where it first waits. Raises `Invalid` for a workflow with faults, and for stubs of types that no step has."""
        definition = self._checked(workflow)
        self._check_stubs(definition)
        run = Run(self, self.engine.start(definition, input))
        self.engine.settle()
        return run

    def run(self, workflow: Workflow | Definition, input: Any = None) -> Run:
        """Start, and let time pass until it ends. One that waits for a signal nobody sends is an error."""
        run = self.start(workflow, input)
        self.engine.finish(run.instance)
        if run.instance.state not in TERMINAL:
            raise IllegalMove("finish", f"{run.state} (it waits for an event; use start() and signal())")
        return run

    def _checked(self, workflow: Workflow | Definition) -> Definition:
        if not isinstance(workflow, Workflow | Definition):
            # What a verb gives that is to be ended by another one: the workflow that it belongs to says which.
            if isinstance(written := getattr(workflow, "_flow", None), Workflow):
                written.build()
            raise TypeError(f"Expected a Workflow or a Definition, got {shown(workflow)}.")
        definition = workflow.build() if isinstance(workflow, Workflow) else workflow
        check(definition, self.engine.registry)
        return definition

    def _check_stubs(self, started: Definition) -> None:
        """A stub that replaces nothing is a mistyped one."""
        used = {task.type for one in (started, *self.engine.definitions.values()) for _, task in walk(one.do) if isinstance(task, Step)}
        unused = sorted(self._made_up - used)
        if unused:
            known = sorted(used | (set(self.engine.registry.executors) - self._made_up))
            raise Invalid([Fault("", f'No step has the type "{type}".', _meant(type, known)) for type in unused], "stubs")


def _meant(type: str, known: list[str]) -> str:
    """Types are often named in full, `order.ship`, and their functions, `ship`, are what one remembers."""
    ends_so = next((one for one in known if one.rsplit(".", 1)[-1] == type), None)
    return f'Did you mean "{ends_so}"?' if ends_so else suggestion_for(type, known, listed=False)
