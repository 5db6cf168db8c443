"""vLLM's own API server, with the CPU worker that mosaic gives its engines: what the gateway adds is then all that
differs.

    python -m benchmarks._vllm_in_one_process --model FOLDER --port 8000 ...   (the flags of vLLM's server)
"""

import os
import runpy
from typing import Any

from mosaic.serving.engine_process import cpu_environment

if __name__ == "__main__":
    os.environ.update(cpu_environment())
    from vllm.platforms import current_platform

    check = type(current_platform).check_and_update_config

    def in_one_process(config: Any) -> None:
        check(config)
        config.parallel_config.distributed_executor_backend = "uni"

    current_platform.check_and_update_config = in_one_process
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
