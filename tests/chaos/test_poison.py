"""Poison beside 500 healthy instances: what is wrong with one row, file, key, event or definition holds up nobody else.

The doors refuse what is here put behind them: rows of every table that chores, walks and the relay read are copied, with odd values
in every column of JSON; files that cannot be read lie beside the good ones; keys of Redis have the wrong type. The healthy instances
are measured before and after, in turn; all of them end as they should, and none waits for a poisonous one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
import uuid
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from orchestrator.definition.documents import definition_from
from orchestrator.errors import OrchestratorError
from tests.chaos.crowd import LONG, percentile, report
from tests.stack import Stack, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 300)]
HEALTHY, PER_S = 500, 50
ROUNDS = 5 if LONG else 1
ODD: tuple[Any, ...] = (5, "x", [], [None], {}, {"~": "nothing"}, {"kind": "every", "every": "PT0S"}, {"$sealed": "gAAAAAx"}, True)
COLUMNS = {
    "schedules": ("spec", "note", "about"),
    "triggers": ("spec",),
    "events": ("envelope", "error"),
    "outbox": ("data",),
    "configs": ("spec",),
    "deliveries": ("event",),
    "definitions": ("tree",),
    "branches": ("shared", "vars", "context", "snapshot"),
    "instances": ("input", "labels", "metadata", "compensation"),
    "checkpoints": ("data",),
}
"""What is read by those who work for all, or by the walk of one."""


class Poison:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.number = itertools.count()
        self.put = 0

    def row(self, table: str, column: str, value: Any, row: dict[str, Any]) -> None:
        """A copy of a row under an id and names of its own, with one value that is wrong."""
        n = next(self.number)
        fresh = {
            **row,
            **{name: f"{row[name]}-{n}" for name in ("name", "event_id", "entry") if isinstance(row.get(name), str)},
            column: value,
        }
        if table == "configs":
            fresh["workflow"] = f"poisoned-{n}"
        if "id" in row:
            fresh["id"] = self.stack.sql("select nextval(pg_get_serial_sequence(%s, 'id'))", table)[0][0]
        self.write(f"insert into {table} overriding system value select * from jsonb_populate_record(null::{table}, %s)", Jsonb(fresh))

    def write(self, statement: str, *arguments: Any) -> None:
        kept_out = (psycopg.errors.IntegrityError, psycopg.errors.DataError)  # by the table itself
        with psycopg.connect(self.stack.database_url, autocommit=True) as c, contextlib.suppress(*kept_out):
            self.put += c.execute(statement, arguments).rowcount

    def rows(self) -> None:
        """Copies of what the doors took."""
        runner = self.stack.runner
        runner.schedules.add({"id": "good", "workflow": "numbered", "every": 1, "properties": {"n": 1}})
        runner.put_trigger({"name": "good", "on": "poison.kind", "start": "numbered"})
        os.environ["SECRET_S"] = "secret"
        runner.put_webhook("good", "http://127.0.0.1:9/", ["poison.kind"], secret="s")
        runner.send_event({"id": str(uuid.uuid4()), "source": "test", "type": "poison.kind", "data": {}})
        now = str(self.stack.sql("select now()")[0][0])
        made: dict[str, dict[str, Any]] = {
            "outbox": {"id": 0, "type": "poison.kind", "instance_id": None, "data": {}, "at": now},
            "deliveries": {
                "id": 0,
                "webhook_id": self.stack.sql("select id from webhooks")[0][0],
                "event": {},
                "attempts": 0,
                "try_at": now,
            },
            "configs": {
                "tenant": "default",
                "environment": "",
                "workflow": "w",
                "number": 1,
                "spec": {},
                "origin": "api",
                "actor": "me",
                "at": now,
            },
        }
        for table in ("schedules", "triggers", "events", *made):
            row = made.get(table) or self.stack.sql(f"select to_jsonb(t) from {table} t limit 1")[0][0]
            if table == "events":
                row = {**row, "state": "held", "try_at": None, "instance_id": None}
            for column, value in itertools.product(COLUMNS[table], ODD):
                self.row(table, column, value, row)

    def instances(self) -> None:
        """Instances that wait, and whose rows are spoilt before they go on."""
        runner = self.stack.runner
        spoilt = [
            (table, column, value)
            for table in ("branches", "instances", "checkpoints", "definitions")
            for column in COLUMNS[table]
            for value in ODD
        ]
        for n, (table, column, value) in enumerate(spoilt):
            name = "naps"
            if table == "definitions":
                name = f"poisoned{n}"
                runner.put_workflow(definition_from({"type": name, "steps": [{"id": "a", "type": "delay", "parameters": {"delay": "3s"}}]}))
            id = runner.start_workflow(name, input={}, source="chaos")
            whose = {"branches": "instance_id = %s", "instances": "id = %s", "definitions": f"name = '{name}' and %s <> ''",
                     "checkpoints": "branch_id in (select id from branches where instance_id = %s)"}[table]  # fmt: skip
            if table == "checkpoints":
                until(
                    lambda i=id: self.stack.sql(
                        "select 1 from checkpoints k join branches b on b.id = k.branch_id where b.instance_id = %s", i
                    ),
                    30,
                )
            self.write(f"update {table} set {column} = %s where {whose}", Jsonb(value), id)

    def files(self) -> None:
        for folder, text in (
            ("workflows", "{{{"),
            ("schedules", "id: [\n"),
            ("schedules", "a: &a [*a]"),
            ("triggers", "\x00"),
            ("workflows", "- " * 5000),
        ):
            path = self.stack.folder / "config" / folder / f"poison{next(self.number)}.yml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            self.put += 1

    def keys(self) -> None:
        redis = self.stack.redis
        for key in ("events:bus", "events:workflow", "workflow:events", "events:dlq"):
            redis.delete(key)
            redis.set(key, "x")
            self.put += 1
        for queue in ("normal", "high", "low", "critical", "celery"):
            redis.lpush(queue, "no message", "5", "{}", '{"properties": {}}')
            self.put += 4

    def definitions(self) -> None:
        """What the doors take, and is wrong all the same: it fails when it runs."""
        for n, document in enumerate(HARMFUL):
            text = {"document": {"dsl": "1.0.3", "namespace": "default", "name": f"harmful{n}", "version": "1.0.0"}, **document}
            with contextlib.suppress(OrchestratorError):  # refused: so much the better
                self.stack.runner.put_workflow(definition_from(text))
                self.stack.runner.start_workflow(f"harmful{n}", input={}, source="chaos")
                self.put += 1


HARMFUL: tuple[dict[str, Any], ...] = (
    {"schedule": {"on": {"any": [{"with": {"type": "poison.kind"}}], "until": "${ .x.y | error }"}}, "do": [{"a": {"set": {"a": 1}}}]},
    {"schedule": {"every": "PT0S"}, "do": [{"a": {"set": {"a": 1}}}]},
    {"do": [{"a": {"wait": "P10000Y"}}]},
    {"do": [{"a": {"emit": {"event": {"with": {"id": "${ {} }", "source": "s", "type": "poison.kind"}}}}}]},
    {"do": [{"a": {"emit": {"event": {"with": {"source": "s", "type": "poison.kind", "data": {"$sealed": "gAAAAx"}}}}}}]},
    {"do": [{"a": {"set": {"x": '${ "x" * 1000000000 }'}}}]},
    {"do": [{"a": {"listen": {"to": {"any": [{"with": {"type": "poison.kind"}}], "until": "${ error }"}}}}]},
)


def healthy(stack: Stack) -> list[float]:
    """How long each took from its start to its end, in seconds."""
    ids, began = [], time.monotonic()
    for n in range(HEALTHY):
        pause = began + n / PER_S - time.monotonic()
        if pause > 0:
            time.sleep(pause)  # a steady rate
        ids.append(stack.runner.start_workflow("sequence", input={}, source="healthy"))
    open_ = "select count(*) from instances where source = 'healthy' and ended_at is null"
    until(lambda: stack.sql(open_) == [(0,)], 120, lambda: f"{stack.sql(open_)} healthy instances wait\n{stack.logs()[-4000:]}")
    ended = stack.sql("select state, extract(epoch from ended_at - created_at)::float from instances where id = any (%s::uuid[])", ids)
    assert {state for state, _ in ended} == {"COMPLETED"}
    return [took for _, took in ended]


def good_goes_on(stack: Stack) -> None:
    """The schedule and the trigger whose copies were spoilt do what they did."""
    fired = "select count(*) from instances where source like 'schedule%%' and workflow = 'numbered'"
    before = stack.sql(fired)
    until(lambda: stack.sql(fired) > before, 20, "the good schedule fires")
    begun = "select count(*) from instances where source like 'trigger%%' and workflow = 'numbered'"
    before = stack.sql(begun)
    stack.runner.send_event({"id": str(uuid.uuid4()), "source": "test", "type": "poison.kind", "data": {"n": 7}})
    until(lambda: stack.sql(begun) > before, 20, "the good trigger starts")


def test_poison_holds_up_nobody_else(stack: Stack) -> None:
    stack.worker(concurrency=4)
    poison = Poison(stack)
    healthy(stack)  # all is warm
    before = [healthy(stack) for _ in range(ROUNDS)]
    poison.files()
    poison.rows()
    poison.instances()
    poison.definitions()
    poison.keys()
    for _ in range(20):
        stack.runner.send_event({"id": str(uuid.uuid4()), "source": "test", "type": "poison.kind", "data": {"$sealed": "gAAAAx"}})
    after = [healthy(stack) for _ in range(ROUNDS)]
    was, now = (statistics.median(percentile(one, 0.99) for one in several) for several in (before, after))
    report("poison", put=poison.put, p99_before_ms=was * 1000, p99_after_ms=now * 1000, moved=now / was - 1)
    assert poison.put > 100
    log = stack.workers[0].log.read_text()
    assert stack.workers[0].process.poll() is None, log[-4000:]
    told = {subject for (subject,) in stack.sql("select distinct kind || ' ' || subject from findings")}
    good_goes_on(stack)
    # What is sealed with a key that nobody has waits for it; whatever else is wrong has an end.
    waits = (
        "select i.workflow, i.state, b.state, b.lacks from instances i join branches b on b.instance_id = i.id and b.state <> 'closed'"
        " where i.source = 'chaos' and i.ended_at is null and i.workflow not like 'harmful%%' and b.lacks is distinct from 'key:ENCRYPTION_KEYS'"
    )
    until(lambda: not stack.sql(waits), 60, lambda: f"{stack.sql(waits)}\n{stack.logs()[-4000:]}")
    until(
        lambda: not stack.sql("select 1 from outbox where put_aside is null"),
        30,
        lambda: str(stack.sql("select id, type, data, put_aside from outbox limit 40")) + stack.workers[0].log.read_text()[-3000:],
    )
    assert stack.sql("select count(*) from outbox where put_aside is not null")[0][0] >= len(ODD)
    until(lambda: not stack.sql("select subject, message from findings where kind = 'chore'"), 60, "no chore fails")
    # No other is held up by more than a second, wherever this runs; by how little, a quiet machine shows.
    assert now < was + 1.0, (was, now, sorted(told))
    if LONG:
        assert now < was * 1.2, (was, now, sorted(told))
