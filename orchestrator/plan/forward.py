"""What remains of a branch: a fold over its history that always knows what it needs next.

    forward = Forward(task, position, input)      # the task the branch walks
    for fact in history: forward.apply(fact)      # what is done
    forward.need                                  # what is next

Pure: no clock, no I/O, no chance. The same task, input and facts give the same need. A fact that does not fit what is
needed raises `BrokenHistory`: the history is of another definition. Values that might come out otherwise the next
time are not computed here: they are needs of their own (`Decide`), recorded, and only then used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.expressions import (
    SECRETS,
    Expression,
    Jq,
    Lazy,
    Names,
    Secrets,
    condition,
    evaluate,
    is_plain,
    is_true,
    mentions,
)
from orchestrator.definition.schemas import is_elsewhere, violations
from orchestrator.definition.tree import (
    END,
    PLAIN,
    AnyTask,
    Do,
    Emit,
    Extended,
    For,
    Fork,
    Graph,
    Listen,
    Raise,
    Run,
    Set,
    Step,
    Switch,
    Try,
    Undo,
    Wait,
)
from orchestrator.errors import BrokenHistory, ExpressionError, MissingSecret, OrchestratorError
from orchestrator.history import Fact, Failure, Kind, effective
from orchestrator.ids import Position, pointer, unescaped
from orchestrator.plan import listening
from orchestrator.plan.bodies import around, events, facts, several, tasks
from orchestrator.plan.deciding import at_what_time, once
from orchestrator.plan.frames import EMPTY, Frame, Phase, Pool
from orchestrator.plan.interrupted import Fault, Pending
from orchestrator.plan.needs import (
    Deadline,
    Decide,
    Failed,
    Finished,
    Need,
)

_ENTER, _BODY, _LEAVE = Phase.ENTER, Phase.BODY, Phase.LEAVE
STAMPED = Jq("{iso8601: todate, epoch: {seconds: floor, milliseconds: (. * 1000 | floor)}}")
RUNTIME = {"name": "celery-orchestrator", "version": "0.1.0", "metadata": {}}


class Forward:
    """One branch, folded. `seed` names the instance, so that jitter differs between instances but not between walks."""

    def __init__(
        self,
        task: AnyTask,
        position: str = "",
        input: Any = None,
        *,
        variables: dict[str, Any] | None = None,
        context: Any = None,
        facts_of_instance: Mapping[str, Any] = EMPTY,
        seed: str = "",
    ) -> None:
        self.task = task
        self.frames = [Frame(task, position, input, variables or EMPTY)]
        self.context = context
        self.seq = 0
        self.decisions = 0
        """In a row, with nothing else between them."""
        self.ending = False
        self.heard: dict[str, Any] = {}
        self.instance = facts_of_instance
        self.seed = seed
        self._need: Need | None = None

    # ── the two verbs ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def need(self) -> Need:
        if self._need is None:
            self._need = self._advance()
        return self._need

    def apply(self, fact: Fact) -> None:
        """Fold one fact: it must be about what is needed now, or about a deadline that passed."""
        if fact.kind == Kind.TIMED_OUT:
            self._time_out(fact)
        elif fact.kind == Kind.RECEIVED and self._listens_on(fact):
            # Of many events at once only what the last one means is computed.
            self._need = self._folded(fact)
        elif type(self.need) in (Finished, Failed) or self.frames[-1].position != fact.position:
            at = self.frames[-1].position if self.frames else "the end"
            raise BrokenHistory(f"fact {self.seq + 1} is {fact.kind} at '{fact.position}', but the plan is at '{at}'")
        else:
            self._need = self._folded(fact)
        self.seq += 1
        self.decisions = self.decisions + 1 if fact.kind == Kind.DECIDED else 0

    def _folded(self, fact: Fact) -> Need | None:
        try:
            return _APPLY[fact.kind](self, self.frames[-1], fact)
        except OrchestratorError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # We wrote none like it.
            said = f"fact {self.seq + 1} ({fact.kind} at '{fact.position}') says what no fact says: somebody changed it"
            raise BrokenHistory(said) from error

    def _listens_on(self, fact: Fact) -> bool:
        frame = self.frames[-1] if self._need is None and self.frames else None
        return frame is not None and frame.position == fact.position and frame.phase == _BODY and events.goes_on(frame)

    def apply_all(self, facts: Sequence[Fact]) -> Forward:
        """Fold a stretch of history, less what a retry by hand took back."""
        last = self.seq + len(facts)
        for fact in effective(facts, self.seq):
            self.apply(fact)
        self.seq = last
        return self

    # ── snapshots ───────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> dict[str, Any]:
        pool = Pool()
        frames = [frame.to_json(pool) for frame in self.frames]
        return {
            "seq": self.seq,
            "decisions": self.decisions,
            "context": self.context,
            "ending": self.ending,
            "heard": self.heard,
            "frames": frames,
            "values": pool.values,
        }

    def restore(self, snapshot: dict[str, Any], root: AnyTask) -> Forward:
        self.seq = snapshot["seq"]
        self.decisions = snapshot.get("decisions", 0)
        self.context = snapshot["context"]
        self.ending = snapshot["ending"]
        self.heard = snapshot["heard"]
        self.frames = [Frame.from_json(root, data, snapshot["values"]) for data in snapshot["frames"]]
        self._need = None
        return self

    # ── what the engine asks ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def due(self) -> tuple[float, Position] | None:
        """The nearest deadline of the tasks this branch is inside of, and whose it is."""
        dues = [(frame.due, Position(frame.position)) for frame in self.frames if frame.due is not None]
        return min(dues) if dues else None

    def luck(self, position: str, attempt: int) -> float:
        """Chance without chance: the same for every walk of this instance, spread over instances."""
        return zlib.crc32(f"{self.seed}{position}{attempt}".encode()) / 2**32

    def scope(self, frame: Frame, **more: Any) -> Names:
        """The named values an expression at this task may use; what costs something to say is said when it is asked for."""
        return Names(
            {
                "context": self.context,
                "input": frame.input,
                "output": frame.output,
                **dict.fromkeys(SECRETS, Lazy(lambda: self._secrets(frame))),
                "CONST": self.instance.get("constants"),
                "WORKFLOW": self.instance.get("WORKFLOW"),
                "authorization": None,
                "task": Lazy(lambda: self._about(frame)),
                "workflow": self.instance.get("workflow"),
                "runtime": RUNTIME,
                **frame.vars,
                **more,
            }
        )

    def _secrets(self, frame: Frame) -> dict[str, Any]:
        held: dict[str, Any] = self.instance.get("secrets") or {}
        missing = [name for name, value in held.items() if value is None]
        if missing:
            raise MissingSecret(f"the secret {missing[0]!r} is not given to this worker")
        return Secrets(held)

    def _about(self, frame: Frame) -> dict[str, Any]:
        """The task as its expressions see it: its descriptor, laid over the keys of its definition."""
        written = self.instance.get("written")
        definition = written(frame.position) if written else None
        return {
            **(definition if isinstance(definition, dict) else {}),
            "name": unescaped(frame.task.name),
            "reference": pointer(frame.position),
            "definition": definition,
            "input": frame.raw,
            "output": frame.output,
            "startedAt": frame.decided.get("startedAt"),
        }

    # ── moving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self) -> Need:
        frames = self.frames
        while True:
            frame = frames[-1]
            try:
                if frame.phase == _ENTER:
                    need = self._enter(frame)
                elif frame.phase == _BODY:
                    need = _BODY_OF[type(frame.task)](self, frame)
                else:
                    need = self._leave(frame)
            except Pending as pending:
                return pending.need
            except Fault as fault:
                need = self.fail(fault.failure)
            except (ExpressionError, BadDuration) as error:
                need = self.fail(Failure(getattr(error, "code", "expression"), str(error), Position(frame.position), type(error).__name__))
            if need is not None:
                return need

    def _enter(self, frame: Frame) -> Need | None:
        around = frame.task.around
        if around is not PLAIN:
            if around.condition is not None and not self.decided_whether(frame, "if", around.condition, frame.raw):
                return self._hand_up(frame.raw, None)
            if around.timeout_s is not None and frame.due is None:
                return Deadline(Position(frame.position), self.seconds_of(frame, "timeout", around.timeout_s))
            if around.input_schema is not None:
                self._check(frame, around.input_schema, frame.raw, "input")
            if around.input_from is not None:
                frame.input = self.value(frame, "input", around.input_from, frame.raw)
        frame.data = frame.input
        frame.phase = _BODY
        return None

    def _leave(self, frame: Frame) -> Need | None:
        around = frame.task.around
        output = frame.output
        if around is not PLAIN:
            if around.output_as is not None:
                output = self.value(frame, "output", around.output_as, output, output=output)
            if around.output_schema is not None:
                self._check(frame, around.output_schema, output, "output")
            if around.export_as is not None:
                self.context = self.value(frame, "export", around.export_as, output, output=output)
                if around.export_schema is not None:
                    self._check(frame, around.export_schema, self.context, "export")
        return self._hand_up(output, frame.then or around.then)

    def _hand_up(self, output: Any, then: str | None) -> Need | None:
        """The task is over: its parent takes the output and goes on."""
        self.frames.pop()
        if then == END:
            self.ending = True
        if not self.frames:
            return Finished(output, self.context, self.ending)
        parent = self.frames[-1]
        if self.ending:
            parent.output = output
            parent.phase = _LEAVE
        else:
            _RECEIVE[type(parent.task)](self, parent, output, then)
        return None

    def fail(self, failure: Failure) -> Need | None:
        """Unwind to the innermost try that is trying; it will judge. None left: the branch has failed."""
        while self.frames:
            frame = self.frames[-1]
            if type(frame.task) is Try and frame.note.get("stage") == "try":
                frame.note = {**frame.note, "stage": "judge", "failure": failure.to_json()}
                frame.decided = EMPTY
                frame.phase = _BODY
                return None
            self.frames.pop()
        return Failed(failure)

    def _time_out(self, fact: Fact) -> None:
        while self.frames and self.frames[-1].position != fact.position:
            self.frames.pop()
        if not self.frames:
            raise BrokenHistory(f"deadline passed at '{fact.position}', which this branch is not inside of")
        self.frames.pop()
        what = "workflow" if fact.position == "" else f"task '{fact.position}'"
        self._need = self.fail(Failure("timeout", f"{what} timeout: its time is over", fact.position, "StepTimeout"))

    # ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def value(self, frame: Frame, slot: str, expression: Expression, data: Any, **more: Any) -> Any:
        """Computed here when it can only come out one way, recorded otherwise."""
        if slot in frame.decided:
            return frame.decided[slot]
        if expression.is_stable:
            self._tell_start(frame, expression)
            return evaluate(expression, data, self.scope(frame, **more))
        return self.recorded(frame, slot, expression, data, **more)

    def _tell_start(self, frame: Frame, expression: Expression) -> None:
        """When the task started is recorded only where an expression asks for it."""
        if "startedAt" not in frame.decided and mentions(expression, "task") and mentions(expression, "startedAt"):
            raise Pending(at_what_time(Position(frame.position), "startedAt", lambda now: evaluate(STAMPED, now, {})))

    def recorded(self, frame: Frame, slot: str, expression: Expression, data: Any, **more: Any) -> Any:
        if slot in frame.decided:
            return frame.decided[slot]
        self._tell_start(frame, expression)
        scope = self.scope(frame, **more)
        compute = once(lambda: evaluate(expression, data, scope))
        raise Pending(Decide(Position(frame.position), slot, compute, is_plain(expression)))

    def time(self, frame: Frame, slot: str) -> float:
        """The present when this was first asked, by the clock of whoever walks."""
        if slot not in frame.decided:
            raise Pending(at_what_time(Position(frame.position), slot))
        return float(frame.decided[slot])

    def holds(self, frame: Frame, slot: str, expression: Expression, data: Any, **more: Any) -> bool:
        """Whether a condition holds; computed here when it can only come out one way, recorded otherwise."""
        if slot not in frame.decided and expression.is_stable:
            self._tell_start(frame, expression)
            return condition(expression, data, self.scope(frame, **more))
        return self.decided_whether(frame, slot, expression, data, **more)

    def decided_whether(self, frame: Frame, slot: str, expression: Expression, data: Any, **more: Any) -> bool:
        if slot in frame.decided:
            return is_true(frame.decided[slot])
        self._tell_start(frame, expression)
        scope = self.scope(frame, **more)
        raise Pending(Decide(Position(frame.position), slot, lambda: condition(expression, data, scope)))

    def seconds_of(self, frame: Frame, slot: str, duration: float | Expression, read: Callable[[Any], float] = seconds) -> float:
        if isinstance(duration, int | float):
            return float(duration)
        return read(self.value(frame, slot, duration, frame.input))

    def _check(self, frame: Frame, schema: Any, data: Any, what: str) -> None:
        if is_elsewhere(schema):
            # What stands elsewhere may change: what was found is recorded.
            slot = f"{what} schema"
            if slot not in frame.decided:
                raise Pending(Decide(Position(frame.position), slot, lambda: violations(schema, data)))
            faults = frame.decided[slot]
        else:
            faults = violations(schema, data)
        if faults:
            detail = "; ".join(faults)
            raise Fault(Failure("validation", f"{what} does not fit its schema: {detail}", Position(frame.position), "ValidationError"))

    def push(self, task: AnyTask, position: str, raw: Any, variables: dict[str, Any]) -> None:
        self.frames.append(Frame(task, position, raw, variables))

    def done(self, frame: Frame, output: Any) -> None:
        frame.output = output
        frame.phase = _LEAVE

    def matching(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Does this event count for the listener the branch is at? If so: what to record about it."""
        frame = self.frames[-1]
        task: Listen = frame.task  # type: ignore[assignment]
        return listening.matching(task, frame.note, event, self.scope(frame))


