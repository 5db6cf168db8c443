"""Users, services, and groups of them, which may be in groups themselves; only administrators change them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from mosaic.catalog import names
from mosaic.catalog.access import ADMINS, USERS, groups_above, is_administrator
from mosaic.catalog.audit import ACCOUNTS_SERVICE, Change, change
from mosaic.catalog.drops import RETENTION
from mosaic.catalog.explain import shortest_paths
from mosaic.catalog.records import KnownPrincipal
from mosaic.catalog.schema import group_member, principal, privilege_grant, securable
from mosaic.catalog.store import Store
from mosaic.errors import AlreadyExists, BadRequest, Conflict, PermissionDenied, not_found
from mosaic.protocol import Principal

Caller = Principal | str
"""Who asks: as the gateway knows it, or a name alone, without an administrator's token. Never what a client sent."""

ADMIN = "admin"
"""Who changes things in process unless somebody else is named."""

_NEEDED = {
    ADMIN: "whom the command line acts for",
    names.SYSTEM_OWNER: "the platform itself",
    names.INTERNAL: "whom the platform's parts call as",
}
"""Without them nobody could put things right again."""

_KINDS = ("user", "service", "group")


class Principals:
    """`catalog.principals`. Every change is checked, and is one audit row; what is so already changes nothing."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    def create(self, name: str, *, by: Caller, kind: Literal["user", "service"] = "user") -> KnownPrincipal:
        """A user or service that may be granted to before it has a token. Raises AlreadyExists, PermissionDenied."""
        if kind not in ("user", "service"):
            raise BadRequest(f"kind {kind!r} of a principal must be 'user' or 'service'", param="kind")
        return self._create(name, kind, "add", by=by)

    def create_group(self, name: str, *, by: Caller) -> KnownPrincipal:
        """An empty group; no user or service has its name. Raises AlreadyExists, PermissionDenied."""
        return self._create(name, "group", "createGroup", by=by)

    def delete_group(self, name: str, *, by: Caller) -> None:
        """Take a group away with its grants and memberships; raises Conflict while it owns something."""
        names.check_principal(name, "group")
        if name in (ADMINS, USERS):
            raise BadRequest(f"group {name!r} is the platform's own and cannot be deleted", param="group")
        caller = as_principal(by)
        with self._change("removeGroup", group=name, by=caller) as going:
            connection = going.connection
            _check_administrator(connection, caller, f"delete group {name!r}")
            _get_group(connection, name)
            _check_owns_nothing(connection, name, now=self._now())
            connection.execute(privilege_grant.delete().where(privilege_grant.c.principal == name))
            edges = (group_member.c.group_name == name) | (group_member.c.member == name)
            connection.execute(group_member.delete().where(edges))
            connection.execute(principal.delete().where(principal.c.name == name))

    def add_member(self, group: str, member: str, *, by: Caller) -> None:
        """Put a principal into a group; raises NotFound, and Conflict if a group would come to be in itself."""
        _check_membership(group, member)
        caller, now = as_principal(by), self._now()
        with self._change("addPrincipalToGroup", group=group, member=member, by=caller) as going:
            connection = going.connection
            _check_administrator(connection, caller, f"add {member!r} to group {group!r}")
            _get_group(connection, group)
            get(connection, member)
            _check_no_cycle(connection, group, member)
            going.happened = not _is_member(connection, group, member)
            if going.happened:
                edge = {"group_name": group, "member": member, "added_by": caller.name, "added_at": now}
                connection.execute(group_member.insert().values(edge))

    def remove_member(self, group: str, member: str, *, by: Caller) -> None:
        """Take a principal out of a group; raises NotFound if it is not directly in it."""
        _check_membership(group, member)
        caller = as_principal(by)
        with self._change("removePrincipalFromGroup", group=group, member=member, by=caller) as going:
            connection = going.connection
            _check_administrator(connection, caller, f"remove {member!r} from group {group!r}")
            _get_group(connection, group)
            if group == ADMINS and member in _NEEDED:
                raise BadRequest(f"{member!r} is {_NEEDED[member]}, and stays in group {ADMINS!r}", param="member")
            if not _is_member(connection, group, member):
                raise not_found(f"member of group {group!r}", member, _members(connection, group), param="member")
            edge = (group_member.c.group_name == group) & (group_member.c.member == member)
            connection.execute(group_member.delete().where(edge))

    def set_active(self, name: str, active: bool, *, by: Caller) -> KnownPrincipal:
        """Whether a user's or service's tokens and grants have effect; what it owns and was granted stays."""
        names.check_principal(name, "principal")
        caller = as_principal(by)
        with self._change("activateUser" if active else "deactivateUser", principal=name, by=caller) as going:
            connection = going.connection
            _check_administrator(connection, caller, f"{'activate' if active else 'deactivate'} {name!r}")
            found = get(connection, name)
            if found.kind == "group" or (not active and name in _NEEDED):
                what = "a group" if found.kind == "group" else _NEEDED[name]
                raise BadRequest(f"principal {name!r} is {what}; only users and services are deactivated", param="name")
            going.happened = found.active != active
            if going.happened:
                connection.execute(principal.update().where(principal.c.name == name).values(active=active))
        return self.get(name)

    def get(self, name: str) -> KnownPrincipal:
        """Raises NotFound."""
        names.check_principal(name, "principal")
        with self._store.read() as connection:
            return get(connection, name)

    def list(self, kind: Literal["user", "service", "group"] | None = None) -> Sequence[KnownPrincipal]:
        """By name."""
        if kind is not None and kind not in _KINDS:
            raise BadRequest(f"kind {kind!r} of a principal must be one of {_KINDS}", param="kind")
        query = sa.select(principal).order_by(principal.c.name)
        with self._store.read() as connection:
            found = connection.execute(query if kind is None else query.where(principal.c.kind == kind))
            return [KnownPrincipal(**row._mapping) for row in found]

    def members(self, group: str) -> Sequence[str]:
        """Who is directly in a group, by name; nobody is in `users`, which everybody is in. Raises NotFound."""
        names.check_principal(group, "group")
        with self._store.read() as connection:
            _get_group(connection, group)
            return _members(connection, group)

    def groups_of(self, name: str) -> Sequence[str]:
        """Every group that a principal is in, directly or through groups, by name; none if it is not active."""
        names.check_principal(name, "principal")
        with self._store.read() as connection:
            get(connection, name)
            return sorted(groups_above(connection, name) - {name})

    def is_administrator(self, caller: Caller) -> bool:
        """Whether somebody is above all: a member of group `admins`, or with an administrator's token, and active."""
        with self._store.read() as connection:
            return is_administrator(connection, as_principal(caller))

    def _change(
        self, action_name: str, *, by: Principal, **params: str
    ) -> "AbstractContextManager[Change, bool | None]":
        return change(self._store, action_name, params, by=by, now=self._now(), service_name=ACCOUNTS_SERVICE)

    def _create(self, name: str, kind: str, action_name: str, *, by: Caller) -> KnownPrincipal:
        names.check_principal(name, "name")
        caller, now = as_principal(by), self._now()
        with self._change(action_name, name=name, kind=kind, by=caller) as going:
            connection = going.connection
            _check_administrator(connection, caller, f"create {kind} {name!r}")
            there = find(connection, name)
            if there is not None:
                raise AlreadyExists(f"the name {name!r} is taken by a {there.kind}", param="name")
            _insert(connection, name, kind, by=caller.name, now=now)
            return get(connection, name)


