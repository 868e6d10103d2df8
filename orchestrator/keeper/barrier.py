"""The fault barrier around a chore: what fails backs off, and holds up nothing else.

One log line when it begins to fail, one each time its pause doubles, one when it is well again. Since when it fails and why is a
finding in Postgres, where that can be written, and a metric in any case.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import psycopg

from orchestrator.definition.parsing import printable
from orchestrator.store import findings
from orchestrator.store.connection import Connection, is_away, still_answers
from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.keeper")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
KIND = "chore"


class Barrier:
    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.failures = 0
        self.error = ""
        self.failing_since: float | None = None
        self._clock = clock
        self._again_at = 0.0
        self._is_told = False
        """Whether Postgres knows how the chore is: what an earlier holder of the post wrote may be out of date."""

    def is_open(self) -> bool:
        """Whether the chore may be tried: it is well, or its pause is over."""
        return self._clock() >= self._again_at

    def attempt(self, c: Connection, act: Callable[[Connection], None]) -> None:
        """Do it. Raises only what says that Postgres is away, which is nobody's fault."""
        began = self._clock()
        try:
            act(c)
        except Exception as error:
            if is_away(error) and not still_answers(c):
                # A statement that takes only its own connection down is at fault itself.
                raise
            self._failed(c, error)
        else:
            self._succeeded(c)
        metrics.chore_took(self.name, self._clock() - began)

    def _failed(self, c: Connection, error: Exception) -> None:
        self.failures += 1
        self.failing_since = self.failing_since or time.time()
        self.error = told(error)
        pause_s = min(FIRST_PAUSE_S * 2 ** (self.failures - 1), LONGEST_PAUSE_S)
        self._again_at = self._clock() + pause_s
        metrics.chore_failed(self.name, failing=True)
        if pause_s < LONGEST_PAUSE_S or self.failures % 20 == 0:
            logger.error(
                "chore %s failed (%d in a row), retrying in %g s: %s", self.name, self.failures, pause_s, self.error,
                exc_info=error if self.failures == 1 else None,
            )  # fmt: skip
        with contextlib.suppress(psycopg.Error):
            findings.note(c, KIND, self.name, self.error)
            self._is_told = True

    def _succeeded(self, c: Connection) -> None:
        if self.failures:
            logger.info("chore %s works again after %d failures", self.name, self.failures)
            metrics.chore_failed(self.name, failing=False)
        elif self._is_told:
            return
        self.failures, self.error, self.failing_since, self._again_at = 0, "", None, 0.0
        with contextlib.suppress(psycopg.Error):
            findings.clear(c, KIND, self.name)
            self._is_told = True

    def about(self) -> dict[str, object]:
        return {"failing_since": self.failing_since, "failures": self.failures, "error": self.error}


def told(error: BaseException) -> str:
    """An error in a line, whatever its text holds."""
    try:
        text = str(error).split("\n", 1)[0]
    except Exception:  # noqa: BLE001  # an error that cannot even say what it is
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {printable(text, 500)}"
