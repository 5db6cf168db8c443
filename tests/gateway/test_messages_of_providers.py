"""Anthropic's door before providers: what they answer, their faults and their waits come out in Anthropic's words."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic

from mosaic.gateway import LiveEntity, ProviderEngines
from mosaic.gateway.providers.doubles import ProviderDouble
from mosaic.protocol import Engine
from mosaic.serving.external import Access, ExternalModel
from tests.gateway.door import Door, door

KEY = "sk-double-0123456789abcdef"
HELLO: Any = [{"role": "user", "content": "hello there world"}]
TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
FAULTS = {"cut": "tokens: 9 fault: cut", "event": "tokens: 9 fault: error event", "wait": "fault: 429 retry-after"}
WATCHED: Any = {"fallback_config": {"enabled": True}}
"""As of an external model, breakers and waits are looked after."""


@contextmanager
def doubled() -> Iterator[str]:
    """The address of a provider's double, in a thread of its own."""
    told, ends = threading.Event(), threading.Event()
    urls: list[str] = []

    async def run() -> None:
        async with ProviderDouble() as double:
            urls.append(double.url)
            told.set()
            await asyncio.to_thread(ends.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert told.wait(10)
        yield urls[0]
    finally:
        ends.set()
        thread.join()


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Endpoints by provider and what it is asked to do, such as `anthropic` and `openai-cut`."""
    engines = ProviderEngines(allow_private=True)
    with doubled() as url:

        def engine(entity: LiveEntity) -> Engine:
            provider, _, fault = entity.model.partition("-")
            name = FAULTS.get(fault, "m1")
            model = ExternalModel.parse({"provider": provider, "name": name, "connection": "c"})
            return engines.engine(model, Access(url + ("" if provider == "anthropic" else "/v1"), KEY))

        with door(tmp_path_factory.mktemp("door"), engine) as made:
            for provider in ("anthropic", "openai"):
                for name in (provider, *(f"{provider}-{fault}" for fault in FAULTS)):
                    made.endpoint(name, model=name, ai_gateway=WATCHED)
            yield made
        asyncio.run(engines.close())


@pytest.fixture(scope="module")
def client(at: Door) -> Anthropic:
    return Anthropic(base_url=at.address, api_key=at.token, max_retries=0)


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_message_whole_streamed_and_with_a_tool(at: Door, client: Anthropic, provider: str) -> None:
    cached: Any = [{"role": "user", "content": "cached: 1 words"}]
    whole = client.messages.create(model=provider, max_tokens=9, messages=cached, system="s")
    with client.messages.stream(model=provider, max_tokens=9, messages=cached, system="s") as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert answer.content[0].type == "text" and answer.content[0].text == "cached: 1 words"
        usage = answer.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (3, 1, 3)
        assert at.row(answer.id)["input_tokens"] == 4  # with what came from the provider's cache
    call: Any = [{"role": "user", "content": 'call: weather {"day": "sunday"}'}]
    with client.messages.stream(model=provider, max_tokens=9, messages=call, tools=TOOLS) as stream:
        (use,) = stream.get_final_message().content
    assert use.type == "tool_use" and use.input == {"day": "sunday"}


@pytest.mark.parametrize("name", ["anthropic-cut", "openai-cut", "anthropic-event", "openai-event"])
def test_what_breaks_off_ends_with_an_error_and_without_an_end(at: Door, name: str) -> None:
    asked = {"model": name, "max_tokens": 9, "messages": HELLO, "stream": True}
    answer = httpx.post(f"{at.address}/v1/messages", json=asked, headers={"x-api-key": at.token}, timeout=30)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in events]
    assert answer.status_code == 200 and "content_block_delta" in kinds and kinds[-1] == "error"
    assert "message_stop" not in kinds and "message_delta" not in kinds and KEY not in answer.text
    assert at.row(events[-1]["request_id"])["status_code"] == 502


@pytest.mark.parametrize("name", ["anthropic-wait", "openai-wait"])
def test_a_providers_wait_is_passed_on(client: Anthropic, name: str) -> None:
    with pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(model=name, max_tokens=9, messages=HELLO)
    assert refused.value.response.headers["retry-after-ms"] == "7000"
    assert KEY not in refused.value.response.text


def test_anthropic_counts_for_its_models(client: Anthropic) -> None:
    assert client.messages.count_tokens(model="anthropic", messages=HELLO).input_tokens == 3
    with pytest.raises(anthropic.UnprocessableEntityError, match="does not count"):
        client.messages.count_tokens(model="openai", messages=HELLO)
