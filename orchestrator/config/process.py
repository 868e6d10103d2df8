"""The settings of this process: read once, when they are first asked for, and the same for every part of it."""

from __future__ import annotations

import threading

from orchestrator.config import environment
from orchestrator.config.settings import Loaded, Settings, load_from

_lock = threading.Lock()
_held: list[Loaded] = []


def settings() -> Settings:
    """Raises `Invalid` when a variable means nothing."""
    return loaded().settings


def loaded() -> Loaded:
    """The settings, and where each comes from."""
    with _lock:
        if not _held:
            found = environment.read()
            _held.append(load_from(found))
            environment.export(found)
        return _held[0]


def use(given: Settings) -> None:
    """From here on this process has these settings, whatever its environment says: for programs that embed the engine."""
    with _lock:
        _held[:] = [Loaded(given, {})]


def forget() -> None:
    """Read them again when they are next asked for."""
    with _lock:
        _held.clear()
