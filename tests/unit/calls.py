"""`python -m tests.unit.calls FORM TASKS …`: how many calls it takes to read and check a document of so many tasks, each, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from orchestrator.definition.documents import read_document
from orchestrator.definition.validate import check
from orchestrator.steps.registry import REGISTRY

HEAD = "document: {dsl: '1.0.3', namespace: tests, name: costs, version: '1.0.0'}\n"


def many(form: str, tasks: int) -> str:
    if form == "1.0":
        body = "".join(f"  - s{n}: {{set: {{x: '${{ .a{n} + 1 }}'}}, if: .y{n} > 1, then: s{(n + 1) % tasks}}}\n" for n in range(tasks))
        return f"{HEAD}do:\n{body}"
    if form == "0.8":
        states = "".join(f"- {{name: s{n}, type: inject, data: {{x: {n}}}, transition: s{(n + 1) % tasks}}}\n" for n in range(tasks))
        return f"id: many\nspecVersion: '0.8'\nstates:\n{states}"
    return "type: many\nsteps:\n" + "".join(
        f"- {{id: s{n}, type: noop{f', dependencies: [s{n - 1}]' if n else ''}}}\n" for n in range(tasks)
    )


def calls(form: str, tasks: int) -> int:
    text, count = many(form, tasks), [0]

    def counting(frame: Any, event: str, argument: Any) -> None:
        count[0] += 1

    sys.setprofile(counting)
    try:
        check(read_document(text, "many.yaml"), REGISTRY)
    finally:
        sys.setprofile(None)
    return count[0]


if __name__ == "__main__":
    form, *sizes = sys.argv[1:]
    calls(form, 10)
    print(json.dumps([calls(form, int(size)) for size in sizes]))
