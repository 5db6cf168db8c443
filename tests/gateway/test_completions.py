"""Completions, several answers and calls of tools through the gateway, with the echo behind it, and their rows."""

import json
from typing import Any

import httpx
from openai import OpenAI

from mosaic.platform import Platform
from tests.gateway.test_gateway_http import post, row

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL: Any = [{"role": "user", "content": 'call: weather {"day": "sunday"}'}]


def test_a_completion_and_its_row(platform: Platform, client: OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt=["one two", "three"], n=2, user="u1")
    assert [choice.text for choice in answer.choices] == ["one two", "one two", "three", "three"]
    assert answer.object == "text_completion" and answer.model == "echo" and answer._request_id == answer.id
    kept = row(platform, answer.id)
    assert (kept["status_code"], kept["endpoint"], kept["served_entity"]) == (200, "main.serving.echo", "echo")
    assert (kept["input_tokens"], kept["output_tokens"], kept["path"]) == (3, 6, "/v1/completions")
    assert json.loads(kept["request"])["user"] == "u1"


def test_a_streamed_completion_and_its_row(platform: Platform, client: OpenAI) -> None:
    usage: Any = {"include_usage": True}
    chunks = list(client.completions.create(model="echo", prompt="one two", stream=True, stream_options=usage))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "one two"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 2
    kept = row(platform, chunks[0].id)
    assert kept["streamed"] and 0 < kept["first_token_milliseconds"] <= kept["duration_milliseconds"]
    (choice,) = json.loads(kept["response"])["choices"]
    assert choice == {"index": 0, "text": "one two", "finish_reason": "stop"}
    assert not [chunk for chunk in client.completions.create(model="echo", prompt="x", stream=True) if chunk.usage]


def test_a_completion_that_fails_in_mid_stream_is_an_error_event(platform: Platform, token: str) -> None:
    body = {"model": "echo", "prompt": "fail: now please", "stream": True}
    answer = post(platform, token, "/v1/completions", body)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert answer.status_code == 200 and "[DONE]" not in events
    assert json.loads(events[-1])["error"]["message"] == "the echo was asked to fail"
    assert row(platform, answer.headers["x-request-id"])["status_code"] == 502


def test_a_tool_is_called_answered_and_in_the_row(platform: Platform, client: OpenAI) -> None:
    whole = client.chat.completions.create(model="echo", messages=CALL, tools=TOOLS)
    (call,) = whole.choices[0].message.tool_calls or ()
    assert call.type == "function" and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"day": "sunday"} and whole.choices[0].finish_reason == "tool_calls"

    chunks = list(client.chat.completions.create(model="echo", messages=CALL, tools=TOOLS, stream=True))
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    told = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert len(pieces) > 2 and told == call.function.arguments
    (choice,) = json.loads(row(platform, chunks[0].id)["response"])["choices"]
    assert choice["message"]["tool_calls"] == [call.model_dump()] and choice["finish_reason"] == "tool_calls"

    result: Any = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "it rains"}]}
    again: Any = [*CALL, whole.choices[0].message, result]
    answer = client.chat.completions.create(model="echo", messages=again, tools=TOOLS)
    assert answer.choices[0].message.content == "it rains"


def test_invocations_tell_a_completion_by_its_prompt(platform: Platform, token: str) -> None:
    answer = post(platform, token, "/serving-endpoints/echo/invocations", {"prompt": "one two"})
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == "one two"
    assert httpx.get(f"{platform.base_url}/v1/completions").status_code == 401
