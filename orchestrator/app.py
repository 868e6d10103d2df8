"""The Celery app, put together: settings, engine, executors, maintenance. `celery -A orchestrator.app worker`.

Nothing is read or connected on import: the configuration is computed when Celery first asks for it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import click
from celery import Celery, signals
from click.core import ParameterSource
from kombu import Exchange, Queue

from orchestrator import reach
from orchestrator.config import process
from orchestrator.config.environment import DEFAULT
from orchestrator.config.settings import Settings, shown
from orchestrator.engine import interrupt, triggering
from orchestrator.engine.catalog import discover
from orchestrator.engine.maintenance import MaintenanceStep, QueuesStep
from orchestrator.engine.publish import Publisher
from orchestrator.engine.runtime import PRIORITIES, Runtime
from orchestrator.engine.tasks import register
from orchestrator.errors import Invalid
from orchestrator.schedule.mirror import Mirror
from orchestrator.steps.registry import REGISTRY
from orchestrator.store.connection import Database
from orchestrator.stream.relay import Relay
from orchestrator.stream.stores import withdraw
from orchestrator.telemetry import logs, metrics, tracing

_service: list[str] = []
"""What this process serves as, once it said so: a worker, the API, a bridge … Others are commands and programs of users."""

# A command does not wait for a server that refuses it; a service had its time at the start, and waits for one that was there before.
CLIENT_PATIENCE_S = 0.2
SERVICES = ("worker", "beat", "flower", "events", "multi", "shell")
EXIT_REFUSED, EXIT_AWAY = 2, 4


def settings() -> Settings:
    """The process's own. In Celery's command line, what is wrong with them is said in sentences, not in a traceback."""
    try:
        return process.settings()
    except Invalid as error:
        raise _for_celery(error, exit_code=EXIT_REFUSED) from None


def begin(service: str, *, logging_is_ours: bool = True) -> Settings:
    """What every long-running process does first: read the settings, log as they say, tell what is odd about them."""
    held = settings()
    is_first = not _service
    _service[:] = [service]
    if logging_is_ours:
        logs.configure(held.log_format, held.log_level)
    if is_first:
        tell_settings(service)
    return held


def tell_settings(service: str) -> None:
    log, loaded = logging.getLogger("orchestrator.settings"), process.loaded()
    for warning in loaded.warnings:
        log.warning(warning)
    if log.isEnabledFor(logging.DEBUG):
        for setting, text, source in shown(loaded):
            if source != DEFAULT:
                log.debug("%s has %s=%s from %s", service, setting, text, source)


def _for_celery(error: Exception, exit_code: int) -> Exception:
    """As Celery's command line ends with it; the error itself where that is not running."""
    context = click.get_current_context(silent=True)
    if context is None or context.find_root().command.name != "celery":
        return error
    return _Ended(str(error), exit_code)


class _Ended(click.ClickException):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance as well


class Orchestrator(Celery):  # type: ignore[misc]
    """Celery's app. Its command line (`celery call`, `status`, `inspect`, `purge` …) says at once, and in a sentence, that no broker is there."""

    def connection_for_write(self, *arguments: Any, **options: Any) -> Any:
        _expect_a_broker()
        return super().connection_for_write(*arguments, **options)

    def connection_for_read(self, *arguments: Any, **options: Any) -> Any:
        _expect_a_broker()
        return super().connection_for_read(*arguments, **options)

    def _get_backend(self) -> Any:
        _expect_a_broker()
        return super()._get_backend()


@functools.cache
def _expect_a_broker() -> None:
    """Once per command. Workers and beat wait for it by themselves, and so do programs that use this app."""
    context = click.get_current_context(silent=True)
    if context is None or context.find_root().command.name != "celery" or context.info_name in SERVICES:
        return
    settings()
    try:
        reach.check_broker()
    except reach.Away as away:
        raise _for_celery(away, exit_code=EXIT_AWAY) from None


app = Orchestrator("orchestrator")


@functools.cache
def runtime() -> Runtime:
    """The process's runtime. A forked child keeps its parent's, whose connections it does not share."""
    held = settings()
    return Runtime(
        settings=held,
        database=Database(held.database_url, slow_s=held.slow_query_s, first_patience_s=None if _service else CLIENT_PATIENCE_S),
        publisher=Publisher(app, helpers=held.fanout_helpers, is_there=None if _service else _broker_answers),
    )


