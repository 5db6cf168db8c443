"""Text classifiers: every way to ask, probabilities as transformers computes them, batches that nobody waits for."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.models.doubles import tiny_classifier
from mosaic.protocol import EngineRequest
from mosaic.serving.batches import Batches, alike
from mosaic.serving.classifier import Classifier
from mosaic.serving.packed import PackedLinear, pack_linears

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["good", "bad, and long enough to need padding beside the others", "12345 &c.", "x" * 120]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("tiny") / "classifier")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[float]]:
    """Each text alone, by transformers itself."""
    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForSequenceClassification))
    with torch.inference_mode():
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    return [one.softmax(-1).tolist() for one in logits]


async def ask(model: Classifier, body: dict[str, Any]) -> list[dict[str, Any]]:
    async for answer in model.answer(EngineRequest(request_id="r", task="predict", body=body)):
        return list(answer["predictions"])
    raise AssertionError


def asked(folder: Path, body: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    return asyncio.run(ask(Classifier(str(folder), "moods", threads=1, **settings), body))


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["good", "bad"]},
        {"inputs": {"text": ["good", "bad"]}},
        {"instances": [{"text": "good"}, {"text": "bad"}]},
        {"dataframe_records": [{"text": "good"}, {"text": "bad"}]},
        {"dataframe_split": {"columns": ["text"], "index": [0, 1], "data": [["good"], ["bad"]]}},
    ],
)
def test_every_way_to_ask(folder: Path, body: dict[str, Any]) -> None:
    found = asked(folder, body)
    assert len(found) == 2
    for one in found:
        assert list(one["scores"]) == LABELS and sum(one["scores"].values()) == pytest.approx(1)
        assert one["score"] == max(one["scores"].values()) == one["scores"][one["label"]]


def test_probabilities_are_those_of_transformers_whatever_is_beside(folder: Path, expected: list[list[float]]) -> None:
    for size in (1, 2, 32):
        found = asked(folder, {"inputs": TEXTS}, max_batch_size=size)
        assert [list(one["scores"].values()) for one in found] == [pytest.approx(row, abs=1e-5) for row in expected]
    assert len({round(one["score"], 3) for one in found}) == len(TEXTS)  # an answer for each, not one for all


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"inputs": [3]}, r"inputs\[0\].text must be a string, not '3'"),
        ({"inputs": 3}, r"inputs\[0\].text must be a string"),
        ({"dataframe_records": "good"}, "dataframe_records must be a list of rows, not str"),
        ({"dataframe_records": ["good"]}, r"dataframe_records\[0\] must have the columns \['text'\]; it has str"),
        ({"dataframe_records": [{"text": "good"}, {"texts": "good"}]}, r"records\[1\] must .*; it has \['texts'\]"),
        ({"dataframe_records": [{"text": "good", "more": 1}]}, r"it has \['more', 'text'\]"),
        ({"dataframe_split": {"columns": ["t"], "data": [["good"]]}}, r"dataframe_split\[0\] must have the columns"),
        ({"dataframe_split": {"columns": ["text"], "data": [["a", "b"]]}}, r"data\[0\] must be a list of 1 values"),
        ({"dataframe_split": {"columns": ["text", "text"], "data": [["a", "b"]]}}, "each once"),
        ({"dataframe_split": {"columns": ["text"], "rows": [["a"]]}}, "dataframe_split must be"),
        ({"inputs": {"text": "good"}}, "inputs must have a list for each column"),
        ({"inputs": ["a"], "instances": ["b"]}, "exactly one of"),
        ({"inputs": ["a"], "top": 3}, "exactly one of"),
        ({"inputs": ["a"], "params": {"top_k": 3}}, "params may be"),
        ({"inputs": ["a"], "params": {"truncate": 1}}, "params may be"),
        ({"inputs": ["a", "x" * 129]}, r"inputs\[1\] has 129 tokens; 'moods' takes 1 to 128, and"),
        ({"instances": ["a", ""]}, r"instances\[1\] has 0 tokens; 'moods' takes 1 to 128$"),
    ],
)
def test_what_it_cannot_take_is_refused(folder: Path, body: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        asked(folder, body)


def test_a_long_text_is_cut_where_that_is_asked_for(folder: Path) -> None:
    long = {"inputs": ["a", "x" * 300], "params": {"truncate": True}}
    assert asked(folder, long)[1]["scores"] == pytest.approx(asked(folder, {"inputs": ["x" * 128]})[0]["scores"])


def test_one_too_long_text_is_its_own_request_s_alone(folder: Path) -> None:
    async def both() -> list[Any]:
        model = Classifier(str(folder), "moods", threads=1)
        bodies = [{"inputs": ["good"]}, {"inputs": ["x" * 300]}, {"inputs": ["bad", "good"]}]
        return await asyncio.gather(*(ask(model, body) for body in bodies), return_exceptions=True)

    first, second, third = asyncio.run(both())
    assert isinstance(second, BadRequest) and second.code == "context_length_exceeded"
    assert len(first) == 1 and third[1]["scores"] == pytest.approx(first[0]["scores"], abs=1e-5)


def test_it_answers_its_probe_and_nothing_but_predictions(folder: Path) -> None:
    assert len(asked(folder, {})) == 1
    with pytest.raises(Unprocessable, match="classifies text"):
        asyncio.run(
            anext(Classifier(str(folder), "moods").answer(EngineRequest(request_id="r", task="chat", body={"a": 1})))
        )


def test_labels_that_were_never_trained_are_refused(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(folder).base_model
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "base")
    with pytest.raises(EngineFailed, match=r"lacks the weights \['classifier.bias', 'classifier.weight'\]"):
        Classifier(str(tmp_path / "base"), "moods")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(EngineFailed, match=r"has no \.safetensors file"):
        Classifier(str(tmp_path / "base"), "moods")


def test_several_labels_at_once(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    with torch.inference_mode():
        logits = model.eval()(**tokenizer("good", return_tensors="pt")).logits[0]
    (found,) = asked(tmp_path, {"inputs": "good"})
    assert list(found["scores"].values()) == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)


def test_who_comes_alone_does_not_wait_and_who_comes_meanwhile_goes_together() -> None:
    batches_seen: list[list[int]] = []
    turn = asyncio.Event()

    async def work(items: list[int]) -> Sequence[int | MosaicError]:
        batches_seen.append(items)
        await turn.wait()
        return [EngineFailed("thirteen") if one == 13 else -one for one in items]

    async def many() -> list[Any]:
        batches: Batches[int, int] = Batches(work, 4)
        first = asyncio.create_task(batches.ask(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batches_seen == [[1]]  # at once, without a clock
        others = [asyncio.create_task(batches.ask(n)) for n in (2, 3, 13, 4, 5, 6)]
        await asyncio.sleep(0)
        others[1].cancel()  # 3's client has gone
        await asyncio.sleep(0)
        turn.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        return [*found, await batches.ask(7)]

    found = asyncio.run(many())
    assert batches_seen == [[1], [2, 13, 4, 5], [6], [7]]
    assert found[:2] == [-1, -2] and found[4:] == [-4, -5, -6, -7]
    assert isinstance(found[2], asyncio.CancelledError) and isinstance(found[3], EngineFailed)


def test_a_call_that_breaks_is_told_to_its_own_items_only() -> None:
    async def work(items: list[int]) -> Sequence[int | MosaicError]:
        if 0 in items:
            raise ZeroDivisionError("zero")
        return items

    async def many() -> list[Any]:
        batches: Batches[int, int] = Batches(work, 2)
        return await asyncio.gather(*(batches.ask(n) for n in (0, 1, 2, 3)), return_exceptions=True)

    found = asyncio.run(many())
    assert [type(one) for one in found] == [ZeroDivisionError, ZeroDivisionError, int, int]


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 200))
def test_texts_of_like_length_go_together(lengths: list[int], most: int) -> None:
    groups = list(alike(lengths, most))
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[place] for place in group) <= most for group in groups)
    flat = [lengths[place] for group in groups for place in group]
    assert flat == sorted(lengths)


@pytest.mark.parametrize("rows", [(1,), (7,), (3, 11), (2, 5, 40)])
def test_packed_layers_multiply_as_torch_does(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.Linear(96, 64, bias=False), torch.nn.Linear(64, 3))
    x = torch.randn(*rows, 48)
    with torch.inference_mode():
        expected, weight = model(x), model[0].weight.clone()
        pack_linears(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(model[0].weight, weight)
    assert [isinstance(layer, PackedLinear) for layer in model] == [True, True, False]
