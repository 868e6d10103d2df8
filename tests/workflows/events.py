"""Workflows that events start: each leaves a line for every event it was started with."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel

from orchestrator import Retryable, StepContext, Workflow, step
from tests.workflows.basic import ledger


class Numbered(BaseModel):
    model_config = {"extra": "allow"}
    n: int


@step(retries=0)
def write_number(context: StepContext, n: int, pause: float = 0.0) -> dict[str, int]:
    time.sleep(pause)
    ledger(context, f"{context.input.get('hostname') or ''} {n}".strip())
    return {"n": n}


@step(retries=0)
def write_all(context: StepContext) -> None:
    ledger(context, ",".join(str(item["n"]) for item in context.input))


@step(retries=1)
def fails(context: StepContext) -> None:
    raise Retryable("the data plane is away", after=0.01)


numbered = Workflow("numbered", input=Numbered).then(write_number)
gathered: Any = Workflow("gathered").then(write_all)
failing = Workflow("failing").then(fails)


asks_outside = (
    Workflow("asks-outside", input=Numbered).external("scan", "image-scan", input="${ {n: .n} }", timeout="20s").then(write_number)
)
