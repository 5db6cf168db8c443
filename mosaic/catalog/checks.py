"""Checks inside a transaction, and who acts by leave of one: what was allowed is asked again where it is done.

Between a check and the change that it was made for, a grant can be taken back, and the name can come to be another's.
Writes happen one at a time, so that a check inside the write holds until its end.
"""

from typing import NamedTuple

import sqlalchemy as sa

from mosaic.catalog import access, privileges
from mosaic.catalog.explain import Access, Explanation
from mosaic.catalog.names import METASTORE
from mosaic.catalog.schema import principal
from mosaic.errors import BadRequest, NotFound, PermissionDenied, not_found
from mosaic.protocol import Principal


class Asked(NamedTuple):
    """A privilege that was asked for on a securable, and was there."""

    privilege: str
    kind: str
    name: str


class Acting(Principal):
    """A principal that was checked: handed to a change as `by`, it is asked the same again in its transaction."""

    allowed: tuple[Asked, ...] = ()


def acting(caller: Principal, asked: Asked) -> Acting:
    """The caller with what it was asked, after what it was asked before."""
    before = caller.allowed if isinstance(caller, Acting) else ()
    return Acting(**{**dict(caller), "allowed": (*before, asked)})


def ask_again(connection: sa.Connection, caller: Principal) -> None:
    """Raises PermissionDenied or NotFound for what is not so any more."""
    if isinstance(caller, Acting):
        for asked in caller.allowed:
            require(connection, caller, asked.privilege, asked.kind, asked.name)


def require(connection: sa.Connection, caller: Principal, privilege: str, kind: str, name: str) -> None:
    """Raises PermissionDenied with what is missing, NotFound if there is no such securable; the name is whole."""
    row = access.ask(connection, caller.name, privilege, kind, name)
    if not (row.known_object and row.known_principal and (caller.is_admin or row.allowed)):
        told = look(connection, caller, kind, name).explain(privilege)
        if not told.allowed:
            raise denied(told)


def look(connection: sa.Connection, caller: Principal, kind: str, name: str) -> Access:
    """All that decides about a caller and a securable; raises NotFound."""
    chain = access.chain_rows(connection, kind, name)
    if not chain:
        raise missing(connection, caller, kind, name)
    active = connection.execute(sa.select(principal.c.active).where(principal.c.name == caller.name)).scalar()
    problem = None
    if not active:
        problem = f"no principal {caller.name!r} is known" if active is None else f"{caller.name!r} is deactivated"
    return Access(
        caller.name,
        chain,
        access.grants_to(connection, caller.name, kind, name),
        access.memberships(connection, caller.name),
        problem=problem,
        is_admin=caller.is_admin,
    )


def missing(connection: sa.Connection, caller: Principal, kind: str, name: str) -> NotFound:
    """With the names beside the one asked for, as far as the caller may know of them."""
    parent = name.rpartition(".")[0] or METASTORE
    beside = [] if kind == METASTORE else access.visible(connection, caller, kind, parent_kind(kind), parent)
    return not_found(kind, name, beside, param="name")


def denied(told: Explanation) -> PermissionDenied:
    what = f"{told.principal!r} may not {told.privilege} on {told.kind} {told.name!r}"
    return PermissionDenied(f"{what}: {told.problem or f'missing {told.missing}'}")


def parent_kind(kind: str) -> str:
    """What stands right above a securable of a kind; raises BadRequest for the metastore."""
    if kind == METASTORE:
        raise BadRequest("nothing is above the metastore", param="kind")
    level = privileges.level(kind)
    return METASTORE if level == 1 else "catalog" if level == 2 else "schema"
