"""Which events a listener takes, and when it has enough. Pure: the event, the filters and what came before decide."""

from __future__ import annotations

import functools
import re
from typing import Any

import jsonschema_rs

from orchestrator.definition.expressions import Jq, Scope, condition, embedded, evaluate
from orchestrator.definition.tree import EventFilter, Listen
from orchestrator.errors import ExpressionError
from orchestrator.plan.needs import Heard

_SPECIAL = re.compile(r"[*+?\[\]()|\\^$.{}]")
_BOUNDED = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000)


def matching(task: Listen, note: dict[str, Any], event: dict[str, Any], scope: Scope) -> dict[str, Any] | None:
    """What to record when the event counts: which filter took it and the correlation values it pinned."""
    matched = note.get("matched", [])
    filters = (*task.filters, task.until_event) if task.until_event else task.filters
    if not filters:
        return {"filter": 0, "pins": note.get("pins", {})}
    for number, candidate in enumerate(filters):
        if task.mode == "all" and number in matched:
            continue
        pins = _fits(candidate, event, note.get("pins", {}), scope)
        if pins is not None:
            return {"filter": number, "pins": pins}
    return None


def received(task: Listen, note: dict[str, Any], data: dict[str, Any], scope: Scope) -> dict[str, Any]:
    """The listener's note after a recorded event. Computes nothing: whether `until` holds now is asked by whoever goes on (`asks`)."""
    number = data["filter"]
    is_until = task.until_event is not None and number == len(task.filters)
    outputs = note.get("outputs", [])
    if not is_until:
        outputs = [*outputs, data["event"] if task.read == "envelope" else data["event"].get("data")]
    after = {
        "outputs": outputs,
        "matched": sorted({*note.get("matched", []), number}),
        "pins": data["pins"],
        "count": note.get("count", 0) + 1,
        "fresh": not is_until,
    }
    asks = task.mode == "any" and task.until_event is None and task.until is not None
    return {**after, "asks": asks, "complete": not asks and _complete(task, after, is_until)}


def _complete(task: Listen, note: dict[str, Any], is_until: bool) -> bool:
    if task.mode == "one":
        return True
    if task.mode == "all":
        return len(note["matched"]) >= len(task.filters)
    if task.until_event is not None:
        return is_until
    return bool(task.filters) or bool(note["outputs"])


def is_over(task: Listen, note: dict[str, Any], scope: Scope) -> bool:
    """Whether it has enough. Raises `ExpressionError` when what ends it cannot be computed."""
    if note.get("asks") and task.until is not None:
        return condition(task.until, note["outputs"], scope)
    return bool(note.get("complete"))


def _fits(candidate: EventFilter, event: dict[str, Any], pins: dict[str, Any], scope: Scope) -> dict[str, Any] | None:
    wanted = candidate.attributes or {}
    if not all(_attribute(value, event.get(name), scope) for name, value in wanted.items()):
        return None
    try:
        if candidate.condition is not None and not condition(candidate.condition, event, scope):
            return None
        pins = dict(pins)
        for key, source, expect in candidate.correlate:
            value = evaluate(source, event, scope)
            # What is expected is computed from what the listener was given.
            expected = evaluate(expect, scope.get("input"), scope) if expect is not None else pins.get(key, value)
            if value is None or value != expected:
                return None
            pins[key] = value
    except ExpressionError:
        # An event that an expression cannot read is not the one that is waited for.
        return None
    return pins


def _attribute(wanted: Any, have: Any, scope: Scope) -> bool:
    if isinstance(wanted, str):
        source = embedded(wanted)
        if source is not None:
            try:
                return condition(Jq(source), have, scope)
            except ExpressionError:
                return False
        return wanted == have or (isinstance(have, str) and _pattern(wanted, have))
    if isinstance(wanted, dict) and isinstance(have, dict):
        return all(_attribute(value, have.get(key), scope) for key, value in wanted.items())
    return bool(wanted == have)


def _pattern(wanted: str, have: str) -> bool:
    matcher = _matcher(wanted)
    return matcher is not None and bool(matcher.is_valid(have))


@functools.lru_cache(maxsize=1024)
def _matcher(wanted: str) -> Any:
    """By an engine whose time is bounded by what it reads: a pattern such as (a+)+ must not hold up a worker. None: it is no pattern."""
    if not _SPECIAL.search(wanted):
        return None
    try:
        return jsonschema_rs.validator_for({"pattern": f"^(?:{wanted})$"}, pattern_options=_BOUNDED)
    except (ValueError, jsonschema_rs.ValidationError):
        return None


def types(task: Listen) -> tuple[str | None, ...]:
    """The literal event types a listener waits for, to be looked up by; None stands for any."""
    filters = (*task.filters, task.until_event) if task.until_event else task.filters
    found = {_literal(f) for f in filters} or {None}
    return (None,) if None in found else tuple(sorted(t for t in found if t is not None))


TAKEN_KEPT = 1000


def hears(memory: dict[str, Any], task: Listen) -> Heard:
    """What a branch that begins to listen knows of earlier listening: no event is taken twice by one branch."""
    return Heard(memory.get("after", {}).get(_key(task), 0), tuple(memory.get("taken", ())), memory.get("forgotten", 0))


def heard(memory: dict[str, Any], task: Listen, number: int) -> dict[str, Any]:
    """The memory after one more event."""
    after, taken = memory.get("after", {}), [*memory.get("taken", ()), number]
    forgotten = max([memory.get("forgotten", 0), *taken[:-TAKEN_KEPT]])
    key = _key(task)
    return {"after": {**after, key: max(after.get(key, 0), number)}, "taken": taken[-TAKEN_KEPT:], "forgotten": forgotten}


def _key(task: Listen) -> str:
    return " ".join(kind or "*" for kind in types(task))


def _literal(candidate: EventFilter) -> str | None:
    kind = (candidate.attributes or {}).get("type")
    if not isinstance(kind, str) or embedded(kind) is not None or re.search(r"[*+?\[\]()|\\^$]", kind):
        return None
    return kind
