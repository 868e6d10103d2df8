"""Answers to approvals: to one that waits, once, and yes only where somebody said so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.definition.approval import answer_type, approvals_in
from orchestrator.engine import lifecycle
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, Invalid, NotFound, Refused
from orchestrator.store import events, history, instances
from orchestrator.store.connection import Connection, sized

if TYPE_CHECKING:
    from orchestrator.engine.view import Node, Seen


def answer(runtime: Runtime, seen: Seen, step: str | None, approved: bool, data: Any, actor: str, source: str) -> str:
    """Gives the name of the approval that was answered."""
    if type(approved) is not bool:
        raise Invalid([Fault("approved", "Expected true or false.")], "approval")
    instance_id = str(seen.instance["id"])
    node = _waiting(seen, step)
    name = str(node.approval)
    payload = {"approved": approved, "by": actor, **({"data": data} if data is not None else {})}
    sized("approval", payload, runtime.settings.payload_limit_bytes)
    type_ = answer_type(name)

    def keep(c: Connection) -> str:
        with c.transaction():
            instance = lifecycle.locked(c, instance_id)
            # One answer to each time it is asked: it is asked again after a retry, and in the next round of a loop.
            asked = f"{node.position}#{history.times_received(c, instance_id, node.position)}"
            envelope = {"specversion": "1.0", "id": asked, "source": f"approval/{instance_id}", "type": type_, "data": payload}
            if events.keep(c, envelope, instance_id, instance.tenant) is None:
                raise Refused(f"approval '{name}' was answered already; `orchestrator show {instance_id}` says what came of it")
            instances.audit(c, actor, "approve", source, instance, instance.state, {"name": name, "approved": approved})
            return instance.tenant

    tenant = runtime.database.patiently(keep)
    runtime.publisher.branches(runtime.database.patiently(lambda c: events.wake_listeners(c, type_, instance_id, tenant)))
    return name


def _waiting(seen: Seen, step: str | None) -> Node:
    waiting = [node for node in seen.waiting() if node.approval]
    names = ", ".join(str(node.approval) for node in waiting)
    if step is None:
        if len(waiting) != 1:
            said = f"{len(waiting)} approvals are waited for ({names}): name one." if waiting else "No approval is waited for."
            raise Invalid([Fault("step", said, "" if waiting else f"Instance is {seen.instance['state']}.")], "approval")
        return waiting[0]
    found = next((node for node in waiting if node.approval == step), None)
    if found is None:
        here = "it is one of this workflow's, but not waited for now; " if step in approvals_in(seen.definition.do) else ""
        raise NotFound("approval that waits", step, here + (f"what waits: {names}" if waiting else "none is waited for now"))
    return found
