"""The keeper: a chore that fails or hangs, a schedule that cannot be, and who holds which post."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from orchestrator.api import create_app
from orchestrator.definition.expressions import Jq, evaluate
from orchestrator.keeper.barrier import Barrier
from orchestrator.keeper.chore import Chore, Desk
from orchestrator.keeper.lane import Lane
from orchestrator.keeper.office import Office
from orchestrator.store import findings, timers
from orchestrator.store.connection import Connection, Database
from orchestrator.store.timers import Probe
from tests.stack import Stack, until


class Counting(Chore):
    name = "counting"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.times = 0

    def do(self, c: Connection) -> None:
        self.times += 1


class Failing(Chore):
    name = "failing"
    error: Exception | None = ValueError("not today")

    def do(self, c: Connection) -> None:
        if self.error is not None:
            raise self.error


class Hanging(Chore):
    name = "hanging"
    released = threading.Event()

    def do(self, c: Connection) -> None:
        self.released.wait(30)


def probe(stack: Stack) -> Probe:
    return timers.probe(stack.runner.database.connection(), 10.0)


def found(stack: Stack) -> list[dict[str, Any]]:
    return findings.listing(stack.runner.database.connection())


def test_a_chore_that_fails_backs_off_is_a_finding_and_holds_up_no_other(stack: Stack) -> None:
    runtime = stack.runner.runtime
    failing, counting = Failing(Desk(runtime)), Counting(Desk(runtime))
    lane = Lane("test", [failing, counting], runtime.database)
    lane.start()
    seen = probe(stack)

    def worked(times: int) -> bool:
        lane.hand_in(seen)
        return counting.times >= times

    until(lambda: worked(5), 10)
    barrier = lane.barriers["failing"]
    assert barrier.failures == 1, "it is not tried again before its pause is over"
    assert lane.about()["failing"] == {"failing": barrier.about()}
    [finding] = found(stack)
    assert (finding["kind"], finding["subject"], finding["message"]) == ("chore", "failing", "ValueError: not today")
    health = create_app(stack.runner).test_client().get("/health").get_json()["components"]["keeper"]
    assert [one["chore"] for one in health["failing"]] == ["failing"]
    assert "failing" in stack.cli("doctor").stdout

    failing.error = None

    def is_well() -> bool:
        lane.hand_in(seen)
        return not barrier.failures

    until(is_well, 10)
    until(lambda: found(stack) == [], 10)
    lane.end()
    lane.join(5)


def test_a_chore_that_hangs_holds_up_no_other_lane(stack: Stack) -> None:
    runtime = stack.runner.runtime
    office = Office(runtime, {"keeper": {"one": [Hanging], "two": [Counting]}}, set)
    office.start()

    def counting() -> Counting:
        [lane] = [lane for lane in office.posts[0].running if lane.lane == "two"]
        return lane.chores[0]  # type: ignore[return-value]

    until(lambda: office.is_keeper and counting().times >= 3, 20)
    until(lambda: office.health()["chores"].get("one", {}).get("doing") == "hanging", 10)
    assert office.health()["status"] == "degraded"
    Hanging.released.set()
    office.stop()
    office.join(10)


class Dreaming(Counting):
    """Waits for a moment that a thread cannot wait for, or cannot say what it waits for."""

    moment: float | Exception = 0.0

    def is_due(self, probe: Probe) -> bool:
        return False

    def wakes_at(self) -> float | None:
        if isinstance(self.moment, Exception):
            raise self.moment
        return self.moment


@pytest.mark.parametrize("moment", [251_717_000_000.0, 1e300, float("inf"), OverflowError("timestamp too large")], ids=str)
def test_no_moment_that_a_chore_names_ends_its_lane(stack: Stack, moment: float | Exception) -> None:
    runtime = stack.runner.runtime
    dreaming, counting = Dreaming(Desk(runtime)), Counting(Desk(runtime))
    dreaming.moment = moment
    lane = Lane("test", [dreaming, counting], runtime.database)
    lane.start()
    lane.hand_in(probe(stack))
    until(lambda: counting.times >= 1 or isinstance(moment, Exception), 10)

    dreaming.moment = float("inf")
    lane.hand_in(probe(stack))
    before = counting.times
    until(lambda: lane.hand_in(probe(stack)) or counting.times > before, 10)

    assert lane.is_alive()
    lane.end()
    lane.join(5)


class Evaluating(Chore):
    name = "evaluating"

    def do(self, c: Connection) -> None:
        evaluate(Jq("def f: f; f"), None, {})


def test_what_a_chore_evaluates_for_one_is_cut_short_for_all(stack: Stack) -> None:
    """Longer than a second, nobody waits for a condition of somebody else's that does not end."""
    runtime = stack.runner.runtime
    lane = Lane("test", [Evaluating(Desk(runtime))], runtime.database)
    lane.start()
    lane.hand_in(probe(stack))
    barrier = lane.barriers["evaluating"]
    until(lambda: barrier.failures, 20)
    assert "not done within 0.8 s" in barrier.error
    lane.end()
    lane.join(5)


