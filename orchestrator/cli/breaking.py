"""Circuit breakers: how they stand, and closed by hand."""

from __future__ import annotations

import click

from orchestrator.cli.console import as_json, by_me, print_json, print_table, runner

COLOURS = {"CLOSED": "green", "HALF_OPEN": "yellow", "OPEN": "red"}


@click.group(invoke_without_command=True)
@click.pass_context
def breakers(context: click.Context) -> None:
    """What is left alone for a while, because it failed too often."""
    if context.invoked_subcommand is None:
        context.invoke(list_breakers)


@breakers.command("ls")
@as_json
def list_breakers(as_json: bool) -> None:
    found = runner().runtime.breakers.all()
    if as_json:
        print_json(found)
        return
    columns = {
        "name": "NAME",
        "state": "STATE",
        "failures": "FAILURES",
        "retry_in_s": "TRIED IN",
        "opened": "OPENED",
        "refused": "REFUSED",
        "error": "WHY",
    }
    cells = {"state": lambda state: f"[{COLOURS[state]}]{state}[/]"}
    print_table(found, columns, empty="no breaker has been asked yet", cells=cells)


@breakers.command("reset")
@click.argument("name")
def reset_breaker(name: str) -> None:
    """Close it now."""
    runner().reset_breaker(name, **by_me())
    click.echo(f"closed {name}")


COMMANDS = (breakers,)
