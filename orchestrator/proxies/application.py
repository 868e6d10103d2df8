"""The application's side of proxies: what people configure. It stores `proxy:{hostname}` and publishes an event, and knows
nothing of instances: whoever makes them of it, now or later, reads the stream.

Storing and publishing are one transaction (MULTI): neither is ever seen without the other. Where streams are kept elsewhere
(`publish`), the event is published first: a configuration whose event is missing would never be served.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import redis

from orchestrator import trimming
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.proxies.addresses import is_target

STREAM = "events:workflow"
HOSTNAME = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DEFAULTS: dict[str, Any] = {"enable_http": True, "enable_https": False, "cert_name": None}


class Application:
    def __init__(
        self,
        client: Any,
        *,
        stream: str = STREAM,
        length: int | None = 10_000,
        publish: Callable[[str, dict[str, str]], Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.redis = client
        self.publish = publish
        self.stream = prefix + stream
        self.keys = f"{prefix}proxy:"
        self.length = length

    @staticmethod
    def at(
        url: str, *, length: int | None = 10_000, publish: Callable[[str, dict[str, str]], Any] | None = None, prefix: str = ""
    ) -> Application:
        client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=5, socket_connect_timeout=2)
        return Application(client, length=length, publish=publish, prefix=prefix)

    # ── proxies ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, hostname: str, config: dict[str, Any]) -> dict[str, Any]:
        hostname = checked_hostname(hostname)
        made = {**DEFAULTS, **checked(config)}
        self._write(hostname, made, "proxy_created", made)
        return {"hostname": hostname, **made}

    def change(self, hostname: str, changes: dict[str, Any]) -> dict[str, Any]:
        held = self.get(hostname)
        found = checked(changes)
        made = {**{key: value for key, value in held.items() if key != "hostname"}, **found}
        self._write(held["hostname"], made, "proxy_updated", {**made, "changes": found})
        return {"hostname": held["hostname"], **made}

    def delete(self, hostname: str) -> None:
        held = self.get(hostname)
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.delete(self.keys + held["hostname"])
        self._publish(pipeline, "proxy_deleted", held["hostname"], {})
        pipeline.execute()

    def get(self, hostname: str) -> dict[str, Any]:
        hostname = checked_hostname(hostname)
        text = self.redis.get(self.keys + hostname)
        if text is None:
            raise NotFound("proxy", hostname)
        return {"hostname": hostname, **json.loads(text)}

    def all(self) -> list[dict[str, Any]]:
        keys = sorted(self.redis.scan_iter(f"{self.keys}*", count=500, _type="string"))
        texts = self.redis.mget(keys) if keys else []
        return [{"hostname": key.removeprefix(self.keys), **json.loads(text)} for key, text in zip(keys, texts, strict=True) if text]

    # ── routes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def put_route(self, hostname: str, route: dict[str, Any]) -> dict[str, Any]:
        """Make or change one: `{id, path, target}`."""
        held = self.get(hostname)
        [found] = _routes([route])
        before = held.get("routes") or []
        action = "updated" if any(one["id"] == found["id"] for one in before) else "created"
        routes = [*(one for one in before if one["id"] != found["id"]), found]
        self._change_routes(held, routes, found["id"], action)
        return found

    def delete_route(self, hostname: str, route_id: str) -> None:
        held = self.get(hostname)
        routes = [one for one in held.get("routes") or [] if one["id"] != route_id]
        if len(routes) == len(held.get("routes") or []):
            raise NotFound("route", route_id)
        self._change_routes(held, routes, route_id, "deleted")

    def _change_routes(self, held: dict[str, Any], routes: list[dict[str, Any]], route_id: str, action: str) -> None:
        config = {**{key: value for key, value in held.items() if key != "hostname"}, "routes": routes}
        self._write(held["hostname"], config, "route_changed", {"route_id": route_id, "action": action, "routes": routes})

    # ── certificates ────────────────────────────────────────────────────────────────────────────────────────────────

    def certificate_ready(self, cert_name: str, hostname: str, *, domains: Sequence[str] = (), is_renewal: bool = False) -> str:
        """What the certificate manager says: flat, as its publishers always wrote it."""
        entry = {"event_type": "certificate_ready", "hostname": hostname, "cert_name": cert_name, "timestamp": _now()}
        if len(domains) > 1:
            entry["domains"] = json.dumps(list(domains))
        if is_renewal:
            entry["is_renewal"] = "true"
        return self.announce(entry)

    def certificate_made(self, cert_name: str, domains: Sequence[str], *, is_renewal: bool = False) -> list[str]:
        """The same of a certificate just made, to each hostname it is for: those it names, and proxies that its wildcards cover."""
        wild = {domain[2:] for domain in domains if domain.startswith("*.")}
        covered = [one["hostname"] for one in self.all() if one["hostname"].partition(".")[2] in wild] if wild else []
        hostnames = list(dict.fromkeys([*(domain for domain in domains if not domain.startswith("*.")), *covered]))
        if hostnames:
            self.certificate_ready(cert_name, hostnames[0], domains=hostnames, is_renewal=is_renewal)
        return hostnames

    def announce(self, entry: dict[str, str]) -> str:
        if self.publish is not None:
            return str(self.publish(self.stream, entry))
        entry_id = str(self.redis.xadd(self.stream, entry))
        trimming.appended(self.redis, self.stream, self.length, is_read=True)
        return entry_id

    def _write(self, hostname: str, config: dict[str, Any], event: str, data: dict[str, Any]) -> None:
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.set(self.keys + hostname, json.dumps(config))
        self._publish(pipeline, event, hostname, data)
        pipeline.execute()

    def _publish(self, pipeline: Any, event: str, hostname: str, data: dict[str, Any]) -> None:
        entry = {"event_type": event, "hostname": hostname, "data": json.dumps(data), "timestamp": _now()}
        if self.publish is not None:
            self.publish(self.stream, entry)
        else:
            pipeline.xadd(self.stream, entry)
            trimming.appended(self.redis, self.stream, self.length, is_read=True)


def checked_hostname(hostname: Any) -> str:
    text = str(hostname).strip().lower().rstrip(".") if isinstance(hostname, str) else ""
    if not HOSTNAME.fullmatch(text):
        raise Invalid([Fault("hostname", f"is {str(hostname)[:80]!r}; a hostname like api.example.com is needed")], "proxy")
    return text


_KNOWN = ("target", "enable_http", "enable_https", "cert_name", "routes", "headers")


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, or a part of one; every fault at once."""
    faults = [Fault(key, f"is not known; a proxy has {', '.join(_KNOWN)}") for key in config if key not in (*_KNOWN, "hostname")]
    flags = [key for key in ("enable_http", "enable_https") if key in config and not isinstance(config[key], bool)]
    faults += [Fault(key, "must be true or false") for key in flags]
    target = config.get("target")
    if target is not None and not is_target(target):
        faults.append(Fault("target", f"is {str(target)[:80]!r}; an http or https address is needed"))
    if config.get("cert_name") is not None and not isinstance(config["cert_name"], str):
        faults.append(Fault("cert_name", "must be a name, or null"))
    headers = config.get("headers")
    if headers is not None and not (
        isinstance(headers, dict) and all(re.fullmatch(r"[A-Za-z0-9-]+", str(k)) and _is_line(v) for k, v in headers.items())
    ):
        faults.append(Fault("headers", "must be a mapping of header names to single lines of text"))
    found = {key: config[key] for key in _KNOWN if key in config}
    if "routes" in config:
        try:
            found["routes"] = _routes(config["routes"] or [])
        except Invalid as error:
            faults += error.faults
    if faults:
        raise Invalid(faults, "proxy")
    return found


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and not re.search(r"[\x00-\x1f\x7f]", value)


def _routes(given: Any) -> list[dict[str, Any]]:
    faults: list[Fault] = []
    found: list[dict[str, Any]] = []
    for number, route in enumerate(given if isinstance(given, list) else [None]):
        place = f"routes/{number}"
        if not isinstance(route, dict):
            faults.append(Fault(place, "must be an object {path, target}"))
            continue
        path, target = route.get("path"), route.get("target")
        if not isinstance(path, str) or not path.startswith("/") or re.search(r"[\s*]", path):
            faults.append(Fault(f"{place}/path", "must be the beginning of a path, like /api"))
        if not is_target(target):
            faults.append(Fault(f"{place}/target", "must be an http or https address"))
        found.append({"id": str(route.get("id") or route.get("route_id") or path), "path": path, "target": target})
    if faults:
        raise Invalid(faults, "proxy")
    return found


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
