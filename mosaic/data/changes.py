"""What happened to each key of a Delta table between two versions, from its change feed.

The feed has no order of its own: rows are put in the order of (commit version, removals before arrivals), and the last
one of each key counts. That fold is exact for a table whose primary key is unique.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from mosaic.data.delta import check_feed
from mosaic.errors import BadRequest, MosaicError

_VERSION, _TYPE = "_commit_version", "_change_type"
_REMOVALS = ("delete", "update_preimage")
_ARRIVALS = ("insert", "update_postimage")


class ChangesUnavailable(MosaicError):
    """The feed does not cover these versions (vacuumed, cleaned up, turned off): compare whole versions instead."""

    code = "changes_unavailable"


@dataclass(frozen=True)
class Changes:
    """The last state of each key that changed."""

    upserts: pa.Table
    """Rows that are there now, with the table's columns, sorted by key."""
    deletes: list[str]
    """Keys that are gone, as text, sorted."""


def fold_changes(table: DeltaTable, from_version: int, to_version: int, key: str) -> Changes:
    """What changed after `from_version`, up to and with `to_version`, by the column `key`.

    A key that was deleted and inserted again is an upsert. Raises ChangesUnavailable when the feed has a gap,
    BadRequest when the versions or the key make no sense. Rows whose key is null are in `upserts` as they came.
    """
    if not 0 <= from_version <= to_version <= table.version():
        raise BadRequest(f"versions {from_version} to {to_version} of a table that is at version {table.version()}")
    schema = pa.schema(table.schema().to_arrow())
    if key not in schema.names:
        raise BadRequest(f"the table has no column {key!r}; there are {schema.names}", param="key")
    if from_version == to_version:
        return Changes(schema.empty_table(), [])
    try:
        check_feed(table, from_version + 1, to_version)
    except BadRequest as error:
        raise ChangesUnavailable(error.message) from error
    try:
        feed = pa.table(table.load_cdf(starting_version=from_version + 1, ending_version=to_version))
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise ChangesUnavailable(f"no change feed for versions {from_version + 1} to {to_version}: {error}") from error
    kinds = feed[_TYPE].cast(pa.string())
    unknown = set(pc.unique(kinds).to_pylist()) - {*_REMOVALS, *_ARRIVALS}
    if unknown:
        raise ChangesUnavailable(f"the change feed holds kinds of change that are not known here: {sorted(unknown)}")
    # The feed comes with Arrow's view types, for which many functions have no kernel.
    return _fold(feed.select(schema.names).cast(schema), feed[_VERSION], pc.is_in(kinds, pa.array(_ARRIVALS)), key)


def _fold(rows: pa.Table, versions: pa.ChunkedArray, arrived: pa.ChunkedArray, key: str) -> Changes:
    without_key = pc.is_null(rows[key])
    nameless = rows.filter(pc.and_(without_key, arrived))
    order = pa.table({"key": rows[key], "version": versions, "arrived": arrived.cast(pa.int8())})
    order = order.append_column("row", pa.array(range(rows.num_rows), pa.int64())).filter(pc.invert(without_key))
    by_key = [("key", "ascending"), ("version", "ascending"), ("arrived", "ascending"), ("row", "ascending")]
    order = order.sort_by(by_key)
    if order.num_rows == 0:
        return Changes(nameless, [])
    keys = order["key"].combine_chunks()
    is_last = pa.concat_arrays([pc.not_equal(keys[:-1], keys[1:]), pa.array([True])])
    last = order.filter(is_last)
    stays = last["arrived"].cast(pa.bool_())
    deletes = last.filter(pc.invert(stays))["key"].cast(pa.string()).to_pylist()
    return Changes(pa.concat_tables([rows.take(last.filter(stays)["row"]), nameless]), deletes)
