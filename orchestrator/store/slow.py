"""Statements that take long are told, with their text and never with their values."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg

from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.store.slow")

SHOWN = 400


class TimedCursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, *given: Any, **options: Any) -> TimedCursor:
        after_s = self.connection.slow_s if isinstance(self.connection, TimedConnection) else 0.0
        if not after_s:
            super().execute(query, *given, **options)
            return self
        began = time.perf_counter()
        try:
            super().execute(query, *given, **options)
        finally:
            took_s = time.perf_counter() - began
            if took_s >= after_s:
                _tell(query, took_s)
        return self


class TimedConnection(psycopg.Connection[Any]):
    """`slow_s`: what takes so long is told; 0: nothing is."""

    slow_s = 0.0

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.cursor_factory = TimedCursor


def _tell(query: Any, took_s: float) -> None:
    metrics.slow_statement()
    text = " ".join(str(query).split())
    logger.warning("a statement took %.0f ms: %s", 1000 * took_s, text if len(text) <= SHOWN else f"{text[:SHOWN]} …")
