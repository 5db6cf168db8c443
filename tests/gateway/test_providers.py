"""External models in the engine protocol: what is asked arrives as the provider's own, and the answer as OpenAI's."""

import asyncio
import copy
import itertools
import json
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.errors import BadRequest, MosaicError, Unprocessable, UnsupportedField
from mosaic.gateway.answers import FoldedChat, FoldedText
from mosaic.gateway.providers import Http
from mosaic.gateway.providers.anthropic_answers import Chunks, as_usage, whole
from mosaic.gateway.providers.anthropic_requests import as_anthropic
from mosaic.gateway.providers.double_answers import AnthropicShapes, Asked, OpenAIShapes
from mosaic.gateway.providers.doubles import ProviderDouble
from mosaic.gateway.providers.events import Events, EventTooLarge
from mosaic.gateway.providers.openai_compatible import Chunks as OpenAIChunks
from mosaic.gateway.providers.openai_compatible import whole as openai_whole
from mosaic.gateway.providers.upstream import Upstream
from mosaic.gateway.requests import ChatRequest
from mosaic.protocol import EngineRequest
from mosaic.serving.external import Access, ExternalModel
from tests.gateway.provider_calls import KEY, PROVIDERS, Asking, answered, chat, failed, with_double

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_chat_whole_and_streamed(provider: str) -> None:
    async def scenario(asking: Asking) -> tuple[Any, Any, Any]:
        engine = asking.engine(provider)
        (whole,) = await answered(engine, chat("cached: 1 is it Saturday"))
        chunks = await answered(engine, chat("cached: 1 is it Saturday", stream=True))
        return whole, chunks, asking.double.received

    whole, chunks, received = with_double(scenario)
    assert whole["object"] == "chat.completion" and whole["choices"][0]["finish_reason"] == "stop"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "cached: 1 is it Saturday"}
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 5 + 5}
    assert {name: whole["usage"][name] for name in usage} == usage
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all("usage" not in chunk and chunk["object"] == "chat.completion.chunk" for chunk in chunks[:-1])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "cached:"}, "who speaks, with a word"
    assert folded(chunks) == whole["choices"][0]["message"]
    header = "authorization" if provider == "openai" else "x-api-key"
    assert all(KEY in one.headers[header] and one.body["model"] == "m1" for one in received)
    if provider == "openai":
        assert received[1].body["stream_options"] == {"include_usage": True}
        assert received[0].body == {
            "messages": [{"role": "user", "content": "cached: 1 is it Saturday"}],
            "model": "m1",
        }


