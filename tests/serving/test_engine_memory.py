"""What an engine takes of memory, held against tensors that are really there, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import DeploymentID, ReplicaID
from safetensors.torch import save_file

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, MosaicError, Unavailable, Unprocessable
from mosaic.models.doubles import tiny_llama
from mosaic.protocol import Adapter, EngineRequest
from mosaic.serving import memory
from mosaic.serving.apps import ServeApps
from mosaic.serving.deploy import vllm_config
from mosaic.serving.endpoint import unit
from mosaic.serving.memory import GIB, Shape
from mosaic.serving.nodes import Gpu, Node, this_node
from mosaic.serving.plan import EnginePlan, gpus_of, plan_engine, require_memory, reserved
from mosaic.serving.prefix_router import PrefixRouter, text_of
from mosaic.serving.settings import EngineSettings

LLAMA_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.int8, torch.float8_e4m3fn]
CPU = Node(name="n1", memory=64 * GIB, free=32 * GIB)
H200 = Gpu(memory=140 * GIB, free=139 * GIB)


def with_gpus(*gpus: Gpu) -> Node:
    return Node(name="g1", memory=256 * GIB, free=200 * GIB, gpu_count=len(gpus), gpus=gpus)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("plan") / "llama")


def model(folder: Path, config: dict[str, Any], **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors or {"w": torch.zeros(4, 4)}, folder / "model.safetensors")
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    made=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=6),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_weights_are_what_torch_holds_once_they_are_cast(
    made: list[tuple[torch.dtype, list[int]]], dtype: str, tmp_path: Path
) -> None:
    tensors = {f"t{number}": torch.zeros(shape, dtype=kind) for number, (kind, shape) in enumerate(made)}
    save_file(tensors, tmp_path / "model.safetensors")
    engine_type = getattr(torch, dtype)
    casts = (torch.float32, torch.float16, torch.bfloat16)
    loaded = [one.to(engine_type) if one.dtype in casts else one for one in tensors.values()]
    assert memory.weight_bytes(tmp_path, dtype) == sum(one.nbytes for one in loaded)


@settings(deadline=None)
@given(
    layers=st.integers(0, 6),
    windowed=st.integers(0, 6),
    window=st.integers(1, 300),
    kv_heads=st.integers(1, 5),
    tensor=st.integers(1, 4),
    room=st.integers(0, 2_000_000),
    upper=st.integers(0, 500),
)
def test_the_longest_context_is_the_last_that_fits(
    layers: int, windowed: int, window: int, kv_heads: int, tensor: int, room: int, upper: int
) -> None:
    shape = Shape(layers, windowed, window, kv_heads, 16, 0, layers + windowed, 64, 4, 128, 100)
    sizes = [memory.kv_cache_bytes(shape, tokens, tensor_parallel=tensor) for tokens in range(upper + 1)]
    assert sizes == sorted(sizes)
    last = max(tokens for tokens, size in enumerate(sizes) if size <= room)
    assert memory.longest(shape, room, upper, tensor_parallel=tensor) == last


def test_known_models_take_what_is_published_of_them() -> None:
    """Llama 3.1 8B keeps 128 KiB for each token in 16 bits; DeepSeek V3 576 numbers in each of 61 layers."""
    shape = memory.shape_of(LLAMA_8B)
    assert shape is not None and memory.kv_cache_bytes(shape, 131_072) == 16 * GIB
    assert memory.kv_cache_bytes(shape, 131_072, dtype="fp8", tensor_parallel=2) == 4 * GIB
    assert memory.kv_cache_bytes(shape, 1) == 16 * 128 * 1024
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_key_value_heads": 128}
    deepseek = memory.shape_of({"num_hidden_layers": 61, "num_attention_heads": 128, "hidden_size": 7168, **latent})
    assert deepseek is not None and memory.kv_cache_bytes(deepseek, 16) == 16 * 61 * 576 * 2


def test_layers_that_see_a_window_or_nothing_keep_less() -> None:
    kinds = ["sliding_attention"] * 20 + ["full_attention"] * 4 + ["linear_attention"] * 8
    shape = memory.shape_of({"text_config": {**LLAMA_8B, "layer_types": kinds, "sliding_window": 512}})
    assert shape is not None and (shape.full_layers, shape.window_layers) == (4, 20)
    full = memory.kv_cache_bytes(shape._replace(window_layers=0), 131_072)
    assert full == 2 * GIB and full < memory.kv_cache_bytes(shape, 131_072) < 2 * full
    qwen = memory.shape_of({**LLAMA_8B, "sliding_window": 4096, "use_sliding_window": False})
    assert qwen is not None and qwen.window_layers == 0
    assert memory.shape_of({"model_type": "mamba"}) is None


def test_weights_of_a_split_model_and_of_a_broken_file(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"w{number}": torch.zeros(8, 8)}, tmp_path / f"model-{number}.safetensors")
    save_file({"all": torch.zeros(64, 64)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"w1": "model-1.safetensors", "w2": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert memory.weight_bytes(tmp_path) == 2 * 8 * 8 * 2
    assert memory.weight_bytes(tmp_path, quantise=True) == 2 * 8 * 8
    (tmp_path / "model-2.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BadRequest, match=r"'model-2\.safetensors' is no safetensors file"):
        memory.weight_bytes(tmp_path)


def test_one_spec_runs_on_both(llama: Path) -> None:
    spec = EngineSettings(engine_kwargs={"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "seed": 7})
    cpu, gpu = plan_engine(spec, llama, [CPU]), plan_engine(spec, llama, [CPU, with_gpus(H200, H200)])
    assert (cpu.on_gpu, cpu.workers, gpu.on_gpu, gpu.workers, gpu.gpu_share) == (False, 1, True, 2, 1.0)
    assert cpu.engine_kwargs["worker_cls"].endswith("CpuWorker") and "worker_cls" not in gpu.engine_kwargs
    assert "tensor_parallel_size" not in cpu.engine_kwargs and gpu.engine_kwargs["tensor_parallel_size"] == 2
    assert cpu.engine_kwargs["seed"] == gpu.engine_kwargs["seed"] == 7
    assert gpu.engine_kwargs["gpu_memory_utilization"] == 0.5
    assert not plan_engine(EngineSettings(accelerator="cpu"), llama, [with_gpus(H200)]).on_gpu
    half = plan_engine(EngineSettings(num_gpus=0.5), llama, [with_gpus(H200)])
    assert (half.gpu_share, half.engine_kwargs["gpu_memory_utilization"]) == (0.5, 0.46)
    assert plan_engine(EngineSettings(max_model_len=None), llama, [CPU]).engine_kwargs["max_model_len"] == -1


def test_each_worker_on_a_gpu_has_a_bundle_of_its_own(llama: Path) -> None:
    spec = EngineSettings(engine_kwargs={"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    for node, kind, bundles in (
        (with_gpus(H200, H200, H200, H200), "gpu", [{"GPU": 1.0}] * 4),
        (CPU, "cpu", [{"CPU": spec.num_cpus}]),
    ):
        config = vllm_config("bot", str(llama), spec, plan_engine(spec, llama, [node]))
        assert config["placement_group_config"] == {"bundles": bundles}
        assert config["accelerator_config"] == {"kind": kind}
        assert "request_router_config" not in config["deployment_config"]


def test_a_prompts_place_in_the_cache_is_its_words_under_its_adapter() -> None:
    def text(adapter: str | None = None, **body: Any) -> str | None:
        named = None if adapter is None else Adapter(name=adapter)
        return text_of(EngineRequest(request_id="r", task="chat", body=body, adapter=named))

    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert text(messages=said) == "\nBe kind.\nHi" == text(prompt="Be kind.\nHi")
    assert text("main.ml.bot/3", messages=said) == "main.ml.bot/3\nBe kind.\nHi"
    assert [text(), text(input=["x"]), text(messages=[]), text(prompt=""), text(prompt=[1])] == [None] * 5


class Away:
    """An actor of Ray's while it is started again."""

    def __getattr__(self, name: str) -> "Away":
        return self

    def __call__(self, *given: Any, **named: Any) -> Any:
        raise ActorUnavailableError("it restarts", None)


