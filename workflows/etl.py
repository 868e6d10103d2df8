"""Records that are validated, then processed in batches and written as JSON or CSV.

`config/workflows/data-processing.yml` says how large the batches are, who may start it, and that a validation comes first.

orchestrator start data-validation --input '{"records": [{"id": 1, "name": " Ada "}]}'
orchestrator start data-processing --input '{"records": [{"id": 1, "name": " Ada "}]}'
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from orchestrator import StepContext, Terminal, Workflow, step
from orchestrator.workflows.files import write

TOLD = 20


class Records(BaseModel):
    records: list[Any] = Field(description="objects, each with an `id` of its own")


class Processing(Records):
    batch_size: int = Field(default=1000, ge=1, alias="batchSize")
    output_format: Literal["json", "csv"] = Field(default="json", alias="outputFormat")


@step(type="etl.validate")
def validate(records: list[Any]) -> dict[str, Any]:
    faults: list[str] = []
    seen: set[str] = set()
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            faults.append(f"record {number} is no object")
        elif record.get("id") in (None, ""):
            faults.append(f"record {number} has no id")
        elif (name := str(record["id"])) in seen:
            faults.append(f"record {number} repeats the id {name}")
        else:
            seen.add(name)
    if faults:
        raise Terminal(f"{len(faults)} of {len(records)} records are faulty: {'; '.join(faults[:TOLD])}")
    return {"valid": len(records)}


@step(type="etl.split")
def split(records: list[Any], data: dict[str, Any]) -> dict[str, Any]:
    size = data.get("batchSize", 1000)
    return {"batches": [records[start : start + size] for start in range(0, len(records), size)]}


@step(type="etl.clean")
def clean(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keys in one form, texts without blanks around them, nothing that says nothing."""
    return [
        {
            key.strip().lower(): value.strip() if isinstance(value, str) else value
            for key, value in record.items()
            if value not in (None, "")
        }
        for record in batch
    ]


@step(type="etl.write")
def store(context: StepContext, clean: list[dict[str, Any]], data: dict[str, Any]) -> dict[str, Any]:
    rows = [record for batch in clean for record in batch["clean"]]
    form = data.get("outputFormat", "json")
    text = _csv(rows) if form == "csv" else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"path": write(f"processed/{context.instance_id}.{form}", text), "records": len(rows), "batches": len(clean)}


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    names = sorted({name for row in rows for name in row}, key=lambda name: (name != "id", name))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: value if isinstance(value, str | int | float) else json.dumps(value) for name, value in row.items()} for row in rows
    )
    return out.getvalue()


validation = Workflow("data-validation", "1.0", namespace="etl", title="Records are what they must be", input=Records)
validation.then(validate)

processing = Workflow("data-processing", "1.0", namespace="etl", title="Records in batches, written to a file", input=Processing)
processing.then(split).foreach(".batches", each="batch", parallel=True, name="clean").do(lambda each: each.then(clean)).then(store)
