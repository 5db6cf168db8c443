"""What a vLLM endpoint can be asked, by the official client: tools, forms, choices, log probabilities, completions."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.models.doubles import byte_tokenizer
from mosaic.platform import Platform
from mosaic.protocol import EngineRequest
from mosaic.serving import flags
from mosaic.serving.settings import EngineSettings
from tests.gateway.test_gateway_http import row, rows

pytestmark = pytest.mark.slow
HELLO: Any = [{"role": "user", "content": "hello"}]
DAYS = {"type": "object", "properties": {"day": {"enum": ["sat", "sun"]}}, "required": ["day"]}
DAYS |= {"additionalProperties": False}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": DAYS}}]
WEATHER: Any = {"type": "function", "function": {"name": "weather"}}
# A model without training never stops to write white space where JSON allows it.
NO_SPACE = {str(byte_tokenizer().convert_tokens_to_ids(sign)): -100 for sign in ("Ġ", "Ċ", "ĉ", "č")}


def ask(client: OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="tiny-base", **{"messages": HELLO, "temperature": 0, **more})


def json_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "day", "schema": schema}}


def test_a_tool_is_called_whole_and_in_a_stream_alike(platform: Platform, tiny_base: str, client: OpenAI) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": WEATHER, "max_tokens": 120, "logit_bias": NO_SPACE}
    whole = ask(client, **asked)
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["day"] in ("sat", "sun")

    chunks = list(ask(client, **asked, stream=True))
    deltas = [delta for chunk in chunks if chunk.choices for delta in chunk.choices[0].delta.tool_calls or ()]
    streamed = "".join(delta.function.arguments or "" for delta in deltas)
    assert json.loads(streamed) == json.loads(call.function.arguments)
    kept = json.loads(row(platform, chunks[0].id)["response"])["choices"][0]["message"]
    function = {"name": "weather", "arguments": streamed}
    assert [one["function"] for one in kept["tool_calls"]] == [function] and not kept["content"]

    back = [*HELLO, whole.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert ask(client, messages=back, tools=TOOLS, tool_choice="none", max_tokens=4).choices[0].message.content


def test_a_call_that_the_model_writes_by_itself_is_parsed(tiny_base: str, client: OpenAI) -> None:
    written = r'<tool_call>\n\{"name": "weather", "arguments": \{"day": "(sat|sun)"\}\}\n</tool_call>'
    answer = ask(client, tools=TOOLS, max_tokens=200, extra_body={"structured_outputs": {"regex": written}})
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather" and answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def test_answers_follow_a_schema_an_expression_and_a_choice(tiny_base: str, client: OpenAI) -> None:
    asked: dict[str, Any] = {"max_tokens": 60, "logit_bias": NO_SPACE}
    told = ask(client, response_format=json_schema(DAYS), **asked).choices[0].message.content
    assert json.loads(told)["day"] in ("sat", "sun")
    assert isinstance(
        json.loads(ask(client, response_format={"type": "json_object"}, **asked).choices[0].message.content), dict
    )
    for structured, allowed in (
        ({"choice": ["yes", "no"]}, ("yes", "no")),
        ({"regex": "a{3}|b{2}"}, ("aaa", "bb")),
        ({"json": {"enum": ["p", "q"]}}, ('"p"', '"q"')),
    ):
        assert ask(client, extra_body={"structured_outputs": structured}).choices[0].message.content in allowed


def test_how_tokens_are_drawn(tiny_base: str, client: OpenAI) -> None:
    letter = "F"
    only = {str(byte_tokenizer().convert_tokens_to_ids(letter)): 100}
    assert ask(client, logit_bias=only, max_tokens=3).choices[0].message.content == letter * 3
    drawn = ask(client, n=3, temperature=1, seed=1, max_tokens=8)
    assert [choice.index for choice in drawn.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in drawn.choices}) > 1
    first = ask(client, logprobs=True, top_logprobs=2, max_tokens=2).choices[0].logprobs.content
    assert len(first) == 2 and all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in first)
    greedy = ask(client, max_tokens=6).choices[0].message.content
    for more in ({"top_k": 1}, {"min_p": 1.0}):
        assert ask(client, temperature=1, max_tokens=6, extra_body=more).choices[0].message.content == greedy
    long = ask(client, max_tokens=40, extra_body={"ignore_eos": True, "min_tokens": 40})
    assert (long.usage.completion_tokens, long.choices[0].finish_reason) == (40, "length")
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert ask(client, messages=parts, max_tokens=6).choices[0].message.content == greedy
    start = [*HELLO, {"role": "assistant", "content": "F"}]
    more = {"continue_final_message": True, "add_generation_prompt": False}
    assert ask(client, messages=start, max_tokens=1, extra_body=more).usage.prompt_tokens > 0


def test_completions_whole_and_in_a_stream(platform: Platform, tiny_base: str, client: OpenAI) -> None:
    def complete(**more: Any) -> Any:
        return client.completions.create(model=tiny_base, **{"temperature": 0, "max_tokens": 5, **more})

    whole = complete(prompt=["abc", "d"], n=1)
    texts = [choice.text for choice in whole.choices]
    assert len(texts) == 2 and whole.usage.completion_tokens == 10
    kept = row(platform, whole.id)
    assert (kept["served_entity"], kept["output_tokens"], kept["path"]) == ("base", 10, "/v1/completions")
    chunks = list(complete(prompt=["abc", "d"], stream=True, stream_options={"include_usage": True}))
    streamed = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts and chunks[-1].usage.completion_tokens == 10
    kept = row(platform, chunks[0].id)
    assert [choice["text"] for choice in json.loads(kept["response"])["choices"]] == texts
    assert kept["streamed"] and 0 < kept["first_token_milliseconds"] <= kept["duration_milliseconds"]
    echoed = complete(prompt="abc", echo=True, logprobs=1).choices[0]
    assert echoed.text == "abc" + texts[0] and len(echoed.logprobs.tokens) == 8
    assert complete(prompt=byte_tokenizer().encode("abc")).choices[0].text == texts[0]
    stopped = complete(prompt="abc", stop=[texts[0][:1]])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded", "1024 tokens"),
    ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded", "5000"),
    ({"max_tokens": 1020}, "messages", "context_length_exceeded", "1020 output tokens"),
    ({"response_format": json_schema({"type": "bogus"})}, "response_format", "invalid_request", "bogus"),
    ({"response_format": json_schema({"properties": 5})}, "response_format", "invalid_request", "properties"),
    (
        {"response_format": json_schema({"type": "object", "patternProperties": {"[": {}}})},
        "response_format",
        "invalid_request",
        "cannot follow",
    ),
    ({"extra_body": {"structured_outputs": {"regex": "[a"}}}, "structured_outputs", "invalid_request", "unclosed"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_request", "out-of-vocab"),
    ({"n": 2}, "n", "invalid_request", "greedy"),
    ({"extra_body": {"min_tokens": 9}, "max_tokens": 2}, "min_tokens", "invalid_request", "less than"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "bogus"}}}],
            "tool_choice": "required",
        },
        "tools",
        "invalid_request",
        "",
    ),
]
"""What is asked beside a greeting, and of its refusal field, code and words."""


def test_what_the_engine_refuses_is_a_400_that_names_the_field(
    platform: Platform, tiny_base: str, client: OpenAI
) -> None:
    refused = []
    for more, param, code, says in REFUSED:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as told:
                ask(client, stream=stream, **{"max_tokens": 5, **more})
            found = told.value
            assert (found.param, found.code) == (param, code) and says in found.message, (more, stream, found.message)
            refused.append(found.response.headers["x-request-id"])
    platform.flush_ledger()
    kept = {one["request_id"]: one for one in rows(platform)}
    assert {kept[one]["status_code"] for one in refused} == {400}
    assert {kept[one]["endpoint"] for one in refused} == {"main.serving.tiny-base"}


def test_refusals_of_vllm_in_our_words() -> None:
    from mosaic.serving.vllm_requests import as_error

    def refused(reason: str, code: int = 400, param: str | None = None, **body: Any) -> Any:
        return as_error(reason, code, param, EngineRequest(request_id="r", task="chat", body=body))

    told = refused('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', tools=[1])
    assert isinstance(told, BadRequest) and told.param == "tools"
    (setting,) = re.findall(r"engine: \{(.*?)\}", told.message)  # what it says to set is a field that there is
    field, parser = setting.split(": ")
    flags.check(EngineSettings.model_validate({field: parser}), at="engine")
    told = refused("Internal server error", 500, response_format={})
    assert isinstance(told, BadRequest) and told.param == "response_format"
    assert isinstance(refused("Internal server error", 500), EngineFailed)
    told = refused("This model does not support the 'generate' task. The chat ... is not available.")
    assert isinstance(told, Unprocessable) and told.param == "model"


class Scripted:
    """vLLM's end of a chat that is streamed, as it was seen to answer."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = [f"data: {json.dumps(event)}\n\n" for event in events]

    async def chat(self, request: Any, raw: Any) -> AsyncIterator[str]:
        for event in [*self._events, "data: [DONE]\n\n"]:
            yield event


