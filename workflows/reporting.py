"""Reports of a day, as JSON files below OUTPUT_DIR: what was told (events by type), and what was done (instances by workflow).

`config/schedules/daily-reports.yml` runs `generate-reports` each morning, `daily-report.yml` runs `generate-report`.

orchestrator start generate-reports --input '{"reportTypes": ["sales"], "outputPath": "/reports/today", "day": "2026-11-20"}'
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any

from pydantic import BaseModel, Field

from orchestrator import StepContext, Workflow, step
from orchestrator.app import runtime
from orchestrator.store import queries, reports
from orchestrator.workflows.files import write

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class Wanted(BaseModel):
    day: dt.date | None = Field(default=None, description="a day of UTC; none: the one before the start")
    output_path: str = Field(default="/reports", alias="outputPath")


class One(Wanted):
    report_type: str = Field(default="daily", pattern=NAME, alias="reportType")


class Several(Wanted):
    report_types: list[Annotated[str, Field(pattern=NAME)]] = Field(
        min_length=1, alias="reportTypes", description="families of events: `sales` is all that are `sales.…`"
    )


@step(type="reporting.events", timeout="60s")
def events_of(context: StepContext, family: str, data: dict[str, Any]) -> dict[str, Any]:
    """A family of events: how many there were of each type."""
    tenant, since, until = _span(context, data)
    found = runtime().database.patiently(lambda c: reports.events_by_type(c, tenant, f"{family}.", since, until))
    return _written(data, family, since, {"total": sum(found.values()), "events": found})


@step(type="reporting.instances", timeout="60s")
def instances_of(context: StepContext, data: dict[str, Any]) -> dict[str, Any]:
    """All workflows: how many of each ended how."""
    tenant, since, until = _span(context, data)
    found = runtime().database.patiently(lambda c: reports.ended_by_workflow(c, tenant, since, until))
    total = sum(sum(outcomes.values()) for outcomes in found.values())
    return _written(data, data.get("reportType", "daily"), since, {"total": total, "workflows": found})


def _span(context: StepContext, data: dict[str, Any]) -> tuple[str, dt.datetime, dt.datetime]:
    """The same at every attempt: reckoned from the instance's beginning."""
    instance = runtime().database.patiently(lambda c: queries.instance(c, context.instance_id))
    assert instance is not None
    day = data.get("day")
    began = dt.datetime.fromisoformat(instance["created_at"]).astimezone(dt.UTC)
    since = dt.datetime.combine(dt.date.fromisoformat(day) if day else began.date() - dt.timedelta(days=1), dt.time(), dt.UTC)
    return str(instance["tenant"]), since, since + dt.timedelta(days=1)


def _written(data: dict[str, Any], name: str, since: dt.datetime, found: dict[str, Any]) -> dict[str, Any]:
    day = since.date().isoformat()
    text = json.dumps({"report": name, "day": day, **found}, indent=2) + "\n"
    return {"report": name, "path": write(f"{data.get('outputPath', '/reports')}/{name}-{day}.json", text), "total": found["total"]}


several = Workflow("generate-reports", "1.0", namespace="reporting", title="A report of each family of events", input=Several)
several.foreach(".reportTypes", each="family", parallel=True, name="reports").do(lambda each: each.then(events_of))

one = Workflow("generate-report", "1", title="What all workflows did in a day", input=One)
one.then(instances_of)
