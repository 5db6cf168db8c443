"""`mosaic grants` (or `mosaic grant`): who may do what, and why."""

from typing import Any

import click

from mosaic.catalog import Catalog
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.cli.options import ADMIN, json_option, listed, together, with_catalog
from mosaic.cli.show import as_plain, dumped, show

__all__ = ["ADMIN", "grants", "on_a_securable"]

of_a_principal = together(click.argument("principal"), click.argument("privilege"))
"""PRINCIPAL PRIVILEGE"""

on_a_securable = together(
    click.argument("kind", metavar="KIND", type=click.Choice(list(PRIVILEGES))), click.argument("name")
)
"""KIND NAME"""


@click.group()
def grants() -> None:
    """Who may do what, and why."""


@grants.command()
@with_catalog
@of_a_principal
@on_a_securable
def add(catalog: Catalog, principal: str, privilege: str, kind: str, name: str) -> None:
    """Grant PRIVILEGE on the KIND called NAME to PRINCIPAL, a user, service or group."""
    catalog.grants.grant(kind, name, principal, [privilege], by=ADMIN)
    click.echo(f"{principal} has {privilege.upper()} on {kind} {name}")


@grants.command()
@with_catalog
@of_a_principal
@on_a_securable
def remove(catalog: Catalog, principal: str, privilege: str, kind: str, name: str) -> None:
    """Take back what was granted on the KIND called NAME itself; it holds for the next request."""
    catalog.grants.revoke(kind, name, principal, [privilege], by=ADMIN)
    click.echo(f"{principal} no longer has {privilege.upper()} granted on {kind} {name}")


@grants.command("list")
@with_catalog
@listed
@click.option("--principal", help="Only what this user, service or group itself was granted.")
@on_a_securable
def list_grants(
    catalog: Catalog, kind: str, name: str, principal: str | None, as_json: bool, limit: int | None
) -> None:
    """Show what is granted on the KIND called NAME itself."""
    found = catalog.grants.list(kind, name, principal)
    columns = ("principal", "privilege", "granted_by", "granted_at")
    show(found, columns, as_json, what="grants", limit=limit)


@grants.command()
@with_catalog
@listed
@click.argument("principal")
@on_a_securable
def effective(catalog: Catalog, principal: str, kind: str, name: str, as_json: bool, limit: int | None) -> None:
    """Show every privilege that PRINCIPAL holds on the KIND called NAME, and from where."""
    found = catalog.grants.effective(principal, kind, name)
    if as_json:
        show(found, (), as_json, what="privileges", limit=limit)
    else:
        rows: list[dict[str, Any]] = [
            {"privilege": one.privilege, "usable": one.usable, "because": str(one.reason)} for one in found
        ]
        show(rows, ("privilege", "usable", "because"), as_json, what="privileges", limit=limit)


@grants.command()
@with_catalog
@json_option
@of_a_principal
@on_a_securable
def explain(catalog: Catalog, principal: str, privilege: str, kind: str, name: str, as_json: bool) -> None:
    """Say why PRINCIPAL has PRIVILEGE on the KIND called NAME, or what is missing; ends with 1 if it has not."""
    told = catalog.grants.explain(principal, privilege, kind, name)
    click.echo(dumped(as_plain(told)) if as_json else str(told))
    if not told.allowed:
        raise SystemExit(1)
