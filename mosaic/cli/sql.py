"""`mosaic sql "SELECT ..."`: one statement over the catalog's tables."""

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mosaic.cli.options import ADMIN, chosen, with_settings
from mosaic.cli.show import as_cells, print_table
from mosaic.protocol import Principal

if TYPE_CHECKING:
    from mosaic.data.sql import SqlResult


@click.command()
@with_settings
@click.argument("statement")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, with a line of names.")
@click.option("--limit", "row_limit", type=int, help="At most so many rows.  [default: 10,000]")
@click.option("--timeout", "timeout_seconds", type=float, help="Stop after so many seconds.  [default: 60]")
@click.option("--write", "writable", is_flag=True, help="Allow INSERT INTO, DELETE FROM and CREATE TABLE AS.")
@click.option("--as", "principal", help="With the grants of this user or service.  [default: the administrator]")
def sql(
    file: Path | None,
    storage: str | None,
    home: str | None,
    statement: str,
    as_json: bool,
    as_csv: bool,
    row_limit: int | None,
    timeout_seconds: float | None,
    writable: bool,
    principal: str | None,
) -> None:
    """Run one STATEMENT over the catalog's tables, such as `SELECT * FROM main.docs.entries@3`."""
    if as_json and as_csv:
        raise click.UsageError("choose --json or --csv")
    from mosaic.data import Tables
    from mosaic.data.sql import Sql
    from mosaic.data.sql_types import strings
    from mosaic.monitoring.endpoint_usage import USAGE_TABLE, usage_table
    from mosaic.platform.settings import open_catalog
    from mosaic.storage import Storage

    settings = chosen(file, storage, home)
    catalog, place = open_catalog(settings), Storage(settings.storage, settings.storage_options)
    tables = Tables(place, catalog)
    computed = {USAGE_TABLE: usage_table(tables)}
    result = Sql(place, tables, catalog, base_url=settings.base_url, system_tables=computed).query(
        statement,
        principal=ADMIN if principal is None else Principal(name=principal),
        row_limit=row_limit,
        timeout_seconds=timeout_seconds,
        writable=writable,
    )
    if as_json:
        _print_json(result)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.rows.column_names)
        writer.writerows(strings(result.rows))
    else:
        _print_table(result)
    if result.truncated:
        click.echo(f"cut after {result.rows.num_rows:,} rows by the limit of {result.cut_by}; there are more", err=True)


def _print_json(result: "SqlResult") -> None:
    from mosaic.data.sql_types import as_string, plain

    names = result.rows.column_names
    for row in zip(*(plain(column) for column in result.rows.columns), strict=True):
        kept = [one if isinstance(one, bool | int | float | str) or one is None else as_string(one) for one in row]
        click.echo(json.dumps(dict(zip(names, kept, strict=True)), ensure_ascii=False))


def _print_table(result: "SqlResult") -> None:
    print_table(*as_cells(result.rows))
    versions = ", ".join(f"{table.name}@{table.version}" for table in result.read)
    click.echo(f"{result.rows.num_rows:,} rows" + (f" of {versions}" if versions else ""), err=True)
