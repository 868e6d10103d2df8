"""How things look in a terminal, and as JSON for scripts."""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from orchestrator.definition.durations import shown
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.view import Node, Seen, explained
from orchestrator.store.sealing import Unopened

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


GAP = 2
LONGEST_LINE = 300
INTERRUPTED = 130


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


def plain(value: Any) -> Any:
    """For what JSON does not know."""
    return value.shown() if isinstance(value, Unopened) else str(value)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=plain))


def coloured(state: str) -> str:
    glyph, colour = GLYPHS.get(state, ("?", "white"))
    return f"[{colour}]{glyph} {state}[/]"


def given_json(text: str | None, what: str) -> Any:
    """JSON as it stands, of a file (`@input.json`), or of standard input (`-`)."""
    if text == "-":
        text = sys.stdin.read()
    elif text is not None and text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{what}: {text[1:]} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse_json(text, what)


class JsonText(click.types.StringParamType):
    """What `given_json` reads; the name of a file in it may be any bytes."""


JSON_TEXT = JsonText()


def narrowing(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """Of a filter's option: an empty text narrows nothing, and would mean all there are."""
    if given == "":
        raise click.BadParameter("It is empty and would narrow nothing; leave it out, or say what is meant.")
    return given


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
    """`columns` maps keys to headings. What does not fit into the width stands below its row: nothing is cut or left out."""
    if not rows:
        out.print(f"[dim]{empty}[/]")
        return
    texts = [[Text.from_markup((cells or {}).get(key, _cell)(row.get(key))) for key in columns] for row in rows]
    headings = [Text(heading, style="bold") for heading in columns.values()]
    # A column that nobody fills takes no room.
    kept = [number for number in range(len(headings)) if number == 0 or any(line[number].plain for line in texts)]
    texts, headings = [[line[number] for number in kept] for line in texts], [headings[number] for number in kept]
    widths = [max(line[number].cell_len for line in (headings, *texts)) for number in range(len(headings))]
    beside = _fitting(widths, out.width)
    _print_row(headings, widths, beside)
    for line in texts:
        _print_row(line, widths, beside)


def _fitting(widths: list[int], room: int) -> int:
    """How many columns stand beside one another; the last one may have any length where lines are not broken."""
    used = 0
    for number, width in enumerate(widths):
        is_last = number == len(widths) - 1
        if number and used + (0 if is_last and not out.is_terminal else width) > room:
            return number
        used += width + GAP
    return len(widths)


def _print_row(line: list[Text], widths: list[int], beside: int) -> None:
    first = Text()
    for number, cell in enumerate(line[:beside]):
        is_last = number == beside - 1
        first.append_text(cell)
        first.append(" " * (0 if is_last else widths[number] - cell.cell_len + GAP))
    out.print(first, soft_wrap=not out.is_terminal, overflow="fold")
    below = Text(" " * GAP).join([cell for cell in line[beside:] if cell.plain])
    if below.plain:
        out.print(Padding(below, (0, 0, 0, GAP)))


@contextlib.contextmanager
def going_on(instance_id: str) -> Iterator[None]:
    """Who stops looking is told how to look again: the instance goes on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"\n{instance_id} goes on; `orchestrator watch {instance_id}` looks on, `orchestrator cancel {instance_id}` stops it", err=True
        )
        sys.exit(INTERRUPTED)


def one_line(text: str) -> str:
    """An error as lists show it: `show` tells all of it."""
    words = " ".join(text.split())
    return words if len(words) <= LONGEST_LINE else words[: LONGEST_LINE - 1] + "…"


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
    for branch, number in seen.missing:
        out.print(f"[yellow]fact {number} of the branch at '{escape(branch or '/')}' is missing: what followed from it is not known[/]")
    if i["compensation"]:
        out.print(f"[magenta]compensation: {i['compensation']['result']}[/]")
    if i["output"] is not None and i["outcome"] == "COMPLETED":
        out.print("output ", end="")
        out.print_json(json.dumps(i["output"], ensure_ascii=False, default=plain))


__all__ = [
    "JSON_TEXT",
    "JsonText",
    "as_json",
    "by_me",
    "coloured",
    "explained",
    "given_json",
    "going_on",
    "narrowing",
    "one_line",
    "out",
    "parse_json",
    "plain",
    "print_json",
    "print_summary",
    "print_table",
    "runner",
    "tree_of",
]
