"""The walk: a worker takes a branch and goes on with it, step after step, until it ends, waits or is taken away.

    claim → rebuild from history → need → meet it → commit → need → …

Nothing that depends on a fact happens before the fact is committed. Facts without effects (decisions) wait in
`pending` and are committed together with what comes before the next effect: one insert per step, one for its
neighbours' decisions. If the process dies anywhere here, the lease runs out and the branch is walked again from the
last committed fact.

This module holds the loop and the history; how each need is met stands in `performing`, `waiting`, `branching`,
`relating` and `ending`.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, Never, TypeVar

import psycopg

from orchestrator.definition.tree import AnyTask, Definition, Step, Undo
from orchestrator.engine import branching, ending, heartbeat, missing, performing, relating, stages, waiting
from orchestrator.engine.rebuild import forward_of
from orchestrator.engine.runtime import Runtime, is_undo, queue_of
from orchestrator.engine.stopped import Stopped
from orchestrator.engine.undoing import undo_tree
from orchestrator.errors import BrokenDefinition, BrokenHistory, Fenced, MissingCode, NotJson, TooDeep, TooLarge, WorkflowFailed, text_of
from orchestrator.history import Fact, Failure, Kind
from orchestrator.ids import unescaped
from orchestrator.nesting import DEEPEST_KEPT
from orchestrator.plan.deciding import decided, endless
from orchestrator.plan.forward import Forward
from orchestrator.plan.needs import (
    AwaitChild,
    Deadline,
    Decide,
    Failed,
    FanOut,
    Finished,
    Join,
    Listening,
    Need,
    Perform,
    Publish,
    Sleep,
    StartChild,
)
from orchestrator.store import admission, branches, facts, fanouts, outbox, sealing
from orchestrator.store.branches import Held
from orchestrator.store.connection import AWAY, Connection, dumps, first_line
from orchestrator.store.fanouts import Closing
from orchestrator.telemetry import lifecycle, metrics

T = TypeVar("T")
logger = logging.getLogger("orchestrator.walk")

TOO_DEEP = f"its data is nested more than {DEEPEST_KEPT} levels deep, and cannot be kept"
# Doubled each time it happens at the same place.
STUMBLE_PAUSE_S = 0.5
# Who has gone so far in one go, and for so long, lets others have the process before going on.
TURN_NEEDS = 1_000
TURN_S = 1.0


class Walk:
    """One branch in this worker's hands. `next_link` is the queue of the message that follows this one in its chain.

    `attends`: this is no worker's process, so no step is run and nothing is begun. The branch's deadline is seen to, and what remains
    of it after that is handed back.
    """

    def __init__(self, runtime: Runtime, held: Held, *, queue: str, next_link: str | None = None, attends: bool = False) -> None:
        self.runtime = runtime
        self.settings = runtime.settings
        self.database = runtime.database
        self.held = held
        self.queue = queue
        self.next_link = next_link
        self.attends = attends
        self.definition: Definition
        self.base = held.now + held.offset - time.monotonic()
        self.pending: list[Fact] = []
        self.events: list[tuple[str, str]] = []
        self.began = time.monotonic()
        self.performed = 0
        self.was_isolated = False
        self.tells_tasks = False
        self.snapshot_seq = 0
        self.root: AnyTask | None = None
        self.shared: Any = None
        self.failed: WorkflowFailed | None = None  # set when the instance was committed FAILED here
        heartbeat.ensure(runtime)
        self.holding = runtime.hold(held.id, held.generation, held.instance_id)

    def run(self) -> Held | None:
        """Walk until this worker is done with the branch; gives a branch of the same fan-out taken on the way.

        Nothing is raised: what cannot be gone on with is an error of the instance, or left to recovery with a line in the log.
        """
        try:
            self._walk()
        except Stopped as stopped:
            return stopped.next_held
        except Fenced as error:
            metrics.fenced()
            logger.warning("%s; nothing was committed here", error, extra=self.labels())
        except AWAY as error:
            logger.warning("the database is away, the branch is left to recovery: %s", first_line(error), extra=self.labels())
        except Exception as error:  # noqa: BLE001  # a fault of ours, or of what a definition holds
            return self._stumble(error)
        finally:
            self.runtime.let_go(self.held.id)
        return None

    def _walk(self) -> Never:
        try:
            self.with_code(self.read)
            if self.held.stopping:
                branching.close(self, Closing("cancelled"))
            self.check_deaths()
            self.with_code(self.rebuild)
            self.check_dependencies()
            performing.check_poison(self)
            for met in itertools.count(1):
                self.with_code(self.step)
                if met % TURN_NEEDS == 0:
                    self.give_way()
        except (BrokenDefinition, BrokenHistory, NotJson, TooDeep) as error:
            # No other worker would come further.
            broken = Failure(error.code, str(error), self.held.position, type(error).__name__)
        except RecursionError:
            broken = Failure(TooDeep.code, TOO_DEEP, self.held.position, "TooDeep")
        self.end_broken(broken)

    def read(self) -> None:
        sealing.readable(self.held.vars, self.held.context, self.held.snapshot, self.held.instance_input)
        self.definition = self.runtime.definition(self.held.definition_id)
        self.tells_tasks = self.held.step_events and self.definition.document is not None

    def step(self) -> None:
        """Meet the next need. What would have to be kept and cannot be is a failure of the task it comes from."""
        try:
            self.meet(self.forward.need)
        except (NotJson, TooDeep, TooLarge) as error:
            refused = Failure(error.code, str(error), self.held.position, type(error).__name__)
        except RecursionError:
            refused = Failure(TooDeep.code, TOO_DEEP, self.held.position, "TooDeep")
        else:
            return
        self.keep_what_can_be()
        self._begin_again()
        performing.fail_here(self, refused)

    def with_code(self, act: Callable[[], None]) -> None:
        """What this worker does not have is no failure: the branch waits for one that has it."""
        try:
            act()
        except MissingCode as error:
            missing.wait_for_code(self, error)

    def keep_what_can_be(self) -> None:
        """Of what is pending, what comes before the first fact that cannot be written."""
        fresh, self.pending, self.events = self.pending, [], []
        seq = self.forward.seq - len(fresh)
        kept = list(itertools.takewhile(_can_be_written, fresh))
        if kept and self.database.patiently(lambda c: facts.commit(c, self.held, seq, kept, [])) is None:
            raise Fenced(self.held.position, self.held.generation)

    def _begin_again(self) -> None:
        """From what is committed: what was folded beyond it may be what cannot be gone on with."""
        self.pending, self.events = [], []
        self.held.claims += 1
        self.rebuild()

    # ── what must not happen ────────────────────────────────────────────────────────────────────────────────────────

    def _stumble(self, error: Exception) -> Held | None:
        """A fault that no code foresaw. It is tried again a little later, by whichever worker comes; and when it happens for the
        `crash_limit`th time at the same place, it is a failure of the task there, caught like any other."""
        logger.exception("internal error in a walk", extra=self.labels())
        metrics.stumbled()
        failure = Failure("internal", f"{type(error).__name__}: {text_of(error)}", self.held.position, "Internal")
        try:
            times = self._count_stumble()
            if times is None or times < self.settings.crash_limit:
                return None
            return self._give_up(failure)
        except AWAY as away:
            logger.warning("the database is away, the branch is left to recovery: %s", first_line(away), extra=self.labels())
        except Exception:
            logger.exception("an internal error could not be recorded; the branch is left to recovery", extra=self.labels())
        return None

    def _count_stumble(self) -> int | None:
        """How often this happened here, this time included; None when the branch is held no longer."""
        limit = self.settings.crash_limit
        return self.database.patiently(lambda c: branches.stumble(c, self.held, limit, STUMBLE_PAUSE_S))

    def _give_up(self, failure: Failure) -> Held | None:
        try:
            try:
                self._begin_again()
                performing.fail_here(self, failure)
                while True:
                    self.step()
            except (Stopped, Fenced, *AWAY):
                raise
            except Exception:
                logger.exception("the failure could not be handled by the workflow, which fails with it", extra=self.labels())
                self.end_broken(failure)
        except Stopped as stopped:
            return stopped.next_held
        except Fenced:
            return None

    def end_broken(self, failure: Failure) -> Never:
        """End the branch without a fold of its facts: it cannot be folded, or what follows from it cannot be done."""
        self.pending, self.events = [], []
        if not hasattr(self, "definition"):
            # It cannot be read: the instance ends without what it says, and so without going back.
            self.definition = Definition(name="", version="", do=Undo())
        self.forward = Forward(Undo(), self.held.position)
        self.forward.seq = self.database.patiently(lambda c: facts.last(c, self.held.id))
        ending.end_failed(self, failure)
        raise AssertionError("what has failed has ended")

    def now(self) -> float:
        """The engine's clock, counted on by this machine's monotonic one: a wrong wall clock does not matter."""
        return self.base + time.monotonic()

    def wall(self) -> float:
        """The database's clock: for what is told, and never waited for."""
        return self.now() - self.held.offset

    def meet(self, need: Need) -> None:
        due = self.forward.due
        if due is not None and due[0] <= self.now() and not isinstance(need, Finished | Failed):
            waiting.time_out(self, due[1])
            return
        if self.attends and not isinstance(need, Finished | Failed | Join):
            self.hand_back()
        if not isinstance(need, Decide | Deadline | Sleep | Listening):
            self.stage("next", "%s", place_of(need))
        match need:
            case Perform():
                performing.perform_step(self, need)
            case Decide():
                self.decide(need)
            case Finished():
                ending.end(self, need)
            case Failed(failure):
                ending.end_failed(self, failure)
            case Sleep():
                waiting.sleep(self, need)
            case Deadline():
                waiting.set_deadline(self, need)
            case FanOut():
                branching.fan_out(self, need)
            case Join():
                branching.join(self, need)
            case Listening():
                waiting.listen(self, need)
            case Publish():
                relating.emit(self, need)
            case StartChild():
                relating.start_child(self, need)
            case AwaitChild():
                relating.await_child(self, need)

    def give_way(self) -> None:
        """A branch that never waits goes to the end of its queue now and then."""
        if time.monotonic() - self.began >= TURN_S and not isinstance(self.forward.need, Finished | Failed | Join):
            self.hand_back()

    def hand_back(self) -> Never:
        """To the workers that serve its queue."""
        self.flush()
        held, kept = self.held, waiting.snapshot(self)
        self.fence(self.database.patiently(lambda c: branches.release(c, held, "queued", snapshot=kept)))
        self.runtime.publisher.branches([(held.instance_id, held.position, held.generation, held.queue)], self.definition.name)
        raise Stopped

    def rebuild(self) -> None:
        held = self.held
        self.forward = Forward(Undo(), held.position)
        root = self.root = self.read_root()
        if root is None:
            # Nothing is to be undone.
            ending.end_undone(self)
            return
        before = self.database.patiently(lambda c: fanouts.by_ids(c, held.after or [])) if held.after else []
        self.shared = self.read_shared()
        self.forward = forward_of(self.definition, root, held, self.shared, before)
        if held.snapshot and not is_undo(held.position):
            self.forward.restore(held.snapshot, root)
            self.snapshot_seq = self.forward.seq
        if held.claims > 1 or held.generation > 1:
            self.forward.apply_all(self.read_facts(self.forward.seq))
        if stages.are_told():
            self._tell_rebuilt()
        skipped = any(branch.outcome != "completed" for branch in before)
        if skipped and self.forward.seq == 0:
            task = self.forward.task
            if held.step_events and isinstance(task, Step):
                self.events.append(("step.skipped", dumps({"step": task.name, "position": held.position})))
            branching.close(
                self, Closing("skipped"), [Fact(held.position, Kind.TASK_SKIPPED, {"because": "a dependency did not complete"})]
            )

    def _tell_rebuilt(self) -> None:
        seq = self.forward.seq
        self.stage("history", "%d facts, %d of them from a snapshot", seq, self.snapshot_seq)
        self.stage("definition", "%s@%s", self.definition.name, self.definition.version)
        self.stage("replay", "%d facts folded; the branch is at %s", seq, place_of(self.forward.need))
        if not seq and self.held.position == "":
            self.stage("update", "the execution begins")

    def check_deaths(self) -> None:
        """Workers that die while they fold the history never come as far as to see that others died there before them."""
        held = self.held
        if held.crashes <= self.settings.crash_limit + 1:
            return
        if self.database.patiently(lambda c: facts.last(c, held.id)) == held.crash_seq:
            message = f"workers died here {held.crashes} times in a row, while they read the history"
            self.end_broken(Failure("worker_crashed", message, held.position, "WorkerCrashed"))

    def check_dependencies(self) -> None:
        """Woken before its first step by the patience with what it depends on: then that is why it fails."""
        if self.held.position != "" or self.forward.seq or self.held.generation == 1:
            return
        unmet = self.database.patiently(lambda c: admission.unmet(c, self.held.instance_id))
        if unmet:
            message = f"dependency timeout: waited for {'; '.join(unmet)}"
            ending.end_failed(self, Failure("dependency_timeout", message, self.held.position, "DependencyTimeout"))

    def read_shared(self) -> Any:
        """What flows into all branches of this one's fan-out; read once per process, however many branches there are."""
        held = self.held
        if held.parent_id is None:
            return None
        key = (held.parent_id, held.join_position)
        if key not in self.runtime.shared:
            parent_id = held.parent_id
            value = self.database.patiently(lambda c: fanouts.shared_input(c, parent_id))
            self.runtime.shared.clear()
            self.runtime.shared[key] = value
        return self.runtime.shared[key]

    def read_facts(self, after: int) -> list[Fact]:
        return self.database.patiently(lambda c: facts.after(c, self.held, after))

    def read_root(self) -> Any:
        if not is_undo(self.held.position):
            return self.definition.do
        return self.database.patiently(lambda c: undo_tree(c, self.held.instance_id, self.definition, self.runtime.registry))

    def record(self, fact: Fact) -> None:
        task = self.forward.frames[-1].task if self.tells_tasks and self.forward.frames else None
        self.forward.apply(fact)
        self.pending.append(fact)
        self.stage("update", "fact %d is %s at '%s'", self.forward.seq, fact.kind, fact.position)
        if task is not None and not isinstance(task, Step | Undo):
            for type in lifecycle.of_fact(fact):
                more = {"error": fact.data["error"]} if type == "step.failed" else {}
                self.events.append((type, dumps({"step": unescaped(task.name), "position": fact.position, **more})))

    def flush(self) -> None:
        """Commit what is pending. Afterwards this worker still holds the branch and the instance still runs."""
        if not self.pending and not self.events:
            return
        fresh, told = self.pending, self.events
        held = self.held
        seq = self.forward.seq - len(fresh)
        standing = self.database.patiently(lambda c: facts.commit(c, held, seq, fresh, told))
        if standing is None:
            self.reconcile(seq)
            return
        self.pending = []
        self.events = []
        self.stage("persistence", "%d facts committed, %d in all; the instance is %s", len(fresh), self.forward.seq, standing[0])
        self.stand(*standing)

    def stand(self, state: str, stopping: bool) -> None:
        """What the instance's state means for this walk: at a step boundary a pause takes hold."""
        if state == "PAUSED":
            self.database.patiently(lambda c: branches.release(c, self.held, "halted"))
            raise Stopped
        if state != "RUNNING":
            raise Stopped
        if stopping:
            branching.close(self, Closing("cancelled"))

    def reconcile(self, seq: int) -> None:
        """Nothing was written: fenced, or the numbers are taken (by this very commit, when its answer was lost)."""
        self.pending = []
        self.events = []
        mine = self.database.patiently(lambda c: branches.standing(c, self.held))
        if mine is None:
            raise Fenced(self.held.position, self.held.generation)
        # First write wins: what stands there is adopted, and the walk goes on from it.
        self.held.claims += 1
        self.rebuild()
        self.stand(*mine)

    def fence(self, happened: bool) -> None:
        if not happened:
            raise Fenced(self.held.position, self.held.generation)

    def transact(self, act: Callable[[Connection], T]) -> T:
        """Facts and more in one transaction, begun with this branch's row lock. Not repeated when the line breaks
        with the outcome unknown: then the branch is left to recovery, which reads what really happened."""
        fresh, told, held = self.pending, self.events, self.held
        # Before anything is read there is nothing to be written, and no number yet.
        seq = self.forward.seq - len(fresh) if fresh else 0

        def whole(c: Connection) -> T:
            with c.transaction():
                if not branches.lock_branch(c, held):
                    raise Fenced(held.position, held.generation)
                facts.write(c, held.id, seq, fresh)
                for type, data in told:
                    outbox.put(c, type, held.instance_id, data)
                return act(c)

        try:
            given = self.database.patiently(whole)
        except psycopg.errors.UniqueViolation:
            raise Fenced(held.position, held.generation) from None
        self.pending = []
        self.events = []
        self.stage("persistence", "%d facts and what follows from them committed", len(fresh))
        return given

    @property
    def held_queue(self) -> str:
        """The instance's own queue."""
        return queue_of(self.held.priority)

    def decide(self, need: Decide) -> None:
        if 0 < self.settings.decision_limit <= self.forward.decisions:
            performing.fail_here(self, endless(need, self.forward.decisions))
            return
        self.record(Fact(need.position, Kind.DECIDED, decided(need, self.now)))
        if len(self.pending) >= 500:
            self.flush()

    def look_again(self) -> None:
        """After a sleep: is it still ours to go on?"""
        held = self.held
        standing = self.database.patiently(lambda c: branches.standing(c, held))
        if standing is None:
            raise Fenced(held.position, held.generation)
        self.stand(*standing)

    def tell(self, type: str, need: Perform, more: dict[str, Any]) -> None:
        self.events.append((type, dumps({"step": need.step.name, "position": need.position, **more})))

    def stage(self, stage: stages.Stage, message: str, *arguments: object) -> None:
        if stages.are_told():
            stages.tell(self.labels(), stage, message, *arguments)

    def labels(self, position: str | None = None) -> dict[str, Any]:
        return {
            "instance": self.held.instance_id,
            "position": position or self.held.position,
            "workflow": self.definition.name if hasattr(self, "definition") else None,
            "trace_id": self.held.trace_id,
        }


def place_of(need: Need) -> str:
    position = getattr(need, "position", "")
    return f"{type(need).__name__} at '{position}'" if position else type(need).__name__


def _can_be_written(fact: Fact) -> bool:
    try:
        dumps(fact.data)
    except (TooDeep, NotJson):
        return False
    return True