def as_principal(caller: Caller) -> Principal:
    return caller if isinstance(caller, Principal) else Principal(name=caller)


def find(connection: sa.Connection, name: str) -> KnownPrincipal | None:
    """None if nobody has that name."""
    row = connection.execute(sa.select(principal).where(principal.c.name == name)).one_or_none()
    return None if row is None else KnownPrincipal(**row._mapping)


def get(connection: sa.Connection, name: str) -> KnownPrincipal:
    """Raises NotFound with the names that there are."""
    found = find(connection, name)
    if found is None:
        raise not_found("principal", name, connection.execute(sa.select(principal.c.name)).scalars(), param="principal")
    return found


def ensure(connection: sa.Connection, name: str, *, kind: str, now: datetime) -> None:
    """A principal of that name, made if nobody has it; raises BadRequest if a group has it."""
    found = find(connection, name)
    if found is not None and found.kind == "group":
        raise BadRequest(f"principal {name!r} is a group, and a group has no tokens", param="principal")
    if found is None:
        _insert(connection, name, kind, by=names.SYSTEM_OWNER, now=now)


def _insert(connection: sa.Connection, name: str, kind: str, *, by: str, now: datetime) -> None:
    row = {"name": name, "kind": kind, "active": True, "created_at": now, "created_by": by}
    connection.execute(principal.insert().values(row))


