"""Anthropic's and Responses' answers against the chat that they are: streamed and whole are the same, in any pieces."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import BadRequest, EngineFailed, RateLimited
from mosaic.gateway.answers import FoldedChat
from mosaic.gateway.chat import for_the_engine
from mosaic.gateway.messages_answers import MessageEvents, as_message
from mosaic.gateway.messages_requests import CountRequest, MessagesRequest
from mosaic.gateway.providers.anthropic_requests import as_anthropic
from mosaic.gateway.requests import ChatRequest
from mosaic.gateway.responses_answers import ResponseEvents, as_response
from mosaic.gateway.responses_requests import ResponsesRequest

HEAD = {"id": "req_1", "model": "m", "created": 5}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
ASKED = ResponsesRequest(model="m", input="x")
pieces = st.lists(st.text(min_size=1, max_size=5), max_size=4)
inputs = st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)
calls = st.lists(st.tuples(inputs, st.integers(1, 9)), max_size=3)
finishes = st.sampled_from(["stop", "length", "content_filter", "tool_calls"])


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def chunks_of(thought: list[str], said: list[str], called: list[Any], finish_reason: str) -> Iterator[dict[str, Any]]:
    yield chunk({"role": "assistant"})
    for text in thought:
        yield chunk({"reasoning": text})
    for text in said:
        yield chunk({"content": text})
    for number, (arguments, size) in enumerate(called):
        begun = {"index": number, "id": f"c{number}", "function": {"name": f"f{number}", "arguments": ""}}
        yield chunk({"tool_calls": [begun]})
        told = json.dumps(arguments)
        for start in range(0, len(told), size):
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": told[start : start + size]}}]})
    yield chunk({}, finish_reason)
    yield {**HEAD, "choices": [], "usage": USAGE}


def read(stream: bytes) -> list[dict[str, Any]]:
    """The events, each under its own name."""
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def accumulated(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that Anthropic's events tell, by their documentation; blocks open and close one by one."""
    message, open_block = dict(events[0]["message"]), None
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    content: list[dict[str, Any]] = []
    for event in events[1:]:
        match event["type"]:
            case "content_block_start":
                assert open_block is None and event["index"] == len(content)
                open_block = event["index"]
                content.append({**event["content_block"], "pieces": ""})
            case "content_block_delta":
                assert event["index"] == open_block
                delta = event["delta"]
                content[-1]["pieces"] += delta.get("text") or delta.get("thinking") or delta.get("partial_json")
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
            case "message_delta":
                assert open_block is None
                message |= {**event["delta"], "usage": event["usage"]}
    for block in content:
        told = block.pop("pieces")
        if block["type"] == "tool_use":
            block["input"] = json.loads(told or "{}")
        else:
            block[block["type"]] = told
    return {**message, "content": content}


@given(pieces, pieces, calls, finishes)
@settings(max_examples=60, deadline=None)
def test_a_streamed_message_is_the_whole_one(
    thought: list[str], said: list[str], called: list[Any], finish_reason: str
) -> None:
    folded, events, told = FoldedChat("m", "req_1"), MessageEvents("req_1", lambda: 9, tells_thinking=True), b""
    for one in chunks_of(thought, said, called, finish_reason):
        folded.add(one)
        told += events.chunk(one)
    streamed = accumulated(read(told + events.end()))
    assert streamed == {**as_message(json.loads(folded.as_json())), "mosaic": None}
    assert streamed["usage"] == {
        "input_tokens": 7,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "output_tokens": 4,
    }


@given(pieces, pieces, calls, finishes)
@settings(max_examples=60, deadline=None)
def test_a_streamed_response_is_the_whole_one(
    thought: list[str], said: list[str], called: list[Any], finish_reason: str
) -> None:
    folded, events, told = FoldedChat("m", "req_1"), ResponseEvents("req_1", ASKED), b""
    for one in chunks_of(thought, said, called, finish_reason):
        folded.add(one)
        told += events.chunk(one)
    said_all = read(told + events.end())
    assert [one["sequence_number"] for one in said_all] == list(range(len(said_all)))
    assert [one["type"] for one in said_all[:2]] == ["response.created", "response.in_progress"]
    whole = as_response({**json.loads(folded.as_json()), "created": 5}, ASKED)
    del whole["mosaic"]
    last = said_all[-1]
    assert last["response"] == whole and last["type"] == f"response.{whole['status']}"
    assert whole["output"] == [one["item"] for one in said_all if one["type"] == "response.output_item.done"]
    deltas = "".join(one["delta"] for one in said_all if one["type"] == "response.output_text.delta")
    assert deltas == "".join(said)


