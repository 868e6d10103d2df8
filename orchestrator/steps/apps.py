"""Celery applications in this process: the engine's own, and those of the program it lives in.

A program that uses the engine often has a Celery app of its own, with tasks, a broker and workers. The engine's app never becomes
the current one there; and where Celery itself makes it current, in the engine's workers, a step's code runs with the program's app
as the current one: what a shared task is sent by goes to the program's broker, wherever that is done.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery, _state

from orchestrator.errors import Terminal

_OWN: weakref.WeakSet[Celery] = weakref.WeakSet()
_of_steps: Celery | None = None


def own(app: Celery) -> None:
    """This app carries the engine's messages; it is nobody's to send tasks with."""
    _OWN.add(app)


def others() -> list[Celery]:
    """The apps of the program, without the one that Celery makes up where there is none."""
    found = [app for app in _state._get_active_apps() if app not in _OWN and not _is_made_up(app)]
    return sorted(found, key=lambda app: (app.main or "", id(app)))


def _is_made_up(app: Celery) -> bool:
    return app is _state.default_app and app.main == "default" and not app.set_as_current


def choose() -> None:
    """Once the program's modules are imported: whose app the steps' code runs with. None: whichever is current."""
    global _of_steps
    known, current = others(), _state._tls.current_app
    _of_steps = known[0] if len(known) == 1 else current if current in known else None


def lend() -> None:
    """In the engine's own processes, where Celery made its app the default: threads that a step begins send with the program's."""
    if _of_steps is not None:
        _of_steps.set_default()


@contextmanager
def current(app: Celery | None = None) -> Iterator[None]:
    """Inside, this app is the current one; without one, that of the steps."""
    before = _state._tls.current_app
    wanted = app or _of_steps
    if wanted is not None:
        _state._set_current_app(wanted)
    try:
        yield
    finally:
        _state._set_current_app(before)


def owner(task: str, of: str | None = None) -> Celery | None:
    """The app that a task of this name belongs to: the program's before the engine's. `of` is an app's name (its `main`)."""
    known = others()
    if of is not None:
        named = [app for app in (*known, *_OWN) if app.main == of]
        if not named:
            raise Terminal(f"no Celery app '{of}' in this worker; {_imported(known)}")
        known = named
    found = [app for app in known if task in app.tasks]
    if not found and known:
        # Modules that an app imports when its own worker starts: `include`, `imports`, `autodiscover_tasks`.
        for app in known:
            app.loader.import_default_modules()
        found = [app for app in known if task in app.tasks]
    if len(found) > 1:
        # Shared tasks are in every app.
        current_one = _of_steps if _of_steps in found else _state._tls.current_app
        if current_one not in found:
            names = ", ".join(f"'{app.main}'" for app in found)
            raise Terminal(f"Celery task '{task}' is in several apps ({names}); name one of them as the step's parameter 'app'")
        return current_one
    if found:
        return found[0]
    return next((app for app in (*_OWN, _state.get_current_app()) if task in app.tasks), None) if of is None else None


def _imported(known: list[Celery]) -> str:
    if not known:
        return "import the module that makes it in a module of ORCHESTRATOR_WORKFLOWS"
    return "there are " + ", ".join(f"'{app.main}'" for app in known)
