"""DEV_MODE: a workflow whose text changed after its version was used becomes the next patch version by itself.

Used versions are immutable, because instances go on with them. In development the text changes all the time, and what was written
last is what is meant: it is registered under the first patch version after those of before.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable

from orchestrator.definition.tree import Definition
from orchestrator.definition.versions import parse_version, suffix
from orchestrator.errors import VersionClash
from orchestrator.store import definitions
from orchestrator.store.connection import Database

logger = logging.getLogger("orchestrator.dev")

MOST = 10_000

Register = Callable[[Definition], tuple[int, bool]]


def register_newest(
    database: Database, register: Register, definition: Definition, tenant: str, declared: Collection[str] | None = None
) -> tuple[int, bool]:
    """Register it so that its text is the newest of its major and minor version. Gives the id, and whether something changed.

    `declared`: the versions that the project's code has of it now; none of them is taken for one that was made here. None: it came by
    itself, over the API say, and only gives way to a version that was used.
    """
    own = parse_version(definition.version)[2]
    others = {parse_version(version) for version in declared or ()} - {parse_version(definition.version)}
    newest = database.patiently(lambda c: definitions.newest_patch(c, tenant, definition)) if declared is not None else None
    first = own
    if newest is not None and newest.patch > own and parse_version(newest.version) not in others:
        if definitions.digest(_under(definition, newest.patch)) == newest.digest:
            return newest.id, False
        first = newest.patch
    for patch in range(first, first + MOST):
        wanted = definition if patch == own else _under(definition, patch)
        if parse_version(wanted.version) in others:
            continue
        try:
            found = register(wanted)
        except VersionClash:
            continue
        if wanted.version != definition.version:
            logger.warning(
                "%s@%s was used and has changed: registered as %s (DEV_MODE)", definition.name, definition.version, wanted.version
            )
        return found
    raise VersionClash(definition.name, definition.version)


def _under(definition: Definition, patch: int) -> Definition:
    major, minor, _ = parse_version(definition.version)
    return dataclasses.replace(definition, version=f"{major}.{minor}.{patch}{suffix(definition.version)}")


def versions_of(found: Iterable[Definition]) -> dict[tuple[str, str], set[str]]:
    """Which versions the project's code declares of each workflow."""
    declared: dict[tuple[str, str], set[str]] = {}
    for one in found:
        declared.setdefault((one.namespace, one.name), set()).add(one.version)
    return declared
