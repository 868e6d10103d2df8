"""Identities. Instance ids are UUIDs ordered by time (version 7), so that fresh rows share index pages."""

from __future__ import annotations

import os
import time
import uuid
from typing import NewType

InstanceId = NewType("InstanceId", str)
Position = NewType("Position", str)

ROOT = Position("")
UNDO = Position("/undo")


def new_instance_id() -> InstanceId:
    """A UUIDv7: 48 bits of milliseconds, then randomness."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return InstanceId(str(uuid.UUID(int=value)))


def is_instance_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
