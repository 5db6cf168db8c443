"""The real vLLM engine behind the gateway: base and adapter on one engine, streamed, refused, counted."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from peft import LoraConfig, get_peft_model
from ray import serve
from transformers import AutoModelForCausalLM

from mosaic.errors import BadRequest, NotFound, Unavailable
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, Retrieval, ServedEntity, units_of
from tests.conftest import TINY_ENGINE

MODEL = "main.tiny.assistant"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tuned(platform: Platform, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Two adapters with random weights for the tiny Llama of `tiny-base`, registered, and an endpoint for each."""
    base = tiny_chat
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False),
    )
    platform.catalog.ensure_schema("main.tiny")
    platform.catalog.create_model(MODEL, owner="admin")
    for _version in (1, 2):
        folder = tmp_path_factory.mktemp("adapter")
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
        platform.catalog.create_model_version(MODEL, source=str(folder), kind="adapter", base_model=str(base))
    platform.catalog.set_alias(MODEL, "champion", 1)
    for name, entities in {
        "tiny-tuned": [ServedEntity(name="tuned", model=f"{MODEL}@champion", engine=TINY_ENGINE)],
        "tiny-second": [ServedEntity(name="second", model=f"{MODEL}/2", engine=TINY_ENGINE)],
    }.items():
        platform.serving.put(EndpointSettings(name=name, served_entities=entities))
    for name in ("tiny-base", "tiny-tuned", "tiny-second"):
        platform.serving.wait(name)
    return platform


def complete(client: OpenAI, model: str, **more: object) -> str:
    asked = {"messages": HELLO, "temperature": 0, "max_tokens": 12, **more}
    return client.chat.completions.create(model=model, **asked).choices[0].message.content  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
def test_base_and_adapter_answer_from_one_engine_each_as_itself(tuned: Platform, client: OpenAI) -> None:
    base, adapted = complete(client, "tiny-base"), complete(client, "tiny-tuned")
    assert base != adapted
    assert (complete(client, "tiny-base"), complete(client, "tiny-tuned")) == (base, adapted)
    stream = client.chat.completions.create(
        model="tiny-tuned",
        messages=HELLO,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == adapted
    tuned.flush_ledger()
    rows = tuned.tables.to_arrow("system.serving.inference").to_pylist()
    (row,) = [one for one in rows if one["request_id"] == chunks[0].id]
    assert (row["model"], row["model_version"], row["model_alias"]) == (MODEL, 1, "champion")
    assert row["adapter"] == f"{MODEL}/1" and row["served_entity"] == "tuned"
    assert row["output_tokens"] == chunks[-1].usage.completion_tokens and row["input_tokens"] > 0
    assert json.loads(row["response"])["choices"][0]["message"]["content"] == adapted


@pytest.mark.slow
def test_base_and_adapters_in_one_batch_answer_as_each_does_alone(tuned: Platform, client: OpenAI) -> None:
    """As many adapters as the engine has slots: what has none must get none."""
    names = ["tiny-base", "tiny-tuned", "tiny-second"]
    alone = {name: complete(client, name, max_tokens=40) for name in names}
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda name: (name, complete(client, name, max_tokens=40)), names * 4))
    assert {name: [answer for other, answer in together if other == name] for name in names} == {
        name: [answer] * 4 for name, answer in alone.items()
    }
    assert complete(client, "tiny-base", max_tokens=40) == alone["tiny-base"]