def _broker_answers() -> bool:
    try:
        reach.check_broker()
    except reach.Away:
        return False
    return True


def celery_settings() -> dict[str, Any]:
    held = settings()
    return {
        "broker_url": held.broker,
        # Counts the header of a chord; nothing else is kept there.
        "result_backend": held.redis_url,
        "result_expires": 86400,
        "task_ignore_result": True,
        # Input is hostile: pickle and yaml would run it.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        # A message is acknowledged when its walk is over, and given back when its process dies. Both only save time:
        # the claim makes repetition harmless and recovery makes loss harmless.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # Nothing in reserve beyond what runs: what waits stays in the broker, where higher priorities overtake it.
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": held.worker_concurrency or max(2, os.cpu_count() or 2),
        "task_default_queue": "normal",
        "task_queues": [
            Queue(name, Exchange(name, type="direct"), routing_key=name) for name in (*reversed(PRIORITIES), *held.worker_queues)
        ],
        "broker_transport_options": {
            # Far above a lease: a redelivered message finds its branch taken and is void.
            "visibility_timeout": 6 * 3600,
            # The priority classes are queues of their own, emptied in the order they are listed.
            "queue_order_strategy": "priority",
            "socket_keepalive": True,
            "health_check_interval": 25,
            "socket_connect_timeout": 5,
        },
        "result_backend_transport_options": {"visibility_timeout": 6 * 3600},
        "visibility_timeout": 6 * 3600,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Publishing does not wait for a broker that is away: Postgres has the instance, recovery publishes it.
        "task_publish_retry": False,
        # Steps go on when the broker is lost: their results go to Postgres, not to the broker.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_proc_alive_timeout": 30,
        "worker_consumer": "orchestrator.engine.consumer:Consumer",
        "task_track_started": False,
        # An event per message sent would cost a starter a fifth of its time; Flower learns of a message when it is received.
        "task_send_sent_event": False,
        # Beat: one at a time by a lock that is free again seconds after its holder died.
        "beat_scheduler": "redbeat.RedBeatScheduler",
        "beat_max_loop_interval": 5,
        "redbeat_redis_url": held.redis_url,
        "redbeat_key_prefix": "orchestrator:beat:",
        "redbeat_lock_timeout": 25,
        "redbeat_redis_options": {"socket_keepalive": True},
    }


app.add_defaults(celery_settings)
register(app, runtime)
app.steps["worker"].add(QueuesStep)
app.steps["worker"].add(MaintenanceStep)
MaintenanceStep.runtime_of = staticmethod(runtime)
MaintenanceStep.mirror_of = staticmethod(lambda: Mirror(app))
MaintenanceStep.relay_of = staticmethod(lambda held: Relay(held.settings))
triggering.withdraw[:] = [lambda held, stream, event_id: withdraw(held.settings, stream, event_id)]


@signals.setup_logging.connect
def _logging(loglevel: Any = None, **_: Any) -> None:
    """LOG_LEVEL, unless `--loglevel` was written: Celery gives its default as if somebody had said it."""
    context = click.get_current_context(silent=True)
    command = context.info_name if context is not None else None
    held = begin("beat" if command == "beat" else "worker")
    written = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    if context is not None and isinstance(loglevel, int) and context.get_parameter_source("loglevel") in written:
        logs.configure(held.log_format, loglevel)
    if command in ("worker", "beat"):
        await_servers()


def await_servers(*checks: Callable[[], None]) -> None:
    """Wait for PostgreSQL and Redis; end the process when they do not come. Celery logs exceptions of signals and goes on."""
    try:
        reach.await_servers(*checks)
    except reach.Away as away:
        click.secho(str(away), fg="red", err=True)
        sys.exit(EXIT_AWAY)


@signals.worker_init.connect
def _worker(**_: Any) -> None:
    """Before the pool forks: what all children share is loaded once, in the parent."""
    held = settings()
    if held.metrics_port:
        # Files that the children of the pool share with their parent, which shows them.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="orchestrator-metrics-")
            atexit.register(_remove, folder, os.getpid())
        metrics.enable()
    if held.tracing:
        tracing.enable()
    REGISTRY.load()
    discover(held.workflows)
    interrupt.install()
    gc.collect()
    gc.freeze()


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@signals.worker_process_init.connect
def _child(**_: Any) -> None:
    interrupt.install()


logging.getLogger("orchestrator").addHandler(logging.NullHandler())
