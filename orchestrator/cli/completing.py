"""What the shell offers at the Tab key: names of workflows, ids of instances, approvals that wait. Without a stack, nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from orchestrator.store.connection import Connection

OFFERED = 100
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _quietly(find: Callable[[Connection, click.Context, str], list[CompletionItem]]) -> Complete:
    @functools.wraps(find)
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            from orchestrator.app import runtime

            found = runtime().database.patiently(lambda c: find(c, context, incomplete))
            return [item for item in found if str(item.value).startswith(incomplete)]
        except Exception:  # noqa: BLE001  # a message would end up in the line that is being written
            return []

    return complete


@_quietly
def complete_workflows(c: Connection, context: click.Context, incomplete: str) -> list[CompletionItem]:
    from orchestrator.store import definitions

    found: dict[str, str] = {}
    for one in definitions.all_definitions(c):
        found.setdefault(one.name if one.namespace == "default" else f"{one.namespace}.{one.name}", str(one.tree.get("title") or ""))
    return [CompletionItem(name, help=title) for name, title in sorted(found.items())]


@_quietly
def complete_ids(c: Connection, context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The newest that begin so."""
    from orchestrator.store import lists
    from orchestrator.store.queries import Filter

    rows = lists.instances(c, Filter(id_prefix=incomplete, limit=OFFERED))
    return [CompletionItem(row["id"], help=f"{row['workflow']} {row['state']}") for row in rows]


@_quietly
def complete_waiting(c: Connection, context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Approvals that the instance before it waits for."""
    from orchestrator.app import runtime
    from orchestrator.engine import view
    from orchestrator.store import queries

    [instance_id] = queries.matching_ids(c, str(context.params["instance_id"]))
    return [CompletionItem(str(node.approval)) for node in view.see(c, runtime(), instance_id).waiting() if node.approval]


def id_argument(name: str = "instance_id") -> Callable[[Any], Any]:
    """An id, or its end."""
    return click.argument(name, shell_complete=complete_ids)
