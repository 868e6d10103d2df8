"""Versions: one to three numbers; what is not written is zero; after them a pre-release or a build, as semver has it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from orchestrator.definition.parsing import shown

_VERSION = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?([-+][0-9A-Za-z.+-]{1,64})?")


class BadVersion(ValueError):
    def __init__(self, value: object) -> None:
        super().__init__(f"Invalid version {shown(value)}: expected 1, 1.2 or 1.2.3.")


def parse_version(version: object) -> tuple[int, int, int]:
    found = _VERSION.fullmatch(str(version).strip())
    if found is None or isinstance(version, bool):
        raise BadVersion(version)
    major, minor, patch, _ = found.groups(default="0")
    return int(major), int(minor), int(patch)


def suffix(version: object) -> str:
    """What follows the numbers: a pre-release or a build, or nothing."""
    found = _VERSION.fullmatch(str(version).strip())
    return (found.group(4) or "") if found else ""


def same_version(one: object, other: object) -> bool:
    return (parse_version(one), suffix(one)) == (parse_version(other), suffix(other))


def is_version(version: object) -> bool:
    return _VERSION.fullmatch(str(version).strip()) is not None


def _read(given: Any) -> str:
    """A version as documents write it: 1, 1.2 or "1.2.3"."""
    if isinstance(given, bool) or not isinstance(given, str | int | float) or not is_version(given):
        raise BadVersion(given)
    return str(given).strip()


Version = Annotated[str, BeforeValidator(_read)]
"""The type of a field that holds a version."""
