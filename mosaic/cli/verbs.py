"""The verbs that nouns share: list, get, update, delete. A noun says how its records are had; the options are here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from mosaic.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE
from mosaic.cli.options import (
    ADMIN,
    Pair,
    as_option,
    etag_option,
    json_option,
    listed,
    pairs,
    with_catalog,
)
from mosaic.cli.show import show, show_one, tell
from mosaic.errors import PermissionDenied
from mosaic.protocol import Principal, Wire


@dataclass(frozen=True)
class Noun:
    """A kind of securable, as the commands know it."""

    kind: str
    columns: tuple[str, ...]
    """Of the list."""
    list: Callable[[Catalog, str | None], Sequence[Any]]
    """(the catalog, what to list in or None) -> records."""
    get: Callable[[Catalog, str], Any]
    within: str | None = "schema"
    """The kind that it stands in; None for the first level."""
    plural: str = ""
    """With an s behind the kind if it is not said."""

    def __post_init__(self) -> None:
        if not self.plural:
            object.__setattr__(self, "plural", f"{self.kind}s")


def add_list(group: click.Group, noun: Noun) -> None:
    """`list [SCHEMA]`."""
    where = f" of {noun.within.upper()}, or of all" if noun.within else ""

    @group.command("list", help=f"Show the {noun.plural}{where}, by name.")
    @with_catalog
    @listed
    @as_option
    def run(
        catalog: Catalog, as_json: bool, limit: int | None, principal: Principal, within: str | None = None
    ) -> None:
        records = seen_by(catalog, principal, noun.kind, noun.list(catalog, within))
        show(records, noun.columns, as_json, what=noun.plural, limit=limit)

    if noun.within:
        run.params.insert(0, click.Argument(["within"], required=False, metavar=f"[{noun.within.upper()}]"))


def add_get(group: click.Group, noun: Noun) -> None:
    """`get NAME`."""

    @group.command(help=f"Show all about the {noun.kind} called NAME, its tags too.")
    @with_catalog
    @json_option
    @as_option
    @click.argument("name")
    def get(catalog: Catalog, name: str, as_json: bool, principal: Principal) -> None:
        check_seen_by(catalog, principal, noun.kind, name)
        show_one(noun.get(catalog, name), as_json, tags=catalog.tags.list(noun.kind, name))


def add_update(group: click.Group, noun: Noun, update: Callable[..., Any], *, has_properties: bool = True) -> None:
    """`update NAME`; `update` is called with the catalog, the name and what is given."""

    @group.command("update", help=f"Change what is given of the {noun.kind} called NAME.")
    @with_catalog
    @click.option("--comment", help="What it is for.")
    @click.option("--owner", help="A user, service or group.")
    @etag_option
    @json_option
    @click.argument("name")
    def run(
        catalog: Catalog,
        name: str,
        comment: str | None,
        owner: str | None,
        etag: str | None,
        as_json: bool,
        properties: Sequence[tuple[str, str]] = (),
    ) -> None:
        given: dict[str, Any] = {} if comment is None else {"comment": comment}
        if properties:
            given["properties"] = pairs(properties, "--property")
        if not given and owner is None:
            raise click.UsageError("nothing is given to change; see --help")
        update(catalog, name, by=ADMIN, owner=owner, expected_etag=etag, **given)
        after = noun.get(catalog, name)
        tell(f"{noun.kind} {after.name} is changed", after, as_json)

    if has_properties:
        option = ["--property", "properties"]
        told = "A property, in place of all that it has; may be given several times."
        run.params.insert(1, click.Option(option, type=Pair(), multiple=True, help=told))


def add_delete(
    group: click.Group, noun: Noun, delete: Callable[..., None], *, forced: str | None = None, after: str = ""
) -> None:
    """`delete NAME`; with `forced`, which says what --force does, also that. `after` is added to what is told."""

    @group.command("delete", help=f"Drop the {noun.kind} called NAME; `mosaic undrop` brings it back within 7 days.")
    @with_catalog
    @etag_option
    @click.argument("name")
    def run(catalog: Catalog, name: str, etag: str | None, force: bool | None = None) -> None:
        more = {} if force is None else {"force": force}
        delete(catalog, name, by=ADMIN, expected_etag=etag, **more)
        click.echo(
            f"{noun.kind} {name.lower()} is dropped; `mosaic undrop {noun.kind} {name.lower()}` undoes it{after}"
        )

    if forced is not None:
        run.params.insert(0, click.Option(["--force"], is_flag=True, help=forced))


def made(kind: str, record: Wire, as_json: bool) -> None:
    """Tell that something was made."""
    tell(f"{kind} {record.name} is made", record, as_json)  # type: ignore[attr-defined]


def seen_by(catalog: Catalog, principal: Principal, kind: str, records: Sequence[Any]) -> list[Any]:
    """Those that a principal may BROWSE; the administrator sees all. Raises NotFound for one who is not known."""
    if principal is ADMIN:
        return list(records)
    catalog.principals.get(principal.name)
    parents = {record.name.rpartition(".")[0] or METASTORE for record in records}
    seen = {name for parent in parents for name in catalog.grants.visible(principal, kind, parent)}
    return [record for record in records if record.name in seen]


def check_seen_by(catalog: Catalog, principal: Principal, kind: str, name: str) -> None:
    """Raises NotFound with what there is, and PermissionDenied with what is missing.

    No row of the audit, since it is the administrator who looks.
    """
    if principal is ADMIN:
        catalog.grants.is_allowed(principal, BROWSE, kind, name)
        return
    catalog.principals.get(principal.name)
    told = catalog.grants.explain(principal, BROWSE, kind, name)
    if not told.allowed:
        raise PermissionDenied(f"{principal.name!r} may not see {kind} {told.name!r}: missing {told.missing}")
