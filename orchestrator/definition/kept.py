"""A definition as the database keeps it."""

from __future__ import annotations

from typing import Any

from orchestrator.definition.codec import from_json
from orchestrator.definition.tree import Definition
from orchestrator.errors import BrokenDefinition, MissingCode


def definition_of(tree: Any) -> Definition:
    """A definition as it was kept. What this code does not know is code that another worker may have; what is none is broken."""
    try:
        found = from_json(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, KeyError) and isinstance(error.args[0], str):
            raise MissingCode("kind of task", error.args[0]) from None
        raise BrokenDefinition(f"a definition cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(found, Definition):
        raise BrokenDefinition(f"a definition cannot be read: it is {type(found).__name__}")
    return found
