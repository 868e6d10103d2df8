"""The data plane: what answers requests for hostnames. One small interface; drivers say how.

Everything is declared, nothing is commanded: `apply` makes a hostname be as it is described, whatever was before, and
repeated it changes nothing. No driver restarts anything for it, or touches the connections of other hostnames.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from orchestrator.errors import Retryable, Terminal


class PlaneAway(Retryable):
    """The data plane does not answer; later it may."""

    code = "plane_away"


class PortTaken(Retryable):
    """Another program has the port."""

    code = "port_taken"

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use by another program")
        self.port = port


class RefusedByPlane(Terminal):
    """What was asked for cannot be done, now or later."""

    code = "plane_refused"


@dataclass(frozen=True, slots=True)
class Route:
    """Requests whose path begins so go elsewhere; the longest beginning counts."""

    path: str
    target: str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A hostname as it shall be."""

    hostname: str
    target: str | None = None
    """Where requests go; none: the data plane itself answers that the hostname is served."""
    routes: tuple[Route, ...] = ()
    http: bool = True
    https: bool = False
    certificate: str | None = None
    """The name of a certificate the data plane was given."""
    http_port: int | None = None
    https_port: int | None = None
    """Ports of its own, beside the shared ones, where hostnames are told apart by Host and SNI."""
    headers: dict[str, str] = field(default_factory=dict)
    """Added to every answer."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Proxy:
        known = {key: value for key, value in data.items() if key in Proxy.__dataclass_fields__}
        return Proxy(**{**known, "routes": tuple(Route(**route) for route in data.get("routes") or ())})


class DataPlane(Protocol):
    def apply(self, proxy: Proxy) -> None:
        """Make it so, without a restart. Raises `PlaneAway`, `PortTaken`, `RefusedByPlane`."""

    def remove(self, hostname: str, drain_s: float) -> None:
        """Take no more requests for it, let those under way end, and close what was opened for it."""

    def put_certificate(self, name: str, chain_pem: str, key_pem: str) -> None:
        """Give it a certificate, or another under the same name: new connections see it at once."""

    def drop_certificate(self, name: str) -> None: ...

    def show(self, hostname: str) -> Proxy | None: ...

    def hostnames(self) -> list[str]: ...

    def close(self) -> None: ...