_BODY_OF: dict[type, Callable[[Forward, Frame], Need | None]] = {
    Do: tasks.do_,
    Step: tasks.step,
    Undo: tasks.undo,
    Set: tasks.set_,
    Switch: tasks.switch,
    Wait: tasks.wait,
    Raise: tasks.raise_,
    Emit: tasks.emit,
    Run: tasks.run,
    Fork: several.fork,
    Graph: several.graph,
    For: several.for_,
    Try: around.try_,
    Listen: events.listen,
    Extended: around.extended,
}

_RECEIVE: dict[type, Callable[[Forward, Frame, Any, str | None], None]] = {
    Do: tasks.do_receives,
    For: several.for_receives,
    Try: around.try_receives,
    Listen: events.listen_receives,
    Extended: around.extended_receives,
}

_APPLY: dict[str, Callable[[Forward, Frame, Fact], Need | None]] = {
    Kind.STEP_COMPLETED: facts.step_completed,
    Kind.STEP_FAILED: facts.step_failed,
    Kind.UNDONE: facts.step_completed,
    Kind.UNDO_FAILED: facts.step_completed,
    Kind.RETRIED: facts.retried,
    Kind.INTENDED: facts.intended,
    Kind.DECIDED: facts.decided,
    Kind.WAITING: facts.waiting,
    Kind.WAITED: facts.waited,
    Kind.DEADLINE: facts.deadline_set,
    Kind.OPENED: facts.opened,
    Kind.JOINED: facts.joined,
    Kind.CHILD_STARTED: facts.child_started,
    Kind.CHILD_ENDED: facts.child_ended,
    Kind.EMITTED: facts.emitted,
    Kind.RECEIVED: facts.received,
}
