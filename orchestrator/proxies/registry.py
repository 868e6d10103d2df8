"""Which proxies there are, in which state, at which ports: the workflows' side. What it says of a proxy is the truth;
what the data plane does is made to follow it.

Every change belongs to a step of an instance and is made once, however often the step is tried.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

from orchestrator.config.settings import Settings
from orchestrator.errors import NotFound, Retryable, Terminal
from orchestrator.proxies.addresses import is_parsable
from orchestrator.proxies.certificates import Certificate, CertificateStore
from orchestrator.proxies.plane import DataPlane, PlaneAway, PortTaken, Proxy, Route
from orchestrator.store import events, instances, outbox, resources
from orchestrator.store.connection import Connection, Database
from orchestrator.store.resources import Resource

KIND = "proxy"
PLANE_PATIENCE_S = 5.0
"""How long one attempt waits for a data plane that does not answer."""


class InstanceNotFound(Retryable):
    """No proxy of that hostname is there (yet)."""

    code = "instance_not_found"


class CertificateNotReady(Retryable):
    """There is no such certificate, or its time is not."""

    code = "certificate_not_ready"


def wish_of(given: dict[str, Any], over: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an event says of a configuration, nested or flat, laid over what was known."""
    found = dict(over or {})
    changes = given.get("changes") if isinstance(given.get("changes"), dict) else {}
    for source in (given, changes or {}):
        for key in ("target", "routes", "headers", "cert_name"):
            if key in source:
                found[key] = _untexted(source[key])
        for key in ("enable_http", "enable_https"):
            if key in source:
                found[key] = truth(source[key], key)
    for route in found.get("routes") or []:
        if not isinstance(route, dict) or not isinstance(route.get("path"), str) or not isinstance(route.get("target"), str):
            raise Terminal("routes must be a list of objects {path, target}")
    if not isinstance(found.get("headers") or {}, dict) or not isinstance(found.get("target") or "", str):
        raise Terminal("target must be an address, and headers an object")
    if not isinstance(found.get("cert_name") or "", str):
        raise Terminal("cert_name must be a name, or null")
    for target in (found.get("target"), *(route["target"] for route in found.get("routes") or [])):
        if target and not is_parsable(target):
            raise Terminal(f"target must be an address, and is {target[:80]!r}")
    if given.get("upgrade"):
        found["upgrade"] = True
    return found


def _untexted(value: Any) -> Any:
    """Null, lists and mappings may come as text."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() in ("null", "none", ""):
        return None
    if value.strip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def truth(value: Any, name: str) -> bool:
    """`true` and `false`, as JSON or as text; nothing else is taken for either."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off", "null", "none", ""):
        return False
    raise Terminal(f"{name} is {value!r}; true or false is needed")


