"""Events, triggers and webhooks: sent, searched, replayed, put aside; made, switched off, deleted."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from orchestrator.cli.console import JSON_TEXT, as_json, by_me, given_json, narrowing, out, plain, print_json, print_table, runner
from orchestrator.definition.documents import parse
from orchestrator.state import EventState
from orchestrator.store.events import EventFilter

STATES = tuple(state.value for state in EventState)
COLOURS = {"taken": "green", "working": "cyan", "held": "yellow", "dead": "red", "discarded": "dim"}
tenant = click.option("--tenant", default="default", show_default=True)


def _filtered(limit: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the filter's options; the command gets `wanted`, and whether any was given."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--state", type=click.Choice(STATES))
        @click.option("--type", "type", callback=narrowing, help="A type; `*` stands for anything.")
        @click.option("--source", callback=narrowing)
        @click.option("--key", callback=narrowing, help="A hostname or other key of order.")
        @click.option("--stream", callback=narrowing)
        @click.option("--text", callback=narrowing, help="Text anywhere in the event.")
        @click.option("--since", callback=narrowing, metavar="TIME", help="Like 2026-01-31T12:00:00Z.")
        @click.option("--until", callback=narrowing, metavar="TIME")
        @click.option("--limit", default=limit, show_default=True, type=click.IntRange(1, 10_000))
        @functools.wraps(command)
        def wrapper(*args: Any, limit: int, **kwargs: Any) -> Any:
            names = ("state", "type", "source", "key", "stream", "text", "since", "until")
            given = {name: kwargs.pop(name) for name in names}
            return command(*args, wanted=EventFilter(**given, limit=limit), is_narrowed=any(given.values()), **kwargs)

        return wrapper

    return add


@click.group(invoke_without_command=True)
@click.pass_context
def events(context: click.Context) -> None:
    """Events that came in or were emitted: what became of them, and once more."""
    if context.invoked_subcommand is None:
        context.invoke(list_events)


@events.command("ls")
@_filtered(50)
@as_json
def list_events(wanted: EventFilter, is_narrowed: bool, as_json: bool) -> None:
    """Newest first; `--state dead` shows what was put aside."""
    found = runner().events(wanted)
    if as_json:
        print_json(found)
        return
    rows = [{**one, "why": " ".join(str((one["error"] or {}).get("message", "")).split())[:160]} for one in found]
    columns = {
        "number": "NUMBER",
        "at": "AT",
        "type": "TYPE",
        "key": "KEY",
        "state": "STATE",
        "attempts": "TRIED",
        "source": "SOURCE",
        "why": "WHY",
    }
    cells = {"state": lambda state: f"[{COLOURS.get(state, 'white')}]{state}[/]"}
    print_table(rows, columns, empty="no events", cells=cells)


@events.command()
@click.argument("number", type=int)
@as_json
def show(number: int, as_json: bool) -> None:
    """One event: its envelope and its effects."""
    found = runner().event(number)
    if as_json:
        print_json(found)
        return
    out.print(
        f"[bold]{escape(found['type'])}[/]  [{COLOURS.get(found['state'], 'white')}]{found['state']}[/]  [dim]{escape(found['id'])}[/]"
    )
    for name in ("source", "tenant", "key", "stream", "entry", "at", "attempts", "replays"):
        if found[name]:
            out.print(f"[dim]{name:<9}[/] {escape(str(found[name]))}")
    if found["error"]:
        out.print(f"[red]{escape(str(found['error'].get('message', found['error'])))}[/]")
    out.print_json(json.dumps(found["envelope"], ensure_ascii=False, default=plain))
    columns = {"trigger": "TRIGGER", "action": "DID", "instance_id": "INSTANCE", "state": "STATE", "replay": "REPLAY"}
    print_table(found["effects"], columns, empty="it had no effects beyond waking who listens")


@events.command()
@click.argument("type")
@click.option("-d", "--data", type=JSON_TEXT, help="The event's data as JSON.")
@click.option("--id", "event_id", help="An id of your own: the same id and source count once.")
@click.option("--source", default="cli", show_default=True)
@tenant
def send(type: str, data: str | None, event_id: str | None, source: str, tenant: str) -> None:
    """Send an event to whoever listens and to triggers."""
    envelope = {"id": event_id or uuid.uuid4().hex, "source": source, "type": type, "data": given_json(data, "--data")}
    [arrival] = runner().send_events([envelope], tenant=tenant)
    click.echo(f"event {arrival.number} is {arrival.state}" + ("" if arrival.is_new else " (it was here before)"))


@events.command()
@click.argument("numbers", nargs=-1, type=int)
@_filtered(1000)
def replay(numbers: tuple[int, ...], wanted: EventFilter, is_narrowed: bool) -> None:
    """Let events have their effects once more: by number, or all that a filter finds."""
    done = runner().replay_events(_chosen(numbers, wanted, is_narrowed), **by_me())
    click.echo(f"replayed {len(done)}: {', '.join(map(str, done)) or 'none'}")


@events.command()
@click.argument("numbers", nargs=-1, type=int)
@_filtered(1000)
def discard(numbers: tuple[int, ...], wanted: EventFilter, is_narrowed: bool) -> None:
    """Give up events that were put aside: by number, or all that a filter finds."""
    done = runner().discard_events(_chosen(numbers, wanted, is_narrowed), **by_me())
    click.echo(f"discarded {len(done)}: {', '.join(map(str, done)) or 'none'}")


def _chosen(numbers: tuple[int, ...], wanted: EventFilter, is_narrowed: bool) -> EventFilter:
    if numbers:
        return EventFilter(numbers=numbers, limit=len(numbers))
    if not is_narrowed:
        raise click.UsageError("name events by their numbers, or a filter such as --state dead")
    return wanted


@click.group(invoke_without_command=True)
@click.pass_context
def triggers(context: click.Context) -> None:
    """What events do: start, signal, cancel, wake."""
    if context.invoked_subcommand is None:
        context.invoke(list_triggers)


@triggers.command("ls")
@as_json
def list_triggers(as_json: bool) -> None:
    found = runner().triggers()
    if as_json:
        print_json(found)
        return
    rows = []
    for one in found:
        spec = one["spec"]
        types = spec["on"] if isinstance(spec["on"], str) else ", ".join(spec["on"])
        action = next(name for name in ("start", "wake", "signal", "cancel", "skip") if name in spec)
        target = spec[action] if isinstance(spec[action], str) else spec[action].get("name", "")
        rows.append({**one, "on": types, "does": f"{action} {target}", "enabled": "yes" if one["enabled"] else "no"})
    columns = {"name": "NAME", "on": "ON", "does": "DOES", "enabled": "ON?", "effects": "EFFECTS", "origin": "FROM", "tenant": "TENANT"}
    print_table(rows, columns | {"enabled": "ENABLED"}, empty="no triggers; `orchestrator triggers put FILE` makes some")


@triggers.command("put")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant
def put_triggers(files: tuple[Path, ...], tenant: str) -> None:
    """Make or change the triggers of YAML or JSON files; nothing needs a restart."""
    for file in files:
        spec = parse(file.read_text(encoding="utf-8"), file.name)
        names = runner().put_trigger(spec, tenant=tenant, **by_me())
        click.echo(f"put {', '.join(names)}")
        for one in runner().trigger_warnings(spec, tenant=tenant):
            click.secho(f"warning: {one['place']}: {one['message']}", fg="yellow", err=True)


def _switch(verb: str) -> click.Command:
    @triggers.command(verb, help=f"{verb.capitalize()} a trigger.")
    @click.argument("name")
    @tenant
    def command(name: str, tenant: str) -> None:
        runner().enable_trigger(name, verb == "enable", tenant=tenant, **by_me())
        click.echo(f"{verb}d {name}")

    return command


_switch("enable")
_switch("disable")


@triggers.command("delete")
@click.argument("name")
@tenant
def delete_trigger(name: str, tenant: str) -> None:
    runner().delete_trigger(name, tenant=tenant, **by_me())
    click.echo(f"deleted {name}")


@click.group(invoke_without_command=True)
@click.pass_context
def webhooks(context: click.Context) -> None:
    """Who is told of events over HTTP, signed."""
    if context.invoked_subcommand is None:
        context.invoke(list_webhooks)


@webhooks.command("ls")
@as_json
def list_webhooks(as_json: bool) -> None:
    found = runner().webhooks()
    if as_json:
        print_json(found)
        return
    rows = [{**one, "types": ", ".join(one["types"])} for one in found]
    columns = {"name": "NAME", "url": "URL", "types": "TYPES", "waiting": "WAITING", "given_up": "GIVEN UP", "last_error": "LAST ERROR"}
    print_table(rows, columns, empty="no webhooks; `orchestrator webhooks put NAME URL --secret NAME` makes one")


@webhooks.command("put")
@click.argument("name")
@click.argument("url")
@click.option("--type", "types", multiple=True, default=("*",), show_default=True)
@click.option("--secret", required=True, help="The name of the secret that signs (SECRET_<NAME> of the bridge).")
@tenant
def put_webhook(name: str, url: str, types: tuple[str, ...], secret: str, tenant: str) -> None:
    runner().put_webhook(name, url, types, secret, tenant=tenant, **by_me())
    click.echo(f"put {name}")


@webhooks.command("send-again")
@click.argument("name")
@tenant
def send_again(name: str, tenant: str) -> None:
    """Deliveries that were given up."""
    click.echo(f"{runner().send_webhook_again(name, tenant=tenant, **by_me())} deliveries are sent again")


@webhooks.command("delete")
@click.argument("name")
@tenant
def delete_webhook(name: str, tenant: str) -> None:
    runner().delete_webhook(name, tenant=tenant, **by_me())
    click.echo(f"deleted {name}")


COMMANDS = [events, triggers, webhooks]
