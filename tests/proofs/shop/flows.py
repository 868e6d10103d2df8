"""A workflow that ends well, one whose error is huge, one whose output is."""

from __future__ import annotations

import time

from orchestrator import Workflow, step


@step
def greet(name: str = "world") -> dict:
    return {"greeting": f"Hello, {name}!"}


@step
def shout() -> dict:
    raise ValueError("x" * 5_000_000)


@step
def fill() -> dict:
    return {"text": "y" * 1_900_000}


@step
def nap() -> None:
    time.sleep(30)


hi = Workflow("hi").then(greet)
shouting = Workflow("shouting").then(shout)
filling = Workflow("filling").then(fill)
sleeping = Workflow("sleeping").then(nap)
