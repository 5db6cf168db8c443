"""Who may do what: start reading here; the rules are in `privileges.py`, the query in `access.py`."""

from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog import access, checks, names, privileges, securables
from mosaic.catalog.audit import CATALOG_SERVICE, change, deny, new_action, of_securable
from mosaic.catalog.checks import Asked
from mosaic.catalog.explain import EffectivePrivilege, Explanation
from mosaic.catalog.names import METASTORE
from mosaic.catalog.principals import Caller, as_principal
from mosaic.catalog.records import Grant, GrantChange
from mosaic.catalog.schema import privilege_grant
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.catalog.updates import check_known, update
from mosaic.errors import BadRequest, PermissionDenied
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
        PermissionDenied unless `by` may MANAGE the securable, and for EXECUTE UNSAFE its catalog.
        """
        name, caller, now = self._name(kind, name), as_principal(by), self._now()
        checked = [_checked(one, kind) for one in changes]
        named = of_securable(kind, name, changes=_shown(checked))
        with change(self._store, "updatePermissions", named, by=caller, now=now) as going:
            checks.require(going.connection, caller, privileges.MANAGE, kind, name)
            _check_unsafe(going.connection, caller, kind, name, checked)
            row = securables.get(going.connection, kind, name)
            applied = [_apply(going.connection, row.id, one, by=caller, now=now) for one in checked]
            going.happened = any(applied)
            return _direct(going.connection, row)

    def set_owner(self, kind: str, name: str, owner: str, *, by: Caller, expected_etag: str | None = None) -> str:
        """Give a securable to another user, service or group, as `change`; the metastore is administrators' to give.

        Its etag afterwards.
        """
        name, caller, now = self._name(kind, name), as_principal(by), self._now()
        names.check_principal(owner)
        named = of_securable(kind, name, owner=owner)
        with change(self._store, f"update{kind.capitalize()}", named, by=caller, now=now) as going:
            connection = going.connection
            checks.require(connection, caller, privileges.MANAGE, kind, name)
            if kind == METASTORE and not access.is_administrator(connection, caller):
                raise PermissionDenied(f"{caller.name!r} may not give the metastore away: only administrators may")
            row = securables.get(connection, kind, name, lock=True)
            return securables.etag(update(going, row, expected_etag, owner=owner, by=caller, now=now))

    # Asking

    def list(self, kind: str, name: str, principal: str | None = None) -> Sequence[Grant]:
        """What is granted on the securable itself, to all or to one; raises NotFound."""
        name = self._name(kind, name)
        with self._store.read() as connection:
            found = _direct(connection, securables.get(connection, kind, name))
            if principal is not None:
                check_known(connection, principal)
        return found if principal is None else _of(found, principal)

    def effective(self, principal: Caller, kind: str, name: str) -> Sequence[EffectivePrivilege]:
        """Every privilege that a principal holds on a securable, with where it comes from; raises NotFound."""
        name = self._name(kind, name)
        with self._store.read() as connection:
            return checks.look(connection, as_principal(principal), kind, name).effective()

    def visible(self, principal: Caller, kind: str, parent: str) -> Sequence[str]:
        """The names of a kind, directly under a catalog or schema (or `metastore`), that a principal may BROWSE."""
        caller = as_principal(principal)
        privileges.check_kind(kind)
        parent_kind = checks.parent_kind(kind)
        parent = self._name(parent_kind, parent)
        with self._store.read() as connection:
            return access.visible(connection, caller, kind, parent_kind, parent)

    def is_allowed(self, principal: Caller, privilege: str, kind: str, name: str) -> bool:
        """Whether a principal may do something, by one query; False for one that is not known or not active.

        Raises BadRequest for a privilege that does not fit the kind, NotFound for the securable.
        """
        name, privilege = self._name(kind, name), privileges.parse(privilege, kind)
        return self._is_allowed(as_principal(principal), privilege, kind, name)

    def _is_allowed(self, caller: Principal, privilege: str, kind: str, name: str) -> bool:
        with self._store.read() as connection:
            row = access.ask(connection, caller.name, privilege, kind, name)
            if not row.known_object:
                raise checks.missing(connection, caller, kind, name)
        return bool(row.known_principal and (caller.is_admin or row.allowed))

    def check(
        self, principal: Caller, privilege: str, kind: str, name: str, *, action: str = "checkPrivilege"
    ) -> Principal:
        """As `is_allowed`, but raises PermissionDenied with what is missing, which is written down.

        What it gives is the principal to change things as: as a change's `by` it is asked the same again in the
        change's own transaction (but for privileges that only read), so that nothing is done to what has come to be
        another's since. `action` is the audit row's action_name: what the principal was about to do.
        """
        caller = as_principal(principal)
        whole, asked = self._name(kind, name), privileges.parse(privilege, kind)
        if not self._is_allowed(caller, asked, kind, whole):
            told = self.explain(caller, asked, kind, whole)
            if not told.allowed:  # otherwise granted in between
                error = checks.denied(told)
                act = new_action(CATALOG_SERVICE, action, of_securable(kind, whole, privilege=asked))
                deny(self._store, act, error, by=caller, now=self._now())
                raise error
        if asked in privileges.READING:
            return caller  # most checks are these, and need not cost more
        return checks.acting(caller, Asked(asked, kind, whole))

    def explain(self, principal: Caller, privilege: str, kind: str, name: str) -> Explanation:
        """Why a principal may or may not do something; `print` shows a tree. Raises as `is_allowed`."""
        name, caller = self._name(kind, name), as_principal(principal)
        privilege = privileges.parse(privilege, kind)
        with self._store.read() as connection:
            return checks.look(connection, caller, kind, name).explain(privilege)

    def _name(self, kind: str, name: str) -> str:
        privileges.check_kind(kind)
        if kind == "endpoint" and "." not in name:
            name = f"{self._serving_schema}.{name}"
        return names.parse_securable(kind, name)


def _of(grants: Sequence[Grant], principal: str) -> list[Grant]:
    return [grant for grant in grants if grant.principal == principal]


def _several(named: Sequence[str]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else tuple(named)


def _checked(asked: GrantChange, kind: str) -> GrantChange:
    names.check_principal(asked.principal, "principal")
    add = {privileges.parse(privilege, kind) for privilege in asked.add}
    remove = {privileges.parse(privilege, kind) for privilege in asked.remove}
    if add & remove:
        raise BadRequest(f"{sorted(add & remove)} is to be both added and removed for {asked.principal!r}")
    if not add | remove:
        raise BadRequest(f"no privilege to add or remove for {asked.principal!r}", param="changes")
    return GrantChange(principal=asked.principal, add=tuple(sorted(add)), remove=tuple(sorted(remove)))


def _check_unsafe(
    connection: sa.Connection, caller: Principal, kind: str, name: str, changes: Sequence[GrantChange]
) -> None:
    """Who may put a model into a catalog does not say whether its code runs in the platform; who manages that does."""
    if any(privileges.EXECUTE_UNSAFE in one.add for one in changes):
        checks.require(connection, caller, privileges.MANAGE, "catalog", name.partition(".")[0])


def _shown(changes: Sequence[GrantChange]) -> str:
    return "[" + ", ".join(one.model_dump_json() for one in changes) + "]"


def _apply(connection: sa.Connection, securable_id: str, asked: GrantChange, *, by: Principal, now: datetime) -> bool:
    """Whether anything changed."""
    check_known(connection, asked.principal, by)
    of_principal = (privilege_grant.c.securable_id == securable_id) & (privilege_grant.c.principal == asked.principal)
    there = set(connection.execute(sa.select(privilege_grant.c.privilege).where(of_principal)).scalars())
    added = [privilege for privilege in asked.add if privilege not in there]
    removed = [privilege for privilege in asked.remove if privilege in there]
    common = {"securable_id": securable_id, "principal": asked.principal, "granted_by": by.name, "granted_at": now}
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
