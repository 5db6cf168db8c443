"""The commands about aliases, the same for models and prompts."""

from collections.abc import Callable, Sequence

import click

from mosaic.catalog import AliasEvent, Catalog
from mosaic.cli.options import ADMIN, listed, with_catalog
from mosaic.cli.show import show
from mosaic.protocol import Principal


def add_aliases(
    group: click.Group,
    kind: str,
    set_alias: Callable[[Catalog, str, str, int | None, Principal], None],
    history: Callable[[Catalog, str, str | None], Sequence[AliasEvent]],
) -> click.Group:
    """`alias set|remove|history`; `set_alias` takes None for a version to remove the alias."""

    @group.group(help=f"Names for versions of a {kind}, and what they named when.")
    def alias() -> None: ...

    @alias.command("set", help=f"Point ALIAS of the {kind} called NAME at VERSION.")
    @with_catalog
    @click.argument("name")
    @click.argument("alias")
    @click.argument("version", type=click.IntRange(min=1))
    def run_set(catalog: Catalog, name: str, alias: str, version: int) -> None:
        set_alias(catalog, name, alias, version, ADMIN)
        click.echo(f"{name.lower()}@{alias.lower()} is version {version}")

    @alias.command("remove", help=f"Take ALIAS from the {kind} called NAME; its history stays.")
    @with_catalog
    @click.argument("name")
    @click.argument("alias")
    def run_remove(catalog: Catalog, name: str, alias: str) -> None:
        set_alias(catalog, name, alias, None, ADMIN)
        click.echo(f"{name.lower()}@{alias.lower()} is removed")

    @alias.command("history", help=f"Show every change of the aliases of the {kind} called NAME, or of ALIAS.")
    @with_catalog
    @listed
    @click.argument("name")
    @click.argument("alias", required=False)
    def run_history(catalog: Catalog, name: str, alias: str | None, as_json: bool, limit: int | None) -> None:
        events = history(catalog, name, alias)
        show(events, ("at", "alias", "version", "principal"), as_json, what="changes", limit=limit)

    return alias
