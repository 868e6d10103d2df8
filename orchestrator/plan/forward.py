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
    Expression,
    Jq,
    Lazy,
    Names,
    Template,
    evaluate,
    is_true,
    mentions,
)
from orchestrator.definition.schemas import is_elsewhere, violations
from orchestrator.definition.tree import (
    CONTINUE,
    END,
    EXIT,
    PLAIN,
    AnyTask,
    Case,
    Catch,
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
    in_order,
)
from orchestrator.errors import BrokenHistory, ExpressionError, MissingSecret
from orchestrator.history import Fact, Failure, Kind, effective
from orchestrator.ids import Position, pointer, unescaped
from orchestrator.plan import catching, listening
from orchestrator.plan.frames import EMPTY, Frame, Phase, Pool
from orchestrator.plan.gathering import laid_over
from orchestrator.plan.needs import (
    AwaitChild,
    Deadline,
    Decide,
    Failed,
    FanOut,
    Finished,
    Join,
    Listening,
    Mode,
    Need,
    Opening,
    Perform,
    Publish,
    Sleep,
    StartChild,
)

_ENTER, _BODY, _LEAVE = Phase.ENTER, Phase.BODY, Phase.LEAVE
NOW = Jq("now")
STARTED_AT = Jq("now | {iso8601: todate, epoch: {seconds: floor, milliseconds: (. * 1000 | floor)}}")
RUNTIME = {"name": "celery-orchestrator", "version": "0.1.0", "metadata": {}}


class _Pending(Exception):
    """A value must be decided first."""

    def __init__(self, need: Decide) -> None:
        self.need = need


