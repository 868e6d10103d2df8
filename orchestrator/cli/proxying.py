"""Proxies and their certificates: which there are, in which state, and why."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from orchestrator import composition
from orchestrator.app import runtime
from orchestrator.cli.console import as_json, narrowing, out, print_json, print_table
from orchestrator.proxies.application import Application
from orchestrator.proxies.certificates import LASTS_DAYS, RENEW_BEFORE_DAYS
from orchestrator.proxies.reconcile import Reconciler
from orchestrator.proxies.reconcile import reconcile as reconcile_now
from orchestrator.proxies.registry import Proxies, certificates_of
from orchestrator.starting import begin, settings

COLOURS = {"ACTIVE": "green", "FAILED": "red", "DELETED": "dim", "PENDING": "yellow"}


def _proxies() -> Proxies:
    return composition.proxies(runtime())


def _application() -> Application:
    return composition.application(settings())


def reconciler() -> Reconciler:
    return Reconciler(_application(), _proxies(), settings().reconcile_s)


@click.group(invoke_without_command=True)
@click.pass_context
def proxies(context: click.Context) -> None:
    """Reverse proxies: each hostname, its state, its ports."""
    if context.invoked_subcommand is None:
        context.invoke(list_proxies)


@proxies.command("ls")
@click.option("--state", callback=narrowing)
@as_json
def list_proxies(state: str | None, as_json: bool) -> None:
    found = _proxies().all(state.upper() if state else None)
    rows = [
        {
            "hostname": one.name,
            "state": one.state,
            "mode": one.mode,
            "http": (one.data.get("ports") or {}).get("http"),
            "https": (one.data.get("ports") or {}).get("https"),
            "certificate": (one.data.get("certificate") or {}).get("name"),
            "changed_at": one.changed_at,
            "id": one.id,
        }
        for one in found
    ]
    if as_json:
        print_json(rows)
        return
    columns = {
        "hostname": "HOSTNAME",
        "state": "STATE",
        "mode": "MODE",
        "http": "HTTP",
        "https": "HTTPS",
        "certificate": "CERTIFICATE",
        "changed_at": "SINCE",
    }
    cells = {"state": lambda state: f"[{COLOURS.get(state, 'cyan')}]{state}[/]"}
    print_table(rows, columns, empty="no proxies; POST /api/proxies makes one, or XADD events:workflow", cells=cells)


@proxies.command("show")
@click.argument("hostname")
def show_proxy(hostname: str) -> None:
    """One proxy: how it is, and how it came to be so."""
    current = _proxies()
    found = current.find(hostname)
    out.print(f"[bold]{escape(found.name)}[/]  [{COLOURS.get(found.state, 'cyan')}]{found.state}[/] {found.mode or ''}  [dim]{found.id}[/]")
    for name, value in {**(found.data.get("wish") or {}), **{f"port {k}": v for k, v in (found.data.get("ports") or {}).items()}}.items():
        out.print(f"[dim]{name:<14}[/] {escape(str(value))}")
    if found.error:
        out.print(f"[red]{escape(str(found.error.get('message', found.error)))}[/]")
    rows = [{**move, "why": (move["detail"] or {}).get("error", {}).get("message", "")} for move in current.moves(hostname)]
    print_table(rows, {"at": "AT", "from": "FROM", "to": "TO", "instance": "BY", "why": "WHY"}, empty="")


@proxies.command()
def reconcile() -> None:
    """Publish events again for what failed, is stuck, missing, or could have HTTPS by now."""
    published = reconcile_now(_application(), _proxies())
    for hostname, event in published.items():
        click.echo(f"{event} {hostname}")
    if not published:
        click.echo("nothing to put right")


@click.group(invoke_without_command=True)
@click.pass_context
def certificates(context: click.Context) -> None:
    """Certificates: issued here or imported, announced when they are ready."""
    if context.invoked_subcommand is None:
        context.invoke(list_certificates)


@certificates.command("ls")
@as_json
def list_certificates(as_json: bool) -> None:
    rows = [one.about() for one in certificates_of(settings()).all()]
    if as_json:
        print_json(rows)
        return
    shown = [{**row, "domains": ", ".join(row["domains"]), "issued": "here" if row["self_signed"] else "elsewhere"} for row in rows]
    columns = {"name": "NAME", "status": "STATUS", "domains": "DOMAINS", "not_after": "UNTIL", "issued": "ISSUED", "serial": "SERIAL"}
    print_table(shown, columns, empty="no certificates; `orchestrator certificates issue HOSTNAME` makes a self-signed one")


@certificates.command()
@click.argument("domains", nargs=-1, required=True)
@click.option("--name", help="Its name; else that of the first domain.")
@click.option("--days", default=LASTS_DAYS, show_default=True, type=click.IntRange(1, 825))
@click.option("--quiet", is_flag=True, help="Do not announce it.")
def issue(domains: tuple[str, ...], name: str | None, days: int, quiet: bool) -> None:
    """Issue a self-signed certificate and announce it: `certificate_ready`."""
    made = certificates_of(settings()).issue(name or domains[0], domains, days=days)
    click.echo(f"issued {made.name}, serial {made.serial}, until {made.ends:%Y-%m-%d}")
    if not quiet:
        _application().certificate_made(made.name, made.domains)


@certificates.command("import")
@click.argument("name")
@click.argument("chain", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--quiet", is_flag=True, help="Do not announce it.")
def import_certificate(name: str, chain: Path, key: Path, quiet: bool) -> None:
    """Take a certificate that somebody else issued, as PEM, and announce it."""
    store = certificates_of(settings())
    is_renewal = any(one.name == name for one in store.all())
    made = store.put(name, chain.read_text(), key.read_text())
    click.echo(f"imported {made.name} for {', '.join(made.domains)}: {made.status} until {made.ends:%Y-%m-%d}")
    if not quiet:
        _application().certificate_made(made.name, made.domains, is_renewal=is_renewal)


@certificates.command()
@click.argument("names", nargs=-1)
@click.option("--before-days", default=RENEW_BEFORE_DAYS, show_default=True, help="Without names: all that end within so many days.")
def renew(names: tuple[str, ...], before_days: int) -> None:
    """Renew certificates that were issued here, and announce them. For a daily job."""
    store = certificates_of(settings())
    for name in names or [one.name for one in store.due(before_days)]:
        made = store.renew(name)
        _application().certificate_made(made.name, made.domains, is_renewal=True)
        click.echo(f"renewed {made.name} until {made.ends:%Y-%m-%d}")


@click.command()
def gateway() -> None:
    """The embedded gateway: serves proxies, changes without a restart. SIGTERM lets requests under way end."""
    import asyncio
    from urllib.parse import urlsplit

    from orchestrator.gateway.server import Listens, serve

    held = begin("gateway")
    admin = urlsplit(held.gateway_admin_url)
    listens = Listens(
        host=held.gateway_host,
        http_port=held.gateway_http_port,
        https_port=held.gateway_https_port,
        admin_host=admin.hostname or "127.0.0.1",
        admin_port=admin.port or 9180,
        token=held.gateway_token,
    )
    if not listens.token and listens.admin_host not in ("127.0.0.1", "localhost", "::1"):
        raise click.UsageError(f"GATEWAY_ADMIN_URL is {held.gateway_admin_url}, which is not on loopback: set GATEWAY_TOKEN")
    asyncio.run(serve(listens, Path(held.gateway_state) if held.gateway_state else None))


COMMANDS = [proxies, certificates, gateway]
