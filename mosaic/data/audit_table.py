"""The audit trail in the lakehouse: every row of the catalog's database in the Delta table `system.access.audit`, once.

The columns are those of Databricks' table of that name, null where this platform has nothing to say, and two of ours:
the token, and the number of the row in the catalog.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from mosaic.catalog import AuditEvent, Catalog
from mosaic.data.ship import Row, SequenceShipper
from mosaic.data.tables import Tables

AUDIT_TABLE = "system.access.audit"
SOURCE = "catalog-audit"
"""The application of Delta's transaction identifiers in the table; their versions are the rows' numbers."""

SCHEMA = pa.schema(
    [
        ("account_id", pa.string()),
        ("workspace_id", pa.string()),
        ("version", pa.string()),
        pa.field("event_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("event_date", pa.date32(), nullable=False),
        ("source_ip_address", pa.string()),
        ("user_agent", pa.string()),
        ("session_id", pa.string()),
        ("user_identity", pa.struct([("email", pa.string()), ("subject_name", pa.string())])),
        ("service_name", pa.string()),
        ("action_name", pa.string()),
        ("request_id", pa.string()),
        ("request_params", pa.map_(pa.string(), pa.string())),
        (
            "response",
            pa.struct([("status_code", pa.int32()), ("error_message", pa.string()), ("result", pa.string())]),
        ),
        ("audit_level", pa.string()),
        pa.field("event_id", pa.string(), nullable=False),
        ("identity_metadata", pa.struct([("run_by", pa.string()), ("run_as", pa.string())])),
        ("token_id", pa.string()),
        pa.field("sequence", pa.int64(), nullable=False),
    ]
)


class AuditShipper:
    """Carries the audit trail of a catalog into the table, which the first pass makes."""

    def __init__(self, tables: Tables, catalog: Catalog, *, at: Callable[[str], None] = lambda point: None) -> None:
        """`at` is told `before-commit` and `after-commit` (see `mosaic.data.ship`)."""
        self._tables, self._catalog = tables, catalog
        self._made = False
        self._shipper = SequenceShipper(
            SOURCE,
            functools.partial(_read, catalog),
            functools.partial(tables.delta, AUDIT_TABLE),
            number="sequence",
            identity="event_id",
            to_arrow=to_arrow,
            at=at,
        )

    def ship_once(self) -> int:
        """Ship what there is now; returns the number of rows. Safe to call from several processes at once.

        Raises Conflict (`source_was_put_back`) if the catalog was restored from a backup that lacks rows which are in
        the table: its numbers would come a second time, and what they count would be lost. `resume` goes on then.
        """
        if not self._made:
            make_audit_table(self._tables, self._catalog)
            self._made = True
        return self._shipper.ship_once()

    def resume(self) -> int:
        """Go on after the catalog was restored: the number of the last row that it and the table have in common.

        The table keeps the rows that the restored catalog lacks.
        """
        return self._shipper.resume()


def make_audit_table(tables: Tables, catalog: Catalog) -> None:
    """Make and register the table, unless it is there."""
    catalog.ensure_schema(AUDIT_TABLE.rpartition(".")[0], owner="system")
    tables.create(
        AUDIT_TABLE,
        SCHEMA,
        primary_key="event_id",
        owner="system",
        comment="Every change of what the catalog holds, and every denial; a few seconds behind the catalog.",
    )


def to_arrow(rows: Sequence[Row]) -> pa.Table:
    """Rows with the table's columns."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def _read(catalog: Catalog, after: int, limit: int) -> list[Row]:
    return [_row(event) for event in catalog.audit.list(after=after, limit=limit)]


def _row(event: AuditEvent) -> dict[str, Any]:
    plain = event.model_dump(exclude={"user_identity", "response", "request_params"})
    return {
        **{name: value for name, value in plain.items() if name in SCHEMA.names},
        "user_identity": {"email": event.user_identity.email, "subject_name": None},
        "request_params": list(event.request_params.items()),
        "response": {**event.response.model_dump(), "result": None},
    }
