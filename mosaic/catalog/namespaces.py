"""Catalogs and schemas, the two upper levels of every name: made, described, listed, taken away."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from mosaic.catalog import names, securables, tables, values
from mosaic.catalog.audit import change, of_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import CatalogEntry, Schema
from mosaic.catalog.schema import securable
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.catalog.updates import update
from mosaic.errors import BadRequest

_RUNNING = ("endpoint", "index")
"""What runs under its name: taking the name away would leave it running, so it is ended by its own room first."""


class Catalogs:
    """`catalog.catalogs`: the first level of names."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def create(
        self,
        name: str,
        *,
        owner: str,
        comment: str = "",
        properties: Mapping[str, str] | None = None,
        by: Caller | None = None,
    ) -> CatalogEntry:
        """Raises AlreadyExists, and PermissionDenied for the platform's own name."""
        return as_catalog(_create(self._store, "catalog", name, owner, comment, properties, by=by, now=self._now()))

    def get(self, name: str) -> CatalogEntry:
        """Raises NotFound."""
        with self._store.read() as connection:
            return as_catalog(securables.get(connection, "catalog", names.parse_catalog(name)))

    def list(self) -> list[CatalogEntry]:
        """By name."""
        with self._store.read() as connection:
            return [as_catalog(row) for row in securables.list_rows(connection, "catalog")]

    def update(
        self,
        name: str,
        *,
        by: Caller,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> CatalogEntry:
        """Change what is given, `properties` as a whole. Raises NotFound, StaleEtag."""
        given = (comment, properties, owner)
        return as_catalog(_update(self._store, "catalog", name, *given, by=by, now=self._now(), etag=expected_etag))

    def delete(self, name: str, *, force: bool = False, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away; with `force` also the names of all schemas, tables and models in it."""
        _delete(self._store, "catalog", name, force=force, by=by, now=self._now(), etag=expected_etag)


class Schemas:
    """`catalog.schemas`: the second level of names."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def create(
        self,
        name: str,
        *,
        owner: str,
        comment: str = "",
        properties: Mapping[str, str] | None = None,
        by: Caller | None = None,
    ) -> Schema:
        """A schema in a catalog that exists; raises AlreadyExists, NotFound."""
        return securables.as_schema(
            _create(self._store, "schema", name, owner, comment, properties, by=by, now=self._now())
        )

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
        self,
        name: str,
        *,
        by: Caller,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Schema:
        """Change what is given, `properties` as a whole. Raises NotFound, StaleEtag."""
        given = (comment, properties, owner)
        return securables.as_schema(
            _update(self._store, "schema", name, *given, by=by, now=self._now(), etag=expected_etag)
        )

    def delete(self, name: str, *, force: bool = False, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away; with `force` also the names of all tables and models in it."""
        _delete(self._store, "schema", name, force=force, by=by, now=self._now(), etag=expected_etag)


def as_catalog(row: Row) -> CatalogEntry:
    return CatalogEntry(**securables.described(row))


def _create(
    store: Store,
    kind: Literal["catalog", "schema"],
    name: str,
    owner: str,
    comment: str,
    properties: Mapping[str, str] | None,
    *,
    by: Caller | None,
    now: datetime,
) -> Row:
    name = names.parse_securable(kind, name)
    names.check_principal(owner)
    described: dict[str, Any] = {"comment": comment, "properties": values.texts(properties or {}, "properties")}
    caller = as_principal(by or owner)
    with change(store, f"create{kind.capitalize()}", of_securable(kind, name), by=caller, now=now) as going:
        securables.insert(going.connection, kind, name, owner=owner, now=now, created_by=caller.name, **described)
        return securables.get(going.connection, kind, name)


def _update(
    store: Store,
    kind: Literal["catalog", "schema"],
    name: str,
    comment: str | None,
    properties: Mapping[str, str] | None,
    owner: str | None,
    *,
    by: Caller,
    now: datetime,
    etag: str | None,
) -> Row:
    name, caller = names.parse_securable(kind, name), as_principal(by)
    changed: dict[str, Any] = {} if comment is None else {"comment": comment}
    if properties is not None:
        changed["properties"] = values.texts(properties, "properties")
    with change(store, f"update{kind.capitalize()}", of_securable(kind, name), by=caller, now=now) as going:
        row = securables.get(going.connection, kind, name, lock=True)
        return update(going, row, etag, owner=owner, by=caller, now=now, **changed)


def _delete(
    store: Store,
    kind: Literal["catalog", "schema"],
    name: str,
    *,
    force: bool,
    by: Caller,
    now: datetime,
    etag: str | None,
) -> None:
    name, caller = names.parse_securable(kind, name), as_principal(by)
    with change(store, f"delete{kind.capitalize()}", of_securable(kind, name), by=caller, now=now) as going:
        connection = going.connection
        securables.check_reserved(name, caller.name, "drop")
        row = securables.get(connection, kind, name, lock=True)
        securables.check_etag(row, etag)
        below = securables.below(row.id)
        query = sa.select(securable).where(securable.c.id.in_(below)).order_by(securable.c.kind, securable.c.full_name)
        connection.execute(query.with_for_update())  # from here on nothing is put into a schema of this catalog
        within = list(connection.execute(query))
        if within and not force:
            raise _not_empty(kind, name, within, "delete them first, or use force (`--force`)")
        running = [one for one in within if one.kind in _RUNNING]
        if running:
            raise _not_empty(kind, name, running, "they run; delete them first, force does not")
        _check_no_index(connection, kind, name, [one.full_name for one in within if one.kind == "table"])
        gone_models = {one.full_name for one in within if one.kind == "model"}
        tables.check_not_served(connection, lambda served: served.model in gone_models)
        if within:
            going.params["with"] = ", ".join(f"{one.kind} {one.full_name}" for one in within)
        gone = (securable.c.id == row.id) | securable.c.id.in_(below)
        gone_now = {"deleted_at": now, "updated_by": caller.name, "row_version": securable.c.row_version + 1}
        connection.execute(securable.update().where(gone).values(gone_now))


def _check_no_index(connection: sa.Connection, kind: str, name: str, tables: Iterable[str]) -> None:
    gone = set(tables)
    over = [row for row in securables.list_rows(connection, "index") if row.spec["table"] in gone]
    if over:
        raise _not_empty(kind, name, over, "they are over its tables; delete them first, force does not")


def _not_empty(kind: str, name: str, within: list[Row], advice: str) -> BadRequest:
    shown = [f"{row.kind} {row.full_name}" for row in within[:10]]
    more = f" and {len(within) - 10} more" if len(within) > 10 else ""
    return BadRequest(f"{kind} {name!r} is not empty: {shown}{more}; {advice}", code="failed_precondition")
