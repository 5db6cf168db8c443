"""The guardrails of one request: on what it asks before a model reads it, on what is answered before a byte leaves.

What they masked or refused is nowhere else either: the row keeps the request as the model got it, and no more of one
that never got so far.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from mosaic.errors import BadRequest
from mosaic.gateway.answers import FoldedChat, FoldedText
from mosaic.gateway.endpoints import Endpoint
from mosaic.gateway.guard_gate import Answers, gated
from mosaic.gateway.guard_whole import Outcomes, WholeRules, texts_of, told_by, whole_of
from mosaic.gateway.guards import Guard, guard_answer, guard_messages, guarded, refuses_logprobs
from mosaic.gateway.images import as_logged
from mosaic.gateway.requests import ChatRequest
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import Wire

_LONG = 2_000
"""Characters whose telephone numbers alone may take the guards 10 ms; more of them are read in a thread, beside the
loop that streams."""
_READ = {"messages", "prompt", "input", "text_1", "text_2", "query", "documents"}
"""The fields of requests that guards read."""
Looked = TypeVar("Looked")


class Guarding:
    """Of an endpoint without guardrails it does nothing."""

    def __init__(self, endpoint: Endpoint, exchange: Exchange) -> None:
        self._exchange, self._input, self._output = exchange, endpoint.input_guard, endpoint.output_guard
        self._judges, self._policies = endpoint.judges, endpoint.policies
        sides = {"input": self._input, "output": self._output}
        self._whole: dict[str, Outcomes] = {
            side: guard.whole.outcomes() for side, guard in sides.items() if guard is not None and guard.whole
        }
        self._told: Any = None
        self._unjudged = ""
        self._asked = None if self._input is None else self._input.findings()
        self._answered = None if self._output is None else self._output.findings()
        if self._asked is not None:
            exchange.note(request=None)  # until it is as the model gets it
        if self._asked is not None or self._answered is not None or self._policies:
            exchange.note_late(guardrails=self._as_json)

    async def messages(self, request: ChatRequest) -> list[dict[str, Any]]:
        """What a chat says, as the engine may have it.

        Raises ContentFiltered, and Unavailable for a rule that could not run and is to fail closed.
        """
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        if self._input is None or self._asked is None:
            return messages
        guard, findings = self._input, self._asked
        characters = len(compact_json(messages))  # the arguments of tool calls too
        found = await _aside(characters, lambda: guard_messages(messages, guard, findings))
        self._told = list(found)
        self._keep(request, messages=found)
        return found

    async def texts(self, texts: Sequence[str], request: Wire, field: str) -> list[str]:
        """What else is asked, each text by itself; the row has them as `field`. Raises as `messages`."""
        if self._input is None or self._asked is None:
            return list(texts)
        guard, findings = self._input, self._asked
        found = await _aside(sum(map(len, texts)), lambda: [guard.check(text, findings) for text in texts])
        self._told = list(found)
        self._keep(request, **{field: found})
        return found

    def _keep(self, request: Wire, **read: Any) -> None:
        """The request as the model gets it; one that is judged once it has passed."""
        beside = request.model_dump(exclude=_READ, exclude_none=True, by_alias=True)
        told = as_logged({**beside, **read})
        if "input" in self._whole:
            self._unjudged = told
        else:
            self._exchange.note(request=told)

    def check_logprobs(self, logprobs: object) -> None:
        """Raises BadRequest where the answer's tokens would be told beside what was made of them."""
        if logprobs and refuses_logprobs(self._output):
            raise BadRequest("logprobs would tell what the guardrails on the output mask", param="logprobs")

    def gated(self, answers: Answers) -> Answers:
        """The engine's answers, held back until judges have passed what was asked; a refusal cancels the engine.

        Raises as `messages`.
        """
        if "input" not in self._whole:
            return answers
        return gated(answers, self._pass_asked, self._count_unsaid)

    async def _pass_asked(self) -> None:
        assert self._input is not None and self._input.whole is not None
        await self._input.whole.judge(self._told, self._whole["input"], self._judges, self._exchange.request_id)
        self._exchange.note(request=self._unjudged)

    def _count_unsaid(self, item: dict[str, Any]) -> None:
        """The engine took it all the same."""
        if (usage := item.get("usage")) and not self._exchange.get("cached"):
            tokens = usage.get("completion_tokens") or 0
            self._exchange.note(input_tokens=usage["prompt_tokens"], output_tokens=tokens)

    def answers(self, answers: AsyncIterator[dict[str, Any]], *, stream: bool) -> AsyncIterator[dict[str, Any]]:
        """What may leave of the answers. A stream raises as `messages` does, before the first byte of what is refused
        has left."""
        if self._output is None or self._answered is None:
            return answers
        found = guarded(answers, self._output, self._answered) if stream else self._each(answers, self._output)
        return self._held(found, self._output.whole, stream=stream) if self._output.whole else found

    async def _held(
        self, answers: AsyncIterator[dict[str, Any]], rules: WholeRules, *, stream: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """All of an answer at its end: what looks at the whole of it has to have it."""
        items = [item async for item in answers]
        outcomes = self._whole["output"]
        for whole in [_folded(items)] if stream else items:
            await rules.check_answers(texts_of(whole), outcomes)
            await rules.judge(told_by(whole), outcomes, self._judges, self._exchange.request_id)
        for item in items:
            yield item

    async def _each(self, answers: AsyncIterator[dict[str, Any]], guard: Guard) -> AsyncIterator[dict[str, Any]]:
        assert self._answered is not None
        async for answer in answers:
            findings = self._answered
            characters = len(compact_json(answer["choices"]))
            yield await _aside(characters, functools.partial(guard_answer, answer, guard, findings))

    def _as_json(self) -> str:
        sides = {"input": self._asked, "output": self._answered}
        told: dict[str, Any] = {} if not self._policies else {"policies": self._policies}
        for side, found in sides.items():
            if found is not None:
                told[side] = {**found.as_json(), **self._whole.get(side, {})}
        return compact_json(told)


def _folded(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    is_chat = any("delta" in choice for chunk in chunks for choice in chunk["choices"])
    return whole_of(chunks, FoldedChat("", "") if is_chat else FoldedText("", ""))


async def _aside(characters: int, look: Callable[[], Looked]) -> Looked:
    return look() if characters < _LONG else await asyncio.to_thread(look)
