"""The floor: a Celery task that commits one checkpoint per step, and nothing else.

No planner, no leases, no definitions, no retries: what this machine allows, to hold the engine against. Not a design.
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import psycopg
from celery import Celery

app = Celery("floor", broker=os.environ.get("REDIS_URL"), backend=None)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=16, task_ignore_result=True, task_default_queue="floor")

CHECKPOINT = """
with held as (select state from floor_instances where id = %s and generation = %s)
insert into floor_checkpoints (instance_id, position, kind, data) select %s, %s, 'step.completed', %s::jsonb from held
on conflict (instance_id, position) where kind = 'step.completed' do nothing
returning (select state from held)
"""
_connections: dict[int, psycopg.Connection[Any]] = {}


def connection() -> psycopg.Connection[Any]:
    held = _connections.get(os.getpid())
    if held is None:
        held = _connections[os.getpid()] = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, prepare_threshold=0)
    return held


@app.task
def run(instance_id: str, generation: int, steps: int) -> None:
    c = connection()
    begin = "update floor_instances set state = 'RUNNING', started_at = now() where id = %s and generation = %s returning input"
    if not c.execute(begin, (instance_id, generation)).fetchone():
        return
    for n in range(steps):
        c.execute(CHECKPOINT, (instance_id, generation, instance_id, f"/do/{n}/noop", json.dumps({"n": n}))).fetchone()
    end = "update floor_instances set state = 'COMPLETED', output = %s::jsonb, ended_at = now() where id = %s and generation = %s"
    c.execute(end, ("{}", instance_id, generation))


def setup() -> None:
    c = connection()
    c.execute("drop table if exists floor_checkpoints")
    c.execute("drop table if exists floor_instances")
    c.execute(
        "create table floor_instances (id uuid primary key, state text, generation int, input jsonb, output jsonb,"
        " started_at timestamptz, ended_at timestamptz)"
    )
    c.execute(
        "create table floor_checkpoints (id bigint generated always as identity primary key, instance_id uuid not null,"
        " position text, kind text, data jsonb, at timestamptz default now())"
    )
    c.execute("create unique index on floor_checkpoints (instance_id, position) where kind = 'step.completed'")


def start(instances: int, steps: int) -> None:
    c = connection()
    for _ in range(instances):
        instance_id = uuid.uuid4()
        c.execute("insert into floor_instances (id, state, generation, input) values (%s, 'PENDING', 1, '{}')", (instance_id,))
        run.delay(str(instance_id), 1, steps)


def open_instances() -> int:
    row = connection().execute("select count(*) from floor_instances where state <> 'COMPLETED'").fetchone()
    assert row is not None
    return int(row[0])
