"""Every error the engine raises, as one tree.

    OrchestratorError
    ├── Refused                    what you asked cannot be done; nothing was changed
    │   ├── Invalid                a definition or an input has faults (all of them, each with its place)
    │   ├── NotFound               no such workflow, instance, definition …
    │   ├── IllegalMove            the life cycle does not allow it from this state
    │   ├── VersionClash           this version exists with other content and was used
    │   ├── Twin                   two steps or workflows of one name, in two places
    │   ├── Duplicate              the idempotency key was used with another input
    │   ├── TooLarge               a value is above the payload limit
    │   ├── TooDeep                a value is nested too deeply to be kept
    │   └── NotJson                a value is not JSON that can be kept
    ├── StepError                  what a step says of itself
    │   ├── Terminal               do not try again
    │   └── Retryable(after=…)     try again, not before `after` seconds
    └── WorldError                 what the world did
        ├── Fenced                 another worker holds this branch now; stop, commit nothing
        ├── StepTimeout            a step or task outlived its deadline
        ├── MissingCode            this process lacks a step, compensation or function; another one may have it
        ├── WorkerCrashed          this step killed three workers in a row
        ├── OutcomeUnknown         an at-most-once step began and was never heard of again
        ├── Cancelled              the instance was cancelled while the step ran
        ├── BrokenHistory          a history does not fit the definition it is said to come from
        ├── WorkflowFailed         an instance has failed; told by the message that ended it, to those who watch messages
        └── Internal               a fault of the engine itself, met again and again at the same place

Facts are attributes, `code` is stable, the message names the remedy. HTTP is known only in `api/errors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_TEXT = 8192
LONGEST_NAME = 200


def plain(text: str, most: int = LONGEST_TEXT) -> str:
    """Text that can be kept, sent and logged: of bounded length, without halves of characters and without U+0000."""
    if len(text) > most:
        text = f"{text[:most]}… ({len(text):,} characters)"
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def text_of(error: BaseException) -> str:
    """What an exception says, whether or not it can say it: exceptions are code of others."""
    try:
        return plain(str(error)) or type(error).__name__
    except Exception as inner:  # noqa: BLE001  # its own `__str__` failed
        return plain(f"{type(error).__name__}, whose text cannot be read ({type(inner).__name__})")


class OrchestratorError(Exception):
    """The root of the tree; `code` is the stable name of the kind of error."""

    code = "error"
    retryable = False


class Refused(OrchestratorError):
    code = "refused"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a definition or an input, and where: a JSON pointer, and the line of the text it was written in."""

    place: str
    message: str
    suggestion: str = ""
    file: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line, self.column) if part not in ("", None))
        said = f"{self.message} {self.suggestion}" if self.suggestion else self.message
        return ": ".join(part for part in (where, self.place, said) if part)

    def to_json(self) -> dict[str, object]:
        held = {"suggestion": self.suggestion, "file": self.file, "line": self.line, "column": self.column}
        return {"place": self.place, "message": self.message, **{key: value for key, value in held.items() if value not in ("", None)}}


class Invalid(Refused):
    """Carries every fault at once, so that an author mends them in one go."""

    code = "invalid"

    def __init__(self, faults: Sequence[Fault], what: str = "definition") -> None:
        self.faults = tuple(faults)
        self.what = what
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        noun = "fault" if len(self.faults) == 1 else "faults"
        super().__init__(f"{what} has {len(self.faults)} {noun}:\n{lines}")


class InvalidEvent(Invalid):
    """An event that a workflow emits is none: a fault of the task that emits it."""

    code = "validation"


class NotFound(Refused):
    code = "not_found"

    def __init__(self, what: str, name: object, hint: str = "") -> None:
        self.what = what
        self.name = str(name)
        super().__init__(f"no {what} '{name}'" + (f"; {hint}" if hint else ""))


