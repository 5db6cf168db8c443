"""Changing a securable that is there: its own columns and its owner, at once or not at all."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import names, securables
from mosaic.catalog.access import is_administrator
from mosaic.catalog.audit import Change
from mosaic.catalog.schema import principal
from mosaic.catalog.securables import Row
from mosaic.errors import NotFound, not_found
from mosaic.protocol import Principal


def update(
    going: Change,
    row: Row,
    expected_etag: str | None,
    *,
    by: Principal,
    now: datetime,
    owner: str | None = None,
    **columns: Any,
) -> Row:
    """The locked row with what is given; raises StaleEtag, and NotFound for an owner who is not known."""
    securables.check_etag(row, expected_etag)
    if owner is not None:
        names.check_principal(owner)
        check_known(going.connection, owner, by)
        securables.check_reserved(row.full_name, owner)
        columns["owner"] = owner
        going.params["owner"] = owner
    after = securables.update(going.connection, row, now=now, by=by.name, **columns)
    going.happened = after is not row
    return after


def check_known(connection: sa.Connection, name: str, by: Principal | None = None) -> None:
    """Raises NotFound for a principal; with those that there are for administrators, who alone are to know them all."""
    if connection.execute(sa.select(principal.c.name).where(principal.c.name == name)).one_or_none() is None:
        if by is not None and is_administrator(connection, by):
            everybody = connection.execute(sa.select(principal.c.name)).scalars()
            raise not_found("principal", name, everybody, param="principal")
        raise NotFound(f"no principal {name!r}", param="principal", code="principal_not_found")
