"""Principals, roles and permissions. Pure.

viewer      sees everything of its tenant
user        also starts workflows, and acts on the instances it started
operator    also acts on everybody's instances, events and schedules
developer   also changes definitions, triggers, schedules, webhooks, proxies
auditor     sees everything of its tenant, the audit and security events
admin       everything; of the tenant `default`, in every tenant
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Permission = Literal["read", "start", "own", "operate", "define", "audit", "security", "admin", "everything"]
"""`own`: acting on instances that one started. `everything`: what is of all tenants."""

ROLES: dict[str, frozenset[Permission]] = {
    "viewer": frozenset({"read"}),
    "user": frozenset({"read", "start", "own"}),
    "operator": frozenset({"read", "start", "own", "operate"}),
    "developer": frozenset({"read", "start", "own", "operate", "define"}),
    "auditor": frozenset({"read", "audit", "security"}),
    "admin": frozenset({"read", "start", "own", "operate", "define", "audit", "security", "admin"}),
}
EVERY_TENANT = "*"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, as far as is known."""

    name: str
    tenant: str = "default"
    """`*`: of every tenant, one at a time as it says."""
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    """Further permissions by name, such as `data:read`, that workflows may ask for."""
    groups: tuple[str, ...] = ()
    """All its roles by name, also those that mean nothing here: workflows may ask for them."""
    workflows: tuple[str, ...] = ()
    """Patterns of the workflows it may start and act on; none: all."""
    permissions: frozenset[str] = field(default=frozenset())

    def may(self, permission: str) -> bool:
        if permission == "everything":
            return self.tenant in ("default", EVERY_TENANT) and "read" in self.permissions
        return permission in self.permissions

    def may_touch(self, workflow: str) -> bool:
        return not self.workflows or any(fnmatchcase(workflow, pattern) for pattern in self.workflows)

    @property
    def sees_all_tenants(self) -> bool:
        return self.tenant == EVERY_TENANT


def principal(name: str, tenant: str, roles: Iterable[str], scopes: Iterable[str] = (), workflows: Iterable[str] = ()) -> Principal:
    """With the permissions of its roles; a role that is not known gives none."""
    groups = tuple(roles)
    known = tuple(role for role in groups if role in ROLES)
    granted = frozenset[str]().union(*(ROLES[role] for role in known)) if known else frozenset[str]()
    of_all = tenant == "default" and "admin" in known
    return Principal(name, EVERY_TENANT if of_all else tenant, known, tuple(scopes), groups, tuple(workflows), granted)


def nobody_in_particular(name: str) -> Principal:
    """Where authentication is off: whoever reaches the port, which is open on loopback alone."""
    return Principal(name, EVERY_TENANT, ("admin",), (), ("admin",), (), ROLES["admin"])
