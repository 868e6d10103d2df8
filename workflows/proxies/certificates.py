"""Certificates of proxies: one event for several hostnames, and renewal."""

from __future__ import annotations

from typing import Any

from orchestrator import Workflow, composition, step
from orchestrator.proxies.registry import certificates_of
from orchestrator.starting import settings
from orchestrator.workflows.proxies.life_cycle import THRICE


@step(type="certificates.announce_each", retry=THRICE, timeout="30s")
def announce_each(domains: list[str], cert_name: str, is_renewal: Any = False) -> dict[str, int]:
    """One event for each hostname, so that each keeps its own order."""
    application = composition.application(settings())
    for domain in domains:
        application.certificate_ready(cert_name, domain, is_renewal=str(is_renewal).lower() == "true")
    return {"announced": len(domains)}


@step(type="certificates.renew", retry=THRICE, timeout="30s")
def renew(cert_name: str | None = None, hostname: str | None = None) -> dict[str, Any]:
    """Issue the successor; announce it to every hostname it is for."""
    made = certificates_of(settings()).renew(str(cert_name or hostname))
    composition.application(settings()).certificate_made(made.name, made.domains, is_renewal=True)
    return {"serial": made.serial, "not_after": made.ends.isoformat()}


certificate_for_domains = Workflow("certificate-for-domains", title="Announce a certificate to each of its hostnames").then(announce_each)
certificate_renewal = Workflow("certificate-renewal", title="Renew a certificate and announce it").then(renew)