def folded(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the gateway's row keeps of a stream."""
    kept = FoldedChat("m1", "req_1")
    for chunk in chunks:
        kept.add(chunk)
    message: dict[str, Any] = json.loads(kept.as_json())["choices"][0]["message"]
    return message


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("arguments", ['{"a":1,"b":[2,3]}', "{}"])
def test_a_call_of_a_tool_whole_and_streamed(provider: str, arguments: str) -> None:
    async def scenario(asking: Asking) -> tuple[Any, Any]:
        engine, asked = asking.engine(provider), f"call: add {arguments}"
        (whole,) = await answered(engine, chat(asked, tools=TOOLS))
        return whole, await answered(engine, chat(asked, tools=TOOLS, stream=True))

    whole, chunks = with_double(scenario)
    message = whole["choices"][0]["message"]
    assert message["content"] is None and whole["choices"][0]["finish_reason"] == "tool_calls"
    function = {"name": "add", "arguments": arguments}
    assert message["tool_calls"] == [{"id": "call_double", "type": "function", "function": function}]
    assert folded(chunks) == message


def test_a_completion_and_embeddings_by_openais_protocol() -> None:
    def ask(task: Any, stream: bool = False, **body: Any) -> EngineRequest:
        return EngineRequest(request_id="req_1", task=task, body=body, stream=stream)

    async def scenario(asking: Asking) -> tuple[Any, Any, Any]:
        engine = asking.engine("custom")
        (whole,) = await answered(engine, ask("complete", prompt="one two"))
        chunks = await answered(engine, ask("complete", stream=True, prompt="one two"))
        (vectors,) = await answered(engine, ask("embed", input=["a", "bcd"], dimensions=2))
        return whole, chunks, vectors

    whole, chunks, vectors = with_double(scenario)
    assert whole["choices"][0]["text"] == "one two" and whole["usage"]["completion_tokens"] == 2
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "one two"
    assert chunks[-1]["usage"] == whole["usage"]
    assert vectors == {"embeddings": [[1.0, 1.0], [3.0, 3.0]], "prompt_tokens": 2}


@pytest.mark.parametrize(
    ("provider", "task"),
    [("openai", "score"), ("openai", "predict"), ("anthropic", "embed"), ("anthropic", "complete")],
)
def test_a_task_that_is_not_the_providers(provider: str, task: Any) -> None:
    async def scenario(asking: Asking) -> MosaicError:
        return (await failed(asking.engine(provider), EngineRequest(request_id="r", task=task, body={})))[1]

    assert type(with_double(scenario)) is Unprocessable


def test_tokens_are_counted_by_a_provider_that_can() -> None:
    async def scenario(asking: Asking) -> None:
        body = {"messages": [{"role": "user", "content": "one two three"}]}
        count = EngineRequest(request_id="req_1", task="count", body=body)
        assert await answered(asking.engine("anthropic"), count) == [{"prompt_tokens": 3}]
        received = asking.double.received[-1]
        assert received.path == "/v1/messages/count_tokens" and received.body.keys() == {"model", "messages"}
        _, refused = await failed(asking.engine("anthropic", name="m1 fault: 400"), count)
        assert refused.status == 400
        _, other = await failed(asking.engine("openai"), count)
        assert isinstance(other, Unprocessable) and "does not count" in other.message

    with_double(scenario)


def test_connections_are_used_again() -> None:
    async def scenario(asking: Asking) -> int:
        engine = asking.engine()
        for _ in range(5):
            await answered(engine, chat("hello there", stream=True))
            await answered(engine, chat("hello there"))
        return asking.double.connections

    assert with_double(scenario) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_words_come_as_they_are_made(provider: str) -> None:
    async def scenario(asking: Asking) -> tuple[int, int]:
        answers = asking.engine(provider).answer(chat("tokens: 5 slow: 100 ms", stream=True))
        await anext(answers)
        open_then = asking.double.open_answers
        return open_then, len([chunk async for chunk in answers])

    assert with_double(scenario) == (1, 6), "four words more, how it ended, and the usage"


def test_the_double_satisfies_the_official_clients() -> None:
    async def scenario() -> None:
        async with ProviderDouble() as double:
            asked: Any = [{"role": "user", "content": "is it Saturday"}]
            ours = openai.AsyncOpenAI(base_url=f"{double.url}/v1", api_key="k", max_retries=0)
            answer = await ours.chat.completions.create(model="m", messages=asked)
            assert answer.choices[0].message.content == "is it Saturday"
            theirs = anthropic.AsyncAnthropic(base_url=double.url, api_key="k", max_retries=0)
            async with theirs.messages.stream(model="m", messages=asked, max_tokens=9) as stream:
                assert (await stream.get_final_message()).usage.output_tokens == 3
            await ours.close()
            await theirs.close()

    asyncio.run(scenario())


def test_an_engine_is_kept_while_its_access_is_the_same() -> None:
    async def scenario(asking: Asking) -> None:
        first = asking.engine()
        assert asking.engine() is first and asking.engine(max_tokens=1) is not first
        asking.engines.keep(set())
        assert asking.engine() is not first

    with_double(scenario)
    with pytest.raises(BadRequest, match="unknown field 'nam'"):
        ExternalModel.parse({"nam": "m", "provider": "openai", "name": "m", "connection": "c"})


@given(st.data(), st.sampled_from(["\n", "\r\n"]))
def test_events_are_the_same_however_they_are_cut(data: st.DataObject, end: str) -> None:
    texts = data.draw(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1).map(str.strip), max_size=5
        )
    )
    written = "".join(f": a comment{end}{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    events = Events()
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    found = [event for piece in pieces for event in events.feed(piece)]
    assert [one.decode() for one in found] == [one.encode().strip().decode() for one in texts]


def test_an_event_that_does_not_end_is_too_large() -> None:
    events = Events()
    with pytest.raises(EventTooLarge):
        for _ in range(100):
            events.feed(b"x" * 100_000)


def test_a_conversation_with_tools_becomes_anthropics() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Add."}, {"type": "text", "text": ""}]},
        {"role": "user", "content": "1+2, 3+4"},
        {"role": "assistant", "content": "", "tool_calls": [call("c1", '{"a":1}'), call("c2", "")]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": ""},
    ]
    body = {
        "messages": messages,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stop": "END",
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_k": 0,
        "n": 1,
        "seed": None,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    }
    asked = as_anthropic(body, model="m", max_tokens=100, stream=True)
    assert asked == {
        "model": "m",
        "max_tokens": 7,
        "stream": True,
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Add."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1+2, 3+4"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                    {"type": "tool_use", "id": "c2", "name": "add", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3"}]},
                    {"type": "tool_result", "tool_use_id": "c2", "content": []},
                ],
            },
        ],
        "tools": [{"name": "add", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    }


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "add", "arguments": arguments}}


