"""Starting and moving instances: start, pause, resume, cancel, retry, rerun, rollback, signal, skip_wait, approve, label, cleanup."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from orchestrator.cli.completing import complete_ids, complete_waiting, complete_workflows, id_argument
from orchestrator.cli.console import JSON_TEXT, as_json, by_me, given_json, going_on, out, print_json, print_summary, runner, tree_of
from orchestrator.cli.looking import filtered
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.labels import read_labels
from orchestrator.state import TERMINAL
from orchestrator.store.queries import Filter


def _duration(context: click.Context, parameter: click.Parameter, given: str | None) -> float | None:
    try:
        return None if given is None else seconds(given)
    except BadDuration as error:
        raise click.BadParameter(str(error)) from None


EXIT_NOT_ENDED = 5


@click.command()
@click.argument("workflow", shell_complete=complete_workflows)
@click.option("-i", "--input", "input_text", type=JSON_TEXT, help="The input as JSON; `@file` reads a file, `-` standard input.")
@click.option("--version", "version", help="A version, or a major for its newest.")
@click.option("--priority", type=click.Choice(["low", "normal", "high", "critical"]))
@click.option("--key", "idempotency_key", help="Idempotency key: the same key starts one instance.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE")
@click.option("--tenant", help="Whose instance it is; `default` when not said.")
@click.option(
    "--after", "after", multiple=True, metavar="WORKFLOW[:CONDITION]", help="Wait for another workflow first (completed, failed, any)."
)
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 1 when it fails.")
@click.option("--wait-timeout", metavar="DURATION", callback=_duration, help="Wait so long, e.g. 30s; then exit code 5, and it goes on.")
@click.option("--watch", "watching", is_flag=True, help="Follow it live.")
@as_json
def start(
    workflow: str,
    input_text: str | None,
    version: str | None,
    priority: str | None,
    idempotency_key: str | None,
    labels: tuple[str, ...],
    tenant: str | None,
    after: tuple[str, ...],
    wait: bool,
    wait_timeout: float | None,
    watching: bool,
    as_json: bool,
) -> None:
    """Start an instance of WORKFLOW and print its id."""
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout says how long --wait waits; give both")
    dependencies = [
        {"workflow": name, "condition": condition or "completed"} for name, _, condition in (item.partition(":") for item in after)
    ]
    instance_id = runner().start_workflow(
        workflow,
        version,
        given_json(input_text, "--input"),
        priority=priority,
        idempotency_key=idempotency_key,
        labels=read_labels(labels) or None,
        tenant=tenant,
        dependencies=dependencies or None,
        **by_me(),
    )
    if watching:
        from orchestrator.cli.looking import follow

        sys.exit(follow(instance_id))
    if wait and not _wait(instance_id, wait_timeout):
        click.echo(f"{instance_id} has not ended, and goes on; `orchestrator watch {instance_id}` looks on", err=True)
        sys.exit(EXIT_NOT_ENDED)
    status = runner().get_workflow_status(instance_id)
    if as_json:
        print_json(
            status
            if wait
            else {"id": instance_id, "workflow": status["workflow"], "version": status["version"], "status": status["status"]}
        )
    elif wait:
        seen = runner().show(instance_id)
        out.print(tree_of(seen))
        print_summary(seen)
    else:
        click.echo(instance_id)
    sys.exit(0 if not wait or status["outcome"] == "COMPLETED" else 1)


def _wait(instance_id: str, timeout_s: float | None) -> bool:
    """Whether it ended in time."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause = 0.02
    with going_on(instance_id):
        while str(runner().show(instance_id).instance["state"]) not in (*TERMINAL, "CLEANING_UP"):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)  # a person waits; the engine tells nobody who does not listen
            pause = min(pause * 1.3, 0.5)
    return True


MOST_UNASKED = 10


def _be_sure(verb: str, found: dict[str, int], limit: int | None, is_sure: bool) -> None:
    """Says how many a filter finds, and goes no further with many unless somebody meant it."""
    total = sum(found.values())
    if not total:
        return
    states = ", ".join(f"{number:,} {state}" for state, number in found.items())
    number = min(total, limit or total)
    click.echo(f"{total:,} match ({states})" + (f"; the newest {number:,} of them" if number < total else ""), err=True)
    if is_sure or number <= MOST_UNASKED:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{verb} of {number:,} instances needs --yes; --limit or a narrower filter makes them fewer")
    click.confirm(f"{verb} {number:,} instances?", abort=True, err=True)


