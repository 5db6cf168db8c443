"""What may be asked, and what a stream folds to."""

import json
from typing import Any

import pytest

from mosaic.errors import BadRequest, UnsupportedField
from mosaic.gateway.answers import FoldedChat, FoldedText
from mosaic.gateway.chat import for_the_engine
from mosaic.gateway.requests import ChatRequest, CompletionRequest
from mosaic.gateway.routes import parse
from mosaic.gateway.schemas import check_regex

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"n": 1}'}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": None}}}


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"logit_boas": {}}, "logit_boas", "unknown field 'logit_boas'"),
        ({"guided_choice": ["a"]}, "guided_choice", "unknown field"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0", "content is required"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0", "tool_calls is only"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "tool_call_id is required"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0", "content is required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content",
            "does not match any of the expected tags",
        ),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "give one"),
        ({"max_tokens": 2**40}, "max_tokens", "less than"),
        ({"n": 10**9}, "n", "less than or equal to 128"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7", "less than or equal to 100"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream = true"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"tools": []}, "tools", "at least 1"),
        ({"tools": [TOOL, TOOL]}, "tools", "same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "'none', 'auto' or 'required'"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            "tool_choice",
            "the tools are ['weather']",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": SCHEMA, "structured_outputs": {"regex": "a"}}, "structured_outputs", "exclude each other"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar", "unknown field"),
        ({"continue_final_message": True}, "add_generation_prompt", "= false"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(more: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(ChatRequest, {"model": "m", "messages": HELLO, **more})
    assert refused.value.param == param and says in refused.value.message, refused.value.message


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "minItems": 10**9}, "minItems = 1000000000"),
        ({"anyOf": [{"items": {"maxLength": -1}}]}, "maxLength = -1"),
        ({"properties": {"a": {"minItems": 1.5}}}, "minItems = 1.5"),
        ({"$defs": {"a": {"$ref": "http://elsewhere/schema"}}}, "must point into the schema itself"),
        ({"pattern": "^(a{3}){5000}$"}, "{5000} repeats more than 1000 times"),
        ({"pattern": "a{2,99999999999999}"}, "repeats more than"),
        ({"pattern": "((a{1000}){1000}){1000}"}, "1,000,000,000 signs with their repetitions written out"),
        ({"pattern": "[(](?:ab|c{2,}){1,1000}+{9}"}, "at most 10,000 together"),
        ({"pattern": "[a]({,1000}){1000}x{,1000}{1000}"}, "1,000,001 signs"),
        ({"properties": {f"p{n}": {"pattern": f"[a-z]{{1000}}{n}"} for n in range(2000)}}, "at most 10,000 together"),
        ({"patternProperties": {f"a{{600}}{n}": {"pattern": f"b{{600}}{n}"} for n in range(9)}}, "10,8"),
        (
            {"properties": {f"p{n}": {"minItems": 90_000, "minLength": 90_000} for n in range(20)}},
            "minItems, maxItems and the like add up to 1,800,000; at most 1,000,000 together",
        ),
        ({"patternProperties": {"a" * 5000: {}}}, "5000 characters"),
        ({"items": {"not": {"type": "string"}}}, "'not' is no keyword"),
    ],
)
def test_schemas_that_an_engine_could_not_take(schema: dict[str, Any], says: str) -> None:
    told = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    for field, more in (("response_format", told), ("structured_outputs", {"structured_outputs": {"json": schema}})):
        with pytest.raises(BadRequest) as refused:
            parse(ChatRequest, {"model": "m", "messages": HELLO, **more})
        assert refused.value.param == field and says in refused.value.message, refused.value.message


@pytest.mark.parametrize(
    ("regex", "size"),
    [
        ("^[a-z0-9._%+-]{1,64}@[a-z]{1,255}$", 322),
        (r"\\(\\{5000}"[:3] + r"[{5000}(]\]", 3),
        ("(a(b{10}|c){10}d){10}", 1220),
        ("a{2}?b+c*(d", 5),
        ("a)b{3}", 5),
        ("", 0),
    ],
)
def test_how_large_an_expression_is_with_its_repetitions_written_out(regex: str, size: int) -> None:
    assert check_regex(regex, "structured_outputs") == size


