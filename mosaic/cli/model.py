"""`mosaic model`: registered models, their versions and aliases."""

from datetime import datetime

import click

from mosaic.catalog import Catalog
from mosaic.cli.aliases import add_aliases
from mosaic.cli.options import Moment, as_option, json_option, listed, with_catalog
from mosaic.cli.show import show, show_one
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, check_seen_by
from mosaic.protocol import Principal

NOUN = Noun(
    kind="model",
    columns=("name", "owner", "versions", "aliases", "comment", "updated_at"),
    list=lambda catalog, within: catalog.list_models(within),
    get=lambda catalog, name: catalog.get_model(name),
)


@click.group()
def model() -> None:
    """Registered models, their versions and aliases."""


add_list(model, NOUN)
add_get(model, NOUN)
add_update(
    model, NOUN, lambda catalog, name, **given: catalog.registry.update_model(name, **given), has_properties=False
)
add_delete(
    model,
    NOUN,
    lambda catalog, name, **given: catalog.registry.delete_model(name, **given),
    forced="Also if it has versions.",
)


@model.command()
@with_catalog
@listed
@as_option
@click.argument("name")
def versions(catalog: Catalog, name: str, as_json: bool, limit: int | None, principal: Principal) -> None:
    """Show the versions of the model called NAME, oldest first."""
    check_seen_by(catalog, principal, "model", name)
    columns = ("version", "kind", "status", "base_model", "run_id", "source", "created_by", "created_at")
    show(catalog.list_model_versions(name), columns, as_json, what="versions", limit=limit)


alias = add_aliases(
    model,
    "model",
    lambda catalog, name, alias, version, by: (
        catalog.delete_alias(name, alias, principal=by)
        if version is None
        else catalog.set_alias(name, alias, version, principal=by)
    ),
    lambda catalog, name, alias: catalog.alias_history(name, alias),
)


@alias.command()
@with_catalog
@json_option
@click.argument("name")
@click.argument("alias")
@click.argument("time", type=Moment())
def at(catalog: Catalog, name: str, alias: str, time: datetime, as_json: bool) -> None:
    """Show the version that ALIAS of the model called NAME pointed at in a past TIME, such as 10:32 (today, UTC)."""
    show_one(catalog.alias_at(name, alias, time), as_json)
