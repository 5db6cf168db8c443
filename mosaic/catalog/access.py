"""May a principal do something: one SQL query over what is above the securable and the groups above the principal."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import sqlalchemy as sa

from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE, EXECUTE_UNSAFE, OWNED_UNSAFE, Need, covering, level, needs
from mosaic.catalog.schema import group_member, principal, privilege_grant, securable
from mosaic.catalog.securables import Row
from mosaic.protocol import Principal

USERS = "users"
"""The group that every active principal is in, without being added."""
ADMINS = "admins"
"""The group that owns the metastore; its members are above all."""

_LEVELS = (METASTORE, "catalog", "schema")
_ONE, _ZERO = sa.literal_column("1", sa.Integer), sa.literal_column("0", sa.Integer)


def ask(connection: sa.Connection, who: str, privilege: str, kind: str, full_name: str) -> Row:
    """One row: `allowed` by grants and ownership, `known_object` and `known_principal` (there and active)."""
    return connection.execute(_question(privilege, kind), {"who": who, "full_name": full_name}).one()


@cache
def _question(privilege: str, kind: str) -> sa.Select[*tuple[Any, ...]]:
    """Cached, since there are few and SQLAlchemy then finds their compiled form at once."""
    chain, who = _chain(kind), _who()
    # An outer join keeps SQLite from reading all grants of a securable first: it looks up each level and group.
    here = (privilege_grant.c.securable_id == chain.c.id) & (privilege_grant.c.principal == who.c.name)
    held = sa.join(sa.join(chain, who, sa.true()), privilege_grant, here, isouter=True)
    met = []
    for need in needs(privilege, kind):
        owns = chain.c.owner == who.c.name
        if need.privilege == EXECUTE_UNSAFE:
            owns &= _one_of(chain.c.kind, OWNED_UNSAFE)
        holds = owns | _one_of(privilege_grant.c.privilege, covering(need))
        if need.kind != kind:  # what is below the need's own kind does not count
            holds &= _one_of(chain.c.kind, (*_LEVELS[: level(need.kind)], need.kind))
        met.append(sa.func.max(sa.case((holds, _ONE), else_=_ZERO)) == _ONE)
    return sa.select(
        sa.and_(*met).label("allowed"),
        sa.exists(sa.select(chain.c.id)).label("known_object"),
        sa.exists(sa.select(who.c.name)).label("known_principal"),
    ).select_from(held)


def chain_rows(connection: sa.Connection, kind: str, full_name: str) -> list[Row]:
    """The securable and all above it, the metastore first; empty if it is not there."""
    rows = connection.execute(_above(kind), {"full_name": full_name})
    return sorted(rows, key=lambda row: level(row.kind))


def memberships(connection: sa.Connection, who: str) -> list[Row]:
    """All edges (member, group_name) from an active principal upward, without those into `users`."""
    return list(connection.execute(_edges(), {"who": who}))


def grants_to(connection: sa.Connection, who: str, kind: str, full_name: str) -> list[Row]:
    """The grants on a securable, and on all above it, to a principal or to a group that it is in."""
    return list(connection.execute(_granted(kind), {"who": who, "full_name": full_name}))


def groups_above(connection: sa.Connection, who: str) -> set[str]:
    """An active principal and every group that it is in; empty for one that is not active or not known."""
    return set(connection.execute(_groups(), {"who": who}).scalars())


def is_administrator(connection: sa.Connection, caller: Principal) -> bool:
    """Whether a principal is active, and owns the metastore (or a group of it does) or has an administrator's token."""
    groups = groups_above(connection, caller.name)
    root = sa.select(securable.c.owner).where(securable.c.kind == METASTORE)
    return bool(groups) and (caller.is_admin or connection.execute(root).scalar_one() in groups)


def visible(connection: sa.Connection, caller: Principal, kind: str, parent_kind: str, parent: str) -> list[str]:
    """The names of a kind directly under a parent that may be browsed, by name; none if the parent is not there."""
    query = _seen(kind, parent_kind, caller.is_admin)
    return list(connection.execute(query, {"who": caller.name, "full_name": parent}).scalars())


