"""The rows that an answer was given, and the raw document that each of them was read from.

An ingestion that reads thousands of files has one source as its input, whose detail names a manifest: a table at a
version, with a row for each file (`uri`, `sha256`, ...). A row's own `source`, up to a `#`, is the uri of its file.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from mosaic.catalog import Catalog, LineageNode, parse_table_version
from mosaic.data import Tables
from mosaic.data.delta import arrow_schema, check_columns
from mosaic.errors import MosaicError, Unavailable
from mosaic.monitoring.viewer import Viewer

ORIGIN_COLUMNS = ("source", "uri", "url", "sha256")
"""Columns of a table that say where a row is from."""
MANIFESTS_LOOKED_AT = 32
"""So many manifests are searched for the files of an answer's rows, each costing a read of its uris."""
Seen = tuple[str, str, int | None, str | None]
_MANIFEST_COLUMNS = ("uri", "sha256", "file", "bytes", "error")


def document_of(row: Mapping[str, Any]) -> str:
    """The uri of the file that a row was read from; empty if the row does not say."""
    return str(row.get("source") or row.get("uri") or row.get("url") or "").partition("#")[0]


def find_documents(
    tables: Tables, catalog: Catalog, viewer: Viewer, table: LineageNode, rows: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What the manifests behind a table's version say of the files of these rows, by uri.

    The newest manifest that lists a file counts; after MANIFESTS_LOOKED_AT of them the rest is left.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = {uri for row in rows if (uri := document_of(row))}
    for manifest, source in itertools.islice(_manifests(table, set()), MANIFESTS_LOOKED_AT):
        missing = sorted(wanted - found.keys())
        if not missing:
            break
        name, version = parse_table_version(manifest)
        if not viewer.may("SELECT", "table", name) or not _still_lists(catalog, name, version, source):
            continue
        try:
            listed = read_rows(tables, name, version, "uri", missing, _MANIFEST_COLUMNS)
        except MosaicError:
            continue  # it was dropped, or its files were removed
        for uri, facts in listed.items():
            known = {key: value for key, value in facts.items() if value is not None}
            found[uri] = {**known, "listed_in": manifest}
    return found


def read_rows(
    tables: Tables,
    table: str,
    version: int | None,
    key: str,
    ids: list[str],
    columns: tuple[str, ...] = ORIGIN_COLUMNS,
) -> dict[str, dict[str, Any]]:
    """Those of the columns that the table has, of the rows with these keys; files without one are not read."""
    delta = tables.delta(table, version)
    check_columns(arrow_schema(delta), [key], table)
    chosen = [name for name in columns if name in arrow_schema(delta).names and name != key]
    column = (
        f'"{key}"'
        if pa.schema(delta.schema().to_arrow()).field(key).type == pa.string()
        else f'CAST("{key}" AS VARCHAR)'
    )
    wanted = ", ".join("'" + entry_id.replace("'", "''") + "'" for entry_id in ids)
    try:
        found = pa.table(delta.scan(columns=[key, *chosen], predicate=f"{column} IN ({wanted})")).to_pylist()
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise Unavailable(f"version {version} of table {table!r} cannot be read: {error}") from error
    return {str(row[key]): {name: row[name] for name in chosen} for row in found}


def _still_lists(catalog: Catalog, manifest: str, version: int | None, source: LineageNode) -> bool:
    """Whether the table of that name is the manifest which the source's run wrote, as far as that is recorded."""
    runs = catalog.runs_that_made("table", manifest, version)
    noted = [(edge.kind, edge.name, edge.detail) for run in runs for edge in run.inputs]
    return not runs or (source.kind, source.name, source.detail) in noted


def _manifests(node: LineageNode, seen: set[Seen]) -> Iterator[tuple[str, LineageNode]]:
    """Those that the sources of a table name, the nearest first, with the source; a table on the way is looked at
    once."""
    for parent in node.parents:
        manifest = (parent.detail or {}).get("manifest")
        if isinstance(manifest, str):
            yield manifest, parent
    for parent in node.parents:
        thing = (parent.kind, parent.name, parent.version, parent.securable_id)
        if parent.kind == "table" and thing not in seen:
            seen.add(thing)
            yield from _manifests(parent, seen)
