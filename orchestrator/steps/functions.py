"""`@step`: a function becomes a step type. Its parameters are taken by name from the data, typed ones are validated.

    @step(retries=2, timeout="10s")
    def charge(order_id: int, amount: Decimal) -> dict: ...

    @charge.undo
    def refund(checkpoint): ...

The function stays callable as it was. `def` and `async def`; parameters may be pydantic models or dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, overload

import pydantic
import pydantic_core

from orchestrator.definition.durations import seconds
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Compensation
from orchestrator.errors import Fault, Invalid, Terminal
from orchestrator.steps import loops
from orchestrator.steps.registry import REGISTRY, Result, StepContext

Body = Callable[..., Any]


class InputError(Terminal):
    code = "validation"


class ResultError(Terminal):
    """What a step gave cannot be kept; it would give it again."""

    code = "runtime"


@dataclasses.dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    default: Any
    adapter: pydantic.TypeAdapter[Any] | None
    kind: str  # "context", "named", "whole" or "rest"


def _surroundings(body: Body) -> dict[str, Any]:
    """The local names around a nested function, so that annotations may use them."""
    if "<locals>" not in getattr(body, "__qualname__", ""):
        return {}
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None else {}


def _parameters(body: Body, around: dict[str, Any]) -> list[_Parameter]:
    try:
        hints = typing.get_type_hints(body, localns=around or None, include_extras=True)
    except NameError as error:
        raise TypeError(f"the annotations of step '{body.__qualname__}' cannot be read: {error}; import what they name") from None
    found = []
    signature = inspect.signature(body)
    plain = [p for p in signature.parameters.values() if hints.get(p.name) is not StepContext]
    for parameter in signature.parameters.values():
        hint = hints.get(parameter.name, Any)
        adapter = None if hint is Any else pydantic.TypeAdapter(hint)
        if hint is StepContext:
            found.append(_Parameter(parameter.name, None, None, "context"))
        elif parameter.kind is parameter.VAR_KEYWORD:
            found.append(_Parameter(parameter.name, None, None, "rest"))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif len(plain) == 1 and _is_model(hint):
            found.append(_Parameter(parameter.name, parameter.default, adapter, "whole"))
        else:
            found.append(_Parameter(parameter.name, parameter.default, adapter, "named"))
    return found


def _is_model(hint: Any) -> bool:
    return inspect.isclass(hint) and (issubclass(hint, pydantic.BaseModel) or dataclasses.is_dataclass(hint) or typing.is_typeddict(hint))


class Binding:
    """How a function is called with a step's data: by name, validated, every fault at once."""

    def __init__(self, body: Body, extras: tuple[str, ...] = ()) -> None:
        self.body = body
        self.extras = extras
        self.is_async = inspect.iscoroutinefunction(body)
        self._around = _surroundings(body)
        self._known: list[_Parameter] | None = None

    @property
    def parameters(self) -> list[_Parameter]:
        """Read when first needed: an annotation may name what is defined further down."""
        if self._known is None:
            self._known = _parameters(self.body, self._around)
        return self._known

    def call(self, context: StepContext) -> Any:
        arguments = self._arguments(context)
        if self.is_async:
            return loops.run(self.body(**arguments))
        return self.body(**arguments)

    def _arguments(self, context: StepContext) -> dict[str, Any]:
        parameters = self.parameters
        if not parameters:
            return {}
        payload = context.payload
        named = payload if isinstance(payload, dict) else {}
        arguments: dict[str, Any] = {}
        faults: list[Fault] = []
        for parameter in parameters:
            if parameter.kind == "context":
                arguments[parameter.name] = context
            elif parameter.kind == "rest":
                arguments.update({k: v for k, v in named.items() if k not in arguments})
            else:
                self._bind(parameter, payload, named, context, arguments, faults)
        if faults:
            raise InputError(str(Invalid(faults, f"input of step '{context.type}'")))
        return arguments

    def _bind(
        self, parameter: _Parameter, payload: Any, named: dict[str, Any], context: StepContext, into: dict[str, Any], faults: list[Fault]
    ) -> None:
        name = parameter.name
        has_default = parameter.default is not inspect.Parameter.empty
        if payload is None and has_default and name not in self.extras:
            return
        if parameter.kind == "whole":
            # Without any data a model is made of its defaults.
            value = {} if payload is None else payload
        elif name in self.extras:
            value = getattr(context, name)
        elif name in named:
            value = named[name]
        elif name in ("input", "data") or (len(self.parameters) == 1 and not isinstance(payload, dict)):
            value = payload
        elif has_default:
            return
        else:
            faults.append(Fault(name, "is required and not in the data"))
            return
        if parameter.adapter is not None:
            try:
                value = parameter.adapter.validate_python(value)
            except pydantic.ValidationError as error:
                for detail in error.errors():
                    place = ".".join([name, *(str(part) for part in detail["loc"])])
                    faults.append(Fault(place, detail["msg"]))
                return
        into[name] = value