class Proxies:
    """Over a database, a data plane and a store of certificates."""

    def __init__(self, database: Database, plane: DataPlane, certificates: CertificateStore, settings: Settings) -> None:
        self.database = database
        self.plane = plane
        self.certificates = certificates
        self.settings = settings

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, hostname: str) -> Resource:
        found = self.database.patiently(lambda c: resources.find(c, KIND, hostname))
        if found is None:
            raise NotFound("proxy", hostname, "`orchestrator proxies` lists them")
        return found

    def all(self, state: str | None = None) -> list[Resource]:
        return self.database.patiently(lambda c: resources.all_resources(c, KIND, state))

    def moves(self, hostname: str) -> list[dict[str, Any]]:
        return self.database.patiently(lambda c: resources.moves(c, KIND, hostname))

    # ── the turns of a life ─────────────────────────────────────────────────────────────────────────────────────────

    def begin_creating(self, by: str, hostname: str, given: dict[str, Any]) -> dict[str, Any]:
        wish = wish_of(given, {"enable_http": True, "enable_https": False})

        def act(c: Connection) -> dict[str, Any]:
            with c.transaction():
                held = resources.find(c, KIND, hostname, lock=True)
                if held is None or held.state in ("DELETED", "FAILED"):
                    _move(c, hostname, "PENDING", by=(by, "queued"), doing=by, anew=True)
                elif held.state == "ACTIVE":
                    if resources.was_moved(c, (by, "begin")):
                        return {"already": False, "id": held.id}
                    return {"already": True, "id": held.id, "same": wish_of(given, held.data.get("wish")) == held.data.get("wish")}
                elif held.state != "PENDING" and not resources.was_moved(c, (by, "begin")):
                    # Whoever was at it is gone: its key's turn is ours now.
                    _move(c, hostname, "FAILED", by=(by, "abandoned"))
                    _move(c, hostname, "PENDING", by=(by, "queued"), doing=by, anew=True)
                _move(c, hostname, "CREATING", by=(by, "begin"), doing=by, data={"next": wish})
                made = resources.find(c, KIND, hostname)
                assert made is not None
                return {"already": False, "id": made.id}

        return self.database.patiently(act)

    def begin_changing(self, by: str, hostname: str, given: dict[str, Any]) -> dict[str, Any]:
        def act(c: Connection) -> dict[str, Any]:
            with c.transaction():
                held = resources.find(c, KIND, hostname, lock=True)
                is_absent = held is None or held.state in ("PENDING", "DELETED")
                if given.get("upgrade") and is_absent and ((held is not None and held.state == "PENDING") or _is_about_to_be(c, hostname)):
                    # A certificate that comes before its proxy: whoever creates that finds it.
                    return {"already": True}
                if held is None:
                    raise InstanceNotFound(f"instance not found: no proxy '{hostname}'")
                if resources.was_moved(c, (by, "begin")):
                    return {"already": False, "id": held.id, "before": held.data.get("before", "ACTIVE")}
                if held.state == "DELETED":
                    raise Terminal(f"instance not found: proxy '{hostname}' is DELETED and cannot be changed")
                if held.state not in ("ACTIVE", "FAILED"):
                    if held.state == "PENDING":
                        raise InstanceNotFound(f"instance not found: proxy '{hostname}' is PENDING")
                    _move(c, hostname, "FAILED", by=(by, "abandoned"))
                wish = wish_of(given, held.data.get("wish") or held.data.get("next") or {"enable_http": True})
                before = "ACTIVE" if held.state == "ACTIVE" else "FAILED"
                _move(c, hostname, "UPDATING", by=(by, "begin"), doing=by, data={**held.data, "next": wish, "before": before})
                return {"already": False, "id": held.id, "before": before}

        try:
            return self.database.patiently(act)
        except Terminal as error:
            said = {"code": error.code, "message": str(error)}
            self.database.patiently(lambda c: resources.note_error(c, KIND, hostname, said))
            raise

    def begin_deleting(self, by: str, hostname: str) -> dict[str, Any]:
        def act(c: Connection) -> dict[str, Any]:
            with c.transaction():
                held = resources.find(c, KIND, hostname, lock=True)
                if held is None or (held.state == "DELETED" and not resources.was_moved(c, (by, "begin"))):
                    return {"already": True}
                if held.state == "DELETING" and not resources.was_moved(c, (by, "begin")):
                    _move(c, hostname, "FAILED", by=(by, "abandoned"))
                _move(c, hostname, "DELETING", by=(by, "begin"), doing=by)
                return {"already": False, "id": held.id}

        return self.database.patiently(act)

    def allocate_ports(self, hostname: str, avoid: tuple[int, ...] = ()) -> dict[str, int]:
        """Ports of its own, the lowest that nobody has; those it has stay, unless another program took them."""

        def act(c: Connection) -> dict[str, int]:
            with c.transaction():
                resources.lock_ports(c)
                held = resources.find(c, KIND, hostname, lock=True)
                assert held is not None
                had: dict[str, int] = held.data.get("ports") or {}
                taken = resources.ports_in_use(c, KIND, hostname) | set(avoid)
                ports = {
                    scheme: had[scheme] if had.get(scheme) and had[scheme] not in avoid else _lowest(base, taken)
                    for scheme, base in (("http", self.settings.proxy_http_ports), ("https", self.settings.proxy_https_ports))
                }
                if ports != had:
                    resources.put_data(c, KIND, hostname, {**held.data, "ports": ports})
                    if had:
                        event = {"specversion": "1.0", "id": f"{held.id}:{ports['http']}:{ports['https']}", "source": "orchestrator"}
                        outbox.tell(
                            c, "event.received", None,
                            {"event": {**event, "type": "port_changed", "subject": hostname, "data": {"hostname": hostname, "ports": ports, "before": had}}},
                        )  # fmt: skip
                return ports

        return self.database.patiently(act)

    def serve(self, hostname: str, *, https: bool) -> dict[str, Any]:
        """Have the data plane do what is wished for; without `https` only what needs no certificate."""
        held = self.find(hostname)
        wish = held.data.get("next") or held.data.get("wish") or {}
        certificate = self.certificate_for(hostname, wish, held) if https else None
        if certificate is not None:
            self.plane.put_certificate(certificate.name, certificate.chain, certificate.key)
        # What is served by TLS stays so when its certificate has ended: a change of something else is no reason.
        kept = (held.data.get("certificate") or {}).get("name") if https and wish.get("enable_https") else None
        name = certificate.name if certificate else kept
        ports = held.data.get("ports") or self.allocate_ports(hostname)
        until = time.monotonic() + PLANE_PATIENCE_S
        while True:
            proxy = _proxy(hostname, wish, ports, name)
            try:
                self.plane.apply(proxy)
            except PortTaken as taken:
                ports = self.allocate_ports(hostname, (taken.port,))
                continue
            except PlaneAway:
                # One that is started again is no reason to give a proxy up.
                if time.monotonic() > until:
                    raise
                time.sleep(0.25)
                continue
            break
        if certificate is not None or name is None:
            self._note(hostname, certificate)
        mode = "fully_running" if proxy.http and proxy.https else "https_only" if proxy.https else "http_only" if proxy.http else "stopped"
        return {"mode": mode, "ports": ports, "certificate": name}

    def _note(self, hostname: str, certificate: Certificate | None) -> None:
        def act(c: Connection) -> None:
            with c.transaction():
                held = resources.find(c, KIND, hostname, lock=True)
                assert held is not None
                about = None if certificate is None else {"name": certificate.name, "serial": certificate.serial}
                if held.data.get("certificate") != about:
                    resources.put_data(c, KIND, hostname, {**held.data, "certificate": about})

        self.database.patiently(act)

    def certificate_for(self, hostname: str, wish: dict[str, Any], held: Resource) -> Certificate | None:
        """The one it names, else one that covers the hostname; none where TLS is not wished for, or has to wait."""
        named = wish.get("cert_name")
        if wish.get("upgrade"):
            # A certificate was announced: it must be there and good.
            found = self._named(named) if named else self.certificates.find(hostname)
            if found is None:
                raise CertificateNotReady(f"no active certificate for {hostname}")
            return found
        announced = not held.data.get("wish") and self.database.patiently(
            lambda c: events.came_lately(c, "certificate_ready", f"default/{hostname}", resources.last_deleted_at(c, KIND, hostname))
        )
        if not wish.get("enable_https") and not announced:
            return None
        if named and (found := self._soft(named)) is not None:
            return found
        return self.certificates.find(hostname)

    def _named(self, name: str) -> Certificate:
        try:
            found = self.certificates.get(name)
        except NotFound as error:
            raise CertificateNotReady(str(error)) from None
        if found.status != "active":
            raise CertificateNotReady(f"certificate '{name}' is {found.status} ({found.begins:%Y-%m-%d} to {found.ends:%Y-%m-%d})")
        return found

    def _soft(self, name: str) -> Certificate | None:
        try:
            return self._named(name)
        except CertificateNotReady:
            return None

    def finish(self, by: str, hostname: str, mode: str) -> dict[str, Any]:
        """What was begun is so."""

        def act(c: Connection) -> dict[str, Any]:
            with c.transaction():
                held = resources.find(c, KIND, hostname, lock=True)
                assert held is not None
                if held.data.get("next") is not None:
                    wish = {key: value for key, value in held.data["next"].items() if key != "upgrade"}
                    if held.data.get("certificate"):
                        wish["enable_https"] = True
                    data = {key: value for key, value in held.data.items() if key not in ("next", "before")} | {"wish": wish}
                    _move(c, hostname, "ACTIVE", by=(by, "finish"), mode=mode, data=data)
                return {"id": held.id, "state": "ACTIVE", "mode": mode}

        return self.database.patiently(act)

    def clear(self, hostname: str) -> None:
        """Take it off the data plane, with its certificate when nobody else uses it."""
        held = self.find(hostname)
        self.plane.remove(hostname, self.settings.proxy_drain_s)
        certificate = (held.data.get("certificate") or {}).get("name")
        if certificate and not any(
            (other.data.get("certificate") or {}).get("name") == certificate
            for other in self.all()
            if other.name != hostname and other.state != "DELETED"
        ):
            self.plane.drop_certificate(certificate)

    def finish_deleting(self, by: str, hostname: str) -> None:
        def act(c: Connection) -> None:
            with c.transaction():
                _move(c, hostname, "DELETED", by=(by, "finish"), mode="stopped", data={})

        self.database.patiently(act)

    def give_up(self, by: str, hostname: str) -> dict[str, Any]:
        """What was begun failed for good: a creation leaves nothing behind, a change leaves what was before."""
        held = self.find(hostname)
        if held.state == "UPDATING" and held.data.get("before") == "ACTIVE" and held.data.get("wish") is not None:
            self._serve_again(held)
        elif held.state in ("CREATING", "UPDATING"):
            self.plane.remove(hostname, 0.0)

        def act(c: Connection) -> dict[str, Any]:
            with c.transaction():
                now = resources.find(c, KIND, hostname, lock=True)
                assert now is not None
                _, error = instances.heading_for(c, by)
                to = "ACTIVE" if now.state == "UPDATING" and now.data.get("before") == "ACTIVE" else "FAILED"
                data = {key: value for key, value in now.data.items() if key not in ("next", "before")}
                if now.state == "CREATING":
                    data = {key: value for key, value in now.data.items() if key not in ("ports", "certificate", "before")}
                if now.state in ("CREATING", "UPDATING", "DELETING"):
                    _move(c, hostname, to, by=(by, "given-up"), data=data, error=error or {"message": "cancelled"})
                return {"state": to}

        return self.database.patiently(act)

    def _serve_again(self, held: Resource) -> None:
        """As it was before the change."""
        wish = held.data.get("wish") or {}
        certificate = self._soft(held.data["certificate"]["name"]) if held.data.get("certificate") else None
        if certificate is not None:
            self.plane.put_certificate(certificate.name, certificate.chain, certificate.key)
        name = (held.data.get("certificate") or {}).get("name")
        self.plane.apply(_proxy(held.name, wish, held.data.get("ports") or {}, name if wish.get("enable_https") else None))


