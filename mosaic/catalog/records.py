"""What the catalog answers with: frozen values, times in UTC."""

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Literal

from mosaic.errors import BadRequest
from mosaic.protocol import Wire

PROMPT_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")

RunStatus = Literal["running", "finished", "failed", "cancelled"]
ModelVersionStatus = Literal["PENDING_REGISTRATION", "READY"]


class CatalogEntry(Wire):
    """A catalog: the first of the three levels of names."""

    id: str
    etag: str
    """Another one after every change; an update may say which one it means (`expected_etag`)."""
    name: str
    owner: str
    comment: str
    properties: dict[str, str]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str | None


class Schema(Wire):
    id: str
    etag: str
    name: str
    """`catalog.schema`."""
    owner: str
    comment: str
    properties: dict[str, str]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str | None


class Table(Wire):
    """A Delta table, as registered; its versions are Delta's own."""

    id: str
    etag: str
    name: str
    """`catalog.schema.table`."""
    location: str
    columns: list[dict[str, Any]]
    primary_key: str | None
    comment: str
    properties: dict[str, str]
    owner: str
    config_version: int
    """Grows with every change of this record, not of the rows."""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str | None
    """None if nobody changed it, or the change came from within the platform."""


class Model(Wire):
    """A registered model: a name with versions and aliases."""

    id: str
    etag: str
    name: str
    owner: str
    comment: str
    versions: list[int]
    """Oldest first."""
    aliases: dict[str, int]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str | None


class ModelVersion(Wire):
    """One version of a model; immutable from READY on, but for its comment."""

    model: str
    version: int
    full_name: str
    """`main.ml.bot/3`."""
    source: str
    """Address of its folder."""
    kind: str
    """`adapter`, `full`, ..."""
    base_model: str | None
    run_id: str | None
    spec: dict[str, Any]
    checksums: dict[str, str]
    """SHA-256 in hexadecimal by relative path in the folder."""
    status: ModelVersionStatus
    """PENDING_REGISTRATION while its files are being uploaded."""
    comment: str
    created_at: datetime
    created_by: str | None
    updated_at: datetime
    updated_by: str | None


class Securable(Wire):
    """A volume, function, connection or agent: a name with an owner and a spec, whose fields its kind says."""

    id: str
    etag: str
    kind: str
    name: str
    owner: str
    comment: str
    properties: dict[str, str]
    spec: dict[str, Any]
    config_version: int
    """Grows with every change of what it says, not of its owner."""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str | None


class Dropped(Wire):
    """Something that was dropped and whose data is still there."""

    id: str
    kind: str
    name: str
    location: str | None
    """Address of its data; None for what has none of its own."""
    owner: str
    deleted_at: datetime
    deleted_by: str | None


class Found(Wire):
    """One hit of a search."""

    kind: str
    name: str
    owner: str
    comment: str
    tags: dict[str, str]


class PromptVersion(Wire):
    """One version of a prompt; its template does not change."""

    prompt: str
    version: int
    full_name: str
    """`main.ml.greeting/3`."""
    template: str
    """Text with `{{variable}}` where a value goes in."""
    variables: tuple[str, ...]
    """By name."""
    comment: str
    created_at: datetime
    created_by: str | None

    def format(self, **given: str) -> str:
        """The text with every variable's value in it; raises BadRequest for one that is missing or not known."""
        missing, unknown = sorted(set(self.variables) - set(given)), sorted(set(given) - set(self.variables))
        if missing or unknown:
            wrong = f"misses {missing}" if missing else f"has no {unknown}"
            raise BadRequest(f"prompt {self.full_name!r} {wrong}; its variables are {list(self.variables)}")
        return PROMPT_VARIABLE.sub(lambda found: given[found[1]], self.template)


class PolicyVersion(Wire):
    """One version of a policy; its rules do not change."""

    policy: str
    version: int
    full_name: str
    """`main.default.pii_strict/3`."""
    rules: dict[str, Any]
    """What is looked for on the `input` and on the `output`, as an endpoint's guardrails say it."""
    comment: str
    created_at: datetime
    created_by: str | None


class AliasEvent(Wire):
    """An alias was set to a version, or removed (None)."""

    model: str
    alias: str
    version: int | None
    principal: str
    at: datetime


class Index(Wire):
    """A vector index over a table."""

    id: str
    etag: str
    name: str
    table: str
    spec: dict[str, Any]
    owner: str
    config_version: int
    """Grows with every change of `table` or `spec`."""
    created_at: datetime
    updated_at: datetime


class EndpointConfig(Wire):
    """One configuration of an endpoint."""

    version: int
    config: dict[str, Any]
    pinned: dict[str, str]
    """By model as the config names it (`main.ml.bot@champion`): the version that it means for this configuration."""
    state: Literal["pending", "live", "failed", "replaced"]
    reason: str | None
    """Why it has failed."""
    created_at: datetime
    created_by: str
    decided_at: datetime | None
    """When it was pending no more; of one that was replaced, when another took its place."""


