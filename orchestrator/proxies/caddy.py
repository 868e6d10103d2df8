"""The driver of Caddy: its admin API, which takes changes of the configuration without a restart.

One server for all hostnames on the shared ports, told apart by Host and SNI, and one for each hostname's own ports.
Certificates are given as PEM; Caddy obtains none by itself here. Changes are made one at a time, each on the
configuration as it was read (`If-Match`): of two who change at once the second reads again.

Caddy 2.6 takes every change by loading the whole configuration anew: requests to targets that are under way are cut, and
a connection that is just being accepted may be reset; and of the servers that it lets go, each may accept one connection
more, however late, and answer as before. Those connections are ours: see `_settle`. The embedded gateway does none of it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import httpx

from orchestrator.proxies.plane import PlaneAway, PortTaken, Proxy, RefusedByPlane

TIMEOUT_S = 30.0
MARK = "orchestrator"
TRIES = 10
PATIENCE = 10
SETTLES_S = 0.15
# A new server and the one before it take turns; the one before takes one turn at most.
TOUCHES = 4
TOUCHES_EVERY_S = 0.01


class CaddyPlane:
    def __init__(self, url: str, *, host: str = "127.0.0.1", http_port: int = 8080, https_port: int = 8443, drain_s: float = 30.0) -> None:
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False, headers={"origin": url})
        self.host, self.http_port, self.https_port, self.drain_s = host, http_port, https_port, drain_s

    def apply(self, proxy: Proxy) -> None:
        def change(config: dict[str, Any]) -> None:
            if proxy.https and not _certificate(config, proxy.certificate):
                raise RefusedByPlane(f"no certificate '{proxy.certificate}' was given to the data plane")
            _without(config, proxy.hostname)
            apps = config["apps"]["http"]["servers"]
            handle = _handlers(proxy)
            for scheme, wanted, own in (("http", proxy.http, proxy.http_port), ("https", proxy.https, proxy.https_port)):
                if not wanted:
                    continue
                apps[f"shared-{scheme}"]["routes"].append(
                    {"@id": f"{MARK}-{scheme}-{proxy.hostname}", "match": [{"host": [proxy.hostname]}], "handle": handle, "terminal": True}
                )
                policy = {"match": {"sni": [proxy.hostname]}, "certificate_selection": {"any_tag": [str(proxy.certificate)]}}
                if scheme == "https":
                    apps["shared-https"]["tls_connection_policies"].insert(0, policy)
                if own:
                    apps[f"{scheme}-{proxy.hostname}"] = {
                        "listen": [f"{self.host}:{own}"],
                        "routes": [{"handle": handle}],
                        "automatic_https": {"disable": True},
                        **(
                            {"tls_connection_policies": [{"certificate_selection": policy["certificate_selection"]}]}
                            if scheme == "https"
                            else {}
                        ),
                    }
            _remember(config, proxy)

        self._change(change, proxy.http_port, proxy.https_port)

    def remove(self, hostname: str, drain_s: float) -> None:
        # Requests under way end by themselves: servers that go away wait for theirs (grace_period).
        self._change(lambda config: _without(config, hostname))

    def put_certificate(self, name: str, chain_pem: str, key_pem: str) -> None:
        def change(config: dict[str, Any]) -> None:
            held = config["apps"]["tls"]["certificates"]["load_pem"]
            held[:] = [one for one in held if name not in one.get("tags", ())]
            held.append({"certificate": chain_pem, "key": key_pem, "tags": [name]})

        self._change(change)

    def drop_certificate(self, name: str) -> None:
        def change(config: dict[str, Any]) -> None:
            held = config["apps"]["tls"]["certificates"]["load_pem"]
            held[:] = [one for one in held if name not in one.get("tags", ())]

        self._change(change)

    def show(self, hostname: str) -> Proxy | None:
        config, _ = self._config()
        found = _remembered(config).get(hostname)
        return None if found is None else Proxy.from_json(found)

    def hostnames(self) -> list[str]:
        config, _ = self._config()
        return sorted(_remembered(config))

    def close(self) -> None:
        self._http.close()

    # ── the configuration ───────────────────────────────────────────────────────────────────────────────────────────

    def _config(self) -> tuple[dict[str, Any], str]:
        answer = self._ask("GET")
        if answer.status_code != 200:
            raise PlaneAway(f"Caddy answered {answer.status_code}: {answer.text[:300]}")
        config: dict[str, Any] = answer.json() or {}
        apps = config.setdefault("apps", {})
        http = apps.setdefault("http", {})
        http.setdefault("grace_period", int(self.drain_s * 1e9))
        servers = http.setdefault("servers", {})
        for scheme, port in (("http", self.http_port), ("https", self.https_port)):
            servers.setdefault(
                f"shared-{scheme}",
                {
                    "listen": [f"{self.host}:{port}"],
                    "routes": [],
                    "automatic_https": {"disable": True},
                    **({"tls_connection_policies": [{}]} if scheme == "https" else {}),
                },
            )
            servers[f"shared-{scheme}"].setdefault("routes", [])
        apps.setdefault("tls", {}).setdefault("certificates", {}).setdefault("load_pem", [])
        return config, answer.headers.get("etag", "")

    def _ask(self, method: str, **more: Any) -> httpx.Response:
        """Each change replaces the admin API's listener, too: for a moment nobody may answer. What was done is seen then."""
        failed: Exception | None = None
        for _ in range(PATIENCE):
            try:
                return self._http.request(method, "/config/", **more)
            except httpx.TimeoutException as error:
                raise PlaneAway(f"Caddy's admin API does not answer: {error}") from None
            except httpx.TransportError as error:
                failed = error
                time.sleep(0.05)  # the new listener is there within milliseconds
        raise PlaneAway(f"Caddy's admin API does not answer: {failed}") from None

    def _change(self, change: Any, *own_ports: int | None) -> None:
        for _ in range(TRIES):
            config, etag = self._config()
            before = json.dumps(config, sort_keys=True)
            change(config)
            if json.dumps(config, sort_keys=True) == before:
                return
            answer = self._ask("POST", json=config, headers={"if-match": etag} if etag else {})
            if answer.status_code == 200:
                # It answers a moment before it has let go of its old listeners, which still serve what was before.
                time.sleep(SETTLES_S)
                self._settle(self.http_port, self.https_port, *own_ports)
                return
            if answer.status_code != 412:
                raise _refusal(answer.text)
        raise PlaneAway("others change Caddy's configuration all the time")

    def _settle(self, *ports: int | None) -> None:
        """Connections without a request, for servers of the configuration before that still accept one."""
        for _ in range(TOUCHES):
            for port in filter(None, ports):
                with contextlib.suppress(OSError):
                    socket.create_connection((self._http.base_url.host, port), 1).close()
            time.sleep(TOUCHES_EVERY_S)


