"""`python -m benchmarks calibrate`: how fast this machine is, against a fixed piece of work.

Three kinds of work that the tests consist of: Python, commits in PostgreSQL, messages through Celery. The factor is the geometric
mean of how long each took here over how long it takes on the machine of reference: 2.0 is a machine half as fast. A calibrated
minute is a minute there: real minutes divided by the factor.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import psycopg

from benchmarks.bare import app
from benchmarks.rig import Rig, wait_for

# Seconds on the machine of reference: two cores of an AMD EPYC, an SSD, nothing else running.
REFERENCE_S = {"python": 0.50, "postgres": 0.50, "celery": 0.50}
ROUNDS = 3
COMMITS = 1_000
MESSAGES = 500


def python() -> float:
    """Parsing, hashing, building of dictionaries: what planning and tests do."""
    began = time.perf_counter()
    held: dict[str, object] = {}
    text = json.dumps({"items": [{"id": n, "name": f"item {n}", "tags": ["a", "b", str(n)]} for n in range(200)]})
    for n in range(700):
        data = json.loads(text)
        held = {**data, "n": n, "digest": hashlib.sha256(text.encode()).hexdigest()}
        text = text if len(json.dumps(held)) else ""
    return time.perf_counter() - began


def postgres(url: str) -> float:
    """One row, one commit, again and again."""
    with psycopg.connect(url, autocommit=True) as c:
        c.execute("create table if not exists calibration (id bigint generated always as identity primary key, text text)")
        began = time.perf_counter()
        for n in range(COMMITS):
            c.execute("insert into calibration (text) values (%s)", (f"row {n}",))
        return time.perf_counter() - began


def celery(rig: Rig, counter: Callable[[], int]) -> float:
    """Tasks that count themselves, sent one by one to a worker of two processes."""
    before = counter()
    began = time.perf_counter()
    for _ in range(MESSAGES):
        app.send_task("benchmarks.bare.last")
    wait_for(lambda: counter() - before >= MESSAGES, 120, "all messages are done", 0.002)
    return time.perf_counter() - began


def measure() -> dict[str, float]:
    """Seconds of each kind of work: the best of a few rounds, which is what the machine can do."""
    rig = Rig()
    try:
        rig.start()
        url = f"{rig.base}/floor"
        app.conf.update(broker_url=f"{rig.redis.url[:-1]}3", result_backend=f"{rig.redis.url[:-1]}3")
        took = {"python": min(python() for _ in range(ROUNDS)), "postgres": min(postgres(url) for _ in range(ROUNDS))}
        import redis

        client = redis.Redis.from_url(f"{rig.redis.url[:-1]}3")
        with rig.worker("benchmarks.bare", "floor", 3, concurrency=2):
            counter = lambda: int(client.get("bare:done") or 0)  # noqa: E731
            celery(rig, counter)
            took["celery"] = min(celery(rig, counter) for _ in range(ROUNDS))
        client.close()
    finally:
        rig.stop()
    return took


def factor_of(took: dict[str, float]) -> float:
    return math.exp(statistics.fmean(math.log(took[name] / REFERENCE_S[name]) for name in REFERENCE_S))


def main() -> int:
    took = measure()
    factor = factor_of(took)
    parts = ", ".join(f"{name} {seconds:.2f} s ({seconds / REFERENCE_S[name]:.2f})" for name, seconds in took.items())
    print(f"{parts}\nfactor {factor:.2f}: a calibrated minute is {60 * factor:.0f} seconds here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
