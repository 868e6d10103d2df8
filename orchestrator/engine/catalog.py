"""Finding workflows: modules and document files in the packages of ORCHESTRATOR_WORKFLOWS.

Each module, workflow and file is by itself: one that cannot be used is left out, with its place and the reason, and the others are
there all the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.definition.builder import BUILT
from orchestrator.definition.documents import parse, read_document
from orchestrator.definition.parsing import Source
from orchestrator.definition.tree import Definition
from orchestrator.definition.triggers import entries_of, read_triggers
from orchestrator.definition.validate import check
from orchestrator.definition.versions import same_version
from orchestrator.errors import Fault, Invalid, OrchestratorError
from orchestrator.schedule.spec import read_schedules
from orchestrator.steps.registry import REGISTRY

PACKAGE = Path(__file__).parents[1]

logger = logging.getLogger("orchestrator.catalog")
SUFFIXES = (".yaml", ".yml", ".json")
ELSEWHERE = frozenset({"schedules", "triggers"})
"""Folders whose files are no definitions."""


@dataclass(frozen=True, slots=True)
class Discovered:
    definition: Definition
    source: str | None = None
    file: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What cannot be used, and why: a module, a workflow, a file."""

    kind: str
    name: str
    reason: str
    file: str = ""
    line: int | None = None
    workflow: str = ""
    """The workflow that is missing for it, where that is known."""
    faults: tuple[Fault, ...] = ()
    """What the reason says in one line, where it is faults with places of their own."""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "faults" and value not in ("", None)}

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.kind} {self.name} is left out{f' ({place})' if place else ''}: {self.reason}"


@dataclass(slots=True)
class Catalog:
    """What was found, and what was left out of it."""

    workflows: list[Discovered]
    left_out: list[LeftOut]

    def leave_out(self, one: LeftOut) -> None:
        self.left_out.append(one)


def tell(left_out: Sequence[LeftOut]) -> None:
    """In the log: what is missing here, and why."""
    for one in left_out:
        logger.error("%s", one)


def discover(packages: Sequence[str]) -> Catalog:
    """Import the modules, read the documents."""
    catalog = Catalog([], [])
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in map(own_name, packages):
        _import_all(name, catalog)
    names = tuple(map(own_name, packages))
    for workflow in list(BUILT.values()):
        if any(workflow.module == name or workflow.module.startswith(f"{name}.") for name in names):
            about = LeftOut("workflow", f"{workflow.name}@{workflow.version}", "", workflow.file, workflow.line, workflow.name)
            _add(catalog, lambda w=workflow: Discovered(w.build(), None, f"{w.file}:{w.line}"), about)  # type: ignore[misc]
    for name in names:
        for folder in folders(name):
            for file in files_in(folder):
                if not ELSEWHERE & set(file.relative_to(folder).parts):
                    _add(catalog, lambda f=file: _document(f), LeftOut("document", file.name, "", str(file)))  # type: ignore[misc]
    return catalog


def _import_all(name: str, catalog: Catalog) -> None:
    """A module and, of a package, all that is in it. Below a package that does not import nothing can be imported."""
    module = _import(name, catalog)
    for inner in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        _import_all(inner.name, catalog)


def _import(name: str, catalog: Catalog) -> ModuleType | None:
    if name in sys.modules:
        return sys.modules[name]
    before = set(BUILT)
    try:
        return importlib.import_module(name)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # a module may do anything while it is imported
        if isinstance(error, KeyboardInterrupt) and _was_pressed(error):
            raise
        _leave_out(name, error, before, catalog)
        return None


def _was_pressed(error: KeyboardInterrupt) -> bool:
    """Whether somebody pressed Ctrl-C: a module that raises it itself does so in a line of its own that says `raise`."""
    frames = traceback.extract_tb(error.__traceback__)
    return not (frames and (frames[-1].line or "").lstrip().startswith("raise"))


def _leave_out(name: str, error: BaseException, before: set[Any], catalog: Catalog) -> None:
    if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{name}.".startswith(f"{error.name}."):
        catalog.leave_out(LeftOut("module", name, f"There is no module {name!r} (ORCHESTRATOR_WORKFLOWS)."))
    else:
        file, line = place_of(error, name)
        catalog.leave_out(LeftOut("module", name, f"{type(error).__name__}: {error}", file, line))
    # What it wrote before it failed may lack what comes after.
    for key in set(BUILT) - before:
        if BUILT[key].module == name:
            del BUILT[key]


