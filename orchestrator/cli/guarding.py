"""Who may: API keys; and who did what: the audit, its export, and whether anybody tampered with it."""

from __future__ import annotations

import json

import click
from rich.markup import escape

from orchestrator.cli.console import as_json, by_me, narrowing, out, print_json, print_table, runner
from orchestrator.cli.looking import short
from orchestrator.engine import keyring
from orchestrator.security.principals import ROLES
from orchestrator.store import security
from orchestrator.store.security import AuditFilter


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """API keys: who may do what, until when."""
    if context.invoked_subcommand is None:
        context.invoke(list_keys)


@keys.command("ls")
@as_json
def list_keys(as_json: bool) -> None:
    found = runner().database.patiently(security.all_keys)
    if as_json:
        print_json(found)
        return
    rows = [
        {**one, "roles": ", ".join(one["roles"]), "workflows": ", ".join(one["workflows"]), "until": one["revoked_at"] or one["expires_at"]}
        for one in found
    ]
    columns = {
        "id": "ID",
        "name": "NAME",
        "tenant": "TENANT",
        "roles": "ROLES",
        "workflows": "WORKFLOWS",
        "until": "UNTIL",
        "used_at": "USED",
    }
    print_table(rows, columns, empty="no keys; `orchestrator keys add NAME --role admin` makes one")


@keys.command("add")
@click.argument("name")
@click.option("--role", "roles", multiple=True, type=click.Choice(sorted(ROLES)), default=("user",), show_default=True)
@click.option("--tenant", default="default", show_default=True)
@click.option("--scope", "scopes", multiple=True, help="A further permission that workflows may ask for, as data:read.")
@click.option("--workflow", "workflows", multiple=True, help="A pattern of workflows it may start and act on; else all.")
@click.option("--lasts", help="How long it holds, as 90d; else until it is revoked.")
def add_key(name: str, roles: tuple[str, ...], tenant: str, scopes: tuple[str, ...], workflows: tuple[str, ...], lasts: str | None) -> None:
    """A new key. It is printed this once; only its hash is kept."""
    made = keyring.add(runner().runtime, name, roles, tenant=tenant, scopes=scopes, workflows=workflows, lasts=lasts, **by_me())
    click.echo(made["key"])


@keys.command("rotate")
@click.argument("key_id")
@click.option("--overlap", default="1h", show_default=True, help="How long the old one still holds.")
def rotate_key(key_id: str, overlap: str) -> None:
    """A successor that may what it may."""
    click.echo(keyring.rotate(runner().runtime, key_id, overlap, **by_me())["key"])


@keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    by = by_me()
    keyring.revoke(runner().runtime, key_id, actor=by["actor"], source=by["source"])
    click.echo(f"revoked {key_id}")


BY_ITSELF = ("begin", "complete", "fail")


@click.group(invoke_without_command=True)
@click.option("--instance", "instance_id", callback=narrowing)
@click.option("--actor", callback=narrowing)
@click.option("--action", callback=narrowing)
@click.option("--workflow", callback=narrowing)
@click.option("--since", callback=narrowing, help="As 2026-01-31T12:00:00Z.")
@click.option("--until", callback=narrowing)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@as_json
@click.pass_context
def audit(
    context: click.Context, instance_id: str | None, actor: str | None, action: str | None, workflow: str | None, since: str | None,
    until: str | None, limit: int, as_json: bool,
) -> None:  # fmt: skip
    """Who did what, when, from where; the newest first."""
    wanted = AuditFilter(
        actor=actor, action=action, workflow=workflow, since=since, until=until,
        instance_id=runner().resolve_id(instance_id) if instance_id else None,
    )  # fmt: skip
    context.obj = wanted
    if context.invoked_subcommand is not None:
        return
    rows = runner().database.patiently(lambda c: security.audited(c, wanted, limit))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["moved"] = f"{row['from_state'] or '·'} → {row['to_state']}" if row["to_state"] else ""
        row["detail"] = short(row["detail"])
    columns = {
        "at": "AT", "actor": "ACTOR", "source": "SOURCE", "address": "ADDRESS", "action": "ACTION", "moved": "MOVE",
        "instance_id": "INSTANCE", "detail": "DETAIL",
    }  # fmt: skip
    by_itself = instance_id is None and (action in BY_ITSELF or actor == "engine")
    empty = (
        "nothing here: what instances do by themselves stands with each of them; `--instance ID` shows it" if by_itself else "nothing yet"
    )
    print_table(rows, columns, empty=empty, cells={"at": lambda at: str(at)[:19].replace("T", " ")})


@audit.command()
@click.pass_obj
def export(wanted: AuditFilter) -> None:
    """All that the filter before it finds, one JSON object a line."""
    before: int | None = None
    while rows := runner().database.patiently(lambda c, b=before: security.audited(c, wanted, 1000, 0, b)):  # type: ignore[misc]
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        before = security.cursor_after(rows)
        if before is None:
            return


@audit.command()
def verify() -> None:
    """Whether what was sealed is still what is there. Exits with 1 where it is not."""
    seals, rows, faults = runner().database.patiently(security.verify)
    for fault in faults:
        out.print(f"[red]✖[/] {escape(fault)}")
    if faults:
        raise SystemExit(1)
    if not seals:
        out.print("nothing is sealed yet: a worker seals what is older than two minutes")
        return
    out.print(f"[green]✔[/] {rows:,} rows under {seals:,} seals are as they were sealed")


COMMANDS = (keys, audit)
