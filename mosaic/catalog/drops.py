"""What was dropped: kept for 7 days, brought back by undrop, purged after."""

from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa

from mosaic.catalog import securables
from mosaic.catalog.records import Dropped
from mosaic.catalog.schema import securable
from mosaic.catalog.securables import Row
from mosaic.errors import AlreadyExists, Conflict, NotFound, not_found

RETENTION = timedelta(days=7)
"""How long something can be undropped; after that its data may be purged."""

_PLACED = ("table", "volume")
"""What has a place of its own for files."""


def undrop(connection: sa.Connection, kind: str, full_name: str, *, now: datetime, by: str) -> list[str]:
    """Bring back the newest of that name, and all that was dropped with it, which is returned by kind and name."""
    if securables.find(connection, kind, full_name) is not None:
        raise AlreadyExists(f"{kind} {full_name!r} is there; it was not dropped, or the name was taken again")
    gone = (securable.c.kind == kind) & securable.c.deleted_at.is_not(None)
    named = sa.select(securable).where(gone, securable.c.full_name == full_name)
    row = connection.execute(named.order_by(securable.c.deleted_at.desc(), securable.c.id.desc())).first()
    if row is None:
        names = connection.execute(sa.select(securable.c.full_name).where(gone).distinct()).scalars()
        raise not_found(f"dropped {kind}", full_name, names, param="name")
    if row.deleted_at < now - RETENTION or row.purged_at is not None:
        raise Conflict(
            f"{kind} {full_name!r} was dropped at {row.deleted_at.isoformat()}, over {RETENTION.days} days ago, or its "
            "data is purged; it cannot come back"
        )
    parent = connection.execute(sa.select(securable).where(securable.c.id == row.parent_id)).one()
    if parent.deleted_at is not None:
        raise Conflict(
            f"{kind} {full_name!r} stands in {parent.kind} {parent.full_name!r}, which is dropped: undrop that first"
        )
    _check_names_of(connection, row)
    with_it = _dropped_with(connection, row)
    _check_places_of(connection, [row, *with_it])
    back = {"deleted_at": None, "updated_at": now, "updated_by": by, "row_version": securable.c.row_version + 1}
    ids = [row.id, *(one.id for one in with_it)]
    for first in range(0, len(ids), 500):
        connection.execute(securable.update().where(securable.c.id.in_(ids[first : first + 500])).values(back))
    return [f"{one.kind} {one.full_name}" for one in with_it]


def list_dropped(connection: sa.Connection, *, before: datetime | None) -> list[Dropped]:
    """What has been dropped and not purged, oldest first."""
    query = sa.select(securable).where(securable.c.deleted_at.is_not(None), securable.c.purged_at.is_(None))
    if before is not None:
        query = query.where(securable.c.deleted_at < before)
    return [
        Dropped(
            id=row.id,
            kind=row.kind,
            name=row.full_name,
            location=row.spec.get("location"),
            owner=row.owner,
            deleted_at=row.deleted_at,
            deleted_by=row.updated_by,
        )
        for row in connection.execute(query.order_by(securable.c.deleted_at, securable.c.id))
    ]


def mark_purged(
    connection: sa.Connection, securable_id: str, *, now: datetime, before: datetime | None = None
) -> dict[str, str]:
    """The parameters that name what was purged; with `before`, only if it was dropped before that moment."""
    row = connection.execute(sa.select(securable).where(securable.c.id == securable_id)).one_or_none()
    if row is None or row.deleted_at is None:
        raise NotFound(f"nothing that was dropped has the id {securable_id!r}", param="securable_id")
    if before is not None and row.purged_at is None and row.deleted_at >= before:
        raise NotFound(
            f"{row.kind} {row.full_name!r} ({securable_id}) came back and was dropped again at "
            f"{row.deleted_at.isoformat()}, not before {before.isoformat()}",
            param="securable_id",
        )
    connection.execute(securable.update().where(securable.c.id == securable_id).values(purged_at=now))
    return {"securable_type": row.kind, "securable_full_name": row.full_name}


def _check_names_of(connection: sa.Connection, row: Row) -> None:
    """An index needs its table."""
    if row.kind == "index" and securables.find(connection, "table", row.spec["table"]) is None:
        raise Conflict(
            f"index {row.full_name!r} is over table {row.spec['table']!r}, which is dropped: undrop that first"
        )


def _check_places_of(connection: sa.Connection, rows: Iterable[Row]) -> None:
    """Nothing may stand by now where one of them was, around it or within it: its files would be both's."""
    alive = securable.c.kind.in_(_PLACED) & securable.c.deleted_at.is_(None)
    query = sa.select(securable.c.spec["location"].as_string()).where(alive)
    taken = sorted(f"{place}/" for place in connection.execute(query).scalars() if place)
    for row in rows:
        if row.kind not in _PLACED or not taken:
            continue
        place = f"{row.spec['location']}/"
        after = bisect_left(taken, place)
        within = after < len(taken) and taken[after].startswith(place)
        if within or not _above(place).isdisjoint(taken):
            # Without its name, which the caller may not be meant to know.
            raise Conflict(
                f"{row.kind} {row.full_name!r} cannot come back: where it was, another table or volume stands by now",
                code="location_overlap",
            )


def _above(place: str) -> set[str]:
    """The folders that a folder is in: `/a/b/` -> `/a/`, `/`."""
    return {place[: at + 1] for at, letter in enumerate(place[:-1]) if letter == "/"}


def _dropped_with(connection: sa.Connection, row: Row) -> list[Row]:
    """Everything below it that went in the same drop: at the same moment."""
    found: list[Row] = []
    level = [row]
    while level:
        ids = [one.id for one in level]
        level = []
        for first in range(0, len(ids), 500):
            below = securable.c.parent_id.in_(ids[first : first + 500])
            gone = (securable.c.deleted_at == row.deleted_at) & securable.c.purged_at.is_(None)
            query = sa.select(securable).where(below, gone)
            level += connection.execute(query.order_by(securable.c.kind, securable.c.full_name)).all()
        found += level
    return found
