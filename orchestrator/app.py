"""The Celery app, put together: settings, engine, executors, keeper. `celery -A orchestrator.app worker`.

Nothing is read or connected on import: the configuration is computed when Celery first asks for it. The app is a guest in the
program that imports it: it does not become the current or the default app, and what it does when a worker starts it does in its own
workers alone.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import shutil
import tempfile
from typing import Any

from celery import Celery, _state, signals
from celery.app.log import Logging
from kombu import Exchange, Queue

from orchestrator.engine import interrupt, triggering
from orchestrator.engine.catalog import discover
from orchestrator.engine.publish import Publisher
from orchestrator.engine.runtime import PRIORITIES, Runtime
from orchestrator.engine.tasks import register
from orchestrator.keeper.bootsteps import OfficeStep, QueuesStep
from orchestrator.schedule.beat import Scheduler
from orchestrator.schedule.mirror import Mirror
from orchestrator.starting import (
    CLIENT_PATIENCE_S,
    begin_in_celery,
    expect_a_broker,
    is_broker_there,
    is_service,
    serves_requests,
    settings,
)
from orchestrator.steps import apps
from orchestrator.steps.registry import REGISTRY
from orchestrator.store.connection import Database
from orchestrator.stream.relay import Relay
from orchestrator.stream.stores import withdraw
from orchestrator.telemetry import metrics, tracing

# Longer than any command takes, and than the second for which a consumer waits for a message.
BROKER_ANSWERS_S = 3.0


class Logs(Logging):  # type: ignore[misc]
    """The log of this app's processes. Celery's signal for it would be heard in those of other apps, too."""

    def setup_logging_subsystem(self, loglevel: Any = None, *_: Any, **__: Any) -> bool | None:
        if self.already_setup:
            return None
        Logging._setup = True
        begin_in_celery(loglevel)
        return True


class Orchestrator(Celery):  # type: ignore[misc]
    """Celery's app. Its command line (`celery call`, `status`, `inspect`, `purge` …) says at once, and in a sentence, that no broker is there."""

    log_cls = Logs
    amqp_cls = "orchestrator.engine.messages:Amqp"

    def __reduce__(self) -> Any:
        # Pool processes that are not forked (macOS) get this app, not one like it: its tasks are made here.
        return _this_app, ()

    def connection_for_write(self, *arguments: Any, **options: Any) -> Any:
        expect_a_broker()
        return super().connection_for_write(*arguments, **options)

    def connection_for_read(self, *arguments: Any, **options: Any) -> Any:
        expect_a_broker()
        return super().connection_for_read(*arguments, **options)

    def _get_backend(self) -> Any:
        expect_a_broker()
        return super()._get_backend()


def _this_app() -> Celery:
    return app


def _make() -> Celery:
    default = _state.default_app
    made = Orchestrator("orchestrator", set_as_current=False)
    if _state.default_app is made:  # where Django is set up, Celery makes its first app the default
        _state.set_default_app(default)
    apps.own(made)
    return made


app = _make()


@functools.cache
def runtime() -> Runtime:
    """The process's runtime. A forked child keeps its parent's, whose connections it does not share."""
    held = settings()
    database = Database.of(held, first_patience_s=None if is_service() else CLIENT_PATIENCE_S)
    if serves_requests():
        database.refuse_when_away()
    return Runtime(
        settings=held,
        database=database,
        publisher=Publisher(app, helpers=held.fanout_helpers, is_there=None if is_service() else is_broker_there),
    )


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
            "global_keyprefix": held.redis_prefix,
            # Far above a lease: a redelivered message finds its branch taken and is void.
            "visibility_timeout": 6 * 3600,
            # The priority classes are queues of their own, emptied in the order they are listed.
            "queue_order_strategy": "priority",
            "socket_keepalive": True,
            "health_check_interval": 25,
            "socket_connect_timeout": 2,
            # One that hangs is away like one that refuses: nobody who starts something waits for it without end.
            "socket_timeout": BROKER_ANSWERS_S,
        },
        "result_backend_transport_options": {"global_keyprefix": held.redis_prefix, "visibility_timeout": 6 * 3600},
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
        "beat_scheduler": "orchestrator.schedule.beat:Scheduler",
        "beat_max_loop_interval": 5,
        "redbeat_redis_url": held.redis_url,
        "redbeat_key_prefix": f"{held.redis_prefix}orchestrator:beat:",
        "redbeat_lock_timeout": 25,
        "redbeat_redis_options": {"socket_keepalive": True},
    }


app.add_defaults(celery_settings)
register(app, runtime)
app.steps["worker"].add(QueuesStep)
Scheduler.settings_of = staticmethod(settings)
app.steps["worker"].add(OfficeStep)
OfficeStep.runtime_of = staticmethod(runtime)
OfficeStep.mirror_of = staticmethod(lambda: Mirror(app))
OfficeStep.relay_of = staticmethod(lambda held: Relay(held.settings))
triggering.withdraw[:] = [lambda held, stream, event_id: withdraw(held.settings, stream, event_id)]


@signals.worker_init.connect
def _worker(sender: Any = None, **_: Any) -> None:
    """Before the pool forks: what all children share is loaded once, in the parent."""
    if sender.app is not app:
        return
    if settings().metrics_port and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        # Files that the children of the pool share with their parent, which shows them.
        folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="orchestrator-metrics-")
        atexit.register(_remove, folder, os.getpid())
    _prepare()
    gc.collect()
    gc.freeze()


@signals.celeryd_after_setup.connect
def _ready_to_start(instance: Any = None, **_: Any) -> None:
    if instance.app is app:
        apps.lend()


@functools.cache
def _prepare() -> None:
    """Once for each worker whose children are forked, which share it; else once for each child."""
    held = settings()
    if held.metrics_port:
        metrics.enable()
    if held.tracing:
        tracing.enable()
    REGISTRY.load()
    runtime().left_out[:] = discover(held.workflows).left_out
    apps.choose()
    interrupt.install()


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@signals.worker_process_init.connect
def _child(**_: Any) -> None:
    if _state.get_current_app() is app:  # whose process this is, Celery says by that alone
        _prepare()
        apps.lend()
        interrupt.install()


logging.getLogger("orchestrator").addHandler(logging.NullHandler())
