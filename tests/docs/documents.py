"""Documents that pages show, read by the doors that take them."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from orchestrator.config.environment import ENVIRONMENT, Environment
from orchestrator.config.settings import load_from
from orchestrator.definition.configured import checked
from orchestrator.definition.documents import definition_from, parse
from orchestrator.definition.triggers import read_triggers
from orchestrator.definition.validate import check
from orchestrator.schedule.spec import read_schedules
from orchestrator.steps.registry import REGISTRY, Registry
from tests.docs.pages import BLOCKS, Block

CONFIGURATION = {"security", "monitoring", "variants", "maxRetries"}
SCHEDULE = {"schedule", "cron", "every", "at", "schedules"}

SHOWN_STEP = re.compile(r"^@step(?:\(.*\))?\ndef (\w+)", re.MULTILINE)


def read(block: Block) -> None:
    """Raises what the door says that refuses it."""
    match block.kind:
        case "dotenv":
            _settings(block.text)
        case "dockerfile":
            assert all(line.split()[0].isupper() for line in block.text.splitlines() if line.strip()), block.place
        case _:
            found = json.loads(block.text) if block.kind == "json" else parse(block.text)
            door_of(found, block.page)(found)


def door_of(document: Any, page: Path) -> Callable[[Any], Any]:
    workflow = functools.partial(_workflow, types=types_of(page))
    if isinstance(document, list):
        return lambda steps: workflow({"type": "shown", "steps": steps})
    if "triggers" in document:
        return read_triggers
    if CONFIGURATION & set(document):
        return checked
    if SCHEDULE & set(document) and "do" not in document:
        return read_schedules
    return workflow


def types_of(page: Path) -> Registry:
    """The built-in step types, and those of the functions that the page itself shows."""
    REGISTRY.load()
    types = Registry()
    types.executors = dict(REGISTRY.executors)
    types.handlers = dict(REGISTRY.handlers)
    types._loaded = True
    for block in (block for block in BLOCKS[page] if block.kind == "python"):
        types.executors |= dict.fromkeys(SHOWN_STEP.findall(block.text), types.executors["noop"])
    return types


def _workflow(document: Any, types: Registry) -> None:
    check(definition_from(document), types)


def _settings(text: str) -> None:
    given = {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}
    loaded = load_from(Environment(levels=((ENVIRONMENT, given),)))
    assert not loaded.warnings, loaded.warnings
