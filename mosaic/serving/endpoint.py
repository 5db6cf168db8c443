"""An endpoint's settings, as the catalog keeps them: who answers, in what shares, with what looked up first."""

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mosaic.catalog import Catalog, ModelVersion
from mosaic.catalog.names import is_model_version
from mosaic.errors import NotFound, Unprocessable
from mosaic.protocol import Adapter, Message
from mosaic.serving.ai_gateway import AiGateway
from mosaic.serving.external import ExternalModel
from mosaic.serving.settings import EngineSettings
from mosaic.settings import Settings

_TASKS_OF: Mapping[str, tuple[str, ...]] = {
    "openai": ("chat", "complete", "embed"),
    "custom": ("chat", "complete", "embed"),
    "anthropic": ("chat",),
}
"""What external providers are asked for, by their protocol."""


class ServedEntity(Settings):
    """One of the models behind an endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Its name within the endpoint; every row of the inference table carries it."""
    model: str = ""
    """A model's name (`smollm2-135m-instruct`), or a catalog version or alias (`main.ml.bot/3`,
    `main.ml.bot@champion`)."""
    external_model: ExternalModel | None = None
    """In place of `model`: one that a provider answers with."""
    traffic_percentage: int = Field(default=100, ge=0, le=100)
    """Share of the endpoint's requests."""
    engine: EngineSettings | None = None
    """How its engine runs; without it as the platform's settings say for the model."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if bool(self.model) == (self.external_model is not None):
            raise ValueError("a served entity needs either model or external_model")
        if self.external_model is not None and self.engine is not None:
            raise ValueError("engine is for models that run here, and an external_model does not")
        return self


class Retrieval(Settings):
    """What is looked up and put before the model with each question (retrieval-augmented generation)."""

    index: str
    """A vector index of the catalog; the last user message is the query."""
    num_results: int = Field(default=3, ge=1, le=50)
    """How many entries the model sees."""
    system_prompt: str = "Answer from the reference entries given."
    """Put first, unless the request brings a system message of its own."""
    entry_template: str = "{text}"
    """One entry, from its columns in the index; `{number}` counts from 1."""
    prompt_template: str = "Reference:\n{entries}\n\nQuestion: {question}"
    """The user message that the model sees."""

    @field_validator("entry_template", "prompt_template")
    @classmethod
    def _plain(cls, template: str, info: ValidationInfo) -> str:
        allowed = ("entries", "question") if info.field_name == "prompt_template" else None
        for _, name, spec, conversion in string.Formatter().parse(template):
            if name is None:
                continue
            if not name.isidentifier() or spec or conversion or (allowed and name not in allowed):
                what = f"one of {list(allowed)}" if allowed else "the name of a column, such as {text}"
                raise ValueError(f"{{{name}}} must be {what}, without more")
        return template

    def messages(self, question: str, entries: Sequence[Mapping[str, Any]]) -> list[Message]:
        """The system and user message for one question; also what fine-tuning on this endpoint's task renders."""
        try:
            shown = [self.entry_template.format(**{**entry, "number": n}) for n, entry in enumerate(entries, 1)]
        except KeyError as error:
            raise Unprocessable(
                f"entry_template names {error.args[0]!r}, which index {self.index!r} does not keep", param="retrieval"
            ) from None
        prompt = self.prompt_template.format(entries="\n".join(shown), question=question)
        return [Message(role="system", content=self.system_prompt), Message(role="user", content=prompt)]


class EndpointSettings(Settings):
    """A model-serving endpoint."""

    name: str
    """Name in the catalog; without dots it is in `main.serving`."""
    task: Literal["chat", "complete", "embed", "score", "predict"] = "chat"
    """What it is asked for: /v1/chat/completions (and /v1/completions), /v1/completions alone, /v1/embeddings,
    /v1/score and /v1/rerank, or the predictions of a custom model."""
    served_entities: list[ServedEntity] = Field(min_length=1, max_length=10)
    """Who answers; the shares add up to 100."""
    sticky: Literal["random", "user"] = "random"
    """Whether who answers is drawn for each request, or each user keeps its served entity: who asks, or whom the
    request's `user` names. When shares change only as many users move as must."""
    retrieval: Retrieval | None = None
    """Looked up before the model is asked; only for chat."""
    ai_gateway: AiGateway = AiGateway()
    """What its callers are held to, and what is looked for in what they ask and get: rate limits and guardrails."""

    @property
    def own_entities(self) -> list[ServedEntity]:
        """Those whose engines run here."""
        return [entity for entity in self.served_entities if entity.external_model is None]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        shares = sum(entity.traffic_percentage for entity in self.served_entities)
        if shares != 100:
            raise ValueError(f"the traffic percentages add up to {shares}, not to 100")
        names = [entity.name for entity in self.served_entities]
        if len(set(names)) != len(names):
            raise ValueError(f"two served entities have the same name: {names}")
        if self.retrieval is not None and self.task != "chat":
            raise ValueError("retrieval is only for endpoints whose task is 'chat'")
        if self.task not in ("chat", "complete") and self.ai_gateway.guardrails.output is not None:
            raise ValueError("guardrails on the output are only for endpoints whose task is 'chat' or 'complete'")
        if self.task not in ("chat", "complete") and self.ai_gateway.cache.enabled:
            raise ValueError("a cache is only for endpoints whose task is 'chat' or 'complete'")
        if self.task == "predict" and self.ai_gateway.guardrails.input is not None:
            raise ValueError("guardrails are for text; what a custom model predicts from is not read")
        for entity in self.served_entities:
            external = entity.external_model
            if external is not None and self.task not in _TASKS_OF[external.provider]:
                does = ", ".join(_TASKS_OF[external.provider])
                raise ValueError(f"served entity {entity.name!r}: providers of {external.provider!r} do {does}")
        return self


