"""Letting instances in: after one ends, those that waited for its slot or for its outcome."""

from __future__ import annotations

from orchestrator.engine.runtime import Runtime
from orchestrator.store import admission
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection


def after_end(runtime: Runtime, workflow: str, instance_id: str, scopes: list[str]) -> None:
    """Asked after the commit of the end; if this process dies first, the keeper asks instead."""

    def release(c: Connection) -> list[Published]:
        met = admission.meet(c, workflow, instance_id)
        return settle(c, met, scopes)

    runtime.publisher.branches(runtime.database.patiently(release))


def settle(c: Connection, instance_ids: list[str], scopes: list[str]) -> list[Published]:
    """Admit to these scopes and to those that these instances wait for; gives what is to be published."""
    wanted = set(scopes)
    for instance_id in instance_ids:
        wanted |= {scope for scope, _ in admission.waiting_scopes(c, instance_id)}
    published: list[Published] = []
    if wanted:
        with c.transaction():
            published += admission.admit(c, sorted(wanted))
    if instance_ids:
        published += admission.release_ready(c, instance_ids)
    return published
