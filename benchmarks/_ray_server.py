"""Ray's own LLM server on the engine that mosaic uses on a CPU, so that `build_openai_app` is measured tuned as we
are."""

import os
from typing import Any

from ray.llm._internal.serve.core.server.llm_server import LLMServer

from mosaic.serving.engine_process import cpu_environment
from mosaic.serving.vllm_cpu import CpuEngine


class OneProcessServer(LLMServer):
    async def __init__(self, llm_config: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        os.environ.update(cpu_environment())
        await super().__init__(llm_config, **{**kwargs, "engine_cls": CpuEngine})
