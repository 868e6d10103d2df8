"""Schedules: which there are, when they come, and what became of each time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from orchestrator.cli.console import as_json, by_me, narrowing, out, print_json, print_table, runner
from orchestrator.cli.eventful import tenant
from orchestrator.definition.documents import parse
from orchestrator.definition.parsing import Source
from orchestrator.schedule import times
from orchestrator.schedule.spec import read_schedules

OUTCOMES = {"started": "green", "skipped": "yellow", "missed": "yellow", "refused": "red"}


@click.group(invoke_without_command=True)
@click.pass_context
def schedules(context: click.Context) -> None:
    """What starts by itself: each schedule, its next time, how it did."""
    if context.invoked_subcommand is None:
        context.invoke(list_schedules)


@schedules.command("ls")
@click.option("--workflow", callback=narrowing)
@tenant
@as_json
def list_schedules(workflow: str | None, tenant: str, as_json: bool) -> None:
    found = runner().schedules.all(tenant, workflow)
    if as_json:
        print_json(found)
        return
    rows = [
        {
            **one,
            "when": _when(one["schedule"]),
            "does": one["workflow"]["id"],
            "next": one["nextRun"] or ("paused" if not one["enabled"] else ""),
            "last": one["lastRun"],
            "counts": f"{one['runCount']} / {one['skipCount']} / {one['errorCount']}",
        }
        for one in found
    ]
    columns = {
        "id": "ID",
        "when": "WHEN",
        "does": "STARTS",
        "next": "NEXT",
        "last": "LAST",
        "counts": "RUN/SKIPPED/FAILED",
        "source": "FROM",
    }
    print_table(rows, columns, empty="no schedules; `orchestrator schedules put FILE` makes some")
    for one in runner().schedules.faulty_files(tenant):
        out.print(f"[red]✖[/] {escape(one['file'])} is not read, what it held before stays: {escape(one['message'])}")


def _when(schedule: dict[str, object]) -> str:
    if "cron" in schedule:
        return f"{schedule['cron']} {schedule['timezone']}"
    if "every" in schedule:
        return f"every {schedule['every']:g} s"
    if "at" in schedule:
        return f"at {schedule['at']}"
    return "on events" if "on" in schedule else f"{schedule.get('seconds')} s after the last"


@schedules.command("show")
@click.argument("name")
@tenant
@as_json
def show_schedule(name: str, tenant: str, as_json: bool) -> None:
    """One schedule: what holds, its next times, its last fires."""
    found = runner().schedules.status(name, tenant)
    fires = runner().schedules.history(name, tenant, 20)
    if as_json:
        print_json({**found, "fires": fires})
        return
    out.print(f"[bold]{escape(found['name'])}[/]  {escape(_when(found['schedule']))}  {'' if found['enabled'] else '[yellow]paused[/]'}")
    for key in ("description", "workflow", "properties", "overlap", "maxConcurrent", "catchup", "jitter", "retry", "timeout", "source"):
        if found[key] and not (key == "retry" and not found[key]["attempts"]):
            out.print(f"[dim]{key:<14}[/] {escape(_told(key, found[key]))}")
    out.print(f"[dim]{'next':<14}[/] {', '.join(found['upcoming']) or 'never'}")
    cells = {"outcome": lambda outcome: f"[{OUTCOMES.get(outcome, 'white')}]{outcome}[/]"}
    columns = {"scheduledAt": "PLANNED", "firedAt": "FIRED", "outcome": "OUTCOME", "instanceId": "INSTANCE", "state": "STATE", "by": "BY"}
    print_table(fires, {**columns, "reason": "WHY"}, empty="it has not fired yet", cells=cells)


def _told(key: str, value: Any) -> str:
    if key == "workflow":
        version = f"@{value['version']}" if value["version"] else ""
        return f"{value['nameSpace']}.{value['id']}{version}"
    if key == "retry":
        return f"{value['attempts']} times, {value['delay']:g} s after it failed"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


@schedules.command("put")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant
def put_schedules(files: tuple[Path, ...], tenant: str) -> None:
    """Make or change the schedules of YAML or JSON files; nothing needs a restart."""
    timetable = runner().schedules
    for file in files:
        given = parse(file.read_text(encoding="utf-8"), file.name)
        specs = read_schedules(given, Source(str(file), file.read_text(encoding="utf-8")))
        for spec in specs:
            timetable.put(spec, tenant=tenant, **by_me())
        click.echo(f"put {', '.join(spec.id for spec in specs)}")


@schedules.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def validate_schedules(files: tuple[Path, ...]) -> None:
    """Every fault of files, or the next times of what they hold; nothing is kept."""
    for file in files:
        text = file.read_text(encoding="utf-8")
        for spec in read_schedules(parse(text, str(file)), Source(str(file), text)):
            upcoming = ", ".join(times.iso(at) for at in times.preview(spec.when, time.time(), 3))
            click.echo(f"{spec.id}: {upcoming or 'never again'}")


def _switch(verb: str, said: str) -> None:
    @schedules.command(verb, help=f"{verb.capitalize()} a schedule.")
    @click.argument("name")
    @tenant
    def command(name: str, tenant: str) -> None:
        runner().schedules.enable(name, verb == "resume", tenant=tenant, **by_me())
        click.echo(f"{said} {name}")


_switch("pause", "paused")
_switch("resume", "resumed")


@schedules.command("run")
@click.argument("name")
@tenant
def run_schedule(name: str, tenant: str) -> None:
    """One run out of turn; the schedule goes on as planned."""
    click.echo(runner().schedules.run_now(name, tenant=tenant, **by_me())["instanceId"])


@schedules.command("backfill")
@click.argument("name")
@click.argument("start")
@click.argument("end")
@tenant
def backfill_schedule(name: str, start: str, end: str, tenant: str) -> None:
    """A run for each moment from START to END (ISO 8601) that has none."""
    done = runner().schedules.backfill(name, start, end, tenant=tenant, **by_me())
    for one in done:
        click.echo(f"{one['scheduledAt']} {one['instanceId']}")
    if not done:
        click.echo("every moment of that range has fired")


@schedules.command("delete")
@click.argument("name")
@tenant
def delete_schedule(name: str, tenant: str) -> None:
    runner().schedules.delete(name, tenant=tenant, **by_me())
    click.echo(f"deleted {name}")


COMMANDS = (schedules,)
