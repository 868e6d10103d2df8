"""The approval: waits for an answer, passes when it is yes, fails otherwise. Made of listen, switch and raise.

Its answers are events of a type that nobody can send: `approve` alone writes them, to one instance.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from orchestrator.definition.expressions import Expression, Jq, Merge, Template
from orchestrator.definition.tree import AnyTask, Around, Case, Do, EventFilter, Listen, Raise, Set, Switch, walk
from orchestrator.errors import Refused

# Without characters that patterns of types give a meaning: it stands for itself alone.
ANSWERS = "orchestrator:approval:"


def answer_type(name: str) -> str:
    return ANSWERS + quote(name, safe="").replace(".", "%2E")


def name_of(type: object) -> str | None:
    """The approval that an event of this type answers."""
    return unquote(type.removeprefix(ANSWERS)) if isinstance(type, str) and type.startswith(ANSWERS) else None


def approvals_in(root: AnyTask) -> set[str]:
    return {name for name in map(name_of, _listened_for(root)) if name is not None}


def refuse_signal(root: AnyTask, instance_id: str, signal: str) -> None:
    """Raises `Refused` when a signal has the name of an approval: an answer has a verb of its own."""
    named = signal.removeprefix(ANSWERS).removeprefix("approval.")
    if not signal.startswith(ANSWERS) and (named not in approvals_in(root) or signal in _listened_for(root)):
        return
    raise Refused(f"'{signal}' is an approval, which no signal answers: `orchestrator approve {instance_id} {named}`, or with --refuse")


def _listened_for(root: AnyTask) -> set[str]:
    types = ((one.attributes or {}).get("type") for _, task in walk(root) if isinstance(task, Listen) for one in task.filters)
    return {type for type in types if isinstance(type, str)}


def approval(name: str, timeout_s: float | None = None, condition: Expression | None = None) -> Do:
    """Gives `{approved, by, data}` under the step's name. Answer with `orchestrator approve ID NAME`."""
    decision = Listen(
        name="decision",
        mode="one",
        filters=(EventFilter(attributes={"type": answer_type(name)}),),
        around=Around(output_as=Jq(".[0] // {}")),
    )
    # Whatever is not a yes is a no.
    judged = Switch(
        name="judged", cases=(Case(name="approved", when=Jq(".approved == true"), then="approved"), Case(name="refused", then="refused"))
    )
    refused = Raise(
        name="refused",
        error=Template(
            {
                "type": "orchestrator/approval_refused",
                "status": 403,
                "title": "approval refused",
                "detail": f'${{ "approval \'{_inside(name)}\' was refused by \\(.by // "somebody")" }}',
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
    return f'"{_inside(name)}"'


def _inside(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
