"""Which executor does which type of step, and which handler undoes it."""

from __future__ import annotations

import builtins
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from orchestrator.definition.parsing import Model, parse_as
from orchestrator.errors import Invalid, MissingCode, Terminal, Twin

logger = logging.getLogger("orchestrator.steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What a step knows of itself. `idempotency_key` is the same for every attempt: hand it to what you call."""

    instance_id: str
    workflow: str
    position: str
    name: str
    type: str
    input: Any
    parameters: Any
    attempt: int = 1
    deadline_s: float | None = None
    trace_id: str | None = None
    output: Any = None
    checkpoint: Any = None
    input_of_instance: Any = None
    literal: Any = None
    scope: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def idempotency_key(self) -> str:
        return f"{self.instance_id}:{self.position}"

    @property
    def payload(self) -> Any:
        """The parameters when the definition gives some, else the data that flows into the step."""
        return self.input if self.parameters is None else self.parameters

    def parameter(self, name: str, default: Any = None) -> Any:
        return self.parameters.get(name, default) if isinstance(self.parameters, dict) else default


@dataclass(frozen=True, slots=True)
class Result:
    """What a step gives: data for the steps after it, and what its own undoing will need to know."""

    data: Any = None
    checkpoint: Any = None
    success: bool = True
    error: str = ""


@dataclass(frozen=True, slots=True)
class After:
    """A step that is done only after so many seconds, without holding a worker meanwhile."""

    seconds: float
    result: Result = field(default_factory=Result)


M = TypeVar("M", bound=Model)


class InvalidParameters(Terminal):
    """What a step was given does not fit what it takes; trying again would not help."""

    code = "validation"


def given(context: StepContext, model: type[M]) -> M:
    """The step's parameters as its model says they must be. Raises `InvalidParameters` with every fault."""
    try:
        return parse_as(model, {} if context.parameters is None else context.parameters, what=f"parameters of step type {context.type!r}")
    except Invalid as error:
        raise InvalidParameters(str(error)) from None


class Executor(Protocol):
    """Does steps of its type. `parameters`, where it has one, is the model that documents' parameters are checked against."""

    type: str

    def execute(self, context: StepContext) -> Result | After | Any: ...


class CompensationHandler(Protocol):
    type: str

    def compensate(self, context: StepContext) -> Any: ...


E = TypeVar("E")


def _refuse_twin(what: str, name: str, held: Any, fresh: Any) -> None:
    """Two of one name: which one ran would depend on the order of imports. The same one again (a reload) takes its place."""
    if held is None or _identity(held) == _identity(fresh) or "<locals>" in _identity(fresh)[1]:
        return
    places = f"{_place(held)} and {_place(fresh)}"
    raise Twin(f'The {what} "{name}" is defined in two places: {places}. Give one of them another name (@step(type="...")).')


def _identity(one: Any) -> tuple[str, str]:
    body = getattr(one, "body", None) or type(one)
    return body.__module__, body.__qualname__


def _place(one: Any) -> str:
    body = getattr(one, "body", None) or type(one)
    try:
        return f"{inspect.getsourcefile(body)}:{inspect.getsourcelines(body)[1]}"
    except (OSError, TypeError):
        return f"{body.__module__}.{body.__qualname__}"


class Registry:
    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}
        self.handlers: dict[str, CompensationHandler] = {}
        self._loaded = False

    def add(self, executor: Executor) -> None:
        _refuse_twin("step type", executor.type, self.executors.get(executor.type), executor)
        self.executors[executor.type] = executor

    def add_handler(self, handler: CompensationHandler) -> None:
        _refuse_twin("compensation of step type", handler.type, self.handlers.get(handler.type), handler)
        self.handlers[handler.type] = handler

    def executor(self, type: str) -> Executor:
        """Raises `MissingCode` when this process does not have it: another one may."""
        self.load()
        found = self.executors.get(type)
        if found is None:
            raise MissingCode("step", type)
        return found

    def handler(self, type: str) -> CompensationHandler | None:
        self.load()
        return self.handlers.get(type)

    def has_handler(self, type: str) -> bool:
        return self.handler(type) is not None

    def parameters_of(self, type: str) -> builtins.type[Model] | None:
        """What steps of a type take, where that is said."""
        self.load()
        found = getattr(self.executors.get(type), "parameters", None)
        return found if isinstance(found, builtins.type) and issubclass(found, Model) else None

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(self.executors)

    def knows(self, type: str) -> bool:
        self.load()
        return type in self.executors

    def load(self) -> None:
        """Import the built-in families, then what other distributions offer."""
        if self._loaded:
            return
        self._loaded = True
        for family in ("orchestrator.steps", "orchestrator.compensations"):
            package = importlib.import_module(family)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{family}.{module.name}")
        for group in ("orchestrator.steps", "orchestrator.compensations"):
            for point in entry_points(group=group):
                try:
                    offered = point.load()
                except Exception:
                    logger.exception("entry point '%s' of group '%s' does not load", point.name, group)
                    continue
                (executor if group.endswith("steps") else compensation)(offered)


REGISTRY = Registry()


def executor(cls: Callable[[], E]) -> Callable[[], E]:
    """Registers an executor class; one object of it serves every step of its type."""
    REGISTRY.add(cls())  # type: ignore[arg-type]  # checked by the contract tests
    return cls


def compensation(cls: Callable[[], E]) -> Callable[[], E]:
    """Registers a compensation handler class."""
    REGISTRY.add_handler(cls())  # type: ignore[arg-type]
    return cls
