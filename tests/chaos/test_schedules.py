"""Beats, workers and Redis go again and again: no time is lost that the catch-up policy wants, none fires twice."""

from __future__ import annotations

import datetime as dt
import random
import time

import pytest

from tests import commands
from tests.chaos.crowd import LONG, report
from tests.stack import Stack, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 240)]
NUMBER, SECONDS = (200, 240) if LONG else (40, 20)


def test_each_time_fires_once_while_beats_workers_and_redis_go(stack: Stack) -> None:
    def beat() -> commands.Process:
        with (stack.folder / "beat.log").open("ab") as log:
            return commands.start(
                ["celery", "-A", "orchestrator.app", "beat", "--loglevel", "WARNING", "--pidfile="], stack.variables(), log
            )

    stack.environment["QUEUE_GRACE"] = "3"
    stack.worker(concurrency=4)
    beats = [beat(), beat()]
    timetable = stack.runner.schedules
    for n in range(NUMBER):
        timetable.add({"id": f"s{n}", "workflow": "numbered", "every": 1 + n % 3, "catchup": "all", "properties": {"n": n}})
    killed = {"beats": 0, "workers": 0, "redis": 0}
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            time.sleep(random.uniform(0.5, 2))
            match random.choice(["beats", "beats", "workers", "redis"]):
                case "beats":
                    number = random.randrange(2)
                    beats[number].kill()
                    beats[number].wait()
                    beats[number] = beat()
                    killed["beats"] += 1
                case "workers":
                    stack.workers[-1].kill()
                    stack.worker(concurrency=4, wait=False)
                    killed["workers"] += 1
                case _:
                    stack.redis.flushall()
                    killed["redis"] += 1
        [(stopped,)] = stack.sql("select now()")
        until(lambda: _behind(stack, stopped) == [], 120, lambda: f"behind: {_behind(stack, stopped)}")
        for n in range(NUMBER):
            timetable.enable(f"s{n}", False)
        until(lambda: stack.sql("select count(*) from instances where state not in ('COMPLETED', 'FAILED')") == [(0,)], 120)
    finally:
        for one in beats:
            one.kill()
            one.wait()
    gaps = stack.sql(
        """
        select name, gap, every from (
            select s.name, (s.spec ->> 'every')::float8 as every,
                extract(epoch from f.planned_at - lag(f.planned_at) over (partition by s.id order by f.planned_at))::float8 as gap
            from fires f join schedules s on s.id = f.schedule_id) g where abs(gap - every) > 0.01
        """
    )
    assert gaps == []
    [(fires, started, instances, states)] = stack.sql(
        """
        select (select count(*) from fires), (select count(distinct instance_id) from fires where outcome = 'started'),
            (select count(*) from instances where source = 'schedule'), (select array_agg(distinct state) from instances)
        """
    )
    by = dict(stack.sql("select by, count(*) from fires group by by"))
    report(f"{fires} fires of {NUMBER} schedules, {by}, while {killed} were killed or emptied: each once, none missing")
    assert fires == started == instances
    assert fires >= sum(SECONDS // (1 + n % 3) - 1 for n in range(NUMBER))
    assert states == ["COMPLETED"]


def _behind(stack: Stack, moment: dt.datetime) -> list[tuple[str, dt.datetime | None]]:
    """Schedules that did not fire yet for all times up to a moment."""
    return stack.sql(
        """
        select s.name, max(f.planned_at) from schedules s left join fires f on f.schedule_id = s.id
        group by s.id, s.name, s.spec having coalesce(max(f.planned_at) <= %s - make_interval(secs => (s.spec ->> 'every')::float8), true)
        """,
        moment,
    )