@cache
def _above(kind: str) -> sa.Select[*tuple[Any, ...]]:
    return sa.select(_chain(kind))


@cache
def _groups() -> sa.Select[*tuple[Any, ...]]:
    return sa.select(_who().c.name)


@cache
def _edges() -> sa.Select[*tuple[Any, ...]]:
    who = _who()
    edges = sa.select(group_member.c.member, group_member.c.group_name).join(who, who.c.name == group_member.c.member)
    return edges.order_by(group_member.c.member, group_member.c.group_name)


@cache
def _granted(kind: str) -> sa.Select[*tuple[Any, ...]]:
    chain, who = _chain(kind), _who()
    grants = sa.select(privilege_grant).join(chain, chain.c.id == privilege_grant.c.securable_id)
    named = grants.join(who, who.c.name == privilege_grant.c.principal)
    return named.order_by(privilege_grant.c.principal, privilege_grant.c.privilege)


@cache
def _seen(kind: str, parent_kind: str, is_admin: bool) -> sa.Select[*tuple[Any, ...]]:
    chain, who = _chain(parent_kind), _who()
    fitting = covering(Need(BROWSE, kind))
    privilege = _one_of(privilege_grant.c.privilege, fitting)
    above = sa.exists(sa.select(chain.c.id).join(who, who.c.name == chain.c.owner)) | sa.exists(
        sa.select(chain.c.id)
        .join(privilege_grant, privilege_grant.c.securable_id == chain.c.id)
        .join(who, who.c.name == privilege_grant.c.principal)
        .where(privilege)
    )
    itself = securable.c.owner.in_(sa.select(who.c.name)) | sa.exists(
        sa.select(privilege_grant.c.privilege)
        .join(who, who.c.name == privilege_grant.c.principal)
        .where(privilege_grant.c.securable_id == securable.c.id, privilege)
        .correlate(securable)
    )
    known = sa.exists(sa.select(who.c.name))
    return (
        sa.select(securable.c.full_name)
        .where(securable.c.parent_id.in_(sa.select(chain.c.id).where(chain.c.kind == parent_kind)))
        .where(securable.c.kind == kind, securable.c.deleted_at.is_(None), known if is_admin else above | itself)
        .order_by(securable.c.full_name)
    )


def _chain(kind: str) -> sa.CTE:
    """The live securable with its kind and the bound `full_name`, and everything above it."""
    columns = (securable.c.id, securable.c.parent_id, securable.c.kind, securable.c.full_name, securable.c.owner)
    live = securable.c.deleted_at.is_(None)
    named = (securable.c.kind == _word(kind)) & (securable.c.full_name == sa.bindparam("full_name")) & live
    chain = sa.select(*columns).where(named).cte("chain", recursive=True)
    above = securable.alias("above")
    return chain.union_all(
        sa.select(*(above.c[column.name] for column in columns)).where(above.c.id == chain.c.parent_id)
    )


def _who() -> sa.CTE:
    """The bound principal `who` if it is active, `users`, and every group that holds one of them."""
    asking, itself = principal.alias("asking"), principal.alias("itself")
    who = (
        sa.select(itself.c.name)
        .select_from(asking)
        .join(itself, itself.c.name.in_([asking.c.name, _word(USERS)]))
        .where(asking.c.name == sa.bindparam("who"), asking.c.active)
        .cte("who", recursive=True)
    )
    return who.union(sa.select(group_member.c.group_name).where(group_member.c.member == who.c.name))


def _one_of(column: sa.ColumnElement[Any], words: Iterable[str]) -> sa.ColumnElement[bool]:
    """Words of ours, never a caller's, written into the statement: bound, each would cost at every execution."""
    return column.in_([_word(word) for word in words])


def _word(word: str) -> sa.ColumnClause[str]:
    return sa.literal_column(f"'{word}'", sa.String)
