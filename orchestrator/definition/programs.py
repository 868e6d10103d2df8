"""jq programs: compiled once, cut off from everything but their input, and kept from running away.

A program is *tame* when its text alone shows that it takes no longer than its input is long: no loops, no recursion, no
patterns, little nesting. Tame programs run here. All others, and their compiling, go to the warden when there is one
(`engine/warden.py`): another process with limits on time and memory. Hostile text can thus hurt nobody.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Protocol

import jq

from orchestrator import nesting
from orchestrator.definition import native
from orchestrator.errors import ExpressionError


class Warden(Protocol):
    """Runs a guarded program over values elsewhere; gives its outputs as the text of a list. Raises `ExpressionError`.

    Without a text it is only compiled, and nothing is given. `most`: no more outputs than that are asked for.
    """

    def run(self, guarded: str, alone: str, names: tuple[str, ...], text: str | None, most: int) -> str | None: ...


_warden: list[Warden | None] = [None]


def set_warden(warden: Warden | None) -> Warden | None:
    """Gives the one that watched until now, for whoever sets it back."""
    before, _warden[0] = _warden[0], warden
    return before


LONGEST = 65_536
DEEPEST = 128

# Bound before the author's text: `$ENV` and `env` would show the worker's environment, `halt` ends silently with no
# output, `input` reads past the one document. Parentheses around the text make `import` a syntax error.
_GUARD = (
    '{} as $ENV | def env: {}; def halt: error("halt is not allowed"); def halt_error: halt; def halt_error($code): halt;'
    ' def input: error("input is not allowed"); def inputs: input; def debug: .; def debug($message): .;'
    " def input_filename: null; def stderr: .; def get_search_list: []; "
)
# What expressions may use besides jq's own, where their text names it.
HELPERS = {
    # Objects key by key, lists joined with what they lack, anything else replaced.
    native.MERGED: (
        f'def {native.MERGED}($a; $b): if ($a | type) == "object" and ($b | type) == "object" then'
        f" reduce ($b | keys_unsorted[]) as $k ($a; .[$k] = (if $a | has($k) then {native.MERGED}($a[$k]; $b[$k]) else $b[$k] end))"
        ' elif ($a | type) == "array" and ($b | type) == "array" then $a + ($b - $a)'
        " elif $b == null then $a else $b end; "
    ),
    # What an object has beside a name, and what was before.
    native.CHANGED: f"def {native.CHANGED}($name; $before): del(.[$name]) | with_entries(select(.value != $before[.key])); ",
}
MOST_OUTPUTS = 10_000
_UNSTABLE = re.compile(r"\b(now|localtime|strflocaltime|input_line_number)\b")


@functools.lru_cache(maxsize=8192)
def is_stable(source: str) -> bool:
    """Whether the same input gives the same output, whenever and wherever it is computed."""
    return _UNSTABLE.search(source) is None


NOW = "now()"


@functools.lru_cache(maxsize=1024)
def _with_moment(source: str) -> str:
    found = [lexeme.group() for lexeme in _TOKEN.finditer(source)]
    for at in range(len(found) - 2):
        if found[at : at + 3] == ["now", "(", ")"] and found[at - 1 : at] != ["."]:
            found[at : at + 3] = ["(now | todate)", "", ""]
    return "".join(found)


def as_jq(source: str) -> str:
    """jq's own words for `now()`, with which an older system's documents ask for the moment, as RFC 3339."""
    return _with_moment(source) if NOW in source else source


def outputs(source: str, names: tuple[str, ...], values: list[Any]) -> list[Any]:
    """Every output over [data, *named values]."""
    source = as_jq(source)
    try:
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ExpressionError(f"jq: the data is not JSON: {error}") from None
    warden = _warden[0]
    if warden is None or is_tame(source):
        try:
            found = list(itertools.islice(_program(source, names).input_text(text), MOST_OUTPUTS + 1))
        except (ValueError, UnicodeError) as error:
            raise ExpressionError(f"jq: {_first_line(error)} in '{shortened(source)}'") from None
    else:
        refuse_monsters(source)
        given = warden.run(guarded(source, names), f"{helpers(source)}{source}", names, text, MOST_OUTPUTS + 1)
        try:
            found = [] if given is None else nesting.parse(given)
        except ValueError as error:
            raise ExpressionError(f"jq: the result {error} in '{shortened(source)}'") from None
    if len(found) > MOST_OUTPUTS:
        raise ExpressionError(f"jq: more than {MOST_OUTPUTS:,} values come out of '{shortened(source)}'; gather or limit them")
    return [_exact(one, text, source) for one in found]


def helpers(source: str) -> str:
    return "".join(text for name, text in HELPERS.items() if name in source)


_good: OrderedDict[tuple[str, tuple[str, ...]], None] = OrderedDict()
TOGETHER = 200


def check_together(wanted: Iterable[tuple[str, tuple[str, ...]]]) -> None:
    """Compile many at once: compiling costs the same for one as for hundreds. Says nothing; what was fine is remembered, and
    what was not is left to `check`, which says why."""
    wanted = [(as_jq(source), names) for source, names in wanted]
    fresh = [(source, names) for source, names in dict.fromkeys(wanted) if (source, names) not in _good]
    for tame in (True, False):
        kind = [pair for pair in fresh if is_whole(pair[0]) and is_tame(pair[0]) is tame]
        for start in range(0, len(kind), TOGETHER):
            _check_chunk(kind[start : start + TOGETHER], tame=tame)


def _check_chunk(chunk: list[tuple[str, tuple[str, ...]]], *, tame: bool) -> None:
    used = {name: text for name, text in HELPERS.items() if any(name in source for source, _ in chunk)}
    text = "".join(used.values()) + "[" + ",".join(f"({source}\n)" for source, _ in chunk) + "]"
    names = tuple(sorted({name for _, given in chunk for name in given}))
    warden = _warden[0]
    try:
        if tame or warden is None:
            jq.compile(text, args=dict.fromkeys(names))
        else:
            warden.run(text, text, names, None, 0)
    except (ValueError, ExpressionError):
        return
    _good.update(dict.fromkeys(chunk))
    while len(_good) > 65_536:
        _good.popitem(last=False)


def is_whole(source: str) -> bool:
    """Whether the text closes what it opens and nothing else: then it means the same inside of brackets."""
    if len(source) > 2000:
        return False
    opened: list[str] = []
    for found in _TOKEN.finditer(source):
        lexeme = found.group()
        if lexeme in ("(", "[", "{"):
            opened.append(lexeme)
        elif lexeme in (")", "]", "}"):
            if not opened or "([{".index(opened.pop()) != ")]}".index(lexeme):
                return False
        elif lexeme in ('"', "#", "\x00"):
            return False
    return not opened and bool(source.strip())


def check(source: str, names: tuple[str, ...]) -> None:
    """Raises `ExpressionError` when the text is no jq expression over these names."""
    source = as_jq(source)
    if (source, names) in _good:
        return
    warden = _warden[0]
    if warden is None or is_tame(source):
        _program(source, names)
    else:
        refuse_monsters(source)
        warden.run(guarded(source, names), f"{helpers(source)}{source}", names, None, 0)


def guarded(source: str, names: tuple[str, ...]) -> str:
    bound = ",".join(["$__i", *(f"${name}" for name in names)])
    return f". as [{bound}] | $__i | {_GUARD}{helpers(source)} (\n{source}\n)"


@functools.lru_cache(maxsize=4096)
def _program(source: str, names: tuple[str, ...]) -> Any:
    refuse_monsters(source)
    try:
        # Alone first: a text that closes the wrapper's parenthesis and opens another is no expression by itself.
        jq.compile(f"{helpers(source)}{source}", args=dict.fromkeys(names))
        return jq.compile(guarded(source, names))
    except ValueError as error:
        raise ExpressionError(f"jq: {_first_line(error)} in '{shortened(source)}'") from None


def refuse_monsters(source: str) -> None:
    """What is too long or too deeply nested even to be compiled."""
    if len(source) > LONGEST:
        raise ExpressionError(f"jq: the expression has {len(source):,} characters; at most {LONGEST:,} are allowed")
    if "\x00" in source:
        raise ExpressionError("jq: the expression holds a null character")
    deepest = depth = 0
    for character in source:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > DEEPEST:
        raise ExpressionError(f"jq: the expression is nested {deepest} deep; at most {DEEPEST} levels are allowed")


def shortened(source: str) -> str:
    return source if len(source) <= 200 else source[:197] + "…"


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


# ── tameness ────────────────────────────────────────────────────────────────────────────────────────────────────────

_TOKEN = re.compile(
    r"""\s+|"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|\$\w+|@\w+|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\?//=?|==|!=|<=|>=|[-+*/%|]?=|\.\.|.""", re.DOTALL
)
_INTERPOLATED = re.compile(r"\\\(([^()\"]*)\)")
_TAME_WORDS = frozenset(
    """
    and or not null true false if then else elif end as empty error length keys values add any all first last has select map
    to_entries from_entries tostring tonumber type ascii_downcase ascii_upcase startswith endswith ltrimstr rtrimstr trim ltrim
    rtrim join min max sort unique reverse floor ceil round sqrt fabs contains index tojson fromjson now todate fromdate split
    abs arrays objects strings numbers booleans nulls scalars iterables del sort_by min_by max_by group_by unique_by map_values
    with_entries try catch toarray
    """.split()  # noqa: SIM905  # a list of words reads as words
)
_WALKS = frozenset({"map", "any", "all", "map_values", "with_entries", "sort_by", "min_by", "max_by", "group_by", "unique_by"})
_WILD = frozenset({"*", "..", ";", "=", "|=", "+=", "-=", "*=", "/=", "%=", "//=", "?//", '"'})
_MOST_TOKENS, _MOST_PIPES = 160, 6


