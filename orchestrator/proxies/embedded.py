"""The driver of the embedded gateway: its admin API."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx

from orchestrator.proxies.plane import PlaneAway, PortTaken, Proxy, RefusedByPlane

TIMEOUT_S = 10.0


class GatewayPlane:
    def __init__(self, url: str, token: str = "") -> None:  # nosec B107 # no token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def apply(self, proxy: Proxy) -> None:
        self._ask("PUT", f"/hosts/{quote(proxy.hostname)}", proxy.to_json())

    def remove(self, hostname: str, drain_s: float) -> None:
        self._ask("DELETE", f"/hosts/{quote(hostname)}?drain={drain_s:g}", timeout_s=drain_s + TIMEOUT_S)

    def put_certificate(self, name: str, chain_pem: str, key_pem: str) -> None:
        self._ask("PUT", f"/certificates/{quote(name)}", {"chain": chain_pem, "key": key_pem})

    def drop_certificate(self, name: str) -> None:
        self._ask("DELETE", f"/certificates/{quote(name)}")

    def show(self, hostname: str) -> Proxy | None:
        found = self._ask("GET", f"/hosts/{quote(hostname)}", missing=True)
        return None if found is None else Proxy.from_json(found)

    def hostnames(self) -> list[str]:
        return list(self._ask("GET", "/hosts")["hosts"])

    def _ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = TIMEOUT_S, missing: bool = False) -> Any:
        try:
            answer = self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx.TransportError as error:
            raise PlaneAway(f"the gateway's admin API does not answer: {error}") from None
        if missing and answer.status_code == 404:
            return None
        said = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
        if answer.status_code == 409:
            raise PortTaken(int(said["port"]))
        if 400 <= answer.status_code < 500:
            raise RefusedByPlane(str(said.get("message") or f"the gateway answered {answer.status_code}"))
        if answer.status_code >= 500:
            raise PlaneAway(f"the gateway answered {answer.status_code}: {said.get('message', '')}")
        return said

    def close(self) -> None:
        self._http.close()
