"""Permissions of the protocol: what is granted on a securable, and changing it. The rules: `catalog/grants.py`."""

from collections import defaultdict
from collections.abc import Iterable

from starlette.routing import Route

from mosaic.catalog import Grant, GrantChange
from mosaic.catalog.explain import EffectivePrivilege
from mosaic.catalog.names import METASTORE, parse_securable
from mosaic.catalog.privileges import check_kind
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import PRINCIPAL, Call, route
from mosaic.catalog.unity.surface import Surface

_KINDS = {"registered_model": "model"}
"""Where the protocol has another word than the catalog."""
_UNDERSCORES = "databricks-sdk"
"""Reads only `USE_CATALOG` and drops `USE CATALOG`; Unity Catalog's own client reads only that. Both are understood."""


class PermissionRoutes:
    def __init__(self, surface: Surface) -> None:
        self._grants, self._authorize = surface.catalog.grants, surface.authorize

    def routes(self, base: str) -> list[Route]:
        path = "{securable_type}/{full_name}"
        return [
            route("GET", f"{base}/permissions/{path}", self.get, query=(PRINCIPAL,)),
            route("PATCH", f"{base}/permissions/{path}", self.update, asked=shapes.UpdatePermissions),
            route("GET", f"{base}/effective-permissions/{path}", self.effective, query=(PRINCIPAL,)),
        ]

    def get(self, call: Call) -> shapes.Permissions:
        """Whoever manages a securable sees all that is granted on it; others see their own."""
        kind, name = _securable(call)
        principal = call.find("principal")
        self._authorize(call.principal, "BROWSE" if principal == call.principal.name else "MANAGE", kind, _asked(name))
        granted = self._grants.list(kind, name, principal)
        return _assignments(call, granted)

    def update(self, call: Call) -> shapes.Permissions:
        kind, name = _securable(call)
        asked = call.parse(shapes.UpdatePermissions)
        self._authorize(call.principal, "MANAGE", kind, _asked(name))
        changes = [GrantChange(principal=one.principal, add=one.add, remove=one.remove) for one in asked.changes]
        granted = self._grants.change(kind, name, changes, by=call.principal)
        return _assignments(call, granted)

    def effective(self, call: Call) -> shapes.EffectivePermissions:
        """What a principal holds, whatever it comes from; without one asked for, the caller."""
        kind, name = _securable(call)
        principal = call.find("principal") or call.principal.name
        own = principal == call.principal.name
        self._authorize(call.principal, "BROWSE" if own else "MANAGE", kind, _asked(name))
        held = self._grants.effective(call.principal if own else principal, kind, name)
        usable = [_effective(one, kind, name) for one in held if one.usable]
        return shapes.EffectivePermissions(
            privilege_assignments=[shapes.EffectiveAssignment(principal=principal, privileges=usable)]
        )


def _securable(call: Call) -> tuple[str, str]:
    asked = call.path["securable_type"].lower()
    kind = _KINDS.get(asked, asked)
    check_kind(kind)
    return kind, METASTORE if kind == METASTORE else parse_securable(kind, call.path["full_name"])


def _asked(name: str) -> str:
    return "" if name == METASTORE else name


def _assignments(call: Call, granted: Iterable[Grant]) -> shapes.Permissions:
    """The privileges of each principal, spelled as the client that asks reads them."""
    by_principal = defaultdict(list)
    for grant in granted:
        spelled = _underscored(grant.privilege) if _UNDERSCORES in call.agent else grant.privilege
        by_principal[grant.principal].append(spelled)
    return shapes.Permissions(
        privilege_assignments=[
            shapes.PrivilegeAssignment(principal=principal, privileges=sorted(privileges))
            for principal, privileges in sorted(by_principal.items())
        ]
    )


def _effective(held: EffectivePrivilege, kind: str, name: str) -> shapes.EffectivePrivilege:
    inherited = (held.reason.kind, held.reason.name) != (kind, name)
    return shapes.EffectivePrivilege(
        privilege=_underscored(held.privilege),
        inherited_from_type=held.reason.kind.upper() if inherited else None,
        inherited_from_name=held.reason.name if inherited else None,
    )


def _underscored(privilege: str) -> str:
    return privilege.replace(" ", "_")
