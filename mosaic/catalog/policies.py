"""Policies: named sets of guardrail rules with immutable versions and aliases, kept as models and prompts keep theirs.

What the rules may be is not known here (`serving/policies.py` checks it); which endpoints hold a policy is.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import models, names, securables, values
from mosaic.catalog.audit import change, of_securable
from mosaic.catalog.names import ModelReference
from mosaic.catalog.objects import as_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import AliasEvent, ModelVersion, PolicyVersion, Securable
from mosaic.catalog.schema import endpoint_config, securable
from mosaic.catalog.store import Store
from mosaic.catalog.updates import update
from mosaic.errors import Conflict

POLICY = "policy"


class Policies:
    """`catalog.policies`."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def register(
        self,
        name: str,
        rules: Mapping[str, Any],
        *,
        owner: str = ADMIN,
        comment: str = "",
        new: bool | None = None,
        by: Caller | None = None,
    ) -> PolicyVersion:
        """The next version of a policy, which is made if it is not there.

        The comment is the version's, and the policy's own if that is made. With `new` true raises AlreadyExists if
        there is one, with `new` false NotFound if there is none.
        """
        name, caller, now = names.parse_object(name, POLICY), as_principal(by or owner), self._now()
        names.check_principal(owner)
        kept = values.json_object(rules, "rules")
        with change(self._store, "createPolicyVersion", of_securable(POLICY, name), by=caller, now=now) as going:
            if new or (new is None and securables.find(going.connection, POLICY, name) is None):
                made_by = {"owner": owner, "comment": comment, "created_by": caller.name}
                securables.insert(going.connection, POLICY, name, now=now, **made_by)
            columns: dict[str, Any] = {"source": "", "kind": POLICY, "spec": {"rules": kept}, "checksums": {}}
            made = models.add_version(
                going.connection, name, now=now, of=POLICY, comment=comment, created_by=caller.name, **columns
            )
            going.params["version"] = str(made.version)
            return _as_policy(made)

    def update(
        self,
        name: str,
        *,
        by: Caller,
        comment: str | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Securable:
        """Change what is given of the policy itself, not of a version. Raises NotFound, StaleEtag."""
        name, caller, now = names.parse_object(name, POLICY), as_principal(by), self._now()
        changes = {} if comment is None else {"comment": comment}
        with change(self._store, "updatePolicy", of_securable(POLICY, name), by=caller, now=now) as going:
            row = securables.get(going.connection, POLICY, name, lock=True)
            return as_securable(update(going, row, expected_etag, owner=owner, by=caller, now=now, **changes))

    def whole(self, name: str) -> Securable:
        """The policy itself, not one of its versions; raises NotFound."""
        name = names.parse_object(name, POLICY)
        with self._store.read() as connection:
            return as_securable(securables.get(connection, POLICY, name))

    def get(self, reference: str) -> PolicyVersion:
        """By number (`main.default.pii/3`), by alias (`main.default.pii@prod`), or the newest (`main.default.pii`).

        Raises NotFound with what exists.
        """
        asked = names.parse_version(reference, POLICY)
        with self._store.read() as connection:
            if asked.version is None and asked.alias is None:
                versions = models.list_versions(connection, asked.model, of=POLICY)
                asked = ModelReference(asked.model, versions[-1].version, None)  # it is made with its first version
            return _as_policy(models.get_version(connection, asked, of=POLICY))

    def list(self, schema: str | None = None) -> Sequence[Securable]:
        """By name; of one schema if given, which must exist."""
        parsed = None if schema is None else names.parse_schema(schema)
        with self._store.read() as connection:
            return [as_securable(row) for row in securables.list_rows(connection, POLICY, parsed)]

    def versions(self, name: str) -> Sequence[PolicyVersion]:
        """Oldest first; raises NotFound."""
        name = names.parse_object(name, POLICY)
        with self._store.read() as connection:
            return [_as_policy(found) for found in models.list_versions(connection, name, of=POLICY)]

    def set_alias(self, name: str, alias: str, version: int | None, *, by: Caller = ADMIN) -> None:
        """Point an alias at a version, or remove it (None); its history stays.

        Raises NotFound, and Conflict for one that is to be removed while an endpoint holds the policy by it.
        """
        name, alias, caller = names.parse_object(name, POLICY), names.parse_alias(alias), as_principal(by)
        if version is not None:
            version = names.parse_number(str(version), name)
        action = "setPolicyAlias" if version is not None else "deletePolicyAlias"
        params = of_securable(POLICY, name, alias=alias, version=str(version or ""))
        with change(self._store, action, params, by=caller, now=self._now()) as going:
            if version is None:
                held = [one for one, by_ in _attached(going.connection, name) if by_.alias == alias]
                _refuse(f"alias {alias!r} of policy {name!r}", held)
            going.happened = models.set_alias(
                going.connection, name, alias, version, principal=caller.name, now=self._now(), of=POLICY
            )

    def alias_history(self, name: str, alias: str | None = None) -> Sequence[AliasEvent]:
        """Every change of a policy's aliases, or of one, oldest first."""
        name, asked = names.parse_object(name, POLICY), None if alias is None else names.parse_alias(alias)
        with self._store.read() as connection:
            return models.alias_history(connection, name, asked, of=POLICY)

    def attached_to(self, name: str) -> Sequence[str]:
        """The endpoints that hold it, live or on their way, by name. Raises NotFound."""
        name = names.parse_object(name, POLICY)
        with self._store.read() as connection:
            securables.get(connection, POLICY, name)
            return sorted({endpoint for endpoint, _ in _attached(connection, name)})

    def delete(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away with all versions; `catalog.undrop` brings them back.

        Raises NotFound, StaleEtag, and Conflict with the endpoints that hold it.
        """
        name, caller, now = names.parse_object(name, POLICY), as_principal(by), self._now()
        with change(self._store, "deletePolicy", of_securable(POLICY, name), by=caller, now=now) as going:
            _refuse(f"policy {name!r}", [endpoint for endpoint, _ in _attached(going.connection, name)])
            securables.delete(going.connection, POLICY, name, now=now, by=caller.name, expected_etag=expected_etag)


def _attached(connection: sa.Connection, name: str) -> list[tuple[str, ModelReference]]:
    """(endpoint, how it names the policy), of every live or pending configuration that holds it."""
    query = (
        sa.select(securable.c.full_name, endpoint_config.c.config)
        .join(securable, securable.c.id == endpoint_config.c.endpoint_id)
        .where(endpoint_config.c.state.in_(("pending", "live")), securable.c.deleted_at.is_(None))
    )
    named = [
        (row.full_name, names.parse_version(one, POLICY))
        for row in connection.execute(query)
        for one in ((row.config.get("ai_gateway") or {}).get("guardrails") or {}).get("policies") or ()
    ]
    return [(endpoint, by) for endpoint, by in named if by.model == name]


def _refuse(what: str, endpoints: Sequence[str]) -> None:
    if endpoints:
        raise Conflict(
            f"{what} is attached to the endpoints {sorted(set(endpoints))}; detach it from them first",
            param="name",
            code="policy_attached",
        )


def _as_policy(version: ModelVersion) -> PolicyVersion:
    return PolicyVersion(
        policy=version.model,
        version=version.version,
        full_name=version.full_name,
        rules=version.spec["rules"],
        comment=version.comment,
        created_at=version.created_at,
        created_by=version.created_by,
    )
