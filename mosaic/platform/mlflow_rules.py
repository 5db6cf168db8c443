"""Who may make which call of MLflow's API: one table, from (method, path) to what the call names or makes.

Who is signed in may read everything and log what is theirs. A call that changes something is its owner's and the
administrators'; whose it is stands in a tag that control alone writes. What is not in the table does not pass.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import unquote

from mosaic.errors import BadRequest, NotFound, PermissionDenied, UnsupportedField
from mosaic.training.tracking import OWNER_TAG

STAMP = OWNER_TAG
"""The tag that says whose an experiment, a run, a logged model, a trace or an assessment is."""
_USER = "mlflow.user"
_KEPT_TAGS = frozenset({STAMP, _USER, "mlflow.artifactLocation", "mlflow.trace.spansLocation"})
"""Tags that no client sets: whose it is, and where the server looks for its files."""
_KEPT_LOWER = frozenset(tag.lower() for tag in _KEPT_TAGS)

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_AWAY = re.compile(r"|\.\.?(;.*)?", re.DOTALL)
"""A segment that a server may walk by: none, the same folder, the one above, also with parameters behind it."""
_MOST_ESCAPES = 8
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")

Kind = Literal["experiment", "run", "model", "trace", "assessment"]


@dataclass(frozen=True)
class Rule:
    """What one call needs. With neither `changes` nor `makes` it only reads."""

    changes: Kind | None = None
    """The kind of the thing that it changes."""
    named_by: tuple[str, ...] = ()
    """Fields of the path and of the body that have its id."""
    makes: Kind | None = None
    """The kind of the thing that it makes, which is then the caller's."""
    held_in: str | None = None
    """The field of the body that says what is made, where the body itself does not."""
    also: tuple[tuple[Kind, str], ...] = ()
    """What else it may name that has to be the caller's: the kind, and the field of the body (`list.field`)."""
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
            rule = replace(by_method[method], ids=found.groupdict())
            if rule.is_file:
                _plain_file(rule.ids["artifact_path"])
            elif not _is_plain(_undone(path)[1:]):
                break
            return rule
    for prefix, why in REFUSED.items():
        if path.startswith(prefix):
            raise PermissionDenied(f"{method} {path}: {why}", code="endpoint_not_found")
    raise NotFound(f"{method} {path!r} is no call of MLflow's API that passes here", code="endpoint_not_found")


def named_ids(rule: Rule, body: Mapping[str, Any]) -> list[str]:
    """The ids of what the call changes; raises BadRequest if it names nothing.

    A request may say the same field in several ways: each of them is taken, so that none hides another. MLflow itself
    takes some ids from the body although the path has them.
    """
    ids = [rule.ids[name] for name in rule.named_by if name in rule.ids]
    ids += [value for name in rule.named_by for value in _named(body, name)]
    if not ids:
        raise BadRequest(f"field {rule.named_by[0]!r} must name the {rule.changes}", code="invalid_parameter_value")
    return list(dict.fromkeys(_id(one, rule.named_by[0]) for one in ids))


def also_named(rule: Rule, body: Mapping[str, Any]) -> list[tuple[Kind, str]]:
    """What else a body names that has to be the caller's, each once.

    MLflow would change it, or show what is written under it as its own: `overrides` makes an assessment invalid, and
    runs:/RUN/NAME is loaded from whatever logged model says that RUN is its source.
    """
    found = ((kind, _id(value, place)) for kind, place in rule.also for value in _named(body, place))
    return list(dict.fromkeys(found))


def place_of(rule: Rule, kind: Kind, name: str) -> str:
    """How a thing is looked up: an assessment only under its trace."""
    return f"{_id(rule.ids['trace_id'], 'trace_id')}/assessments/{name}" if kind == "assessment" else name


