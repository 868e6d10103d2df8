"""What is kept sealed: payloads, and secrets that have no better place."""

from __future__ import annotations

import sys

import click

from orchestrator.cli.console import as_json, by_me, print_json, print_table, runner
from orchestrator.errors import NotFound, Refused
from orchestrator.store import secrets as kept
from orchestrator.store.reseal import reseal as seal_anew
from orchestrator.store.sealing import is_on
from orchestrator.store.sealing import new_key as make_key


@click.command("new-key")
def new_key() -> None:
    """Make a key for ENCRYPTION_KEYS."""
    click.echo(make_key())


@click.command()
def reseal() -> None:
    """Seal all payloads anew with the first of ENCRYPTION_KEYS; what was in the clear, too. Everything may go on running."""
    database = runner().database
    if not is_on():
        raise Refused("ENCRYPTION_KEYS names no key; `orchestrator new-key` makes one")
    for column, changed in seal_anew(database.connection()):
        click.echo(f"{column:20} {changed:>8}")


@click.group(invoke_without_command=True)
@click.pass_context
def secrets(context: click.Context) -> None:
    """Secrets kept sealed in Postgres, for definitions that declare them. Files (SECRETS_DIR) and variables come first."""
    if context.invoked_subcommand is None:
        context.invoke(list_secrets)


@secrets.command("ls")
@as_json
def list_secrets(as_json: bool) -> None:
    """Their names; nothing shows a value."""
    found = runner().database.patiently(kept.names)
    if as_json:
        print_json(found)
        return
    print_table(
        found, {"name": "NAME", "changed_at": "CHANGED", "changed_by": "BY"}, empty="none; `orchestrator secrets put NAME` keeps one"
    )


@secrets.command("put")
@click.argument("name")
def put_secret(name: str) -> None:
    """Keep one; its value is read from standard input, or asked for."""
    value = click.prompt("value", hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    if not value:
        raise click.UsageError("no value was given")
    runner().database.patiently(lambda c: kept.put(c, name, value, **by_me()))
    click.echo(f"kept {name}")


@secrets.command("rm")
@click.argument("name")
def remove_secret(name: str) -> None:
    if not runner().database.patiently(lambda c: kept.delete(c, name, **by_me())):
        raise NotFound("secret", name, "`orchestrator secrets` lists them")
    click.echo(f"removed {name}")


COMMANDS = [new_key, reseal, secrets]
