"""Configurations of workflows as people handle them: put, compared, rolled back, taken to another environment; read from files
and read again when these change. What holds is in Postgres, and the next start sees it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.definition import configured
from orchestrator.definition.configured import ENVIRONMENTS, LARGEST_BYTES
from orchestrator.definition.documents import parse
from orchestrator.definition.parsing import Source
from orchestrator.engine import dependencies
from orchestrator.engine.catalog import SUFFIXES
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, Invalid, NotFound, OrchestratorError
from orchestrator.ids import Scope
from orchestrator.store import configs, definitions, instances
from orchestrator.store.configs import Config
from orchestrator.store.connection import Connection

logger = logging.getLogger("orchestrator.configuring")

HELD_FOR_S = 1.0
FAULTS, WATCHING = "config-faults", "config-watching"


class Configurations:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.database = runtime.database
        self.environment = runtime.settings.environment

    # ── what holds ──────────────────────────────────────────────────────────────────────────────────────────────────

    def in_force(self, namespace: str, workflow: str, version: str, tenant: str = "default") -> dict[str, Any]:
        """What the next start of a version goes by: what is said of all of its name, under what is said of it alone. Asked again every
        second."""
        held_under = (tenant, namespace, workflow, version)
        held = self.runtime.configs.get(held_under)
        if held is not None and held[0] > time.monotonic():
            return held[1]
        keys = configured.keys_for(namespace, workflow, version)
        specs = self.database.patiently(lambda c: configs.in_force(c, tenant, self.environment, keys))
        found: dict[str, Any] = {}
        for key in keys:
            found = configured.merged(found, specs.get(key, {}))
        self.runtime.configs[held_under] = (time.monotonic() + HELD_FOR_S, found)
        return found

    def named(self, workflow: str, tenant: str = "default") -> list[dict[str, Any]]:
        """Everything that holds for workflows of a name, where it is not known which of them is meant."""
        return self.database.patiently(lambda c: configs.named(c, tenant, self.environment, workflow))

    def key_of(self, named: str, tenant: str = "default", environment: str | None = None) -> str:
        """What a configuration is kept under: as it is named, or the one that there is of a workflow's name."""
        where = environment or self.environment
        if self.database.patiently(lambda c: configs.newest(c, tenant, where, named)) is not None:
            return named
        found = [one.workflow for one in self.all(tenant, where) if (one.spec or {}).get("id") == named]
        if len(found) > 1:
            raise Invalid(
                [Fault("/id", f'"{named}" has several configurations: {", ".join(found)}.', "Name one, by namespace and version.")],
                "configuration",
            )
        return found[0] if found else named

    def load(self, workflow: str, tenant: str = "default", environment: str | None = None) -> Config:
        key = self.key_of(workflow, tenant, environment)
        found = self.database.patiently(lambda c: configs.newest(c, tenant, environment or self.environment, key))
        if found is None or found.spec is None:
            raise NotFound("configuration", workflow, f"in {environment or self.environment}; `orchestrator configs` lists them")
        return found

    def all(self, tenant: str = "default", environment: str | None = None) -> list[Config]:
        return self.database.patiently(lambda c: configs.all_in_force(c, tenant, _environment(environment or self.environment)))

    def versions(self, workflow: str, tenant: str = "default", environment: str | None = None) -> list[Config]:
        key = self.key_of(workflow, tenant, environment)
        return self.database.patiently(lambda c: configs.versions(c, tenant, environment or self.environment, key))

    def validate(self, config: Any, tenant: str = "default") -> dict[str, Any]:
        """Every fault, and what is allowed and probably not meant."""
        faults = configured.faults_of(config)
        faults += [] if faults else configured.misplaced(config, self._known())
        return {"isValid": not faults, "errors": _shown(faults), "warnings": [] if faults else self.warnings(config, tenant)}

    def warnings(self, config: dict[str, Any], tenant: str = "default") -> list[dict[str, Any]]:
        """What is allowed in a configuration without a fault, and probably not meant."""
        stored = self.database.patiently(definitions.all_definitions)
        versions = {
            one.version
            for one in stored
            # Those that a start of this tenant may find: another's are not told.
            if one.name == config["id"] and one.tenant in (tenant, "default") and config.get("nameSpace") in (None, one.namespace)
        }
        return _shown(configured.warnings_of(config, {one.name for one in stored}) + configured.without_definition(config, versions))

    def _known(self) -> set[tuple[str, str]]:
        """Namespaces and names of the workflows there are."""
        return {(stored.namespace, stored.name) for stored in self.database.patiently(definitions.all_definitions)}

    # ── changing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(
        self, config: Any, *, tenant: str = "default", environment: str | None = None, origin: str = "api", actor: str = "anonymous",
        source: str = "api",
    ) -> Config:  # fmt: skip
        """A new version, which holds from the next start on."""
        spec = configured.checked(config)
        if faults := configured.misplaced(spec, self._known()):
            raise Invalid(faults, "configuration")
        self._check_cycles(spec, tenant)
        return self._put(configured.key_of(spec), spec, tenant, _environment(environment or self.environment), origin, actor, source)

    def _check_cycles(self, spec: dict[str, Any], tenant: str) -> None:
        """Raises `Invalid` where what it adds would make a workflow wait for itself."""

        def act(c: Connection) -> None:
            for namespace in [spec["nameSpace"]] if spec.get("nameSpace") else definitions.namespaces_of(c, spec["id"], tenant):
                dependencies.check_cycles(c, Scope(tenant, namespace, spec["id"]), spec.get("dependencies") or (), self.environment)

        if spec.get("dependencies"):
            self.database.patiently(act)

    def delete(
        self, workflow: str, *, tenant: str = "default", environment: str | None = None, actor: str = "anonymous", source: str = "api"
    ) -> None:
        held = self.load(workflow, tenant, environment)
        self._put(held.workflow, None, tenant, environment or self.environment, "api", actor, source)

    def roll_back(
        self,
        workflow: str,
        to: int,
        *,
        tenant: str = "default",
        environment: str | None = None,
        actor: str = "anonymous",
        source: str = "api",
    ) -> Config:
        """An older version once more, as the newest."""
        where = environment or self.environment
        key = self.key_of(workflow, tenant, environment)
        held = self.database.patiently(lambda c: configs.version(c, tenant, where, key, to))
        if held is None:
            raise NotFound("version of a configuration", f"{workflow}/{to}")
        return self._put(key, held.spec, tenant, where, f"version:{to}", actor, source)

    def difference(
        self, workflow: str, older: int, newer: int, *, tenant: str = "default", environment: str | None = None
    ) -> list[dict[str, Any]]:
        found = {one.number: one.spec or {} for one in self.versions(workflow, tenant, environment)}
        for number in (older, newer):
            if number not in found:
                raise NotFound("version of a configuration", f"{workflow}/{number}")
        return configured.differences(found[older], found[newer])

    def migrate(
        self, start: str, to: str, *, tenant: str = "default", actor: str = "anonymous", source: str = "api"
    ) -> dict[str, list[str]]:
        """Everything that holds in one environment, in another. Nothing is taken when one of them would be refused there."""
        _environment(start), _environment(to)
        found = self.all(tenant, start)
        known = self._known()
        faults = [
            Fault(f"{one.workflow}/{fault.place}", fault.message)
            for one in found
            for fault in [*configured.faults_of(one.spec), *configured.unknown_of(one.spec or {}, {name for _, name in known})]
        ]
        if faults:
            raise Invalid(faults, f"migration to {to}")
        moved = [one.workflow for one in found if self._is_new(one, tenant, to)]
        for one in found:
            self._put(one.workflow, one.spec, tenant, to, f"environment:{start}", actor, source)
        return {"migrated": moved, "unchanged": [one.workflow for one in found if one.workflow not in moved]}

    def _is_new(self, one: Config, tenant: str, environment: str) -> bool:
        held = self.database.patiently(lambda c: configs.newest(c, tenant, environment, one.workflow))
        return held is None or held.spec != one.spec

    def _put(
        self, workflow: str, spec: dict[str, Any] | None, tenant: str, environment: str, origin: str, actor: str, source: str
    ) -> Config:
        def act(c: Connection) -> Config:
            with c.transaction():
                before = configs.newest(c, tenant, environment, workflow)
                number = configs.put(c, tenant, environment, workflow, spec, origin, actor)
                if number is not None:
                    changes = configured.differences((before.spec if before else None) or {}, spec or {})
                    detail = {"workflow": workflow, "tenant": tenant, "environment": environment, "number": number, "changes": changes}
                    instances.audit(c, actor, "put-config" if spec is not None else "delete-config", source, None, None, detail)
                found = configs.newest(c, tenant, environment, workflow)
                assert found is not None
                return found

        found = self.database.patiently(act)
        self.runtime.configs.clear()
        return found

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def load_files(self, *, forget: bool = True) -> dict[str, list[str]]:
        """Read CONFIG_DIR. What is faulty keeps what held before, and is reported; what is gone holds no more.

        A folder that is not there says nothing: a process that runs elsewhere is not asked. `forget`: whether what is gone
        is taken back, which is for whoever watches the folder to say, not for each process that begins.
        """
        folder = Path(self.runtime.settings.config_dir)
        if not folder.is_dir():
            return {"loaded": [], "gone": [], "faulty": []}
        found, faults = read_files(folder, self.environment, self._known())
        broken = {fault["file"] for fault in faults}
        held = {one.workflow: set(one.origin.removeprefix("file:").split(" + ")) for one in self.all() if one.origin.startswith("file:")}
        for workflow, (spec, files) in found.items():
            # Of one that is made of several files, of which one is broken, the others alone would be something else.
            if not broken & held.get(workflow, set()):
                try:
                    self._check_cycles(spec, "default")
                except Invalid as error:
                    faults.append({"file": files, "message": str(error)[:2000]})
                    broken |= set(files.split(" + "))
                    continue
                self._put(workflow, spec, "default", self.environment, f"file:{files}", "file", "file")
        gone = [workflow for workflow, files in held.items() if workflow not in found and not broken & files] if forget else []
        for workflow in gone:
            self._put(workflow, None, "default", self.environment, "file", "file", "file")
        if faults != (self.faults() or []):
            for fault in faults:
                logger.error("%s is left out, and what held before holds: %s", fault["file"], fault["message"])
            self.database.patiently(lambda c: configs.note(c, FAULTS, faults))
        return {"loaded": sorted(found), "gone": gone, "faulty": [fault["file"] for fault in faults]}

    def faults(self) -> list[dict[str, str]]:
        """Files that could not be read, as they are now."""
        found: list[dict[str, str]] = self.database.patiently(lambda c: configs.noted(c, FAULTS)) or []
        return found

    def watch(self, enabled: bool) -> None:
        """Whether files are read again when they change."""
        self.database.patiently(lambda c: configs.note(c, WATCHING, enabled))

    @property
    def is_watching(self) -> bool:
        said = self.database.patiently(lambda c: configs.noted(c, WATCHING))
        return self.runtime.settings.hot_reload if said is None else bool(said)


