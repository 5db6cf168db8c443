"""Public doubles: engines without a model, for speed and for users' own tests."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from mosaic.errors import EngineFailed, Unprocessable
from mosaic.protocol import EngineRequest, Message
from mosaic.serving.endpoint import EndpointSettings, Unit
from mosaic.serving.rollout import AppState
from mosaic.serving.whole import AnswersWhole


class EchoEngine(AnswersWhole):
    """Answers with the last message, or the prompt, a word a chunk, in the engine protocol's shape.

    `delay_seconds` is waited before each word, a tenth of a second more for a text that begins with `slow:`; one that
    begins with `fail:` raises EngineFailed after the first word. A message `call: NAME JSON` calls the tool NAME with
    those arguments if the request brings it. Asked for JSON by a schema whose properties are enums, or by choices that
    are objects, it is a judge by keywords: of each property it says the first value that the message has as a word,
    else the last value. How tokens are drawn means nothing here; `n` answers are the same, n times.
    """

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self._delay_seconds = delay_seconds
        print("the echo is ready", flush=True)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        if request.task not in ("chat", "complete", "count"):
            raise Unprocessable(f"the echo does not {request.task}")
        asked = _Asked(request)
        if request.task == "count":
            yield {"prompt_tokens": asked.usage()["prompt_tokens"]}
            return
        head = {"id": request.request_id, "created": int(time.time()), "model": "echo"}
        if not request.stream:
            await self._wait(asked.texts[0], len(asked.texts[0].split(" ")))
            yield {**head, "object": asked.object, "choices": list(asked.choices()), "usage": asked.usage()}
            return
        head["object"] = "chat.completion.chunk" if request.task == "chat" else asked.object
        written = 0
        for index, text in enumerate(asked.texts):
            for place, delta in enumerate(asked.deltas(text)):
                await self._wait(text, place)
                written += 1
                choice = {"index": index, **delta, "finish_reason": None}
                yield {**head, "choices": [choice], "usage": asked.usage(written)}
            end: dict[str, Any] = {"delta": {}} if request.task == "chat" else {"text": ""}
            yield {**head, "choices": [{"index": index, **end, "finish_reason": asked.finish_reason}]}
        yield {**head, "choices": [], "usage": asked.usage()}

    async def _wait(self, text: str, place: int) -> None:
        if text.startswith("fail:") and place > 0:
            raise EngineFailed("the echo was asked to fail")
        delay_seconds = self._delay_seconds + (0.1 if text.startswith("slow:") else 0)
        if delay_seconds:
            await asyncio.sleep(delay_seconds)


class _Asked:
    """A request to the echo: the texts that it answers, whole and in pieces."""

    def __init__(self, request: EngineRequest) -> None:
        body, self._is_chat = request.body, request.task != "complete"
        self.object = "chat.completion" if self._is_chat else "text_completion"
        if self._is_chat:
            self._read = [Message.model_validate(message).text for message in body["messages"]]
            answered = [_said(self._read[-1], body)]
        else:
            answered = self._read = _prompts(body["prompt"])
        self.texts = [text for text in answered for _ in range(body.get("n") or 1)]
        self._call = _call(self.texts[0], body.get("tools") or []) if self._is_chat else None
        self.finish_reason = "tool_calls" if self._call else "stop"

    def choices(self) -> Iterator[dict[str, Any]]:
        for index, text in enumerate(self.texts):
            message: dict[str, Any] = {"role": "assistant", "content": None if self._call else text}
            message |= {"tool_calls": [self._call]} if self._call else {}
            told = {"message": message} if self._is_chat else {"text": text}
            yield {"index": index, **told, "finish_reason": self.finish_reason}

    def deltas(self, text: str) -> Iterator[dict[str, Any]]:
        if self._call:
            name, arguments = self._call["function"]["name"], self._call["function"]["arguments"]
            first = {**self._call, "index": 0, "function": {"name": name, "arguments": ""}}
            yield {"delta": {"role": "assistant", "tool_calls": [first]}}
            for start in range(0, len(arguments), 4):
                piece = {"index": 0, "function": {"arguments": arguments[start : start + 4]}}
                yield {"delta": {"tool_calls": [piece]}}
            return
        for place, word in enumerate(text.split(" ")):
            spaced = word if place == 0 else f" {word}"
            delta = {"content": spaced} | ({"role": "assistant"} if place == 0 else {})
            yield {"delta": delta} if self._is_chat else {"text": spaced}

    def usage(self, written: int | None = None) -> dict[str, int]:
        """With so many words written, or all."""
        read = sum(len(text.split()) for text in self._read)
        if written is None:
            written = sum(len(text.split(" ")) for text in self.texts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _said(text: str, body: dict[str, Any]) -> str:
    """The text, or what is found in it of the words that the form of the answer has for its properties."""
    form = body.get("response_format") or {}
    properties = ((form.get("json_schema") or {}).get("schema") or {}).get("properties") or {}
    asked = {what: one["enum"] for what, one in properties.items() if "enum" in one}
    for choice in (body.get("structured_outputs") or {}).get("choice") or ():
        for what, word in json.loads(choice).items() if choice.startswith("{") else ():
            asked.setdefault(what, []).append(word)
    if not asked or len(asked) < len(properties):
        return text
    words = re.findall(r"[\w-]+", text.lower())
    return json.dumps({what: next((w for w in said if w in words), said[-1]) for what, said in asked.items()})


def _prompts(prompt: Any) -> list[str]:
    """The prompts of a completion as texts; numbers of tokens are told as they are."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [" ".join(map(str, prompt))]
    return [one if isinstance(one, str) else " ".join(map(str, one)) for one in prompt]


def _call(text: str, tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not text.startswith("call: "):
        return None
    name, _, arguments = text.removeprefix("call: ").partition(" ")
    if name not in [tool["function"]["name"] for tool in tools]:
        return None
    return {"id": "call_echo", "type": "function", "function": {"name": name, "arguments": arguments or "{}"}}


class InstantApps:
    """`rollout.Apps` without Ray: an application runs as soon as it is started, or as `fates` say by model.

    A fate is `running` (the default), `starting` (for ever), or the reason for which it fails.
    """

    def __init__(self, fates: dict[str, str] | None = None, *, probe_fails: str | None = None) -> None:
        self.fates, self.probe_fails = fates or {}, probe_fails
        self.running: dict[str, AppState] = {}
        self.told: list[tuple[str, str]] = []
        """(`start`, `probe` or `end`, the application), in order."""

    def states(self, *, replicas: bool = False) -> dict[str, AppState]:
        return dict(self.running)

    def start(self, unit: Unit) -> None:
        self.told.append(("start", unit.app_name))
        match self.fates.get(unit.model, "running"):
            case "running":
                self.running[unit.app_name] = AppState("running")
            case "starting":
                self.running[unit.app_name] = AppState("starting", "waits for a GPU")
            case reason:
                self.running[unit.app_name] = AppState("failed", reason)

    def probe(self, app_name: str, settings: EndpointSettings, model: str, start_seconds: float) -> None:
        self.told.append(("probe", app_name))
        if self.probe_fails:
            raise EngineFailed(self.probe_fails)

    def end(self, app_name: str) -> None:
        self.told.append(("end", app_name))
        self.running.pop(app_name, None)
