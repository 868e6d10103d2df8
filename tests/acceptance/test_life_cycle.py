"""Pause, resume, cancel, retry, rerun, roll back, signals, limits, dependencies: on real workers."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import psycopg
import pytest

from orchestrator.definition.documents import definition_from, read_document
from orchestrator.errors import Duplicate, IllegalMove, Invalid, NotFound, TooLarge
from orchestrator.store import events
from orchestrator.store.queries import Filter
from tests.stack import Stack, until


def effects(stack: Stack, instance_id: str) -> list[str]:
    return [row[0] for row in stack.sql("select what from ledger where instance = %s order by id", instance_id)]


def start(stack: Stack, workflow: str, input: Any = None, **options: Any) -> str:
    return stack.runner.start_workflow(workflow, input={} if input is None else input, **options)


def moves(stack: Stack, instance_id: str) -> list[tuple[str, str]]:
    return [(row["action"], row["to_state"]) for row in reversed(stack.runner.audit(instance_id))]


def test_a_paused_instance_begins_no_step_and_resuming_repeats_none(running: Stack) -> None:
    instance_id = start(running, "slowly")
    until(lambda: effects(running, instance_id) == ["begin"])

    running.runner.pause_workflow(instance_id, actor="ada")
    until(lambda: effects(running, instance_id)[-1] == "end")
    until(lambda: running.sql("select state from branches where instance_id = %s", instance_id) == [("halted",)])
    assert running.state(instance_id) == "PAUSED"
    assert effects(running, instance_id) == ["begin", "end"]

    running.runner.resume_workflow(instance_id, actor="ada")
    assert running.ended(instance_id)["status"] == "COMPLETED"
    assert effects(running, instance_id) == ["begin", "end"] * 3
    assert moves(running, instance_id) == [
        ("start", "PENDING"), ("begin", "RUNNING"), ("pause", "PAUSED"), ("resume", "RUNNING"), ("complete", "COMPLETED"),
    ]  # fmt: skip
    assert {row["actor"] for row in running.runner.audit(instance_id)} == {"anonymous", "engine", "ada"}


def test_a_wait_does_not_wake_while_paused(running: Stack) -> None:
    instance_id = start(running, "naps")
    until(lambda: running.sql("select 1 from branches where instance_id = %s and state = 'parked'", instance_id))
    running.runner.pause_workflow(instance_id)
    until(lambda: not running.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s", instance_id))
    assert effects(running, instance_id) == ["before"]

    running.runner.resume_workflow(instance_id)

    assert running.ended(instance_id)["status"] == "COMPLETED"


def test_an_illegal_move_is_refused_by_name_and_changes_nothing(running: Stack) -> None:
    status = running.run("sequence", {})

    for verb in ("pause", "resume", "cancel", "retry"):
        with pytest.raises(IllegalMove, match="COMPLETED state"):
            getattr(running.runner, f"{verb}_workflow")(status["id"])
    assert running.state(status["id"]) == "COMPLETED"
    with pytest.raises(NotFound):
        running.runner.pause_workflow("01a1f826-0000-7000-8000-000000000000")


def test_cancelling_interrupts_a_running_step_and_stays(running: Stack) -> None:
    instance_id = start(running, "stubborn-step-long")
    until(lambda: effects(running, instance_id) == ["begin"])

    running.runner.cancel_workflow(instance_id, reason="no longer wanted")

    # By itself the step ends after minutes.
    until(lambda: "interrupted" in effects(running, instance_id), 10)
    status = running.runner.get_workflow_status(instance_id)
    assert status["status"] == "CANCELLED"
    assert status["error"]["message"] == "no longer wanted"
    assert running.sql("select distinct state from branches where instance_id = %s", instance_id) == [("closed",)]


def test_cancelling_ends_waits_and_retries_at_once(running: Stack) -> None:
    for workflow in ("waits-long", "retries-later"):
        instance_id = start(running, workflow)
        until(lambda i=instance_id: running.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s", i))

        running.runner.cancel_workflow(instance_id)

        assert running.state(instance_id) == "CANCELLED"
        assert not running.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s", instance_id)


def test_cancelling_reaches_child_instances(running: Stack) -> None:
    instance_id = start(running, "parent-of-long")
    child = until(lambda: running.sql("select id::text from instances where parent_id = %s and state = 'RUNNING'", instance_id))[0][0]

    running.runner.cancel_workflow(instance_id)

    assert running.state(child) == "CANCELLED"


def test_a_failing_child_fails_its_parent_with_the_same_error(running: Stack) -> None:
    status = running.run("parent-of-broken", {})

    assert status["status"] == "FAILED"
    assert "asked to fail" in status["error"]["message"]


@pytest.mark.parametrize("workflow", ["second-time", "second-time-fork", "second-time-graph"])
def test_retry_goes_on_at_the_failed_step(running: Stack, workflow: str) -> None:
    failed = running.run(workflow, {})
    assert failed["status"] == "FAILED"
    assert running.sql("select count(*) from dead_letters where instance_id = %s and resolved_at is null", failed["id"]) == [(1,)]
    before = effects(running, failed["id"])

    running.runner.retry_workflow(failed["id"])

    status = running.ended(failed["id"])
    assert status["status"] == "COMPLETED", status["error"]
    after = effects(running, failed["id"])
    assert after.count("tried") == 2
    assert all(after.count(what) == 1 for what in before if what != "tried")
    assert running.sql("select count(*) from dead_letters where instance_id = %s and resolved_at is null", failed["id"]) == [(0,)]


def test_rerun_from_a_step_forks_a_new_instance_with_the_history_up_to_it(running: Stack) -> None:
    first = running.run("sequence", {"n": 1})

    again = running.runner.rerun_workflow(first["id"], "d")

    status = running.ended(again)
    assert status["status"] == "COMPLETED"
    assert status["forked_from"] == first["id"]
    assert status["output"] == first["output"]
    assert effects(running, again) == ["d", "e"]


def test_rerun_inside_a_graph_keeps_what_does_not_depend_on_the_step(running: Stack) -> None:
    first = running.run("diamond", {})

    again = running.runner.rerun_workflow(first["id"], "c")

    assert running.ended(again)["status"] == "COMPLETED"
    assert sorted(effects(running, again)) == ["c", "e"]


def test_rolling_back_a_completed_instance_undoes_its_steps_in_reverse(running: Stack) -> None:
    done = running.run("refundable", {})

    running.runner.rollback_workflow(done["id"])

    until(lambda: running.state(done["id"]) == "CANCELLED")
    assert effects(running, done["id"]) == ["do hotel", "do flight", "undo flight", "undo hotel"]
    assert running.runner.get_workflow_status(done["id"])["compensation"]["result"] == "compensated"


def test_a_failing_undo_is_retried_recorded_and_stops_no_other(running: Stack) -> None:
    status = running.run("saga-stubborn", {})

    assert status["status"] == "FAILED"
    assert status["compensation"]["result"] == "partially compensated"
    assert [item["position"] for item in status["compensation"]["failed"]] == ["/do/1/visa"]
    assert effects(running, status["id"])[4:] == ["undo flight", "undo visa fails", "undo visa fails", "undo hotel"]


def test_a_deadline_inside_of_a_short_wait_comes_first(running: Stack) -> None:
    status = running.run("short-deadline", {})

    assert (status["status"], status["error"]["code"]) == ("FAILED", "timeout")
    assert effects(running, status["id"]) == ["before"]


def test_rolling_back_again_tries_only_what_could_not_be_undone(running: Stack) -> None:
    status = running.run("saga-mended", {})
    assert status["compensation"]["result"] == "partially compensated"

    running.runner.rollback_workflow(status["id"])
    until(lambda: running.state(status["id"]) == "FAILED")

    again = running.runner.get_workflow_status(status["id"])
    assert again["compensation"] == {"result": "compensated", "compensated": ["/do/0/hotel", "/do/1/visa"], "failed": []}
    assert effects(running, status["id"])[-4:] == ["undo visa fails", "undo visa fails", "undo hotel", "undo visa"]
    with pytest.raises(IllegalMove):
        running.runner.rollback_workflow(status["id"])


def test_a_crash_during_compensation_does_not_end_it(running: Stack) -> None:
    status = running.run("saga-crash", {})

    assert status["compensation"]["result"] == "compensated"
    assert effects(running, status["id"]) == ["do hotel", "do visa", "broken", "undo visa", "undo visa", "undo hotel"]


def test_a_saga_that_says_so_compensates_on_cancel(running: Stack) -> None:
    instance_id = start(running, "saga-cancel")
    until(lambda: running.sql("select 1 from branches where instance_id = %s and state = 'parked'", instance_id))

    running.runner.cancel_workflow(instance_id)

    until(lambda: running.state(instance_id) == "CANCELLED")
    assert effects(running, instance_id) == ["do hotel", "undo hotel"]


def test_what_is_being_compensated_cannot_be_cancelled_half_way(running: Stack) -> None:
    instance_id = start(running, "waits-long")
    until(lambda: running.sql("select 1 from branches where instance_id = %s and state = 'parked'", instance_id))
    running.sql("update instances set phase = 'compensating' where id = %s returning 1", instance_id)

    with pytest.raises(IllegalMove, match="compensating"):
        running.runner.cancel_workflow(instance_id)

    running.sql("update instances set phase = 'forward' where id = %s returning 1", instance_id)
    running.runner.cancel_workflow(instance_id)


def test_an_instance_that_outlives_its_timeout_fails_with_it(running: Stack) -> None:
    status = running.run("timed", {})

    assert status["status"] == "FAILED"
    assert status["error"]["code"] == "timeout"


def test_a_step_that_outlives_its_timeout_is_interrupted_and_tried_again(running: Stack) -> None:
    status = running.run("stubborn-step", {})

    assert status["error"]["code"] == "timeout"
    assert status["error"]["attempts"] == 2
    assert effects(running, status["id"]) == ["begin", "begin"]


def test_an_at_most_once_step_is_not_run_again_after_a_crash(running: Stack) -> None:
    status = running.run("once", {"die": True})

    assert status["error"]["code"] == "outcome_unknown"
    assert effects(running, status["id"]) == ["once"]


def test_an_approval_waits_for_its_answer(running: Stack) -> None:
    yes, no = start(running, "waits-for-yes"), start(running, "waits-for-yes")
    for instance_id in (yes, no):
        until(lambda i=instance_id: running.runner.get_workflow_status(i)["waits_for"])

    assert running.runner.approve(yes, actor="ada") == "manager"
    running.runner.approve(no, "manager", approved=False, actor="bob")

    assert running.ended(yes)["output"]["manager"] == {"approved": True, "by": "ada"}
    assert "refused by bob" in running.ended(no)["error"]["message"]


def test_a_signal_sent_before_anybody_listens_is_kept(running: Stack) -> None:
    instance_id = start(running, "listener")

    running.runner.signal_workflow(instance_id, "news.published", {"headline": "one"}, id="one")
    running.runner.signal_workflow(instance_id, "news.published", {"headline": "two"}, id="one")

    running.ended(instance_id)
    facts = [fact for fact in running.runner.history(instance_id) if fact["kind"] == "event.received"]
    assert [fact["data"]["event"]["data"] for fact in facts] == [{"headline": "one"}]


def test_an_emitted_event_wakes_every_listener_once(running: Stack) -> None:
    listeners = [start(running, "listener") for _ in range(3)]
    for instance_id in listeners:
        until(lambda i=instance_id: running.sql("select 1 from branches where instance_id = %s and state = 'parked'", i))

    running.run("emitter", {"headline": "it works"})

    for instance_id in listeners:
        status = running.ended(instance_id)
        assert status["status"] == "COMPLETED"
        facts = [fact for fact in running.runner.history(instance_id) if fact["kind"] == "event.received"]
        assert [fact["data"]["event"]["data"] for fact in facts] == [{"headline": "it works"}]


def story(stack: Stack, number: int) -> None:
    stack.runner.send_event({"id": f"story-{number}-{time.time()}", "source": "tests", "type": "story.told", "data": number})


def is_parked(stack: Stack, instance_id: str) -> bool:
    return stack.sql("select state from branches where instance_id = %s", instance_id) == [("parked",)]


def test_two_listeners_one_after_the_other_take_an_event_each(running: Stack) -> None:
    instance_id = start(running, "hears-twice")
    until(lambda: is_parked(running, instance_id))
    story(running, 1)
    until(lambda: any(fact["kind"] == "event.received" for fact in running.runner.history(instance_id)))
    until(lambda: is_parked(running, instance_id))

    story(running, 2)

    assert running.ended(instance_id)["output"] == [2]
    assert [step.state for step in running.runner.show(instance_id).steps()] == ["COMPLETED", "COMPLETED"]
    assert running.sql("select count(*) from subscriptions where instance_id = %s", instance_id) == [(0,)]


def test_an_event_whose_commit_was_slower_than_a_later_ones_is_not_passed_over(running: Stack) -> None:
    instance_id = start(running, "collects")
    until(lambda: is_parked(running, instance_id))
    slow = {"id": f"slow-{instance_id}", "source": "tests", "type": "story.told", "data": "slow"}
    with psycopg.connect(running.database_url) as c:
        events.keep(c, slow, None, "default")
        story(running, 2)
        until(lambda: any(fact["kind"] == "event.received" for fact in running.runner.history(instance_id)))
        until(lambda: is_parked(running, instance_id))
        c.commit()
    running.runner.runtime.publisher.branches(
        running.runner.database.patiently(lambda c: events.wake_listeners(c, "story.told", None, "default"))
    )

    assert running.ended(instance_id)["output"] == [2, "slow"]


def test_the_same_idempotency_key_starts_one_instance(running: Stack) -> None:
    one = start(running, "sequence", {"n": 5}, idempotency_key="k1")

    assert start(running, "sequence", {"n": 5}, idempotency_key="k1") == one
    with pytest.raises(Duplicate, match=one):
        start(running, "sequence", {"n": 6}, idempotency_key="k1")


def test_no_more_instances_run_at_once_than_the_workflow_allows(running: Stack) -> None:
    ids = [start(running, "limited") for _ in range(10)]

    for instance_id in ids:
        assert running.ended(instance_id)["status"] == "COMPLETED"

    rows = running.sql(
        "select extract(epoch from started_at)::float8, extract(epoch from ended_at)::float8 from instances where workflow = 'limited'"
    )
    most = max(sum(began <= at < ended for began, ended in rows) for at, _ in rows)
    assert most <= 3
    assert running.sql("select count(*) from slots") == [(0,)]


def test_instances_of_one_key_run_one_after_another_in_the_order_of_their_starts(running: Stack) -> None:
    ids = [start(running, "per-key", {"customer": n % 2}) for n in range(8)]
    for instance_id in ids:
        running.ended(instance_id)

    for customer in (0, 1):
        rows = running.sql(
            "select id::text, started_at, ended_at from instances where workflow = 'per-key' and (input->>'customer')::int = %s order by started_at",
            customer,
        )
        assert [row[0] for row in rows] == ids[customer::2]
        assert all(earlier[2] <= later[1] for earlier, later in itertools.pairwise(rows))


def test_an_instance_waits_for_the_workflows_it_depends_on(running: Stack) -> None:
    running.sql("delete from instances where workflow = 'sequence' returning 1")
    waiting = start(running, "depends")
    assert running.state(waiting) == "PENDING"
    assert "sequence" in running.runner.get_workflow_status(waiting)["message"]

    running.run("sequence", {})

    assert running.ended(waiting)["status"] == "COMPLETED"


def test_a_dependency_that_is_not_met_in_time_fails_the_instance_with_the_reason(running: Stack) -> None:
    status = running.run("depends-never", {})

    assert status["status"] == "FAILED"
    assert "never-started" in status["error"]["message"]


def test_a_dependency_cycle_is_refused(running: Stack) -> None:
    one = start(running, "depends-never", dependencies=[{"workflow": "x"}])
    with pytest.raises(Invalid, match="cycle"):
        running.runner.add_dependency(one, {"instance": one})
    running.runner.cancel_workflow(one)


def test_a_step_with_a_queue_of_its_own_runs_where_that_queue_is_served(running: Stack) -> None:
    instance_id = start(running, "over-queues")
    until(lambda: running.sql("select 1 from branches where instance_id = %s and queue = 'gpu' and state = 'queued'", instance_id))
    gpu = running.worker("-Q", "gpu", concurrency=1)

    assert running.ended(instance_id)["status"] == "COMPLETED"

    assert effects(running, instance_id) == ["here", "gpu", "alone", "there"]
    where = dict(running.sql("select what, pid from ledger where instance = %s", instance_id))
    assert where["gpu"] in gpu.children()
    assert where["here"] not in gpu.children()
    gpu.terminate()


def test_a_competing_fork_ends_with_its_first_branch(running: Stack) -> None:
    # The other branch would take minutes.
    status = running.run("compete", {})

    assert status["status"] == "COMPLETED"


def test_values_above_the_limit_are_refused_with_the_remedy(running: Stack) -> None:
    with pytest.raises(TooLarge, match="PAYLOAD_LIMIT_BYTES"):
        start(running, "sequence", {"x": "y" * 3_000_000})
    assert running.run("too-big", {})["error"]["code"] == "too_large"


def test_labels_and_text_find_instances(running: Stack) -> None:
    instance_id = start(running, "sequence", {"customer": "Lovelace"}, labels={"region": "eu"})
    running.runner.label_workflow(instance_id, {"tier": "gold"})

    assert [row["id"] for row in running.runner.instances(Filter(labels={"region": "eu", "tier": "gold"}))] == [instance_id]
    assert instance_id in [row["id"] for row in running.runner.instances(Filter(search="lovelace"))]


def test_bulk_verbs_tell_what_came_of_each(running: Stack) -> None:
    ids = [start(running, "waits-long", labels={"bulk": "yes"}) for _ in range(3)]

    outcome = running.runner.bulk("cancel", Filter(labels={"bulk": "yes"}))
    again = running.runner.bulk("cancel", Filter(labels={"bulk": "yes"}))

    assert outcome == dict.fromkeys(ids, "ok") or set(outcome) == set(ids)
    assert all("CANCELLED" in said for said in again.values())


def test_time_travel_shows_the_instance_after_any_number_of_facts(running: Stack) -> None:
    done = running.run("sequence", {})

    states = [[node.state for node in running.runner.show(done["id"], at).steps()] for at in range(6)]

    assert [state.count("COMPLETED") for state in states] == [0, 1, 2, 3, 4, 5]


def test_life_cycle_events_reach_the_stream_in_order(running: Stack) -> None:
    instance_id = start(running, "sequence")
    running.ended(instance_id)

    def seen() -> list[str]:
        entries = [fields for _, fields in running.redis.xrange("orchestrator:events")]
        return [json.loads(entry["data"])["event"] for entry in entries if entry["subject"] == f"workflow.{instance_id}"]

    until(lambda: "workflow.completed" in seen(), 5)
    assert seen() == ["workflow.created", "workflow.started", "workflow.completed"]


def test_events_of_a_document_tell_each_step_and_the_progress(running: Stack) -> None:
    steps = [{"id": "validate", "type": "noop"}, {"id": "execute", "type": "noop", "dependencies": ["validate"]}]
    running.runner.register_workflow(definition_from({"type": "two_steps", "steps": steps}))
    instance_id = start(running, "two_steps")
    running.ended(instance_id)

    def told() -> list[dict[str, Any]]:
        entries = [fields for _, fields in running.redis.xrange("orchestrator:events")]
        return [json.loads(entry["data"]) for entry in entries if entry["subject"] == f"workflow.{instance_id}"]

    until(lambda: told() and told()[-1]["event"] == "workflow.completed", 5)
    seen = [(event["event"], event.get("step_id"), event["progress"]) for event in told()]
    assert [step for step in seen if step[0].startswith("step.")] == [
        ("step.running", "validate", 0.0),
        ("step.completed", "validate", 0.5),
        ("step.running", "execute", 0.5),
        ("step.completed", "execute", 1.0),
    ]
    assert seen[-1] == ("workflow.completed", None, 1.0)


NESTED = """
type: nested
steps:
  - id: decide
    type: condition
    parameters:
      condition: (.names | length) > 1
      then: [{id: several, type: noop}]
      else: [{id: few, type: noop}]
  - id: side
    type: parallel
    dependencies: [decide]
    parameters: {steps: [{id: left, type: delay, parameters: {delay: 100ms}}, {id: right, type: noop}]}
  - id: each
    type: forEach
    dependencies: [side]
    parameters:
      items: .names
      as: name
      parallel: true
      steps: [{id: told, type: conditional, parameters: {condition: name}}]
  - id: again
    type: while
    dependencies: [each]
    parameters: {condition: $index < 2, steps: [{id: round, type: noop}]}
