"""What a start may say beside its workflow and input. Everybody who starts something says it through `StartOptions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from orchestrator.definition.dependencies import Dependency
from orchestrator.definition.labels import Label
from orchestrator.definition.parsing import JsonObject, Many, Model, Name, parse_as
from orchestrator.engine.runtime import priority_number

By = Annotated[str, Field(min_length=1, max_length=500)]


def _priority(given: Any) -> int | None:
    return None if given is None else priority_number(given)


class StartOptions(Model):
    """Frozen, and of known fields only: an option that is misspelt is refused, and not passed over."""

    version: str | None = None
    priority: Annotated[int | None, BeforeValidator(_priority)] = None
    labels: dict[Name, Label] | None = None
    metadata: JsonObject | None = None
    tenant: Name = "default"
    idempotency_key: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    dependencies: Annotated[tuple[str | Dependency, ...], Many] = ()
    trace_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    actor: By = "anonymous"
    source: By = "api"


class Starting(StartOptions):
    """The same, with what only the engine itself says of a start."""

    instance_id: str | None = None
    parent_id: str | None = None
    parent_branch: int | None = None
    forked_from: str | None = None
    order: str | None = None
    slots: Annotated[tuple[tuple[str, int], ...], Many] = ()


def options_of(**given: Any) -> Starting:
    """An option that is None was not said. Raises `Invalid` with every fault."""
    said = {name: value for name, value in given.items() if value is not None or name not in Starting.model_fields}
    return parse_as(Starting, said, what="start")
