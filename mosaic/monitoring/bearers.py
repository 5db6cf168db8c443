"""Who bore a name: answers say names, and after a drop a name may mean another one."""

from collections.abc import Sequence
from datetime import datetime

from mosaic.catalog import Catalog
from mosaic.catalog.bearers import Bearer, Span, bearer_at, spans_of
from mosaic.catalog.privileges import PRIVILEGES


class Bearers:
    """Asks the catalog once for each name."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[str, str], Sequence[Bearer]] = {}

    def all(self, kind: str, name: str) -> Sequence[Bearer]:
        """Oldest first; none of what is no securable, such as a source."""
        if kind not in PRIVILEGES:
            return ()
        if (kind, name) not in self._known:
            self._known[kind, name] = self._catalog.bearers(kind, name)
        return self._known[kind, name]

    def at(self, kind: str, name: str, moment: datetime) -> str | None:
        found = bearer_at(self.all(kind, name), moment)
        return None if found is None else found.id

    def living(self, kind: str, name: str) -> str | None:
        return next((one.id for one in self.all(kind, name) if one.deleted_at is None), None)

    def of(self, kind: str, name: str, noted: str | None) -> str | None:
        """Whom an edge means. One that was noted of a name without bearer means the only one that it ever had."""
        known = self.all(kind, name)
        return known[0].id if noted is None and len(known) == 1 else noted

    def spans(self, kind: str, name: str, bearer_id: str | None) -> list[Span]:
        """The times at which the name meant this one; None is everything that ever bore it."""
        return [(None, None)] if bearer_id is None else spans_of(self.all(kind, name), bearer_id)