"""


def test_steps_that_hold_steps(running: Stack) -> None:
    running.runner.register_workflow(read_document(NESTED))
    done = running.run("nested", {"names": ["a", ""]})
    assert done["status"] == "COMPLETED"
    settled = [fact["position"] for fact in running.runner.history(done["id"]) if fact["kind"] == "step.completed"]
    assert sorted(position.rsplit("/", 1)[-1] for position in settled) == ["left", "right", "round", "round", "several", "told", "told"]
    assert [each["result"] for each in done["output"]["each"]] == [True, False]


def test_a_step_that_is_left_out_is_told_as_well(running: Stack) -> None:
    once = {"retries": 0}
    steps = [{"id": "breaks", "type": "fail", **once}, {"id": "never", "type": "noop", "dependencies": ["breaks"]}]
    running.runner.register_workflow(definition_from({"type": "left_out", "steps": steps}))
    instance_id = start(running, "left_out")
    running.ended(instance_id)

    def told() -> list[tuple[str, str, str]]:
        entries = [fields for _, fields in running.redis.xrange("orchestrator:events")]
        seen = [json.loads(entry["data"]) for entry in entries if entry["subject"] == f"workflow.{instance_id}"]
        return [(event["event"], event["step_id"], event["status"]) for event in seen if event.get("step_id")]

    until(lambda: ("step.skipped", "never", "skipped") in told(), 5)


def test_cleanup_removes_the_history_and_keeps_the_record(running: Stack) -> None:
    done = running.run("sequence", {})
    running.sql("update instances set ended_at = now() - interval '40 days' where id = %s returning 1", done["id"])
    alive = start(running, "waits-long")

    assert running.runner.cleanup() == [done["id"]]

    status = running.runner.get_workflow_status(done["id"])
    assert (status["status"], status["outcome"]) == ("CLEANING_UP", "COMPLETED")
    assert running.runner.history(done["id"]) == []
    until(lambda: running.state(alive) == "RUNNING")
    running.runner.cancel_workflow(alive)


def test_a_loop_over_data_runs_until_its_condition_fails(running: Stack) -> None:
    assert running.run("rounds", {})["output"] == {"n": 5}


def test_high_priority_overtakes_low_when_both_wait(running: Stack) -> None:
    ids = [start(running, "slowly", priority="low") for _ in range(12)]
    urgent = start(running, "slowly", priority="critical")

    running.ended(urgent)
    unfinished = sum(running.state(i) != "COMPLETED" for i in ids)
    assert unfinished > 0
    for instance_id in ids:
        running.ended(instance_id, 60)
