"""`mosaic search`, `mosaic dropped`, `mosaic undrop`: finding things of any kind, and bringing back what was gone."""

from collections.abc import Sequence

import click

from mosaic.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.cli.grants import on_a_securable
from mosaic.cli.options import ADMIN, as_option, json_option, listed, with_catalog
from mosaic.cli.show import show
from mosaic.protocol import Principal

_KINDS = [kind for kind in PRIVILEGES if kind != METASTORE]


@click.command()
@with_catalog
@click.option(
    "--kind", "kinds", metavar="KIND", type=click.Choice(_KINDS), multiple=True, help="Only this kind; may be repeated."
)
@click.option("--tag", "tags", metavar="KEY[=VALUE]", multiple=True, help="Only what has this tag; may be repeated.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1000), default=200, show_default=True, help="Show at most so many."
)
@json_option
@as_option
@click.argument("words", nargs=-1)
def search(
    catalog: Catalog,
    words: Sequence[str],
    kinds: Sequence[str],
    tags: Sequence[str],
    limit: int,
    as_json: bool,
    principal: Principal,
) -> None:
    """Show what has all WORDS in its name or comment, by kind and name."""
    if principal is not ADMIN:
        catalog.principals.get(principal.name)
    wanted = {key: value if equals else None for key, equals, value in (tag.partition("=") for tag in tags)}
    asked = {"principal": principal, "kinds": kinds, "tags": wanted}
    found = catalog.search(" ".join(words), limit=limit, **asked)  # type: ignore[arg-type]
    show(found, ("kind", "name", "owner", "tags", "comment"), as_json, what="hits")
    if len(found) == limit:
        click.echo(f"only the first {limit} hits are shown; --limit shows up to 1000", err=True)


@click.command()
@with_catalog
@listed
def dropped(catalog: Catalog, as_json: bool, limit: int | None) -> None:
    """Show what was dropped and whose data is still there, oldest first."""
    columns = ("kind", "name", "deleted_at", "deleted_by", "location")
    show(catalog.dropped(), columns, as_json, what="dropped things", limit=limit)


@click.command()
@with_catalog
@on_a_securable
def undrop(catalog: Catalog, kind: str, name: str) -> None:
    """Bring back the KIND called NAME, and all that was dropped with it, within 7 days."""
    catalog.undrop(kind, name, by=ADMIN)
    click.echo(f"{kind} {name} is back")