def artifact_owner(path: str) -> tuple[Kind, str, str]:
    """Whose file an artifact's path is: the kind, the id, and the experiment that it says; raises PermissionDenied."""
    match _plain_file(path).split("/"):
        case [experiment, "models", model, "artifacts", _, *_]:
            return "model", _id(model, "artifact_path"), _id(experiment, "artifact_path")
        case [experiment, "traces", trace, "artifacts", _, *_]:
            return "trace", _id(trace, "artifact_path"), _id(experiment, "artifact_path")
        case [experiment, run, "artifacts", _, *_]:
            return "run", _id(run, "artifact_path"), _id(experiment, "artifact_path")
    raise PermissionDenied(f"artifact path {path!r} is not under a run, a logged model or a trace")


def _plain_file(path: str) -> str:
    """An artifact's path without its escapes; raises BadRequest for one that leads elsewhere.

    MLflow undoes percent-escapes until none is left, so a path is judged as it is in the end.
    """
    plain = _undone(path)
    if not _is_plain(plain) or "#" in plain or ":" in plain.partition("/")[0]:
        raise BadRequest(f"artifact path {path!r} must be a plain relative path", code="invalid_parameter_value")
    return plain


def _is_plain(path: str) -> bool:
    return _ODD.search(path) is None and not any(_AWAY.fullmatch(part) for part in path.split("/"))


def _undone(path: str) -> str:
    """The path with all its percent-escapes undone, those of escapes too; raises BadRequest where they go on."""
    for _ in range(_MOST_ESCAPES):
        plain = unquote(path)
        if plain == path:
            return plain
        path = plain
    raise BadRequest(f"the path has escapes of escapes, {_MOST_ESCAPES} deep", code="invalid_parameter_value")


def check_tags(rule: Rule, body: Mapping[str, Any]) -> None:
    """Raises BadRequest if a change touches a tag that is the platform's."""
    keys = [_undone(rule.ids.get("tag_key", "")), *_values(body, "key")]
    keys += [key for tag in _listed(body, "tags") for key in _values(tag, "key")]
    for key in keys:
        if _is_kept(key):
            raise BadRequest(f"tag {key!r} is the platform's own; it says whose this is", param="key")


