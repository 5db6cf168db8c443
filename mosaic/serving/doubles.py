"""Public doubles: engines without a model, for speed and for users' own tests."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from mosaic.errors import EngineFailed
from mosaic.protocol import EngineRequest
from mosaic.serving.endpoint import EndpointSettings, Unit
from mosaic.serving.rollout import AppState


class EchoEngine:
    """Answers with the last message, a word a chunk, in the engine protocol's shape.

    `delay_seconds` is waited before each word, a tenth of a second more for a message that begins with `slow:`; one
    that begins with `fail:` raises EngineFailed after the first word.
    """

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self._delay_seconds = delay_seconds
        print("the echo is ready", flush=True)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        text = request.body["messages"][-1]["content"]
        words = text.split(" ")
        usage = {
            "prompt_tokens": sum(len(message["content"].split()) for message in request.body["messages"]),
            "completion_tokens": len(words),
        }
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        head = {"id": request.request_id, "created": int(time.time()), "model": "echo"}
        if not request.stream:
            await self._wait(text, len(words))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            yield {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return
        head["object"] = "chat.completion.chunk"
        for place, word in enumerate(words):
            await self._wait(text, place)
            delta = {"content": word if place == 0 else f" {word}"}
            if place == 0:
                delta["role"] = "assistant"
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {**head, "choices": [], "usage": usage}

    async def _wait(self, text: str, place: int) -> None:
        if text.startswith("fail:") and place > 0:
            raise EngineFailed("the echo was asked to fail")
        delay_seconds = self._delay_seconds + (0.1 if text.startswith("slow:") else 0)
        if delay_seconds:
            await asyncio.sleep(delay_seconds)


class InstantApps:
    """`rollout.Apps` without Ray: an application runs as soon as it is started, or as `fates` say by model.

    A fate is `running` (the default), `starting` (for ever), or the reason for which it fails.
    """

    def __init__(self, fates: dict[str, str] | None = None, *, probe_fails: str | None = None) -> None:
        self.fates, self.probe_fails = fates or {}, probe_fails
        self.running: dict[str, AppState] = {}
        self.told: list[tuple[str, str]] = []
        """(`start`, `probe` or `end`, the application), in order."""

    def states(self) -> dict[str, AppState]:
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

    def probe(self, app_name: str, settings: EndpointSettings, model: str) -> None:
        self.told.append(("probe", app_name))
        if self.probe_fails:
            raise EngineFailed(self.probe_fails)

    def end(self, app_name: str) -> None:
        self.told.append(("end", app_name))
        self.running.pop(app_name, None)
