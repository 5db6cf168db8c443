"""The Serve deployment of a vLLM engine, without vLLM until it runs: whoever deploys it has nothing to import, and what
must be settled before vLLM is imported is settled here."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mosaic.protocol import Adapter, EngineRequest
from mosaic.serving.engine_process import begin_imports, cpu_environment
from mosaic.serving.whole import AnswersWhole


class VllmReplica(AnswersWhole):
    """One engine; `config` is LLMConfig's, `threads` the CPU threads of its arithmetic (none: one per core). What
    answers is VllmServer (`vllm.py`)."""

    async def __init__(  # type: ignore[misc]
        self, config: dict[str, Any], resolve: Callable[[str], Path], threads: int | None, health_seconds: float
    ) -> None:
        os.environ.update(config["runtime_env"]["env_vars"])
        if config["accelerator_config"]["kind"] == "cpu":
            begin_imports(cpu_environment(threads))
        from ray.serve.llm import LLMConfig

        from mosaic.serving.vllm import VllmServer

        self._server = await VllmServer.started(LLMConfig(**config), resolve, health_seconds)

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        return self._server.answer(request)

    async def load_adapter(self, adapter: Adapter) -> None:
        await self._server.load_adapter(adapter)

    async def check_health(self) -> None:
        await self._server.check_health()
