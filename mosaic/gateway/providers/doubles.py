"""Public double: a small HTTP server that answers as OpenAI and Anthropic do, and fails in the ways that they do.

    python -m mosaic.gateway.providers.doubles --port 8001

It answers with the last message. Words in the model's name or in that message ask for something else:

    tokens: 64              an answer of 64 words
    slow: 20 ms             as long before each word
    cached: 5               that many of the prompt's tokens came from the cache
    call: NAME {"a": 1}     a call of the tool NAME
    fault: timeout          nothing at all
    fault: 500              that status; also 429, `429 retry-after`, 400, 401, 307, ...
    fault: cut              the connection breaks in the middle
    fault: unfinished       the answer ends in the middle, in good order
    fault: stall            silence from the middle on
    fault: malformed        what is not JSON in the middle
    fault: error event      an error in the middle, as the provider reports one
    fault: endless          it never ends
    fault: pings            signs of life without an answer, for ever

Refusals repeat the key that came with the request: what reads them must not pass it on.
"""

import argparse
import asyncio
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import orjson
from aiohttp import web

from mosaic.gateway.providers.double_answers import AnthropicShapes, Asked, OpenAIShapes

_SHAPES: dict[str, type[OpenAIShapes] | type[AnthropicShapes]] = {
    "/v1/chat/completions": OpenAIShapes,
    "/v1/completions": OpenAIShapes,
    "/v1/messages": AnthropicShapes,
}
_FOR_EVER_SECONDS = 3600.0


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class ProviderDouble:
    """`async with ProviderDouble() as double:` listens on a free port of loopback, or on the one that is given."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self.received: deque[Received] = deque(maxlen=1000)
        self.open_answers = 0
        """Requests that are being answered at this moment."""
        self._transports: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    @property
    def connections(self) -> int:
        """Open ones that a request came by."""
        return sum(not transport.is_closing() for transport in self._transports)

    @property
    def url(self) -> str:
        """The base URL of Anthropic's protocol; OpenAI's is `url` with /v1."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes([web.post(path, self._answer) for path in _SHAPES])
        app.add_routes([web.post("/v1/embeddings", self._embed)])
        app.add_routes([web.post("/v1/messages/count_tokens", self._count)])
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        body, asked = await self._read(http)
        self.open_answers += 1
        try:
            if (failed := await _failed_before(http, asked)) is not None:
                return failed
            if body.get("stream"):
                return await _stream(http, asked)
            await asyncio.sleep(asked.slow_milliseconds / 1000 * len(asked.words))
            return await _whole(http, asked, _SHAPES[http.path](asked, http.path).whole())
        finally:
            self.open_answers -= 1

    async def _embed(self, http: web.Request) -> web.StreamResponse:
        body, asked = await self._read(http)
        if (failed := await _failed_before(http, asked)) is not None:
            return failed
        size = body.get("dimensions", 4)
        data = [
            {"object": "embedding", "index": n, "embedding": [float(len(text))] * size}
            for n, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens}
        # Last first: the order is told by the index.
        return await _whole(http, asked, {"object": "list", "data": data[::-1], "model": asked.model, "usage": usage})

    async def _count(self, http: web.Request) -> web.StreamResponse:
        _, asked = await self._read(http)
        if (failed := await _failed_before(http, asked)) is not None:
            return failed
        return await _whole(http, asked, {"input_tokens": asked.prompt_tokens})

    async def _read(self, http: web.Request) -> tuple[dict[str, Any], Asked]:
        if http.transport is not None:
            self._transports.add(http.transport)
        body = orjson.loads(await http.read())
        self.received.append(Received(http.path, http.headers, body))
        return body, Asked.of(body)


async def _failed_before(http: web.Request, asked: Asked) -> web.Response | None:
    """What fails instead of an answer, if that was asked for."""
    if asked.fault == "timeout":
        await asyncio.sleep(_FOR_EVER_SECONDS)
    if not asked.fault[:3].isdigit():
        return None
    status, headers = int(asked.fault[:3]), {}
    if asked.fault.endswith("retry-after"):
        headers["retry-after"] = "7"
    if 300 <= status < 400:
        headers["location"] = "/v1/elsewhere"
    key = http.headers.get("x-api-key") or http.headers.get("authorization", "no key")
    shapes = _SHAPES.get(http.path.removesuffix("/count_tokens"), OpenAIShapes)
    return _json(shapes.error(status, f"the double was asked for {status}; it got {key}"), status, headers)


async def _whole(http: web.Request, asked: Asked, answer: dict[str, Any]) -> web.StreamResponse:
    if asked.fault == "":
        return _json(answer)
    data = orjson.dumps(answer)
    response = web.StreamResponse(headers={"content-type": "application/json"})
    if asked.fault == "cut":
        response.content_length = len(data)
    await response.prepare(http)
    await _fail(http, response, asked, data[: len(data) // 2], b"[" * 4096)
    return response


async def _stream(http: web.Request, asked: Asked) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(http)
    events = _events(asked, http.path)
    if asked.fault:
        # A third in, so that words have been said and more are to come.
        begun, error = events[: max(3, len(events) // 3)], _SHAPES[http.path](asked, http.path).error_event()
        await _write(response, begun if asked.fault != "pings" else [], asked.slow_milliseconds)
        await _fail(http, response, asked, error if asked.fault == "error event" else b"", begun[-1])
    else:
        await _write(response, events, asked.slow_milliseconds)
    return response


async def _fail(http: web.Request, response: web.StreamResponse, asked: Asked, last: bytes, more: bytes) -> None:
    """Go wrong in the middle of an answer; `last` is still said, `more` again and again where it never ends."""
    if last:
        await response.write(last)
    match asked.fault:
        case "cut" if http.transport is not None:
            await asyncio.sleep(0.01)  # for what was written to leave
            http.transport.abort()
        case "stall":
            await asyncio.sleep(_FOR_EVER_SECONDS)
        case "malformed":
            await response.write(b'data: {"choices": [\n\n')
        case "endless" | "pings":
            while True:
                await response.write(more if asked.fault == "endless" else b": still here\n\n")
                await asyncio.sleep(0.001)


async def _write(response: web.StreamResponse, events: Iterable[bytes], slow_milliseconds: int) -> None:
    if not slow_milliseconds:
        await response.write(b"".join(events))
        return
    loop = asyncio.get_running_loop()
    due = loop.time()
    for event in events:
        due += slow_milliseconds / 1000  # against the clock, so that the pauses do not add up to more
        await asyncio.sleep(due - loop.time())
        await response.write(event)


@lru_cache(maxsize=1024)
def _events(asked: Asked, path: str) -> list[bytes]:
    return _SHAPES[path](asked, path).events()


def _json(told: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(told), status=status, headers=headers, content_type="application/json")


async def _serve(port: int) -> None:
    async with ProviderDouble(port) as double:
        print(f"the double listens on {double.url}/v1", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a provider that needs no model and fails as it is told")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port))
