"""Who may do what through the protocol: the one question that every route asks before everything it does."""

from typing import Protocol

from mosaic.catalog.names import RESERVED_CATALOG, SYSTEM_OWNER
from mosaic.errors import PermissionDenied
from mosaic.protocol import Principal

READING = frozenset({"BROWSE", "USE_CATALOG", "USE_SCHEMA", "SELECT", "EXECUTE"})
"""Privileges that change nothing."""


class Authorize(Protocol):
    """Raises PermissionDenied unless the principal has the privilege on the securable.

    Privileges are Unity Catalog's with underscores; kinds are metastore (its name is ""), catalog, schema, table and
    model; names are whole and in lower case. Whether the securable exists is not known yet.
    """

    def __call__(self, principal: Principal, privilege: str, securable_kind: str, full_name: str) -> None: ...


def authorize(principal: Principal, privilege: str, securable_kind: str, full_name: str) -> None:
    """Anyone signed in may read, administrators may change, and nobody else changes the platform's own catalog."""
    if privilege in READING:
        return
    if full_name.partition(".")[0] == RESERVED_CATALOG and principal.name != SYSTEM_OWNER:
        raise PermissionDenied(
            f"catalog {RESERVED_CATALOG!r} is the platform's own; {principal.name!r} cannot change anything in it"
        )
    if not principal.is_admin:
        raise PermissionDenied(
            f"{principal.name!r} has no {privilege} on {securable_kind} {full_name!r}; only administrators have"
            if full_name
            else f"{principal.name!r} has no {privilege} on the {securable_kind}; only administrators have"
        )
