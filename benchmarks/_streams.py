"""A load of streamed chats in a process of its own, light enough not to be what is measured: bytes are searched, not
parsed.

    python -m benchmarks._streams '{"url": "http://127.0.0.1:8000/v1", "model": "m", "clients": 16, ...}'

prints one line of JSON: time to first token of each request, output tokens by the server's own count, and seconds.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

_WORD = re.compile(rb'"content":\s*"[^"]')
_COUNTED = re.compile(rb'"completion_tokens":\s*(\d+)')
_TALES = ("a lighthouse", "two brothers", "the first train", "a garden", "the old harbour", "three rivers")


def load(url: str, model: str, *, token: str = "", clients: int, each: int, tokens: int, salt: int) -> dict[str, Any]:
    """Run `each` requests, one after another, by each of the clients at once; every prompt is another."""
    told = {"url": url, "model": model, "token": token, "clients": clients, "each": each, "tokens": tokens}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._streams", json.dumps({**told, "salt": salt})],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def run(asked: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    found = await asyncio.gather(*(_client(asked, number) for number in range(asked["clients"])))
    seconds = time.perf_counter() - began
    answers = [one for client in found for one in client]
    return {
        "first_token_seconds": [first for first, _ in answers],
        "output_tokens": sum(count for _, count in answers),
        "seconds": seconds,
    }


async def _client(asked: dict[str, Any], number: int) -> list[tuple[float, int]]:
    return [await _ask(asked, f"{asked['salt']}-{number}-{turn}") for turn in range(asked["each"])]


async def _ask(asked: dict[str, Any], mark: str) -> tuple[float, int]:
    place = urlsplit(asked["url"])
    tale = _TALES[sum(map(ord, mark)) % len(_TALES)]
    prompt = f"Story {mark}. Tell a long story about {tale}, in many sentences, with all that was seen and said."
    body = json.dumps(
        {
            "model": asked["model"],
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": asked["tokens"],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST {place.path}/chat/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {asked['token']}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    began, first, received = time.perf_counter(), None, b""
    writer.write(head.encode() + body)
    while piece := await reader.read(65536):
        received += piece
        if first is None and _WORD.search(received):
            first = time.perf_counter() - began
    writer.close()
    counted = _COUNTED.findall(received)
    if first is None or not counted or b"[DONE]" not in received:
        raise RuntimeError(f"no whole answer: {received[:500]!r}")
    return first, int(counted[-1])


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
