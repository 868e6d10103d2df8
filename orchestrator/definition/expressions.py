"""What an author lets the engine compute: jq expressions, templates, registered functions, and plain merging.

An expression sees data and a scope of named values, and nothing else: no environment, no file, no clock it could
rely on. One that may give another value the next time says so (`is_stable` is false) and its value is recorded.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jq

from orchestrator.definition.codec import plain, tagged
from orchestrator.errors import OrchestratorError

Scope = Mapping[str, Any]


class ExpressionError(OrchestratorError):
    code = "expression"


# ── jq ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Bound before the author's text: `$ENV` and `env` would show the worker's environment, `halt` ends silently with no
# output, `input` reads past the one document. Parentheses around the text make `import` a syntax error.
_GUARD = (
    '{} as $ENV | def env: {}; def halt: error("halt is not allowed"); def halt_error: halt; def halt_error($code): halt;'
    ' def input: error("input is not allowed"); def inputs: input; def debug: .; def debug($message): .;'
    " def input_filename: null; "
)
_UNSTABLE = re.compile(r"\b(now|localtime|strflocaltime|input_line_number|getpath_now)\b")


@functools.lru_cache(maxsize=4096)
def _program(source: str, names: tuple[str, ...]) -> Any:
    bound = ",".join(["$__i", *(f"${name}" for name in names)])
    try:
        # Alone first: a text that closes the wrapper's parenthesis and opens another is no expression by itself.
        jq.compile(source, args=dict.fromkeys(names))
        return jq.compile(f". as [{bound}] | $__i | {_GUARD} (\n{source}\n)")
    except ValueError as error:
        raise ExpressionError(f"jq: {_first_line(error)} in '{source}'") from None


def _first_line(error: ValueError) -> str:
    return str(error).split("\n", 1)[0]


def jq_value(source: str, data: Any, scope: Scope) -> Any:
    """The first output of a jq expression; none at all is null."""
    names = tuple(sorted(scope))
    try:
        return next(iter(_program(source, names).input_value([data, *(scope[name] for name in names)])), None)
    except ValueError as error:
        raise ExpressionError(f"jq: {_first_line(error)} in '{source}'") from None


def check_jq(source: str, names: tuple[str, ...] = ()) -> None:
    """Raises `ExpressionError` when the text is no jq expression over these names."""
    _program(source, tuple(sorted(names)))


# ── registered functions ────────────────────────────────────────────────────────────────────────────────────────────

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def function(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a Python function under a name that definitions may use as a condition or mapping."""

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS[name] = body
        return body

    return register


@functools.lru_cache(maxsize=4096)
def _takes_scope(body: Callable[..., Any]) -> bool:
    return len(inspect.signature(body).parameters) > 1


# ── the kinds of expression ─────────────────────────────────────────────────────────────────────────────────────────


@tagged("jq")
@dataclass(frozen=True, slots=True)
class Jq:
    source: str

    @property
    def is_stable(self) -> bool:
        return _UNSTABLE.search(self.source) is None


@tagged("function")
@dataclass(frozen=True, slots=True)
class Function:
    """A registered Python function of (data) or (data, scope)."""

    name: str
    is_stable = False


@tagged("template")
@dataclass(frozen=True, slots=True)
class Template:
    """Any JSON in which a string that is wholly `${ … }` stands for the value of that jq expression."""

    value: Any

    @property
    def is_stable(self) -> bool:
        return all(_UNSTABLE.search(source) is None for source in sources(self.value))

    @property
    def is_constant(self) -> bool:
        return not any(True for _ in sources(self.value))


@tagged("merge")
@dataclass(frozen=True, slots=True)
class Merge:
    """As an output: what the task gave, laid over what it was given. Anything but an object goes under `key`."""

    key: str
    is_stable = True


@tagged("bind")
@dataclass(frozen=True, slots=True)
class Bind:
    """The data with some named values of the scope laid into it: a loop's item, for steps that take it by name."""

    names: tuple[str, ...]
    is_stable = True


Expression = Jq | Function | Template | Merge | Bind

_WHOLE = re.compile(r"\s*\$\{(.+)\}\s*", re.DOTALL)


def embedded(text: str) -> str | None:
    """The jq inside a string that is wholly `${ … }`."""
    found = _WHOLE.fullmatch(text)
    return found.group(1).strip() if found else None


def sources(value: Any) -> Any:
    """Every jq expression inside a template."""
    if isinstance(value, str):
        if (source := embedded(value)) is not None:
            yield source
    elif isinstance(value, dict):
        for item in value.values():
            yield from sources(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from sources(item)


def evaluate(expression: Expression, data: Any, scope: Scope) -> Any:
    match expression:
        case Jq(source):
            return jq_value(source, data, scope)
        case Template(value):
            return _filled(value, data, scope)
        case Function(name):
            return _call(name, data, scope)
        case Merge(key):
            return merged(scope.get("input"), data, key)
        case Bind(names):
            under = data if isinstance(data, dict) else {}
            return {**under, **{name: scope[name] for name in names if name in scope}}


def is_true(value: Any) -> bool:
    """jq's own truth: only false and null are not true."""
    return value is not None and value is not False


def merged(under: Any, over: Any, key: str) -> Any:
    base = under if isinstance(under, dict) else {}
    if over is None:
        return base if isinstance(under, dict) or under is None else under
    if isinstance(over, dict):
        return {**base, **over} if over else base
    return {**base, key: over}


def _filled(value: Any, data: Any, scope: Scope) -> Any:
    if isinstance(value, str):
        source = embedded(value)
        return value if source is None else jq_value(source, data, scope)
    if isinstance(value, dict):
        return {key: _filled(item, data, scope) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, data, scope) for item in value]
    return plain(value)


def _call(name: str, data: Any, scope: Scope) -> Any:
    body = FUNCTIONS.get(name)
    if body is None:
        raise ExpressionError(f"no function '{name}' is registered in this worker; import its module in ORCHESTRATOR_WORKFLOWS")
    try:
        return body(data, scope) if _takes_scope(body) else body(data)
    except OrchestratorError:
        raise
    except Exception as error:
        raise ExpressionError(f"{name}: {type(error).__name__}: {error}") from error
