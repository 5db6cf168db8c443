"""vLLM's flags by name and type, and what is known of model families."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mosaic.errors import BadRequest
from mosaic.platform import load_settings
from mosaic.serving import flags, presets, register
from mosaic.serving.plan import plan_engine
from mosaic.serving.runners import kind_of
from mosaic.serving.settings import EngineSettings


def refused(**engine: Any) -> BadRequest:
    with pytest.raises(BadRequest) as told:
        flags.check(EngineSettings(**engine))
    return told.value


def test_the_table_is_what_the_installed_vllm_takes(tmp_path: Path) -> None:
    """Contract. When it fails: `python -m mosaic.serving.flag_table mosaic/serving/flags.json`, and read the diff."""
    command = [sys.executable, "-m", "mosaic.serving.flag_table", str(tmp_path / "flags.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    written = Path(flags.__file__).with_name("flags.json").read_text()
    assert json.loads((tmp_path / "flags.json").read_text()) == json.loads(written)
    assert (tmp_path / "flags.json").read_text() == written


def test_nothing_that_reads_the_table_imports_vllm() -> None:
    code = (
        "import sys, mosaic.serving.service, mosaic.serving.plan; print(sorted({'vllm', 'torch'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "quantization": "fp8", "kv_cache_dtype": "fp8"},
        {"enable_prefix_caching": None, "gpu_memory_utilization": 1, "optimization_level": 3},
        {"attention_backend": "flashinfer", "compilation_config": {"mode": 3, "cudagraph_capture_sizes": [1, 2]}},
        {"speculative_config": {"method": "eagle3", "model": "/a/draft", "num_speculative_tokens": 3}},
        {"chat_template": None, "hf_overrides": {"a": {"b": 1}}},
    ],
)
def test_what_vllm_takes_passes(given: dict[str, Any]) -> None:
    flags.check(EngineSettings(engine_kwargs=given))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tensor-parallel-size": 2}, "no engine flag 'tensor-parallel-size'; did you mean 'tensor_parallel_size'"),
        ({"enable_prefix_cachin": True}, "did you mean 'enable_prefix_caching'"),
        ({"qqqq": 1}, "vLLM has no engine flag 'qqqq'"),
        ({"ssl_keyfile": "/a"}, "no engine flag 'ssl_keyfile'"),
        ({"max_model_len": 3}, "'max_model_len' is given by engine.max_model_len"),
        ({"enable_lora": True}, "given by engine.max_lora_rank"),
        ({"disable_log_stats": True}, "'disable_log_stats' is given by the platform"),
        ({"enable_prefix_caching": "yes"}, 'enable_prefix_caching = "yes": must be boolean or null, not string'),
        ({"seed": True}, "seed = true: must be integer, not boolean"),
        ({"seed": 1.5}, "must be integer, not number"),
        ({"seed": None}, "must be integer, not null"),
        ({"max_num_seqs": [1]}, "max_num_seqs = [1]: must be integer or null, not array"),
        ({"dtype": "bfloat32"}, "did you mean 'float32'"),
        ({"quantization": "gptqq"}, "did you mean 'gptq'"),
        ({"optimization_level": 9}, "must be one of [0, 1, 2, 3]"),
        ({"speculative_config": {"method": "ngrams"}}, "did you mean 'ngram'"),
        ({"speculative_config": {"num_spec_tokens": 3}}, "no field 'num_spec_tokens'; did you mean"),
        ({"tensor_parallel_size": 0}, "must be from 1 to 1,024"),
        ({"pipeline_parallel_size": 10**30}, "must be from 1 to 1,024"),
        ({"max_num_seqs": -1}, "must be from 1 to 65,536"),
        ({"gpu_memory_utilization": 0}, "must be above 0 and at most 1"),
        ({"gpu_memory_utilization": math.nan}, "must be above 0 and at most 1"),
        ({"x" * 5000: 1}, "vLLM has no engine flag 'xxx"),
        ({"dtype": "y" * 5000}, 'dtype = "yyy'),
    ],
)
def test_what_vllm_does_not_take_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    error = refused(engine_kwargs=given)
    assert told in error.message and len(error.message) < 1500 and error.param and len(error.param) < 200


def test_parsers_are_those_of_vllm() -> None:
    flags.check(EngineSettings(tool_call_parser="hermes", reasoning_parser="qwen3"))
    flags.check(EngineSettings(tool_call_parser="none", reasoning_parser="none"))
    error = refused(tool_call_parser="herms")
    assert "did you mean 'hermes'?" in error.message and error.param == "engine.tool_call_parser"
    assert "must be 'none' or one of" in refused(reasoning_parser="").message


def test_the_page_shows_engines_that_could_start() -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    shown = re.findall(r"```yaml\nengine:\n(.*?)```", page, re.DOTALL)
    engine, scaled = (EngineSettings.parse(yaml.safe_load(one)) for one in shown)
    flags.check(engine)
    assert scaled.scales_to_zero
    assert engine.max_model_len is None and engine.routing == "prefix"
    assert flags.for_administrators(engine.engine_kwargs) == []


def test_the_platforms_settings_are_checked_when_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("engines: {smollm2-135m-instruct: {engine_kwargs: {enforce_eagr: true}}}")
    with pytest.raises(
        BadRequest, match=r"engines\.smollm2-135m-instruct\.engine_kwargs.*did you mean 'enforce_eager'"
    ):
        load_settings(file)


def test_what_anybody_may_give_loads_nothing_and_touches_no_file() -> None:
    assert flags.table().keys() >= flags.ANY_OWNER
    words = ("path", "dir", "file", "plugin", "cls", "trust", "url", "addr", "port", "override", "id")
    assert {name for name in flags.ANY_OWNER if any(word in name.split("_") for word in words)} == set()
    open_ended = {name for name in flags.ANY_OWNER if flags.table()[name].get("choices") is None}
    texts = {name for name in open_ended if "string" in flags.table()[name]["types"]}
    assert not texts, "a text that may be anything may be a path"
    assert flags.for_administrators(
        {"seed": 1, "worker_cls": "a.B", "tokenizer": "/etc", "speculative_config": {"method": "ngram"}}
    ) == ["tokenizer", "worker_cls"]
    for draft in ({"method": "eagle", "model": "/a"}, {"method": "ngram", "model": "/a"}, {"model": "/a"}):
        assert flags.for_administrators({"speculative_config": draft}) == ["speculative_config"]


def model(folder: Path, family: str, template: str, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family, **config}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.mark.parametrize(
    ("family", "template", "tools", "reasoning"),
    [
        ("qwen2", "... within <tool_call></tool_call> XML tags", "hermes", None),
        ("qwen3", "<tool_call> ... {% if enable_thinking is false %}<think>", "hermes", "qwen3"),
        ("qwen3_moe", "<tool_call>\\n<function=example", "qwen3_coder", None),
        ("qwen3_moe", "<tool_call>{{- '<|im_start|>assistant\\n<think>\\n' }}", "hermes", "deepseek_r1"),
        ("qwen2", "<|im_start|>assistant\\n<think>\\n", None, "deepseek_r1"),
        ("llama", "Environment: ipython", "llama3_json", None),
        ("llama", "<|im_start|>", None, None),
        ("llama", "<tool_call>", "hermes", None),
        ("mistral", "[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral", None),
        ("mistral", "[INST]", None, None),
        ("gpt_oss", "", "openai", "openai_gptoss"),
        ("glm4_moe", "<tool_call> <arg_key> </think>", "glm45", "glm45"),
        ("deepseek_v3", "tool▁call▁begin' + tool['type']", "deepseek_v3", None),
        ("deepseek_v3", "tool▁call▁begin' + tool['function'] </think>", "deepseek_v31", "deepseek_v3"),
        ("granite", "<|tool_call|>", "granite", None),
        ("new_family", "plain", None, None),
    ],
)
def test_presets_by_family_and_by_what_the_template_writes(
    family: str, template: str, tools: str | None, reasoning: str | None, tmp_path: Path
) -> None:
    found = presets.preset_of(model(tmp_path / "m", family, template))
    assert (found.tool_call_parser, found.reasoning_parser, found.flags) == (tools, reasoning, {})


def test_presets_name_parsers_that_there_are() -> None:
    for rules, name in ((presets.TOOLS, "tool_call_parser"), (presets.REASONING, "reasoning_parser")):
        assert {rule.parser for rule in rules} <= set(flags.table()[name]["choices"])


def test_templates_are_found_where_tokenizers_keep_them(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "qwen2", "")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "t"}]})
    )
    assert presets.chat_template(folder) == "plain"
    (folder / "chat_template.jinja").write_text("{# <tool_call> #}")
    assert presets.preset_of(folder).tool_call_parser == "hermes"
    assert presets.preset_of(tmp_path / "none") == presets.Preset()


def test_models_that_see_are_served_for_text(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "mistral3", "[TOOL_CALLS]", vision_config={"hidden_size": 8})
    assert presets.preset_of(folder) == presets.Preset("mistral", None, {"language_model_only": True})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("[]", "must be an object, not list"),
        ("{nope", "is no JSON"),
        ("[" * 200_000, "is no JSON"),
        ('{"architectures": [5]}', "architectures = [5] must be a list of names"),
        ('{"architectures": "LlamaModel"}', "architectures = LlamaModel must be"),
        ('{"architectures": ["XForSequenceClassification"], "id2label": 5}', "id2label = 5 must be an object"),
        ('{"max_position_embeddings": "9"}', "max_position_embeddings = '9' must be an integer"),
        ('{"num_hidden_layers": 1000000000000}', "num_hidden_layers must be at most 10,000"),
        ('{"text_config": {"hidden_size": 1%s}}' % ("0" * 400), "hidden_size must be at most"),
    ],
)
def test_a_config_that_is_none_is_the_callers_error(written: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(written)
    for read in (
        lambda: kind_of(tmp_path, EngineSettings()),
        lambda: plan_engine(EngineSettings(), tmp_path, ()),
        lambda: register.kind_of(tmp_path),
    ):
        with pytest.raises(BadRequest) as refused:
            read()
        assert told in refused.value.message and len(refused.value.message) < 500
        assert refused.value.param in ("served_entities", "source")


def test_configs_as_transformers_writes_them_pass(tmp_path: Path) -> None:
    for config in (
        {"architectures": None, "id2label": None, "max_position_embeddings": None, "head_dim": None},
        {"architectures": ["LlamaForCausalLM"], "id2label": {"0": "x"}, "max_position_embeddings": 10_485_760},
        {"num_key_value_heads": [1, 2], "text_config": {"num_hidden_layers": 126, "vocab_size": 262_208}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert presets.read_config(tmp_path) == config
    assert presets.read_config(tmp_path / "none") == {}
