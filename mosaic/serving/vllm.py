"""The vLLM replica: `ray.serve.llm`'s server, asked in our engine protocol, with LoRA adapters loaded when first named.

It reaches into two internals of Ray 2.60 (`engine.resolve_lora`, `DiskMultiplexConfig`), which a contract test holds:
Ray's own LoRA loading takes only cloud addresses, and our adapters live wherever the catalog says.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from vllm.platforms import current_platform

from mosaic.errors import BadRequest
from mosaic.protocol import Adapter, EngineRequest
from mosaic.serving.vllm_cpu import CpuEngine, cpu_environment
from mosaic.serving.vllm_requests import ask


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
