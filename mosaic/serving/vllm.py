"""The vLLM replica: `ray.serve.llm`'s server, asked in our engine protocol, with LoRA adapters loaded when first named.

It reaches into internals of Ray 2.60 (`resolve_lora` and `_engine_client` of the engine, `DiskMultiplexConfig`), which
tests hold:
Ray's own LoRA loading takes only cloud addresses, and our adapters live wherever the catalog says.

vLLM's engine is a process of its own. When that is killed, every request fails at once; the replica tells so and ends
itself, which is faster than waiting until Serve has found it unhealthy.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from vllm.platforms import current_platform

from mosaic.errors import BadRequest, EngineDied
from mosaic.protocol import Adapter, EngineRequest
from mosaic.serving.vllm_cpu import CpuEngine, cpu_environment
from mosaic.serving.vllm_requests import ask

_LAST_WORDS_SECONDS = 0.5
"""Between an engine's death and the end of its replica, for the errors of its requests to leave."""


class VllmReplica(LLMServer):
    """One engine with one base model and any number of its adapters.

    `resolve` turns an adapter's name into a local folder with its verified files, on the node where the engine runs.
    `threads` is the CPU threads of its arithmetic (none: one per core).
    """

    async def __init__(  # type: ignore[misc]
        self, llm_config: LLMConfig, resolve: Callable[[str], Path], threads: int | None = None
    ) -> None:
        self._resolve = resolve
        self._adapter_lock = asyncio.Lock()
        self._adapter_numbers: dict[str, int] = {}
        if current_platform.is_cpu():
            os.environ.update(cpu_environment(threads))  # for the engine's process, which starts from this one
            await super().__init__(llm_config, engine_cls=CpuEngine)
        else:
            await super().__init__(llm_config)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        try:
            async for item in self._answer(request):
                yield item
        except Exception as error:  # a boundary: whatever vLLM makes of it, a dead engine answers nobody any more
            if not self._is_dead():
                raise
            self._end()
            raise EngineDied(f"the engine of {self._llm_config.model_id!r} died") from error

    async def check_health(self) -> None:
        """Asked by Serve; ends the replica when its engine is dead, so that another one starts."""
        if self.engine is not None and self._is_dead():
            self._end()
        await super().check_health()

    def _is_dead(self) -> bool:
        return bool(self.engine._engine_client.errored)

    def _end(self) -> None:
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, os._exit, 1)

    async def _answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        name = self._llm_config.model_id
        if request.adapter is not None:
            await self._load(request.adapter)
            name = request.adapter.name
        async for item in ask(self.engine, request, name):
            yield item

    async def load_adapter(self, adapter: Adapter) -> None:
        """Load an adapter before anybody asks for it; raises BadRequest when vLLM refuses its files."""
        await self._load(adapter)

    async def _load(self, adapter: Adapter) -> None:
        if adapter.name in self._adapter_numbers:
            return
        async with self._adapter_lock:
            if adapter.name in self._adapter_numbers:
                return
            number = len(self._adapter_numbers) + 1
            folder = await asyncio.to_thread(self._resolve, adapter.name)
            try:
                await self.engine.resolve_lora(
                    DiskMultiplexConfig(
                        model_id=adapter.name,
                        max_total_tokens=None,
                        local_path=str(folder),
                        lora_assigned_int_id=number,
                    )
                )
            except ValueError as error:
                raise BadRequest(f"the engine refuses adapter {adapter.name!r}: {error}") from None
            self._adapter_numbers[adapter.name] = number
