"""The approval: waits for a signal, passes when it says yes, fails when it says no. Made of listen, switch and raise."""

from __future__ import annotations

from orchestrator.definition.expressions import Expression, Jq, Merge, Template
from orchestrator.definition.tree import Around, Case, Do, EventFilter, Listen, Raise, Set, Switch


def approval(name: str, timeout_s: float | None = None, condition: Expression | None = None) -> Do:
    """Gives `{approved, by, data}` under the step's name. Answer with `orchestrator approve ID NAME`."""
    decision = Listen(
        name="decision",
        mode="one",
        filters=(EventFilter(attributes={"type": f"approval.{name}"}),),
        around=Around(output_as=Jq(".[0] // {}")),
    )
    judged = Switch(
        name="judged", cases=(Case(name="refused", when=Jq(".approved == false"), then="refused"), Case(name="approved", then="approved"))
    )
    refused = Raise(
        name="refused",
        error=Template(
            {
                "type": "orchestrator/approval_refused",
                "status": 403,
                "title": "approval refused",
                "detail": f'${{ "approval \'{name}\' was refused by \\(.by // "somebody")" }}',
            }
        ),
    )
    approved = Set(name="approved", value=Jq(f"{{{_quoted(name)}: .}}"))
    return Do(
        name=name,
        tasks=(decision, judged, refused, approved),
        around=Around(timeout_s=timeout_s, condition=condition, output_as=Merge(name)),
    )


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
