"""Looking: workflows, ls, show, history, watch, replay, dead-letters, timers, stats."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cli.completing import complete_workflows, id_argument
from orchestrator.cli.console import (
    as_json,
    by_me,
    coloured,
    going_on,
    narrowing,
    one_line,
    out,
    print_json,
    print_summary,
    print_table,
    runner,
    tree_of,
)
from orchestrator.definition.durations import shown
from orchestrator.definition.labels import read_labels
from orchestrator.state import TERMINAL, State
from orchestrator.store.queries import Filter


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the filter's options; the command gets `wanted`, None when nothing narrows it, and `limit` as it was given."""

    @click.option("--state", "states", multiple=True, type=click.Choice([s.value for s in State], case_sensitive=False))
    @click.option("--workflow", "workflow", shell_complete=complete_workflows, callback=narrowing)
    @click.option("--label", "labels", multiple=True, metavar="KEY=VALUE")
    @click.option("--search", callback=narrowing, help="Text in the workflow's name, input or error.")
    @click.option("--limit", default=None, type=click.IntRange(1, 10_000))
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        states: tuple[str, ...],
        workflow: str | None,
        labels: tuple[str, ...],
        search: str | None,
        limit: int | None,
        **kwargs: Any,
    ) -> Any:
        given = bool(states or workflow or labels or search)
        wanted = Filter(state=states, workflow=workflow, labels=read_labels(labels), search=search, limit=limit or SHOWN)
        return command(*args, wanted=wanted if given else None, limit=limit, **kwargs)

    return wrapper


SHOWN = 20
MOST_ACKNOWLEDGED = 10_000


@click.command()
@as_json
def workflows(as_json: bool) -> None:
    """The registered workflows."""
    rows = [
        {
            "workflow": s.name,
            "version": s.version,
            "namespace": s.namespace,
            "title": s.tree.get("title", ""),
            "saga": bool(s.tree.get("saga")),
            "form": "document" if s.source else "python",
        }
        for s in runner().workflows()
    ]
    if as_json:
        print_json(rows)
        return
    columns = {"namespace": "NAMESPACE", "workflow": "WORKFLOW", "version": "VERSION", "form": "FORM", "saga": "SAGA", "title": "TITLE"}
    print_table(rows, columns, empty="no workflow is registered; put one into workflows/", cells={"saga": lambda v: "yes" if v else ""})


@click.command()
@filtered
@as_json
def ls(wanted: Filter | None, limit: int | None, as_json: bool) -> None:
    """The newest instances; with filters, those that match."""
    wanted = wanted or Filter(limit=limit or SHOWN)
    rows = runner().instances(wanted)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["said"] = one_line((row["error"] or {}).get("message", "")) if row["state"] != "RUNNING" else ""
        row["labels"] = " ".join(f"{key}={value}" for key, value in row["labels"].items())
    columns = {
        "id": "ID",
        "workflow": "WORKFLOW",
        "version": "V",
        "state": "STATE",
        "created_at": "CREATED",
        "labels": "LABELS",
        "said": "ERROR",
    }
    print_table(rows, columns, empty="no instance", cells={"state": coloured, "created_at": lambda v: str(v)[:19].replace("T", " ")})
    if len(rows) == wanted.limit:
        click.secho(f"the newest {len(rows)}; --limit shows more", dim=True, err=True)


@click.command()
@id_argument()
@as_json
def show(instance_id: str, as_json: bool) -> None:
    """The instance as a tree: states, attempts, durations, and the error where it happened."""
    seen = runner().show(instance_id)
    if as_json:
        print_json(seen.status())
        return
    out.print(tree_of(seen))
    print_summary(seen)


@click.command()
@id_argument()
@click.option("--at", "at", required=True, type=click.IntRange(0), help="After so many facts.")
@as_json
def replay(instance_id: str, at: int, as_json: bool) -> None:
    """Travel in time: the instance as it stood after its first N facts."""
    seen = runner().show(instance_id, at)
    if as_json:
        print_json(seen.status())
        return
    out.print(tree_of(seen))
    out.print(f"[dim]after {min(at, seen.facts)} facts; `orchestrator history` numbers them[/]")


@click.command()
@id_argument()
@as_json
@click.option("--data/--no-data", "with_data", default=True, help="Show what each fact holds.")
def history(instance_id: str, as_json: bool, with_data: bool) -> None:
    """Every committed fact, in order."""
    rows = runner().history(instance_id)
    if as_json:
        print_json(rows)
        return
    for number, row in enumerate(rows, 1):
        row["n"] = number
        row["held"] = short(row["data"]) if with_data else ""
        row["time"] = str(row["at"])[11:23]
    columns = {"n": "#", "time": "TIME", "position": "POSITION", "kind": "FACT", "attempt": "ATTEMPT", "held": "DATA"}
    print_table(rows, columns, empty="nothing has been committed yet", cells={"attempt": lambda v: str(v) if v else ""})


def short(value: Any) -> str:
    from rich.markup import escape

    from orchestrator.store.connection import dumps
    from orchestrator.store.sealing import Unopened

    text = "" if value is None else dumps(value.shown() if isinstance(value, Unopened) else value)
    return escape(text if len(text) <= 100 else text[:97] + "…")


