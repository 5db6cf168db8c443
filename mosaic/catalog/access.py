"""May a principal do something: one SQL query over what is above the securable and the groups above the principal."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import sqlalchemy as sa

from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE, Need, covering, level, needs
from mosaic.catalog.schema import group_member, principal, privilege_grant, securable
from mosaic.catalog.securables import Row
from mosaic.protocol import Principal

USERS = "users"
"""The group that every active principal is in, without being added."""
ADMINS = "admins"
"""The group that owns the metastore; its members are above all."""

_LEVELS = (METASTORE, "catalog", "schema")
_OWNER = "OWNER"


def ask(connection: sa.Connection, who: str, privilege: str, kind: str, full_name: str) -> Row:
    """One row: `allowed` by grants and ownership, `known_object` and `known_principal` (there and active)."""
    return connection.execute(_question(privilege, kind), {"who": who, "full_name": full_name}).one()


@cache
def _question(privilege: str, kind: str) -> sa.Select[bool, bool, bool]:
    """Cached, since there are few and SQLAlchemy then finds their compiled form at once."""
    wanted = needs(privilege, kind)
    chain, who = _chain(kind), _who()
    covers = sorted({name for need in wanted for name in covering(need)})
    # For each level and each group one look into the primary key, however many grants a securable has.
    held = (
        sa.select(chain.c.kind.label("kind"), privilege_grant.c.privilege.label("privilege"))
        .select_from(chain)
        .join(who, sa.true())
        .join(
            privilege_grant,
            (privilege_grant.c.securable_id == chain.c.id) & (privilege_grant.c.principal == who.c.name),
        )
        .where(_one_of(privilege_grant.c.privilege, covers))
    )
    owned = sa.select(chain.c.kind, sa.literal_column(f"'{_OWNER}'")).join(who, who.c.name == chain.c.owner)
    facts = sa.union_all(held, owned).subquery("facts")
    met = [sa.func.max(sa.case((_meets(facts, need), 1), else_=0)) == 1 for need in wanted]
    return sa.select(
        sa.and_(*met).label("allowed"),
        sa.exists(sa.select(chain.c.id)).label("known_object"),
        sa.exists(sa.select(who.c.name)).label("known_principal"),
    ).select_from(facts)


def _meets(facts: sa.Subquery, need: Need) -> sa.ColumnElement[bool]:
    covered = _one_of(facts.c.privilege, (*covering(need), _OWNER))
    if level(need.kind) == len(_LEVELS):
        return covered
    return covered & _one_of(facts.c.kind, _LEVELS[: level(need.kind) + 1])


def chain_rows(connection: sa.Connection, kind: str, full_name: str) -> list[Row]:
    """The securable and all above it, the metastore first; empty if it is not there."""
    rows = connection.execute(sa.select(_chain(kind)), {"full_name": full_name}).all()
    return sorted(rows, key=lambda row: level(row.kind))


def memberships(connection: sa.Connection, who: str) -> list[Row]:
    """All edges (member, group_name) from an active principal upward, without those into `users`."""
    groups = _who()
    query = sa.select(group_member.c.member, group_member.c.group_name).join(
        groups, groups.c.name == group_member.c.member
    )
    return list(connection.execute(query.order_by(group_member.c.member, group_member.c.group_name), {"who": who}))


def grants_to(connection: sa.Connection, who: str, securable_ids: Iterable[str]) -> list[Row]:
    """The grants on some securables to a principal or to a group that it is in."""
    groups = _who()
    query = (
        sa.select(privilege_grant)
        .join(groups, groups.c.name == privilege_grant.c.principal)
        .where(privilege_grant.c.securable_id.in_(list(securable_ids)))
        .order_by(privilege_grant.c.principal, privilege_grant.c.privilege)
    )
    return list(connection.execute(query, {"who": who}))


def groups_above(connection: sa.Connection, who: str) -> set[str]:
    """An active principal and every group that it is in; empty for one that is not active or not known."""
    return set(connection.execute(sa.select(_who().c.name), {"who": who}).scalars())


def is_administrator(connection: sa.Connection, caller: Principal) -> bool:
    """Whether a principal is active, and owns the metastore (or a group of it does) or has an administrator's token."""
    groups = groups_above(connection, caller.name)
    root = sa.select(securable.c.owner).where(securable.c.kind == METASTORE)
    return bool(groups) and (caller.is_admin or connection.execute(root).scalar_one() in groups)


def visible(connection: sa.Connection, caller: Principal, kind: str, parent_kind: str, parent: str) -> list[str]:
    """The names of a kind directly under a parent that may be browsed, by name; none if the parent is not there."""
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
    query = (
        sa.select(securable.c.full_name)
        .where(securable.c.parent_id.in_(sa.select(chain.c.id).where(chain.c.kind == parent_kind)))
        .where(securable.c.kind == kind, securable.c.deleted_at.is_(None), known if caller.is_admin else above | itself)
    )
    bound = {"who": caller.name, "full_name": parent}
    return list(connection.execute(query.order_by(securable.c.full_name), bound).scalars())


def _chain(kind: str) -> sa.CTE:
    """The live securable with its kind and the bound `full_name`, and everything above it."""
    columns = (securable.c.id, securable.c.parent_id, securable.c.kind, securable.c.full_name, securable.c.owner)
    live = securable.c.deleted_at.is_(None)
    named = (securable.c.kind == kind) & (securable.c.full_name == sa.bindparam("full_name")) & live
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
        .join(itself, itself.c.name.in_([asking.c.name, sa.literal_column(f"'{USERS}'")]))
        .where(asking.c.name == sa.bindparam("who"), asking.c.active)
        .cte("who", recursive=True)
    )
    return who.union(sa.select(group_member.c.group_name).where(group_member.c.member == who.c.name))


def _one_of(column: sa.ColumnElement[Any], names: Iterable[str]) -> sa.ColumnElement[bool]:
    """As `in_`, whose list SQLAlchemy would write into the statement anew at every execution."""
    return sa.or_(*(column == name for name in names))
