"""`mosaic tag`: keys with values on anything in the catalog."""

from collections.abc import Sequence

import click

from mosaic.catalog import Catalog
from mosaic.cli.grants import on_a_securable
from mosaic.cli.options import ADMIN, Pair, json_option, pairs, together, with_catalog
from mosaic.cli.show import show, tell

version_option = click.option("--version", type=click.IntRange(min=1), help="On this version of a model or prompt.")
tagged = together(version_option, json_option, on_a_securable)
"""KIND NAME, perhaps at a version."""


@click.group()
def tag() -> None:
    """Tags: keys with values on anything in the catalog, to search by."""


@tag.command("set")
@with_catalog
@tagged
@click.argument("tags", metavar="KEY=VALUE...", type=Pair(), nargs=-1, required=True)
def set_tags(
    catalog: Catalog, kind: str, name: str, tags: Sequence[tuple[str, str]], version: int | None, as_json: bool
) -> None:
    """Put tags on the KIND called NAME, or give those that are there another value."""
    after = catalog.tags.set(kind, name, pairs(tags, "tag"), version=version, by=ADMIN)
    tell(f"{kind} {name} has {_told(after)}", after, as_json)


@tag.command()
@with_catalog
@tagged
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def remove(catalog: Catalog, kind: str, name: str, keys: Sequence[str], version: int | None, as_json: bool) -> None:
    """Take the tags with these keys from the KIND called NAME."""
    after = catalog.tags.remove(kind, name, keys, version=version, by=ADMIN)
    tell(f"{kind} {name} has {_told(after)}", after, as_json)


@tag.command("list")
@with_catalog
@tagged
def list_tags(catalog: Catalog, kind: str, name: str, version: int | None, as_json: bool) -> None:
    """Show the tags of the KIND called NAME; as JSON one object, key to value."""
    tags = catalog.tags.list(kind, name, version=version)
    if as_json:
        tell("", tags, as_json)
    else:
        show([{"key": key, "value": value} for key, value in tags.items()], ("key", "value"), False, what="tags")


def _told(tags: dict[str, str]) -> str:
    return f"the tags {', '.join(sorted(tags))}" if tags else "no tags"
