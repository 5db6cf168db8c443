"""Policies: sets of guardrail rules that the catalog keeps by name and version, and which endpoints attach.

An endpoint's own rules and those of its policies hold together. Which version an alias means is looked up as often as
an endpoint is (`gateway/endpoints.py`), so that a change of it is live within a second, and each row says which
versions it was answered under.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from mosaic.catalog import AliasEvent, Catalog, PolicyVersion
from mosaic.catalog.names import parse_object, parse_version
from mosaic.catalog.policies import POLICY
from mosaic.catalog.records import Securable
from mosaic.errors import BadRequest, Conflict, MosaicError, NotFound, not_found
from mosaic.protocol import Principal
from mosaic.serving.ai_gateway import GuardrailRules, Guardrails
from mosaic.serving.before import Before
from mosaic.serving.endpoint import EndpointSettings
from mosaic.serving.guard_settings import Judge


class InForce(NamedTuple):
    """What holds on an endpoint at this moment."""

    policies: tuple[str, ...]
    """Their exact versions."""
    input: tuple[GuardrailRules, ...]
    output: tuple[GuardrailRules, ...]

    @property
    def judges(self) -> tuple[Judge, ...]:
        return tuple(rules.judge for rules in (*self.input, *self.output) if rules.judge is not None)


def in_force(catalog: Catalog, guardrails: Guardrails) -> InForce:
    """An endpoint's own rules with those of its policies; raises NotFound for a policy, version or alias that is
    gone."""
    versions = [catalog.policies.get(reference) for reference in guardrails.policies]
    sets = [guardrails, *(rules_of(version) for version in versions)]
    return InForce(
        policies=tuple(version.full_name for version in versions),
        input=tuple(one.input for one in sets if one.input is not None),
        output=tuple(one.output for one in sets if one.output is not None),
    )


def told_policies(catalog: Catalog, config: Mapping[str, Any]) -> list[str]:
    """How a configuration names its policies, with the versions that this means now."""
    told = []
    for reference in ((config.get("ai_gateway") or {}).get("guardrails") or {}).get("policies") or ():
        try:
            version = catalog.policies.get(reference).full_name
            told.append(version if version == reference else f"{reference} ({version})")
        except NotFound:
            told.append(f"{reference} (gone)")
    return told


def require_sides(task: str, held: InForce) -> None:
    """Raises BadRequest for rules that an endpoint of that task has nothing to look at for."""
    judged = any(rules.judge is not None for rules in held.input)
    if judged and task not in ("chat", "complete"):
        told = "a judge of what is asked is only for endpoints whose task is 'chat' or 'complete'"
        raise BadRequest(f"{told}, not {task!r}", param="guardrails.input.judge")
    if held.output and task not in ("chat", "complete"):
        told = "guardrails on the output are only for endpoints whose task is 'chat' or 'complete'"
        raise BadRequest(f"{told}, not {task!r}", param="guardrails.output")
    if held.input and task == "predict":
        told = "guardrails are for text; what a custom model predicts from is not read"
        raise BadRequest(told, param="guardrails.input")


def rules_of(version: PolicyVersion) -> Guardrails:
    return Guardrails.parse(version.rules, source=f"policy {version.full_name}")


def why_unusable(catalog: Catalog, endpoint: str) -> str | None:
    """Why an endpoint cannot be a judge as it is now; None if it can. A judge has no judge: it would be asked for
    ever."""
    try:
        record = catalog.endpoints.get(endpoint)
    except (NotFound, BadRequest) as error:
        return error.message
    config = Before.of(record).config
    if not config:
        return None
    settings = EndpointSettings.parse(config, source=f"endpoint {record.name}")
    if settings.task != "chat":
        return f"endpoint {record.name!r} is for {settings.task}, and a judge is asked in a chat"
    with suppress(MosaicError):  # what is wrong with its policies is no reason of ours
        if in_force(catalog, settings.ai_gateway.guardrails).judges:
            return f"endpoint {record.name!r} has a judge itself, so it cannot be one"
    return None


def runs_here(catalog: Catalog, endpoint: str) -> bool:
    """Whether all models of an endpoint run here, so that what only our engines know may be asked of it."""
    with suppress(NotFound, BadRequest):
        config = catalog.endpoints.get(endpoint).config
        return bool(config) and not any(one.get("external_model") for one in config.get("served_entities", ()))
    return False


def check_judges(catalog: Catalog, judges: Sequence[Judge], *, of: str | None = None) -> None:
    """Raises BadRequest for a judge that cannot be one; `of` is the endpoint that is to have them, which then must not
    be a judge itself."""
    for judge in judges:
        full = catalog.endpoints.full_name(judge.endpoint)
        why = "an endpoint cannot be its own judge" if full == of else why_unusable(catalog, judge.endpoint)
        if why is not None:
            raise BadRequest(f"judge {judge.endpoint!r}: {why}", param="guardrails.judge.endpoint")
    if judges and of is not None and (judged := judged_by(catalog, of)):
        told = f"endpoint {of!r} is the judge of the endpoints {judged}, and a judge has no judge"
        raise BadRequest(told, param="guardrails.judge.endpoint")


def judged_by(catalog: Catalog, judge: str) -> list[str]:
    """The endpoints that an endpoint is the judge of, by their own rules or a policy's."""
    found = []
    for record in catalog.endpoints.list():
        with suppress(MosaicError):
            settings = EndpointSettings.parse(Before.of(record).config, source=f"endpoint {record.name}")
            judges = in_force(catalog, settings.ai_gateway.guardrails).judges
            if any(catalog.endpoints.full_name(one.endpoint) == judge for one in judges):
                found.append(record.name)
    return found