class Endpoint(Wire):
    """What answers under a name."""

    id: str
    etag: str
    name: str
    """`catalog.schema.endpoint`."""
    served_name: str
    """What callers write: the last part alone if it is in the default schema, otherwise the whole name."""
    config: dict[str, Any]
    """The one that is live; empty while none is."""
    pinned: dict[str, str]
    """Of the live one: by model as it is named, the version that answers; without them an alias is looked up."""
    owner: str
    config_version: int
    """The number of the live one; 0 while none is."""
    pending: EndpointConfig | None
    """The one that is rolled out now."""
    failed: EndpointConfig | None
    """The last one, if it has failed."""
    created_at: datetime
    updated_at: datetime

    @property
    def in_use(self) -> list[tuple[dict[str, Any], dict[str, str]]]:
        """Config and pins of the live one and of the pending one, as far as there are."""
        live = [(self.config, self.pinned)] if self.config_version else []
        return live if self.pending is None else [*live, (self.pending.config, self.pending.pinned)]

    @property
    def models(self) -> set[str]:
        """All that is in use: the models as they are named, and the versions that they mean."""
        return {
            model
            for config, pinned in self.in_use
            for model in (*(entity["model"] for entity in config.get("served_entities", ())), *pinned.values())
        }


class Token(Wire):
    """An access token, without its secret, which only its maker saw."""

    id: str
    principal: str
    kind: Literal["user", "service"]
    is_admin: bool
    comment: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: tuple[str, ...]
    last_used_at: datetime | None
    """To the minute."""
    parent_id: str | None
    """The token that it was made with, which it ends with; None for one that was made in process."""


class KnownPrincipal(Wire):
    """Whom the catalog knows: a user, a service, or a group of them."""

    name: str
    kind: Literal["user", "service", "group"]
    active: bool
    """Whether tokens and grants of it have effect."""
    created_at: datetime
    created_by: str


class Grant(Wire):
    """One privilege granted on one securable to one principal."""

    kind: str
    """Of the securable."""
    name: str
    principal: str
    privilege: str
    granted_by: str
    granted_at: datetime


class GrantChange(Wire):
    """What to add to and remove from a principal's grants on one securable."""

    principal: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class UserIdentity(Wire):
    email: str
    """The principal's name, in the column where Databricks has it."""


class AuditResponse(Wire):
    status_code: int
    error_message: str | None


class AuditEvent(Wire):
    """One change, or one denial, with the fields of Databricks' system.access.audit."""

    sequence: int
    """Grows from event to event, in the order in which they became visible."""
    event_id: str
    event_time: datetime
    event_date: date
    service_name: str
    action_name: str
    user_identity: UserIdentity
    token_id: str | None
    """The token that the principal came with; None in process."""
    request_id: str | None
    request_params: dict[str, str]
    response: AuditResponse
    source_ip_address: str | None
    user_agent: str | None


class RunEdge(Wire):
    """Something a run read or made, at its exact version."""

    kind: str
    """`table`, `model`, `index`, `base_model`, ..."""
    name: str
    version: int | None
    """None for what has no versions, such as a base model."""
    detail: dict[str, Any] | None = None
    securable_id: str | None = None
    """Of the one that bore the name when this was noted; None for what is not in the catalog."""


class Run(Wire):
    """One execution that reads and makes things: a training, an ingestion, an evaluation."""

    run_id: str
    kind: str
    name: str
    principal: str
    params: dict[str, Any]
    status: RunStatus
    mlflow_run_id: str | None
    metrics: dict[str, float]
    started_at: datetime
    finished_at: datetime | None
    inputs: list[RunEdge]
    outputs: list[RunEdge]
    code: RunEdge | None = None
    """The program that started it, with its checksum and mosaic's version; None for runs of before that was kept."""


class LineageNode(Wire):
    """A thing at a version, and what it was made from."""

    kind: str
    name: str
    version: int | None
    detail: dict[str, Any] | None = None
    """What the run that used it noted about it."""
    run_id: str | None = None
    """The newest run that made it; None if no recorded run did."""
    earlier_runs: int = 0
    """How many other runs made it: of a table the writes before whose rows it may still have."""
    earlier_versions: tuple[int, ...] = ()
    """Of a table that was read: the older versions that were read too, and the origins of which are among its own."""
    made_at_version: int | None = None
    """For a table the newest version, up to `version`, that a recorded run wrote; otherwise equal to `version`."""
    cut_off: bool = False
    """Whether there is more above that was not followed, since the path is too long."""
    parents: "Sequence[LineageNode]" = ()
    """What these runs read, each thing once, the newest run's first."""
    securable_id: str | None = None
    """Of the one of that name that is meant; None for what is not in the catalog."""
