"""Bringing things up and looking after them: up, doctor, migrate, bench."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import psycopg
import redis
from rich.markup import escape

import orchestrator
from orchestrator import reach
from orchestrator.cli.console import as_json, out, print_json
from orchestrator.config import process
from orchestrator.config.settings import Settings
from orchestrator.definition.durations import shown
from orchestrator.definition.parsing import printable
from orchestrator.store import figures, findings, lacking, queries, wall, workers
from orchestrator.store.connection import Unfit, connect, refuse_shared_sessions


@click.command()
@click.option("--dev", is_flag=True, help="Load code again when it changes, and register changed workflows under the next version.")
def up(dev: bool) -> None:
    """Run everything in one terminal: PostgreSQL, Redis, web, worker, beat, bridge, gateway, Flower.

    Servers that DATABASE_URL and REDIS_URL name, in the environment or in .env, are used; the others are started. Ctrl-C stops it
    all; so does "orchestrator down" in another terminal.

    \b
    Example:
      orchestrator up --dev
    """
    from orchestrator.dev.supervisor import Supervisor

    sys.exit(Supervisor(dev=dev, echo=click.echo).run())


@click.command()
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait until it has stopped.")
def down(timeout: float) -> None:
    """Stop the stack of this folder, and what a crashed one left behind.

    \b
    Example:
      orchestrator down
    """
    from orchestrator.dev.supervisor import down as stop

    folder = Path(process.settings().home)
    click.echo("stopped" if stop(folder, click.echo, timeout_s=timeout) else f"nothing runs from {folder.absolute()}")


@click.command()
def env() -> None:
    """Print the addresses of PostgreSQL and Redis as shell variables, for psql, redis-cli and other programs.

    \b
    Example:
      eval "$(orchestrator env)"
      redis-cli XLEN events:bus
    """
    held = process.settings()
    parts = urlsplit(held.redis_url)
    database = urlsplit(held.database_url.split(",")[0])
    variables = {
        "DATABASE_URL": held.database_url,
        "REDIS_URL": held.redis_url,
        "REDISCLI_AUTH": unquote(parts.password or ""),
        "PGHOST": database.hostname or "",
        "PGPORT": str(database.port or 5432),
        "PGUSER": unquote(database.username or ""),
        "PGPASSWORD": unquote(database.password or ""),
        "PGDATABASE": database.path.lstrip("/"),
    }
    for name, text in variables.items():
        if text:
            click.echo(f"export {name}={shlex.quote(text)}")


@click.command("redis", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True)
def redis_command(command: tuple[str, ...]) -> None:
    """Send one command to Redis and print its answer, as redis-cli does into a pipe: each value on a line of its own.

    \b
    Example:
      orchestrator redis XADD events:bus '*' eventType cms.content.updated payload '{"serviceId": 123}'
    """
    client = redis.Redis.from_url(process.settings().redis_url, decode_responses=True, encoding_errors="replace", retry=None)
    connection: Any = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)
        for one in _values(connection.read_response()):
            click.echo("" if one is None else one)
    except redis.ResponseError as error:
        raise click.ClickException(str(error)) from None
    finally:
        client.connection_pool.release(connection)
        client.close()


def _values(answer: Any) -> list[Any]:
    """An answer without its structure."""
    if isinstance(answer, dict):
        return [value for pair in answer.items() for one in pair for value in _values(one)]
    return [value for one in answer for value in _values(one)] if isinstance(answer, list | set | tuple) else [answer]


@click.command()
def migrate() -> None:
    """Bring the database to the schema of this version."""
    from orchestrator.store import migrate as migrations

    settings = process.settings()
    url, schema = settings.database_url, settings.database_schema
    before = migrations.current_revision(url, schema)
    for remark in migrations.upgrade(url, schema):
        click.secho(remark, fg="yellow", err=True)
    after = migrations.current_revision(url, schema)
    click.echo(f"schema {schema} at revision {after}" + (" (nothing to do)" if before == after else f" (was {before or 'empty'})"))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def flower(more: tuple[str, ...]) -> None:
    """Flower, behind the API's own credentials where AUTH=on; further options are Flower's."""
    from orchestrator import dashboard
    from orchestrator.app import app
    from orchestrator.starting import begin

    settings = begin("flower")
    reach.await_servers(reach.check_broker)
    told = dashboard.arguments(settings)
    if settings.auth == "on":
        dashboard.guard(settings)
    app.start(["flower", *told, *more])


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def web(more: tuple[str, ...]) -> None:
    """Serve the API at HOST and PORT, with WEB_WORKERS and WEB_THREADS; further options are gunicorn's.

    \b
    Example:
      orchestrator web --access-logfile -
    """
    from gunicorn.app import wsgiapp

    from orchestrator.api import serving
    from orchestrator.starting import begin

    sys.argv[:] = serving.command(begin("web"), *more)
    wsgiapp.run()


@click.command()
def bridge() -> None:
    """Bring events in and out: Redis streams, Pub/Sub, the trigger queue, webhooks. Several may run.

    SIGTERM ends it when what it began is done.
    """
    import signal

    from orchestrator.app import runtime
    from orchestrator.engine.runner import WorkflowRunner
    from orchestrator.starting import begin
    from orchestrator.stream.bridge import Bridge
    from orchestrator.telemetry import metrics, scrape

    held = begin("bridge")
    reach.await_servers()
    made = Bridge(runtime())
    if held.reconcile_s:
        from orchestrator.cli.proxying import reconciler

        made.beside.append(reconciler())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: made.stop())
    if held.bridge_port:
        metrics.enable()
        scrape.both(held.bridge_port, made.health, held.metrics_host)
    WorkflowRunner.instance()
    made.run()


@click.command()
@as_json
@click.option("--stuck-after", default=300.0, show_default=True, help="Seconds without progress that count as stuck.")
def doctor(as_json: bool, stuck_after: float) -> None:
    """Is all well? Servers, schema, workers, stuck instances; each fault with its remedy."""
    checks = list(_checks(stuck_after))
    if as_json:
        print_json([{"check": name, "ok": ok, "detail": detail, "remedy": remedy} for name, ok, detail, remedy in checks])
    else:
        for name, ok, detail, remedy in checks:
            out.print(f"{'[green]✔[/]' if ok else '[red]✖[/]'} {name:<12} {escape(detail)}")
            if not ok and remedy:
                out.print(f"  [yellow]{remedy}[/]")
    sys.exit(0 if all(ok for _, ok, _, _ in checks) else 1)


def _checks(stuck_after: float) -> Any:
    from orchestrator.app import app
    from orchestrator.schedule import beats
    from orchestrator.store.migrate import revision_of

    loaded = process.loaded()
    settings = loaded.settings
    origins = sorted(set(loaded.sources.values())) or ["defaults"]
    yield "settings", not loaded.warnings, "; ".join(loaded.warnings) or f"from {', '.join(origins)}", "correct the name, or remove it"
    try:
        with connect(settings.database_url, settings.database_schema, timeout_s=3) as c:
            version = c.info.server_version // 10000
            try:
                refuse_shared_sessions(settings.database_url, settings.database_schema, c)
            except Unfit as error:
                yield "postgres", False, str(error), ""
                return
            yield "postgres", True, f"PostgreSQL {version}", ""
            revision = revision_of(c)
            yield "schema", revision is not None, f"{settings.database_schema}, revision {revision}", "run `orchestrator migrate`"
            if revision is None:
                return
            stands = wall.stands(c, settings.database_schema)
            yield (
                "tenants",
                stands,
                "kept apart by the API and by Postgres" if stands else "kept apart by the API alone",
                f"let an administrator run `{wall.remedy(c, settings.database_schema)}`, then run `orchestrator migrate`",
            )
            signed = queries.workers(c)
            alive = [w for w in signed if w["silent_s"] < 3 * settings.heartbeat_s]
            keeper = any(w["leads"] for w in signed)
            detail = ", ".join(f"{w['hostname']} ({w['concurrency']} processes, holds {w['holds']})" for w in alive) or "none"
            yield "workers", bool(alive), detail, "start one: `celery -A orchestrator.app worker`, or `make up`"
            if alive:
                yield (
                    "keeper",
                    keeper,
                    "timers and recovery are kept" if keeper else "nobody keeps timers",
                    "it is taken over within seconds; look again",
                )
            yield from _at_fault(c, alive)
            beat = beats.standing(app, c)
            yield "beat", not beat.is_missed, str(beat), "look at it, and start it again: `celery -A orchestrator.app beat`"
            stuck = queries.without_progress(c, stuck_after)
            detail = f"{len(stuck)} branches without progress for {stuck_after:g} s" + "".join(
                f"\n    {s['workflow']} {s['id']} {s['position'] or '/'} {s['state']} {s['doing'] or ''}" for s in stuck[:5]
            )
            yield "progress", not stuck, detail, "`orchestrator show ID` says what each does; give long steps a timeout"
            statistics = queries.stats(c)
            yield (
                "outbox",
                statistics["outbox"] < 10_000,
                f"{statistics['outbox']} events to be relayed",
                "is Redis there? the keeper relays them when it is back",
            )
            connections, longest_s = figures.at_work_in_postgres(c)
            yield (
                "statements",
                longest_s < LONG_STATEMENT_S,
                f"{connections} connections, the oldest statement has been at work for {longest_s:.1f} s",
                "`select pid, query from pg_stat_activity where state = 'active'` says which; SLOW_QUERY logs them",
            )
            yield from _events(settings, c)
            letters = statistics["dead_letters"]
            yield (
                "dead letters",
                letters == 0,
                f"{letters}",
                "`orchestrator dead-letters` lists them; `orchestrator retry ID` tries again, `orchestrator dead-letters ack NUMBER` lets it be",
            )
    except psycopg.OperationalError as error:
        yield "postgres", False, *_remedy(reach.postgres(loaded).away(reach.why(error)))
    try:
        server = redis.Redis.from_url(settings.redis_url, socket_connect_timeout=2, retry=None)
        server.ping()
        policy = server.config_get("maxmemory-policy").get("maxmemory-policy", "")
        yield (
            "redis",
            policy in ("noeviction", ""),
            f"answers, {policy}",
            "set maxmemory-policy noeviction: evicted messages and schedules are lost time",
        )
    except redis.RedisError as error:
        yield "redis", False, *_remedy(reach.redis_server(loaded).away(reach.why(error)))
    free = shutil.disk_usage(".").free // 2**20
    yield "disk", free > 500, f"{free:,} MiB free", "make room"


def _at_fault(c: Any, alive: list[dict[str, Any]]) -> Any:
    """What did not load, what code is missing, and what fails since when."""
    from orchestrator.engine.runner import WorkflowRunner

    left_out = {(one["kind"], one["name"]): one for worker in alive for one in worker["left_out"] or ()}
    # Workers load code, and do not register it: what differs from what is registered is seen here.
    left_out |= {(one.kind, one.name): one.to_json() for one in WorkflowRunner.instance().left_out if one.kind == "workflow"}
    yield (
        "workflows",
        not left_out,
        "all of them loaded" if not left_out else _lines(f"{_place(one)}: {one['reason']}" for one in left_out.values()),
        "mend the file; workers load it when they start",
    )
    unserved = workers.unserved(c)
    yield (
        "queues",
        not unserved,
        "workers take from all in which something waits" if not unserved else _lines(
            f"{one.branches} branches wait in {one.queue} since {shown(one.for_s)}, and no worker takes from it"
            f" ({one.workflow} {one.instance})"
            for one in unserved
        ),
        "start a worker with `-Q <queue>`, set WORKER_QUEUES, or correct the queue of the step",
    )  # fmt: skip
    missing = lacking.listing(c)
    yield (
        "code",
        not missing,
        "no branch waits for code" if not missing else _lines(
            f"{one['branches']} branches wait for {one['code']} since {shown(one['for_s'])} ({one['workflow']} {one['instance']})"
            for one in missing
        ),
        "start a worker that has it: `orchestrator workflows` and the workers' logs say what did not import",
    )  # fmt: skip
    found = findings.listing(c)
    yield (
        "findings",
        not found,
        "none" if not found else _lines(
            f"{one['kind']} {one['subject']} since {one['since']} ({one['times']} times): {one['message']}" for one in found
        ),
        "each goes by itself when what it is about is well again",
    )  # fmt: skip


def _place(one: dict[str, Any]) -> str:
    place = one.get("file", "")
    return f"{one['kind']} {one['name']}" + (f" ({place}:{one['line']})" if one.get("line") else f" ({place})" if place else "")


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"\n    {printable(text, 400)}" for text in texts)


def _remedy(away: reach.Away) -> tuple[str, str]:
    """What is so, and what to do about it."""
    what, _, remedy = str(away).partition(". ")
    return f"{what}.", remedy


LONG_STATEMENT_S = 10.0
HIGH_LAG = 1_000
MANY_DESCRIPTORS = 512
MUCH_MEMORY_MB = 512


def _events(settings: Settings, c: Any) -> Any:
    """The four troubles of events: not processed, done twice, leaking, lagging."""
    from orchestrator.store import events
    from orchestrator.stream.bridge import standing
    from orchestrator.stream.state import StateKeys
    from orchestrator.stream.stores import StoreAway

    try:
        found = standing(settings, c, patterns=True)
    except StoreAway as error:
        yield "events", False, f"the event store does not answer: {error}", "is Redis there? events wait in their streams"
        return
    missing = [f"{one['group']} on {one['stream']}" for one in found if not one["exists"]]
    idle = sorted({one["group"] for one in found if not one["consumers"]})
    yield (
        "consumers",
        not missing and not idle,
        f"no group {', '.join(missing)}" if missing else f"nobody reads as {', '.join(idle)}" if idle else
        "; ".join(f"{one['stream']}: {', '.join(one['consumers'])}" for one in found),
        "start a bridge: `orchestrator bridge`, or `make up`; it makes missing groups again within seconds",
    )  # fmt: skip
    lag = max((one["waiting"] + one["pending"] for one in found), default=0)
    yield (
        "lag",
        lag < HIGH_LAG,
        f"{lag:,} entries wait or are at work",
        "start further bridges or workers; `orchestrator events` shows what is at work",
    )
    doubles = events.duplicates(c)
    yield "idempotency", doubles == 0, f"{doubles} effects were doubled", "report it: the inbox should make that impossible"
    keys = StateKeys(settings)
    info = keys.info()
    keys.close()
    descriptors, memory = int(info.get("descriptors", 0)), int(info.get("memory_mb", 0))
    yield (
        "leaks",
        descriptors < MANY_DESCRIPTORS and memory < MUCH_MEMORY_MB,
        f"the bridge holds {descriptors} descriptors and {memory} MiB",
        "restart it (SIGTERM; what it began is finished), and watch whether they grow again",
    )
    dead = events.count_by_state(c)["dead"]
    yield (
        "dead events",
        dead == 0,
        f"{dead}",
        "`orchestrator events ls --state dead` says why; `orchestrator events replay NUMBER` tries again",
    )


@click.command()
@click.argument("measures", nargs=-1)
def bench(measures: tuple[str, ...]) -> None:
    """Measure, beside bare Celery, DBOS and a floor. From a checkout: see benchmarks/."""
    checkout = Path(orchestrator.__file__).parents[1]
    if not (checkout / "benchmarks/rig.py").exists():
        raise click.UsageError("benchmarks are part of a checkout of the project, not of the installed package")
    sys.exit(subprocess.run([sys.executable, "-m", "benchmarks", *measures], check=False, cwd=checkout).returncode)


COMMANDS = [up, down, env, redis_command, migrate, web, bridge, flower, doctor, bench]
