"""`mosaic user`: users and services."""

import click

from mosaic.catalog import Catalog
from mosaic.cli.options import ADMIN, json_option, listed, with_catalog
from mosaic.cli.show import show, tell


@click.group()
def user() -> None:
    """Users and services, which have tokens and grants."""


@user.command("list")
@with_catalog
@listed
def list_users(catalog: Catalog, as_json: bool, limit: int | None) -> None:
    """Show users and services, by name."""
    found = [one for one in catalog.principals.list() if one.kind != "group"]
    show(found, ("name", "kind", "active", "created_by", "created_at"), as_json, what="users", limit=limit)


@user.command()
@with_catalog
@click.option("--service", is_flag=True, help="A service, not a person.")
@json_option
@click.argument("name")
def create(catalog: Catalog, name: str, service: bool, as_json: bool) -> None:
    """Make a user called NAME, who may be granted to before there is a token (`mosaic token create`)."""
    record = catalog.principals.create(name, kind="service" if service else "user", by=ADMIN)
    tell(f"{record.kind} {name} is made", record, as_json)


@user.command()
@with_catalog
@json_option
@click.argument("name")
def deactivate(catalog: Catalog, name: str, as_json: bool) -> None:
    """Refuse NAME's tokens and grants from now on; what it owns and was granted stays."""
    tell(f"{name} is deactivated", catalog.principals.set_active(name, False, by=ADMIN), as_json)


@user.command()
@with_catalog
@json_option
@click.argument("name")
def activate(catalog: Catalog, name: str, as_json: bool) -> None:
    """Let NAME's tokens and grants have effect again."""
    tell(f"{name} is active", catalog.principals.set_active(name, True, by=ADMIN), as_json)