class Fault(Exception):
    """A task fails while it is being planned: a bad expression, a schema, a raise."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


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
        elif type(self.need) in (Finished, Failed) or self.frames[-1].position != fact.position:
            at = self.frames[-1].position if self.frames else "the end"
            raise BrokenHistory(f"fact {self.seq + 1} is {fact.kind} at '{fact.position}', but the plan is at '{at}'")
        else:
            self._need = _APPLY[fact.kind](self, self.frames[-1], fact)
        self.seq += 1

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
            "context": self.context,
            "ending": self.ending,
            "heard": self.heard,
            "frames": frames,
            "values": pool.values,
        }

    def restore(self, snapshot: dict[str, Any], root: AnyTask) -> Forward:
        self.seq = snapshot["seq"]
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
                "secrets": Lazy(lambda: self._secrets(frame)),
                "secret": Lazy(lambda: self._secrets(frame)),
                "SECRETS": Lazy(lambda: self._secrets(frame)),
                "CONST": self.instance.get("constants"),
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
        return held

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
            except _Pending as pending:
                return pending.need
            except Fault as fault:
                need = self._fail(fault.failure)
            except (ExpressionError, BadDuration) as error:
                need = self._fail(Failure(getattr(error, "code", "expression"), str(error), Position(frame.position), type(error).__name__))
            if need is not None:
                return need

    def _enter(self, frame: Frame) -> Need | None:
        around = frame.task.around
        if around is not PLAIN:
            if around.condition is not None and not is_true(self._recorded(frame, "if", around.condition, frame.raw)):
                return self._hand_up(frame.raw, None)
            if around.timeout_s is not None and frame.due is None:
                return Deadline(Position(frame.position), self._seconds(frame, "timeout", around.timeout_s))
            if around.input_schema is not None:
                self._check(frame, around.input_schema, frame.raw, "input")
            if around.input_from is not None:
                frame.input = self._value(frame, "input", around.input_from, frame.raw)
        frame.data = frame.input
        frame.phase = _BODY
        return None

    def _leave(self, frame: Frame) -> Need | None:
        around = frame.task.around
        output = frame.output
        if around is not PLAIN:
            if around.output_as is not None:
                output = self._value(frame, "output", around.output_as, output, output=output)
            if around.output_schema is not None:
                self._check(frame, around.output_schema, output, "output")
            if around.export_as is not None:
                self.context = self._value(frame, "export", around.export_as, output, output=output)
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

    def _fail(self, failure: Failure) -> Need | None:
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
        self._need = self._fail(Failure("timeout", f"{what} timeout: its time is over", fact.position, "StepTimeout"))

    # ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _value(self, frame: Frame, slot: str, expression: Expression, data: Any, **more: Any) -> Any:
        """Computed here when it can only come out one way, recorded otherwise."""
        if slot in frame.decided:
            return frame.decided[slot]
        if expression.is_stable:
            self._tell_start(frame, expression)
            return evaluate(expression, data, self.scope(frame, **more))
        return self._recorded(frame, slot, expression, data, **more)

    def _tell_start(self, frame: Frame, expression: Expression) -> None:
        """When the task started is recorded only where an expression asks for it."""
        if "startedAt" not in frame.decided and mentions(expression, "task") and mentions(expression, "startedAt"):
            raise _Pending(Decide(Position(frame.position), "startedAt", lambda: evaluate(STARTED_AT, None, {})))

    def _recorded(self, frame: Frame, slot: str, expression: Expression, data: Any, **more: Any) -> Any:
        if slot in frame.decided:
            return frame.decided[slot]
        self._tell_start(frame, expression)
        scope = self.scope(frame, **more)
        raise _Pending(Decide(Position(frame.position), slot, lambda: evaluate(expression, data, scope)))

    def _seconds(self, frame: Frame, slot: str, duration: float | Expression) -> float:
        if isinstance(duration, int | float):
            return float(duration)
        return seconds(self._value(frame, slot, duration, frame.input))

    def _check(self, frame: Frame, schema: Any, data: Any, what: str) -> None:
        if is_elsewhere(schema):
            # What stands elsewhere may change: what was found is recorded.
            slot = f"{what} schema"
            if slot not in frame.decided:
                raise _Pending(Decide(Position(frame.position), slot, lambda: violations(schema, data)))
            faults = frame.decided[slot]
        else:
            faults = violations(schema, data)
        if faults:
            detail = "; ".join(faults)
            raise Fault(Failure("validation", f"{what} does not fit its schema: {detail}", Position(frame.position), "ValidationError"))

    def _push(self, task: AnyTask, position: str, raw: Any, variables: dict[str, Any]) -> None:
        self.frames.append(Frame(task, position, raw, variables))

    def _done(self, frame: Frame, output: Any) -> None:
        frame.output = output
        frame.phase = _LEAVE

    # ── bodies: what each kind of task does when it is its turn ─────────────────────────────────────────────────────

    def _do(self, frame: Frame) -> None:
        task: Do = frame.task  # type: ignore[assignment]
        index = frame.index
        if index >= len(task.tasks):
            self._done(frame, frame.data)
            return
        child = task.tasks[index]
        visit = frame.visits[index] = frame.visits.get(index, 0) + 1
        position = f"{frame.position}{task.key}/{index}/{child.name}"
        self._push(child, position if visit == 1 else f"{position}#{visit}", frame.data, frame.vars)

    def _do_receives(self, frame: Frame, output: Any, then: str | None) -> None:
        frame.data = output
        if then is None or then == CONTINUE:
            frame.index += 1
        elif then == EXIT:
            # Whoever extends a task with this list must know that it was left early.
            frame.then = EXIT if len(self.frames) > 1 and type(self.frames[-2].task) is Extended else None
            self._done(frame, output)
        else:
            frame.index = self._target(frame, then)

    def _target(self, frame: Frame, name: str) -> int:
        tasks = frame.task.tasks  # type: ignore[union-attr]
        for index, task in enumerate(tasks):
            if task.name == name:
                return index
        raise Fault(Failure("configuration", f"no task '{name}' to go to", Position(frame.position), "ConfigurationError"))

    def _step(self, frame: Frame) -> Need:
        task: Step = frame.task  # type: ignore[assignment]
        note = frame.note
        parameters = None if task.parameters is None else self._value(frame, "parameters", task.parameters, frame.input)
        if not note:
            return Perform(Position(frame.position), task, frame.input, parameters, 1)
        return Perform(
            Position(frame.position),
            task,
            frame.input,
            parameters,
            note.get("attempt", 1),
            note.get("not_before"),
            "intended" in note,
            note.get("pending"),
        )

    def _undo(self, frame: Frame) -> Need:
        task: Undo = frame.task  # type: ignore[assignment]
        note = frame.note
        return Perform(Position(frame.position), task, task.input, task.parameters, note.get("attempt", 1), note.get("not_before"))

    def _set(self, frame: Frame) -> None:
        task: Set = frame.task  # type: ignore[assignment]
        self._done(frame, self._recorded(frame, "set", task.value, frame.input))

    def _switch(self, frame: Frame) -> None:
        task: Switch = frame.task  # type: ignore[assignment]
        chosen = frame.decided.get("case", _NOT_DECIDED)
        if chosen is _NOT_DECIDED:
            scope, data = self.scope(frame), frame.input
            raise _Pending(Decide(Position(frame.position), "case", lambda: _choose(task.cases, data, scope)))
        frame.then = None if chosen is None else next(case.then for case in task.cases if case.name == chosen)
        self._done(frame, frame.input)

    def _wait(self, frame: Frame) -> Need:
        task: Wait = frame.task  # type: ignore[assignment]
        until = frame.note.get("until")
        length = None if until is not None else self._seconds(frame, "duration", task.duration)
        return Sleep(Position(frame.position), length, until)

    def _raise(self, frame: Frame) -> None:
        task: Raise = frame.task  # type: ignore[assignment]
        value = self._value(frame, "error", task.error, frame.input)
        raise Fault(catching.raised(value, Position(frame.position)))

    def _emit(self, frame: Frame) -> Need:
        task: Emit = frame.task  # type: ignore[assignment]
        scope, data = self.scope(frame), frame.input
        return Publish(Position(frame.position), lambda: evaluate(task.event, data, scope))

    def _run(self, frame: Frame) -> Need:
        task: Run = frame.task  # type: ignore[assignment]
        if child := frame.note.get("child"):
            return AwaitChild(Position(frame.position), child)
        scope, data = self.scope(frame), frame.input
        source = task.source
        return StartChild(
            Position(frame.position),
            task.workflow,
            task.version,
            lambda: evaluate(task.input, data, scope),
            task.awaited,
            None if source is None else lambda: evaluate(source, data, scope),
        )

    # fork, parallel for, graph: branches of their own

    def _fork(self, frame: Frame) -> Need | None:
        task: Fork = frame.task  # type: ignore[assignment]
        mode: Mode = "compete" if task.compete else "fork"
        if "opened" in frame.note:
            return Join(Position(frame.position), mode)
        if not task.branches:
            self._done(frame, frame.input if task.gather == "merge" else [])
            return None
        openings = tuple(
            Opening(Position(f"{frame.position}/fork/{i}/{branch.name}"), frame.vars or None) for i, branch in enumerate(task.branches)
        )
        return FanOut(Position(frame.position), mode, frame.input, openings)

    def _graph(self, frame: Frame) -> Need | None:
        task: Graph = frame.task  # type: ignore[assignment]
        if "opened" in frame.note:
            return Join(Position(frame.position), "graph")
        # Dependencies first, so that the outputs are laid over one another in an order that respects them.
        nodes = in_order(task.nodes)
        number = {node.task.name: i for i, node in enumerate(nodes)}
        openings = tuple(
            Opening(
                Position(f"{frame.position}/graph/{node.task.name}"),
                frame.vars or None,
                tuple(number[name] for name in node.after),
            )
            for node in nodes
        )
        return FanOut(Position(frame.position), "graph", frame.input, openings)

    def _for(self, frame: Frame) -> Need | None:
        task: For = frame.task  # type: ignore[assignment]
        items = self._items(frame, task)
        if task.parallel:
            return self._for_parallel(frame, task, items or [])
        index = frame.index
        if items is not None and index >= len(items):
            self._done(frame, frame.data)
            return None
        variables = {**frame.vars, task.at: index} if items is None else {**frame.vars, task.each: items[index], task.at: index}
        if task.condition is not None:
            inner = Frame(task, frame.position, frame.data, variables)
            inner.decided = frame.decided
            if not is_true(self._value(inner, f"while {index}", task.condition, frame.data)):
                self._done(frame, frame.data)
                return None
        self._push(task.do, f"{frame.position}/for/{index}", frame.data, variables)
        return None

    def _items(self, frame: Frame, task: For) -> list[Any] | None:
        if task.items is None:
            return None
        constant = isinstance(task.items, Template) and task.items.is_constant
        items = (self._value if constant else self._recorded)(frame, "items", task.items, frame.input)
        if items is None:
            return []
        if not isinstance(items, list):
            shown = type(items).__name__
            raise Fault(Failure("expression", f"a loop needs a list of items, not {shown}", Position(frame.position), "ExpressionError"))
        return items

    def _for_parallel(self, frame: Frame, task: For, items: list[Any]) -> Need | None:
        if "opened" in frame.note:
            return Join(Position(frame.position), "fork")
        if not items:
            self._done(frame, [] if task.gather == "list" else frame.input)
            return None
        openings = tuple(
            Opening(Position(f"{frame.position}/for/{i}"), {**frame.vars, task.each: item, task.at: i}) for i, item in enumerate(items)
        )
        return FanOut(Position(frame.position), "fork", frame.input, openings)

    def _for_receives(self, frame: Frame, output: Any, then: str | None) -> None:
        frame.data = output
        frame.index += 1
        frame.decided = {slot: value for slot, value in frame.decided.items() if slot == "items"}

    # something before and after a task

    def _extended(self, frame: Frame) -> None:
        task: Extended = frame.task  # type: ignore[assignment]
        if task.when is not None and not is_true(self._extends(frame, task)):
            self._push(task.task, f"{frame.position}/extended", frame.raw, frame.vars)
            frame.note = {"stage": "last"}
        elif task.before is not None and not frame.note:
            self._push(task.before, f"{frame.position}/before", frame.raw, frame.vars)
            frame.note = {"stage": "before"}
        else:
            self._push(task.task, f"{frame.position}/extended", frame.raw, frame.vars)
            frame.note = {"stage": "task" if task.after else "last"}

    def _extends(self, frame: Frame, task: Extended) -> Any:
        assert task.when is not None
        # `$task` is the task that is extended, which stands at the same place.
        return self._recorded(frame, "when", task.when, frame.raw)

    def _extended_receives(self, frame: Frame, output: Any, then: str | None) -> None:
        task: Extended = frame.task  # type: ignore[assignment]
        stage = frame.note["stage"]
        if stage == "before" and then == EXIT:
            self._done(frame, output)
        elif stage == "before":
            frame.note = {"stage": "ready"}
        elif stage == "task":
            assert task.after is not None
            frame.note = {"stage": "after", "output": output, "then": then}
            self._push(task.after, f"{frame.position}/after", output, frame.vars)
        elif stage == "after":
            frame.then = frame.note["then"]
            self._done(frame, frame.note["output"])
        else:
            frame.then = then
            self._done(frame, output)

    # try

    def _try(self, frame: Frame) -> Need | None:
        task: Try = frame.task  # type: ignore[assignment]
        note = frame.note
        match note.get("stage"):
            case None | "again":
                attempt = note.get("attempt", 0) + 1
                if attempt == 1 and task.catch.retry_limit_s is not None:
                    note = {"began": self._recorded(frame, "began", NOW, None)}
                frame.note = {"stage": "try", "attempt": attempt, "began": note.get("began")}
                name = "try" if attempt == 1 else f"try#{attempt}"
                self._push(task.do, f"{frame.position}/{name}", frame.input, frame.vars)
            case "judge":
                return self._judge(frame, task, Failure.from_json(note["failure"]))
            case "delay":
                return Sleep(Position(frame.position), note.get("delay"), note.get("until"))
        return None

    def _judge(self, frame: Frame, task: Try, failure: Failure) -> Need | None:
        catch = task.catch
        problem = catching.problem(failure)
        named = {catch.name: problem}
        caught = catching.matches(catch.errors, problem)
        for slot, condition, wanted in (("when", catch.when, True), ("except", catch.except_when, False)):
            if caught and condition is not None:
                caught = is_true(self._value(frame, slot, condition, problem, **named)) is wanted
        if not caught:
            self.frames.pop()
            return self._fail(failure)
        attempt = frame.note["attempt"]
        again = catch.retry is not None and attempt < catch.retry.max_attempts
        for slot, condition, wanted in (("retry when", catch.retry_when, True), ("retry except", catch.retry_except_when, False)):
            if again and condition is not None:
                again = is_true(self._value(frame, slot, condition, problem, **named)) is wanted
        if again and catch.retry is not None:
            delay = catch.retry.delay_s(attempt, self.luck(frame.position, attempt))
            if self._has_time(frame, catch, delay):
                frame.note = {"stage": "delay", "attempt": attempt, "delay": delay, "began": frame.note.get("began")}
                return None
        if catch.do is not None:
            frame.note = {"stage": "catch"}
            self._push(catch.do, f"{frame.position}/catch", frame.input, {**frame.vars, **named})
            return None
        if catch.retry is not None:
            self.frames.pop()
            return self._fail(failure)
        frame.then = catch.then
        self._done(frame, frame.input)
        return None

    def _has_time(self, frame: Frame, catch: Catch, delay: float) -> bool:
        if catch.retry_limit_s is None:
            return True
        now = self._recorded(frame, "judged at", NOW, None)
        return bool(now + delay - frame.note["began"] <= catch.retry_limit_s)

    def _try_receives(self, frame: Frame, output: Any, then: str | None) -> None:
        task: Try = frame.task  # type: ignore[assignment]
        if frame.note.get("stage") == "catch":
            frame.then = task.catch.then
        self._done(frame, output)

    # listen

    def _listen(self, frame: Frame) -> Need | None:
        task: Listen = frame.task  # type: ignore[assignment]
        note = frame.note
        if note.get("complete"):
            self._done(frame, note["outputs"])
            return None
        filters = (*task.filters, task.until_event) if task.until_event else task.filters
        return Listening(
            Position(frame.position), task, filters, self.scope(frame), note.get("count", 0), listening.hears(self.heard, task)
        )

    def _listen_receives(self, frame: Frame, output: Any, then: str | None) -> None:
        note = frame.note
        frame.note = {**note, "outputs": [*note["outputs"][:-1], output]}

    def matching(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Does this event count for the listener the branch is at? If so: what to record about it."""
        frame = self.frames[-1]
        task: Listen = frame.task  # type: ignore[assignment]
        return listening.matching(task, frame.note, event, self.scope(frame))

    # ── facts: what each kind of fact changes ───────────────────────────────────────────────────────────────────────

    def _step_completed(self, frame: Frame, fact: Fact) -> None:
        self._done(frame, fact.data.get("output") if fact.data else None)

    def _step_failed(self, frame: Frame, fact: Fact) -> Need | None:
        return self._fail(Failure.from_json(fact.data["error"]))

    def _retried(self, frame: Frame, fact: Fact) -> None:
        frame.note = {"attempt": fact.attempt + 1, "not_before": fact.data.get("not_before")}

    def _intended(self, frame: Frame, fact: Fact) -> None:
        frame.note = {**frame.note, "intended": True}

    def _decided(self, frame: Frame, fact: Fact) -> Need | None:
        if "error" in fact.data:
            return self._step_failed(frame, fact)
        frame.decide(fact.data["slot"], fact.data["value"])
        return None

    def _waiting(self, frame: Frame, fact: Fact) -> None:
        known = {"pending": fact.data} if type(frame.task) is Step else {"until": fact.data["until"]}
        frame.note = {**frame.note, **known}

    def _waited(self, frame: Frame, fact: Fact) -> None:
        if type(frame.task) is Try:
            frame.note = {"stage": "again", "attempt": frame.note["attempt"], "began": frame.note.get("began")}
            frame.decided = EMPTY
        else:
            self._done(frame, frame.input)

    def _deadline_set(self, frame: Frame, fact: Fact) -> None:
        frame.due = fact.data["due"]

    def _opened(self, frame: Frame, fact: Fact) -> None:
        frame.note = {"opened": fact.data["count"]}

    def _joined(self, frame: Frame, fact: Fact) -> Need | None:
        data = fact.data
        if "error" in data:
            return self._step_failed(frame, fact)
        if "ended" in data:
            self.ending = True
            self._done(frame, data["ended"])
            return None
        if "context" in data:
            self.context = data["context"]
        outputs = data["outputs"]
        match frame.task:
            case Fork(compete=True):
                self._done(frame, outputs)
            case Fork(gather="list") | For(gather="list"):
                self._done(frame, outputs)
            case For(gather="input"):
                self._done(frame, frame.input)
            case _:
                self._done(frame, laid_over(frame.input, outputs))
        return None

    def _child_started(self, frame: Frame, fact: Fact) -> None:
        task: Run = frame.task  # type: ignore[assignment]
        frame.note = {"child": fact.data["instance_id"]}
        if not task.awaited:
            self._done(frame, frame.input)

    def _child_ended(self, frame: Frame, fact: Fact) -> Need | None:
        if "error" in fact.data:
            return self._step_failed(frame, fact)
        self._done(frame, fact.data["output"])
        return None

    def _emitted(self, frame: Frame, fact: Fact) -> None:
        self._done(frame, fact.data["event"])

    def _received(self, frame: Frame, fact: Fact) -> None:
        task: Listen = frame.task  # type: ignore[assignment]
        self.heard = listening.heard(self.heard, task, fact.data["id"])
        frame.note = listening.received(task, frame.note, fact.data, self.scope(frame))
        if task.do is not None and frame.note.get("fresh"):
            index = len(frame.note["outputs"]) - 1
            frame.note = {**frame.note, "fresh": False}
            variables = {**frame.vars, task.each: frame.note["outputs"][-1], task.at: index}
            self._push(task.do, f"{frame.position}/foreach/{index}", frame.note["outputs"][-1], variables)


