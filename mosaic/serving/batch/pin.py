"""Before a job starts: what its caller may do, who answers, and what exactly that is now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import pyarrow as pa

from mosaic.catalog import Catalog
from mosaic.catalog.names import is_model_version, parse_model_version
from mosaic.catalog.work_tokens import check_may_ask
from mosaic.errors import BadRequest, Conflict, PermissionDenied, Unavailable
from mosaic.protocol import Principal
from mosaic.serving import flags
from mosaic.serving.batch.calls import Task
from mosaic.serving.batch.pieces import INPUT_ROW
from mosaic.serving.batch.prompts import Answer
from mosaic.serving.batch.settings import BatchSettings
from mosaic.serving.endpoint import answering, is_place
from mosaic.serving.presets import read_config
from mosaic.serving.runners import runner_of
from mosaic.serving.settings import EngineSettings

ACTION = "runBatchInference"
INPUT_VERSION = "input_version"


@dataclass(frozen=True)
class Answerer:
    """Who answers, pinned."""

    name: str
    """A model version's or model's name, or an endpoint's full name."""
    task: Task
    engine_model: str | None = None
    """Of a model: the one whose engine runs, for an adapter the base."""
    adapter: str | None = None
    served_name: str | None = None
    """Of an endpoint: what callers write."""
    used: tuple[tuple[str, str, int | None], ...] = ()
    """(kind, name, version) of what the run reads beside the table, for its lineage."""


def check_output(catalog: Catalog, settings: BatchSettings, principal: Principal) -> None:
    """Raises PermissionDenied unless the principal may make the output, or write to it where it is there."""
    name = settings.output_table
    if catalog.find_table(name) is not None:
        for privilege in ("SELECT", "MODIFY"):  # how far a job has come is read from it
            catalog.grants.check(principal, privilege, "table", name, action=ACTION)
    else:
        catalog.grants.check(principal, "CREATE TABLE", "schema", name.rpartition(".")[0], action=ACTION)


def pin_model(catalog: Catalog, settings: BatchSettings, principal: Principal, name: str | None) -> Answerer:
    """The model of a job, as `name` pinned it before (None: as it is now).

    Raises NotFound, PermissionDenied without EXECUTE on a registered model and on an adapter's base, or for what only
    administrators may run, and Conflict for a name that `settings.model` cannot have meant.
    """
    assert settings.model is not None
    check, is_admin = catalog.grants.check, catalog.principals.is_administrator(principal)
    if name is not None and not _can_mean(settings.model, name):
        raise Conflict(
            f"output_table {settings.output_table!r} says that {name!r} answers, which is not what model "
            f"{settings.model!r} can mean; name another output_table",
            param="output_table",
            code="batch_differs",
        )
    if is_place(settings.model) and not is_admin:
        _deny(catalog, principal, f"model {settings.model!r} is a place, which only administrators may run from")
    if settings.engine is not None:
        flags.check(settings.engine)
        if settings.engine.pip:
            raise BadRequest("engine.pip is for custom models; a job itself runs chat models", param="engine")
        given = flags.for_administrators(settings.engine.engine_kwargs)
        if given and not is_admin:
            _deny(catalog, principal, f"engine_kwargs {given} can load code, and only administrators may give them")
    if is_model_version(settings.model):
        check(principal, "EXECUTE", "model", parse_model_version(settings.model).model, action=ACTION)
    now = answering(catalog, name or settings.model)
    if is_place(now.engine_model) and not is_admin:
        told = (
            f"{settings.model!r} is an adapter of {now.engine_model!r}, a place, which only administrators may run from"
        )
        _deny(catalog, principal, f"model {told}")
    if is_model_version(now.engine_model):
        check(principal, "EXECUTE", "model", parse_model_version(now.engine_model).model, action=ACTION)
    if now.version is None:
        return Answerer(now.engine_model, "chat", now.engine_model, used=(("base_model", now.engine_model, None),))
    full = now.version.full_name
    used: list[tuple[str, str, int | None]] = [("model", now.version.model, now.version.version)]
    if now.is_adapter:
        used.append(_used(now.engine_model))
    return Answerer(full, "chat", now.engine_model, full if now.is_adapter else None, used=tuple(used))


