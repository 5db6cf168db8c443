"""`mosaic catalog`: the first of the three levels of names."""

from collections.abc import Sequence

import click

from mosaic.catalog import Catalog
from mosaic.cli.options import ADMIN, described, pairs, with_catalog
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, made

NOUN = Noun(
    kind="catalog",
    columns=("name", "owner", "comment", "created_at"),
    list=lambda catalog, within: catalog.catalogs.list(),
    get=lambda catalog, name: catalog.catalogs.get(name),
    within=None,
)


@click.group()
def catalog() -> None:
    """Catalogs, the first of the three levels of names."""


@catalog.command()
@with_catalog
@described
@click.argument("name")
def create(
    catalog: Catalog, name: str, comment: str, properties: Sequence[tuple[str, str]], owner: str, as_json: bool
) -> None:
    """Make a catalog called NAME."""
    kept = pairs(properties, "--property")
    record = catalog.catalogs.create(name, owner=owner, comment=comment, properties=kept, by=ADMIN)
    made("catalog", record, as_json)


add_list(catalog, NOUN)
add_get(catalog, NOUN)
add_update(catalog, NOUN, lambda catalog, name, **given: catalog.catalogs.update(name, **given))
add_delete(
    catalog,
    NOUN,
    lambda catalog, name, **given: catalog.catalogs.delete(name, **given),
    forced="Also the schemas in it, and all in them; what runs stays and is refused.",
)
