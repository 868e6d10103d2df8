"""Compensations: what undoes a completed step. One file per kind.

A handler has a `type` and `compensate(context)`; the context carries the step's input, parameters, output and the
checkpoint value its executor kept. To add one, decorate the class with `@compensation`, or name it under the entry
point group `orchestrator.compensations`.
"""

from orchestrator.steps.registry import compensation

__all__ = ["compensation"]
