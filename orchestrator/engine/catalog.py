"""Finding workflows: modules and document files in the packages of ORCHESTRATOR_WORKFLOWS."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.definition.builder import BUILT, Workflow
from orchestrator.definition.documents import parse, read_document
from orchestrator.definition.tree import Definition
from orchestrator.definition.triggers import entries_of, read_triggers
from orchestrator.definition.validate import check
from orchestrator.errors import Invalid, OrchestratorError
from orchestrator.schedule.spec import read_schedules
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
    for name in map(own_name, packages):
        try:
            found += _package(name, strict=strict)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0] and error.name != name:
                raise
            logger.warning("no module '%s' (ORCHESTRATOR_WORKFLOWS): nothing found there", name)
    return found


def own_name(name: str) -> str:
    """In a checkout of this project `workflows` is `orchestrator.workflows`: a module has one name, or its steps exist twice."""
    own = f"orchestrator.{name}"
    return own if _origin(name) is not None and _origin(name) == _origin(own) else name


def _origin(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


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
    return [(file, entries_of(data)) for file, data in _files(packages, "triggers", read_triggers)]


def discover_schedules(packages: Sequence[str]) -> list[tuple[str, Any]]:
    """The files in `schedules/` folders. One that is faulty is reported, and what it held before stays."""
    return list(_files(packages, "schedules", read_schedules))


def _files(packages: Sequence[str], folder: str, read: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
    for name in map(own_name, packages):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for path in getattr(module, "__path__", ()):
            for file, data in _read_all(Path(path), folder, read):
                yield f"{name}/{file.relative_to(path)}", data


def folders_of(packages: Sequence[str], folder: str) -> list[Path]:
    """The folders of that name inside packages."""
    found: list[Path] = []
    for name in map(own_name, packages):
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(name)
            found += [place for path in getattr(module, "__path__", ()) for place in Path(path).rglob(folder) if place.is_dir()]
    return found


def schedules_in(folder: Path) -> list[tuple[str, Any]]:
    """The files of a folder that is no package."""
    return [(f"{folder.name}/{file.relative_to(folder)}", data) for file, data in _read_all(folder, folder.name, read_schedules)]


def _read_all(base: Path, folder: str, read: Callable[[Any, str], Any]) -> Iterator[tuple[Path, Any]]:
    for file in sorted(base.rglob("*")):
        if file.suffix not in SUFFIXES or not file.is_file() or folder not in file.parts:
            continue
        try:
            data = parse(file.read_text(encoding="utf-8"), file.name)
            read(data, file.name)
        except (OrchestratorError, OSError, UnicodeDecodeError) as error:
            logger.error("%s is left out: %s", file, error)
            continue
        yield file, data


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