@functools.lru_cache(maxsize=8192)
def is_tame(source: str) -> bool:
    """Whether the text alone shows that running it costs about as much as reading its input.

    At most one walk over a collection, no repetition, no patterns, no assignments, no multiplication (of strings), few
    pipes: what could grow faster than its input is not tame, even if it may be harmless.
    """
    if len(source) > 2000:
        return False
    brackets: list[str] = []
    tokens = pipes = walks = 0
    previous = ""
    for found in _TOKEN.finditer(source):
        lexeme = found.group()
        if lexeme.isspace():
            continue
        tokens += 1
        if lexeme[0] == '"' and len(lexeme) > 1:
            if not _is_tame_text(lexeme):
                return False
        elif lexeme[0].isalpha() or lexeme[0] == "_":
            is_key = previous == "." or (brackets[-1:] == ["{"] and previous in ("{", ","))
            if not is_key and lexeme not in _TAME_WORDS:
                return False
            walks += not is_key and lexeme in _WALKS
        elif lexeme in ("(", "[", "{"):
            brackets.append(lexeme)
        elif lexeme in (")", "]", "}"):
            del brackets[-1:]
            walks += lexeme == "]" and previous == "["
        elif lexeme in _WILD or (lexeme == "," and brackets[-1:] not in (["["], ["{"])):
            return False
        pipes += lexeme in ("|", "+")
        previous = lexeme
    return tokens <= _MOST_TOKENS and pipes <= _MOST_PIPES and walks <= 1


