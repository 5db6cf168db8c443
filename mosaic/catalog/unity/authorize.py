"""Who may do what through the protocol: the one question that every route asks before everything it does."""

from typing import Protocol

from mosaic.catalog.audit import of_securable
from mosaic.catalog.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE, MANAGE, READING
from mosaic.catalog.securables import check_reserved
from mosaic.errors import PermissionDenied
from mosaic.protocol import Principal

_HELD_BY = {"CREATE_MODEL_VERSION": MANAGE}
"""What the protocol asks about and Unity Catalog's grants have no word for."""


class Authorize(Protocol):
    """Raises PermissionDenied unless the principal has the privilege on the securable.

    What it gives is the principal to change things as (`catalog.grants.check` says why).

    Privileges are Unity Catalog's with underscores; kinds are metastore (its name is "") and those of
    the catalog; names are whole and in lower case. Whether the securable exists is not known yet.
    """

    def __call__(self, principal: Principal, privilege: str, securable_kind: str, full_name: str) -> Principal: ...


def by_grants(catalog: Catalog) -> Authorize:
    """The rule of the catalog's grants; a denial is a row of the audit. Raises NotFound for what is not there."""

    def authorize(principal: Principal, privilege: str, securable_kind: str, full_name: str) -> Principal:
        if securable_kind == METASTORE and privilege == BROWSE:
            return principal  # anyone signed in may ask what there is; the answer has what they may know of
        wanted = _HELD_BY.get(privilege, privilege)
        if wanted.replace("_", " ") not in READING:
            try:
                check_reserved(full_name, principal.name)
            except PermissionDenied as error:
                named = of_securable(securable_kind, full_name, privilege=wanted.replace("_", " "))
                catalog.audit.deny("checkPrivilege", named, error, by=principal)
                raise
        return catalog.grants.check(principal, wanted, securable_kind, full_name or METASTORE)

    return authorize
