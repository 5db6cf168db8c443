"""`mosaic prompt`: templates with versions and aliases."""

from typing import TextIO

import click

from mosaic.catalog import Catalog
from mosaic.cli.aliases import add_aliases
from mosaic.cli.options import (
    ADMIN,
    as_option,
    comment_option,
    json_option,
    listed,
    owner_option,
    with_catalog,
)
from mosaic.cli.show import show, show_one, tell
from mosaic.cli.verbs import Noun, add_delete, add_list, add_update, check_seen_by
from mosaic.errors import BadRequest
from mosaic.protocol import Principal

NOUN = Noun(
    kind="prompt",
    columns=("name", "owner", "comment", "updated_at"),
    list=lambda catalog, within: catalog.prompts.list(within),
    get=lambda catalog, name: catalog.prompts.whole(name),
)


@click.group()
def prompt() -> None:
    """Prompts: templates with versions and aliases."""


add_list(prompt, NOUN)


@prompt.command()
@with_catalog
@json_option
@as_option
@click.argument("name")
def get(catalog: Catalog, name: str, as_json: bool, principal: Principal) -> None:
    """Show a version of a prompt: NAME is `main.ml.greeting/3`, `main.ml.greeting@live`, or a name for the newest."""
    whole = name.replace("@", "/").partition("/")[0]
    check_seen_by(catalog, principal, "prompt", whole)
    show_one(catalog.prompts.get(name), as_json)


@prompt.command()
@with_catalog
@listed
@as_option
@click.argument("name")
def versions(catalog: Catalog, name: str, as_json: bool, limit: int | None, principal: Principal) -> None:
    """Show the versions of the prompt called NAME, oldest first."""
    check_seen_by(catalog, principal, "prompt", name)
    columns = ("version", "variables", "comment", "created_by", "created_at")
    show(catalog.prompts.versions(name), columns, as_json, what="versions", limit=limit)


@prompt.command()
@with_catalog
@click.option("--template", type=click.File(encoding="utf-8"), required=True, help="Its file; - is stdin.")
@comment_option
@owner_option
@json_option
@click.argument("name")
def register(catalog: Catalog, name: str, template: TextIO, comment: str, owner: str, as_json: bool) -> None:
    """Make the next version of the prompt called NAME, which is made if it is not there."""
    try:
        text = template.read()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the template in {template.name!r} is not UTF-8: {error}") from None
    version = catalog.prompts.register(name, text, owner=owner, comment=comment, by=ADMIN)
    tell(f"prompt {version.full_name} is made", version, as_json)


add_aliases(
    prompt,
    "prompt",
    lambda catalog, name, alias, version, by: catalog.prompts.set_alias(name, alias, version, by=by),
    lambda catalog, name, alias: catalog.prompts.alias_history(name, alias),
)
add_update(prompt, NOUN, lambda catalog, name, **given: catalog.prompts.update(name, **given), has_properties=False)
add_delete(prompt, NOUN, lambda catalog, name, **given: catalog.prompts.delete(name, **given))