class Policies:
    """`platform.policies`: acts for a principal, within its grants.

    A policy is read and attached with EXECUTE on it, changed with MANAGE, and made with CREATE FUNCTION on its schema.
    """

    def __init__(self, catalog: Catalog, principal: Principal) -> None:
        self._catalog, self._principal = catalog, principal

    def create(self, name: str, rules: Guardrails, *, comment: str = "") -> PolicyVersion:
        """The next version of a policy, which is made if it is not there.

        Raises BadRequest for rules that cannot be, NotFound for its schema, PermissionDenied.
        """
        name = parse_object(name, POLICY)
        try:
            by, new = self._check("MANAGE", name, "createPolicyVersion"), False
        except NotFound:
            schema = name.rpartition(".")[0]
            check = self._catalog.grants.check
            by = check(self._principal, "CREATE FUNCTION", "schema", schema, action="createPolicyVersion")
            new = True
        if rules.policies:
            raise BadRequest("a policy holds rules, not other policies", param="policies")
        for judge in rules.judges:
            full = self._catalog.endpoints.full_name(judge.endpoint)
            by = self._catalog.grants.check(by, "EXECUTE", "endpoint", full, action="createPolicyVersion")
        check_judges(self._catalog, rules.judges)
        told = rules.model_dump(mode="json", exclude_unset=True)
        return self._catalog.policies.register(name, told, owner=self._principal.name, comment=comment, new=new, by=by)

    def get(self, reference: str) -> PolicyVersion:
        """By number (`main.default.pii/3`), by alias (`main.default.pii@prod`), or the newest. Raises NotFound,
        PermissionDenied without EXECUTE."""
        self._check("EXECUTE", parse_version(reference, POLICY).model, "getPolicy")
        return self._catalog.policies.get(reference)

    def list(self, schema: str | None = None) -> Sequence[Securable]:
        """Those that the principal may know of, by name; of one schema if given, which needs USE SCHEMA."""
        if schema is not None:
            self._catalog.grants.check(self._principal, "USE SCHEMA", "schema", schema, action="listPolicies")
        seen = self._catalog.grants.is_allowed
        found = self._catalog.policies.list(schema)
        return [one for one in found if seen(self._principal, "BROWSE", POLICY, one.name)]

    def versions(self, name: str) -> Sequence[PolicyVersion]:
        """Oldest first. Raises NotFound, PermissionDenied without EXECUTE."""
        name = self._check_name("EXECUTE", name, "getPolicy")
        return self._catalog.policies.versions(name)

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias at a version, or remove it (None). Endpoints that attach the policy by it follow at once.

        Raises NotFound, PermissionDenied without MANAGE, and Conflict for one that is to be removed while an endpoint
        attaches the policy by it.
        """
        name = parse_object(name, POLICY)
        by = self._check("MANAGE", name, "setPolicyAlias")
        self._catalog.policies.set_alias(name, alias, version, by=by)

    def alias_history(self, name: str, alias: str | None = None) -> Sequence[AliasEvent]:
        """Every change of its aliases, oldest first. Raises NotFound, PermissionDenied without BROWSE."""
        return self._catalog.policies.alias_history(self._check_name("BROWSE", name, "getPolicy"), alias)

    def attached_to(self, name: str) -> Sequence[str]:
        """The endpoints that attach it, of those that the principal may know of. Raises NotFound, PermissionDenied
        without BROWSE."""
        name = self._check_name("BROWSE", name, "getPolicy")
        seen = self._catalog.grants.is_allowed
        return [
            one for one in self._catalog.policies.attached_to(name) if seen(self._principal, "BROWSE", "endpoint", one)
        ]

    def delete(self, name: str) -> None:
        """With all its versions. Raises NotFound, PermissionDenied without MANAGE, Conflict while endpoints attach
        it, with those that the principal may know of."""
        name = parse_object(name, POLICY)
        by = self._check("MANAGE", name, "deletePolicy")
        try:
            self._catalog.policies.delete(name, by=by)
        except Conflict as error:
            seen = list(self.attached_to(name))
            told = f"policy {name!r} is attached to endpoints: {seen or 'none that you may see'}; detach it first"
            raise Conflict(told, param=error.param, code=error.code) from None

    def _check_name(self, privilege: str, name: str, action: str) -> str:
        name = parse_object(name, POLICY)
        self._check(privilege, name, action)
        return name

    def _check(self, privilege: str, name: str, action: str) -> Principal:
        return self._catalog.grants.check(self._principal, privilege, POLICY, name, action=action)


def attached(guardrails: Guardrails, reference: str) -> Guardrails:
    """With the policy attached in that version, in place of another version of it."""
    return _with(guardrails, [*_others(guardrails, reference), reference.lower()])


def detached(guardrails: Guardrails, name: str) -> Guardrails:
    """Without the policy, in whichever version it is attached. Raises NotFound if it is not."""
    others = _others(guardrails, name)
    if len(others) == len(guardrails.policies):
        raise not_found("attached policy", name, guardrails.policies, param="name")
    return _with(guardrails, others)


def _others(guardrails: Guardrails, reference: str) -> list[str]:
    name = parse_version(reference, POLICY).model
    return [one for one in guardrails.policies if parse_version(one, POLICY).model != name]


def _with(guardrails: Guardrails, policies: list[str]) -> Guardrails:
    return Guardrails.parse({**guardrails.model_dump(), "policies": policies}, source="guardrails")
