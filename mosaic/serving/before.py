"""What an update over HTTP leaves out stays as it was; databricks-sdk cannot say all that there is."""

from collections.abc import Iterable, Mapping
from typing import Any

from mosaic.catalog.names import is_model_version, parse_model_version
from mosaic.catalog.records import Endpoint


class Before:
    """An endpoint's newest configuration: the pending one, else the live one; of one that never was live the failed."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._entities: list[dict[str, Any]] = config.get("served_entities", [])
        self._task: str = config.get("task", "chat")
        self.config = config
        self.retrieval: dict[str, Any] | None = config.get("retrieval")
        self.sticky: str | None = config.get("sticky")
        self.ai_gateway: dict[str, Any] = config.get("ai_gateway", {})

    @classmethod
    def of(cls, endpoint: Endpoint) -> "Before":
        if endpoint.pending is not None:
            return cls(endpoint.pending.config)
        if endpoint.config_version or endpoint.failed is None:
            return cls(endpoint.config)
        return cls(endpoint.failed.config)

    def engine(self, name: str | None, model: str) -> dict[str, Any] | None:
        """How the entity of this name ran, if it served the same model, in whatever version; without a name, the only
        entity of the model."""
        same = [one for one in self._entities if _of(one["model"]) == _of(model)]
        if name is not None:
            same = [one for one in same if one["name"] == name]
        return same[0].get("engine") if len(same) == 1 else None

    def task(self, models: Iterable[str]) -> str | None:
        """None for one that is made out anew: `chat`, which models that predict do not do, or what only models did that
        are served no more."""
        kept = {_of(one["model"]) for one in self._entities} & {_of(model) for model in models}
        return None if self._task == "chat" or (self._task == "predict" and not kept) else self._task


def _of(model: str) -> str:
    return parse_model_version(model).model if is_model_version(model) else model