def test_a_stream_begins_with_its_first_token() -> None:
    """vLLM says who speaks before it knows whether anything will be said."""
    from mosaic.serving.vllm_requests import ask

    def chunk(**delta: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    async def seen(*events: dict[str, Any]) -> list[Any]:
        body = {"messages": HELLO, "response_format": {"type": "json_object"}}
        request = EngineRequest(request_id="r", task="chat", body=body, stream=True)
        found: list[Any] = []
        try:
            async for item in ask(Scripted(*events), request, "m"):  # type: ignore[arg-type]
                found.append(item)
        except MosaicError as error:
            found.append((error.status, error.param))
        return found

    who, word, more = chunk(role="assistant", content=""), chunk(content="hi"), chunk(content=" you")
    opened = chunk(role="assistant", content="hi")
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    broken = {"error": {"message": "Internal server error", "code": 500, "param": None}}
    assert asyncio.run(seen(who, word, more, end)) == [opened, more, end]
    empty = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]}
    assert asyncio.run(seen(who, end)) == [empty]
    assert asyncio.run(seen(who, broken)) == [(400, "response_format")]
    assert asyncio.run(seen(who, word, broken)) == [opened, (502, None)]
    spent = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}}
    assert asyncio.run(seen(who, word, end, spent)) == [opened, end, spent]
    assert asyncio.run(seen(who, spent)) == [(400, "response_format")]
    assert asyncio.run(seen(who)) == [(400, "response_format")]
    assert asyncio.run(seen(who, word)) == [opened, (502, None)]

    def second(of: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{**choice, "index": 1} for choice in of["choices"]]}

    assert asyncio.run(seen(who, second(who), second(word), word, end)) == [second(opened), opened, end]
