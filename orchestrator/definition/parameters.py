"""What a step's parameters must be, checked when a definition is registered, as far as it can be known then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from orchestrator.definition.expressions import Expression, Template, embedded
from orchestrator.definition.parsing import Model, read_as, unescaped
from orchestrator.errors import Fault


class StepTypes(Protocol):
    """Which types of steps and compensations there are, and what they take."""

    def __iter__(self) -> Iterator[str]: ...
    def knows(self, type: str) -> bool: ...
    def has_handler(self, type: str) -> bool: ...
    def parameters_of(self, type: str) -> type[Model] | None: ...


def faults_in(model: type[Model], parameters: Expression | None, place: str) -> Iterator[Fault]:
    """What is wrong with parameters that are written out. What an expression gives is known only when the step runs."""
    if parameters is None:
        written: Any = {}
    elif isinstance(parameters, Template):
        written = parameters.value
    else:
        return
    for fault in read_as(model, written, place=place)[1]:
        if not _is_computed(written, fault.place.removeprefix(place)):
            yield fault


def _is_computed(written: Any, pointer: str) -> bool:
    """Whether the value at a pointer, or what it lies in, is an expression."""
    node = written
    for part in ["", *pointer.split("/")[1:]]:
        if part:
            name = unescaped(part)
            node = (
                node.get(name) if isinstance(node, dict) else node[int(name)] if isinstance(node, list | tuple) and name.isdigit() else None
            )
        if isinstance(node, str) and embedded(node) is not None:
            return True
    return False