def changed_by(rule: Rule, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a change, without what it says of whose it is where that would be merged in."""
    if rule.changes != "assessment" or not _values(body, "assessment"):
        return body
    return _with(
        body, "assessment", lambda one: _with(one, "metadata", _unstamped) if _values(one, "metadata") else one
    )


def made_for(rule: Rule, body: dict[str, Any], owner: str) -> dict[str, Any]:
    """The body of what a call makes, with whose it is in place of what the client says of it.

    MLflow goes on with what it has read of a body when it cannot read on: whose it is comes before all else.
    """
    if rule.makes == "assessment":
        return _with(body, "assessment", lambda one: _stamped_assessment(one, owner))
    if rule.held_in is not None:
        return _with(body, rule.held_in, lambda one: _with(one, "trace_info", lambda info: _stamped_trace(info, owner)))
    if rule.makes == "experiment" and any(_values(body, "artifact_location")):
        raise UnsupportedField(
            "artifact_location is not for a client to choose: files go through the platform", param="artifact_location"
        )
    stamps = {STAMP: owner} | ({} if rule.makes == "experiment" else {_USER: owner})
    kept = [tag for tag in _listed(body, "tags") if not any(_is_kept(key) for key in _values(tag, "key"))]
    tags = [*({"key": key, "value": value} for key, value in stamps.items()), *kept]
    user = {"user_id": owner} if rule.makes == "run" else {}
    rest = _without(body, "user_id") if rule.makes == "run" else body
    return {**user, "tags": tags, **_without(rest, "tags")}


def claimed_owner(body: Mapping[str, Any]) -> str | None:
    """Whose a run is to be, as the platform's own call says it."""
    return next((tag.get("value") for tag in _listed(body, "tags") if tag.get("key") == STAMP), None)


def new_trace_id(rule: Rule, body: Mapping[str, Any]) -> str | None:
    """The id that a client has chosen for the trace that it makes; None where the server chooses."""
    if rule.held_in is None:
        return None
    ids = [
        one
        for trace in _values(body, rule.held_in)
        for info in _values(trace, "trace_info")
        for one in _values(info, "trace_id")
    ]
    if len(ids) != 1:  # without one, all would be under the same empty id
        raise BadRequest("field 'trace.trace_info.trace_id' must be there, once", param="trace_id")
    return _id(ids[0], "trace_id")


def _id(value: Any, name: str) -> str:
    """An id, which stands in addresses: nothing in it may be read as more."""
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise BadRequest(f"field {name!r} = {value!r} must be an id of MLflow's", code="invalid_parameter_value")
    return value


def _is_kept(key: Any) -> bool:
    # Some databases hold keys to be equal that differ in case or in blanks at the end.
    return isinstance(key, str) and key.strip().lower() in _KEPT_LOWER


def _stamped(tags: Mapping[str, Any], owner: str) -> dict[str, Any]:
    return {STAMP: owner} | _unstamped(tags)


def _unstamped(tags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tags.items() if not _is_kept(key)}


def _stamped_assessment(said: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """An assessment to be made: under an id of the server's, since one that is there would be written over."""
    return _with(_without(said, "assessment_id"), "metadata", lambda metadata: _stamped(metadata, owner))


def _stamped_trace(info: Mapping[str, Any], owner: str) -> dict[str, Any]:
    said = _with(info, "trace_metadata", lambda metadata: {_USER: owner} | _unstamped(metadata))
    assessments = [_stamped_assessment(_object(one, "assessments"), owner) for one in _listed(said, "assessments")]
    if assessments:
        said = {**said, "assessments": assessments}
    said = _with(said, "tags", lambda tags: _stamped(tags, owner))
    ids = _values(said, "trace_id")
    return {"trace_id": ids[0], **_without(said, "trace_id")}


def _values(body: Any, name: str) -> list[Any]:
    """What a body says for a field, in protobuf's two spellings."""
    said = _object(body, name)
    return [said[key] for key in _spellings(name) if key in said]


def _named(body: Any, place: str) -> Iterator[Any]:
    """All that a body says at a place (`field`, or `field.field` through lists and objects)."""
    name, _, rest = place.partition(".")
    said = [value for value in _values(body, name) if value not in (None, "")]
    if not rest:
        yield from said
        return
    for value in said:
        for one in value if isinstance(value, list) else [value]:
            yield from _named(one, rest)


def _object(body: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise BadRequest(f"an object is expected where {name!r} is looked for, not {type(body).__name__}")
    return body


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


def _with(
    body: Mapping[str, Any], name: str, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The body with a field's object changed, under its first spelling alone and before the other fields."""
    found = _values(body, name)
    if len(found) > 1 or (found and found[0] is not None and not isinstance(found[0], Mapping)):
        raise BadRequest(f"field {name!r} must be one object", param=name)
    return {name: change(found[0] or {} if found else {}), **_without(body, name)}


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
                named_by=tuple(fields.split(",")) if verb == "change" else (),
                makes=what if verb == "make" else None,  # type: ignore[arg-type]
                held_in=fields or None if verb == "make" else None,
                also=_ALSO.get(path, ()),
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
POST      /api/3.0/mlflow/traces                                           make   trace:trace
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
"""In MLflow's words: "2.0/mlflow/traces/{trace_id}" is its <request_id>. `read`: anyone signed in. `make kind:field`:
what is made stands in that field."""

_ALSO: dict[str, tuple[tuple[Kind, str], ...]] = {
    "/api/2.0/mlflow/runs/log-metric": (("model", "model_id"),),
    "/api/2.0/mlflow/runs/log-batch": (("model", "metrics.model_id"),),
    "/api/2.0/mlflow/runs/outputs": (("model", "models.model_id"),),
    "/api/2.0/mlflow/logged-models": (("run", "source_run_id"),),
    "/api/3.0/mlflow/traces/{trace_id}/assessments": (("assessment", "assessment.overrides"),),
}

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
