"""What bore a name, and when: after a drop a name may be taken again, and versions then begin anew."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog.schema import securable
from mosaic.protocol import Wire

Span = tuple[datetime | None, datetime | None]
"""From when (None: ever) until before when (None: now)."""


class Bearer(Wire):
    """One that has, or had, a name."""

    id: str
    created_at: datetime
    deleted_at: datetime | None


def list_bearers(connection: sa.Connection, kind: str, name: str) -> list[Bearer]:
    """All that ever had the name, oldest first."""
    columns = [securable.c[field] for field in Bearer.model_fields]
    of_name = (securable.c.kind == kind) & (securable.c.full_name == name)
    found = connection.execute(sa.select(*columns).where(of_name).order_by(securable.c.created_at, securable.c.id))
    return [Bearer(**row._mapping) for row in found]


def bearer_at(bearers: Sequence[Bearer], moment: datetime | None) -> Bearer | None:
    """Who bore the name at a moment, or else bore it last before; with None who bears it now, or else bore it last.

    The first counts for the time before it, too: moments are told by several clocks.
    """
    made = [one for one in bearers if moment is None or one.created_at <= moment]
    there = [one for one in made if one.deleted_at is None or (moment is not None and moment < one.deleted_at)]
    return next((found[-1] for found in (there, made, bearers[:1]) if found), None)


def spans_of(bearers: Sequence[Bearer], bearer_id: str) -> list[Span]:
    """The times at which `bearer_at` says this one."""
    starts = sorted({moment for one in bearers for moment in (one.created_at, one.deleted_at) if moment is not None})
    spans: list[Span] = []
    for start, end in zip([None, *starts], [*starts, None], strict=True):
        found = bearers[0] if start is None else bearer_at(bearers, start)
        if found is None or found.id != bearer_id:
            continue
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def is_within(spans: Sequence[Span], moment: datetime) -> bool:
    return any((first is None or first <= moment) and (end is None or moment < end) for first, end in spans)
