"""Ports on loopback: the usual one when it is free, else any."""

from __future__ import annotations

import random
import socket
import sys
from collections import deque

LOOPBACK = "127.0.0.1"
_RANGE = (28_000, 32_700)
_any = random.SystemRandom()  # whatever a test has seeded
_given: deque[int] = deque(maxlen=1_000)
_kept: dict[int, socket.socket] = {}


def is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def any_free() -> int:
    """Below those that the kernel gives to outgoing connections: nobody else takes it before it is listened on."""
    while True:
        port = _any.randrange(*_RANGE)
        if port not in _given and is_free(port):
            _given.append(port)
            return port


def usual_or_free(port: int) -> int:
    return port if is_free(port) and _is_ours(port) else any_free()


def _is_ours(port: int) -> bool:
    """Of stacks that start at the same time one has a port before anybody listens on it: for as long as its process lives, a name
    that is as wide as the port is (Linux has such names)."""
    if port in _kept or sys.platform != "linux":
        return True
    sign = socket.socket(socket.AF_UNIX)
    try:
        sign.bind(f"\0celery-orchestrator/port/{port}")
    except OSError:
        sign.close()
        return False
    _kept[port] = sign
    return True


def answers(port: int, host: str = LOOPBACK) -> bool:
    try:
        with socket.create_connection((host, port), timeout=0.3):
            return True
    except OSError:
        return False
