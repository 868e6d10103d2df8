"""The warden: a process in which expressions run, and schemas are judged, that might run away. It has no environment, little memory,
and dies when it takes too long; the expression then fails, and nothing else is lost.

One per process that evaluates, started when first needed. What may run without it: `definition/programs.py`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time

import jq

from orchestrator.config.process import settings
from orchestrator.definition.programs import set_warden, shortened
from orchestrator.definition.schemas import LONGEST_TOLD, MOST_TOLD, set_judge
from orchestrator.errors import ExpressionError
from orchestrator.net import schemas

MEMORY_BYTES = 512 * 1024 * 1024
LARGEST_ANSWER = 64 * 1024 * 1024

# Runs there: a request is a length and JSON; the answer likewise. Compiled programs are kept.
_PROGRAM = """
import json, resource, struct, sys
sys.path.insert(0, {where!r})
import jq
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
read, write, kept = sys.stdin.buffer, sys.stdout.buffer, {{}}

def run(guarded, alone, names, text, most):
    program = kept.get(guarded)
    if program is None:
        jq.compile(alone, args=dict.fromkeys(names))
        program = jq.compile(guarded)
        if len(kept) >= 1024:
            kept.clear()
        kept[guarded] = program
    return None if text is None else json.dumps([value for _, value in zip(range(most), program.input_text(text))])

def judge(schema, text):
    import jsonschema_rs
    errors = jsonschema_rs.validator_for(json.loads(schema), offline=True).iter_errors(json.loads(text))
    return json.dumps([["/".join(map(str, e.instance_path)), e.message[:{longest}]] for _, e in zip(range({most}), errors)])

while True:
    head = read.read(4)
    if len(head) < 4:
        break
    asked = json.loads(read.read(struct.unpack(">I", head)[0]))
    try:
        answer = {{"text": judge(**asked) if "schema" in asked else run(**asked)}}
    except MemoryError:
        answer = {{"error": "it needs too much memory"}}
    except ValueError as error:
        answer = {{"error": str(error).split(chr(10), 1)[0]}}
    body = json.dumps(answer).encode()
    write.write(struct.pack(">I", len(body)) + body)
    write.flush()
"""


_thread = threading.local()


def hurry(limit_s: float) -> None:
    """In this thread, which works for all, no expression takes longer than this."""
    _thread.limit_s = limit_s


class Warden:
    """Asks one at a time; a fork of this process starts its own."""

    def __init__(self, time_s: float | None = None) -> None:
        self._time_s = time_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def time_s(self) -> float:
        """Read when it is needed: to be imported, nothing must be set rightly."""
        own: float = settings().expression_timeout_s if self._time_s is None else self._time_s
        return min(own, getattr(_thread, "limit_s", own))

    def run(self, guarded: str, alone: str, names: tuple[str, ...], text: str | None, most: int) -> str | None:
        asked = json.dumps({"guarded": guarded, "alone": alone, "names": names, "text": text, "most": most}).encode()
        with self._lock:
            answer = self._ask(asked, alone)
        if "error" in answer:
            raise ExpressionError(f"jq: {answer['error']} in '{shortened(alone)}'")
        return answer["text"]

    def judge(self, schema: str, data: object) -> list[str]:
        """What is wrong with the data, by a schema that might not come to an end."""
        asked = json.dumps({"schema": schema, "text": json.dumps(data)}).encode()
        with self._lock:
            answer = self._ask(asked, "its schema", "the schema")
        if "error" in answer:
            raise ExpressionError(f"the schema cannot be used: {answer['error']}")
        return [f"{place or '(root)'}: {message}" for place, message in json.loads(answer["text"] or "[]")]

    def _ask(self, asked: bytes, alone: str, what: str = "jq") -> dict[str, str | None]:
        process = self._ready()
        assert process.stdin is not None
        try:
            process.stdin.write(struct.pack(">I", len(asked)) + asked)
            process.stdin.flush()
            deadline = time.monotonic() + self.time_s
            size = struct.unpack(">I", self._read(process, 4, deadline))[0]
            if size > LARGEST_ANSWER:
                raise ExpressionError(f"{what}: the result is too large in '{shortened(alone)}'")
            answer: dict[str, str | None] = json.loads(self._read(process, size, deadline))
        except TimeoutError:
            self.end()
            raise ExpressionError(f"{what}: not done within {self.time_s:g} s in '{shortened(alone)}'; it was stopped") from None
        except (OSError, EOFError):
            self.end()
            raise ExpressionError(f"{what}: it needs too much memory, or crashed, in '{shortened(alone)}'; it was stopped") from None
        except BaseException:
            # Interrupted half way: what is left in the pipe belongs to nobody.
            self.end()
            raise
        return answer

    def _read(self, process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        assert process.stdout is not None
        parts = b""
        while len(parts) < size:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(process.stdout.fileno(), size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._pid != os.getpid() or self._process.poll() is not None:
            where = os.path.dirname(jq.__file__)  # noqa: PTH120  # a string for the program
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM.format(where=where, memory=MEMORY_BYTES, longest=LONGEST_TOLD, most=MOST_TOLD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
            self._pid = os.getpid()
        return self._process

    def end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._pid != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


WARDEN = Warden()


@functools.cache
def install() -> None:
    """From now on this process runs no expression by itself that might not end."""
    set_warden(WARDEN)
    set_judge(WARDEN.judge)
    schemas.install()
    os.register_at_fork(after_in_child=_fresh)


def _fresh() -> None:
    WARDEN._lock = threading.Lock()
    WARDEN._process = None