def _proxy(hostname: str, wish: dict[str, Any], ports: dict[str, int], certificate: str | None) -> Proxy:
    return Proxy(
        hostname=hostname,
        target=wish.get("target"),
        routes=tuple(Route(path=r["path"], target=r["target"], id=str(r.get("id", ""))) for r in wish.get("routes") or ()),
        http=bool(wish.get("enable_http", True)),
        https=certificate is not None,
        certificate=certificate,
        http_port=ports.get("http"),
        https_port=ports.get("https"),
        headers={str(k): str(v) for k, v in (wish.get("headers") or {}).items()},
    )


def _is_about_to_be(c: Connection, hostname: str) -> bool:
    """Whether the event that creates it waits, perhaps for this one's turn to be over."""
    return events.waits(c, "proxy_created", f"default/{hostname}")


def _lowest(base: int, taken: set[int]) -> int:
    for port in range(base, min(base + 1000, 65536)):
        if port not in taken:
            return port
    raise Retryable(f"no port is free from {base} on")


def _move(c: Connection, hostname: str, to: str, **more: Any) -> None:
    try:
        resources.move(c, KIND, hostname, to, **more)
    except ValueError as error:
        raise Terminal(f"proxy '{hostname}' is {error}: it cannot become {to}") from None


def is_local(hostname: str) -> bool:
    """Names of this machine are nobody's proxies."""
    return hostname in ("localhost", "127.0.0.1", "::1", "[::1]") or bool(re.fullmatch(r"127\.\d+\.\d+\.\d+", hostname))


def plane_of(settings: Settings) -> DataPlane:
    """The driver that DATA_PLANE names."""
    if settings.data_plane == "caddy":
        from orchestrator.proxies.caddy import CaddyPlane

        return CaddyPlane(
            settings.caddy_admin_url,
            host=settings.gateway_host,
            http_port=settings.gateway_http_port,
            https_port=settings.gateway_https_port,
            drain_s=settings.proxy_drain_s,
        )
    from orchestrator.proxies.embedded import GatewayPlane

    return GatewayPlane(settings.gateway_admin_url, settings.gateway_token)


def certificates_of(settings: Settings) -> CertificateStore:
    return CertificateStore(Path(settings.certificates_dir))
