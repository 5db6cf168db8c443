"""Who may make which call of MLflow's API: one table, from (method, path) to what the call names or makes.

Who is signed in may read everything and log what is theirs. A call that changes something is its owner's and the
administrators'; whose it is stands in a tag that control alone writes. What is not in the table does not pass.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from mosaic.errors import BadRequest, NotFound, PermissionDenied, UnsupportedField
from mosaic.training.tracking import OWNER_TAG

STAMP = OWNER_TAG
"""The tag that says whose an experiment, a run, a logged model, a trace or an assessment is."""
_USER = "mlflow.user"
_KEPT_TAGS = frozenset({STAMP, _USER, "mlflow.artifactLocation", "mlflow.trace.spansLocation"})
"""Tags that no client sets: whose it is, and where the server looks for its files."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

Kind = Literal["experiment", "run", "model", "trace", "assessment"]


@dataclass(frozen=True)
class Rule:
    """What one call needs. With neither `changes` nor `makes` it only reads."""

    changes: Kind | None = None
    """The kind of the thing that it changes."""
    named_by: tuple[str, ...] = ()
    """Fields of the path, or else of the body, that have its id."""
    makes: Kind | None = None
    """The kind of the thing that it makes, which is then the caller's."""
    is_file: bool = False
    """Whether its body or answer is a file: streamed, of any size up to the setting's."""
    action: str = ""
    """The audit's word for it."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """What the path has in the place of the table's {names}."""


def find_rule(method: str, path: str) -> Rule:
    """The rule of a call; raises PermissionDenied for what this platform does not offer, NotFound for what is not."""
    for pattern, by_method in _COMPILED:
        found = pattern.fullmatch(path)
        if found is not None and method in by_method:
            rule = by_method[method]
            return Rule(rule.changes, rule.named_by, rule.makes, rule.is_file, rule.action, found.groupdict())
    for prefix, why in REFUSED.items():
        if path.startswith(prefix):
            raise PermissionDenied(f"{method} {path}: {why}", code="endpoint_not_found")
    raise NotFound(f"{method} {path!r} is no call of MLflow's API that passes here", code="endpoint_not_found")


def named_ids(rule: Rule, body: Mapping[str, Any]) -> list[str]:
    """The ids of what the call changes; raises BadRequest if it names nothing.

    A body may say the same field in several ways: each of them is taken, so that none hides another.
    """
    ids = [rule.ids[name] for name in rule.named_by if name in rule.ids] or [
        value for name in rule.named_by for value in _values(body, name) if value not in (None, "")
    ]
    if not ids:
        raise BadRequest(f"field {rule.named_by[0]!r} must name the {rule.changes}", code="invalid_parameter_value")
    return list(dict.fromkeys(_id(one, rule.named_by[0]) for one in ids))


def artifact_owner(path: str) -> tuple[Kind, str, str]:
    """Whose file an artifact's path is: the kind, the id, and the experiment that it says; raises PermissionDenied.

    MLflow undoes percent-escapes until none is left, so a path is judged as it is in the end.
    """
    plain, before = unquote(path), path
    while plain != before:
        plain, before = unquote(plain), plain
    parts = plain.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\\#]", plain):
        raise BadRequest(f"artifact path {path!r} must be a plain relative path", code="invalid_parameter_value")
    match parts:
        case [experiment, "models", model, "artifacts", _, *_]:
            return "model", _id(model, "artifact_path"), _id(experiment, "artifact_path")
        case [experiment, "traces", trace, "artifacts", _, *_]:
            return "trace", _id(trace, "artifact_path"), _id(experiment, "artifact_path")
        case [experiment, run, "artifacts", _, *_]:
            return "run", _id(run, "artifact_path"), _id(experiment, "artifact_path")
    raise PermissionDenied(f"artifact path {path!r} is not under a run, a logged model or a trace")


def check_tags(rule: Rule, body: Mapping[str, Any]) -> None:
    """Raises BadRequest if a change touches a tag that is the platform's."""
    keys = [rule.ids.get("tag_key"), *_values(body, "key")]
    keys += [key for tag in _listed(body, "tags") for key in _values(tag, "key")]
    for key in keys:
        if key in _KEPT_TAGS:
            raise BadRequest(f"tag {key!r} is the platform's own; it says whose this is", param="key")


