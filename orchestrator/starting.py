"""How a process begins: it reads its settings, logs as they say, and waits for its servers. And what Celery's command line says instead
of a traceback when it cannot.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable

import click
from click.core import ParameterSource

from orchestrator import reach
from orchestrator.config import process
from orchestrator.config.environment import DEFAULT
from orchestrator.config.settings import Settings, shown
from orchestrator.errors import Invalid
from orchestrator.telemetry import logs

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


def is_service() -> bool:
    return bool(_service)


def serves_requests() -> bool:
    """Whoever asks this process waits, and may ask again: it does not wait in their place."""
    return _service == ["web"]


def begin(service: str, *, logging_is_ours: bool = True) -> Settings:
    """What every long-running process does first: read the settings, log as they say, tell what is odd about them."""
    held = settings()
    is_first = not _service
    _service[:] = [service]
    if logging_is_ours:
        logs.configure(held.log_format, held.log_level)
    if is_first:
        _tell_settings(service)
    return held


def begin_in_celery(loglevel: int | None) -> None:
    """A worker's or beat's beginning. LOG_LEVEL holds unless `--loglevel` was written: Celery gives its default as if somebody had said it."""
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


def is_broker_there() -> bool:
    try:
        reach.check_broker()
    except reach.Away:
        return False
    return True


@functools.cache
def expect_a_broker() -> None:
    """Once per command of Celery's. Workers and beat wait for it by themselves, and so do programs that use the app."""
    context = click.get_current_context(silent=True)
    if context is None or context.find_root().command.name != "celery" or context.info_name in SERVICES:
        return
    settings()
    try:
        reach.check_broker()
    except reach.Away as away:
        raise _for_celery(away, exit_code=EXIT_AWAY) from None


def _tell_settings(service: str) -> None:
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
