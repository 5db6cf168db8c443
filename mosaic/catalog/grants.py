"""Who may do what: start reading here; the rules are in `privileges.py`, the query in `access.py`."""

from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog import access, names, principals, privileges, securables
from mosaic.catalog.audit import CATALOG_SERVICE, change, deny, new_action, of_securable
from mosaic.catalog.explain import Access, EffectivePrivilege, Explanation
from mosaic.catalog.names import METASTORE
from mosaic.catalog.principals import Caller, as_principal
from mosaic.catalog.records import Grant, GrantChange
from mosaic.catalog.schema import privilege_grant
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, NotFound, PermissionDenied, not_found
from mosaic.protocol import Principal


class Grants:
    """`catalog.grants`. A securable is named by its kind and name; the root is ("metastore", "metastore").

    Nothing is cached: a grant that was taken back is gone for the next check, in every process.
    """

    def __init__(self, store: Store, now: Callable[[], datetime], *, serving_schema: str) -> None:
        self._store = store
        self._now = now
        self._serving_schema = serving_schema

    # Changing: by owners, holders of MANAGE and administrators

    def grant(self, kind: str, name: str, principal: str, granted: Sequence[str], *, by: Caller) -> Sequence[Grant]:
        """Grant privileges to a principal; those that it has stay as they are. Its grants on the securable."""
        asked = GrantChange(principal=principal, add=_several(granted))
        return _of(self.change(kind, name, [asked], by=by), principal)

    def revoke(self, kind: str, name: str, principal: str, revoked: Sequence[str], *, by: Caller) -> Sequence[Grant]:
        """Take back what was granted on this securable itself; what comes from above or through a group stays."""
        asked = GrantChange(principal=principal, remove=_several(revoked))
        return _of(self.change(kind, name, [asked], by=by), principal)

    def change(self, kind: str, name: str, changes: Sequence[GrantChange], *, by: Caller) -> Sequence[Grant]:
        """Several principals' grants on one securable in one transaction and one audit row; then all grants on it.

        Raises BadRequest for a privilege that does not fit the kind, NotFound for the securable or a principal,
        PermissionDenied unless `by` may MANAGE the securable.
        """
        name, caller, now = self._name(kind, name), as_principal(by), self._now()
        checked = [_checked(one, kind) for one in changes]
        named = of_securable(kind, name, changes=_shown(checked))
        with change(self._store, "updatePermissions", named, by=caller, now=now) as going:
            self._check_manages(going.connection, caller, kind, name)
            row = securables.get(going.connection, kind, name)
            applied = [_apply(going.connection, row.id, one, by=caller.name, now=now) for one in checked]
            going.happened = any(applied)
            return _direct(going.connection, row)

    def set_owner(self, kind: str, name: str, owner: str, *, by: Caller, expected_etag: str | None = None) -> str:
        """Give a securable to another user, service or group, as `change`; the metastore is administrators' to give.

        Its etag afterwards.
        """
        name, caller, now = self._name(kind, name), as_principal(by), self._now()
        names.check_principal(owner)
        with change(
            self._store, f"update{kind.capitalize()}", of_securable(kind, name, owner=owner), by=caller, now=now
        ) as going:
            connection = going.connection
            self._check_manages(connection, caller, kind, name)
            if kind == METASTORE and not access.is_administrator(connection, caller):
                raise PermissionDenied(f"{caller.name!r} may not give the metastore away: only administrators may")
            principals.get(connection, owner)
            row = securables.get(connection, kind, name, lock=True)
            securables.check_etag(row, expected_etag)
            securables.check_reserved(name, owner)
            going.happened = row.owner != owner
            if going.happened:
                securables.set_owner(connection, row, owner, now=now, by=caller.name)
            return securables.etag(securables.get(connection, kind, name))

    # Asking

    def list(self, kind: str, name: str, principal: str | None = None) -> Sequence[Grant]:
        """What is granted on the securable itself, to all or to one; raises NotFound."""
        name = self._name(kind, name)
        with self._store.read() as connection:
            found = _direct(connection, securables.get(connection, kind, name))
            if principal is not None:
                principals.get(connection, principal)
        return found if principal is None else _of(found, principal)

    def effective(self, principal: Caller, kind: str, name: str) -> Sequence[EffectivePrivilege]:
        """Every privilege that a principal holds on a securable, with where it comes from; raises NotFound."""
        name = self._name(kind, name)
        with self._store.read() as connection:
            return self._access(connection, as_principal(principal), kind, name).effective()

    def visible(self, principal: Caller, kind: str, parent: str) -> Sequence[str]:
        """The names of a kind, directly under a catalog or schema (or `metastore`), that a principal may BROWSE."""
        caller = as_principal(principal)
        privileges.check_kind(kind)
        parent_kind = _parent_kind(kind)
        parent = self._name(parent_kind, parent)
        with self._store.read() as connection:
            return access.visible(connection, caller, kind, parent_kind, parent)

    def is_allowed(self, principal: Caller, privilege: str, kind: str, name: str) -> bool:
        """Whether a principal may do something, by one query; False for one that is not known or not active.

        Raises BadRequest for a privilege that does not fit the kind, NotFound for the securable.
        """
        name, caller = self._name(kind, name), as_principal(principal)
        privilege = privileges.parse(privilege, kind)
        with self._store.read() as connection:
            row = access.ask(connection, caller.name, privilege, kind, name)
            if not row.known_object:
                raise self._not_found(connection, caller, kind, name)
        return bool(row.known_principal and (caller.is_admin or row.allowed))

    def check(self, principal: Caller, privilege: str, kind: str, name: str, *, action: str = "checkPrivilege") -> None:
        """As `is_allowed`, but raises PermissionDenied with what is missing, which is written down.

        `action` is the audit row's action_name: what the principal was about to do, such as `getTable`.
        """
        if self.is_allowed(principal, privilege, kind, name):
            return
        told = self.explain(principal, privilege, kind, name)
        if told.allowed:
            return  # granted in between
        error = _denied(told)
        act = new_action(CATALOG_SERVICE, action, of_securable(told.kind, told.name, privilege=told.privilege))
        deny(self._store, act, error, by=as_principal(principal), now=self._now())
        raise error

    def explain(self, principal: Caller, privilege: str, kind: str, name: str) -> Explanation:
        """Why a principal may or may not do something; `print` shows a tree. Raises as `is_allowed`."""
        name, caller = self._name(kind, name), as_principal(principal)
        privilege = privileges.parse(privilege, kind)
        with self._store.read() as connection:
            return self._access(connection, caller, kind, name).explain(privilege)

    def _check_manages(self, connection: sa.Connection, caller: Principal, kind: str, name: str) -> None:
        told = self._access(connection, caller, kind, name).explain(privileges.MANAGE)
        if not told.allowed:
            raise _denied(told)

    def _access(self, connection: sa.Connection, caller: Principal, kind: str, name: str) -> Access:
        chain = access.chain_rows(connection, kind, name)
        if not chain:
            raise self._not_found(connection, caller, kind, name)
        found = principals.find(connection, caller.name)
        problem = None
        if found is None or not found.active:
            problem = f"no principal {caller.name!r} is known" if found is None else f"{caller.name!r} is deactivated"
        return Access(
            caller.name,
            chain,
            access.grants_to(connection, caller.name, kind, name),
            access.memberships(connection, caller.name),
            problem=problem,
            is_admin=caller.is_admin,
        )

    def _not_found(self, connection: sa.Connection, caller: Principal, kind: str, name: str) -> NotFound:
        """Names beside the one asked for, as far as the caller may know of them."""
        parent = name.rpartition(".")[0] or METASTORE
        beside = [] if kind == METASTORE else access.visible(connection, caller, kind, _parent_kind(kind), parent)
        return not_found(kind, name, beside, param="name")

    def _name(self, kind: str, name: str) -> str:
        privileges.check_kind(kind)
        if kind == "endpoint" and "." not in name:
            name = f"{self._serving_schema}.{name}"
        return names.parse_securable(kind, name)


