"""Who may do what through the protocol: the one question that every route asks before everything it does."""

from typing import Protocol

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE, MANAGE
from mosaic.catalog.securables import check_reserved
from mosaic.protocol import Principal

READING = frozenset({BROWSE, "USE_CATALOG", "USE_SCHEMA", "SELECT", "EXECUTE", "READ_VOLUME", "USE_CONNECTION"})
"""Privileges that change nothing."""
_HELD_BY = {"CREATE_MODEL_VERSION": MANAGE}
"""What the protocol asks about and Unity Catalog's grants have no word for."""


class Authorize(Protocol):
    """Raises PermissionDenied unless the principal has the privilege on the securable.

    Privileges are Unity Catalog's with underscores; kinds are metastore (its name is "") and those of
    the catalog; names are whole and in lower case. Whether the securable exists is not known yet.
    """

    def __call__(self, principal: Principal, privilege: str, securable_kind: str, full_name: str) -> None: ...


def by_grants(catalog: Catalog) -> Authorize:
    """The rule of the catalog's grants; a denial is a row of the audit. Raises NotFound for what is not there."""

    def authorize(principal: Principal, privilege: str, securable_kind: str, full_name: str) -> None:
        if securable_kind == METASTORE and privilege == BROWSE:
            return  # anyone signed in may ask what there is; the answer has what they may know of
        if privilege not in READING:
            check_reserved(full_name, principal.name)
        wanted = _HELD_BY.get(privilege, privilege)
        catalog.grants.check(principal, wanted, securable_kind, full_name or METASTORE)

    return authorize