def pin_endpoint(catalog: Catalog, settings: BatchSettings, principal: Principal) -> Answerer:
    """The endpoint of a job; raises NotFound, PermissionDenied without EXECUTE or with a token that opens no
    endpoints, Unavailable while none of its configurations is live, and BadRequest for what it is not asked by."""
    assert settings.endpoint is not None
    check_may_ask(catalog, principal, ACTION)
    full = catalog.endpoints.full_name(settings.endpoint)
    catalog.grants.check(principal, "EXECUTE", "endpoint", full, action=ACTION)
    endpoint = catalog.endpoints.get(full)
    if not endpoint.config_version:
        raise Unavailable(f"endpoint {full!r} has no live configuration yet")
    task: Task = endpoint.config["task"]
    if task not in get_args(Task):
        raise BadRequest(f"endpoint {full!r} is for {task}; a batch job asks for {get_args(Task)}", param="endpoint")
    if task == "predict" and settings.columns is None:
        raise BadRequest(f"endpoint {full!r} predicts from columns, not from a prompt", param="prompt")
    if task == "chat" and settings.prompt is None:
        raise BadRequest(f"endpoint {full!r} chats, which takes a prompt and not columns", param="columns")
    if task == "embed" and settings.columns is not None and len(settings.columns) != 1:
        raise BadRequest(f"endpoint {full!r} embeds one text: one column, or a prompt of several", param="columns")
    if task != "chat" and (settings.system_prompt is not None or settings.json_schema is not None):
        given = "system_prompt" if settings.system_prompt is not None else "json_schema"
        raise BadRequest(f"{given} is for chats, and endpoint {full!r} is for {task}", param=given)
    versions = [_used(name) for name in endpoint.pinned.values()]
    return Answerer(
        full,
        task,
        served_name=endpoint.served_name,
        used=(("endpoint", full, endpoint.config_version), *dict.fromkeys(versions)),
    )


def require_chat_model(resolve: Callable[[str], Path], model: str, engine: EngineSettings) -> None:
    """Raises BadRequest for a model that vLLM, run so, does not chat with, and whatever `resolve` raises."""
    folder = resolve(model)
    if (folder / "MLmodel").is_file():
        raise BadRequest(
            f"model {model!r} is MLflow's; serve it, and name its endpoint in place of model", param="model"
        )
    config = read_config(folder, param="model")
    if runner_of(folder, config, engine) != "generate":
        architectures = config.get("architectures") or []
        raise BadRequest(
            f"model {model!r} is a {architectures}; a job itself runs causal language models. Serve it, and name its "
            "endpoint in place of model",
            param="model",
        )


def output_schema(settings: BatchSettings, given: pa.Schema, task: Task) -> tuple[pa.Schema, list[str]]:
    """The output's columns, and which of them are the input's; raises BadRequest for names that collide."""
    keep = list(given.names if settings.keep is None else settings.keep)
    answer: Mapping[str, Any] = {
        "response": pa.list_(pa.float32()) if task == "embed" else pa.string(),
        "error": pa.string(),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "model": pa.string(),
    }
    assert tuple(answer) == Answer._fields
    own = [
        pa.field(INPUT_ROW, pa.int64(), nullable=False),
        *(pa.field(name, kind) for name, kind in answer.items()),
        pa.field(INPUT_VERSION, pa.int64(), nullable=False),
    ]
    taken = {field.name for field in own}
    twice = [name for name in keep if name.lower() in taken]
    if twice:
        raise BadRequest(
            f"column {twice[0]!r} of the input has the name of one of the output's own, {sorted(taken)}; name the "
            "columns to keep (keep)",
            param="keep",
        )
    return pa.schema([*(given.field(name) for name in keep), *own]), keep


def _can_mean(model: str, pinned: str) -> bool:
    """Whether a job's model can have been pinned so: an alias to any version of its model, all else to itself."""
    if not is_model_version(model) or not is_model_version(pinned):
        return model == pinned
    asked, named = parse_model_version(model), parse_model_version(pinned)
    return asked.model == named.model and named.version is not None and asked.version in (None, named.version)


def _used(model: str) -> tuple[str, str, int | None]:
    if not is_model_version(model):
        return ("base_model", model, None)
    named = parse_model_version(model)
    return ("model", named.model, named.version)


def _deny(catalog: Catalog, principal: Principal, told: str) -> NoReturn:
    error = PermissionDenied(told, param="model")
    catalog.audit.deny(ACTION, {}, error, by=principal)
    raise error