def _choose(cases: tuple[Case, ...], data: Any, scope: dict[str, Any]) -> str | None:
    default = None
    for case in cases:
        if case.when is None:
            default = case.name
        elif is_true(evaluate(case.when, data, scope)):
            return case.name
    return default


_NOT_DECIDED = object()

_BODY_OF: dict[type, Callable[[Forward, Frame], Need | None]] = {
    Do: Forward._do,
    Step: Forward._step,
    Undo: Forward._undo,
    Set: Forward._set,
    Switch: Forward._switch,
    Wait: Forward._wait,
    Raise: Forward._raise,
    Emit: Forward._emit,
    Run: Forward._run,
    Fork: Forward._fork,
    Graph: Forward._graph,
    For: Forward._for,
    Try: Forward._try,
    Listen: Forward._listen,
    Extended: Forward._extended,
}

_RECEIVE: dict[type, Callable[[Forward, Frame, Any, str | None], None]] = {
    Do: Forward._do_receives,
    For: Forward._for_receives,
    Try: Forward._try_receives,
    Listen: Forward._listen_receives,
    Extended: Forward._extended_receives,
}

_APPLY: dict[str, Callable[[Forward, Frame, Fact], Need | None]] = {
    Kind.STEP_COMPLETED: Forward._step_completed,
    Kind.STEP_FAILED: Forward._step_failed,
    Kind.UNDONE: Forward._step_completed,
    Kind.UNDO_FAILED: Forward._step_completed,
    Kind.RETRIED: Forward._retried,
    Kind.INTENDED: Forward._intended,
    Kind.DECIDED: Forward._decided,
    Kind.WAITING: Forward._waiting,
    Kind.WAITED: Forward._waited,
    Kind.DEADLINE: Forward._deadline_set,
    Kind.OPENED: Forward._opened,
    Kind.JOINED: Forward._joined,
    Kind.CHILD_STARTED: Forward._child_started,
    Kind.CHILD_ENDED: Forward._child_ended,
    Kind.EMITTED: Forward._emitted,
    Kind.RECEIVED: Forward._received,
}
