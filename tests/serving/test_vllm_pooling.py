"""Models that vLLM only reads: embeddings beside our own embedder's, scores and rankings beside transformers' own."""

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from mosaic.models.doubles import byte_tokenizer
from mosaic.platform import Platform
from mosaic.serving.embedder import Embedder
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.runners import ENCODERS, runner_of
from mosaic.serving.runners import reading as settings_to_read
from mosaic.serving.settings import EngineSettings
from tests.gateway.test_gateway_http import post, row

TEXTS = ["hello there", "a longer text of other words", "x"]
POOLING = EngineSettings(runner="pooling", num_cpus=0.3)


def tiny_bert(folder: Path, shape: type, **config: Any) -> Path:
    tokenizer = byte_tokenizer()
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = shape(BertConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=256, **config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # far enough from 0 that texts differ in more than rounding
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pools as sentence-transformers say in these files: the mean, normalised."""
    folder = tiny_bert(tmp_path_factory.mktemp("encoder") / "bert", BertModel)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross") / "bert"
    return tiny_bert(folder, BertForSequenceClassification, num_labels=1)


@pytest.fixture(scope="module")
def reading(platform: Platform, encoder: Path, cross_encoder: Path) -> Iterator[Platform]:
    """Both engines start at once."""
    for name, task, folder in (("by-vllm", "embed", encoder), ("fitting", "score", cross_encoder)):
        entity = ServedEntity(name="e", model=str(folder), engine=POOLING)
        platform.serving.put(EndpointSettings(name=name, task=task, served_entities=[entity]))  # type: ignore[arg-type]
    for name in ("by-vllm", "fitting"):
        platform.serving.wait(name)
    yield platform
    for name in ("by-vllm", "fitting"):
        platform.serving.delete(name)


@pytest.mark.slow
def test_embeddings_are_those_of_our_own_embedder(reading: Platform, client: OpenAI, encoder: Path) -> None:
    answer = client.embeddings.create(model="by-vllm", input=TEXTS, encoding_format="float")
    found = np.asarray([one.embedding for one in answer.data])
    own = np.asarray(Embedder(str(encoder), "own", dtype="float32")._embed(TEXTS)["embeddings"])
    assert found.shape == (3, 64) and ((found * own).sum(axis=1) > 0.9999).all()
    assert abs(found[0] @ found[1]) < 0.999 and answer.usage.prompt_tokens == sum(map(len, TEXTS))
    packed = client.embeddings.create(model="by-vllm", input=TEXTS, encoding_format="base64")
    assert np.allclose(np.frombuffer(b64decode(str(packed.data[0].embedding)), dtype="<f4"), found[0], atol=1e-5)
    for more, param, says in (
        ({"dimensions": 8}, "dimensions", "atryoshka"),
        ({"input": ["x" * 300]}, "input", "256"),
    ):
        with pytest.raises(openai.BadRequestError, match=says) as refused:
            client.embeddings.create(**{"model": "by-vllm", "input": TEXTS, **more})  # type: ignore[arg-type]
        assert refused.value.param == param
    with pytest.raises(openai.UnprocessableEntityError, match="is for embed, not for chat"):
        client.chat.completions.create(model="by-vllm", messages=[{"role": "user", "content": "x"}])


@pytest.mark.slow
def test_scores_and_rankings(reading: Platform, token: str, cross_encoder: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(cross_encoder)(["x"] * 3, TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = BertForSequenceClassification.from_pretrained(cross_encoder)(**tokens).logits
    expected = torch.sigmoid(logits).flatten().tolist()

    def asked(path: str, **body: Any) -> dict[str, Any]:
        answer = post(reading, token, path, {"model": "fitting", **body})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    one = asked("/v1/score", text_1="x", text_2=TEXTS)
    assert [scored["score"] for scored in one["data"]] == pytest.approx(expected, abs=1e-3)
    paired = asked("/v1/score", text_1=["x", "x"], text_2=TEXTS[:2])
    assert [scored["score"] for scored in paired["data"]] == pytest.approx(expected[:2], abs=1e-3)

    best = sorted(range(3), key=lambda n: -expected[n])
    ranked = asked("/v1/rerank", query="x", documents=[TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]], top_n=2)
    assert [found["index"] for found in ranked["results"]] == best[:2]
    assert [found["document"]["text"] for found in ranked["results"]] == [TEXTS[n] for n in best[:2]]
    assert ranked["results"][0]["relevance_score"] == pytest.approx(expected[best[0]], abs=1e-3)
    plain = asked("/serving-endpoints/fitting/invocations", query="x", documents=TEXTS, return_documents=False)
    assert [sorted(found) for found in plain["results"]] == [["index", "relevance_score"]] * 3
    kept = row(reading, ranked["id"])
    assert (kept["status_code"], kept["path"], kept["served_entity"]) == (200, "/v1/rerank", "e")
    assert kept["input_tokens"] == ranked["usage"]["prompt_tokens"] > 0
    assert [found["index"] for found in json.loads(kept["response"])["results"]] == best[:2]

    long = post(reading, token, "/v1/rerank", {"model": "fitting", "query": "x", "documents": ["y" * 300]})
    assert long.status_code == 400 and long.json()["error"]["param"] == "documents", long.text
    assert long.json()["error"]["code"] == "context_length_exceeded"


def test_the_task_in_databricks_words(platform: Platform) -> None:
    headers = {"authorization": f"Bearer {platform.catalog.create_token('admin', is_admin=True)[1]}"}
    base = f"{platform.base_url}/api/2.0/serving-endpoints"
    config = {"task": "llm/v1/completions", "served_entities": [{"name": "e", "entity_name": "echo"}]}
    made = httpx.post(base, json={"name": "writes-on", "config": config}, headers=headers)
    try:
        assert made.status_code == 200 and made.json()["task"] == "llm/v1/completions", made.text
        platform.serving.wait("writes-on")
        body = {"prompt": "one two", "stream": True}
        asked = httpx.post(f"{platform.base_url}/serving-endpoints/writes-on/invocations", json=body, headers=headers)
        assert asked.status_code == 200 and '"text":"one"' in asked.text and asked.text.endswith("data: [DONE]\n\n")
        body = {"messages": [{"role": "user", "content": "x"}]}
        asked = httpx.post(f"{platform.base_url}/serving-endpoints/writes-on/invocations", json=body, headers=headers)
        assert asked.status_code == 422 and "is for complete, not for chat" in asked.text
    finally:
        httpx.delete(f"{base}/writes-on", headers=headers)


@pytest.mark.parametrize(
    ("config", "files", "runner", "expected"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, (), "auto", "generate"),
        ({"architectures": ["Qwen3ForCausalLM"]}, ("modules.json",), "auto", "pooling"),
        ({"architectures": ["Qwen3ForCausalLM"]}, ("modules.json",), "generate", "generate"),
        ({"architectures": ["BertModel"]}, (), "auto", "embedder"),
        ({"architectures": ["BertModel"]}, (), "pooling", "pooling"),
        ({"architectures": ["ModernBertModel"]}, (), "auto", "pooling"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}}, (), "auto", "pooling"),
        ({"architectures": ["BertForSequenceClassification"]}, (), "auto", "classifier"),
        ({"architectures": ["OddModel"]}, (), "auto", None),
        ({}, (), "auto", None),
    ],
)
def test_which_way_a_model_is_served(
    config: dict[str, Any], files: tuple[str, ...], runner: Any, expected: str | None, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_text("[]")
    assert runner_of(tmp_path, config, EngineSettings(runner=runner)) == expected


@pytest.mark.parametrize(
    ("asked", "files", "expected"),
    [
        (None, {"tokenizer_config.json": {"model_max_length": 512}}, None),
        (1024, {}, 514),
        (1024, {"tokenizer_config.json": {"model_max_length": 512}}, 512),
        (1024, {"tokenizer_config.json": {"model_max_length": 10**30}}, 514),
        (1024, {"tokenizer_config.json": {"model_max_length": "512"}}, 514),
        (1024, {"sentence_bert_config.json": {"max_seq_length": 128}}, 128),
        (100, {"tokenizer_config.json": {"model_max_length": 512}}, 100),
    ],
)
def test_what_is_read_is_no_longer_than_the_tokenizer_says(
    asked: int | None, files: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    read = settings_to_read(tmp_path, {"max_position_embeddings": 514}, EngineSettings(max_model_len=asked))
    assert read.max_model_len == expected


@pytest.mark.slow
def test_vllm_knows_the_encoders() -> None:
    from vllm import ModelRegistry

    assert set(ModelRegistry.get_supported_archs()) >= ENCODERS