def _shown(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    return [one.to_json() for one in faults]


def _environment(name: str) -> str:
    if name not in ENVIRONMENTS:
        raise Invalid([Fault("environment", f"is '{name}'; one of {', '.join(ENVIRONMENTS)} is needed")], "environment")
    return name


def read_files(
    folder: Path, environment: str, known: Collection[tuple[str, str]] = ()
) -> tuple[dict[str, tuple[dict[str, Any], str]], list[dict[str, str]]]:
    """`workflows/*.yml`, and over them `environments/<environment>/workflows/*.yml`; and what is wrong with which file."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    faults: list[dict[str, str]] = []
    for base in (folder / "workflows", folder / "environments" / environment / "workflows"):
        for file in sorted(base.glob("*")) if base.is_dir() else ():
            if file.suffix not in SUFFIXES:
                continue
            name = str(file.relative_to(folder))
            try:
                for spec in _read(file):
                    held = found.get(configured.key_of({"id": None, **spec}))
                    whole = configured.checked(configured.merged(held[0], spec) if held else spec, Source(str(file)))
                    if misplaced := configured.misplaced(whole, known):
                        raise Invalid(misplaced, "configuration")
                    found[configured.key_of(whole)] = (whole, f"{held[1]} + {name}" if held else name)
            except (OrchestratorError, OSError, UnicodeDecodeError) as error:
                faults.append({"file": name, "message": str(error)[:2000]})
    return found, faults


def _read(file: Path) -> Iterator[dict[str, Any]]:
    if file.stat().st_size > LARGEST_BYTES:
        raise Invalid([Fault(file.name, f"has more than {LARGEST_BYTES:,} bytes")], "configuration")
    data = parse(file.read_text(encoding="utf-8"), file.name)
    several = data.get("configs") if isinstance(data, dict) else data
    for one in several if isinstance(several, list) else [data]:
        if not isinstance(one, dict):
            raise Invalid([Fault(file.name, "a mapping is needed")], "configuration")
        yield one


def fingerprint(*folders: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file does."""
    seen: list[tuple[str, int, int]] = []
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                if name.endswith(SUFFIXES):
                    try:
                        about = (Path(where) / name).stat()
                    except OSError:
                        continue  # gone between two looks
                    seen.append((str(Path(where) / name), about.st_mtime_ns, about.st_size))
    return tuple(sorted(seen))