WORDS = st.text("ab", max_size=2)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS}),
        st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.just([call("c", '{"a":1}')])}),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("c"), "content": WORDS}),
    ),
    max_size=8,
)


@given(MESSAGES)
def test_a_conversation_keeps_all_that_was_said_in_order(messages: list[dict[str, Any]]) -> None:
    told = [*messages, *HELLO]
    turns = as_anthropic({"messages": told}, model="m", max_tokens=1, stream=False)["messages"]
    said = []
    for block in [block for turn in turns for block in turn["content"]]:
        inner = block["content"] if block["type"] == "tool_result" else [block]
        said += [block["type"]] * (block["type"] != "text") + [one["text"] for one in inner if one["type"] == "text"]
    expected = []
    for message in told:
        kind = {"tool": ["tool_result"]}.get(message["role"], ["tool_use"] * ("tool_calls" in message))
        texts = [message["content"]] if message.get("content") else []
        expected += kind + texts if message["role"] == "tool" else texts + kind
    assert said == expected
    for earlier, later in itertools.pairwise(turns):
        both = [any(block["type"] == "tool_result" for block in turn["content"]) for turn in (earlier, later)]
        assert both != [True, True], "results of one turn are told in one"


def test_the_last_message_goes_on_only_when_that_is_asked() -> None:
    begun: Any = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, "}]
    told = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}
    assert as_anthropic(told, model="m", max_tokens=1, stream=False)["messages"][1]["role"] == "assistant"
    for body, param in (
        ({"messages": begun}, "messages.1.role"),
        ({**told, "messages": HELLO}, "continue_final_message"),
    ):
        with pytest.raises(BadRequest, match="continue_final_message") as error:
            as_anthropic(body, model="m", max_tokens=1, stream=False)
        assert error.value.param == param


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"seed": 1}, "seed"),
    ({"logprobs": True}, "logprobs"),
    ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"temperature": 1.5}, "temperature"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"messages": [{**HELLO[0], "name": "me"}]}, "messages.0.name"),
    ({"messages": [*HELLO, {"role": "system", "content": "x"}, *HELLO]}, "messages.1.role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "x", "reasoning": "y"}, *HELLO]}, "messages.1.reasoning"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_anthropic_cannot_be_told_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedField) as error:
        as_anthropic({"messages": HELLO, **fields}, model="m", max_tokens=1, stream=False)
    assert error.value.param == param


def test_arguments_that_are_no_object_are_named() -> None:
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call("c", "[1]")]}, *HELLO]
    with pytest.raises(BadRequest) as error:
        as_anthropic({"messages": messages}, model="m", max_tokens=1, stream=False)
    assert error.value.param == "messages.1.tool_calls"


NOT_FOR_ENGINES = {"model", "messages", "stream", "stream_options", "user", "metadata"}
TRANSLATED = {
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0.3,
    "top_p": 0.9,
    "top_k": 3,
    "stop": ["x"],
    "tools": TOOLS,
    "tool_choice": "auto",
    "response_format": {"type": "text"},
}


