"""What others wrote or answered, read as far as it is looked at: of the types that it must have, whatever else is in it.

A call that goes by such a document fails with a problem that says what is wrong with it and where.
"""

from __future__ import annotations

from typing import Any, TypeVar

import pydantic
from pydantic import ConfigDict

from orchestrator.definition.parsing import Model, faults_of, shown
from orchestrator.net.problems import Problem

MOST_TOLD = 5


class Foreign(Model):
    """Fields that are not named here are others' business."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, populate_by_name=True)


F = TypeVar("F", bound=Foreign)


def read(model: type[F], data: Any, what: str, *, place: str = "", code: str = "configuration") -> F:
    """The data as the model says; a problem that names `what` it is of."""
    if not isinstance(data, dict):
        raise Problem(code, f"{what}: {place or 'it'} is {shown(data)}, and must be a mapping")
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        faults = faults_of(error, model, data, place)
        told = "; ".join(f"{fault.place}: {fault.message}" for fault in faults[:MOST_TOLD])
        raise Problem(code, f"{what}: {told}{f' (and {len(faults) - MOST_TOLD} more)' if len(faults) > MOST_TOLD else ''}") from None
