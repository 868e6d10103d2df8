"""Bare Celery, as one would write it without an engine: chains and chords of tasks that do nothing."""

from __future__ import annotations

import os

import redis
from celery import Celery, chain, chord

app = Celery("bare", broker=os.environ.get("REDIS_URL"), backend=os.environ.get("REDIS_URL"))
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=16, task_ignore_result=True, task_default_queue="bare")
DONE = "bare:done"


def counter() -> redis.Redis:
    return redis.Redis.from_url(os.environ["REDIS_URL"])


_redis = None


@app.task
def nop() -> None:
    return None


@app.task
def last() -> None:
    global _redis
    _redis = _redis or counter()
    _redis.incr(DONE)


@app.task(ignore_result=False)
def part() -> int:
    return 1


@app.task
def joined(parts: list[int]) -> None:
    last()


def start_chains(instances: int, steps: int) -> None:
    for _ in range(instances):
        chain(*[nop.si() for _ in range(steps - 1)], last.si()).apply_async()


def start_chord(width: int) -> None:
    chord([part.si() for _ in range(width)], joined.s()).apply_async()
