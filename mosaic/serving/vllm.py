"""The vLLM replica: `ray.serve.llm`'s server, asked in our engine protocol, with LoRA adapters loaded when first named.

It reaches into two internals of Ray 2.60 (`engine.resolve_lora`, `DiskMultiplexConfig`), which a contract test holds,
and to feel the engine's pulse into one of vLLM 0.29 (the states of its requests), which a test that hangs it holds.
Ray's own LoRA loading takes only cloud addresses, and our adapters live wherever the catalog says.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, ErrorResponse
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from vllm.platforms import current_platform

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.protocol import Adapter, EngineRequest
from mosaic.serving.pulse import PING, Pulse, end_with_children
from mosaic.serving.vllm_cpu import CpuEngine, cpu_environment

logger = logging.getLogger("ray.serve")


class VllmReplica(LLMServer):
    """One engine with one base model and any number of its adapters.

    `resolve` turns an adapter's name into a local folder with its verified files, on the node where the engine runs.
    `threads` is the CPU threads of its arithmetic (none: one per core). An engine that was asked for a token and is
    silent for `health_seconds` hangs: it ends with its replica, and Serve starts another one.
    """

    async def __init__(  # type: ignore[misc]
        self,
        llm_config: LLMConfig,
        resolve: Callable[[str], Path],
        threads: int | None = None,
        health_seconds: float = 60,
    ) -> None:
        self._resolve = resolve
        self._adapter_lock = asyncio.Lock()
        self._adapter_numbers: dict[str, int] = {}
        if current_platform.is_cpu():
            os.environ.update(cpu_environment(threads))  # for the engine's process, which starts from this one
            await super().__init__(llm_config, engine_cls=CpuEngine)
        else:
            await super().__init__(llm_config)
        self._pulse = Pulse(self._ask_for_a_token, self._last_token_at, limit_seconds=health_seconds)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        if request.task != "chat":
            raise Unprocessable(f"{self._llm_config.model_id!r} chats; it does not {request.task}")
        name = self._llm_config.model_id
        if request.adapter is not None:
            await self._load(request.adapter)
            name = request.adapter.name
        body = {**request.body, "model": name, "stream": request.stream, "request_id": request.request_id}
        if request.stream:
            body["stream_options"] = {"include_usage": True}
        async for answer in self.engine.chat(ChatCompletionRequest(**body), None):
            if isinstance(answer, ErrorResponse):
                raise _as_error(answer)
            if not isinstance(answer, str):
                yield answer.model_dump(mode="json", exclude_none=True)
                continue
            for event in answer.split("\n\n"):
                data = event.removeprefix("data: ").strip()
                if data and data != "[DONE]":
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise EngineFailed(str(chunk["error"].get("message", chunk["error"])))
                    yield chunk

    async def check_health(self) -> None:
        """As Serve asks every few seconds; a replica whose engine hangs ends here."""
        await super().check_health()
        try:
            self._pulse.check()
        except EngineFailed as error:
            logger.error("%s; this replica ends, and another one takes its place", error.message)
            end_with_children()

    async def _ask_for_a_token(self) -> None:
        body = {"model": self._llm_config.model_id, "messages": PING, "max_tokens": 1}
        async for _ in self.engine.chat(ChatCompletionRequest(**body), None):
            pass

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


def _as_error(answer: ErrorResponse) -> MosaicError:
    reason = str(answer.error.message)
    if 400 <= int(answer.error.code) < 500:
        code = "context_length_exceeded" if "context length" in reason else None
        return BadRequest(reason, param=getattr(answer.error, "param", None), code=code)
    return EngineFailed(reason)
