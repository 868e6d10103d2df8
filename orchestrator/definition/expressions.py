"""What an author lets the engine compute: jq expressions, templates, registered functions, and plain merging.

An expression sees data and a scope of named values, and nothing else: no environment, no file, no clock it could
rely on. One that may give another value the next time says so (`is_stable` is false) and its value is recorded.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.definition import native, paths, programs
from orchestrator.definition.codec import plain, tagged
from orchestrator.definition.parsing import json_faults
from orchestrator.errors import ExpressionError, MissingCode, MissingSecret, OrchestratorError, text_of
from orchestrator.nesting import DEEPEST, is_deep

Scope = Mapping[str, Any]


class Lazy:
    """A named value that is made when it is asked for."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class Names(dict[str, Any]):
    """Named values, some of them lazy."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value.make() if type(value) is Lazy else value

    def get(self, key: str, default: Any = None) -> Any:
        value = super().get(key, default)
        return value.make() if type(value) is Lazy else value


# ── jq ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRETS = ("secrets", "secret", "SECRETS", "SECRET")
_NAME = re.compile(r"\$([A-Za-z_]\w*)")
_SECRET = re.compile(r"""\$(?:secrets?|SECRETS?)\s*(?:\|\s*)?(?:\.\s*([A-Za-z_]\w*)|\.?\s*\[?\s*"([^"\\]*)")""")


@functools.lru_cache(maxsize=4096)
def names_in(source: str) -> frozenset[str]:
    """The named values an expression mentions: no other is handed to it."""
    return frozenset(_NAME.findall(source))


@functools.lru_cache(maxsize=4096)
def secrets_in(source: str) -> frozenset[str]:
    """The secrets an expression asks for by name."""
    return frozenset(one or other for one, other in _SECRET.findall(source))


class Secrets(dict[str, Any]):
    """The secrets that a definition declares: whoever asks for another one may not have it."""

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            raise MissingSecret(f"The secret {key!r} is not declared in use.secrets.")
        return super().get(key, default)


def jq_value(source: str, data: Any, scope: Scope) -> Any:
    """What a jq expression gives: its output; null when there is none; the list of them when there are several."""
    found = jq_outputs(source, data, scope)
    return found[0] if len(found) == 1 else found or None


def jq_outputs(source: str, data: Any, scope: Scope) -> list[Any]:
    path = paths.parsed(source)
    if path is not None:
        name, keys = path
        if name is None or name in scope:
            return [told(paths.followed(data if name is None else scope[name], keys))]
    for secret in secrets_in(source):
        held = next((scope[name] for name in SECRETS if name in scope), None)
        if isinstance(held, dict):
            held.get(secret)
    plain_one = native.compiled(source)
    if plain_one is not None:
        try:
            return [native.value(plain_one, data, scope)]
        except native.NotHere:
            pass
    wanted = names_in(source)
    names = tuple(sorted(name for name in wanted if name in scope))
    return programs.outputs(source, names, [data, *(told(scope[name]) for name in names)])


def told(value: Any) -> Any:
    """With everything lazy in it made."""
    return {key: value[key] for key in value} if isinstance(value, Names) else value


def check_jq_together(wanted: Iterable[tuple[str, tuple[str, ...]]]) -> None:
    """What `check_jq` will be asked soon, at the price of one."""
    pairs = [(source, tuple(sorted(names_in(source) & frozenset(names)))) for source, names in wanted if paths.parsed(source) is None]
    programs.check_together(pairs)


def check_jq(source: str, names: tuple[str, ...] = ()) -> None:
    """Raises `ExpressionError` when the text is no jq expression over these names."""
    if paths.parsed(source) is None or not names_in(source) <= frozenset(names):
        programs.check(source, tuple(sorted(names_in(source) & frozenset(names))))


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
        return programs.is_stable(self.source)


@tagged("function")
@dataclass(frozen=True, slots=True)
class Function:
    """A registered Python function of (data) or (data, scope)."""

    name: str
    is_stable = False


