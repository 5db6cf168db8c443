"""Tables, vector indexes and endpoints as securables: what their spec holds, and the records made from it."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import names, securables
from mosaic.catalog.audit import Change
from mosaic.catalog.endpoints import models_in_use
from mosaic.catalog.names import ModelReference
from mosaic.catalog.records import Index, Table
from mosaic.catalog.securables import Row
from mosaic.errors import Conflict


def as_table(row: Row) -> Table:
    return Table(
        **securables.described(row),
        location=row.spec["location"],
        columns=row.spec["columns"],
        primary_key=row.spec["primary_key"],
        config_version=row.config_version,
    )


def as_index(row: Row) -> Index:
    return Index(
        id=row.id,
        etag=securables.etag(row),
        name=row.full_name,
        table=row.spec["table"],
        spec=row.spec["spec"],
        owner=row.owner,
        config_version=row.config_version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def put(
    going: Change,
    kind: str,
    full_name: str,
    *,
    spec: Mapping[str, Any],
    owner: str,
    expected: int | None,
    now: datetime,
    by: str,
) -> Row:
    """Make a securable, or change its spec; the owner stays who made it.

    With `expected` (its config version; 0: it must be new) raises Conflict if somebody else changed it meanwhile.
    """
    securables.check_reserved(full_name, owner)
    connection = going.connection
    row = securables.find(connection, kind, full_name)
    at = 0 if row is None else row.config_version
    if expected is not None and expected != at:
        raise Conflict(
            f"{kind} {full_name!r} is at config version {at}, not at {expected}; read it again",
            param="expected_config_version",
        )
    if row is not None:
        after = securables.update(connection, row, now=now, by=by, spec=dict(spec))
        going.happened = after is not row
        return after
    securables.insert(connection, kind, full_name, owner=owner, now=now, created_by=by, spec=dict(spec))
    return securables.get(connection, kind, full_name)


def check_unused(connection: sa.Connection, table: str) -> None:
    """Raises Conflict while a vector index is over the table."""
    over = [row.full_name for row in securables.list_rows(connection, "index") if row.spec["table"] == table]
    if over:
        raise Conflict(f"table {table!r} cannot be deleted while it has the indexes {over}", param="name")


def check_not_served(connection: sa.Connection, is_gone: Callable[[ModelReference], bool]) -> None:
    """Raises Conflict while an endpoint names one of the model versions or aliases that would be gone."""
    for full_name, named in models_in_use(connection):
        if names.is_model_version(named) and is_gone(names.parse_model_version(named)):
            raise Conflict(
                f"endpoint {full_name!r} serves {named!r}; let it serve something else first, force does not",
                code="model_served",
            )
