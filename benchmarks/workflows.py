"""What is measured: steps that do nothing, so that only the engine is seen."""

from __future__ import annotations

import time
from typing import Any

from orchestrator import StepContext, Workflow, step
from orchestrator.definition.expressions import Jq
from orchestrator.definition.tree import Wait


@step
def nop() -> None:
    return None


@step
def ten_ms() -> None:
    time.sleep(0.01)


@step
def stamp(context: StepContext) -> dict[str, float]:
    return {"began": time.time()}


def sequence(name: str, length: int, what: Any = nop) -> Workflow:
    workflow = Workflow(name)
    for n in range(length):
        workflow.then(what, f"s{n}")
    return workflow


ten = sequence("ten", 10)
fifty = sequence("fifty", 50)
thousand = sequence("thousand", 1000)
forty_busy = sequence("forty-busy", 40, ten_ms)
stamped = Workflow("stamped").then(stamp)
wide = Workflow("wide").foreach(".items", parallel=True, gather="input").do(nop)
loop = Workflow("loop").foreach(".items").do(nop)
nap = Workflow("nap").then(Wait(name="nap", duration=Jq(".seconds"))).then(nop)
rounds = Workflow("rounds").while_("$index < .rounds").do(nop).wait(3, "nap").then(stamp)
