"""Identities. Instance ids are UUIDs ordered by time (version 7), so that fresh rows share index pages."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from dataclasses import dataclass
from typing import NewType

InstanceId = NewType("InstanceId", str)
Position = NewType("Position", str)

ROOT = Position("")
UNDO = Position("/undo")

WORKFLOW, EXECUTION, RUN = "wf_", "ex_", "run_"
"""How the API of tenants calls workflows and instances, and how older services call these; understood wherever an id is asked for."""


def new_instance_id() -> InstanceId:
    """A UUIDv7: 48 bits of milliseconds, then randomness."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return InstanceId(str(uuid.UUID(int=value)))


def id_for(text: str) -> str:
    """The id that stands for a text: always the same for the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))


def is_instance_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def escaped(name: str) -> str:
    """A task's name as a part of a position: RFC 6901, and `#`, which numbers revisits."""
    return name.replace("~", "~0").replace("/", "~1").replace("#", "~2")


def unescaped(part: str) -> str:
    return part.replace("~2", "#").replace("~1", "/").replace("~0", "~")


# What is longer has no place in an index.
LONGEST_PART = 200


def key_of(kind: str, *parts: object) -> str:
    """The text that stands for parts, in keys of tables, locks and caches: two lists of parts have one text only if they are the same."""
    return "/".join((kind, *(_part(str(part)) for part in parts)))


def parts_of(key: str) -> tuple[str, ...]:
    """The kind and the parts that a key was made of, as far as they are in it."""
    return tuple(unescaped(part) for part in key.split("/"))


def _part(text: str) -> str:
    if len(text) > LONGEST_PART:
        text = f"{text[:100]}…{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"
    return escaped(text)


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Which workflow is meant: whose it is, in which of their namespaces, and its name. None of the three is enough alone."""

    tenant: str
    namespace: str
    name: str

    def key(self, kind: str, *more: object) -> str:
        """What is kept once for this workflow, or for each of its `more`: slots, locks, caches."""
        return key_of(kind, self.tenant, self.namespace, self.name, *more)

    def __str__(self) -> str:
        return self.name if self.namespace == "default" else f"{self.namespace}.{self.name}"


def pointer(position: str) -> str:
    """The JSON pointer into the definition for a position in an instance: without iterations and revisits."""
    parts = position.split("/")[1:]
    shown: list[str] = []
    while parts:
        head = parts.pop(0).split("#")[0]
        if head == "undo":
            continue
        if head in ("for", "foreach"):
            # The round; a `for` has its list beside it, not inside.
            del parts[:1]
            shown += ["foreach"] if head == "foreach" else []
        elif head == "extended":
            continue
        elif head == "catch":
            shown.append(head)
        else:
            shown += ["fork", "branches"] if head == "fork" else [head]
            named = 1 if head == "graph" else 2
            shown += [part.split("#")[0].replace("~2", "#") for part in parts[:named]]
            del parts[:named]
    return "".join(f"/{part}" for part in shown)
