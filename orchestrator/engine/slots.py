"""Slots of limited scopes in one process: who may begin, in the order of asking. What `store/admission.py` is for workers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.definition.expressions import evaluate
from orchestrator.definition.tree import Definition
from orchestrator.errors import ExpressionError, Fault, Invalid
from orchestrator.ids import Scope


def scopes_of(definition: Definition, input: Any, tenant: str = "default") -> list[tuple[str, int]]:
    """The limited scopes that an instance must get into, from the widest to the narrowest, with how many they let in."""
    limits, scope = definition.limits, Scope(tenant, definition.namespace, definition.name)
    found: list[tuple[str, int]] = []
    if limits and limits.workflow:
        found.append((scope.key("workflow"), limits.workflow))
    if limits and limits.key is not None:
        try:
            key = evaluate(limits.key, input, {"workflow": {"input": input}})
        except ExpressionError as error:
            raise Invalid([Fault("limits.key", str(error))], "start") from None
        if key is not None:
            found.append((scope.key("key", key), limits.per_key or 1))
    return found


@dataclass(slots=True)
class _Waiting:
    owner: str
    scopes: Sequence[tuple[str, int]]
    begin: Callable[[], None]


@dataclass
class Slots:
    """`begin` is called when all slots of an owner are its own, in whichever thread gave the last of them back."""

    _used: Counter[str] = field(default_factory=Counter)
    _held: dict[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, owner: str, scopes: Sequence[tuple[str, int]], begin: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(_Waiting(owner, scopes, begin))
        self._let_in()

    def give_back(self, owner: str) -> None:
        with self._lock:
            for scope, _ in self._held.pop(owner, ()):
                self._used[scope] -= 1
            self._waiting = [one for one in self._waiting if one.owner != owner]
        self._let_in()

    def _let_in(self) -> None:
        with self._lock:
            passed: list[_Waiting] = []
            # Who waits for one scope stands in nobody's way in another.
            for one in self._waiting:
                if all(self._used[scope] < capacity for scope, capacity in one.scopes):
                    self._used.update(scope for scope, _ in one.scopes)
                    self._held[one.owner] = one.scopes
                    passed.append(one)
            self._waiting = [one for one in self._waiting if one not in passed]
        for one in passed:
            one.begin()
