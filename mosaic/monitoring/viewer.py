"""For whom a thread is drawn: what of it that principal may see."""

from mosaic.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE, MANAGE, PRIVILEGES
from mosaic.errors import BadRequest, NotFound
from mosaic.protocol import Principal


class Viewer:
    """Asks the grants once for each thing. Without a principal it is the platform itself, which sees everything."""

    def __init__(self, catalog: Catalog, principal: Principal | None = None) -> None:
        self.principal = principal
        self._catalog = catalog
        self._known: dict[tuple[str, str, str], bool] = {}

    @property
    def sees_everything(self) -> bool:
        return self.principal is None or self.may(MANAGE, METASTORE, METASTORE)

    def may_browse(self, kind: str, name: str) -> bool:
        """Whether it may know of a thing; what is no securable (a source, a base model) is judged by what it fed."""
        return kind not in PRIVILEGES or self.sees_everything or self.may(BROWSE, kind, name)

    def manages(self, endpoint: str) -> bool:
        """Whether it may know who asked an endpoint what."""
        return self.sees_everything or self.may(MANAGE, "endpoint", endpoint)

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
