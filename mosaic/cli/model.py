"""`mosaic model`: registered models, their versions and aliases."""

from datetime import datetime
from pathlib import Path

import click

from mosaic.catalog import Catalog
from mosaic.cli.aliases import add_aliases
from mosaic.cli.options import (
    ADMIN,
    Moment,
    Pair,
    as_option,
    chosen,
    comment_option,
    json_option,
    listed,
    owner_option,
    pairs,
    with_catalog,
    with_settings,
)
from mosaic.cli.show import show, show_one, tell
from mosaic.cli.verbs import Noun, add_delete, add_list, add_update, check_seen_by, made
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


@model.command()
@with_catalog
@json_option
@as_option
@click.argument("name")
def get(catalog: Catalog, name: str, as_json: bool, principal: Principal) -> None:
    """Show a model, or one version of it with its spec and checksums: NAME is `main.ml.bot`, `main.ml.bot/3` or
    `main.ml.bot@champion`."""
    whole = name.replace("@", "/").partition("/")[0]
    check_seen_by(catalog, principal, "model", whole)
    if whole != name:
        version = catalog.get_model_version(name)
        show_one(version, as_json, tags=catalog.tags.list("model", version.model, version=version.version))
        return
    show_one(catalog.get_model(name), as_json, tags=catalog.tags.list("model", name))


@model.command()
@with_catalog
@comment_option
@owner_option
@json_option
@click.argument("name")
def create(catalog: Catalog, name: str, comment: str, owner: str, as_json: bool) -> None:
    """Make a model called NAME, which has no version yet: fine-tuning and MLflow's clients register those."""
    made("model", catalog.create_model(name, owner=owner, comment=comment, by=ADMIN), as_json)


@model.command()
@with_settings
@click.option("--alias", help="An alias that then points at the version.")
@click.option("--base-model", help="What an adapter was trained on: a model's name, such as main.ml.base/1.")
@click.option("--column", "columns", type=Pair(), multiple=True, help="Of a class: a column and its type, text=string.")
@click.option("--files", type=click.Path(exists=True, file_okay=False), help="Of a class: what its load() is given.")
@json_option
@click.argument("name")
@click.argument("source")
def register(
    file: Path | None,
    storage: str | None,
    home: str | None,
    alias: str | None,
    base_model: str | None,
    columns: tuple[tuple[str, str], ...],
    files: str | None,
    as_json: bool,
    name: str,
    source: str,
) -> None:
    """Make the next version of the model called NAME of SOURCE: a folder that transformers, PEFT or MLflow wrote, or a
    Python class, `module.py:Class` (docs/serving.md). The model is made if it is not there."""
    from mosaic.platform.parts import build_parts
    from mosaic.serving.register import Models

    parts = build_parts(chosen(file, storage, home))
    typed = pairs(columns, "--column") or None
    models = Models(parts.catalog, parts.storage, parts.models, ADMIN)
    made = models.register(name, source, alias=alias, base_model=base_model, columns=typed, files=files)
    tell(f"{made.kind} {made.full_name} is registered" + (f" as @{alias}" if alias else ""), made, as_json)


add_update(
    model, NOUN, lambda catalog, name, **given: catalog.registry.update_model(name, **given), has_properties=False
)
add_delete(
    model,
    NOUN,
    lambda catalog, name, **given: catalog.registry.delete_model(name, **given),
    forced="Also if it has versions.",
)


@model.command("delete-version")
@with_catalog
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
def delete_version(catalog: Catalog, name: str, version: int) -> None:
    """Take VERSION of the model called NAME away with the aliases that name it; its files stay, nothing undoes it."""
    catalog.registry.delete_version(name, version, by=ADMIN)
    click.echo(f"version {version} of {name.lower()} is deleted")


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
