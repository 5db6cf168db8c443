"""Anthropic's door before a real engine: counts are its tokenizer's, tools are called, a client that leaves is told."""

from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from mosaic.platform import Platform

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"day": {"enum": ["sunday", "monday"]}},
    "required": ["day"],
    "additionalProperties": False,
}
TOOLS: Any = [{"name": "weather", "description": "of a day", "input_schema": SCHEMA}]
ASKED: Any = [
    {"role": "user", "content": [{"type": "text", "text": "how is"}, {"type": "text", "text": " the weather?"}]},
    {"role": "assistant", "content": "Where?"},
    {"role": "user", "content": "In Oslo, or wherever it is warm."},
]


@pytest.fixture(scope="module")
def claude(platform: Platform, token: str) -> Anthropic:
    return Anthropic(base_url=platform.base_url, api_key=token, max_retries=0, timeout=60)


def test_what_is_counted_is_what_the_engine_reads(claude: Anthropic, tiny_base: str) -> None:
    for beside in ({}, {"system": "be brief"}, {"tools": TOOLS}, {"system": "be brief", "tools": TOOLS}):
        asked: Any = {"model": tiny_base, "messages": ASKED, **beside}
        counted = claude.messages.count_tokens(**asked).input_tokens
        answer = claude.messages.create(max_tokens=4, **asked)
        with claude.messages.stream(max_tokens=4, **asked) as stream:
            streamed = stream.get_final_message()
        assert counted == answer.usage.input_tokens == streamed.usage.input_tokens, beside
        assert answer.stop_reason in ("max_tokens", "end_turn") and streamed.usage.output_tokens <= 4
    prefilled: Any = [*ASKED, {"role": "assistant", "content": "It is"}]
    counted = claude.messages.count_tokens(model=tiny_base, messages=prefilled).input_tokens
    assert counted == claude.messages.create(model=tiny_base, max_tokens=2, messages=prefilled).usage.input_tokens


def test_a_tool_that_must_be_called_is(claude: Anthropic, tiny_base: str) -> None:
    choice: Any = {"type": "tool", "name": "weather"}
    # An untrained model writes white space where JSON allows it, but not for ever as long as tokens are drawn.
    asked: Any = {"model": tiny_base, "messages": ASKED, "tools": TOOLS, "tool_choice": choice, "max_tokens": 400}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        (use,) = answer.content
        assert use.type == "tool_use" and use.name == "weather" and use.input["day"] in ("sunday", "monday")
        assert answer.stop_reason == "tool_use"


def test_a_stop_sequence_is_told(claude: Anthropic, tiny_base: str) -> None:
    said = claude.messages.create(model=tiny_base, max_tokens=40, messages=ASKED, extra_body={"temperature": 0})
    (block,) = said.content
    assert block.type == "text" and len(block.text) > 4
    end = block.text[2:4]
    again = claude.messages.create(
        model=tiny_base, max_tokens=40, messages=ASKED, stop_sequences=[end], extra_body={"temperature": 0}
    )
    assert again.stop_reason == "stop_sequence" and again.stop_sequence == end


def test_what_is_too_long_is_refused_in_anthropics_shape(claude: Anthropic, tiny_base: str) -> None:
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(model=tiny_base, max_tokens=4, messages=long)
    assert "maximum" in str(refused.value) and refused.value.response.json()["type"] == "error"
