"""vLLM on the CPU as mosaic runs it, against vLLM as it comes: output tokens per second, with and without an adapter.

    python benchmarks/engine_cpu.py

Each engine runs in a process of its own with the packaged chat model; a round is 16 chats at once, of 24 tokens.
The rounds of one engine follow each other (two engines side by side would share the cores); printed are the median and
the range.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS, CHATS, TOKENS = 5, 16, 24


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: measure(name, Path(scratch)) for name in ("vllm", "mosaic")}
    print(f"{'':24}{'vLLM as it comes':>28}{'mosaic':>28}{'ratio':>8}")
    for load in ("base", "adapter"):
        theirs, ours = found["vllm"][load], found["mosaic"][load]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"{load + ', output tokens/s':24}{shown(theirs):>28}{shown(ours):>28}{ratio:>8.2f}")
    print("ready after, seconds    " + "".join(f"{found[name]['ready_seconds']:>28.0f}" for name in ("vllm", "mosaic")))


def shown(rounds: list[float]) -> str:
    return f"{statistics.median(rounds):.0f} ({min(rounds):.0f} to {max(rounds):.0f})"


def measure(name: str, scratch: Path) -> dict[str, Any]:
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, __file__, name, str(scratch)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_engine(name: str, scratch: Path) -> None:
    """One engine's rounds, as a line of JSON."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform

    from mosaic.models import ModelResolver
    from mosaic.storage import Storage

    model = ModelResolver(scratch / "models", Storage(str(scratch / "root"))).resolve("smollm2-135m-instruct")
    adapter = random_adapter(model, scratch / "adapter")
    options: dict[str, Any] = {}
    if name == "mosaic":
        from mosaic.serving.engine_process import cpu_environment

        os.environ.update(cpu_environment())
        options["worker_cls"] = "mosaic.serving.vllm_cpu.CpuWorker"
        check = type(current_platform).check_and_update_config

        def in_one_process(config: Any) -> None:  # what CpuEngine does under ray.serve.llm
            check(config)
            config.parallel_config.distributed_executor_backend = "uni"

        current_platform.check_and_update_config = in_one_process
    began = time.monotonic()
    engine = LLM(
        model=str(model),
        dtype="bfloat16",
        max_model_len=1024,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=16,
        max_loras=2,
        **options,
    )
    result: dict[str, Any] = {"ready_seconds": time.monotonic() - began}
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    for load, lora in (("base", None), ("adapter", LoRARequest("adapter", 1, str(adapter)))):
        rounds = []
        for number in range(ROUNDS + 1):
            chats = [
                [{"role": "user", "content": f"Round {number}, chat {chat}: " + "tell me of rivers and towns. " * 12}]
                for chat in range(CHATS)
            ]
            began = time.monotonic()
            engine.chat(chats, sampling, use_tqdm=False, lora_request=lora)
            rounds.append(CHATS * TOKENS / (time.monotonic() - began))
        result[load] = rounds[1:]  # the first one warms up
    print(json.dumps(result), flush=True)


def random_adapter(model: Path, folder: Path) -> Path:
    """An adapter of rank 16 on every linear layer."""
    if not folder.exists():
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        from mosaic.training.settings import LINEAR_LAYERS

        config = LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_engine(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