@pytest.mark.slow
@pytest.mark.long
def test_shares_of_two_versions_on_one_engine_are_kept_and_changed_while_asked(tuned: Platform, token: str) -> None:
    """The bounds are more than three standard deviations of what is drawn: 0.6 and 1.6 points."""
    entities = [
        ServedEntity(name="first", model=f"{MODEL}/1", traffic_percentage=90, engine=TINY_ENGINE),
        ServedEntity(name="second", model=f"{MODEL}/2", traffic_percentage=10, engine=TINY_ENGINE),
    ]
    tuned.serving.put(EndpointSettings(name="tiny-split", served_entities=entities))
    split = tuned.serving.wait("tiny-split")
    base = tuned.serving.get("tiny-base")
    assert units_of(tuned.catalog, split.config, {}) == units_of(tuned.catalog, base.config, {})
    head = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=tuned.base_url, timeout=120) as http, ThreadPoolExecutor(16) as pool:

        def ask(_number: int) -> str:
            asked = {"model": "tiny-split", "messages": HELLO, "max_tokens": 1}
            answer = http.post("/v1/chat/completions", json=asked, headers=head)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["mosaic"]["served_entity"])

        arms = Counter(pool.map(ask, range(2500)))
        assert abs(arms["first"] / 2500 - 0.9) <= 0.02

        asking = [pool.submit(ask, number) for number in range(500)]
        even = [entity.model_copy(update={"traffic_percentage": 50}) for entity in entities]
        tuned.serving.put(EndpointSettings(name="tiny-split", served_entities=even))
        tuned.serving.wait("tiny-split")
        for one in asking:
            one.result()
        arms = Counter(pool.map(ask, range(500)))
        assert abs(arms["first"] / 500 - 0.5) <= 0.08
    tuned.serving.delete("tiny-split")


@pytest.mark.slow
def test_an_adapter_joins_an_engine_that_runs(tuned: Platform, client: OpenAI) -> None:
    """The same weights under a new version: loaded when they are first asked for, by the engine of before."""
    (engine,) = units_of(tuned.catalog, tuned.serving.get("tiny-base").config, {})
    began = serve.status().applications[engine.app_name].last_deployed_time_s
    second = tuned.catalog.get_model_version(f"{MODEL}/2")
    version = tuned.catalog.create_model_version(
        MODEL, source=second.source, kind="adapter", base_model=second.base_model
    )
    only = ServedEntity(name="joined", model=version.full_name, engine=TINY_ENGINE)
    tuned.serving.put(EndpointSettings(name="tiny-joined", served_entities=[only]))
    tuned.serving.wait("tiny-joined")
    assert complete(client, "tiny-joined") == complete(client, "tiny-second") != complete(client, "tiny-base")
    assert serve.status().applications[engine.app_name].last_deployed_time_s == began
    tuned.serving.delete("tiny-joined")


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_a_400_of_the_engine(tuned: Platform, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, "tiny-base", messages=[{"role": "user", "content": "x" * 5000}])
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_changed_adapter_files_are_not_served(tuned: Platform, client: OpenAI, tmp_path: Path) -> None:
    first = tuned.catalog.get_model_version(f"{MODEL}/1")
    version = tuned.catalog.create_model_version(
        MODEL,
        source=first.source,
        kind="adapter",
        base_model=first.base_model,
        checksums={"adapter_model.safetensors": "0" * 64},
    )
    entities = [ServedEntity(name="changed", model=version.full_name, engine=TINY_ENGINE)]
    tuned.serving.put(EndpointSettings(name="tiny-changed", served_entities=entities))
    with pytest.raises(Unavailable, match=r"config 1 of .*'tiny-changed' failed: .*not those that were"):
        tuned.serving.wait("tiny-changed")
    with pytest.raises(openai.InternalServerError, match="no configuration of it runs yet") as told:
        complete(client, "tiny-changed")
    assert told.value.status_code == 503
    tuned.serving.delete("tiny-changed")


def test_endpoints_are_checked_before_anything_starts(platform: Platform) -> None:
    arm = ServedEntity(name="a", model="echo")
    with pytest.raises(NotFound, match=r"no model"):
        platform.serving.put(
            EndpointSettings(name="x", served_entities=[ServedEntity(name="a", model="main.none.bot/1")])
        )
    with pytest.raises(NotFound, match=r"no index .main\.none\.index."):
        platform.serving.put(
            EndpointSettings(name="x", served_entities=[arm], retrieval=Retrieval(index="main.none.index"))
        )
    with pytest.raises(BadRequest, match="add up to 90, not to 100"):
        half = {"name": "a", "model": "echo", "traffic_percentage": 90}
        EndpointSettings.parse({"name": "x", "served_entities": [half]})
