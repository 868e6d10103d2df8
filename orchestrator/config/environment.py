"""Where settings come from, highest first: the environment, `.env` in the folder, the stack that runs there (`make up`).

Nothing else in this project reads `os.environ` for a setting; what a library reads for itself (`OTEL_*`, `PG*`) is the library's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from orchestrator.config.stack import running_stack
from orchestrator.errors import Fault, Invalid

FILE = ".env"
ENVIRONMENT, STACK, DEFAULT = "environment", "running stack", "default"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where."""

    name: str
    text: str
    source: str
    line: int | None = None
    written: str = ""
    """What stood there, where `text` was made of it."""

    @property
    def where(self) -> str:
        return f"{self.source} line {self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Environment:
    """Names and values by source, highest first."""

    levels: tuple[tuple[str, Mapping[str, str]], ...]
    lines: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[int, ...] = ()
    """Lines of `.env` that are no assignment."""

    def find(self, names: Sequence[str], *, blank: bool = False) -> Given | None:
        """The value from the highest source that has one. An empty value counts only where `blank` means something."""
        for source, values in self.levels:
            for name in names:
                if name in values and (blank or values[name].strip()):
                    return self._given(source, name, values[name])
        return None

    def names(self) -> Iterator[Given]:
        """What people gave: the environment and `.env`."""
        for source, values in self.levels:
            if source != STACK:
                for name, text in values.items():
                    yield self._given(source, name, text)

    def _given(self, source: str, name: str, text: str) -> Given:
        return Given(name, text, source, self.lines.get(name) if source == FILE else None)


def read(environ: Mapping[str, str] | None = None) -> Environment:
    """The process's environment; or what a caller says it is, alone."""
    if environ is not None:
        return Environment(((ENVIRONMENT, environ),))
    written, lines, unreadable = _file()
    stack = running_stack(os.environ.get("ORCHESTRATOR_HOME") or written.get("ORCHESTRATOR_HOME") or "")
    # A process that this one started was given the same values again: they are still the file's, or the stack's.
    own = {name: text for name, text in os.environ.items() if text not in (written.get(name), stack.get(name))}
    return Environment(((ENVIRONMENT, own), (FILE, written), (STACK, stack)), lines, unreadable)


def export(environment: Environment) -> None:
    """What `.env` says, for programs and libraries that look into the environment themselves."""
    for source, values in environment.levels:
        if source == FILE:
            for name, text in values.items():
                os.environ.setdefault(name, text)


def variable(name: str) -> str | None:
    """A variable that is no setting because its name is not known beforehand, or because it is another program's."""
    return os.environ.get(name) or None


def _file() -> tuple[dict[str, str], dict[str, int], tuple[int, ...]]:
    """The values of `.env`, the line of each, and the lines that are no assignment."""
    path = Path(FILE)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, {}, ()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Invalid([Fault(FILE, f"{path.absolute()} cannot be read: {why}.")], "configuration") from None
    lines: dict[str, int] = {}
    unreadable: list[int] = []
    for binding in parse_stream(io.StringIO(text)):
        string = binding.original.string
        first = binding.original.line + string[: len(string) - len(string.lstrip())].count("\n")
        if binding.error:
            unreadable.append(first)
        elif binding.key is not None:
            lines[binding.key] = first
    values = {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}
    return values, lines, tuple(unreadable)
