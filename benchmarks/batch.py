"""A batch job against offline vLLM: output tokens per second on the same prompts, with the same flags.

    python benchmarks/batch.py [--rows 1024] [--tokens 32] [--rounds 3]

Both run SmolLM2 135M. `LLM.chat` has the prompts in memory and answers with a list; the job reads a Delta table, and
has every answer committed to another one. The start of the engine and 8 rows to warm up are left out on both sides: the
job's clock starts when its engine is first asked after that, and ends with the last commit. Each measurement is a
process of its own, since two engines at once would share the cores; the sides take turns, and turns their order. The
third line is one measurement of `LLM.chat` as vLLM comes, with its CPU worker in a process of its own
(docs/decisions.md).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("job", "vllm", "vllm as it comes")
MODEL, PIECE, WARM = "smollm2-135m-instruct", 64, 8
ENGINE: dict[str, Any] = {"max_model_len": 1024, "max_lora_rank": 0, "engine_kwargs": {"enable_prefix_caching": False}}


def text(row: int) -> str:
    return f"Row {row}: " + "tell me of rivers and towns. " * 12


def chat(row: int) -> list[Any]:
    return [{"role": "user", "content": text(row)}]


def main(arguments: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(arguments.rounds):
        sides = SIDES if number == 0 else SIDES[:2]
        for side in sides if number % 2 == 0 else reversed(sides):
            found[side].append(measure(side, arguments))
            print(f"round {number + 1}, {side}: {found[side][-1]:.1f} tokens/s", file=sys.stderr)
    for side in SIDES:
        rounds = found[side]
        print(f"{side:20}{statistics.median(rounds):8.1f} tokens/s ({min(rounds):.1f} to {max(rounds):.1f})")
    ratios = [ours / theirs for ours, theirs in zip(found["job"], found["vllm"], strict=True)]
    print(f"job / vllm by round  {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); wanted 0.95")


def measure(side: str, arguments: argparse.Namespace) -> float:
    told = ["--rows", str(arguments.rows), "--tokens", str(arguments.tokens), "--side", side]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *told], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return float(json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_second"])


def run_vllm(arguments: argparse.Namespace) -> float:
    """`LLM.chat` with the job's own engine arguments."""
    from mosaic.models import ModelResolver
    from mosaic.serving.plan import plan_engine
    from mosaic.serving.settings import EngineSettings
    from mosaic.storage import Storage

    with tempfile.TemporaryDirectory() as scratch:
        resolver = ModelResolver(Path(scratch) / "models", Storage(f"{scratch}/root"))
        folder = resolver.resolve(MODEL)
        options = plan_engine(EngineSettings.parse(ENGINE), folder, ()).engine_kwargs
        if arguments.side == "vllm as it comes":
            del options["worker_cls"]
        else:
            from mosaic.serving.engine_process import cpu_environment

            # With it vLLM lets the worker be in the engine's process.
            os.environ |= {**cpu_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            options["distributed_executor_backend"] = "uni"
        from vllm import LLM, SamplingParams

        engine = LLM(model=str(folder), **options)
        sampling = SamplingParams(temperature=0, max_tokens=arguments.tokens)
        engine.chat([chat(-row) for row in range(1, WARM + 1)], sampling, use_tqdm=False)
        began = time.monotonic()
        made = engine.chat([chat(row) for row in range(arguments.rows)], sampling, use_tqdm=False)
        seconds = time.monotonic() - began
        return sum(len(one.outputs[0].token_ids) for one in made) / seconds


def run_job(arguments: argparse.Namespace) -> float:
    """A job over the same rows, from the first question after the warm-up to the last commit."""
    import functools

    import pyarrow as pa
    import ray

    import mosaic.serving.batch.run
    from mosaic.platform.lifecycle import ADMIN
    from mosaic.platform.parts import build_parts, resolve_model
    from mosaic.platform.settings import PlatformSettings
    from mosaic.serving.batch import BatchInference, BatchSettings

    with tempfile.TemporaryDirectory() as scratch:
        parts = build_parts(PlatformSettings(storage=scratch))
        parts.catalog.ensure_schema("main.bench")
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        parts.tables.create("main.bench.rows", schema, primary_key=None, owner="admin")
        rows = range(arguments.rows)
        data = pa.table({"id": rows, "text": [text(row) for row in rows]})
        parts.tables.append("main.bench.rows", data.cast(schema))
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=300_000_000)
        job = BatchInference(
            parts.catalog,
            parts.tables,
            parts.storage,
            ADMIN,
            engines={},
            resolve=functools.partial(resolve_model, parts.settings),
            base_url="",
        )
        clock = Path(scratch) / "clock"
        mosaic.serving.batch.run.EngineSetup = functools.partial(timed_setup(), clock=str(clock))  # type: ignore[misc,assignment]
        asked = {"table": "main.bench.rows", "output_table": "main.bench.out", "prompt": "{text}", "model": MODEL}
        more = {"max_tokens": arguments.tokens, "sampling": {"temperature": 0}, "piece_rows": PIECE, "engine": ENGINE}
        result = job.infer(BatchSettings.parse({**asked, **more}))
        seconds = time.monotonic() - float(clock.read_text())
        ray.shutdown()
        assert result.rows == arguments.rows and result.errors == 0
        return result.completion_tokens / seconds


def timed_setup() -> Any:
    """The job's engine, which warms up and writes down when it is first asked after that."""
    import asyncio
    from dataclasses import dataclass

    from mosaic.serving.batch.engine import EngineAsker, EngineSetup

    class Timed(EngineAsker):
        def __init__(self, setup: Any, settings: Any) -> None:
            super().__init__(setup, settings)
            self._clock, self._lock, self._warm = Path(setup.clock), asyncio.Lock(), False

        async def answer(self, rows: Any) -> Any:
            async with self._lock:
                if not self._warm:
                    await super().answer([{"text": text(-row)} for row in range(1, WARM + 1)])
                    self._clock.write_text(str(time.monotonic()))  # one clock for all processes of the machine
                    self._warm = True
            return await super().answer(rows)

    @dataclass(frozen=True)
    class TimedSetup(EngineSetup):
        clock: str = ""

        def asker(self, settings: Any) -> Timed:
            return Timed(self, settings)

    return TimedSetup


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="rows (default 1024)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--side", choices=SIDES, help="measure one side once, and print it as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse_arguments()
    if given.side is None:
        main(given)
    else:
        print(json.dumps({"tokens_per_second": run_job(given) if given.side == "job" else run_vllm(given)}), flush=True)
