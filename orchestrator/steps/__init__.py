"""Executors: what does a step. One file per kind; the listing of this folder is the list of built-in step types.

An executor is a small class with a `type` and `execute(context)`. It sees the step and nothing of the engine: neither
the store nor Celery. To add one, decorate the class with `@executor`, or name it under the entry point group
`orchestrator.steps`.
"""

from orchestrator.steps.registry import REGISTRY, After, Executor, Result, StepContext, executor

__all__ = ["REGISTRY", "After", "Executor", "Result", "StepContext", "executor"]
