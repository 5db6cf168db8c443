"""When the data of what was dropped goes: a managed table or volume keeps its files for a while, then they are removed.

Only a folder that the platform gave to exactly the dropped thing is ever removed: one of its own under the root, which
no other record points at, into or around. First it is written down that the data is purged, so that nothing can come
back to an empty place, then the folder goes; a note under the root finishes what was killed in between.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta

from mosaic.catalog import Catalog
from mosaic.catalog.records import Dropped
from mosaic.catalog.unity.places import contains
from mosaic.errors import NotFound
from mosaic.protocol import Principal, Wire
from mosaic.storage import Storage

OLDER_THAN = timedelta(days=7)
"""How long the data of what was dropped is kept if nothing else is said."""

KILL_POINTS = ("noted", "marked", "removed")
"""What `at` is told, in this order, for each thing that is purged."""

_KINDS = ("table", "volume")
_OWN = re.compile(r"(?:managed|volumes)/[a-z]{1,8}_[0-9a-z]{16,}")
"""Places that are given once and never again, below the root."""


class Purged(Wire):
    """One table or volume whose data is gone."""

    kind: str
    name: str
    id: str
    location: str


class Kept(Wire):
    """One that was due and is still there."""

    kind: str
    name: str
    location: str
    reason: str


class Purge(Wire):
    removed: tuple[Purged, ...]
    kept: tuple[Kept, ...]


def purge(
    storage: Storage,
    catalog: Catalog,
    *,
    now: datetime,
    older_than: timedelta = OLDER_THAN,
    dry_run: bool = False,
    by: Principal | str = "admin",
    at: Callable[[str], None] = lambda point: None,
) -> Purge:
    """Remove the data of managed tables and volumes that were dropped longer ago than `older_than`.

    With `dry_run` only say what would go. External data is never touched. Safe to call from several processes at once,
    and again after a kill.
    """
    before = now - older_than
    removed = [] if dry_run else [*_finish(storage, catalog, before, by, at)]
    kept: list[Kept] = []
    due = [one for one in catalog.dropped(before=before) if one.kind in _KINDS and _in_root(storage, one)]
    others = [*_others(catalog, due)] if due else []
    for one in due:
        reason = _why_not(storage, one, others)
        if reason is not None:
            kept.append(Kept(kind=one.kind, name=one.name, location=str(one.location), reason=reason))
            continue
        thing = Purged(kind=one.kind, name=one.name, id=one.id, location=str(one.location).rstrip("/"))
        if dry_run:
            removed.append(thing)
            continue
        storage.write_bytes(_note(storage, one.id), thing.model_dump_json().encode())
        at("noted")
        if _remove(storage, catalog, thing, before, by, at):
            removed.append(thing)
    return Purge(removed=tuple(removed), kept=tuple(kept))


def _finish(
    storage: Storage, catalog: Catalog, before: datetime, by: Principal | str, at: Callable[[str], None]
) -> Iterator[Purged]:
    """What an earlier purge had begun and written down as purged."""
    waiting = {one.id for one in catalog.dropped()}
    for note in storage.list(storage.address("purging")):
        try:
            thing = Purged.model_validate_json(storage.read_bytes(note))
        except NotFound:  # another purge finished it
            continue
        if thing.id in waiting:  # it had not been written down: it may still come back, and is looked at anew
            storage.delete(note)
        elif _remove(storage, catalog, thing, before, by, at):
            yield thing


def _remove(
    storage: Storage,
    catalog: Catalog,
    thing: Purged,
    before: datetime,
    by: Principal | str,
    at: Callable[[str], None],
) -> bool:
    """Whether this call removed it."""
    note = _note(storage, thing.id)
    try:
        catalog.mark_purged(thing.id, before=before, by=by)
    except NotFound:  # it came back in between, and may have been dropped again
        storage.delete(note)
        return False
    at("marked")
    while storage.exists(thing.location):
        with suppress(NotFound):  # another purge removes it too
            storage.delete(thing.location)
    at("removed")
    storage.delete(note)
    return True


def _in_root(storage: Storage, one: Dropped) -> bool:
    return one.location is not None and contains(storage.root, one.location)


def _why_not(storage: Storage, one: Dropped, others: list[tuple[str, str, str]]) -> str | None:
    """Why the folder of something that is due must stay; None if it may go."""
    location = str(one.location).rstrip("/")
    below = location.removeprefix(storage.root.rstrip("/") + "/")
    old = f"tables/{one.name.replace('.', '/')}" if one.kind == "table" else None
    if not _OWN.fullmatch(below) and below != old:
        return f"{location!r} is not a place that the platform gave to this {one.kind} alone"
    for kind, name, place in others:
        if contains(location, place) or contains(place, location):
            return f"{kind} {name!r} is at {place!r}"
    return None


def _others(catalog: Catalog, due: list[Dropped]) -> Iterator[tuple[str, str, str]]:
    """(kind, name, place) of everything that has data and is not due."""
    for table in catalog.list_tables():
        yield "table", table.name, table.location.rstrip("/")
    for volume in catalog.volumes.list():
        yield "volume", volume.name, str(volume.spec["location"]).rstrip("/")
    for model in catalog.list_models():
        for version in catalog.list_model_versions(model.name):
            yield "model version", version.full_name, version.source.rstrip("/")
    gone = {other.id for other in due}
    for other in catalog.dropped():
        if other.id not in gone and other.location is not None:
            yield f"dropped {other.kind}", other.name, other.location.rstrip("/")


def _note(storage: Storage, securable_id: str) -> str:
    return storage.address("purging", securable_id)
