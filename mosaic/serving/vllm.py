"""The vLLM replica: `ray.serve.llm`'s server, asked in our engine protocol, with LoRA adapters loaded when first named.

It reaches into internals of Ray 2.60 (`resolve_lora`, `_engine_client`, `_app_state` and `_oai_serving_tokenization` of
the engine, `DiskMultiplexConfig`), and to feel the engine's pulse into some of vLLM 0.29 (the states of its requests,
who records its statistics); tests that load, kill and hang it hold them. Ray's own LoRA loading takes only cloud
addresses, and our adapters live wherever the catalog says.

vLLM's engine is a process of its own. When that is killed, every request fails at once; the replica tells so and ends
itself, which is faster than waiting until Serve has found it unhealthy.
"""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackConfig
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from vllm.platforms import current_platform

from mosaic.errors import BadRequest, EngineDied, EngineFailed
from mosaic.ids import new_id
from mosaic.protocol import Adapter, EngineRequest
from mosaic.serving.pulse import Pulse, Steps, cpu_seconds_of_children, end_with_children
from mosaic.serving.vllm_cpu import CpuEngine
from mosaic.serving.vllm_requests import ask

_LAST_WORDS_SECONDS = 0.5
"""Between an engine's death and the end of its replica, for the errors of its requests to leave."""

logger = logging.getLogger("ray.serve")


class FilesAreThere(CallbackBase):
    """Keeps Ray from having a worker of its own look for the model's files, which imports all that the replica does
    (10 s): `resolve` has put them into a folder of the node."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class VllmServer(LLMServer):
    """One engine with one base model and any number of its adapters.

    `resolve` turns an adapter's name into a local folder with its verified files, on the node where the engine runs.
    An engine that was asked for a token and is silent for `health_seconds` hangs: it ends with its replica, and Serve
    starts another one.
    """

    _resolve: Callable[[str], Path]
    _adapter_lock: asyncio.Lock
    _adapter_numbers: dict[str, int]
    _newest_token_at: float

    @classmethod
    async def started(
        cls,
        llm_config: LLMConfig,
        resolve: Callable[[str], Path],
        health_seconds: float = 60,
    ) -> Self:
        llm_config.callback_config = CallbackConfig(callback_class=FilesAreThere)
        server: Self = cls.sync_init(llm_config, engine_cls=CpuEngine if current_platform.is_cpu() else None)
        server._resolve = resolve
        server._adapter_lock = asyncio.Lock()
        server._adapter_numbers = {}
        await server.start()
        # Ray 2.60 looks for what counts tokens under the name that it had in an older vLLM.
        server.engine._oai_serving_tokenization = getattr(server.engine._app_state, "serving_tokenization", None)
        server._generates = llm_config.engine_kwargs.get("runner") != "pooling"
        server._steps, server._newest_token_at = Steps(), 0.0
        if (recorders := getattr(getattr(server.engine, "_engine_client", None), "logger_manager", None)) is not None:
            recorders.stat_loggers.append(server._steps)
        # As vLLM's own server: a collection of what imports have left behind would hold up streams for 0.4 s.
        gc.collect()
        gc.freeze()
        server._pulse = Pulse(
            server._ask_for_a_token, server._progress, cpu_seconds_of_children, limit_seconds=health_seconds
        )
        return server

    async def _start_engine(self) -> None:
        """Without Ray's report of which models are in use, whose actor takes four seconds to start."""
        await self.engine.start()

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
        """As Serve asks every few seconds; a replica whose engine is dead or hangs ends here, and another starts."""
        if self.engine is not None and self._is_dead():
            self._end()
        await super().check_health()
        if self._generates:
            try:
                self._pulse.check()
            except EngineFailed as error:
                logger.error("%s; this replica ends, and another one takes its place", error.message)
                end_with_children()

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

    async def _ask_for_a_token(self) -> None:
        request = EngineRequest(request_id=new_id("req"), task="complete", body={"prompt": "ping", "max_tokens": 1})
        async for _ in ask(self.engine, request, self._llm_config.model_id):
            pass

    def _progress(self) -> float:
        """Never smaller than before, also when those requests are gone whose tokens it saw."""
        self._newest_token_at = max(self._newest_token_at, self._last_token_at())
        return float(self._steps.count + self._newest_token_at)

    def _last_token_at(self) -> float:
        """By the engine's own clock, of the requests that it has; 0 of none."""
        client = getattr(self.engine, "_engine_client", None)
        states = [] if client is None else client.output_processor.request_states.values()
        return max((one.stats.last_token_ts for one in states if one.stats is not None), default=0.0)

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