def _verb(name: str, done: str, help: str, act: Callable[[str, dict[str, Any]], Any], options: list[Any] | None = None) -> click.Command:
    """A command that moves one instance, several, or all that a filter finds."""

    @click.command(name, help=f"{help} By ID, or all that a filter finds.")
    @click.argument("ids", nargs=-1, shell_complete=complete_ids)
    @filtered
    @click.option("--yes", "is_sure", is_flag=True, help=f"Also when a filter finds more than {MOST_UNASKED}, without asking.")
    @as_json
    def command(ids: tuple[str, ...], wanted: Filter | None, limit: int | None, is_sure: bool, as_json: bool, **options: Any) -> None:
        if not ids and wanted is None:
            raise click.UsageError("name instances, or give a filter such as --workflow order --state FAILED")
        if ids and wanted is not None:
            raise click.UsageError("name instances, or give a filter; both together say two things")
        current = runner()
        given = {key: value for key, value in options.items() if value is not None}
        if wanted is not None:
            _be_sure(name, current.count_by_state(wanted), limit, is_sure)
            outcome = current.bulk(name, wanted, most=limit, **given, **by_me())
        else:
            outcome = {}
            for text in ids:
                instance_id = current.resolve_id(text)
                act(instance_id, {**given, **by_me()})
                outcome[instance_id] = "ok"
        if as_json:
            print_json(outcome)
        else:
            for instance_id, said in outcome.items():
                click.echo(f"{instance_id} {done if said == 'ok' else said}")
        refused = sum(said != "ok" for said in outcome.values())
        if wanted is not None:
            told = f"{len(outcome) - refused} {done}" + (f", {refused} refused" if refused else "")
            click.echo(told if outcome else "no instance matches", err=True)
        sys.exit(2 if refused else 0)

    for option in options or []:
        command = option(command)
    return command


pause = _verb("pause", "paused", "Let the step in progress end, and begin no other.", lambda i, o: runner().pause_workflow(i, **o))
resume = _verb("resume", "resumed", "Go on at the next step.", lambda i, o: runner().resume_workflow(i, **o))
retry = _verb("retry", "retried", "Continue a failed instance at its failed step.", lambda i, o: runner().retry_workflow(i, **o))
rollback = _verb(
    "rollback", "rolling back", "Compensate the completed steps of an ended instance.", lambda i, o: runner().rollback_workflow(i, **o)
)
cancel = _verb(
    "cancel",
    "cancelled",
    "Stop an instance, its branches and its children.",
    lambda i, o: runner().cancel_workflow(i, **o),
    [
        click.option("--reason", help="Kept with the instance and in the audit."),
        click.option("--compensate/--no-compensate", default=None, help="Undo completed steps of a saga first."),
    ],
)


@click.command()
@id_argument()
@click.argument("step")
@click.option("-i", "--input", "input_text", type=JSON_TEXT, help="Another input, as JSON or @file.")
def rerun(instance_id: str, step: str, input_text: str | None) -> None:
    """Fork a new instance with the history up to STEP (a name or a position), and go on from there."""
    current = runner()
    click.echo(current.rerun_workflow(current.resolve_id(instance_id), step, input=given_json(input_text, "--input"), **by_me()))


@click.command()
@id_argument()
@click.argument("name")
@click.option("-d", "--data", type=JSON_TEXT, help="The signal's data as JSON, or @file.")
@click.option("--id", "signal_id", help="The same id is delivered once.")
def signal(instance_id: str, name: str, data: str | None, signal_id: str | None) -> None:
    """Send a signal. It is kept until a listener takes it."""
    current = runner()
    current.signal_workflow(current.resolve_id(instance_id), name, given_json(data, "--data"), id=signal_id, **by_me())
    click.echo("delivered")


@click.command("skip-wait")
@id_argument()
@click.argument("step", required=False)
def skip_wait(instance_id: str, step: str | None) -> None:
    """End waits before their time: that of STEP, or all of the instance."""
    current = runner()
    for position in current.skip_wait(current.resolve_id(instance_id), step, **by_me()):
        click.echo(f"skipped {position}")


@click.command()
@id_argument()
@click.argument("step", required=False, shell_complete=complete_waiting)
@click.option("--refuse", is_flag=True, help="Say no.")
@click.option("-d", "--data", type=JSON_TEXT, help="More to be said, as JSON.")
def approve(instance_id: str, step: str | None, refuse: bool, data: str | None) -> None:
    """Answer the approval an instance waits for."""
    current = runner()
    name = current.approve(
        current.resolve_id(instance_id), step, approved=not refuse, data=given_json(data, "--data"), actor=by_me()["actor"], source="cli"
    )
    click.echo(f"{name} {'refused' if refuse else 'approved'}")


@click.command()
@id_argument()
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
def label(instance_id: str, labels: tuple[str, ...]) -> None:
    """Add or change labels; `KEY=` removes one."""
    current = runner()
    pairs = {key: value or None for key, value in read_labels(labels, "label ").items()}
    current.label_workflow(current.resolve_id(instance_id), pairs, **by_me())
    click.echo("labelled")


@click.command()
@click.option("--older-than", default=None, help="Only those that ended so long ago, e.g. 30d; else RETENTION.")
@click.option("--delete", "delete", is_flag=True, help="Delete the record, too; else only the history goes.")
def cleanup(older_than: str | None, delete: bool) -> None:
    """Remove the histories of instances that ended long ago."""
    try:
        age = None if older_than is None else seconds(older_than)
    except BadDuration as error:
        raise click.BadParameter(str(error)) from None
    click.echo(f"{len(runner().cleanup(age, archive=not delete))} cleaned up")


COMMANDS = [start, pause, resume, cancel, retry, rerun, rollback, signal, skip_wait, approve, label, cleanup]