@pytest.mark.parametrize(
    "error", [psycopg.errors.DiskFull("no space"), psycopg.errors.QueryCanceled("too long"), psycopg.errors.LockNotAvailable("locked")]
)
def test_what_a_statement_is_refused_for_is_the_chores_own_failure(stack: Stack, error: Exception) -> None:
    barrier = Barrier("chore")

    def act(c: Connection) -> None:
        raise error

    barrier.attempt(stack.runner.database.connection(), act)
    assert barrier.failures == 1


def test_a_statement_that_takes_its_own_connection_down_is_the_chores_own_failure(stack: Stack) -> None:
    database = Database(stack.database_url)
    barrier = Barrier("chore")
    barrier.attempt(database.connection(), lambda c: c.execute("select pg_terminate_backend(pg_backend_pid())") and None)
    assert barrier.failures == 1
    database.drop()


def test_a_server_that_is_away_is_nobodys_failure(stack: Stack) -> None:
    barrier = Barrier("chore")

    def act(c: Connection) -> None:
        raise psycopg.OperationalError("connection refused")

    with pytest.raises(psycopg.OperationalError):
        barrier.attempt(_gone(), act)
    assert barrier.failures == 0


def _gone() -> Any:
    class Gone:
        class info:  # noqa: N801  # as psycopg's
            dsn = "host=127.0.0.1 port=1 dbname=nothing connect_timeout=1"
            password = ""

    return Gone()


def test_the_posts_are_held_by_one_and_taken_over(stack: Stack) -> None:
    runtime = stack.runner.runtime
    first = Office(runtime, {"keeper": {"one": [Counting]}}, set)
    first.start()
    until(lambda: first.is_keeper, 10)
    second = Office(runtime, {"keeper": {"one": [Counting]}}, set)
    first.stop()
    first.join(10)
    second.start()
    until(lambda: second.is_keeper, 10)
    second.stop()
    second.join(10)


def test_a_worker_that_has_nothing_to_do_asks_little(stack: Stack) -> None:
    """Each chore that asks the database whether there is something for it costs every idle worker that much, for ever."""
    stack.worker()
    until(lambda: len(stack.sql("select 1 from leadership where until > now()")) == 2)
    asked = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"
    with psycopg.connect(stack.database_url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as c:
        name = stack.database_url.rsplit("/", 1)[1].partition("?")[0]

        def statements() -> int:
            c.execute("select pg_stat_clear_snapshot()")
            row = c.execute(asked, (name,)).fetchone()
            assert row is not None
            return int(row[0])

        time.sleep(12)  # until what it did at its start is counted, which is after ten seconds at the latest
        before = statements()
        time.sleep(10)  # the measured span
        a_second = (statements() - before) / 10
    assert 1 <= a_second <= 5


@pytest.mark.parametrize(
    "change",
    [
        """about = '{"no": "spec"}'""",
        """about = null, spec = '{"every": 1e300}'""",
        """about = null, spec = '{"cron": "a b", "timezone": "UTC"}'""",
        "about = null, spec = 'null'",
        """kind = 'after', about = null, next_at = null, spec = '{"seconds": 1e300}', last_instance = (select id from instances limit 1)""",
    ],
)
def test_a_schedule_that_cannot_be_is_put_aside_and_holds_up_no_other(stack: Stack, change: str) -> None:
    """Rows that no door would let in: as an older version, or a hand, may have left them."""
    stack.runner.start_workflow("numbered", input={"n": 1})
    stack.sql("update instances set state = 'COMPLETED', ended_at = now() returning 1")
    timetable = stack.runner.schedules
    for name in ("bad", "good"):
        timetable.add({"id": name, "workflow": "numbered", "every": "1s", "properties": {"n": 1}})
    with psycopg.connect(stack.database_url, autocommit=True) as c:
        c.execute(
            f"update schedules set next_at = now() - interval '1 s' where name = 'bad'; update schedules set {change} where name = 'bad'"
        )
    stack.worker(concurrency=1)
    until(lambda: timetable.find("good").starts >= 3, 20)
    until(lambda: any(one["subject"] == "bad" for one in found(stack)), 10)
    assert not [one for one in found(stack) if one["kind"] == "chore"]