@given(st.sets(st.sampled_from(sorted(set(ChatRequest.model_fields) - NOT_FOR_ENGINES))))
def test_every_field_that_a_chat_may_have_is_translated_or_named(fields: set[str]) -> None:
    """No field is dropped: those with a value that means something are said, or the request is refused by name."""
    body = {field: TRANSLATED.get(field, "anything") for field in fields}
    refused = fields - TRANSLATED.keys()
    if "parallel_tool_calls" in refused:
        refused.discard("parallel_tool_calls")  # true or false, both of which Anthropic has
        body["parallel_tool_calls"] = False
    try:
        asked = as_anthropic({"messages": HELLO, **body}, model="m", max_tokens=1, stream=False)
    except BadRequest as error:
        assert error.param in refused
        return
    assert not refused
    assert ("stop_sequences" in asked) == ("stop" in fields) and ("tools" in asked) == ("tools" in fields)
    assert asked["max_tokens"] == (5 if {"max_tokens", "max_completion_tokens"} & fields else 1)


@given(*[st.none() | st.integers(0, 10**9)] * 4)
def test_prompt_tokens_include_the_cached(fresh: Any, read: Any, written: Any, output: Any) -> None:
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    usage = as_usage(dict(zip(names, (fresh, read, written, output), strict=True)))
    assert usage["prompt_tokens"] == (fresh or 0) + (read or 0) + (written or 0)
    assert usage["total_tokens"] == usage["prompt_tokens"] + (output or 0)
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value something stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, one in inner for place in places(one, (*at, key))]


ASKED = ["two words", 'call: add {"a": 1}']
WRONG: Any = st.sampled_from([None, True, -1, 7, 0.5, "", "x", [], [None], ["x"], {}, {"type": "x"}, {"index": {}}])


def spoil(value: Any, data: st.DataObject) -> None:
    """Put something else in one place or two."""
    for _ in range(data.draw(st.integers(1, 2))):
        inner = value
        within = [place for place in places(value) if len(place) > isinstance(value, list)]
        *outer, last = data.draw(st.sampled_from(within))
        for key in outer:
            inner = inner[key]
        inner[last] = copy.deepcopy(data.draw(WRONG))  # a list of it may be where the next thing goes wrong


@pytest.mark.parametrize("provider", ["openai", "openai text", "anthropic"])
@given(data=st.data())
def test_whatever_a_provider_sends_is_a_chunk_or_one_of_our_errors(provider: str, data: st.DataObject) -> None:
    """A stream with something wrong anywhere in it; what passes is such that the gateway can fold it."""
    asked = Asked.of({"model": "m1", "messages": [{"role": "user", "content": data.draw(st.sampled_from(ASKED))}]})
    upstream = Upstream(ExternalModel(provider="custom", name="m1", connection="c1"), Access("http://a.b"), Http(), {})
    path = "/v1/completions" if provider == "openai text" else "/v1/chat/completions"
    shapes = AnthropicShapes(asked, path) if provider == "anthropic" else OpenAIShapes(asked, path)
    kept: Any = FoldedText("m1", "req_1") if provider == "openai text" else FoldedChat("m1", "req_1")
    chunks: Any = OpenAIChunks(upstream, is_chat=provider == "openai") if provider != "anthropic" else Chunks(upstream)
    events = [json.loads(event) for event in Events().feed(b"".join(shapes.events())) if event != b"[DONE]"]
    spoil(events, data)
    try:
        for event in events:
            if (chunk := chunks.add(json.dumps(event).encode())) is not None:
                kept.add(chunk)
        if (chunk := chunks.end()) is not None:
            kept.add(chunk)
    except MosaicError as error:
        assert error.status in (400, 429, 502, 504)
    kept.as_json()


@pytest.mark.parametrize("provider", PROVIDERS)
@given(data=st.data())
def test_whatever_comes_whole_is_an_answer_or_one_of_our_errors(provider: str, data: st.DataObject) -> None:
    asked = Asked.of({"model": "m1", "messages": [{"role": "user", "content": data.draw(st.sampled_from(ASKED))}]})
    upstream = Upstream(ExternalModel(provider="custom", name="m1", connection="c1"), Access("http://a.b"), Http(), {})
    shapes = (AnthropicShapes if provider == "anthropic" else OpenAIShapes)(asked, "/v1/chat/completions")
    answer = shapes.whole()
    spoil(answer, data)
    try:
        if provider == "anthropic":
            assert whole(upstream, answer)["usage"]["prompt_tokens"] >= 0
        else:
            assert openai_whole(upstream, answer, is_chat=True)["choices"]
    except MosaicError as error:
        assert error.status in (400, 429, 502, 504)
