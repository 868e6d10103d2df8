"""Documents: validate and register them, run them without services; and the shell's completion."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from orchestrator.cli.console import JSON_TEXT, as_json, given_json, out, parse_json, print_json, runner
from orchestrator.definition.documents import read_document
from orchestrator.definition.drawing import mermaid
from orchestrator.definition.tree import Definition
from orchestrator.definition.validate import check
from orchestrator.errors import Fault, Invalid, OrchestratorError
from orchestrator.starting import EXIT_REFUSED
from orchestrator.steps.registry import REGISTRY

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _read(path: Path) -> tuple[Definition, str]:
    if path.suffix == ".py":
        said = "This is Python, whose workflows are checked when their module is loaded."
        raise Invalid([Fault("", said, "See `orchestrator workflows`, and what `orchestrator doctor` says is left out.")], path.name)
    text = path.read_text(encoding="utf-8")
    definition = read_document(text, str(path))
    check(definition, REGISTRY)
    return definition, text


def _discover() -> None:
    """Step types of the project's own modules count as known."""
    from orchestrator.config import process
    from orchestrator.engine.catalog import discover

    discover(process.settings().workflows)


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
def validate(files: tuple[Path, ...]) -> None:
    """Check workflow documents; every fault with its place. Exit code 2 when there is one."""
    _discover()
    refused = 0
    for path in files:
        try:
            definition, _ = _read(path)
            click.echo(f"{path}: {definition.ref} is valid")
        except (OrchestratorError, OSError, UnicodeDecodeError) as error:
            refused += 1
            click.secho(f"{path}: {error}", fg="red", err=True)
    sys.exit(EXIT_REFUSED if refused else 0)


@click.command()
@click.argument("file", type=FILE)
def graph(file: Path) -> None:
    """Print the flow of a document as a Mermaid flowchart."""
    _discover()
    definition, _ = _read(file)
    click.echo(mermaid(definition), nl=False)


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--tenant", default="default", show_default=True, help="For this tenant alone.")
def register(files: tuple[Path, ...], tenant: str) -> None:
    """Register workflow documents with the running engine; nothing needs a restart."""
    current = runner()
    for path in files:
        definition, text = _read(path)
        _, changed = current.put_workflow(definition, text, tenant=tenant)
        click.echo(f"registered {definition.ref}" if changed else f"unchanged {definition.ref}: it is registered already as it is")


@click.command("run")
@click.argument("file", type=FILE)
@click.option("-i", "--input", "input_text", type=JSON_TEXT, help="The input as JSON; `@file` reads a file, `-` standard input.")
@click.option("--also", "others", multiple=True, type=FILE, help="A further document, which this one may run as a child.")
@click.option(
    "--event", "events", multiple=True, metavar="JSON", help="An event that is sent when nothing else can happen; several, in order."
)
@as_json
def run_file(file: Path, input_text: str | None, others: tuple[Path, ...], events: tuple[str, ...], as_json: bool) -> None:
    """Run a document in this process, without any service, and print what happened."""
    from orchestrator.config import process
    from orchestrator.embedded import Embedded

    _discover()
    definition, _ = _read(file)
    engine = Embedded(decision_limit=process.settings().decision_limit)
    for path in others:
        engine.register(_read(path)[0])
    instance = engine.start(definition, given_json(input_text, "--input"))
    for number, text in enumerate(events):
        engine.settle()
        event = parse_json(text, "--event")
        engine.send(
            {"specversion": "1.0", "id": f"cli-{number}", "source": "/cli", **(event if isinstance(event, dict) else {"data": event})}
        )
    engine.finish(instance)
    if as_json:
        print_json({"state": instance.state, "output": instance.output, "error": instance.error})
    else:
        for fact in instance.history:
            out.print(f"[dim]{fact.kind:<20}[/] {fact.position}")
        out.print(f"{instance.state} {instance.output if instance.error is None else instance.error['message']}")
    sys.exit(0 if instance.state == "COMPLETED" else 1)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: `eval "$(orchestrator completion bash)"`."""
    from click.shell_completion import get_completion_class

    from orchestrator.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "orchestrator", "_ORCHESTRATOR_COMPLETE").source())


COMMANDS = [validate, graph, register, run_file, completion]
