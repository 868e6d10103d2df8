"""A breaker on the event store: after three failures in a row its calls fail at once, and one a second asks whether it is there again.

A store that does not answer would else hold each caller for as long as a connection may take. The breaker is one process's: there is no
store to share it through. `NoGroup` is an answer, and no failure.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from orchestrator.breakers import Breaker, Outcome, Rules
from orchestrator.stream.stores import EventStore, NoGroup, NoStream, StoreAway

logger = logging.getLogger("orchestrator.stores")

RULES = Rules(threshold=3, recovery_s=1.0, trials=1)


class StoreBreaker:
    """The state of one store, for all who call it in this process."""

    def __init__(self, name: str, rules: Rules = RULES, now: Callable[[], float] = time.monotonic) -> None:
        self.rules = rules
        self._now = now
        self._lock = threading.Lock()
        self._held = Breaker(name, since=now())

    @property
    def state(self) -> str:
        with self._lock:
            return self._held.state

    def ask(self) -> None:
        """Raises `StoreAway` while it is open."""
        with self._lock:
            self._held, wait = self._held.asked(self._now(), self.rules)
            error = self._held.error
        if wait is not None:
            raise StoreAway(f"the event store failed {self.rules.threshold} times in a row and is asked again in {wait:.1f} s: {error}")

    def tell(self, outcome: Outcome, error: str = "") -> None:
        with self._lock:
            before, self._held = self._held, self._held.heard(self._now(), self.rules, outcome, error)
            after = self._held
        if before.state != after.state:
            logger.warning("breaker of the event store: %s → %s%s", before.state, after.state, f" ({error})" if error else "")


@functools.cache
def breaker_of(kind: str, url: str) -> StoreBreaker:
    """The one of this process."""
    return StoreBreaker(f"{kind} at {url.rpartition('@')[2]}")


class _Guarded:
    def __init__(self, store: EventStore, breaker: StoreBreaker) -> None:
        self._store = store
        self._breaker = breaker

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._store, name)
        if name == "close" or not callable(act):
            return act

        def ask(*arguments: Any, **options: Any) -> Any:
            self._breaker.ask()
            try:
                given = act(*arguments, **options)
            except StoreAway as error:
                self._breaker.tell("bad", str(error))
                raise
            except (NoGroup, NoStream):
                self._breaker.tell("good")
                raise
            except BaseException:
                self._breaker.tell("neither")
                raise
            self._breaker.tell("good")
            return given

        return ask


def guarded(store: EventStore, breaker: StoreBreaker) -> EventStore:
    return cast("EventStore", _Guarded(store, breaker))
