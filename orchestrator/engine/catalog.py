"""Finding workflows: modules and document files in the packages of ORCHESTRATOR_WORKFLOWS."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.definition.builder import BUILT, Workflow
from orchestrator.definition.documents import parse, read_document
from orchestrator.definition.tree import Definition
from orchestrator.definition.triggers import entries_of, read_triggers
from orchestrator.definition.validate import check
from orchestrator.errors import Invalid, OrchestratorError
from orchestrator.steps.registry import REGISTRY

logger = logging.getLogger("orchestrator.catalog")
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Discovered:
    definition: Definition
    source: str | None = None


def discover(packages: Sequence[str], *, strict: bool = False) -> list[Discovered]:
    """Import the modules, read the documents. What is faulty is reported and left out; `strict` raises instead."""
    found: list[Discovered] = []
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in packages:
        try:
            found += _package(name, strict=strict)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0] and error.name != name:
                raise
            logger.warning("no module '%s' (ORCHESTRATOR_WORKFLOWS): nothing found there", name)
    return found


def _package(name: str, *, strict: bool) -> Iterator[Discovered]:
    module = importlib.import_module(name)
    for path in getattr(module, "__path__", ()):
        for inner in pkgutil.walk_packages([path], f"{name}."):
            importlib.import_module(inner.name)
    for workflow in list(BUILT.values()):
        if workflow.module == name or workflow.module.startswith(f"{name}."):
            yield from _checked(workflow, strict=strict)
    for path in getattr(module, "__path__", ()):
        for file in sorted(Path(path).rglob("*")):
            if file.suffix in SUFFIXES and file.is_file() and not {"schedules", "triggers"} & set(file.parts):
                yield from _document(file, strict=strict)


def discover_triggers(packages: Sequence[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The files in `triggers/` folders, each with its entries. A faulty file is reported and left out whole."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for name in packages:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for path in getattr(module, "__path__", ()):
            for file in sorted(Path(path).rglob("*")):
                if file.suffix in SUFFIXES and file.is_file() and "triggers" in file.parts:
                    try:
                        data = parse(file.read_text(encoding="utf-8"), file.name)
                        read_triggers(data, file.name)
                    except (OrchestratorError, OSError, UnicodeDecodeError) as error:
                        logger.error("%s is left out: %s", file, error)
                        continue
                    found.append((f"{name}/{file.relative_to(path)}", entries_of(data)))
    return found


def _checked(workflow: Workflow, *, strict: bool) -> Iterator[Discovered]:
    try:
        definition = workflow.build()
        check(definition, REGISTRY.knows)
        yield Discovered(definition)
    except Invalid as error:
        if strict:
            raise
        logger.error("workflow '%s' is left out: %s", workflow.name, error)


def _document(file: Path, *, strict: bool) -> Iterator[Discovered]:
    try:
        text = file.read_text(encoding="utf-8")
        definition = read_document(text, str(file.name))
        check(definition, REGISTRY.knows)
        yield Discovered(definition, text)
    except (OrchestratorError, OSError, UnicodeDecodeError) as error:
        if strict:
            raise
        logger.error("%s is left out: %s", file, error)