def changed_by(rule: Rule, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a change, without what it says of whose it is where that would be merged in."""
    if rule.changes != "assessment" or not _values(body, "assessment"):
        return body
    return _with(
        body, "assessment", lambda one: _with(one, "metadata", _unstamped) if _values(one, "metadata") else one
    )


def made_for(rule: Rule, body: dict[str, Any], owner: str) -> dict[str, Any]:
    """The body of what a call makes, with whose it is in place of what the client says of it."""
    if rule.makes == "assessment":
        return _with(body, "assessment", lambda one: _with(one, "metadata", lambda said: _stamped(said, owner)))
    if rule.makes == "trace" and _values(body, "trace"):
        return _with(body, "trace", lambda one: _with(one, "trace_info", lambda info: _stamped_trace(info, owner)))
    if rule.makes == "experiment" and any(_values(body, "artifact_location")):
        raise UnsupportedField(
            "artifact_location is not for a client to choose: files go through the platform", param="artifact_location"
        )
    stamps = {STAMP: owner} | ({} if rule.makes == "experiment" else {_USER: owner})
    kept = [tag for tag in _listed(body, "tags") if not _KEPT_TAGS.intersection(map(str, _values(tag, "key")))]
    made = {**body, "tags": kept + [{"key": key, "value": value} for key, value in stamps.items()]}
    return {**_without(made, "user_id"), "user_id": owner} if rule.makes == "run" else made


def claimed_owner(body: Mapping[str, Any]) -> str | None:
    """Whose a run is to be, as the platform's own call says it."""
    return next((tag.get("value") for tag in _listed(body, "tags") if tag.get("key") == STAMP), None)


def new_trace_id(body: Mapping[str, Any]) -> str | None:
    """The id that a client has chosen for the trace that it makes; None where the server chooses."""
    ids = [
        one
        for trace in _values(body, "trace")
        for info in _values(trace, "trace_info")
        for one in _values(info, "trace_id")
    ]
    if len(ids) > 1:
        raise BadRequest("field 'trace_id' is there twice", param="trace_id")
    return _id(ids[0], "trace_id") if ids else None


def _id(value: Any, name: str) -> str:
    """An id, which stands in addresses: nothing in it may be read as more."""
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise BadRequest(f"field {name!r} = {value!r} must be an id of MLflow's", code="invalid_parameter_value")
    return value


def _stamped(tags: Mapping[str, Any], owner: str) -> dict[str, Any]:
    return _unstamped(tags) | {STAMP: owner}


def _unstamped(tags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tags.items() if key not in _KEPT_TAGS}


def _stamped_trace(info: Mapping[str, Any], owner: str) -> dict[str, Any]:
    said = _with(info, "trace_metadata", lambda metadata: {**metadata, _USER: owner})
    if assessments := _listed(said, "assessments"):
        stamped = [_with(one, "metadata", lambda metadata: _stamped(metadata, owner)) for one in assessments]
        said = {**said, "assessments": stamped}
    return _with(said, "tags", lambda tags: _stamped(tags, owner))


def _values(body: Any, name: str) -> list[Any]:
    """What a body says for a field, in protobuf's two spellings."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"an object is expected where {name!r} is looked for, not {type(body).__name__}")
    return [body[key] for key in _spellings(name) if key in body]


def _spellings(name: str) -> tuple[str, ...]:
    camel = re.sub(r"_(\w)", lambda found: found[1].upper(), name)
    return (name,) if camel == name else (name, camel)


def _listed(body: Mapping[str, Any], name: str) -> list[Any]:
    found = body.get(name) or []
    if not isinstance(found, list):
        raise BadRequest(f"field {name!r} must be a list", param=name)
    return found


def _without(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in _spellings(name)}


def _with(body: Mapping[str, Any], name: str, change: Any) -> dict[str, Any]:
    """The body with a field's object changed, under its first spelling alone."""
    found = _values(body, name)
    if len(found) > 1 or (found and found[0] is not None and not isinstance(found[0], Mapping)):
        raise BadRequest(f"field {name!r} must be one object", param=name)
    return {**_without(body, name), name: change(found[0] or {} if found else {})}


def _compile(table: str) -> Iterator[tuple[re.Pattern[str], dict[str, Rule]]]:
    for line in table.strip().splitlines():
        methods, path, verb, *names = line.split()
        what, _, fields = names[0].partition(":") if names else ("", "", "")
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path).replace(
            "(?P<artifact_path>[^/]+)", "(?P<artifact_path>.+)"
        )
        words = re.findall(r"\w+", re.sub(r"\{\w+\}|^/api/.../mlflow", "", path))
        by_method = {}
        for method in methods.split(","):
            by_method[method] = Rule(
                changes=what if verb == "change" else None,  # type: ignore[arg-type]
                named_by=tuple(fields.split(",")) if fields else (),
                makes=what if verb == "make" else None,  # type: ignore[arg-type]
                is_file=verb == "file",
                action="".join(["mlflow", *(word.capitalize() for word in [*words, method])]),
            )
        yield re.compile(pattern), by_method


