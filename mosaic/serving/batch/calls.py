"""An endpoint asked for a piece's rows: through the gateway, as its user, so many requests at a time."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mosaic.client import Client
from mosaic.errors import (
    BadRequest,
    EngineFailed,
    MosaicError,
    RateLimited,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from mosaic.serving.batch.prompts import Answer, Unaskable, messages, record, text
from mosaic.serving.batch.settings import BatchSettings

_TOGETHER = 32
"""Texts or records in one request."""

_LONGEST_AWAY_SECONDS = 300

_ROWS_FAULT = (BadRequest, TooLarge, Unprocessable, EngineFailed)
"""The row's error; others, such as a missing grant or a gateway that is away, are the job's."""

Task = Literal["chat", "embed", "predict"]


@dataclass(frozen=True)
class EndpointSetup:
    """Which endpoint is asked, and with what; pickles."""

    client: Client
    name: str
    """What callers write."""
    task: Task

    def asker(self, settings: BatchSettings) -> "EndpointAsker":
        return EndpointAsker(self, settings)


class EndpointAsker:
    """Answers rows by an endpoint."""

    def __init__(self, setup: EndpointSetup, settings: BatchSettings) -> None:
        self._setup, self._settings = setup, settings
        self._turns = asyncio.Semaphore(settings.concurrency)

    async def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """One for each row, in their order."""
        if self._setup.task == "chat":
            return list(await asyncio.gather(*(self._chat(row) for row in rows)))
        make: Callable[[BatchSettings, Mapping[str, Any]], Any] = record
        ask: Callable[[list[Any]], Awaitable[list[Answer]]] = self._predict
        if self._setup.task == "embed":
            make, ask = text, self._embed
        answers: list[Answer | None] = [None] * len(rows)
        askable: list[tuple[int, Any]] = []
        for place, row in enumerate(rows):
            try:
                askable.append((place, make(self._settings, row)))
            except Unaskable as error:
                answers[place] = Answer(error=str(error))
        groups = [askable[start : start + _TOGETHER] for start in range(0, len(askable), _TOGETHER)]
        for group, found in zip(
            groups, await asyncio.gather(*(self._together(ask, one) for one in groups)), strict=True
        ):
            for (place, _), answer in zip(group, found, strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    async def _chat(self, row: Mapping[str, Any]) -> Answer:
        settings = self._settings
        try:
            chat = messages(settings, row)
        except Unaskable as error:
            return Answer(error=str(error))
        body: dict[str, Any] = {"model": self._setup.name, "messages": chat, "max_tokens": settings.max_tokens}
        body |= settings.sampling.given()
        if settings.json_schema is not None:
            schema = {"name": "answer", "schema": settings.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            said = await self._post("/v1/chat/completions", body)
        except _ROWS_FAULT as error:
            return Answer(error=error.message)
        usage = said.get("usage") or {}
        return Answer(
            response=said["choices"][0]["message"].get("content") or "",
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            model=(said.get("mosaic") or {}).get("model"),
        )

    async def _together(
        self, ask: Callable[[list[Any]], Awaitable[list[Answer]]], group: list[tuple[int, Any]]
    ) -> list[Answer]:
        """A group's answers; where it is refused each alone, so that a row spoils no other."""
        questions = [question for _, question in group]
        try:
            return await ask(questions)
        except _ROWS_FAULT as error:
            if len(questions) == 1:
                return [Answer(error=error.message)]
        found = await asyncio.gather(*(self._together(ask, [one]) for one in group))
        return [answer for (answer,) in found]

    async def _embed(self, texts: list[Any]) -> list[Answer]:
        said = await self._post("/v1/embeddings", {"model": self._setup.name, "input": texts})
        vectors = [one["embedding"] for one in sorted(said["data"], key=lambda one: int(one["index"]))]
        return [Answer(response=vector) for vector in vectors]

    async def _predict(self, records: list[Any]) -> list[Answer]:
        path = f"/serving-endpoints/{self._setup.name}/invocations"
        made = (await self._post(path, {"dataframe_records": records}))["predictions"]
        if isinstance(made, Mapping):  # a data frame, by its columns
            made = [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]
        if not isinstance(made, list) or len(made) != len(records):
            count = len(made) if isinstance(made, list) else "no"
            raise Unprocessable(f"the model made {count} predictions of {len(records)} records, not one of each")
        return [Answer(response=json.dumps(one, ensure_ascii=False)) for one in made]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The client tries again for a while; a gateway that is away may be so for longer than an engine that fails."""
        deadline = time.monotonic() + min(_LONGEST_AWAY_SECONDS, self._settings.stall_seconds / 2)
        async with self._turns:
            while True:
                try:
                    return await self._setup.client.ask_async(path, body)
                except MosaicError as error:
                    if not isinstance(error, Unavailable | RateLimited) or time.monotonic() > deadline:
                        raise type(error)(f"endpoint {self._setup.name!r}: {error.message}") from None
