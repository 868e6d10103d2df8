"""Log lines: for people in colours, for machines as JSON, always with instance, position and attempt where known."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.json import JsonFormatter

LABELS = ("workflow", "instance", "position", "attempt", "step", "trace_id")
_COLOURS = {"DEBUG": "\033[2m", "INFO": "", "WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[41m"}


_about: ContextVar[Mapping[str, Any] | None] = ContextVar("about", default=None)


@contextlib.contextmanager
def about(labels: Mapping[str, Any]) -> Iterator[None]:
    """Inside, every line that is logged has these labels, whoever logs it: a step's code, and the libraries that it uses."""
    before = _about.set(labels)
    try:
        yield
    finally:
        _about.reset(before)


class Labelled(logging.Filter):
    """Lets every line pass, with the labels of what is done at the moment. What a line says of itself stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_about.get() or {}).items():
            if getattr(record, name, None) is None:
                setattr(record, name, value)
        return True


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO walk: message  workflow=order instance=… position=/do/1/charge`."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        labels = "".join(f" {name}={value}" for name in LABELS if (value := getattr(record, name, None)) not in (None, ""))
        name = record.name.removeprefix("orchestrator.")
        line = f"{self.formatTime(record, self.datefmt)} {record.levelname:<7} {name}: {record.getMessage()}"
        if labels:
            line += f" \033[2m{labels}\033[0m" if self._coloured else f" {labels}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        colour = _COLOURS.get(record.levelname, "") if self._coloured else ""
        return f"{colour}{line}\033[0m" if colour else line


def configure(format: str = "text", level: str | int = "INFO") -> None:
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(
            JsonFormatter("{asctime}{levelname}{name}{message}", style="{", rename_fields={"asctime": "time", "levelname": "level"})
        )
    else:
        handler.setFormatter(TextFormatter(coloured=sys.stderr.isatty()))
    handler.addFilter(Labelled())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper() if isinstance(level, str) else level)
    # Celery tells of every message it received and finished; what matters of them is told by the walk.
    for noisy in ("celery.worker.strategy", "celery.app.trace", "alembic", "httpx", "httpcore", "flower.command", "tornado.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    # At debug it is this project that is looked into; what libraries say to themselves would bury it.
    for library in ("celery", "kombu", "amqp", "redbeat", "tornado", "asyncio", "aiohttp", "urllib3", "gunicorn", "flower", "redis"):
        logging.getLogger(library).setLevel(max(logging.INFO, root.level))