_TABLE = """
GET       /api/2.0/mlflow/experiments/get                                  read
GET       /api/2.0/mlflow/experiments/get-by-name                          read
GET,POST  /api/2.0/mlflow/experiments/search                               read
POST      /api/2.0/mlflow/experiments/create                               make   experiment
POST      /api/2.0/mlflow/experiments/update                               change experiment:experiment_id
POST      /api/2.0/mlflow/experiments/delete                               change experiment:experiment_id
POST      /api/2.0/mlflow/experiments/restore                              change experiment:experiment_id
POST      /api/2.0/mlflow/experiments/set-experiment-tag                   change experiment:experiment_id
POST      /api/2.0/mlflow/experiments/delete-experiment-tag                change experiment:experiment_id
GET       /api/2.0/mlflow/runs/get                                         read
POST      /api/2.0/mlflow/runs/search                                      read
POST      /api/2.0/mlflow/runs/create                                      make   run
POST      /api/2.0/mlflow/runs/update                                      change run:run_id,run_uuid
POST      /api/2.0/mlflow/runs/delete                                      change run:run_id
POST      /api/2.0/mlflow/runs/restore                                     change run:run_id
POST      /api/2.0/mlflow/runs/log-metric                                  change run:run_id,run_uuid
POST      /api/2.0/mlflow/runs/log-parameter                               change run:run_id,run_uuid
POST      /api/2.0/mlflow/runs/log-batch                                   change run:run_id
POST      /api/2.0/mlflow/runs/log-inputs                                  change run:run_id
POST      /api/2.0/mlflow/runs/outputs                                     change run:run_id
POST      /api/2.0/mlflow/runs/log-model                                   change run:run_id
POST      /api/2.0/mlflow/runs/set-tag                                     change run:run_id,run_uuid
POST      /api/2.0/mlflow/runs/delete-tag                                  change run:run_id
GET       /api/2.0/mlflow/metrics/get-history                              read
GET       /api/2.0/mlflow/metrics/get-history-bulk-interval                read
GET       /api/2.0/mlflow/artifacts/list                                   read
POST      /api/2.0/mlflow/logged-models                                    make   model
POST      /api/2.0/mlflow/logged-models/search                             read
GET       /api/2.0/mlflow/logged-models/{model_id}                         read
PATCH     /api/2.0/mlflow/logged-models/{model_id}                         change model:model_id
DELETE    /api/2.0/mlflow/logged-models/{model_id}                         change model:model_id
GET       /api/2.0/mlflow/logged-models/{model_id}/artifacts/directories   read
POST      /api/2.0/mlflow/logged-models/{model_id}/params                  change model:model_id
PATCH     /api/2.0/mlflow/logged-models/{model_id}/tags                    change model:model_id
DELETE    /api/2.0/mlflow/logged-models/{model_id}/tags/{tag_key}          change model:model_id
GET       /api/2.0/mlflow/traces                                           read
POST      /api/2.0/mlflow/traces                                           make   trace
GET       /api/2.0/mlflow/traces/{trace_id}/info                           read
PATCH     /api/2.0/mlflow/traces/{trace_id}                                change trace:trace_id
PATCH     /api/2.0/mlflow/traces/{trace_id}/tags                           change trace:trace_id
DELETE    /api/2.0/mlflow/traces/{trace_id}/tags                           change trace:trace_id
POST      /api/2.0/mlflow/traces/delete-traces                             change experiment:experiment_id
POST      /api/2.0/mlflow/traces/link-to-run                               change run:run_id
POST      /api/3.0/mlflow/traces                                           make   trace
POST      /api/3.0/mlflow/traces/search                                    read
GET       /api/3.0/mlflow/traces/get                                       read
GET       /api/3.0/mlflow/traces/batchGet                                  read
POST      /api/3.0/mlflow/traces/batchGetInfos                             read
POST      /api/3.0/mlflow/traces/metrics                                   read
POST      /api/3.0/mlflow/traces/calculate-filter-correlation              read
POST      /api/3.0/mlflow/traces/delete-traces                             change experiment:experiment_id
GET       /api/3.0/mlflow/traces/{trace_id}                                read
PATCH     /api/3.0/mlflow/traces/{trace_id}/tags                           change trace:trace_id
DELETE    /api/3.0/mlflow/traces/{trace_id}/tags                           change trace:trace_id
POST      /api/3.0/mlflow/traces/{trace_id}/assessments                    make   assessment
GET       /api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}    read
PATCH     /api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}    change assessment:assessment_id
DELETE    /api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}    change assessment:assessment_id
GET       /api/3.0/mlflow/server-info                                      read
GET       /api/2.0/mlflow-artifacts/artifacts                              read
GET       /api/2.0/mlflow-artifacts/artifacts/{artifact_path}              file
PUT       /api/2.0/mlflow-artifacts/artifacts/{artifact_path}              file
DELETE    /api/2.0/mlflow-artifacts/artifacts/{artifact_path}              file
"""
"""In MLflow's words: "2.0/mlflow/traces/{trace_id}" is its <request_id>. `read`: anyone signed in."""

