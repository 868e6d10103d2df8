"""Settings as they are in force; and configurations of workflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml
from rich.markup import escape

from orchestrator.cli.console import as_json, by_me, out, print_json, print_table, runner
from orchestrator.cli.eventful import tenant
from orchestrator.config import process
from orchestrator.config.environment import DEFAULT
from orchestrator.config.settings import shown
from orchestrator.definition.documents import parse

environment = click.option("--environment", help="development, staging, production or test; else ENVIRONMENT.")


@click.command()
@as_json
@click.option("--all", "everything", is_flag=True, help="Defaults, too.")
def config(as_json: bool, everything: bool) -> None:
    """Every setting as it is in force, and where it comes from. Secrets are not shown."""
    loaded = process.loaded()
    rows = [
        {"variable": name, "value": text, "source": source}
        for name, text, source in shown(loaded)
        if everything or as_json or source != DEFAULT
    ]
    for warning in loaded.warnings:
        click.secho(f"warning: {warning}", fg="yellow", err=True)
    if as_json:
        print_json(rows)
        return
    print_table(
        rows, {"variable": "VARIABLE", "value": "VALUE", "source": "FROM"}, empty="everything is as it comes; --all shows the defaults"
    )


@click.group(invoke_without_command=True)
@click.pass_context
def configs(context: click.Context) -> None:
    """Configurations of workflows: what operators set without touching definitions."""
    if context.invoked_subcommand is None:
        context.invoke(list_configs)


@configs.command("ls")
@environment
@tenant
@as_json
def list_configs(environment: str | None, tenant: str, as_json: bool) -> None:
    current = runner().configs
    rows: list[dict[str, Any]] = [
        {"id": one.workflow, "number": one.number, "origin": one.origin, "at": one.at, "actor": one.actor, "spec": one.spec}
        for one in current.all(tenant, environment)
    ]
    if as_json:
        print_json(rows)
        return
    for fault in current.faults():
        out.print(f"[red]✖[/] {escape(fault['file'])} is left out: {escape(fault['message'])}")
    print_table(
        [{**row, "sets": ", ".join(key for key in row["spec"] if key not in ("id", "name", "nameSpace", "version"))} for row in rows],
        {"id": "WORKFLOW", "number": "VERSION", "sets": "SETS", "origin": "FROM", "actor": "BY", "at": "AT"},
        empty="no configurations; `orchestrator configs put FILE` makes one",
    )


@configs.command("show")
@click.argument("workflow")
@environment
@tenant
def show_config(workflow: str, environment: str | None, tenant: str) -> None:
    click.echo(yaml.safe_dump(runner().configs.load(workflow, tenant, environment).spec, sort_keys=False, allow_unicode=True), nl=False)


def _specs(file: Path) -> list[Any]:
    data = parse(file.read_text(encoding="utf-8"), file.name)
    several = data.get("configs") if isinstance(data, dict) else data
    return several if isinstance(several, list) else [data]


@configs.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def validate_configs(files: tuple[Path, ...]) -> None:
    """Every fault and every warning. Exits with 1 where there are faults."""
    is_valid = True
    for file in files:
        for spec in _specs(file):
            told = runner().configs.validate(spec)
            is_valid &= told["isValid"]
            name = spec.get("id") if isinstance(spec, dict) else file.name
            out.print(f"{'[green]✔[/]' if told['isValid'] else '[red]✖[/]'} {escape(str(name))}")
            for kind, colour in (("errors", "red"), ("warnings", "yellow")):
                for one in told[kind]:
                    out.print(f"  [{colour}]{escape(one['place'])}[/] {escape(one['message'])}")
    raise SystemExit(0 if is_valid else 1)


@configs.command("put")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@environment
@tenant
def put_configs(files: tuple[Path, ...], environment: str | None, tenant: str) -> None:
    """Make or change configurations; they hold from the next start on."""
    for file in files:
        for spec in _specs(file):
            saved = runner().configs.save(spec, tenant=tenant, environment=environment, **by_me())
            click.echo(f"{saved.workflow} is version {saved.number} in {saved.environment}")


@configs.command("versions")
@click.argument("workflow")
@environment
@tenant
def list_versions(workflow: str, environment: str | None, tenant: str) -> None:
    rows: list[dict[str, Any]] = [
        {"number": one.number, "at": one.at, "actor": one.actor, "origin": one.origin, "state": "" if one.spec else "deleted"}
        for one in runner().configs.versions(workflow, tenant, environment)
    ]
    print_table(rows, {"number": "VERSION", "at": "AT", "actor": "BY", "origin": "FROM", "state": ""}, empty="it was never configured")


@configs.command("diff")
@click.argument("workflow")
@click.argument("older", type=int)
@click.argument("newer", type=int)
@environment
@tenant
def diff_configs(workflow: str, older: int, newer: int, environment: str | None, tenant: str) -> None:
    for one in runner().configs.difference(workflow, older, newer, tenant=tenant, environment=environment):
        colour = {"added": "green", "removed": "red", "modified": "yellow"}[one["change"]]
        out.print(
            f"[{colour}]{one['change']:<8}[/] {escape(one['place'])}  {escape(str(one.get('before', '')))} → {escape(str(one.get('after', '')))}"
        )


@configs.command("rollback")
@click.argument("workflow")
@click.argument("to", type=int)
@environment
@tenant
def roll_back(workflow: str, to: int, environment: str | None, tenant: str) -> None:
    """An older version once more, as the newest."""
    click.echo(
        f"version {runner().configs.roll_back(workflow, to, tenant=tenant, environment=environment, **by_me()).number} is what version {to} was"
    )


@configs.command("migrate")
@click.argument("start")
@click.argument("to")
@tenant
def migrate_configs(start: str, to: str, tenant: str) -> None:
    """What holds in one environment, in another."""
    told = runner().configs.migrate(start, to, tenant=tenant, **by_me())
    click.echo(f"migrated {', '.join(told['migrated']) or 'nothing'}; unchanged {', '.join(told['unchanged']) or 'nothing'}")


@configs.command("delete")
@click.argument("workflow")
@environment
@tenant
def delete_config(workflow: str, environment: str | None, tenant: str) -> None:
    runner().configs.delete(workflow, tenant=tenant, environment=environment, **by_me())
    click.echo(f"deleted {workflow}")


COMMANDS = (config, configs)
