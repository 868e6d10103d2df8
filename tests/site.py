"""A site of proxies under a test's control: workers, a bridge, a data plane, and what people configure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import redis

from orchestrator.proxies.application import Application
from orchestrator.proxies.certificates import CertificateStore
from orchestrator.proxies.registry import Proxies
from tests.planes import Origin, Plane
from tests.stack import Stack, until

STREAM, GROUP = "events:workflow", "workflow-group"


class Site:
    """A whole site: workers, a bridge, a gateway, an origin."""

    def __init__(self, stack: Stack, plane: Plane, origin: Origin, folder: Path) -> None:
        self.stack, self.plane, self.origin, self.redis = stack, plane, origin, stack.redis
        self.certificates = CertificateStore(folder / "certificates")
        self.application = Application(stack.redis)
        self.proxies = Proxies(stack.runner.database, plane.driver, self.certificates, stack.settings)

    def send(self, event: str, hostname: str | None = None, data: Any = None, **flat: str) -> str:
        entry: dict[Any, Any] = {"event_type": event, **flat}
        if hostname is not None:
            entry["hostname"] = hostname
        if data is not None:
            entry["data"] = json.dumps(data)
        return str(self.redis.xadd(STREAM, entry))

    def state(self, hostname: str) -> str | None:
        found: str | None = self.redis.get(f"workflow:state:{hostname}")
        return found

    def mode(self, hostname: str) -> str | None:
        return next((one.mode for one in self.proxies.all() if one.name == hostname and one.state == "ACTIVE"), None)

    def is_(self, hostname: str, state: str, timeout_s: float = 20) -> None:
        until(lambda: self.state(hostname) == state, timeout_s, f"{hostname} is {state}, not {self.state(hostname)}; {self.stack.logs()}")

    def quiet(self, timeout_s: float = 30) -> None:
        """Everything that was sent is done with."""

        def done() -> bool:
            try:
                group = next((g for g in self.redis.xinfo_groups(STREAM) if g["name"] == GROUP), None)
                last = self.redis.xinfo_stream(STREAM)["last-generated-id"]
            except redis.ResponseError:
                return False  # Redis was emptied, and the bridge has not made its group again
            return group is not None and group["pending"] == 0 and group["last-delivered-id"] == last

        until(done, timeout_s, f"nothing pending; {self.stack.logs()}")

    def create(self, hostname: str, **config: Any) -> None:
        self.send(
            "proxy_created", hostname, {"enable_http": True, "enable_https": False, "cert_name": None, "target": self.origin.url, **config}
        )

    def history(self, hostname: str) -> list[str]:
        return [move["to"] for move in self.proxies.moves(hostname)]

    def letters(self, hostname: str) -> list[str]:
        return [fields["reason"] for _, fields in self.redis.xrange(f"{STREAM}:dlq") if fields.get("hostname") == hostname]
