"""How engines start on the platform: on whatever there is, with vLLM's own flags, or not at all, with the reason."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from openai import OpenAI
from ray.exceptions import RayError

from mosaic.errors import BadRequest, Unprocessable
from mosaic.platform import Platform
from mosaic.serving import deploy
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, unit
from mosaic.serving.nodes import cluster_nodes
from mosaic.serving.plan import plan_engine
from mosaic.serving.serve_calls import applications
from mosaic.serving.settings import EngineSettings
from tests.local import mosaic

FLAGS = {
    "tensor_parallel_size": 2,
    "enable_prefix_caching": True,
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3},
}


def served(name: str, model: Path | str, engine: EngineSettings) -> EndpointSettings:
    return EndpointSettings(name=name, served_entities=[ServedEntity(name="base", model=str(model), engine=engine)])


def test_deployments_are_built_and_looked_at_by_many_threads_at_once(platform: Platform) -> None:
    """Serve alone fails here ("not registered for pickle by value"): of 64 built by 8 threads, 11."""
    with ThreadPoolExecutor(8) as threads:
        building = [threads.submit(deploy._deployment, EchoEngine, "echo", EngineSettings()) for _ in range(64)]
        looking = [threads.submit(applications) for _ in range(64)]
    assert [each.result().name for each in building] == ["EchoEngine"] * 64
    assert all("gateway" in each.result() for each in looking)


@pytest.mark.slow
@pytest.mark.long
def test_one_spec_for_gpus_starts_on_the_cpu_and_prompts_that_begin_alike_go_to_one_replica(
    platform: Platform, client: OpenAI, tiny_chat: Path
) -> None:
    """What splits a model over GPUs falls away; the engines take no more memory than was asked for them."""
    engine = EngineSettings(
        num_replicas=2,
        num_cpus=0.2,
        max_model_len=None,
        max_lora_rank=0,
        routing="prefix",
        tool_call_parser="hermes",
        engine_kwargs=FLAGS,
    )
    platform.serving.create(served("alike", tiny_chat, engine))
    try:
        platform.serving.wait("alike")
        for number in range(8):
            asked: Any = [{"role": "user", "content": f"{'The same long beginning. ' * 20}Question {number}?"}]
            answer = client.chat.completions.create(model="alike", messages=asked, max_tokens=4)
            assert answer.usage is not None and answer.usage.completion_tokens > 0
        # Longer than the default's 1,024 tokens: it is the model's own 2,048.
        long: Any = [{"role": "user", "content": "x" * 1500}]
        assert client.chat.completions.create(model="alike", messages=long, max_tokens=1).choices
        app = unit(str(tiny_chat), engine).app_name
        tree = ray.get_actor(f"prefixes-{app}", namespace="serve")
        seen = ray.get(tree.getattr.remote("tenant_to_char_count"))
        # Characters by replica; had a second one been asked with the same 480, it would have them too.
        assert len(seen) == 2 and 1500 + 480 < sum(seen.values()) < 1500 + 2 * 480
        taken = memory_of(app)
        need = plan_engine(engine, tiny_chat, cluster_nodes()).need
        assert len(taken) == 2 and max(taken.values()) <= need.total
        ray.kill(tree, no_restart=False)  # what remembers is only for speed, and comes back by itself
        seen, deadline = {}, time.monotonic() + 60
        while not sum(seen.values()):
            assert client.chat.completions.create(model="alike", messages=long, max_tokens=1).choices
            assert time.monotonic() < deadline
            with suppress(RayError):
                seen = ray.get(tree.getattr.remote("tenant_to_char_count"))
    finally:
        platform.serving.delete("alike")


def memory_of(app: str) -> dict[int, int]:
    """Bytes that each replica of an application has to itself, with the processes that it started."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if f"ServeReplica:{app}:" in " ".join(process.info["cmdline"] or ()):
            family = [process, *process.children(recursive=True)]
            found[process.pid] = sum(one.memory_full_info().pss for one in family)
    return found


def test_the_command_refuses_what_vllm_does_not_take_before_anything_starts(
    platform: Platform, settings_file: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "endpoint.yaml"
    entity = {"name": "base", "model": "echo", "engine": {"engine_kwargs": {"enforce_eagr": True}}}
    spec.write_text(yaml.safe_dump({"name": "wrong", "served_entities": [entity]}))
    ran = mosaic("endpoint", "create", "-f", str(spec), "--settings", str(settings_file))
    assert ran.returncode == 1 and "no engine flag 'enforce_eagr'; did you mean 'enforce_eager'" in ran.stderr
    assert "wrong" not in [one.served_name for one in platform.serving.list()]


def test_what_cannot_fit_is_refused_with_the_sum(platform: Platform, tiny_chat: Path, tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match=r"KV cache 9999\.00 \+ .* GiB free of .*: lower kv_cache_gib") as refused:
        platform.serving.create(served("huge", tiny_chat, EngineSettings(kv_cache_gib=9999)))
    assert refused.value.code == "does_not_fit"
    with pytest.raises(BadRequest, match=r"this model's replica runs on the CPU .*runner = 'pooling'"):
        platform.serving.create(served("huge", "all-minilm-l6-v2", EngineSettings(accelerator="gpu")))
    (tmp_path / "config.json").write_text('{"architectures": [5]}')
    with pytest.raises(BadRequest, match=r"config\.json: architectures = \[5\] must be a list of names") as wrong:
        platform.serving.create(served("huge", tmp_path, EngineSettings()))
    assert wrong.value.param == "served_entities"
    with pytest.raises(BadRequest, match="give num_gpus = 1"):
        platform.serving.create(served("huge", tiny_chat, EngineSettings(num_gpus=3)))
    assert "huge" not in [one.served_name for one in platform.serving.list()]
