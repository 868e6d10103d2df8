"""The plain part of jq, evaluated here: paths, literals, constructors, arithmetic, comparisons, a few functions.

With jq's meaning, and without writing the data as JSON for jq and reading what it gives: what is long is handed on, not copied.
An expression that holds anything else is left to jq, and so is every value that is out of the ordinary (`NotHere`): an error, a
number that jq would round, a comparison of unlike things. So there is one meaning, and jq's words where something is wrong.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.definition import paths
from orchestrator.errors import ExpressionError


class NotHere(Exception):
    """Ask jq."""


class Scope:
    """The named values, and how many steps an evaluation may still take: what loops in loops is left to jq, which is watched."""

    __slots__ = ("left", "named")

    def __init__(self, named: Mapping[str, Any]) -> None:
        self.named = named
        self.left = MOST_STEPS

    def __contains__(self, name: str) -> bool:
        return name in self.named

    def __getitem__(self, name: str) -> Any:
        return self.named[name]

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise NotHere


class _Bound(Scope):
    """With one more name, inside of `… as $name | …`."""

    __slots__ = ("name", "outer", "value")

    def __init__(self, outer: Scope, name: str, value: Any) -> None:
        self.outer = outer
        self.name = name
        self.value = value

    def __contains__(self, name: str) -> bool:
        return name == self.name or name in self.outer

    def __getitem__(self, name: str) -> Any:
        return self.value if name == self.name else self.outer[name]

    def spend(self, steps: int) -> None:
        self.outer.spend(steps)


Evaluator = Callable[[Any, Scope], Any]


MERGED = "_merged"
CHANGED = "_changed"
LONGEST = 4000
MOST_BRACKETS = 100
MOST_STEPS = 100_000
MOST_COMPARED = 1_000
LARGEST_TEXT = 1024 * 1024
LARGEST_LIST = 1_000_000
_SAFE = 2**53


@functools.lru_cache(maxsize=8192)
def compiled(source: str) -> Evaluator | None:
    """The evaluator of an expression; None when it is not plain."""
    if len(source) > LONGEST or sum(map(source.count, "([{")) > MOST_BRACKETS:
        return None
    try:
        parser = _Parser(source)
        made = parser.pipe()
        parser.end()
    except (_NotPlain, RecursionError):
        return None
    return made


def value(evaluator: Evaluator, data: Any, named: Mapping[str, Any]) -> Any:
    """What jq would give; raises `NotHere` where that is not certain."""
    try:
        return evaluator(data, Scope(named))
    except RecursionError:
        raise NotHere from None


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _NotPlain(Exception):
    pass


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)
    | (?P<field>\.[A-Za-z_]\w*)
    | (?P<name>\$[A-Za-z_]\w*)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<sign>\.\.|//|==|!=|<=|>=|[.|,;:()\[\]{}<>+*/-])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_INTERPOLATED = re.compile(r"\\\(([^()\"\\]*)\)")
_KEYWORDS = frozenset(
    ("and", "or", "if", "then", "elif", "else", "end", "as", "def", "reduce", "foreach", "try", "catch", "label", "import", "include")
)
_OWN_NAMES = frozenset({"$ENV", "$__loc__", "$__prog_args"})


class _Parser:
    """jq's grammar, less what is not plain. Lowest first: `|`, `//`, `or`, `and`, comparisons, `+ -`, `* /`."""

    def __init__(self, source: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while True:
            found = _TOKEN.match(source, at)
            if found is None:
                raise _NotPlain
            kind = str(found.lastgroup)
            self.tokens.append((kind, found[kind]))
            if kind == "end":
                break
            at = found.end()
        self.at = 0
        self.begun: Evaluator | None = None
        """A term that was read to see what it is, and that an operation begins with."""

    # tokens

    def peek(self) -> str:
        kind, text = self.tokens[self.at]
        return text if kind in ("sign", "word") else kind

    def take(self, expected: str | None = None) -> str:
        if (expected is not None and self.peek() != expected) or self.tokens[self.at][0] == "end":
            raise _NotPlain
        self.at += 1
        return self.tokens[self.at - 1][1]

    def met(self, text: str) -> bool:
        if self.tokens[self.at][0] in ("sign", "word") and self.peek() == text:
            self.at += 1
            return True
        return False

    def end(self) -> None:
        if self.tokens[self.at][0] != "end":
            raise _NotPlain

    # operators

    def pipe(self) -> Evaluator:
        left = self.otherwise()
        if self.met("|"):
            right = self.pipe()
            return lambda data, scope: right(left(data, scope), scope)
        return left

    def otherwise(self) -> Evaluator:
        left = self.either()
        if self.met("//"):
            return _otherwise(left, self.otherwise())
        return left

    def either(self) -> Evaluator:
        left = self.both()
        while self.met("or"):
            left = _either(left, self.both())
        return left

    def both(self) -> Evaluator:
        left = self.compared()
        while self.met("and"):
            left = _both(left, self.compared())
        return left

    def compared(self) -> Evaluator:
        left = self.sum()
        for sign in ("==", "!=", "<=", ">=", "<", ">"):
            if self.met(sign):
                return _compared(sign, left, self.sum())
        return left

    def sum(self) -> Evaluator:
        left = self.product()
        while True:
            if self.met("+"):
                left = _operated(_plus, left, self.product())
            elif self.met("-"):
                left = _operated(_minus, left, self.product())
            else:
                return left

    def product(self) -> Evaluator:
        left = self.negated()
        while True:
            if self.met("*"):
                left = _operated(_times, left, self.negated())
            elif self.met("/"):
                left = _operated(_divided, left, self.negated())
            else:
                return left

    def negated(self) -> Evaluator:
        if self.begun is None and self.met("-"):
            inner = self.negated()
            return lambda data, scope: _minus(0, _number(inner(data, scope)))
        return self.postfix()

    # terms

    def postfix(self) -> Evaluator:
        if self.begun is not None:
            made, self.begun = self.begun, None
            return self.bound(made)
        if self.met("reduce"):
            return self.reduction()
        made, iterates = self.path()
        if iterates:
            raise _NotPlain
        return self.bound(made)

    def bound(self, made: Evaluator) -> Evaluator:
        if self.met("as"):
            name = self.new_name()
            self.take("|")
            body = self.pipe()
            return lambda data, scope: body(data, _Bound(scope, name, made(data, scope)))
        return made

    def new_name(self) -> str:
        kind, text = self.tokens[self.at]
        if kind != "name" or text in _OWN_NAMES:
            raise _NotPlain
        self.at += 1
        return text[1:]

    def reduction(self) -> Evaluator:
        source, iterates = self.path()
        if not iterates:
            raise _NotPlain
        self.take("as")
        name = self.new_name()
        self.take("(")
        first = self.pipe()
        self.take(";")
        following = self.pipe()
        self.take(")")
        return _reduced(source, name, first, following)

    def path(self) -> tuple[Evaluator, bool]:
        """A term with its keys; and whether `[]` ends it, which gives each of its items."""
        made: Evaluator = _identity if self.starts_with_all() else self.term()
        while True:
            kind, text = self.tokens[self.at]
            following = self.tokens[self.at + 1] if kind == "sign" else ("", "")
            if kind == "field":
                self.at += 1
                made = _field(made, text[1:])
            elif kind == "sign" and text == "." and following[0] == "text":
                self.at += 1
                made = _field(made, self.key())
            elif kind == "sign" and (text == "[" or (text == "." and following == ("sign", "["))):
                self.at += text == "."
                if self.tokens[self.at + 1] == ("sign", "]"):
                    self.at += 2
                    return made, True
                made = self.index(made)
            else:
                return made, False

    def starts_with_all(self) -> bool:
        if self.tokens[self.at : self.at + 3] != [("sign", "."), ("sign", "["), ("sign", "]")]:
            return False
        self.at += 1
        return True

    def each(self) -> Evaluator:
        """What is done with each item of a list: steps, of which `select` may leave the item out."""
        steps: list[Evaluator] = []
        while True:
            if self.tokens[self.at : self.at + 2] == [("word", "select"), ("sign", "(")]:
                self.at += 2
                steps.append(_selected(self.pipe()))
                self.take(")")
            else:
                steps.append(self.otherwise())
            if not self.met("|"):
                return steps[0] if len(steps) == 1 else _in_steps(steps)

    def index(self, inner: Evaluator) -> Evaluator:
        self.take("[")
        if self.met(":"):
            last = self.pipe()
            self.take("]")
            return _sliced(inner, None, last)
        if self.peek() == "]":
            raise _NotPlain
        key = self.pipe()
        if self.met(":"):
            last_key = None if self.peek() == "]" else self.pipe()
            self.take("]")
            return _sliced(inner, key, last_key)
        self.take("]")
        return _indexed(inner, key)

    def term(self) -> Evaluator:
        kind, text = self.tokens[self.at]
        if kind == "number":
            self.at += 1
            return _constant(_literal(text))
        if kind == "text":
            return self.text()
        if kind == "name":
            return self.name()
        if kind == "field":
            self.at += 1
            return _field(_identity, text[1:])
        if kind == "word":
            return self.word()
        if self.met("."):
            if self.tokens[self.at][0] == "text":
                return _field(_identity, self.key())
            return self.index(_identity) if self.peek() == "[" else _identity
        if self.met("("):
            made = self.pipe()
            self.take(")")
            return made
        if self.met("["):
            return self.list()
        if self.met("{"):
            return self.object()
        raise _NotPlain

    def key(self) -> str:
        text = self.take()
        if "\\(" in text:
            raise _NotPlain
        return _text(text)

    def text(self) -> Evaluator:
        text = self.take()
        if "\\(" not in text:
            return _constant(_text(text))
        if "\\\\" in text:
            raise _NotPlain  # what is escaped there is not easily seen
        parts = _INTERPOLATED.split(text[1:-1])
        if any("\\(" in part for part in parts[::2]):
            raise _NotPlain
        fixed = [_text(f'"{part}"') for part in parts[::2]]
        filled = [_whole(part) for part in parts[1::2]]
        return lambda data, scope: _joined(fixed, [part(data, scope) for part in filled])

    def name(self) -> Evaluator:
        name = self.take()
        if name in _OWN_NAMES:
            raise _NotPlain
        keys: list[paths.Key] = []
        while self.tokens[self.at][0] == "field":
            keys.append(self.take()[1:])
        return _named(name[1:], tuple(keys))

    def word(self) -> Evaluator:
        word = self.take()
        if word in _CONSTANTS:
            return _constant(_CONSTANTS[word])
        if word == "if":
            return self.choice()
        if self.peek() == "(":
            self.take("(")
            if word in _WITH_TWO:
                left = self.pipe()
                self.take(";")
                right = self.pipe()
                self.take(")")
                operation = _WITH_TWO[word]
                return lambda data, scope: operation(data, left(data, scope), right(data, scope))
            if word not in _WITH_ONE:
                raise _NotPlain
            inner = self.each() if word == "map" else self.pipe()
            self.take(")")
            return _WITH_ONE[word](inner)
        if word in _FUNCTIONS:
            function = _FUNCTIONS[word]
            return lambda data, scope: function(data)
        raise _NotPlain

    def choice(self) -> Evaluator:
        condition = self.pipe()
        self.take("then")
        then = self.pipe()
        otherwise: Evaluator = _identity
        if self.met("elif"):
            return _chosen(condition, then, self.choice())
        if self.met("else"):
            otherwise = self.pipe()
        self.take("end")
        return _chosen(condition, then, otherwise)

    def list(self) -> Evaluator:
        if self.met("]"):
            return lambda data, scope: []
        if self.tokens[self.at : self.at + 2] == [("word", "range"), ("sign", "(")]:
            self.at += 2
            count = self.pipe()
            self.take(")")
            self.take("]")
            return lambda data, scope: _range(count(data, scope))
        if self.peek() not in ("-", "reduce"):
            made, iterates = self.path()
            if iterates:
                each = self.each() if self.met("|") else _identity
                self.take("]")
                mapped = _mapped(each)
                return lambda data, scope: mapped(made(data, scope), scope)
            self.begun = made
        items = [self.otherwise()]
        while self.met(","):
            items.append(self.otherwise())
        if self.peek() == "|":
            if len(items) > 1:
                raise _NotPlain
            self.take("|")
            first, rest = items[0], self.pipe()
            items = [lambda data, scope: rest(first(data, scope), scope)]
        self.take("]")
        return lambda data, scope: [item(data, scope) for item in items]

    def object(self) -> Evaluator:
        entries: list[tuple[Evaluator, Evaluator]] = []
        while not self.met("}"):
            entries.append(self.entry())
            if not self.met(","):
                self.take("}")
                break
            if self.peek() == "}":
                raise _NotPlain
        return lambda data, scope: {_name_of(key(data, scope)): item(data, scope) for key, item in entries}

    def entry(self) -> tuple[Evaluator, Evaluator]:
        kind, text = self.tokens[self.at]
        if kind == "name":
            if text in _OWN_NAMES:
                raise _NotPlain
            self.at += 1
            return _constant(text[1:]), _named(text[1:], ())
        if kind == "word":
            self.at += 1
            key: Evaluator = _constant(text)
            short: Evaluator | None = _field(_identity, text)
        elif kind == "text":
            name = self.key()
            key, short = _constant(name), _field(_identity, name)
        elif self.met("("):
            key, short = self.pipe(), None
            self.take(")")
        else:
            raise _NotPlain
        if not self.met(":"):
            if short is None:
                raise _NotPlain
            return key, short
        item = self.otherwise()
        while self.met("|"):
            item = _piped(item, self.otherwise())
        return key, item


_CONSTANTS: dict[str, Any] = {"null": None, "true": True, "false": False}


def _literal(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotPlain
    if number.is_integer():
        if abs(number) >= _SAFE:
            raise _NotPlain
        return int(number)
    return number


def _text(literal: str) -> str:
    try:
        found: str = json.loads(literal, strict=False)
        found.encode()
    except ValueError:
        raise _NotPlain from None
    return found


def _whole(source: str) -> Evaluator:
    parser = _Parser(source)
    made = parser.pipe()
    parser.end()
    return made


# ── evaluating ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _identity(data: Any, scope: Scope) -> Any:
    return data


def _constant(constant: Any) -> Evaluator:
    return lambda data, scope: constant


def _piped(left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda data, scope: right(left(data, scope), scope)


def _named(name: str, keys: tuple[paths.Key, ...]) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> Any:
        if name not in scope:
            raise NotHere
        found = _followed(scope[name], keys)
        # Some of what is named is made when it is asked for: here, all of it is.
        return {key: found[key] for key in found} if isinstance(found, dict) and type(found) is not dict else found

    return evaluate


def _followed(found: Any, keys: tuple[paths.Key, ...]) -> Any:
    try:
        return paths.followed(found, keys)
    except ExpressionError as error:
        if type(error) is ExpressionError:
            raise NotHere from None
        raise


def _field(inner: Evaluator, name: str) -> Evaluator:
    if inner is _identity:

        def direct(data: Any, scope: Scope) -> Any:
            if isinstance(data, dict):
                return data.get(name)
            if data is None:
                return None
            raise NotHere

        return direct

    def evaluate(data: Any, scope: Scope) -> Any:
        held = inner(data, scope)
        if isinstance(held, dict):
            return held.get(name)
        if held is None:
            return None
        raise NotHere

    return evaluate


def _indexed(inner: Evaluator, key: Evaluator) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> Any:
        held, at = inner(data, scope), key(data, scope)
        if isinstance(at, str) and (held is None or isinstance(held, dict)):
            return None if held is None else held.get(at)
        if isinstance(at, int) and not isinstance(at, bool) and (held is None or isinstance(held, list | tuple)):
            return held[at] if held is not None and -len(held) <= at < len(held) else None
        raise NotHere

    return evaluate


def _sliced(inner: Evaluator, first: Evaluator | None, last: Evaluator | None) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> Any:
        held = inner(data, scope)
        bounds = [None if bound is None else bound(data, scope) for bound in (first, last)]
        if not all(bound is None or (isinstance(bound, int) and not isinstance(bound, bool)) for bound in bounds):
            raise NotHere
        if held is None or isinstance(held, str | list):
            return None if held is None else held[bounds[0] : bounds[1]]
        raise NotHere

    return evaluate


def _truth(found: Any) -> bool:
    return found is not None and found is not False


def _otherwise(left: Evaluator, right: Evaluator) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> Any:
        found = left(data, scope)
        return found if _truth(found) else right(data, scope)

    return evaluate


def _either(left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda data, scope: _truth(left(data, scope)) or _truth(right(data, scope))


def _both(left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda data, scope: _truth(left(data, scope)) and _truth(right(data, scope))


def _chosen(condition: Evaluator, then: Evaluator, otherwise: Evaluator) -> Evaluator:
    return lambda data, scope: then(data, scope) if _truth(condition(data, scope)) else otherwise(data, scope)


def _operated(operator: Callable[[Any, Any], Any], left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda data, scope: operator(left(data, scope), right(data, scope))


def _number(found: Any) -> int | float:
    if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) >= _SAFE:
        raise NotHere
    return found


def _exactly(found: int | float) -> int | float:
    """As jq writes it: whole where it is whole, and none that could have been rounded."""
    if isinstance(found, float):
        if not math.isfinite(found):
            raise NotHere
        if not found.is_integer():
            return found
        if found == 0:
            raise NotHere  # it may be -0
        found = int(found)
    if abs(found) >= _SAFE:
        raise NotHere
    return found


def _plus(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > LARGEST_TEXT:
            raise NotHere
        return left + right
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) + len(right) > LARGEST_LIST:
            raise NotHere
        return [*left, *right]
    if isinstance(left, dict) and isinstance(right, dict):
        return {**left, **right}
    return _exactly(_number(left) + _number(right))


def _minus(left: Any, right: Any) -> Any:
    return _exactly(_number(left) - _number(right))


def _times(left: Any, right: Any) -> Any:
    found = _number(left) * _number(right)
    if found == 0 and (left < 0 or right < 0):
        raise NotHere
    return _exactly(found)


def _divided(left: Any, right: Any) -> Any:
    if _number(right) == 0 or _number(left) == 0:
        raise NotHere
    return _exactly(left / right)


def _same(left: Any, right: Any) -> bool:
    """jq's equality: numbers are equal as numbers, and true is not 1."""
    if left is right:
        return True
    if isinstance(left, dict | list | tuple) and len(left) > MOST_COMPARED:
        raise NotHere
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(item, right[key]) for key, item in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return _number(left) == _number(right)
    return type(left) is type(right) and bool(left == right)


def _compared(sign: str, left: Evaluator, right: Evaluator) -> Evaluator:
    if sign in ("==", "!="):
        wanted = sign == "=="
        return lambda data, scope: _same(left(data, scope), right(data, scope)) is wanted

    def evaluate(data: Any, scope: Scope) -> bool:
        one, other = left(data, scope), right(data, scope)
        if not (isinstance(one, str) and isinstance(other, str)):
            one, other = _number(one), _number(other)
        if sign == "<":
            return bool(one < other)
        if sign == "<=":
            return bool(one <= other)
        return bool(one > other) if sign == ">" else bool(one >= other)

    return evaluate


def _joined(fixed: list[str], filled: list[Any]) -> str:
    parts = [fixed[0]]
    for item, text in zip(filled, fixed[1:], strict=True):
        parts += [_shown(item), text]
    made = "".join(parts)
    if len(made) > LARGEST_TEXT:
        raise NotHere
    return made


def _shown(item: Any) -> str:
    if isinstance(item, str):
        return item
    if item is None or isinstance(item, bool):
        return "null" if item is None else "true" if item else "false"
    if isinstance(item, int) and abs(item) < _SAFE:
        return str(item)
    raise NotHere


def _name_of(key: Any) -> str:
    if not isinstance(key, str):
        raise NotHere
    return key


# ── functions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _length(data: Any) -> int:
    if data is None:
        return 0
    if isinstance(data, str | list | tuple | dict):
        return len(data)
    raise NotHere


def _first(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return data[0] if data else None
    raise NotHere


def _last(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return data[-1] if data else None
    raise NotHere


def _keys(data: Any) -> list[str]:
    if isinstance(data, dict):
        return sorted(data)
    raise NotHere


def _type(data: Any) -> str:
    if data is None or isinstance(data, bool):
        return "null" if data is None else "boolean"
    if isinstance(data, str):
        return "string"
    if isinstance(data, int | float):
        return "number"
    return "object" if isinstance(data, dict) else "array"


def _reversed(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return list(data[::-1])
    raise NotHere


def _added(data: Any) -> Any:
    if not isinstance(data, list | tuple):
        raise NotHere
    if len(data) > 1 and all(isinstance(item, list | tuple) for item in data):
        # One after another, each sum would be a copy of the one before.
        if sum(map(len, data)) > LARGEST_LIST:
            raise NotHere
        return [item for part in data for item in part]
    if len(data) > 100 and not all(isinstance(item, int | float) for item in data):
        raise NotHere
    return functools.reduce(_plus, data, None)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "length": _length,
    "not": lambda data: not _truth(data),
    "first": _first,
    "last": _last,
    "keys": _keys,
    "type": _type,
    "reverse": _reversed,
    "add": _added,
    "tostring": lambda data: _shown(data),
    "any": lambda data: any(map(_truth, _items(data))),
    "all": lambda data: all(map(_truth, _items(data))),
}


def _range(count: Any) -> list[int]:
    if isinstance(count, bool) or not isinstance(count, int) or count > LARGEST_LIST:
        raise NotHere
    return list(range(count))


def _items(data: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise NotHere
    return data


_LEFT_OUT = object()


def _selected(condition: Evaluator) -> Evaluator:
    return lambda data, scope: data if _truth(condition(data, scope)) else _LEFT_OUT


def _in_steps(steps: list[Evaluator]) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> Any:
        for step in steps:
            data = step(data, scope)
            if data is _LEFT_OUT:
                break
        return data

    return evaluate


def _each_of(data: Any, scope: Scope) -> list[Any] | tuple[Any, ...]:
    items = _items(data)
    scope.spend(len(items))
    return items


def _mapped(each: Evaluator) -> Evaluator:
    if each is _identity:
        return lambda data, scope: list(_items(data))
    return lambda data, scope: [made for item in _each_of(data, scope) if (made := each(item, scope)) is not _LEFT_OUT]


def _reduced(source: Evaluator, name: str, first: Evaluator, following: Evaluator) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> Any:
        found = first(data, scope)
        for item in _each_of(source(data, scope), scope):
            found = following(found, _Bound(scope, name, item))
        return found

    return evaluate


def _merged(under: Any, over: Any) -> Any:
    """What `programs.HELPERS` says in jq: objects key by key, lists joined with what they lack, anything else replaced."""
    if under is over:
        return under
    if isinstance(under, dict) and isinstance(over, dict):
        return {**under, **{key: _merged(under[key], item) if key in under else item for key, item in over.items()}}
    if isinstance(under, list | tuple) and isinstance(over, list | tuple):
        if len(under) * len(over) > MOST_COMPARED:
            raise NotHere
        return [*under, *(item for item in over if not any(_same(item, known) for known in under))]
    return under if over is None else over


def _changed(data: Any, name: Any, before: Any) -> Any:
    if not (isinstance(data, dict) and isinstance(name, str) and isinstance(before, dict)):
        raise NotHere
    return {key: item for key, item in data.items() if key != name and not _same(item, before.get(key))}


def _any(each: Evaluator) -> Evaluator:
    return lambda data, scope: any(_truth(each(item, scope)) for item in _each_of(data, scope))


def _all(each: Evaluator) -> Evaluator:
    return lambda data, scope: all(_truth(each(item, scope)) for item in _each_of(data, scope))


def _has(key: Evaluator) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> bool:
        name = key(data, scope)
        if isinstance(data, dict) and isinstance(name, str):
            return name in data
        raise NotHere

    return evaluate


def _begins(part: Evaluator) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> bool:
        wanted = part(data, scope)
        if isinstance(data, str) and isinstance(wanted, str):
            return data.startswith(wanted)
        raise NotHere

    return evaluate


def _ends(part: Evaluator) -> Evaluator:
    def evaluate(data: Any, scope: Scope) -> bool:
        wanted = part(data, scope)
        if isinstance(data, str) and isinstance(wanted, str):
            return data.endswith(wanted)
        raise NotHere

    return evaluate


_WITH_ONE: dict[str, Callable[[Evaluator], Evaluator]] = {
    "map": _mapped,
    "any": _any,
    "all": _all,
    "has": _has,
    "startswith": _begins,
    "endswith": _ends,
}


def _set_at(data: Any, path: Any, value: Any) -> Any:
    if not isinstance(path, list) or not all(isinstance(key, str) for key in path):
        raise NotHere
    if not path:
        return value
    if data is not None and not isinstance(data, dict):
        raise NotHere
    held = data or {}
    return {**held, path[0]: _set_at(held.get(path[0]), path[1:], value)}


_WITH_TWO: dict[str, Callable[[Any, Any, Any], Any]] = {
    MERGED: lambda data, under, over: _merged(under, over),
    CHANGED: _changed,
    "setpath": _set_at,
}
