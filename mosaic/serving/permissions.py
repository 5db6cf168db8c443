"""Who may do what with a serving endpoint, in Databricks' words: three levels, which are our grants.

    CAN_VIEW    BROWSE     knows that it is there, and how it is
    CAN_QUERY   EXECUTE    asks it (and so may know of it)
    CAN_MANAGE  MANAGE     changes and deletes it, and says who may; asks it too, so EXECUTE goes with it

A principal's level is the highest that it holds on the endpoint itself; what comes from the schema, the catalog or a
group is Unity Catalog's `effective-permissions` to tell.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from starlette.routing import Route

from mosaic.catalog import Catalog, GrantChange
from mosaic.catalog.privileges import ALL_PRIVILEGES
from mosaic.catalog.records import Endpoint
from mosaic.catalog.unity.call import Call, route
from mosaic.catalog.unity.shapes import Answer, Asked
from mosaic.errors import BadRequest

BASE = "/2.0/permissions/serving-endpoints/{name}"
Level = Literal["CAN_MANAGE", "CAN_QUERY", "CAN_VIEW"]
GRANTS: Mapping[Level, tuple[str, ...]] = {
    "CAN_MANAGE": ("MANAGE", "EXECUTE"),
    "CAN_QUERY": ("EXECUTE",),
    "CAN_VIEW": ("BROWSE",),
}
"""The highest first; the first privilege of each is the one that shows it."""
_SAID = {
    "CAN_MANAGE": "May change and delete it, ask it, and say who may",
    "CAN_QUERY": "May ask it",
    "CAN_VIEW": "May see that it is there, and how it is",
}
_ALL = tuple({privilege for privileges in GRANTS.values() for privilege in privileges} | {ALL_PRIVILEGES})
_FIELDS = ("user_name", "group_name", "service_principal_name")
_FIELD_OF = {"user": "user_name", "group": "group_name", "service": "service_principal_name"}


class AccessControl(Asked):
    user_name: str | None = None
    group_name: str | None = None
    service_principal_name: str | None = None
    permission_level: Level


class ChangePermissions(Asked):
    access_control_list: list[AccessControl] = Field(default=[], max_length=1000)


class Permission(Answer):
    permission_level: Level
    inherited: bool = False
    inherited_from_object: tuple[str, ...] = ()


class HeldPermissions(Answer):
    user_name: str | None = None
    group_name: str | None = None
    service_principal_name: str | None = None
    display_name: str
    all_permissions: list[Permission]


class EndpointPermissions(Answer):
    object_id: str
    object_type: str = "serving-endpoint"
    access_control_list: list[HeldPermissions]


class PermissionLevel(Answer):
    permission_level: Level
    description: str


class PermissionLevels(Answer):
    permission_levels: list[PermissionLevel]


class EndpointPermissionRoutes:
    """An endpoint is named by its id, as Databricks does it, or by its name."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def routes(self) -> list[Route]:
        return [
            route("GET", BASE, self.get),
            route("GET", f"{BASE}/permissionLevels", self.levels),
            route("PATCH", BASE, self.update, asked=ChangePermissions),
            route("PUT", BASE, self.replace, asked=ChangePermissions),
        ]

    def get(self, call: Call) -> EndpointPermissions:
        """All that is granted on the endpoint, to those who manage it."""
        endpoint = self._endpoint(call)
        self._catalog.grants.check(call.principal, "MANAGE", "endpoint", endpoint.name, action="getPermissions")
        return self._answer(endpoint)

    def levels(self, call: Call) -> PermissionLevels:
        """The levels that there are."""
        endpoint = self._endpoint(call)
        self._catalog.grants.check(call.principal, "BROWSE", "endpoint", endpoint.name, action="getPermissions")
        levels = [PermissionLevel(permission_level=level, description=_SAID[level]) for level in GRANTS]
        return PermissionLevels(permission_levels=levels)

    def update(self, call: Call) -> EndpointPermissions:
        """Gives the levels that are named; what others hold, and what a principal held, stays."""
        return self._change(call, replaced=False)

    def replace(self, call: Call) -> EndpointPermissions:
        """Gives the levels that are named and takes all others; the owner stays the owner."""
        return self._change(call, replaced=True)

    def _change(self, call: Call, *, replaced: bool) -> EndpointPermissions:
        endpoint, asked = self._endpoint(call), call.parse(ChangePermissions)
        grants = self._catalog.grants
        by = grants.check(call.principal, "MANAGE", "endpoint", endpoint.name, action="updatePermissions")
        given = defaultdict[str, set[str]](set)
        for number, one in enumerate(asked.access_control_list):
            given[self._principal(one, f"access_control_list.{number}")].update(GRANTS[one.permission_level])
        changes = {name: GrantChange(principal=name, add=tuple(sorted(add))) for name, add in given.items()}
        if replaced:
            for name in {grant.principal for grant in grants.list("endpoint", endpoint.name)} | given.keys():
                add = given.get(name, set())
                remove = tuple(sorted(set(_ALL) - add))
                changes[name] = GrantChange(principal=name, add=tuple(sorted(add)), remove=remove)
        if changes:
            grants.change("endpoint", endpoint.name, list(changes.values()), by=by)
        return self._answer(endpoint)

    def _endpoint(self, call: Call) -> Endpoint:
        asked = call.path["name"]
        by_id = [one for one in self._catalog.endpoints.list() if one.id == asked]
        return by_id[0] if by_id else self._catalog.endpoints.get(asked)

    def _principal(self, asked: AccessControl, where: str) -> str:
        named: dict[str, str] = {field: name for field in _FIELDS if (name := getattr(asked, field)) is not None}
        if len(named) != 1:
            raise BadRequest(f"{where} must have one of {[*_FIELDS]}, and has {sorted(named)}", param=where)
        ((field, name),) = named.items()
        kind = self._catalog.principals.get(name).kind
        if _FIELD_OF[kind] != field:
            raise BadRequest(f"{where}.{field} = {name!r}, which is a {kind}: say {_FIELD_OF[kind]}", param=where)
        return name

    def _answer(self, endpoint: Endpoint) -> EndpointPermissions:
        held = defaultdict[str, set[str]](set)
        held[endpoint.owner].add("MANAGE")
        for grant in self._catalog.grants.list("endpoint", endpoint.name):
            held[grant.principal].add(grant.privilege)
        kinds = {one.name: one.kind for one in self._catalog.principals.list()}
        entries = [
            HeldPermissions(
                **{_FIELD_OF[kinds.get(name, "user")]: name},
                display_name=name,
                all_permissions=[Permission(permission_level=level)],
            )
            for name, privileges in sorted(held.items())
            if (level := _highest(privileges)) is not None
        ]
        return EndpointPermissions(object_id=f"/serving-endpoints/{endpoint.id}", access_control_list=entries)


def _highest(privileges: set[str]) -> Level | None:
    shown = {"EXECUTE"} if ALL_PRIVILEGES in privileges else set()
    return next((level for level, of in GRANTS.items() if of[0] in shown | set(privileges)), None)