_REGISTRY = (
    'the catalog is the registry; call mlflow.set_registry_uri("uc:http://HOST:PORT") with this platform\'s address, '
    "the token in MLFLOW_UC_OSS_TOKEN, and name models catalog.schema.model"
)
_NOT_HERE = "MLflow's {} are not offered by this platform"
_PRESIGNED = "files go through the platform, not to its store by signed addresses"

REFUSED = {
    "/api/2.0/mlflow/registered-models": _REGISTRY,
    "/api/2.0/mlflow/model-versions": _REGISTRY,
    "/api/2.0/mlflow/webhooks": _NOT_HERE.format("webhooks"),
    "/api/2.0/mlflow/artifacts/presigned-": _PRESIGNED,
    "/api/2.0/mlflow-artifacts/mpu/": _PRESIGNED,
    "/api/2.0/mlflow-artifacts/presigned/": _PRESIGNED,
    "/api/2.0/mlflow/traces/link-prompts": _NOT_HERE.format("prompts (the catalog has its own)"),
    "/api/2.0/mlflow/unified-traces": _NOT_HERE.format("traces of Databricks"),
    "/api/2.0/mlflow/get-online-trace-details": _NOT_HERE.format("traces of Databricks"),
    "/api/2.0mlflow/": _NOT_HERE.format("search of datasets"),
    "/api/3.0/mlflow/datasets": _NOT_HERE.format("evaluation datasets"),
    "/api/3.0/mlflow/gateway/": "the platform has a gateway of its own (/v1)",
    "/api/3.0/mlflow/issues": _NOT_HERE.format("issues"),
    "/api/3.0/mlflow/label-schemas/": _NOT_HERE.format("label schemas"),
    "/api/3.0/mlflow/mcp-servers": _NOT_HERE.format("MCP servers"),
    "/api/3.0/mlflow/prompt-optimization/": _NOT_HERE.format("jobs"),
    "/api/3.0/mlflow/review-queues/": _NOT_HERE.format("review queues"),
    "/api/3.0/mlflow/scorers/": _NOT_HERE.format("scorers"),
    "/api/3.0/mlflow/workspaces": _NOT_HERE.format("workspaces"),
}
"""Calls of MLflow's API that do not pass, by how their paths begin, and why."""

_COMPILED = list(_compile(_TABLE))
