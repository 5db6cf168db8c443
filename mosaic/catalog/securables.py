"""Everything that has a name, an owner and a place in the hierarchy: one table, one set of functions.

They run inside the caller's transaction. A row stands under its schema, which stands under its catalog, which stands
under the one metastore, so that grants can be followed upward by one recursive query.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from mosaic.catalog.names import METASTORE, RESERVED_CATALOG, SYSTEM_OWNER
from mosaic.catalog.records import Schema
from mosaic.catalog.schema import securable
from mosaic.errors import AlreadyExists, NotFound, PermissionDenied, StaleEtag
from mosaic.ids import new_id

Row = sa.Row[*tuple[Any, ...]]


def find(connection: sa.Connection, kind: str, full_name: str) -> Row | None:
    """The live row of that kind and name."""
    chosen = (securable.c.kind == kind) & (securable.c.full_name == full_name) & securable.c.deleted_at.is_(None)
    return connection.execute(sa.select(securable).where(chosen)).one_or_none()


def get(connection: sa.Connection, kind: str, full_name: str, *, lock: bool = False, share: bool = False) -> Row:
    """As `find`, but raises NotFound; `lock` holds the row until the transaction ends.

    Without what exists instead: who asks is not known here, and may not be meant to know of it (`checks.missing` tells
    it). `share` holds it too, but only against who locks it: it cannot be deleted while something is put into it.
    """
    chosen = (securable.c.kind == kind) & (securable.c.full_name == full_name) & securable.c.deleted_at.is_(None)
    query = sa.select(securable).where(chosen)
    row = connection.execute(query.with_for_update(read=share) if lock or share else query).one_or_none()
    if row is None:
        raise NotFound(f"no {kind} {full_name!r}", param="name", code=f"{kind}_not_found")
    return row


def get_by_id(connection: sa.Connection, kind: str, securable_id: str, *, lock: bool = False) -> Row:
    """The live row with that id; raises NotFound, without naming others: an id is no name to choose from."""
    chosen = (securable.c.id == securable_id) & (securable.c.kind == kind) & securable.c.deleted_at.is_(None)
    query = sa.select(securable).where(chosen)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"no {kind} has the id {securable_id!r}", param=f"{kind}_id", code=f"{kind}_not_found")
    return row


def list_rows(connection: sa.Connection, kind: str, schema: str | None = None) -> list[Row]:
    """The live rows of a kind by name, of one schema or of all; raises NotFound for a schema that is not there."""
    query = sa.select(securable).where(securable.c.kind == kind, securable.c.deleted_at.is_(None))
    if schema is not None:
        query = query.where(securable.c.parent_id == get(connection, "schema", schema).id)
    return list(connection.execute(query.order_by(securable.c.full_name)))


def insert(
    connection: sa.Connection, kind: str, full_name: str, *, owner: str, now: datetime, **columns: Any
) -> dict[str, Any]:
    """A new row under its parent, which must exist; raises AlreadyExists, NotFound, and PermissionDenied in `system`.

    `columns` may give comment, properties and spec.
    """
    check_reserved(full_name, owner)
    if find(connection, kind, full_name) is not None:
        raise AlreadyExists(f"{kind} {full_name!r} already exists", param="name")
    parent, _, name = full_name.rpartition(".")
    parent_kind = ("schema" if "." in parent else "catalog") if parent else METASTORE
    values: dict[str, Any] = {
        "id": new_id("sec"),
        "kind": kind,
        "parent_id": get(connection, parent_kind, parent or METASTORE, share=True).id,
        "name": name,
        "full_name": full_name,
        "owner": owner,
        "comment": "",
        "properties": {},
        "spec": {},
        "config_version": 1,
        "created_at": now,
        "created_by": owner,
        "updated_at": now,
        **columns,
    }
    connection.execute(securable.insert().values(values))
    return values


def update(connection: sa.Connection, row: Row, *, now: datetime, by: str | None = None, **columns: Any) -> Row:
    """Change columns of a row; its config_version grows. Nothing happens if all are as they were.

    An owner alone is no new config: nothing that is deployed follows from it.
    """
    changed = {name for name, value in columns.items() if getattr(row, name) != value}
    if not changed:
        return row
    config_version = row.config_version + (changed != {"owner"})
    return _write(connection, row, now=now, by=by, config_version=config_version, **columns)


def put_spec(
    connection: sa.Connection, row: Row, spec: Mapping[str, Any], *, config_version: int, now: datetime, by: str
) -> Row:
    """The spec as a whole, under a number that is counted elsewhere."""
    return _write(connection, row, now=now, by=by, spec=dict(spec), config_version=config_version)


def touch(connection: sa.Connection, row: Row, *, now: datetime, by: str | None) -> Row:
    """Something that belongs to the row was changed beside it, such as its tags: another etag."""
    return _write(connection, row, now=now, by=by)


def delete(
    connection: sa.Connection, kind: str, full_name: str, *, now: datetime, by: str, expected_etag: str | None = None
) -> None:
    """Take a row's name away; the row stays for lineage, audit and undrop. Raises NotFound, StaleEtag, and
    PermissionDenied in `system`."""
    check_reserved(full_name, by, "drop")
    row = get(connection, kind, full_name, lock=True)
    check_etag(row, expected_etag)
    _write(connection, row, now=now, by=by, deleted_at=now)


def etag(row: Row) -> str:
    """Another one after every change of the row, and for another row of the same name."""
    return f"{row.id[-8:]}-{row.row_version}"


ONE_OF = ", "
"""Between etags of which one is expected; none has a space in it."""


def check_etag(row: Row, expected: str | None) -> None:
    """Raises StaleEtag if the row is not as it was when it had that etag, or one of several; None expects nothing."""
    if expected is not None and etag(row) not in expected.split(ONE_OF):
        raise StaleEtag(
            f"{row.kind} {row.full_name!r} has the etag {etag(row)!r}, not {expected[:80]!r}: it was changed since; "
            "read it again",
            param="etag",
        )


def _write(connection: sa.Connection, row: Row, *, now: datetime, by: str | None, **columns: Any) -> Row:
    changed = {**columns, "row_version": securable.c.row_version + 1, "updated_at": now, "updated_by": by}
    connection.execute(securable.update().where(securable.c.id == row.id).values(changed))
    return connection.execute(sa.select(securable).where(securable.c.id == row.id)).one()


def ensure_schema(connection: sa.Connection, full_name: str, *, owner: str, now: datetime) -> Schema:
    """The schema, made with its catalog if it is not there."""
    check_reserved(full_name, owner)
    catalog = full_name.partition(".")[0]
    if find(connection, "catalog", catalog) is None:
        insert(connection, "catalog", catalog, owner=owner, now=now)
    row = find(connection, "schema", full_name)
    if row is None:
        insert(connection, "schema", full_name, owner=owner, now=now)
        row = get(connection, "schema", full_name)
    return as_schema(row)


def as_schema(row: Row) -> Schema:
    return Schema(**described(row))


def described(row: Row) -> dict[str, Any]:
    """The fields that the records of all kinds have in common."""
    return {
        "id": row.id,
        "etag": etag(row),
        "name": row.full_name,
        "owner": row.owner,
        "comment": row.comment,
        "properties": row.properties,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "updated_at": row.updated_at,
        "updated_by": row.updated_by,
    }


def check_reserved(full_name: str, owner: str, to: Literal["make", "drop"] = "make") -> None:
    """Raises PermissionDenied when somebody else than the platform makes or drops something in its catalog."""
    if full_name.partition(".")[0] == RESERVED_CATALOG and owner != SYSTEM_OWNER:
        raise PermissionDenied(
            f"catalog {RESERVED_CATALOG!r} is the platform's own; {owner!r} cannot {to} {full_name!r} in it",
            param="name",
        )


def below(parent_id: str) -> sa.Select[Any]:
    """The ids of everything alive below a row."""
    alive = securable.c.deleted_at.is_(None)
    children = sa.select(securable.c.id).where(securable.c.parent_id == parent_id, alive).cte("below", recursive=True)
    deeper = sa.select(securable.c.id).join(children, securable.c.parent_id == children.c.id).where(alive)
    return sa.select(children.union_all(deeper).c.id)