@tagged("template")
@dataclass(frozen=True, slots=True)
class Template:
    """Any JSON in which a string that is wholly `${ … }` stands for the value of that jq expression.

    `loose`: every string is tried as an expression, and stands for itself when it is none.
    """

    value: Any
    loose: bool = False

    @property
    def is_stable(self) -> bool:
        return all(programs.is_stable(source) for source in sources(self.value, loose=self.loose))

    @property
    def is_constant(self) -> bool:
        return not any(True for _ in sources(self.value, loose=self.loose))


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


def sources(value: Any, *, loose: bool = False) -> Iterator[str]:
    """Every jq expression inside a template."""
    if isinstance(value, str):
        source = embedded(value)
        if source is not None or loose:
            yield value if source is None else source
    elif isinstance(value, dict):
        for item in value.values():
            yield from sources(item, loose=loose)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from sources(item, loose=loose)


def placed(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every jq expression inside a template, with the JSON pointer at which it stands there."""
    if isinstance(value, str):
        source = embedded(value)
        if source is not None:
            yield place, source
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from placed(item, f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from placed(item, f"{place}/{number}")


@functools.lru_cache(maxsize=4096)
def _mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def mentions(expression: Expression, word: str) -> bool:
    """Whether the text of an expression holds a word."""
    match expression:
        case Jq(source):
            return _mentions(source, word)
        case Template(value, loose):
            return any(_mentions(source, word) for source in sources(value, loose=loose))
    return False


def evaluate(expression: Expression, data: Any, scope: Scope) -> Any:
    match expression:
        case Jq(source):
            return jq_value(source, data, scope)
        case Template(value, loose):
            return _filled(value, data, scope, loose=loose)
        case Function(name):
            return _call(name, data, scope)
        case Merge(key):
            return merged(scope.get("input"), data, key)
        case Bind(names):
            under = data if isinstance(data, dict) else {}
            return {**under, **{name: scope[name] for name in names if name in scope}}


def is_plain(expression: Expression) -> bool:
    """Whether it is computed here, by operations whose meaning does not change."""
    match expression:
        case Jq(source):
            return _is_plain(source)
        case Template(value, loose):
            return not loose and all(map(_is_plain, sources(value)))
    return False


def _is_plain(source: str) -> bool:
    return paths.parsed(source) is not None or native.compiled(source) is not None


def condition(expression: Expression, data: Any, scope: Scope) -> bool:
    """Whether a condition holds. Of several outputs nobody can tell."""
    if isinstance(expression, Jq):
        found = jq_outputs(expression.source, data, scope)
        if len(found) > 1:
            said = programs.shortened(expression.source)
            raise ExpressionError(f"jq: the condition '{said}' gives {len(found):,} values; write any(…) or all(…)")
        return bool(found) and is_true(found[0])
    return is_true(evaluate(expression, data, scope))


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


def _filled(value: Any, data: Any, scope: Scope, *, loose: bool) -> Any:
    if isinstance(value, str):
        source = embedded(value)
        if source is not None:
            return jq_value(source, data, scope)
        return _loosely(value, data, scope) if loose else value
    if isinstance(value, dict):
        return {key: _filled(item, data, scope, loose=loose) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, data, scope, loose=loose) for item in value]
    return plain(value)


def _loosely(text: str, data: Any, scope: Scope) -> Any:
    try:
        return jq_value(text, data, scope)
    except ExpressionError:
        return text


def _call(name: str, data: Any, scope: Scope) -> Any:
    body = FUNCTIONS.get(name)
    if body is None:
        raise MissingCode("function", name)
    try:
        value = body(data, scope) if _takes_scope(body) else body(data)
    except OrchestratorError:
        raise
    except Exception as error:
        raise ExpressionError(f"{name}: {type(error).__name__}: {text_of(error)}") from error
    if fault := _unfit(value):
        raise ExpressionError(f"{name} gave what is not JSON: {fault}")
    return value


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _unfit(value: Any) -> str | None:
    """Why what a function gave cannot be kept. Looked at closely only where it cannot be written."""
    try:
        text = _encode(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        return str(next(json_faults(value), None) or error)
    return f"it is nested more than {DEEPEST} levels deep" if is_deep(value, text) else None
