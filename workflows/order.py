"""An order: a sequence, a parallel part, a condition, and a way back when something fails for good.

orchestrator start order --input '{"id": 7, "amount": 120}'
orchestrator start order --input '{"id": 8, "amount": 120, "fail": "ship"}'
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, Field

from orchestrator import StepContext, Terminal, Workflow, step

logger = logging.getLogger("orchestrator.workflows.order")


class Order(BaseModel):
    id: int
    amount: float = Field(default=10.0, gt=0)
    fail: str | None = Field(default=None, description="name of the step that shall fail, to see the way back")


def _unless_asked_to_fail(context: StepContext, data: dict[str, Any]) -> None:
    if data.get("fail") == context.name:
        raise Terminal(f"{context.name} was asked to fail")


@step(type="order.validate")
def validate(order: Order) -> dict[str, Any]:
    return {"valid": True, "large": order.amount >= 100}


@step(type="order.reserve", retries=2, timeout="30s")
def reserve(context: StepContext, id: int, data: dict[str, Any]) -> dict[str, str]:
    _unless_asked_to_fail(context, data)
    return {"reservation": f"R-{id}"}


@reserve.undo
def release(output: dict[str, str]) -> None:
    logger.info("released %s", output["reservation"])


@step(type="order.charge", retries=2, timeout="30s")
def charge(context: StepContext, id: int, amount: float, data: dict[str, Any]) -> dict[str, str]:
    _unless_asked_to_fail(context, data)
    return {"payment": f"P-{id}", "charged": f"{amount:.2f}"}


@charge.undo
def refund(output: dict[str, str]) -> None:
    logger.info("refunded %s", output["payment"])


@step(type="order.check_fraud")
def check_fraud(id: int) -> dict[str, Any]:
    return {"fraud_checked": True}


@step(type="order.ship")
def ship(context: StepContext, id: int, data: dict[str, Any]) -> dict[str, str]:
    _unless_asked_to_fail(context, data)
    return {"shipment": f"S-{id}"}


@step(type="order.notify")
def notify(id: int) -> dict[str, bool]:
    return {"notified": True}


order = (
    Workflow("order", title="Reserve, charge, ship, and undo it all when one fails", saga=True, timeout="1h", input=Order)
    .start_with(validate)
    .parallel()
    .do(reserve)
    .do(charge)
    .join_with(notify, "confirm")
    .if_(".large", "if-large")
    .do(check_fraud)
    .then(ship)
    .then(notify)
)
