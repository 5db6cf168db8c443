"""Policies over HTTP, under /api/2.0/mosaic/policies; who may do what is asked by `policies.Policies`."""

from collections.abc import Callable
from typing import Any

from starlette.routing import Route

from mosaic.catalog import PolicyVersion, Securable
from mosaic.catalog.unity.call import Call, Query, route
from mosaic.catalog.unity.shapes import Answer, Asked, Nothing, SetAlias
from mosaic.protocol import Principal
from mosaic.serving.ai_gateway import Guardrails
from mosaic.serving.policies import Policies

BASE = "/2.0/mosaic/policies"


class CreatePolicy(Asked):
    name: str
    rules: dict[str, Any]
    """`input` and `output`, as an endpoint's guardrails say them."""
    comment: str | None = None


class ListedPolicies(Answer):
    policies: list[Securable]


class PolicyInfo(Answer):
    name: str
    versions: list[PolicyVersion]
    aliases: dict[str, int]
    attached_to: list[str]
    """Endpoints, of those that the caller may know of."""


class PolicyRoutes:
    def __init__(self, policies: Callable[[Principal], Policies]) -> None:
        """`policies` gives what acts for a principal."""
        self._policies = policies

    def routes(self) -> list[Route]:
        one = f"{BASE}/{{full_name}}"
        return [
            route("POST", BASE, self.create, asked=CreatePolicy),
            route("GET", BASE, self.list, query=(Query("schema", "catalog.schema, whose policies"),)),
            route("GET", one, self.get),
            route("DELETE", one, self.delete),
            route("GET", f"{one}/versions/{{version}}", self.get_version),
            route("GET", f"{one}/aliases/{{alias}}", self.get_alias),
            route("PUT", f"{one}/aliases/{{alias}}", self.set_alias, asked=SetAlias),
            route("DELETE", f"{one}/aliases/{{alias}}", self.delete_alias),
        ]

    def create(self, call: Call) -> PolicyVersion:
        """The next version; the first makes the policy."""
        asked = call.parse(CreatePolicy)
        rules = Guardrails.parse(asked.rules, source="rules")
        return self._of(call).create(asked.name, rules, comment=asked.comment or "")

    def list(self, call: Call) -> ListedPolicies:
        """As far as the caller may BROWSE."""
        return ListedPolicies(policies=list(self._of(call).list(call.find("schema"))))

    def get(self, call: Call) -> PolicyInfo:
        policies, name = self._of(call), call.path["full_name"]
        versions = policies.versions(name)
        now = {event.alias: event.version for event in policies.alias_history(name)}
        return PolicyInfo(
            name=versions[0].policy,
            versions=list(versions),
            aliases={alias: version for alias, version in sorted(now.items()) if version is not None},
            attached_to=list(policies.attached_to(name)),
        )

    def delete(self, call: Call) -> Nothing:
        self._of(call).delete(call.path["full_name"])
        return Nothing()

    def get_version(self, call: Call) -> PolicyVersion:
        return self._of(call).get(f"{call.path['full_name']}/{call.path['version']}")

    def get_alias(self, call: Call) -> PolicyVersion:
        return self._of(call).get(f"{call.path['full_name']}@{call.path['alias']}")

    def set_alias(self, call: Call) -> PolicyVersion:
        """Endpoints that attach the policy by this alias follow at once."""
        asked, name, alias = call.parse(SetAlias), call.path["full_name"], call.path["alias"]
        self._of(call).set_alias(name, alias, asked.version_num)
        return self._of(call).get(f"{name}/{asked.version_num}")

    def delete_alias(self, call: Call) -> Nothing:
        self._of(call).set_alias(call.path["full_name"], call.path["alias"], None)
        return Nothing()

    def _of(self, call: Call) -> Policies:
        return self._policies(call.principal)
