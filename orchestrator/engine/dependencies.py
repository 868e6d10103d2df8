"""What an instance waits for before it begins: which workflow or instance is meant, that it exists, and that nothing waits for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator.definition.dependencies import Dependency
from orchestrator.definition.parsing import read_as
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, Invalid
from orchestrator.ids import Scope
from orchestrator.store import admission, configs, definitions
from orchestrator.store.connection import Connection
from orchestrator.store.definitions import Stored


def read(given: Sequence[Any], place: str = "/dependencies") -> tuple[list[dict[str, Any]], list[Fault]]:
    """Entries as people write them (a name, or a mapping), each as {workflow, instance, condition}; and what is wrong with them."""
    found: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for number, item in enumerate(given):
        if isinstance(item, Dependency):
            found.append(item.to_json())
            continue
        entry, wrong = read_as(Dependency, {"workflow": item} if isinstance(item, str) else item, place=f"{place}/{number}")
        faults += wrong
        if entry is not None:
            found.append(entry.to_json())
    return found, faults


def resolved(runtime: Runtime, scope: Scope, given: Sequence[Any]) -> list[dict[str, Any]]:
    """The dependencies of an instance of a workflow, each with the namespace that is meant. Raises `Invalid` with every fault."""
    if not given:
        return []
    entries, faults = read(given)
    if not faults:
        ids = [entry["instance"] for entry in entries if entry["instance"]]
        known = runtime.database.patiently(lambda c: admission.known_instances(c, scope.tenant, ids)) if ids else set()
        faults = [
            Fault(f"dependencies/{number}/instance", f"There is no instance {entry['instance']}.")
            for number, entry in enumerate(entries)
            if entry["instance"] and entry["instance"].lower() not in known
        ]
    if faults:
        raise Invalid(faults, "start")
    for entry in entries:
        if entry["workflow"]:
            meant = runtime.database.patiently(lambda c, text=entry["workflow"]: meant_by(c, scope, text))  # type: ignore[misc]
            entry["namespace"], entry["workflow"] = meant.namespace, meant.name
    return entries


def meant_by(c: Connection, scope: Scope, text: str) -> Scope:
    """Which workflow another one names: of its own namespace first, then of any, then as `namespace.name`. One that is yet to be
    registered is of the namespace that it says, or else of the same one."""
    return _meant(scope, text, lambda name, namespace: definitions.find(c, name, None, namespace, scope.tenant))


def _meant(scope: Scope, text: str, find: Callable[[str, str | None], Stored | None]) -> Scope:
    namespace, dot, bare = text.rpartition(".")
    found = find(text, scope.namespace) or find(text, None) or (find(bare, namespace) if dot else None)
    if found is not None:
        return Scope(scope.tenant, found.namespace, found.name)
    # What is yet to be registered may be a name with a dot, too: `_MET` looks for both.
    return Scope(scope.tenant, namespace, bare) if dot else Scope(scope.tenant, scope.namespace, text)


# ── cycles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_cycles(c: Connection, scope: Scope, wanted: Iterable[Any], environment: str) -> None:
    """Raises `Invalid` where a workflow would wait for itself, over the definitions and configurations that hold now.

    `wanted` is what the workflow is to depend on; what the others depend on is read.
    """
    wanted = list(wanted)
    if not wanted:
        return
    known = _Known(c, scope.tenant, environment)
    path = known.way_back(scope, wanted)
    if path:
        said = " → ".join(str(one) for one in path)
        raise Invalid([Fault("dependencies", f"This makes a cycle: {said}. None of them would ever begin.")])


class _Known:
    """The newest definition of every workflow that a tenant sees, with what configurations add to it."""

    def __init__(self, c: Connection, tenant: str, environment: str) -> None:
        self.tenant = tenant
        self.newest = {(one.namespace, one.name): one for one in definitions.newest(definitions.dependants(c, tenant), tenant)}
        self.configs = configs.with_dependencies(c, tenant, environment)

    def way_back(self, start: Scope, wanted: Sequence[Any]) -> list[Scope]:
        """From a workflow over what it waits for back to itself; empty where no way leads back."""
        todo = [(self._scope(start, one), [start]) for one in wanted]
        seen: set[Scope] = set()
        while todo:
            current, path = todo.pop()
            if current is None or current in seen:
                continue
            if current == start:
                return [*path, current]
            seen.add(current)
            todo += [(self._scope(current, one), [*path, current]) for one in self._of(current)]
        return []

    def _of(self, scope: Scope) -> list[Any]:
        held = self.newest.get((scope.namespace, scope.name))
        own = list(held.tree.get("dependencies") or ()) if held is not None else []
        return own + [
            one for namespace, name, given in self.configs if name == scope.name and namespace in (None, scope.namespace) for one in given
        ]

    def _scope(self, of: Scope, given: Any) -> Scope | None:
        entries, faults = read([given])
        if faults or not entries[0]["workflow"]:
            return None
        return _meant(of, entries[0]["workflow"], self._find)

    def _find(self, name: str, namespace: str | None) -> Stored | None:
        if namespace is not None:
            return self.newest.get((namespace, name))
        found = [one for (_, held), one in self.newest.items() if held == name]
        return min(found, key=lambda one: (one.namespace != "default", one.namespace), default=None)