def test_reasoning_is_left_out_where_it_is_not_asked_for() -> None:
    events = MessageEvents("req_1", lambda: None, tells_thinking=False)
    told = b"".join(events.chunk(one) for one in chunks_of(["hm"], ["yes"], [], "stop")) + events.end()
    assert [block["type"] for block in accumulated(read(told))["content"]] == ["text"]


def test_a_stop_sequence_is_named_and_a_forced_call_is_one() -> None:
    said = {"role": "assistant", "content": "one"}
    answer: dict[str, Any] = {**HEAD, "choices": [{"message": said, "finish_reason": "stop", "stop_reason": "two"}]}
    assert as_message(answer)["stop_reason"] == "stop_sequence" and as_message(answer)["stop_sequence"] == "two"
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
    answer["choices"] = [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "stop"}]
    assert as_message(answer)["stop_reason"] == "tool_use"
    call["function"] = {"name": "f", "arguments": '{"a": '}
    with pytest.raises(EngineFailed, match="no JSON object"):
        as_message(answer)


def test_what_fails_in_mid_stream_is_said_and_nothing_ends_well() -> None:
    events = MessageEvents("req_1", lambda: 1, tells_thinking=True)
    told = read(events.chunk(chunk({"content": "a"})) + events.error(RateLimited("no more")))
    assert told[-1] == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "no more"},
        "request_id": "req_1",
    }
    assert "message_stop" not in [one["type"] for one in told]
    responses = ResponseEvents("req_1", ASKED)
    last = read(responses.chunk(chunk({"content": "a"})) + responses.error(RateLimited("no more")))[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "rate_limit_exceeded", "message": "no more"}


def messages(*turns: tuple[str, Any], **fields: Any) -> ChatRequest:
    told = [{"role": role, "content": content} for role, content in turns]
    return MessagesRequest.model_validate({"model": "m", "max_tokens": 5, "messages": told, **fields}).as_chat()