def _refusal(text: str) -> Exception:
    if "address already in use" in text:
        port = text.split("address already in use")[0].rstrip(": bind").rsplit(":", 1)[-1]
        return PortTaken(int(port)) if port.isdigit() else PlaneAway(text[:500])
    return RefusedByPlane(f"Caddy refused it: {text[:500]}")


def _handlers(proxy: Proxy) -> list[dict[str, Any]]:
    routes = sorted(proxy.routes, key=lambda route: -len(route.path))
    found = [{"match": [{"path": _under(route.path)}], "handle": [_upstream(route.target)], "terminal": True} for route in routes]
    if proxy.target:
        found.append({"handle": [_upstream(proxy.target)]})
    else:
        body = json.dumps({"hostname": proxy.hostname, "status": "served"})
        found.append(
            {
                "handle": [
                    {"handler": "static_response", "status_code": 200, "headers": {"Content-Type": ["application/json"]}, "body": body}
                ]
            }
        )
    headers = [{"handler": "headers", "response": {"set": {k: [v] for k, v in proxy.headers.items()}}}] if proxy.headers else []
    return [*headers, {"handler": "subroute", "routes": found}]


def _under(path: str) -> list[str]:
    """The path itself and what is below it: `/api` and `/api/x`, not `/apix`."""
    base = path.rstrip("/")
    return [base, f"{base}/*"] if base else ["/*"]


def _upstream(target: str) -> dict[str, Any]:
    url = httpx.URL(target)
    made: dict[str, Any] = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"}],
        "flush_interval": -1,
    }
    if url.scheme == "https":
        made["transport"] = {"protocol": "http", "tls": {}}
    if url.path not in ("", "/"):
        made["rewrite"] = {"uri": url.path.rstrip("/") + "{http.request.uri}"}
    return made


def _without(config: dict[str, Any], hostname: str) -> None:
    servers = config["apps"]["http"]["servers"]
    for scheme in ("http", "https"):
        shared = servers[f"shared-{scheme}"]
        shared["routes"] = [route for route in shared["routes"] if route.get("@id") != f"{MARK}-{scheme}-{hostname}"]
        servers.pop(f"{scheme}-{hostname}", None)
    policies = servers["shared-https"]["tls_connection_policies"]
    policies[:] = [policy for policy in policies if hostname not in policy.get("match", {}).get("sni", ())]
    _memory(config).pop(hostname, None)


# What was asked for stands beside what came of it, in a route that never matches.


def _memory(config: dict[str, Any]) -> dict[str, Any]:
    servers = config["apps"]["http"]["servers"]
    routes = servers["shared-http"]["routes"]
    for route in routes:
        if route.get("@id") == f"{MARK}-memory":
            return _Memory(route)
    route = {"@id": f"{MARK}-memory", "match": [{"not": [{}]}], "handle": [{"handler": "static_response", "body": "{}"}]}
    routes.insert(0, route)
    return _Memory(route)


class _Memory(dict[str, Any]):
    """Written through to the route's body."""

    def __init__(self, route: dict[str, Any]) -> None:
        super().__init__(json.loads(route["handle"][0]["body"]))
        self._route = route

    def _write(self) -> None:
        self._route["handle"][0]["body"] = json.dumps(dict(self), sort_keys=True)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._write()

    def pop(self, key: str, *default: Any) -> Any:
        found = super().pop(key, *default)
        self._write()
        return found


def _remember(config: dict[str, Any], proxy: Proxy) -> None:
    _memory(config)[proxy.hostname] = proxy.to_json()


def _remembered(config: dict[str, Any]) -> dict[str, Any]:
    return dict(_memory(config))


def _certificate(config: dict[str, Any], name: str | None) -> bool:
    return any(name in one.get("tags", ()) for one in config["apps"]["tls"]["certificates"]["load_pem"])
