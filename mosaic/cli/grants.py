"""`mosaic grants`: who may do what, and why."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mosaic.catalog import Catalog
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.cli.platform import chosen, with_settings
from mosaic.platform.parts import build_parts
from mosaic.protocol import Principal

ADMIN = Principal(name="admin", is_admin=True)
"""Whoever reaches the catalog's database from a terminal is its administrator."""


def of_a_principal(command: Any) -> Any:
    """PRINCIPAL PRIVILEGE"""
    return click.argument("principal")(click.argument("privilege")(command))


def on_a_securable(command: Any) -> Any:
    """KIND NAME"""
    return click.argument("kind", type=click.Choice(list(PRIVILEGES)))(click.argument("name")(command))


@click.group()
def grants() -> None:
    """Who may do what, and why."""


@grants.command()
@with_settings
@of_a_principal
@on_a_securable
def add(
    file: Path | None, storage: str | None, home: str | None, principal: str, privilege: str, kind: str, name: str
) -> None:
    """Grant PRIVILEGE on the KIND called NAME to PRINCIPAL, a user, service or group."""
    _catalog(file, storage, home).grants.grant(kind, name, principal, [privilege], by=ADMIN)
    click.echo(f"{principal} has {privilege.upper()} on {kind} {name}")


@grants.command()
@with_settings
@of_a_principal
@on_a_securable
def remove(
    file: Path | None, storage: str | None, home: str | None, principal: str, privilege: str, kind: str, name: str
) -> None:
    """Take back what was granted on the KIND called NAME itself; it holds for the next request."""
    _catalog(file, storage, home).grants.revoke(kind, name, principal, [privilege], by=ADMIN)
    click.echo(f"{principal} no longer has {privilege.upper()} granted on {kind} {name}")


@grants.command("list")
@with_settings
@on_a_securable
def list_grants(file: Path | None, storage: str | None, home: str | None, kind: str, name: str) -> None:
    """Show what is granted on the KIND called NAME itself."""
    table = Table("principal", "privilege", "granted by", "at", box=None)
    for grant in _catalog(file, storage, home).grants.list(kind, name):
        table.add_row(grant.principal, grant.privilege, grant.granted_by, f"{grant.granted_at:%Y-%m-%d %H:%M:%S}")
    Console().print(table)


@grants.command()
@with_settings
@of_a_principal
@on_a_securable
def explain(
    file: Path | None, storage: str | None, home: str | None, principal: str, privilege: str, kind: str, name: str
) -> None:
    """Say why PRINCIPAL has PRIVILEGE on the KIND called NAME, or what is missing; ends with 1 if it has not."""
    told = _catalog(file, storage, home).grants.explain(principal, privilege, kind, name)
    click.echo(str(told))
    if not told.allowed:
        raise SystemExit(1)


def _catalog(file: Path | None, storage: str | None, home: str | None) -> Catalog:
    return build_parts(chosen(file, storage, home)).catalog
