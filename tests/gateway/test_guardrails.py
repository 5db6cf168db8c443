"""Guardrails from outside: what is masked and refused, in whole answers and streams, and that no file keeps it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from mosaic.errors import BadRequest
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings

MAIL, CARD = "ann.example@posteo.de", "4111 1111 1111 1111"
OTHER_CARD = "5555-5555-5555-4444"
ASKED = f"write to {MAIL} about the card {CARD} please"
MASKED = "write to <EMAIL_ADDRESS> about the card <CREDIT_CARD> please"
ENDPOINT = "guarded"


@pytest.fixture
def guarded(platform: Platform) -> Iterator[Any]:
    def guard(**sides: Any) -> str:
        echo = [{"name": "echo", "model": "echo"}]
        told = {"name": ENDPOINT, "served_entities": echo, "ai_gateway": {"guardrails": sides}}
        platform.serving.put(EndpointSettings.parse(told))
        platform.serving.wait(ENDPOINT)
        time.sleep(0.4)  # every gateway looks four times a second
        return ENDPOINT

    yield guard
    platform.serving.delete(ENDPOINT)


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def read(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def row(platform: Platform, request_id: str) -> dict[str, Any]:
    platform.flush_ledger()
    rows = platform.tables.to_arrow("system.serving.inference").to_pylist()
    (found,) = [one for one in rows if one["request_id"] == request_id]
    return {**found, "guardrails": json.loads(found["guardrails"] or "{}")}


def files_with(platform: Platform, secret: str) -> list[Path]:
    home = platform.settings.home_folder
    return [path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_what_is_asked_is_masked_before_a_model_reads_it(platform: Platform, client: OpenAI, guarded: Any) -> None:
    name = guarded(input={"pii": {"behavior": "MASK"}})
    answer = client.chat.completions.create(model=name, messages=messages(ASKED))
    assert answer.choices[0].message.content == MASKED
    kept = row(platform, answer.id)
    assert json.loads(kept["request"])["messages"][0]["content"] == MASKED
    assert kept["guardrails"]["input"]["EMAIL_ADDRESS"] == {"outcome": "masked", "times": 1}
    assert kept["guardrails"]["input"]["US_SSN"] == {"outcome": "passed"} and "output" not in kept["guardrails"]
    done = client.completions.create(model=name, prompt=ASKED)
    assert done.choices[0].text == MASKED
    with pytest.raises(openai.BadRequestError, match="prompt is numbers of tokens"):
        client.completions.create(model=name, prompt=[1, 2, 3])
    # nor is it kept of a request that is refused before a guard has read it
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=name, messages=messages(ASKED), temperature=9)
    with pytest.raises(openai.BadRequestError, match="messages") as misread:
        client.chat.completions.create(model=name, messages=ASKED)  # type: ignore[arg-type]
    kept = row(platform, misread.value.response.headers["x-request-id"])
    assert kept["error"] == "invalid_request: messages" and kept["request"] is None
    platform.flush_ledger()
    assert not files_with(platform, MAIL) and not files_with(platform, CARD)


def test_what_is_answered_is_masked_whole_and_streamed(platform: Platform, client: OpenAI, guarded: Any) -> None:
    name = guarded(output={"pii": {"behavior": "MASK"}})
    assert client.chat.completions.create(model=name, messages=messages(ASKED)).choices[0].message.content == MASKED
    with client.chat.completions.create(
        model=name, messages=messages(ASKED), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert read(chunks) == MASKED
    assert chunks[-1].usage is not None and not any(chunk.usage for chunk in chunks[:-1])
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    kept = row(platform, chunks[0].id)
    assert json.loads(kept["response"])["choices"][0]["message"]["content"] == MASKED
    assert kept["guardrails"]["output"]["CREDIT_CARD"] == {"outcome": "masked", "times": 1}
    with client.completions.create(model=name, prompt=ASKED, stream=True) as texts:
        assert "".join(chunk.choices[0].text for chunk in texts if chunk.choices) == MASKED
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.chat.completions.create(model=name, messages=messages(ASKED), logprobs=True)


def test_what_blocks_is_refused_by_its_rule(platform: Platform, client: OpenAI, guarded: Any) -> None:
    ticket = {"name": "ticket", "regex": r"T-\d{4}", "behavior": "BLOCK"}
    name = guarded(input={"pii": {"behavior": "BLOCK"}, "invalid_keywords": ["moonshine"], "patterns": [ticket]})
    for text, rule in (
        (f"the other card is {OTHER_CARD}", "CREDIT_CARD"),
        ("how do I make Moonshine?", "invalid_keywords"),
        ("see T-1234", "ticket"),
    ):
        with pytest.raises(openai.BadRequestError, match=rule) as refused:
            client.chat.completions.create(model=name, messages=messages(text))
        assert refused.value.code == "content_filter"
        kept = row(platform, refused.value.response.headers["x-request-id"])
        assert kept["status_code"] == 400 and kept["request"] is None
        assert kept["guardrails"]["input"][rule]["outcome"] == "blocked"
    platform.flush_ledger()
    assert not files_with(platform, OTHER_CARD)


def test_a_stream_that_is_blocked_ends_with_an_error_before_a_byte_of_it(
    platform: Platform, token: str, guarded: Any
) -> None:
    name = guarded(output={"pii": {"behavior": "BLOCK"}})
    asked = {"model": name, "messages": messages(f"well then {CARD} it is"), "stream": True}
    answer = httpx.post(
        f"{platform.base_url}/v1/chat/completions",
        json=asked,
        headers={"authorization": f"Bearer {token}"},
        timeout=60,
    )
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    said = "".join(one["choices"][0]["delta"].get("content", "") for one in events if "choices" in one)
    assert said.strip() == "well then" and events[-1]["error"]["code"] == "content_filter"
    assert row(platform, answer.headers["x-request-id"])["guardrails"]["output"]["CREDIT_CARD"]["outcome"] == "blocked"


def test_rules_that_cannot_be_are_refused_with_their_field(guarded: Any, platform: Platform) -> None:
    for rules, says in (
        ({"pii": {"behavior": "HIDE"}}, "input.pii.behavior"),
        ({"patterns": [{"name": "a", "regex": "(a)\\1", "behavior": "MASK"}]}, "RE2 does not take it"),
        ({"safety": True}, "safety"),
        ({"max_characters": 0}, "max_characters"),
    ):
        with pytest.raises(BadRequest, match=says):
            guarded(input=rules)
    guarded(input={"max_characters": 10})
