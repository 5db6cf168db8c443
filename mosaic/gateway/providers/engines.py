"""The engines of external models, one for each: which class speaks a provider's protocol."""

from collections.abc import Callable

from mosaic.gateway.providers.anthropic import Anthropic
from mosaic.gateway.providers.openai_compatible import OpenAICompatible
from mosaic.gateway.providers.upstream import Http
from mosaic.protocol import Engine
from mosaic.serving.external import Access, ExternalModel

_ENGINES: dict[str, Callable[[ExternalModel, Access, Http], Engine]] = {
    "openai": OpenAICompatible,
    "custom": OpenAICompatible,
    "anthropic": Anthropic,
}


class ProviderEngines:
    """The external models that one process has asked, which share its connections.

    An engine is kept as long as its model is asked with the same access, since it counts the requests it has there.
    """

    def __init__(self, *, allow_private: bool = False) -> None:
        """`allow_private`: whether providers may be at addresses that are not public."""
        self._http = Http(allow_private=allow_private)
        self._kept: dict[ExternalModel, tuple[Access, Engine]] = {}

    def engine(self, model: ExternalModel, access: Access) -> Engine:
        """Makes no connection; the first request does."""
        access_then, engine = self._kept.get(model, (None, None))
        if engine is None or access_then != access:
            engine = _ENGINES[model.provider](model, access, self._http)
            self._kept[model] = access, engine
        return engine

    def keep(self, models: set[ExternalModel]) -> None:
        """Forget all other models: those that no endpoint has any more."""
        self._kept = {model: kept for model, kept in self._kept.items() if model in models}

    async def close(self) -> None:
        """End the connections; requests that are under way fail."""
        await self._http.close()
