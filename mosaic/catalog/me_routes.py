"""Who the caller is, in SCIM's shape (RFC 7643), as databricks-sdk's `current_user.me()` asks for it."""

from pydantic import ConfigDict
from pydantic.alias_generators import to_camel
from starlette.routing import Route

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.unity.authorize import Authorize
from mosaic.catalog.unity.call import Call, route
from mosaic.catalog.unity.shapes import Answer

PATH = "/2.0/preview/scim/v2/Me"


class Group(Answer):
    display: str
    value: str


class Me(Answer):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True)

    schemas: tuple[str, ...] = ("urn:ietf:params:scim:schemas:core:2.0:User",)
    id: str
    user_name: str
    display_name: str
    active: bool
    groups: list[Group]
    """All that the caller is in, directly or through groups."""


class MeRoutes:
    def __init__(self, catalog: Catalog, authorize: Authorize) -> None:
        self._catalog, self._authorize = catalog, authorize

    def routes(self) -> list[Route]:
        return [route("GET", PATH, self.get)]

    def get(self, call: Call) -> Me:
        self._authorize(call.principal, "BROWSE", METASTORE, "")
        name = call.principal.name
        known = self._catalog.principals.get(name)
        groups = [Group(display=group, value=group) for group in self._catalog.principals.groups_of(name)]
        return Me(id=name, user_name=name, display_name=name, active=known.active, groups=groups)
