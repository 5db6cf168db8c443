"""`mosaic table`: what tables there are, their versions, and their first rows."""

import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mosaic.catalog import Table, parse_table_version
from mosaic.cli.options import ADMIN, as_option, json_option, listed, with_access
from mosaic.cli.show import show, show_one
from mosaic.cli.verbs import Noun, add_delete, add_list, add_update, check_seen_by
from mosaic.errors import NotFound
from mosaic.protocol import Principal, Wire

if TYPE_CHECKING:
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
    """Tables: what there is, their versions and first rows."""


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
    found = dataset.head(rows).to_pylist() if paths else []
    show(found, files.schema.names, as_json, what="rows", limit=rows)


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
