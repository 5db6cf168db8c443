"""`mosaic group`: groups of users, services and groups."""

import click

from mosaic.catalog import Catalog
from mosaic.cli.options import ADMIN, json_option, listed, with_catalog
from mosaic.cli.show import show, tell


@click.group()
def group() -> None:
    """Groups of users, services and groups, to grant to."""


@group.command("list")
@with_catalog
@listed
def list_groups(catalog: Catalog, as_json: bool, limit: int | None) -> None:
    """Show the groups, by name."""
    columns = ("name", "created_by", "created_at")
    show(catalog.principals.list("group"), columns, as_json, what="groups", limit=limit)


@group.command()
@with_catalog
@json_option
@click.argument("name")
def create(catalog: Catalog, name: str, as_json: bool) -> None:
    """Make an empty group called NAME."""
    tell(f"group {name} is made", catalog.principals.create_group(name, by=ADMIN), as_json)


@group.command()
@with_catalog
@click.argument("name")
def delete(catalog: Catalog, name: str) -> None:
    """Take the group called NAME away with its grants and memberships; one that owns something stays."""
    catalog.principals.delete_group(name, by=ADMIN)
    click.echo(f"group {name} is deleted")


@group.command()
@with_catalog
@click.argument("name")
@click.argument("member")
def add(catalog: Catalog, name: str, member: str) -> None:
    """Put MEMBER, a user, service or group, into the group called NAME."""
    catalog.principals.add_member(name, member, by=ADMIN)
    click.echo(f"{member} is in group {name}")


@group.command()
@with_catalog
@click.argument("name")
@click.argument("member")
def remove(catalog: Catalog, name: str, member: str) -> None:
    """Take MEMBER out of the group called NAME."""
    catalog.principals.remove_member(name, member, by=ADMIN)
    click.echo(f"{member} is no longer in group {name}")


@group.command()
@with_catalog
@listed
@click.argument("name")
def members(catalog: Catalog, name: str, as_json: bool, limit: int | None) -> None:
    """Show who is directly in the group called NAME."""
    found = [catalog.principals.get(member) for member in catalog.principals.members(name)]
    show(found, ("name", "kind", "active"), as_json, what="members", limit=limit)
