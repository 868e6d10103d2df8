"""Durable workflows on Celery, in thirty lines.

A *definition* is a tree of tasks, written in Python or as a document (`definition/`). An *instance* is one run of it.
What happened is its *history*: facts at positions, numbered, append-only (`history.py`). From a task, an input and a
history a pure fold says what a branch needs next (`plan/forward.py`); mirrored, what is to be undone
(`plan/backward.py`). What remains, rendered for Celery, is a *canvas* of chains and chords (`plan/canvas.py`).

    start     one transaction in Postgres, then publish what remains            engine/runner.py, engine/publish.py
    claim     a worker takes the branch a message is about, under a lease       store/branches.py
    walk      rebuild, then: need → meet it → commit → need → …                 engine/walk.py
    commit    the fact is in Postgres before anything that depends on it        store/branches.py
    park      a timer or an event, and no worker is held meanwhile              store/timers.py, store/events.py
    fan out   branches are rows; helpers take them one by one; a chord joins    engine/tasks.py
    recover   who died is noticed; what they held is published again            keeper/office.py, keeper/recovery.py

A message holds (instance, branch position, generation) and may arrive twice, late or never. Publishing is the one way
an instance starts, resumes, retries, recovers and rolls back.

Celery carries, Redis counts, Postgres decides.

Writing a workflow needs only what this module exports:

    from orchestrator import Workflow, step

    @step(retries=2)
    def greet(name: str = "world") -> dict: return {"greeting": f"Hello, {name}!"}

    hello = Workflow("hello").then(greet)
"""

from orchestrator.definition.builder import Workflow, WorkflowBase
from orchestrator.definition.expressions import function
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Limits
from orchestrator.errors import Retryable, Terminal
from orchestrator.steps.functions import step
from orchestrator.steps.registry import After, Result, StepContext, compensation, executor

__all__ = [
    "After",
    "Limits",
    "Result",
    "RetryPolicy",
    "Retryable",
    "StepContext",
    "Terminal",
    "Workflow",
    "WorkflowBase",
    "compensation",
    "executor",
    "function",
    "step",
]
