"""Asking a provider's engine in a test: the double behind it, over loopback, by real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mosaic.errors import MosaicError
from mosaic.gateway.providers import ProviderEngines
from mosaic.gateway.providers.doubles import ProviderDouble
from mosaic.protocol import Engine, EngineRequest
from mosaic.serving.external import Access, ExternalModel

KEY = "sk-double-0123456789abcdef"
PROVIDERS = ("openai", "anthropic")


@dataclass
class Asking:
    """The double, and engines that ask it."""

    double: ProviderDouble
    engines: ProviderEngines

    def engine(self, provider: str = "openai", **settings: Any) -> Engine:
        model = ExternalModel.parse({"provider": provider, "name": "m1", "connection": "c1", **settings})
        url = self.double.url + ("" if provider == "anthropic" else "/v1")
        return self.engines.engine(model, Access.of(model, {"base_url": url}, {"api_key": KEY}))


@asynccontextmanager
async def asking() -> AsyncIterator[Asking]:
    async with ProviderDouble() as double:
        engines = ProviderEngines(allow_private=True)
        try:
            yield Asking(double, engines)
        finally:
            await engines.close()


def with_double(scenario: Callable[[Asking], Awaitable[Any]]) -> Any:
    """What `scenario` returns, run with a double of its own."""

    async def run() -> Any:
        async with asking() as given:
            return await asyncio.wait_for(scenario(given), 20)

    return asyncio.run(run())


def chat(text: str, *, stream: bool = False, **fields: Any) -> EngineRequest:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return EngineRequest(request_id="req_1", task="chat", body=body, stream=stream)


async def answered(engine: Engine, request: EngineRequest) -> list[dict[str, Any]]:
    return [item async for item in engine.answer(request)]


async def failed(engine: Engine, request: EngineRequest) -> tuple[list[dict[str, Any]], MosaicError]:
    """What came before the error, and the error."""
    items: list[dict[str, Any]] = []
    try:
        async for item in engine.answer(request):
            items.append(item)
    except MosaicError as error:
        return items, error
    raise AssertionError(f"no error after {items}")