APP_PREFIX = "engine-"
"""Of the Serve applications that are endpoints' engines."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_place(model: str) -> bool:
    """Whether a model is named by where its files are: a folder, an address, a model of the hub."""
    return not is_model_version(model) and _PLAIN_NAME.fullmatch(model) is None


@dataclass(frozen=True, order=True)
class Unit:
    """An engine to be: entities that name the same one share it, also of several endpoints."""

    model: str
    """The model whose engine it is: for an adapter its base model."""
    settings_json: str
    """How it runs, or nothing: as the platform's settings say."""

    @property
    def app_name(self) -> str:
        """The Serve application: `engine-smollm2-135m-instruct`; with a mark where the name alone would not tell it
        from another's, or it has settings of its own."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.model.lower()).strip("-")
        if slug == self.model and not self.settings_json:
            return f"{APP_PREFIX}{slug}"
        told = json.dumps([self.model, self.settings_json])
        return f"{APP_PREFIX}{slug[-60:]}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    @property
    def settings(self) -> EngineSettings | None:
        return EngineSettings.model_validate_json(self.settings_json) if self.settings_json else None


def unit_of(catalog: Catalog, entity: ServedEntity, pinned: Mapping[str, str]) -> Unit:
    """The engine that answers for an entity; raises NotFound for a version or alias that the catalog lacks."""
    return unit(answering(catalog, pinned.get(entity.model, entity.model)).engine_model, entity.engine)


def units_of(catalog: Catalog, config: Mapping[str, Any], pinned: Mapping[str, str]) -> set[Unit]:
    """The engines of a configuration; one whose model is gone is none's."""
    found = set()
    for entity in EndpointSettings.parse(config, source="an endpoint of the catalog").own_entities:
        with suppress(NotFound):
            found.add(unit_of(catalog, entity, pinned))
    return found


def pins_of(catalog: Catalog, config: Mapping[str, Any]) -> dict[str, str]:
    """What the models of a configuration mean now, of those that are the catalog's: the version by the name."""
    pins = {}
    for entity in EndpointSettings.parse(config, source="an endpoint of the catalog").own_entities:
        with suppress(NotFound):
            version = answering(catalog, entity.model).version
            if version is not None:
                pins[entity.model] = version.full_name
    return pins


def unit(model: str, settings: EngineSettings | None = None) -> Unit:
    return Unit(model, "" if settings is None else settings.model_dump_json())


@dataclass(frozen=True)
class Answering:
    """What answers for a served entity's model at this moment."""

    engine_model: str
    """The model whose engine answers: for an adapter its base model."""
    version: ModelVersion | None
    """The catalog's version, where the model is one of the catalog's."""

    @property
    def is_adapter(self) -> bool:
        return self.version is not None and self.version.kind == "adapter"


def adapter_of(catalog: Catalog, model: str) -> Adapter | None:
    """The adapter that an entity's model means now, if it means one. Raises NotFound."""
    now = answering(catalog, model)
    return Adapter(name=now.version.full_name) if now.version is not None and now.is_adapter else None


def answering(catalog: Catalog, model: str) -> Answering:
    """Pin an entity's model: a packaged or plain name as it is, a catalog name to the version that it means now.

    Raises NotFound for a version or alias that the catalog lacks.
    """
    if not is_model_version(model):
        return Answering(model, None)
    version = catalog.get_model_version(model)
    is_adapter = version.kind == "adapter"
    return Answering(version.base_model or "" if is_adapter else version.full_name, version)