class IllegalMove(Refused):
    code = "illegal_move"

    def __init__(self, move: str, state: str, allowed: Sequence[str] = ()) -> None:
        self.move = move
        self.state = state
        self.allowed = tuple(allowed)
        hint = f"; from {state} one can {', '.join(allowed)}" if allowed else ""
        terminal = " (already in terminal state)" if state in {"COMPLETED", "FAILED", "CANCELLED"} else ""
        super().__init__(f"Cannot {move} workflow in {state} state{terminal}{hint}")


class VersionClash(Refused):
    code = "version_clash"

    def __init__(self, workflow: str, version: str) -> None:
        self.workflow = workflow
        self.version = version
        super().__init__(
            f"{workflow}@{version} has instances and its content differs from what you register; "
            f"a used version is immutable: raise the version"
        )


class Twin(Refused):
    """Two of one name in two places: which one runs would be chance."""

    code = "twin"


class Duplicate(Refused):
    code = "duplicate"

    def __init__(self, key: str, instance_id: object) -> None:
        self.key = key
        self.instance_id = str(instance_id)
        super().__init__(
            f"idempotency key '{key}' belongs to instance {instance_id}, started with another workflow or input; use a new key"
        )


class InUse(Refused):
    """It cannot go while something needs it."""

    code = "in_use"


class ChangedMeanwhile(Refused):
    """Somebody else was quicker: what was to be changed is not what it was."""

    code = "changed_meanwhile"


class Taken(Refused):
    """The name is another's already."""

    code = "taken"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} '{name}' is there already; change it, or choose another name")


class Disabled(Refused):
    """The workflow's configuration says that nothing starts it."""

    code = "disabled"

    def __init__(self, workflow: str) -> None:
        super().__init__(f"workflow '{workflow}' is disabled by its configuration (enabled: false)")


class TooLarge(Refused):
    code = "too_large"

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"{what} has {size_bytes:,} bytes, above the limit of {limit_bytes:,} (PAYLOAD_LIMIT_BYTES); "
            f"store it elsewhere and pass a reference"
        )


class TooDeep(Refused):
    code = "too_deep"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} is nested more than {limit} levels deep")


class NotJson(Refused, ValueError):
    """Carries every reason, each with its place in the value."""

    code = "validation"

    def __init__(self, what: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        said = "; ".join(str(fault) for fault in self.faults[:5])
        more = f"; and {len(self.faults) - 5} more" if len(self.faults) > 5 else ""
        super().__init__(f"{what} must be JSON: {said}{more}")


class StepError(OrchestratorError):
    code = "step_error"


class Terminal(StepError):
    """Raise it from a step to say: trying again will not help."""

    code = "terminal"


class Retryable(StepError):
    """Raise it from a step to say: try again, and not before `after` seconds when given."""

    code = "retryable"
    retryable = True

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        self.after = after
        super().__init__(message or "try again")


class ExpressionError(OrchestratorError):
    code = "expression"


class MissingSecret(ExpressionError):
    code = "authorization"


class WorldError(OrchestratorError):
    code = "world"


class Fenced(WorldError):
    code = "fenced"

    def __init__(self, position: str, generation: int) -> None:
        self.position = position
        self.generation = generation
        super().__init__(f"branch '{position or '/'}' generation {generation} is held by another worker")


class StepTimeout(WorldError):
    code = "timeout"
    retryable = True


class MissingCode(WorldError):
    """Code that is not here is no failure: the branch waits for a worker that has it."""

    code = "missing_code"

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        super().__init__(f'This process has no {kind} "{name}": its module did not import here, or this is older code.')


class BrokenDefinition(WorldError):
    """What is kept of a workflow is no definition."""

    code = "broken_definition"


class Endless(WorldError):
    code = "endless"


class WorkerCrashed(WorldError):
    code = "worker_crashed"


class OutcomeUnknown(WorldError):
    code = "outcome_unknown"


class Cancelled(WorldError):
    code = "cancelled"


class BrokenHistory(WorldError):
    code = "broken_history"


class WorkflowFailed(WorldError):
    """How a message ends whose walk ended its instance FAILED: Flower and Celery's log show it. Everything is committed by then."""

    code = "workflow_failed"


class Internal(WorldError):
    """A fault of the engine or of what it runs on, met again and again at the same place."""

    code = "internal"
