"""For whom a thread is drawn: what of it that principal may see."""

from datetime import datetime

from mosaic.catalog import Catalog
from mosaic.catalog.bearers import Span
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE, MANAGE, PRIVILEGES
from mosaic.errors import BadRequest, NotFound
from mosaic.monitoring.bearers import Bearers
from mosaic.protocol import Principal


class Viewer:
    """Asks the grants once for each thing. Without a principal it is the platform itself, which sees everything."""

    def __init__(self, catalog: Catalog, principal: Principal | None = None) -> None:
        self.principal = principal
        self._catalog = catalog
        self._known: dict[tuple[str, str, str], bool] = {}
        self.bearers = Bearers(catalog)

    @property
    def sees_everything(self) -> bool:
        return self.principal is None or self.may(MANAGE, METASTORE, METASTORE)

    def may_browse(self, kind: str, name: str, securable_id: str | None = None) -> bool:
        """Whether it may know of a thing; what is no securable (a source, a base model) is judged by what it fed.

        With an id it is that bearer of the name: grants on another one say nothing of it.
        """
        if kind not in PRIVILEGES or self.sees_everything:
            return True
        return self.is_there(kind, name, securable_id) and self.may(BROWSE, kind, name)

    def may_browse_at(self, kind: str, name: str, moment: datetime) -> bool:
        """Whether it may know of what bore a name at a moment."""
        return self.may_browse(kind, name, self.bearers.at(kind, name, moment))

    def is_there(self, kind: str, name: str, securable_id: str | None) -> bool:
        """Whether the name has that bearer now (None: whatever it has)."""
        return securable_id is None or self.bearers.living(kind, name) == securable_id

    def managed(self, endpoint: str) -> list[Span]:
        """When what it may know of who asked an endpoint what began and ended: only of what bears the name now."""
        if self.sees_everything:
            return [(None, None)]
        if not self.may(MANAGE, "endpoint", endpoint):
            return []
        return self.bearers.spans("endpoint", endpoint, self.bearers.living("endpoint", endpoint))

    def may(self, privilege: str, kind: str, name: str) -> bool:
        """Whether it has a privilege; on what is not there any more only who sees everything has any."""
        if self.principal is None:
            return True
        if (privilege, kind, name) not in self._known:
            try:
                allowed = self._catalog.grants.is_allowed(self.principal, privilege, kind, name)
            except (NotFound, BadRequest):
                allowed = kind != METASTORE and self.sees_everything
            self._known[privilege, kind, name] = allowed
        return self._known[privilege, kind, name]
