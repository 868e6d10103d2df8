"""Checklist 9: workflows that start by themselves. On real workers."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from typing import Any

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.errors import Invalid
from orchestrator.schedule.times import next_cron
from tests.stack import Stack, until

DOC = "document: {{dsl: '1.0.3', namespace: tests, name: {name}, version: '1.0.0'}}\nschedule: {schedule}\ndo: [{{s: {{set: '${{ $workflow.input }}'}}}}]"


def register(stack: Stack, name: str, schedule: str) -> None:
    stack.runner.register_workflow(read_document(DOC.format(name=name, schedule=schedule)))


def outputs(stack: Stack, name: str) -> list[Any]:
    return [
        row[0] for row in stack.sql("select output from instances where workflow = %s and state = 'COMPLETED' order by created_at", name)
    ]


def test_every_so_often_and_not_in_a_burst_after_a_pause(running: Stack) -> None:
    register(running, "often", "{every: {milliseconds: 1500}}")
    until(lambda: len(outputs(running, "often")) >= 2, 15)
    running.sql("update schedules set next_at = next_at - interval '1 hour' where workflow = 'often' returning 1")
    before = len(outputs(running, "often"))
    until(lambda: len(outputs(running, "often")) >= before + 1, 10)
    time.sleep(0.5)  # a burst would be seen by now
    assert len(outputs(running, "often")) <= before + 2
    running.sql("delete from schedules where workflow = 'often' returning 1")


def test_some_time_after_the_last_one_ended(running: Stack) -> None:
    register(running, "after", "{after: {milliseconds: 700}}")
    until(lambda: len(outputs(running, "after")) >= 3, 20)
    times = [
        row[0] for row in running.sql("select extract(epoch from created_at)::float8 from instances where workflow = 'after' order by 1")
    ]
    assert all(later - earlier >= 0.7 for earlier, later in itertools.pairwise(times))
    running.sql("delete from schedules where workflow = 'after' returning 1")


def send(stack: Stack, id: str, type: str, data: Any) -> None:
    stack.runner.send_event({"specversion": "1.0", "id": id, "source": "/schedules", "type": type, "data": data})


def test_an_event_starts_one_instance_with_the_events_as_its_input(running: Stack) -> None:
    register(running, "on-one", "{on: {one: {with: {type: heartbeat.low, data: '${ .bpm < 40 }'}}}}")
    for number, bpm in enumerate((30, 80, 35, 30)):
        send(running, f"h{min(number, 2)}", "heartbeat.low", {"bpm": bpm})  # the last one is a repetition of the third

    until(lambda: len(outputs(running, "on-one")) >= 2, 10)
    time.sleep(1.0)  # a third would be seen by now
    assert [[event["data"]["bpm"] for event in given] for given in outputs(running, "on-one")] == [[30], [35]]


def test_all_events_together_start_one_instance_and_read_says_how_they_are_seen(running: Stack) -> None:
    register(running, "on-all", "{on: {all: [{with: {type: part.a}}, {with: {type: part.b}}]}, read: data}")
    send(running, "a1", "part.a", 1)
    send(running, "b1", "part.b", 2)
    send(running, "a2", "part.a", 3)
    until(lambda: outputs(running, "on-all"), 10)
    send(running, "b2", "part.b", 4)
    until(lambda: len(outputs(running, "on-all")) == 2, 10)
    assert outputs(running, "on-all") == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 0 * * *", "UTC", "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"),
        ("30 2 * * *", "Europe/Paris", "2026-03-28T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),  # half past two does not exist
        ("0 9 * * 1-5", "America/New_York", "2026-11-20T15:00:00+00:00", "2026-11-23T14:00:00+00:00"),
        ("0 0 13 * 5", "UTC", "2026-11-09T00:00:00+00:00", "2026-11-13T00:00:00+00:00"),  # the 13th, or a Friday
        ("0 0 * * 7", "UTC", "2026-11-20T00:00:00+00:00", "2026-11-22T00:00:00+00:00"),
    ],
)
def test_cron_means_what_unix_means(cron: str, zone: str, after: str, expected: str) -> None:
    moment = dt.datetime.fromisoformat(after).timestamp()
    assert next_cron({"cron": cron, "timezone": zone}, moment) == dt.datetime.fromisoformat(expected).timestamp()


def test_a_cron_that_is_none_is_refused(running: Stack) -> None:
    with pytest.raises(Invalid, match="is not a minute"):
        register(running, "never", "{cron: '61 * * * *'}")


def test_a_workflow_with_a_schedule_can_be_run_on_demand(running: Stack) -> None:
    register(running, "daily", "{cron: '0 0 * * *'}")
    assert running.run("daily", {"by": "hand"})["output"] == {"by": "hand"}