def _of(grants: Sequence[Grant], principal: str) -> list[Grant]:
    return [grant for grant in grants if grant.principal == principal]


def _several(named: Sequence[str]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else tuple(named)


def _parent_kind(kind: str) -> str:
    if kind == METASTORE:
        raise BadRequest("nothing is above the metastore", param="kind")
    return {"catalog": METASTORE, "connection": METASTORE, "schema": "catalog"}.get(kind, "schema")


def _checked(asked: GrantChange, kind: str) -> GrantChange:
    names.check_principal(asked.principal, "principal")
    add = {privileges.parse(privilege, kind) for privilege in asked.add}
    remove = {privileges.parse(privilege, kind) for privilege in asked.remove}
    if add & remove:
        raise BadRequest(f"{sorted(add & remove)} is to be both added and removed for {asked.principal!r}")
    if not add | remove:
        raise BadRequest(f"no privilege to add or remove for {asked.principal!r}", param="changes")
    return GrantChange(principal=asked.principal, add=tuple(sorted(add)), remove=tuple(sorted(remove)))


def _shown(changes: Sequence[GrantChange]) -> str:
    return "[" + ", ".join(one.model_dump_json() for one in changes) + "]"


def _apply(connection: sa.Connection, securable_id: str, asked: GrantChange, *, by: str, now: datetime) -> bool:
    """Whether anything changed."""
    principals.get(connection, asked.principal)
    of_principal = (privilege_grant.c.securable_id == securable_id) & (privilege_grant.c.principal == asked.principal)
    there = set(connection.execute(sa.select(privilege_grant.c.privilege).where(of_principal)).scalars())
    added = [privilege for privilege in asked.add if privilege not in there]
    removed = [privilege for privilege in asked.remove if privilege in there]
    common = {"securable_id": securable_id, "principal": asked.principal, "granted_by": by, "granted_at": now}
    for privilege in added:
        connection.execute(privilege_grant.insert().values(privilege=privilege, **common))
    for privilege in removed:
        connection.execute(privilege_grant.delete().where(of_principal, privilege_grant.c.privilege == privilege))
    return bool(added or removed)


def _direct(connection: sa.Connection, row: Row) -> Sequence[Grant]:
    query = sa.select(privilege_grant).where(privilege_grant.c.securable_id == row.id)
    found = connection.execute(query.order_by(privilege_grant.c.principal, privilege_grant.c.privilege))
    return [
        Grant(
            kind=row.kind,
            name=row.full_name,
            principal=grant.principal,
            privilege=grant.privilege,
            granted_by=grant.granted_by,
            granted_at=grant.granted_at,
        )
        for grant in found
    ]


def _denied(told: Explanation) -> PermissionDenied:
    what = f"{told.principal!r} may not {told.privilege} on {told.kind} {told.name!r}"
    return PermissionDenied(f"{what}: {told.problem or f'missing {told.missing}'}")
