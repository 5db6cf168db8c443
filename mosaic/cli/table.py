"""`mosaic table`: making tables, what tables there are, their versions, and their first rows."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mosaic.catalog import Table, parse_table_version
from mosaic.cli.columns import parse_columns
from mosaic.cli.options import ADMIN, as_option, described, json_option, listed, location_option, pairs, with_access
from mosaic.cli.places import choose_place
from mosaic.cli.show import as_cells, print_table, show, show_one
from mosaic.cli.verbs import Noun, add_delete, add_list, add_update, check_seen_by, made
from mosaic.errors import AlreadyExists, BadRequest, NotFound
from mosaic.protocol import Principal, Wire

if TYPE_CHECKING:
    import pyarrow as pa

    from mosaic.data.access import Access

NOUN = Noun(
    kind="table",
    columns=("name", "owner", "comment", "location", "updated_at"),
    list=lambda catalog, within: catalog.list_tables(within),
    get=lambda catalog, name: catalog.get_table(name),
)

_ROWS_ADDED = ("num_added_rows", "num_target_rows_inserted", "numOutputRows")
"""What writers call it in a commit's metrics: deltalake's append and merge, Spark."""


class Commit(Wire):
    """One version of a table, as its Delta log tells of it."""

    version: int
    at: datetime | None
    operation: str | None
    rows_added: int | None
    principal: str | None
    """Who made it."""
    run_id: str | None
    """The run that made it, of `mosaic why` and the lineage."""


@click.group()
def table() -> None:
    """Tables: make them, list them, their versions and first rows."""


@table.command()
@with_access
@click.option(
    "--column",
    "columns",
    metavar="'NAME TYPE [NOT NULL]'",
    multiple=True,
    help="A column, such as 'id BIGINT NOT NULL' or 'tags ARRAY<STRING>'; given for each, in order.",
)
@click.option("--primary-key", metavar="COLUMN", help="Whose values are all different, which writers see to.")
@location_option
@described
@click.argument("name")
def create(
    access: "Access",
    name: str,
    columns: Sequence[str],
    primary_key: str | None,
    location: str | None,
    comment: str,
    properties: Sequence[tuple[str, str]],
    owner: str,
    as_json: bool,
) -> None:
    """Make a table called NAME: an empty one, or at a location that has a Delta table that one, with its columns."""
    from deltalake import Schema

    from mosaic.data import Tables
    from mosaic.data.columns import catalog_columns
    from mosaic.data.delta import check_columns

    if access.catalog.find_table(name) is not None:
        raise AlreadyExists(f"table {name!r} already exists", param="name")
    kept = pairs(properties, "--property")
    more: dict[str, Any] = {"primary_key": primary_key, "owner": owner, "comment": comment, "properties": kept}
    address = choose_place(access, "table", name, location)
    schema = _schema_of(access, address, columns) if location else parse_columns(columns)
    if not schema:
        raise BadRequest("a table needs columns; say each in a --column such as 'id BIGINT NOT NULL'")
    if primary_key is not None:
        check_columns(schema, [primary_key], name)
    if location:
        delta = Schema.from_arrow(schema)
        access.catalog.create_table(name, address, columns=catalog_columns(delta), by=ADMIN, **more)
    made("table", Tables(access.storage, access.catalog).acting(ADMIN).create(name, schema, **more), as_json)


add_list(table, NOUN)


@table.command()
@with_access
@json_option
@as_option
@click.argument("name")
def get(access: "Access", name: str, as_json: bool, principal: Principal) -> None:
    """Show columns, location, owner, newest Delta version and tags of the table called NAME."""
    check_seen_by(access.catalog, principal, "table", name)
    record = access.catalog.get_table(name)
    show_one(record, as_json, delta_version=_newest(access, record), tags=access.catalog.tags.list("table", name))


add_update(table, NOUN, lambda catalog, name, **given: catalog.update_table(name, **given))
add_delete(table, NOUN, lambda catalog, name, **given: catalog.delete_table(name, **given))


@table.command()
@with_access
@listed
@as_option
@click.argument("name")
def history(access: "Access", name: str, as_json: bool, limit: int | None, principal: Principal) -> None:
    """Show the versions of the table called NAME with their runs, newest first, as far as its Delta log reaches."""
    check_seen_by(access.catalog, principal, "table", name)
    record = access.catalog.get_table(name)
    wanted = limit or (None if as_json else 200)
    commits = [*itertools.islice(_commits(access, record), wanted)]
    columns = ("version", "at", "operation", "rows_added", "principal", "run_id")
    show(commits, columns, as_json, what="versions")
    if len(commits) == wanted and commits[-1].version:
        click.echo(f"versions before {commits[-1].version} are not shown; --limit shows more", err=True)


@table.command()
@with_access
@json_option
@as_option
@click.option("--rows", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many.")
@click.argument("name")
def preview(access: "Access", name: str, as_json: bool, principal: Principal, rows: int) -> None:
    """Show the first rows of the table called NAME, or of one version (`main.docs.entries@3`)."""
    import pyarrow.dataset as ds

    from mosaic.data.delta import list_files

    table, version = parse_table_version(name)
    record, delta = (access if principal is ADMIN else access.acting(principal, None)).to_read(table, version)
    files = list_files(access.storage, record.location, delta)
    filesystem, _ = access.storage.filesystem(record.location)
    paths = [access.storage.filesystem(file)[1] for file in files.addresses]
    dataset = ds.dataset(paths, schema=files.schema, filesystem=filesystem, format="parquet")
    found = dataset.head(rows) if paths else files.schema.empty_table()
    if as_json:
        show(found.to_pylist(), (), as_json, what="rows")
    elif found.num_rows:
        print_table(*as_cells(found))
    else:
        click.echo("no rows", err=True)


def _schema_of(access: "Access", address: str, columns: Sequence[str]) -> "pa.Schema":
    """That of the Delta table at an external place, or what is asked for where none is."""
    from mosaic.data.delta import arrow_schema, open_delta

    asked = parse_columns(columns)
    try:
        there = arrow_schema(open_delta(access.storage, address))
    except NotFound:
        return asked
    if columns and there != asked:
        raise BadRequest(f"the Delta table at {address!r} has other columns: {_told(there)}; leave --column out")
    return there


def _told(schema: "pa.Schema") -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _newest(access: "Access", record: Table) -> int | None:
    """None while nobody has written it."""
    from mosaic.data.delta import open_delta

    try:
        return int(open_delta(access.storage, record.location).version())
    except NotFound:
        return None


def _commits(access: "Access", record: Table) -> Iterator[Commit]:
    """Newest first, by the log itself: deltalake's `history()` counts from a handle's version, wrongly once somebody
    else has committed."""
    newest = _newest(access, record)
    for version in range(-1 if newest is None else newest, -1, -1):
        try:
            content = access.storage.read_bytes(f"{record.location}/_delta_log/{version:020d}.json")
        except NotFound:
            return  # a checkpoint took the place of what is older
        said = (json.loads(line).get("commitInfo") for line in content.splitlines() if b'"commitInfo"' in line)
        yield _commit(version, next(filter(None, said), {}))


def _commit(version: int, said: Mapping[str, Any]) -> Commit:
    from mosaic.data.delta import PRINCIPAL, RUN_ID

    metrics = said.get("operationMetrics") or {}
    rows = next((metrics[name] for name in _ROWS_ADDED if name in metrics), None)
    at = said.get("timestamp")
    return Commit(
        version=version,
        at=None if at is None else datetime.fromtimestamp(at / 1000, UTC),
        operation=said.get("operation"),
        rows_added=None if rows is None else int(rows),
        principal=said.get(PRINCIPAL),
        run_id=said.get(RUN_ID),
    )
