"""The replica of a text classifier: a transformers model for sequence classification, asked in the scoring protocol."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.protocol import EngineRequest
from mosaic.serving.batches import Batches, alike
from mosaic.serving.packed import pack_linears
from mosaic.serving.scoring import check_rows, read_rows
from mosaic.serving.whole import AnswersWhole

_TOKENS_AT_ONCE = {"cpu": 256, "cuda": 16_384}
"""Of one pass through the model, with the padding. On a CPU what lies between two layers then stays in its cache:
MiniLM takes 2.9 ms for a text with 256, 3.4 with 512, 4.3 with 1024."""
_UNLIMITED = 1_000_000
"""Tokenizers that know no longest text say a number above this."""


class _Asked(NamedTuple):
    texts: list[str]
    first: int
    """The place of the first text in its request, which `field` has: for what is said about it."""
    field: str
    truncate: bool


class Classifier(AnswersWhole):
    """Texts to labels, each with the probabilities of all: softmax, or a sigmoid for each label if several may hold.

    Weights come from safetensors alone and in the type that they were saved in; no code of the model's own is run.
    Texts of several requests are computed together (`Batches`), at most `max_batch_size` at once; a request with more
    takes its turn again and again, so that a long one holds up no short one. Padding is masked, and a prediction does
    not depend on what is computed beside it, but for rounding. A text that is longer than the model was made for is
    refused, unless `params` say `truncate`.
    """

    def __init__(
        self,
        model_folder: str,
        model_name: str,
        *,
        threads: int | None = None,
        max_batch_size: int = 32,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        torch.set_num_threads(threads or os.cpu_count() or 1)  # not those of Ray, which says 1
        self._name, self._at_once = model_name, max_batch_size
        self._tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self._model = _load(model_folder, model_name).to(device).eval()
        if device == "cpu" and torch.backends.mkldnn.is_available():
            pack_linears(self._model)
        self._labels = [self._model.config.id2label[place] for place in range(self._model.config.num_labels)]
        self._several = self._model.config.problem_type == "multi_label_classification"
        self._longest = _longest(self._tokenizer, self._model)
        self._device: Literal["cpu", "cuda"] = device
        self._turns = ThreadPoolExecutor(1)
        self._batches: Batches[_Asked, list[dict[str, Any]]] = Batches(
            self._classify_in_turn, max_batch_size, lambda asked: len(asked.texts)
        )

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        if request.task != "predict":
            raise Unprocessable(f"{self._name!r} classifies text (task: predict); it does not {request.task}")
        if request.body:
            (field, texts), truncate = read_texts(request.body), read_truncate(request.body)
        else:
            field, texts, truncate = "inputs", ["ping"], False
        predictions: list[dict[str, Any]] = []
        for first in range(0, len(texts), self._at_once):
            asked = _Asked(texts[first : first + self._at_once], first, field, truncate)
            predictions += await self._batches.ask(asked)
        yield {"predictions": predictions}

    async def _classify_in_turn(self, asked: list[_Asked]) -> Sequence[list[dict[str, Any]] | MosaicError]:
        return await asyncio.get_running_loop().run_in_executor(self._turns, self._classify, asked)

    def _classify(self, asked: list[_Asked]) -> list[list[dict[str, Any]] | MosaicError]:
        texts = [text for one in asked for text in one.texts]
        tokens = self._tokenizer(texts, verbose=False)["input_ids"] if texts else []
        answers: list[list[dict[str, Any]] | MosaicError] = []
        chosen: list[list[int]] = []
        end = 0
        for one in asked:
            start, end = end, end + len(one.texts)
            long = [place for place in range(start, end) if len(tokens[place]) > self._longest]
            wrong = next((place for place in range(start, end) if not tokens[place]), None)
            if wrong is None and long and not one.truncate:
                wrong = long[0]
            if wrong is not None:
                answers.append(self._refusal(one, wrong - start, len(tokens[wrong])))
                continue
            for place in long:
                cut = self._tokenizer(texts[place], truncation=True, max_length=self._longest)
                tokens[place] = cut["input_ids"]
            answers.append([{}] * len(one.texts))
            chosen += tokens[start:end]
        found = iter(self._scores(chosen))
        return [one if isinstance(one, MosaicError) else [self._told(next(found)) for _ in one] for one in answers]

    def _scores(self, tokens: list[list[int]]) -> list[list[float]]:
        """The probabilities of each label by text."""
        scores: list[list[float]] = [[] for _ in tokens]
        for places in alike([len(ids) for ids in tokens], _TOKENS_AT_ONCE[self._device]):
            batch = self._tokenizer.pad({"input_ids": [tokens[place] for place in places]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**batch.to(self._device)).logits.float()
            found = logits.sigmoid() if self._several else logits.softmax(dim=-1)
            for place, row in zip(places, found.tolist(), strict=True):
                scores[place] = row
        return scores

    def _told(self, scores: list[float]) -> dict[str, Any]:
        best = max(range(len(scores)), key=scores.__getitem__)
        named = dict(zip(self._labels, scores, strict=True))
        return {"label": self._labels[best], "score": scores[best], "scores": named}

    def _refusal(self, asked: _Asked, place: int, tokens: int) -> BadRequest:
        told = f"{asked.field}[{asked.first + place}] has {tokens} tokens; {self._name!r} takes 1 to {self._longest}"
        if tokens > self._longest:
            told += ', and params {"truncate": true} cuts what is longer'
        return BadRequest(told, param=asked.field, code="context_length_exceeded" if tokens else None)


def read_texts(body: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The texts of a body in one of MLflow's ways, and its name: a list, or a table with the one column `text`."""
    name, rows = read_rows(body, ["text"])
    check_rows(name, rows, {"text": "string"})
    return name, [row["text"] for row in rows]


def read_truncate(body: Mapping[str, Any]) -> bool:
    """Whether texts that are too long are to be cut; raises BadRequest for other params."""
    params = body.get("params") or {}
    if (
        not isinstance(params, dict)
        or params.keys() - {"truncate"}
        or not isinstance(params.get("truncate", False), bool)
    ):
        raise BadRequest(f'params may be {{"truncate": true}}, not {str(params)[:200]}', param="params")
    return bool(params.get("truncate", False))


def _load(folder: str, name: str) -> Any:
    """The model; raises EngineFailed for what would answer nonsense: labels that were never trained."""
    if not any(Path(folder).glob("*.safetensors")):
        raise EngineFailed(f"model {name!r} has no .safetensors file, and weights of other kinds run code")
    load = AutoModelForSequenceClassification.from_pretrained
    model, told = load(folder, dtype="auto", use_safetensors=True, output_loading_info=True)
    if told["missing_keys"]:
        raise EngineFailed(f"model {name!r} lacks the weights {sorted(told['missing_keys'])[:10]}")
    if model.config.problem_type == "regression":
        raise EngineFailed(f"model {name!r} is for regression; served are models that tell labels apart")
    return model


def _longest(tokenizer: Any, model: Any) -> int:
    """Tokens that a text may have: as the tokenizer says, and as many as there are positions."""
    longest = [tokenizer.model_max_length] if tokenizer.model_max_length < _UNLIMITED else []
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
        first = getattr(embeddings, "padding_idx", None)  # RoBERTa and its like count from the one after the padding's
        longest.append(positions if first is None else positions - first - 1)
    return min(longest, default=_UNLIMITED)
