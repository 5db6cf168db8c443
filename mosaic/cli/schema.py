"""`mosaic schema`: the second of the three levels of names."""

from collections.abc import Sequence

import click

from mosaic.catalog import Catalog
from mosaic.cli.options import ADMIN, described, pairs, with_catalog
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, made

NOUN = Noun(
    kind="schema",
    columns=("name", "owner", "comment", "created_at"),
    list=lambda catalog, within: catalog.list_schemas() if within is None else catalog.schemas.list(within),
    get=lambda catalog, name: catalog.schemas.get(name),
    within="catalog",
)


@click.group()
def schema() -> None:
    """Schemas, which hold tables, models and all else."""


@schema.command()
@with_catalog
@described
@click.argument("name")
def create(
    catalog: Catalog, name: str, comment: str, properties: Sequence[tuple[str, str]], owner: str, as_json: bool
) -> None:
    """Make a schema called NAME in a catalog that exists."""
    kept = pairs(properties, "--property")
    made("schema", catalog.schemas.create(name, owner=owner, comment=comment, properties=kept, by=ADMIN), as_json)


add_list(schema, NOUN)
add_get(schema, NOUN)
add_update(schema, NOUN, lambda catalog, name, **given: catalog.schemas.update(name, **given))
add_delete(
    schema,
    NOUN,
    lambda catalog, name, **given: catalog.schemas.delete(name, **given),
    forced="Also all that is in it; what runs stays and is refused.",
)
