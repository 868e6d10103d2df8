"""How things look in a terminal, and as JSON for scripts."""

from __future__ import annotations

import functools
import getpass
import json
import sys
from collections.abc import Callable
from typing import Any, TypedDict

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from orchestrator.definition.durations import shown
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.view import Node, Seen, explained

# Piped into a file or another program there is no width to fit into.
out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 220)

GLYPHS = {
    "COMPLETED": ("✔", "green"),
    "FAILED": ("✖", "red"),
    "CANCELLED": ("⊘", "yellow"),
    "RUNNING": ("●", "cyan"),
    "PAUSED": ("‖", "yellow"),
    "PENDING": ("○", "dim"),
    "SCHEDULED": ("○", "dim"),
    "SKIPPED": ("–", "dim"),
    "COMPENSATED": ("↺", "magenta"),
    "CLEANING_UP": ("·", "dim"),
}


IDS = ("id", "instance_id")
WHOLE = (*IDS, "state", "created_at", "due_at", "time", "workflow")


def runner() -> WorkflowRunner:
    current = WorkflowRunner.instance()
    _tell_left_out(current)
    return current


@functools.cache
def _tell_left_out(current: WorkflowRunner) -> None:
    for one in current.left_out:
        click.secho(f"warning: {one}", fg="yellow", err=True)


def actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class By(TypedDict):
    actor: str
    source: str


def by_me() -> By:
    return {"actor": actor(), "source": "cli"}


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def coloured(state: str) -> str:
    glyph, colour = GLYPHS.get(state, ("?", "white"))
    return f"[{colour}]{glyph} {state}[/]"


def parse_json(text: str | None, what: str) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{what} is no JSON: {error.msg} at character {error.pos + 1}: {text[:60]}") from None


def print_table(
    rows: list[dict[str, Any]], columns: dict[str, str], *, empty: str, cells: dict[str, Callable[[Any], str]] | None = None
) -> None:
    """`columns` maps keys to headings."""
    if not rows:
        out.print(f"[dim]{empty}[/]")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for key, heading in columns.items():
        # What one copies and what one looks for first is never cut; the rest gives way.
        table.add_column(heading, no_wrap=key in WHOLE, min_width=36 if key in IDS else None, overflow="ellipsis")
    for row in rows:
        table.add_row(*[(cells or {}).get(key, _cell)(row.get(key)) for key in columns])
    out.print(table)


def _cell(value: Any) -> str:
    return "" if value is None else escape(str(value))


def tree_of(seen: Seen) -> Tree:
    """The instance as a tree: states, attempts, durations, and the error where it happened."""
    i = seen.instance
    title = f"[bold]{i['workflow']}@{i['version']}[/]  {coloured(i['state'])}"
    if i["outcome"] and i["outcome"] != i["state"]:
        title += f" [dim]({i['outcome']})[/]"
    if i["phase"] == "compensating" and not i["outcome"]:
        title += " [magenta]compensating[/]"
    root = Tree(f"{title}  [dim]{i['id']}[/]", guide_style="dim")
    for child in seen.root.children or [seen.root]:
        _branch(root, child)
    return root


def _branch(tree: Tree, node: Node) -> None:
    glyph, colour = GLYPHS.get(node.state, ("?", "white"))
    line = f"[{colour}]{glyph}[/] {escape(node.name)}"
    if node.kind and node.kind not in (node.name, "do"):
        line += f" [dim]{escape(node.kind)}[/]"
    if node.attempts > 1:
        line += f" [yellow]×{node.attempts}[/]"
    if node.took_s is not None:
        line += f" [dim]{shown(node.took_s)}[/]"
    if node.note:
        line += f" [cyan]waits {escape(node.note)}[/]"
    if node.undone == "failed":
        line += " [red]compensation failed[/]"
    if node.error and node.state in ("FAILED", "RUNNING"):
        line += f"\n  [red]{escape(str(node.error.get('message', node.error)))}[/]"
    inner = tree.add(line)
    for child in node.children:
        _branch(inner, child)


def print_summary(seen: Seen) -> None:
    i = seen.instance
    out.print(f"[dim]{escape(seen.message)}[/]")
    if i["compensation"]:
        out.print(f"[magenta]compensation: {i['compensation']['result']}[/]")
    if i["output"] is not None and i["outcome"] == "COMPLETED":
        out.print("output ", end="")
        out.print_json(json.dumps(i["output"], ensure_ascii=False))


__all__ = [
    "as_json",
    "by_me",
    "coloured",
    "explained",
    "out",
    "parse_json",
    "print_json",
    "print_summary",
    "print_table",
    "runner",
    "tree_of",
]
