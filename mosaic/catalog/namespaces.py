"""Catalogs and schemas, the two upper levels of every name: made, described, listed, taken away."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from mosaic.catalog import names, securables, values
from mosaic.catalog.records import CatalogEntry, Schema
from mosaic.catalog.schema import securable
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest

_RUNNING = ("endpoint", "index")
"""What runs under its name: taking the name away would leave it running, so it is ended by its own room first."""


class Catalogs:
    """`catalog.catalogs`: the first level of names."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def create(
        self, name: str, *, owner: str, comment: str = "", properties: Mapping[str, str] | None = None
    ) -> CatalogEntry:
        """Raises AlreadyExists, and PermissionDenied for the platform's own name."""
        name = names.parse_catalog(name)
        names.check_principal(owner)
        described = {"comment": comment, "properties": values.texts(properties or {}, "properties")}
        with self._store.write() as connection:
            securables.insert(connection, "catalog", name, owner=owner, now=self._now(), **described)
            return as_catalog(securables.get(connection, "catalog", name))

    def get(self, name: str) -> CatalogEntry:
        """Raises NotFound."""
        with self._store.read() as connection:
            return as_catalog(securables.get(connection, "catalog", names.parse_catalog(name)))

    def list(self) -> list[CatalogEntry]:
        """By name."""
        with self._store.read() as connection:
            return [as_catalog(row) for row in securables.list_rows(connection, "catalog")]

    def update(
        self, name: str, *, by: str, comment: str | None = None, properties: Mapping[str, str] | None = None
    ) -> CatalogEntry:
        """Change what is given, `properties` as a whole (the owner: `catalog.grants.set_owner`). Raises NotFound."""
        with self._store.write() as connection:
            name = names.parse_catalog(name)
            return as_catalog(
                _update(connection, "catalog", name, by=by, now=self._now(), comment=comment, properties=properties)
            )

    def delete(self, name: str, *, force: bool = False) -> None:
        """Take the name away; with `force` also the names of all schemas, tables and models in it."""
        with self._store.write() as connection:
            _delete(connection, "catalog", names.parse_catalog(name), force=force, now=self._now())


class Schemas:
    """`catalog.schemas`: the second level of names."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def create(
        self, name: str, *, owner: str, comment: str = "", properties: Mapping[str, str] | None = None
    ) -> Schema:
        """A schema in a catalog that exists; raises AlreadyExists, NotFound."""
        name = names.parse_schema(name)
        names.check_principal(owner)
        described = {"comment": comment, "properties": values.texts(properties or {}, "properties")}
        with self._store.write() as connection:
            securables.insert(connection, "schema", name, owner=owner, now=self._now(), **described)
            return securables.as_schema(securables.get(connection, "schema", name))

    def get(self, name: str) -> Schema:
        """Raises NotFound."""
        with self._store.read() as connection:
            return securables.as_schema(securables.get(connection, "schema", names.parse_schema(name)))

    def list(self, catalog: str) -> list[Schema]:
        """Those of a catalog, which must exist, by name."""
        with self._store.read() as connection:
            parent = securables.get(connection, "catalog", names.parse_catalog(catalog))
            chosen = (securable.c.parent_id == parent.id) & (securable.c.kind == "schema")
            query = sa.select(securable).where(chosen, securable.c.deleted_at.is_(None))
            return [securables.as_schema(row) for row in connection.execute(query.order_by(securable.c.full_name))]

    def update(
        self, name: str, *, by: str, comment: str | None = None, properties: Mapping[str, str] | None = None
    ) -> Schema:
        """Change what is given, `properties` as a whole (the owner: `catalog.grants.set_owner`). Raises NotFound."""
        with self._store.write() as connection:
            name = names.parse_schema(name)
            return securables.as_schema(
                _update(connection, "schema", name, by=by, now=self._now(), comment=comment, properties=properties)
            )

    def delete(self, name: str, *, force: bool = False) -> None:
        """Take the name away; with `force` also the names of all tables and models in it."""
        with self._store.write() as connection:
            _delete(connection, "schema", names.parse_schema(name), force=force, now=self._now())


def as_catalog(row: Row) -> CatalogEntry:
    return CatalogEntry(**securables.described(row))


def _update(
    connection: sa.Connection,
    kind: Literal["catalog", "schema"],
    name: str,
    *,
    by: str,
    now: datetime,
    comment: str | None,
    properties: Mapping[str, str] | None,
) -> Row:
    changed: dict[str, Any] = {} if comment is None else {"comment": comment}
    if properties is not None:
        changed["properties"] = values.texts(properties, "properties")
    row = securables.get(connection, kind, name, lock=True)
    return securables.update(connection, row, now=now, by=by, **changed)


def _delete(
    connection: sa.Connection, kind: Literal["catalog", "schema"], name: str, *, force: bool, now: datetime
) -> None:
    row = securables.get(connection, kind, name, lock=True)
    below = _below(row.id)
    query = sa.select(securable).where(securable.c.id.in_(below)).order_by(securable.c.kind, securable.c.full_name)
    connection.execute(query.with_for_update())  # from here on nothing is put into a schema of this catalog
    within = list(connection.execute(query))
    if within and not force:
        raise _not_empty(kind, name, within, "delete them first, or say force=true")
    running = [one for one in within if one.kind in _RUNNING]
    if running:
        raise _not_empty(kind, name, running, "they run; delete them first, force does not")
    _check_no_index(connection, kind, name, [one.full_name for one in within if one.kind == "table"])
    gone = (securable.c.id == row.id) | securable.c.id.in_(below)
    connection.execute(securable.update().where(gone).values(deleted_at=now))


def _check_no_index(connection: sa.Connection, kind: str, name: str, tables: Iterable[str]) -> None:
    gone = set(tables)
    over = [row for row in securables.list_rows(connection, "index") if row.spec["table"] in gone]
    if over:
        raise _not_empty(kind, name, over, "they are over its tables; delete them first, force does not")


def _below(parent_id: str) -> sa.Select[Any]:
    """The ids of everything alive below a row."""
    alive = securable.c.deleted_at.is_(None)
    children = sa.select(securable.c.id).where(securable.c.parent_id == parent_id, alive).cte("below", recursive=True)
    deeper = sa.select(securable.c.id).join(children, securable.c.parent_id == children.c.id).where(alive)
    return sa.select(children.union_all(deeper).c.id)


def _not_empty(kind: str, name: str, within: list[Row], advice: str) -> BadRequest:
    shown = [f"{row.kind} {row.full_name}" for row in within[:10]]
    more = f" and {len(within) - 10} more" if len(within) > 10 else ""
    return BadRequest(f"{kind} {name!r} is not empty: {shown}{more}; {advice}", code="failed_precondition")