def place_of(error: BaseException, name: str) -> tuple[str, int | None]:
    """Where in the module (or in what it imports) it happened."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<frozen ") and "importlib" not in frame.filename]
    # What this package refuses, a line of the module asked for.
    while len(own) > 2 and Path(own[-1].filename).is_relative_to(PACKAGE):
        own.pop()
    if len(own) < 2:
        spec = _spec(name)
        return (spec.origin or "" if spec else "", None)
    return own[-1].filename, own[-1].lineno


def _add(catalog: Catalog, read: Callable[[], Discovered], about: LeftOut) -> None:
    try:
        found = read()
        check(found.definition, REGISTRY)
        _refuse_twins(catalog, found)
        catalog.workflows.append(found)
    except Invalid as error:
        reason = "; ".join(str(fault) for fault in error.faults)
        catalog.leave_out(replace(about, reason=reason, faults=error.faults))
    except (OrchestratorError, OSError, UnicodeDecodeError) as error:
        catalog.leave_out(replace(about, reason=str(error)))
    except Exception as error:
        logger.exception("%s cannot be read", about.name)
        catalog.leave_out(replace(about, reason=f"{type(error).__name__}: {error}"))


def _refuse_twins(catalog: Catalog, found: Discovered) -> None:
    """One version of a workflow is written in one place, or which one runs would depend on the order of files."""
    one = found.definition
    for other in catalog.workflows:
        twin = other.definition
        if (twin.namespace, twin.name) == (one.namespace, one.name) and same_version(twin.version, one.version):
            raise Invalid(
                [
                    Fault(
                        "",
                        f"{one.ref} is written in two places: {other.file} and {found.file}.",
                        "Give one of them another name or version.",
                    )
                ]
            )


def _document(file: Path) -> Discovered:
    text = file.read_text(encoding="utf-8")
    return Discovered(read_document(text, str(file)), text, str(file))


# ── where things lie ────────────────────────────────────────────────────────────────────────────────────────────────


def own_name(name: str) -> str:
    """In a checkout of this project `workflows` is `orchestrator.workflows`: a module has one name, or its steps exist twice."""
    own = f"orchestrator.{name}"
    here = _spec(name)
    if here is None or here.origin is None:
        return name
    there = _spec(own)
    return own if there is not None and there.origin and Path(there.origin).resolve() == Path(here.origin).resolve() else name


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    except Exception:  # noqa: BLE001  # a parent package that fails on import: its folder is not known
        return None


def folders(name: str) -> list[Path]:
    """Where a package lies, whether or not it can be imported."""
    spec = _spec(own_name(name))
    return [Path(path) for path in (spec.submodule_search_locations or ())] if spec is not None else []


def files_in(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.suffix in SUFFIXES and file.is_file()]


def folders_of(packages: Sequence[str], folder: str) -> list[Path]:
    """The folders of that name inside packages."""
    return [place for name in packages for base in folders(name) for place in base.rglob(folder) if place.is_dir()]


# ── files of triggers and schedules ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a kind: what each holds, and which cannot be read. What such a file held before stays."""

    read: dict[str, Any]
    faulty: dict[str, str]


def discover_triggers(packages: Sequence[str]) -> Files:
    """The files in `triggers/` folders, each with its entries."""
    found = _files(packages, "triggers", lambda data, source: read_triggers(data, source.file))
    return Files({name: entries_of(data) for name, data in found.read.items()}, found.faulty)


def discover_schedules(packages: Sequence[str], *more: Path) -> Files:
    """The files in `schedules/` folders of packages, and in folders that are no packages."""
    found = _files(packages, "schedules", read_schedules)
    for folder in more:
        _read_all(folder, folder.parent, folder.name, read_schedules, "", found)
    return found


def _files(packages: Sequence[str], folder: str, read: Callable[[Any, Source], Any]) -> Files:
    found = Files({}, {})
    for name in packages:
        for base in folders(name):
            _read_all(base, base, folder, read, f"{name}/", found)
    return found


def _read_all(base: Path, root: Path, folder: str, read: Callable[[Any, Source], Any], prefix: str, found: Files) -> None:
    for file in files_in(base):
        if folder not in file.relative_to(root).parts[:-1]:
            continue
        name = f"{prefix}{file.relative_to(root)}"
        try:
            text = file.read_text(encoding="utf-8")
            data = parse(text, name)
            read(data, Source(name, text))
        except (OrchestratorError, OSError, UnicodeDecodeError, ValueError) as error:
            found.faulty[name] = str(error)
            continue
        found.read[name] = data