def test_nothing_fails_while_what_remembers_prefixes_is_away(caplog: pytest.LogCaptureFixture) -> None:
    router = PrefixRouter.__new__(PrefixRouter)
    of = DeploymentID(name="d", app_name="engine-bot")
    replica = ReplicaID(unique_id="r", deployment_id=of)
    router.__dict__ |= {"_tree_actor": Away(), "_deployment_id": of, "_replicas": {replica: None}}
    router._eviction_threshold_chars = router._eviction_target_chars = router._eviction_interval_secs = 1
    asked = EngineRequest(request_id="r", task="complete", body={"prompt": "Hi"})
    router.on_request_routed(SimpleNamespace(args=[asked]), replica, None)
    assert "prefixes-engine-bot is away" in caplog.text


@pytest.mark.parametrize(
    ("engine", "nodes", "error", "told"),
    [
        ({"accelerator": "gpu"}, [CPU], Unavailable, "no machine of the Ray cluster has a GPU"),
        ({"num_gpus": 1}, [CPU], Unavailable, "no machine of the Ray cluster has a GPU"),
        ({"accelerator": "cpu", "num_gpus": 1}, [CPU], BadRequest, "leave the one or the other out"),
        ({"num_gpus": 2}, [with_gpus(H200)], BadRequest, "= 1 workers take one GPU each: give num_gpus = 1"),
        (
            {"num_gpus": 2, "engine_kwargs": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}},
            [with_gpus(H200)],
            BadRequest,
            "tensor_parallel_size 2 x pipeline_parallel_size 2 = 4 workers take one GPU each: give num_gpus = 4",
        ),
        (
            {"accelerator": "cpu", "engine_kwargs": {"tensor_parallel_size": 2}},
            [CPU],
            BadRequest,
            "accelerator = 'cpu' has one",
        ),
        ({"engine_kwargs": {"tensor_parallel_size": 1024, "pipeline_parallel_size": 9}}, [CPU], BadRequest, "at most"),
        (
            {"num_gpus": 0.1, "engine_kwargs": {"gpu_memory_utilization": 1.0}},
            [with_gpus(H200)],
            BadRequest,
            "gpu_memory_utilization = 1, and num_gpus = 0.1 is the part of a GPU",
        ),
        ({"engine_kwargs": {"nope": 1}}, [CPU], BadRequest, "no engine flag 'nope'"),
        (
            {"max_model_len": 5_000_000},
            [CPU],
            Unprocessable,
            "max_model_len = 5,000,000 takes 1.19 GiB of KV cache, and the 1 GiB of kv_cache_gib hold 4,194,304 tokens",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    engine: dict[str, Any], nodes: Sequence[Node], error: type[MosaicError], told: str, llama: Path
) -> None:
    with pytest.raises(error) as refused:
        plan_engine(EngineSettings(**engine), llama, nodes)
    assert told in refused.value.message


def test_settings_win_over_the_preset(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", {**LLAMA_8B, "model_type": "qwen3"})
    (folder / "chat_template.jinja").write_text("<tool_call> enable_thinking")

    def flags_of(**engine: Any) -> dict[str, Any]:
        planned = plan_engine(EngineSettings(**engine), folder, [CPU]).engine_kwargs
        names = ("tool_call_parser", "reasoning_parser", "enable_auto_tool_choice")
        return {name: planned[name] for name in names if name in planned}

    both = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3", "enable_auto_tool_choice": True}
    assert flags_of() == both
    assert flags_of(tool_call_parser="xlam", reasoning_parser="deepseek_r1") == {
        "tool_call_parser": "xlam",
        "reasoning_parser": "deepseek_r1",
        "enable_auto_tool_choice": True,
    }
    assert flags_of(tool_call_parser="none", reasoning_parser="none") == {}
    assert flags_of(engine_kwargs={"enable_auto_tool_choice": False})["enable_auto_tool_choice"] is False


def plan(folder: Path, node: Node, **engine: Any) -> EnginePlan:
    return plan_engine(EngineSettings(max_lora_rank=0, **engine), folder, [node])


def test_the_sum_is_told_when_a_cpu_engine_does_not_fit(llama: Path) -> None:
    planned = plan(llama, CPU, kv_cache_gib=4)
    require_memory({"bot": (planned, 5)}, [CPU])
    with pytest.raises(Unavailable) as refused:
        require_memory({"bot": (planned, 8)}, [CPU])
    assert refused.value.code == "does_not_fit"
    for part in ("KV cache 4.00 + the engine itself", "for each of 8 replicas", "n1 has", "lower kv_cache_gib"):
        assert part in refused.value.message
    require_memory({"bot": (planned, 8)}, [CPU, CPU.model_copy(update={"name": "n2"})])
    with pytest.raises(Unavailable, match="second takes"):  # what the first one takes is counted
        require_memory({"first": (planned, 5), "second": (planned, 1)}, [CPU])
    with pytest.raises(Unprocessable, match=r"n1 has 32\.00 GiB free of 64\.00"):
        require_memory({"bot": (plan(llama, CPU, kv_cache_gib=64), 1)}, [CPU])


def test_the_sum_is_told_when_a_gpu_engine_does_not_fit(tmp_path: Path) -> None:
    config = {**LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64}
    folder, small = model(tmp_path / "m", config), Gpu(memory=24 * GIB, free=23 * GIB)
    big, tight = with_gpus(H200), with_gpus(small)
    require_memory({"bot": (plan(folder, big, max_model_len=131_072), 1)}, [big])
    with pytest.raises(Unprocessable) as refused:
        require_memory({"bot": (plan(folder, tight, max_model_len=131_072), 1)}, [tight])
    for part in (
        "KV cache 40.00 + the engine itself",
        "0.92 of the largest is 22.08 GiB",
        "raise tensor_parallel_size",
    ):
        assert part in refused.value.message
    busy = with_gpus(Gpu(memory=140 * GIB, free=60 * GIB))
    with pytest.raises(Unavailable, match=r"set aside 0\.92 of a GPU's memory, .* 60\.00 of 140\.00"):
        require_memory({"bot": (plan(folder, busy), 1)}, [busy])
    require_memory({"bot": (plan(folder, busy, engine_kwargs={"gpu_memory_utilization": 0.4}), 1)}, [busy])
    require_memory({"bot": (plan(folder, big, num_gpus=0.5), 2)}, [big])
    with pytest.raises(Unavailable, match="3 workers of bot"):
        require_memory({"bot": (plan(folder, big, num_gpus=0.5), 3)}, [big])
    half_free = with_gpus(Gpu(memory=80 * GIB, free=40 * GIB))
    quarter = plan(model(tmp_path / "small", LLAMA_8B), half_free, num_gpus=0.25)
    require_memory({"bot": (quarter, 2)}, [half_free])
    with pytest.raises(Unavailable, match="3 workers of bot"):
        require_memory({"bot": (quarter, 3)}, [half_free])
    unknown = Node(name="g2", memory=GIB, free=GIB, gpu_count=1)
    require_memory({"bot": (plan(folder, unknown), 1)}, [unknown])


def test_adapters_take_their_slots(llama: Path) -> None:
    """peft makes adapters of the same linear layers; the head is vLLM's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(llama)
    tuned = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    made = sum(one.numel() for name, one in tuned.named_parameters() if "lora_" in name)
    shape = memory.shape_of(json.loads((llama / "config.json").read_text()))
    assert shape is not None
    head = 8 * (shape.hidden + shape.vocabulary)
    assert memory.adapter_bytes(shape, 8) == 2 * (made + head)
    slots = plan_engine(EngineSettings(max_loras=3, max_lora_rank=5), llama, [CPU]).need.adapters
    assert slots == 2 * 3 * memory.adapter_bytes(shape, 8)


def test_this_machine_has_some_memory() -> None:
    node = this_node("here", 0)
    assert 0 < node.free <= node.memory and node.gpus == ()


@pytest.mark.parametrize(
    ("kind", "engine", "expected"),
    [
        ("echo", {}, (0.05, 0)),
        ("embedder", {}, (0.2, 0)),
        ("embedder", {"num_cpus": 2}, (2, 0)),
        ("classifier", {}, (0.4, 0)),
        ("classifier", {"num_gpus": 1}, (0.4, 1)),
        ("classifier", {"accelerator": "gpu", "num_cpus": 1}, (1, 1)),
        ("mlflow", {"num_gpus": 0.5}, (0.4, 0.5)),
        ("python", {"accelerator": "gpu"}, (0.4, 1)),
        ("generate", {"accelerator": "gpu"}, (0, 1)),
        (None, {}, (0.4, 0)),
    ],
)
def test_what_a_replica_reserves(kind: Any, engine: dict[str, Any], expected: tuple[float, float]) -> None:
    assert reserved(kind, EngineSettings(**engine)) == expected


@pytest.mark.parametrize(
    ("kind", "engine", "expected"),
    [
        ("generate", {}, 1),
        ("generate", {"engine_kwargs": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}, 4),
        ("pooling", {"num_gpus": 0.25}, 0.25),
        ("generate", {"accelerator": "cpu"}, 0),
        ("classifier", {}, 0),
        ("python", {"accelerator": "gpu"}, 1),
        ("mlflow", {"num_gpus": 2}, 2),
        ("echo", {}, 0),
    ],
)
def test_the_gpus_of_a_replica_in_a_cluster_with_some(kind: Any, engine: dict[str, Any], expected: float) -> None:
    assert gpus_of(kind, EngineSettings(**engine)) == expected


def test_what_a_vllm_engine_reserves_is_its_plans(llama: Path) -> None:
    split = EngineSettings(num_cpus=2, engine_kwargs={"tensor_parallel_size": 2})
    for node, expected in ((CPU, (2, 0)), (with_gpus(H200, H200), (0, 2))):
        assert reserved("generate", split, plan_engine(split, llama, [node])) == expected


@pytest.mark.parametrize(
    ("kind", "engine", "param"),
    [
        ("embedder", {"num_gpus": 1}, "engine.num_gpus"),
        ("embedder", {"accelerator": "gpu"}, "engine.accelerator"),
        ("classifier", {"accelerator": "cpu", "num_gpus": 1}, "engine.num_gpus"),
        ("python", {"num_gpus": 1.5}, "engine.num_gpus"),
    ],
)
def test_gpus_that_a_replica_has_no_use_for_are_refused(kind: Any, engine: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        reserved(kind, EngineSettings(**engine))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("config", "engine", "expected"),
    [
        ({"architectures": ["BertModel"]}, {"num_replicas": 3}, 0.6),
        ({"architectures": ["BertForSequenceClassification"]}, {"num_gpus": 1, "num_replicas": 2}, 0.8),
        ({"architectures": ["BertModel"]}, {"num_gpus": 1}, 0),
        ({"architectures": [5]}, {}, 0),
        (LLAMA_8B | {"architectures": ["LlamaForCausalLM"]}, {}, 0.4),
        (None, {}, 0.4),
    ],
)
def test_logical_cpus_are_counted_as_they_are_reserved(
    config: dict[str, Any] | None, engine: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    folder = None if config is None else model(tmp_path / "m", config)
    catalog = Catalog.open(f"sqlite:///{tmp_path}/c.db")
    apps = ServeApps(catalog, {}, Path, lambda name: None, lambda name: folder)
    assert apps.cpus_of(unit("main.ml.any/1", EngineSettings(**engine))) == pytest.approx(expected)
    catalog.close()
