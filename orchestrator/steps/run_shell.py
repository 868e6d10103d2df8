"""`run: shell`: a command and its arguments, which are handed over beside it, never put into its text. Off unless RUN_SHELL is on.

A command that uses its positional parameters ($1, "$@", shift …) finds the arguments there. One that names none, and is a simple
command at its end, gets them as arguments: `command: echo hello` with `arguments: [a, b]` says `hello a b`.
"""

from __future__ import annotations

import re
from typing import Any

from orchestrator.net import process
from orchestrator.net.problems import Problem
from orchestrator.steps.registry import StepContext, executor
from orchestrator.steps.run_script import arguments_of, stdin_of


@executor
class RunShell:
    type = "run.shell"

    def execute(self, context: StepContext) -> Any:
        process.allowed("RUN_SHELL", "shell commands")
        given = {**(context.parameters or {}), **(context.literal or {})}
        command = given.get("command")
        if not isinstance(command, str):
            raise Problem("configuration", "a shell task needs a `command`")
        awaited = given.get("await", True) is not False
        arguments = in_a_row(given.get("arguments"))
        ended = process.run(
            ["/bin/sh", "-c", with_arguments(command) if arguments else command, "sh", *arguments],
            stdin=stdin_of(given.get("stdin")),
            environment=given.get("environment"),
            timeout_s=context.deadline_s,
            awaited=awaited,
        )
        return context.input if not awaited else process.outcome(ended, given.get("return", "stdout"), "the command")


def in_a_row(given: Any) -> list[str]:
    """Arguments as a list; up to DSL 1.0.1 they were a map, whose names and values come one after another."""
    if isinstance(given, dict):
        given = [part for name, value in given.items() for part in ([name] if value in (None, "") else [name, value])]
    return arguments_of(given)


# What a shell's text is made of, as far as it matters here: what is quoted, and what is not.
_PARTS = re.compile(
    r"""(?P<escaped>\\.) | (?P<single>'[^']*') | (?P<double>"(?:[^"\\]|\\.)*") | (?P<comment>(?<![^\s;&|()])\#[^\n]*)
    | (?P<here><<-?(?!<)) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_POSITIONAL = re.compile(r"\$(?:[1-9@*#]|\{(?:[#!]?[1-9@*]|\#\})) | \$\{\#", re.VERBOSE)
_TAKES_THEM = re.compile(r"(?:^|[\s;&|(])(?:shift|getopts)(?![\w-])")
_NO_COMMAND = re.compile(
    r"""(?:^|[;&|({\n])\s*(?:fi|done|esac|then|else|do|\}|\{)\s*$     # the end, or the middle, of something larger
    | [;&|()<>`]\s*$                                               # an operator
    | (?:^|[;&|\n])\s*(?:[A-Za-z_]\w*=[^\s;&|]*(?:\s+|$))*$""",
    re.VERBOSE,
)


def with_arguments(command: str) -> str:
    """The command with its arguments at its end, where it does not take them itself."""
    if takes_arguments(command):
        return command
    bare, has_here, comment_at = [], False, None
    for found in _PARTS.finditer(command):
        kind = found.lastgroup
        has_here = has_here or kind == "here"
        if kind == "comment":
            comment_at = comment_at if comment_at is not None else found.start()
            continue
        if kind != "other" or not found.group().isspace():
            comment_at = None
        bare.append(found.group() if kind in ("other", "here") else "x" * len(found.group()))
    # After a loop, a block, a here-document, an operator or an assignment there is no command that could take them.
    if has_here or _NO_COMMAND.search("".join(bare)):
        return command
    end = command if comment_at is None else command[:comment_at]
    return f'{end.rstrip()} "$@"'


def takes_arguments(command: str) -> bool:
    """Whether its text uses positional parameters. What stands in single quotes is another program's."""
    bare: list[str] = []
    for found in _PARTS.finditer(command):
        kind, text = found.lastgroup, found.group()
        if kind in ("single", "escaped", "comment"):
            bare.append("x")
        elif kind == "double":
            bare.append(re.sub(r"\\.", "x", text, flags=re.DOTALL))
        else:
            bare.append(text)
    joined = "".join(bare)
    return _POSITIONAL.search(joined) is not None or _TAKES_THEM.search(joined) is not None