def _is_tame_text(literal: str) -> bool:
    """A string literal, and what is interpolated into it."""
    rest = _INTERPOLATED.sub("", literal)
    return "\\(" not in rest and all(is_tame(inner) for inner in _INTERPOLATED.findall(literal))


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_LONG_NUMBER = re.compile(r"(?<![\d.eE])-?\d{16,}(?![\d.])")
_SAFE = 2**53
_ARITHMETIC = re.compile(r"[-+*/%]|\b(add|floor|ceil|round|sqrt|pow|log|exp|min|max|tonumber|range|length|abs|fabs)\b")


def _exact(found: Any, text: str, source: str) -> Any:
    """jq counts in doubles. A whole number beyond 2^53 that passes through comes back as it was; one that was computed
    is refused, because it may have been changed silently."""
    if not isinstance(found, int | float | dict | list) or not _LONG_NUMBER.search(text + source):
        return found
    known: dict[float, int | None] = {}
    for digits in _LONG_NUMBER.findall(text + " " + source):
        number = int(digits)
        if abs(number) >= _SAFE:
            # Two that are one as doubles cannot be told apart.
            known[float(number)] = number if known.get(float(number), number) == number else None
    return _restored(found, known, source) if known else found


def _restored(found: Any, known: dict[float, int | None], source: str) -> Any:
    if isinstance(found, dict):
        return {key: _restored(item, known, source) for key, item in found.items()}
    if isinstance(found, list):
        return [_restored(item, known, source) for item in found]
    if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) < _SAFE:
        return found
    passed = known.get(float(found))
    if passed is not None and not _ARITHMETIC.search(source):
        return passed
    raise ExpressionError(
        f"jq: a number beyond 2^53 would lose digits in '{shortened(source)}'; carry such numbers as strings, or pass them on unchanged"
    )
