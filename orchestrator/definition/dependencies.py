"""What an instance waits for before it begins: another workflow, or another instance."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from orchestrator.definition.parsing import Model, Name
from orchestrator.ids import is_instance_id


class Dependency(Model):
    """`{workflow: validate, condition: completed}`, `{instance: 01a2…, condition: any}`; a text is a workflow's name."""

    workflow: Name | None = Field(None, validation_alias=AliasChoices("workflow", "workflowId"))
    instance: str | None = Field(None, validation_alias=AliasChoices("instance", "instanceId"))
    condition: Literal["completed", "failed", "any"] = "completed"

    @field_validator("instance")
    @classmethod
    def _is_an_id(cls, given: str | None) -> str | None:
        if given is not None and not is_instance_id(given):
            raise ValueError("Expected an instance's id.")
        return given

    @model_validator(mode="after")
    def _names_one(self) -> Dependency:
        if (self.workflow is None) == (self.instance is None):
            raise ValueError("Name either a workflow or an instance.")
        return self

    def to_json(self) -> dict[str, Any]:
        return self.model_dump()

    @staticmethod
    def of(given: str | Dependency) -> Dependency:
        return Dependency(workflow=given, instance=None) if isinstance(given, str) else given