def test_a_conversation_with_tools_is_the_same_chat_by_both_doors() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}
    ephemeral = {"type": "ephemeral"}
    chat = messages(
        ("user", "how is it?"),
        ("assistant", [{"type": "thinking", "thinking": "ask", "signature": ""}, {"type": "text", "text": "so"}, use]),
        ("user", [result, {"type": "text", "text": "and?", "cache_control": ephemeral}]),
        system=[{"type": "text", "text": "be brief", "cache_control": ephemeral}],
        tools=[{"name": "weather", "description": "d", "input_schema": schema, "strict": True}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        top_k=3,
        metadata={"user_id": "u"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    told = chat.model_dump(exclude_none=True, by_alias=True)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert told["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "content": "so", "tool_calls": [call], "reasoning": "ask"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "user", "content": "and?"},
    ]
    assert (told["tool_choice"], told["parallel_tool_calls"], told["stop"], told["top_k"]) == (
        "required",
        False,
        ["END"],
        3,
    )
    assert told["user"] == "u" and told["response_format"]["json_schema"]["schema"] == schema
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "how is it?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "ask"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}], "id": "msg_1"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"role": "user", "content": "and?"},
    ]
    tool = {"type": "function", "name": "weather", "description": "d", "parameters": schema, "strict": True}
    asked: Any = {"tools": [tool], "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 5}
    asked["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    by_items = ResponsesRequest.model_validate({"model": "m", "instructions": "be brief", "input": items, **asked})
    also = by_items.as_chat().model_dump(exclude_none=True, by_alias=True)
    assert also["messages"] == told["messages"] and also["tools"] == told["tools"]
    assert also["response_format"] == told["response_format"] and also["max_completion_tokens"] == 5
    assert also["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


TEXT = st.builds(lambda text: {"type": "text", "text": text}, st.text(min_size=1, max_size=5))


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns as Anthropic's protocol has them: whoever calls tools is told their results in the next turn, first."""
    turns: list[dict[str, Any]] = []
    owed: list[str] = []
    for place in range(draw(st.integers(0, 4)) * 2 + 1):
        content = draw(st.lists(TEXT, min_size=0 if owed else 1, max_size=2))
        if place % 2:
            owed = [f"c{place}_{number}" for number in range(draw(st.integers(0, 2)))]
            uses = [{"type": "tool_use", "id": one, "name": "f", "input": draw(inputs)} for one in owed]
            turns.append({"role": "assistant", "content": content + uses})
        else:
            told = draw(st.lists(TEXT, min_size=1, max_size=2))
            results = [{"type": "tool_result", "tool_use_id": one, "content": told} for one in owed]
            turns.append({"role": "user", "content": results + content})
            owed = []
    return turns


def merged(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Who says what; turns of one speaker in a row are one, as the protocol takes them."""
    told: list[tuple[str, Any]] = []
    for message in messages:
        if told and told[-1][0] == message["role"]:
            told[-1][1].extend(message["content"])
        else:
            told.append((message["role"], list(message["content"])))
    return told


@given(conversations(), st.lists(TEXT, max_size=2))
@settings(max_examples=100, deadline=None)
def test_what_comes_by_this_door_leaves_for_anthropic_as_it_came(
    turns: list[dict[str, Any]], system: list[dict[str, Any]]
) -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}, "description": "d"}]
    fields: dict[str, Any] = {"tools": tools, "tool_choice": {"type": "any"}, "stop_sequences": ["E"], "top_k": 4}
    fields |= {"temperature": 0.5, "top_p": 0.9}
    asked = {"model": "m", "max_tokens": 7, "system": system, "messages": turns, **fields}
    chat = MessagesRequest.model_validate(asked).as_chat()
    left = as_anthropic(for_the_engine(chat) | {"messages": dumped(chat)}, model="m", max_tokens=99, stream=False)
    assert merged(left.pop("messages")) == merged(turns)
    assert left.pop("system", []) == system
    assert left == {"model": "m", "max_tokens": 7, **fields}


def dumped(chat: ChatRequest) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in chat.messages]


def test_a_last_turn_of_the_assistant_is_gone_on_with() -> None:
    chat = messages(("user", "count"), ("assistant", "one,"))
    assert chat.continue_final_message is True and chat.add_generation_prompt is False
    assert chat.messages[-1].text == "one,"
    failed = {"type": "tool_result", "tool_use_id": "c", "content": "no such file", "is_error": True}
    assert messages(("user", [failed])).messages[0].text == "Error: no such file"


USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c"}


@pytest.mark.parametrize(
    ("turns", "fields", "param"),
    [
        ([("user", "x"), ("assistant", [USE])], {}, "messages.1.content"),
        ([("user", [{"type": "text", "text": "x"}, RESULT])], {}, "messages.0.content"),
        ([("user", "x")], {"thinking": {"type": "enabled", "budget_tokens": 4096}}, "thinking.budget_tokens"),
        ([("user", "x")], {"tool_choice": {"type": "auto"}}, "tool_choice"),
    ],
)
def test_what_no_chat_can_be_is_refused_by_its_field(turns: Any, fields: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        messages(*turns, **fields)
    assert refused.value.param == param


def test_what_needs_a_state_is_refused_by_its_name() -> None:
    for field, value in (("previous_response_id", "resp_1"), ("store", True), ("conversation", "c"), ("background", 1)):
        with pytest.raises(BadRequest, match=field) as refused:
            ResponsesRequest.model_validate({"model": "m", "input": "x", field: value})
        assert refused.value.param == field
    ResponsesRequest.model_validate({"model": "m", "input": "x", "store": False, "previous_response_id": None})


def test_what_is_counted_is_the_conversation_alone() -> None:
    asked = CountRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], "system": "s"})
    assert [message.role for message in asked.as_chat().messages] == ["system", "user"]
