"""The embedding replica: a sentence encoder (BERT family) with mean pooling, as sentence-transformers serves MiniLM."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from mosaic.errors import Unprocessable
from mosaic.protocol import EngineRequest


class Embedder:
    """Texts to unit vectors: mean over the tokens of the last hidden layer, then L2 normalisation.

    The pooling is that of the model's card (Reimers and Gurevych, "Sentence-BERT", 2019, section 3). Texts over
    `max_tokens` are cut there, as the model was trained.
    """

    def __init__(self, model_folder: str, model_name: str, *, threads: int = 1, max_tokens: int = 256) -> None:
        torch.set_num_threads(threads)
        self._name, self._max_tokens = model_name, max_tokens
        self._tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self._model = AutoModel.from_pretrained(model_folder, dtype=torch.float32).eval()
        self._lock = asyncio.Lock()

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        if request.task != "embed":
            raise Unprocessable(f"{self._name!r} embeds text (ask it at /v1/embeddings); it does not {request.task}")
        async with self._lock:  # one batch at a time on the compute threads; the others wait without blocking the loop
            yield await asyncio.to_thread(self._embed, request.body["input"])

    def _embed(self, texts: list[str], batch: int = 32) -> dict[str, Any]:
        # Sorted by length so that a batch pads little; the answer is put back into the caller's order.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors: list[list[float]] = [[] for _ in texts]
        prompt_tokens = 0
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            tokens = self._tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            mask = tokens["attention_mask"]
            prompt_tokens += int(mask.sum())
            with torch.inference_mode():
                hidden = self._model(**tokens).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
            unit = torch.nn.functional.normalize(mean, dim=1)
            for place, vector in zip(places, unit.tolist(), strict=True):
                vectors[place] = vector
        return {"embeddings": vectors, "prompt_tokens": prompt_tokens}