def _check_administrator(connection: sa.Connection, caller: Principal, what: str) -> None:
    if not is_administrator(connection, caller):
        raise PermissionDenied(
            f"{caller.name!r} may not {what}: only administrators may, who are the members of group {ADMINS!r}"
        )


def _check_membership(group: str, member: str) -> None:
    names.check_principal(group, "group")
    names.check_principal(member, "member")
    if group == USERS:
        raise BadRequest(f"every active principal is in group {USERS!r}; it has no members of its own", param="group")
    if member == USERS:
        raise BadRequest(f"everybody is in group {USERS!r}, so it is in no other; grant to it instead", param="member")


def _check_no_cycle(connection: sa.Connection, group: str, member: str) -> None:
    above = shortest_paths(group, connection.execute(_GROUPS_IN_GROUPS))
    if member in above:
        circle = " in ".join((member, *above[member]))
        raise Conflict(f"{member!r} cannot be put into group {group!r}: {circle} would be a cycle", param="member")


def _check_owns_nothing(connection: sa.Connection, name: str, *, now: datetime) -> None:
    """Nor what undrop could still bring back: it would be whoever's takes the name next."""
    back = (securable.c.deleted_at >= now - RETENTION) & securable.c.purged_at.is_(None)
    owned = (securable.c.owner == name) & (securable.c.deleted_at.is_(None) | back)
    columns = (securable.c.kind, securable.c.full_name, securable.c.deleted_at)
    rows = list(connection.execute(sa.select(*columns).where(owned).order_by(securable.c.full_name).limit(20)))
    if rows:
        shown = [f"{row.kind} {row.full_name}" + (" (dropped)" if row.deleted_at else "") for row in rows]
        dropped = "" if all(row.deleted_at is None for row in rows) else ", and undrop for that what is dropped"
        raise Conflict(f"group {name!r} owns {shown}; give them another owner first{dropped}", param="group")


def _get_group(connection: sa.Connection, name: str) -> None:
    found = find(connection, name)
    if found is None or found.kind != "group":
        groups = connection.execute(sa.select(principal.c.name).where(principal.c.kind == "group")).scalars()
        raise not_found("group", name, groups, param="group")


def _is_member(connection: sa.Connection, group: str, member: str) -> bool:
    edge = (group_member.c.group_name == group) & (group_member.c.member == member)
    return connection.execute(sa.select(group_member.c.member).where(edge)).one_or_none() is not None


def _members(connection: sa.Connection, group: str) -> list[str]:
    query = sa.select(group_member.c.member).where(group_member.c.group_name == group)
    return list(connection.execute(query.order_by(group_member.c.member)).scalars())


_GROUPS_IN_GROUPS = (
    sa.select(group_member.c.member, group_member.c.group_name)
    .join(principal, principal.c.name == group_member.c.member)
    .where(principal.c.kind == "group")
    .order_by(group_member.c.member, group_member.c.group_name)
)