@click.command()
@id_argument()
def watch(instance_id: str) -> None:
    """Follow an instance live, until it ends. Exit code 1 when it fails."""
    sys.exit(follow(runner().resolve_id(instance_id)))


def follow(instance_id: str) -> int:
    current = runner()
    with going_on(instance_id), Live(console=out, auto_refresh=False, transient=False) as live:
        while True:
            seen = current.show(instance_id)
            bar = Table.grid(padding=(0, 1))
            bar.add_row(ProgressBar(total=1.0, completed=seen.progress, width=40), f"{seen.progress:.0%}", Text(seen.message, style="dim"))
            live.update(Group(tree_of(seen), bar), refresh=True)
            if seen.instance["state"] in (*TERMINAL, State.CLEANING_UP):
                live.stop()
                out.print()
                return 0 if seen.instance["outcome"] == "COMPLETED" else 1
            time.sleep(0.2)  # a frame


@click.group("dead-letters", invoke_without_command=True)
@as_json
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@click.pass_context
def dead_letters(context: click.Context, as_json: bool, limit: int) -> None:
    """What failed for good and waits for somebody to look, the newest first: `retry`, `rollback` and `ack` resolve it."""
    if context.invoked_subcommand is None:
        _list_dead_letters(as_json, limit)


@dead_letters.command("ack")
@click.argument("numbers", nargs=-1, type=click.IntRange(1, 2**62))
@click.option("--all", "are_all", is_flag=True, help="All that are open now.")
@click.option("--reason", help="Kept in the audit.")
def acknowledge(numbers: tuple[int, ...], are_all: bool, reason: str | None) -> None:
    """Somebody has looked at dead letters, and nothing more is to be done."""
    if bool(numbers) == are_all:
        raise click.UsageError("name dead letters by their numbers, or give --all")
    current = runner()
    if are_all:
        numbers = tuple(int(row["id"]) for row in current.dead_letters(limit=MOST_ACKNOWLEDGED))
    done = current.acknowledge_dead_letters(numbers, reason=reason, **by_me()) if numbers else []
    click.echo(f"acknowledged {len(done)}" + (f", {len(numbers) - len(done)} were before" if len(done) < len(numbers) else ""))


def _list_dead_letters(as_json: bool, limit: int) -> None:
    rows = runner().dead_letters(limit=limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["message"] = one_line((row["error"] or {}).get("message", ""))
        row["n"] = row["id"]
    columns = {
        "id": "#",
        "instance_id": "INSTANCE",
        "workflow": "WORKFLOW",
        "position": "POSITION",
        "reason": "REASON",
        "message": "MESSAGE",
    }
    print_table(rows, columns, empty="no dead letters")


@click.command()
@click.option("--limit", default=50, show_default=True)
@as_json
def timers(limit: int, as_json: bool) -> None:
    """What will wake, and when."""
    rows = runner().timers(limit)
    if as_json:
        print_json(rows)
        return
    columns = {"due_at": "DUE", "kind": "KIND", "workflow": "WORKFLOW", "instance_id": "INSTANCE", "position": "BRANCH"}
    print_table(rows, columns, empty="no timers", cells={"due_at": lambda v: str(v)[:23].replace("T", " ")})


@click.command()
@as_json
def stats(as_json: bool) -> None:
    """Counts by state and workflow."""
    found = runner().get_workflow_stats()
    if as_json:
        print_json(found)
        return
    states = "   ".join(f"{coloured(state)} {number}" for state, number in sorted(found["states"].items()))
    out.print(states or "[dim]no instance yet[/]")
    columns = {"workflow": "WORKFLOW", "total": "TOTAL", "completed": "COMPLETED", "failed": "FAILED", "average_s": "AVERAGE"}
    print_table(found["workflows"], columns, empty="", cells={"average_s": lambda v: "" if v is None else shown(v)})
    cleaned = found["last_cleanup"]
    if cleaned:
        out.print(f"[dim]last cleanup: {cleaned['at']}, {cleaned['cleaned']} cleaned up[/]")
    open_branches = ", ".join(f"{number} {state}" for state, number in found["branches"].items()) or "none open"
    out.print(
        f"[dim]branches: {open_branches}; timers: {found['timers']}; dead letters: {found['dead_letters']}; outbox: {found['outbox']}[/]"
    )


@click.command()
@id_argument()
@as_json
def usage(instance_id: str, as_json: bool) -> None:
    """What an instance uses: memory and processor of its processes, and the room its history takes."""
    found = runner().check_resource_usage(instance_id)
    if as_json:
        print_json(found)
        return
    history_kb = found["disk_bytes"] / 1024
    out.print(
        f"memory {found['memory_mb']:,.1f} MB   CPU {found['cpu_percent']:,.1f} %   history {history_kb:,.1f} KB"
        f"   [dim]in {found['processes']} processes[/]"
    )


COMMANDS = [workflows, ls, show, history, watch, replay, dead_letters, timers, stats, usage]
