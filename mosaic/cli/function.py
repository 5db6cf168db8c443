"""`mosaic function`: functions, made from Python source that is read and never run."""

from collections.abc import Sequence
from typing import TextIO

import click

from mosaic.catalog import Catalog
from mosaic.cli.options import ADMIN, comment_option, json_option, owner_option, pairs, property_option, with_catalog
from mosaic.cli.signature import read_function
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, made
from mosaic.errors import BadRequest

NOUN = Noun(
    kind="function",
    columns=("name", "spec.full_data_type", "spec.external_language", "owner", "comment"),
    list=lambda catalog, within: catalog.functions.list(within),
    get=lambda catalog, name: catalog.functions.get(name),
)


@click.group()
def function() -> None:
    """Functions: code with a name, a signature and an owner."""


@function.command()
@with_catalog
@click.option("--source", type=click.File(encoding="utf-8"), required=True, help="A Python file; - is stdin.")
@click.option("--def", "chosen", metavar="NAME", help="Which function of the file.  [default: its only one]")
@comment_option
@property_option
@owner_option
@json_option
@click.argument("name")
def create(
    catalog: Catalog,
    name: str,
    source: TextIO,
    chosen: str | None,
    comment: str,
    properties: Sequence[tuple[str, str]],
    owner: str,
    as_json: bool,
) -> None:
    """Make a function called NAME from a Python function with type hints, which is read and never run.

    Its docstring is the comment, unless one is given.
    """
    try:
        text = source.read()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the source in {source.name!r} is not UTF-8: {error}") from None
    read = read_function(text, chosen)
    kept = pairs(properties, "--property")
    told = comment or read.comment
    made(
        "function",
        catalog.functions.create(name, spec=read.spec, owner=owner, comment=told, properties=kept, by=ADMIN),
        as_json,
    )


add_list(function, NOUN)
add_get(function, NOUN)
add_update(function, NOUN, lambda catalog, name, **given: catalog.functions.update(name, **given))
add_delete(function, NOUN, lambda catalog, name, **given: catalog.functions.delete(name, **given))
