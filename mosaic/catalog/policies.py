"""Policies: named sets of guardrail rules with immutable versions and aliases.

What the rules may be is not known here (`serving/policies.py` checks it); which endpoints hold a policy is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import names, securables, values
from mosaic.catalog.names import ModelReference
from mosaic.catalog.principals import ADMIN, Caller
from mosaic.catalog.records import ModelVersion, PolicyVersion
from mosaic.catalog.schema import endpoint_config, securable
from mosaic.catalog.versioned import Versioned
from mosaic.errors import Conflict

POLICY = "policy"


class Policies(Versioned[PolicyVersion]):
    """`catalog.policies`. What an endpoint holds is not deleted, nor the alias by which it does."""

    kind = POLICY

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
        spec = {"rules": values.json_object(rules, "rules")}
        return self._register(name, spec, owner=owner, comment=comment, new=new, by=by)

    def attached_to(self, name: str) -> Sequence[str]:
        """The endpoints that hold it, live or on their way, by name. Raises NotFound."""
        name = names.parse_object(name, POLICY)
        with self._store.read() as connection:
            securables.get(connection, POLICY, name)
            return sorted({endpoint for endpoint, _ in _attached(connection, name)})

    def _check_unused(self, connection: sa.Connection, name: str, alias: str | None = None) -> None:
        held = {endpoint for endpoint, by in _attached(connection, name) if alias is None or by.alias == alias}
        if held:
            what = f"policy {name!r}" if alias is None else f"alias {alias!r} of policy {name!r}"
            told = f"{what} is attached to the endpoints {sorted(held)}; detach it from them first"
            raise Conflict(told, param="name", code="policy_attached")

    @staticmethod
    def _as_version(found: ModelVersion) -> PolicyVersion:
        return PolicyVersion(
            policy=found.model,
            version=found.version,
            full_name=found.full_name,
            rules=found.spec["rules"],
            comment=found.comment,
            created_at=found.created_at,
            created_by=found.created_by,
        )


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