def jsonable(value: Any) -> Any:
    """Models, dataclasses, dates, decimals … as JSON; what has no JSON form raises `Terminal`: the step would give it again."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if type(value) is dict and all(type(k) is str and (v is None or type(v) in (str, int, float, bool)) for k, v in value.items()):
        return value
    try:
        return pydantic_core.to_jsonable_python(value)
    except (pydantic_core.PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise ResultError(f"a step's result must be JSON: {error}") from None


class StepFunction:
    """A function that is also a step type, and a node for builders and graphs."""

    def __init__(
        self,
        body: Body,
        *,
        type: str | None = None,
        retries: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: Any = None,
        queue: str | None = None,
        isolate: bool = False,
        once: bool = False,
        breaker: str | None = None,
    ) -> None:
        functools.update_wrapper(self, body)
        self.body = body
        self.type = type or body.__name__
        self.retry = retry or (RetryPolicy(max_attempts=retries + 1) if retries is not None else None)
        self.timeout_s = None if timeout is None else seconds(timeout)
        self.queue = queue
        self.isolate = isolate
        self.once = once
        self.breaker = breaker
        self.compensation: Compensation | None = None
        self._binding = Binding(body)
        REGISTRY.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(*args, **kwargs)

    def execute(self, context: StepContext) -> Any:
        return self._binding.call(context)

    def undo(self, body: Body | None = None, *, retries: int | None = None, retry: RetryPolicy | None = None, timeout: Any = None) -> Any:
        """Registers what undoes this step. It may take `input`, `output`, `checkpoint` and a `StepContext`."""

        def register(body: Body) -> Body:
            self.compensation = Compensation(
                type=self.type,
                retry=retry or (RetryPolicy(max_attempts=retries + 1) if retries is not None else None),
                timeout_s=None if timeout is None else seconds(timeout),
            )
            REGISTRY.add_handler(FunctionCompensation(self.type, body))
            return body

        return register if body is None else register(body)


class FunctionCompensation:
    def __init__(self, type: str, body: Body) -> None:
        self.type = type
        self.body = body
        self._binding = Binding(body, extras=("input", "output", "checkpoint", "parameters"))

    def compensate(self, context: StepContext) -> Any:
        return self._binding.call(context)


@overload
def step(body: Body) -> StepFunction: ...
@overload
def step(
    *,
    type: str | None = None,
    retries: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: Any = None,
    queue: str | None = None,
    isolate: bool = False,
    once: bool = False,
    breaker: str | None = None,
) -> Callable[[Body], StepFunction]: ...
def step(body: Body | None = None, **options: Any) -> StepFunction | Callable[[Body], StepFunction]:
    """Makes a function a step type. `retries` are attempts after the first; `timeout` as "30s" or seconds; `breaker` names
    the circuit breaker of what it calls."""
    if body is not None:
        return StepFunction(body)
    return lambda body: StepFunction(body, **options)


__all__ = ["Binding", "InputError", "Result", "ResultError", "StepFunction", "jsonable", "step"]
