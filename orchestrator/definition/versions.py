"""Versions: one to three numbers; what is not written is zero."""

from __future__ import annotations

import re

_VERSION = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?")


class BadVersion(ValueError):
    def __init__(self, value: object) -> None:
        super().__init__(f"invalid version {value!r}; write 1, 1.0 or 1.0.0")


def parse_version(version: object) -> tuple[int, int, int]:
    found = _VERSION.fullmatch(str(version).strip())
    if found is None or isinstance(version, bool):
        raise BadVersion(version)
    major, minor, patch = found.groups(default="0")
    return int(major), int(minor), int(patch)


def same_version(one: object, other: object) -> bool:
    return parse_version(one) == parse_version(other)