def test_the_expressions_of_all_tools_count_together() -> None:
    def tools(count: int) -> list[dict[str, Any]]:
        parameters = {"properties": {"x": {"pattern": "[a-z]{1000}"}}}
        return [{"type": "function", "function": {"name": f"f{n}", "parameters": parameters}} for n in range(count)]

    parse(ChatRequest, {"model": "m", "messages": HELLO, "tools": tools(10)})
    with pytest.raises(BadRequest, match="11,000 signs") as refused:
        parse(ChatRequest, {"model": "m", "messages": HELLO, "tools": tools(11)})
    assert refused.value.param == "tools"


def test_names_and_data_in_a_schema_are_no_keywords() -> None:
    schema = {"properties": {"not": {"enum": [{"minItems": -1}]}, "minItems": {"type": "integer"}}, "required": ["not"]}
    told = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    parse(ChatRequest, {"model": "m", "messages": HELLO, **told})
    function = {"name": "f", "parameters": {"not": {"maxLength": 10**12}}}
    with pytest.raises(BadRequest) as refused:
        parse(ChatRequest, {"model": "m", "messages": HELLO, "tools": [{"type": "function", "function": function}]})
    assert refused.value.param == "tools" and "maxLength" in refused.value.message


def test_an_unknown_field_has_a_code_of_its_own() -> None:
    with pytest.raises(UnsupportedField):
        parse(ChatRequest, {"model": "m", "messages": HELLO, "best_of": 2})


@pytest.mark.parametrize("prompt", ["", [], [[]], [-1], {}, [[5], "x"]])
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(CompletionRequest, {"model": "m", "prompt": prompt})
    assert str(refused.value.param).partition(".")[0] == "prompt"


def test_the_engine_gets_what_was_said_and_no_more() -> None:
    said = {"response_format": SCHEMA, "top_k": 3, "ignore_eos": False, "temperature": 0.0}
    asked = parse(ChatRequest, {"model": "m", "messages": HELLO, "stream": True, "user": "u", **said})
    assert for_the_engine(asked) == said
    said = {"structured_outputs": {"json": {"const": None}}, "logprobs": 0}
    assert for_the_engine(parse(CompletionRequest, {"model": "m", "prompt": [5, 6], **said})) == said


def test_what_clients_send_back_of_an_answer_is_a_message() -> None:
    back = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL], "reasoning": "hm"}
    answered = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]}
    asked = parse(ChatRequest, {"model": "m", "messages": [*HELLO, back, answered], "tools": [TOOL]})
    assert [message.text for message in asked.messages] == ["hello", "", "sun"]


def test_a_stream_of_several_choices_with_tools_and_reasoning_folds_to_the_whole_answer() -> None:
    def delta(index: int, **told: Any) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": told, "finish_reason": None}]}

    folded = FoldedChat("m", "req_1")
    for chunk in (
        delta(0, role="assistant", content=""),
        delta(1, role="assistant", content="no"),
        delta(0, reasoning="let me "),
        delta(0, reasoning="see"),
        delta(0, tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        delta(0, tool_calls=[{"index": 0, "function": {"arguments": '{"x"'}}]),
        delta(0, tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]),
        delta(0, tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        {"choices": [{"index": 1, "delta": {}, "logprobs": {"content": [{"token": "no"}]}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 3}},
    ):
        folded.add(chunk)
    whole = json.loads(folded.as_json())
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "content": None, "reasoning": "let me see", "tool_calls": calls}
    assert whole["choices"] == [
        {"index": 0, "message": message, "finish_reason": "tool_calls"},
        {
            "index": 1,
            "message": {"role": "assistant", "content": "no"},
            "logprobs": {"content": [{"token": "no"}]},
            "finish_reason": "stop",
        },
    ]
    assert whole["usage"] == {"prompt_tokens": 3} and whole["object"] == "chat.completion"


def test_a_stream_of_completions_folds_by_prompt() -> None:
    folded = FoldedText("m", "req_1")
    for index, text, reason in ((1, "b", None), (0, "a", None), (1, "d", "length"), (0, "c", "stop")):
        logprobs = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": None}
        folded.add({"choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}]})
    first, second = json.loads(folded.as_json())["choices"]
    assert first == {
        "index": 0,
        "text": "ac",
        "logprobs": {"tokens": ["a", "c"], "token_logprobs": [-1.0, -1.0], "top_logprobs": []},
        "finish_reason": "stop",
    }
    assert (second["text"], second["finish_reason"]) == ("bd", "length")
