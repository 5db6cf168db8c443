"""Answers that must follow a JSON schema: what passes, what is refused, with which words, and which schemas can be."""

import json
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import BadRequest
from mosaic.serving.ai_gateway import Guardrails
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.json_schemas import AnswerSchema, NotJson
from tests.gateway.in_process import InProcess

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "degrees": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
GOOD = '{"city": "Oslo", "degrees": -3}'
BAD = {
    "no json": "no JSON",
    "": "no JSON",
    '{"city": NaN}': "no JSON",
    "[" * 3000: "",
    '{"degrees": 1}': "#/required",
    '{"city": "oslo"}': "#/properties/city/pattern",
    '{"city": "Oslo", "secret": 1}': "#/additionalProperties",
    '{"city": "Oslo", "degrees": "cold"}': "#/properties/degrees/type",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    made = InProcess(tmp_path_factory.mktemp("gateway"), {"echo": EchoEngine()})
    made.guard("bot", output={"json_schema": {"schema": SCHEMA}})
    yield made
    made.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_follows_passes_and_what_does_not_is_refused_before_a_byte(
    gateway: InProcess, stream: bool, path: str
) -> None:
    good = gateway.run(gateway.ask("bot", GOOD, stream=stream, path=path))
    assert good.status == 200 and "Oslo" in good.body
    assert gateway.row("bot")["guardrails"]["output"] == {"json_schema": {"outcome": "passed"}}
    for text, says in BAD.items():
        if not text:
            continue
        refused = gateway.run(gateway.ask("bot", text, stream=stream, path=path))
        code = "content_filter" if says else "guardrail_failed"
        assert refused.error["code"] == code and says in refused.error["message"], refused
        assert "secret" not in refused.body and "cold" not in refused.body
        row = gateway.row("bot")
        assert row.get("response") is None and row["guardrails"]["output"]["json_schema"]["outcome"] != "passed"


def test_each_of_several_answers_is_looked_at(gateway: InProcess) -> None:
    assert gateway.run(gateway.ask("bot", GOOD, n=3, stream=True)).status == 200
    assert gateway.run(gateway.ask("bot", "no", n=3)).status == 400


def test_an_answer_that_only_calls_tools_has_no_text(gateway: InProcess) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    for stream in (True, False):
        called = gateway.run(gateway.ask("bot", 'call: weather {"n": 1}', tools=tools, stream=stream))
        assert called.status == 200 and "call_echo" in called.body
        assert gateway.row("bot")["guardrails"]["output"] == {"json_schema": {"outcome": "skipped"}}


def test_what_could_not_be_looked_at_passes_only_where_the_rule_says_so(gateway: InProcess) -> None:
    nested = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}
    deep = "[" * 400 + "]" * 400
    for on_failure, status in (("closed", 503), ("open", 200)):
        gateway.guard("bot", output={"json_schema": {"schema": nested, "on_failure": on_failure}})
        answer = gateway.run(gateway.ask("bot", deep, stream=True))
        assert answer.status == status
        told = gateway.row("bot")["guardrails"]["output"]["json_schema"]
        assert told == {"outcome": "failed", "why": "RecursionError"}
    gateway.guard("bot", output={"json_schema": {"schema": SCHEMA}})


def test_a_models_text_cannot_keep_the_gateway_busy_by_a_pattern() -> None:
    schema = AnswerSchema({"pattern": "^(a+)+$"})
    started = time.perf_counter()
    assert schema.broken(json.dumps("a" * 50_000 + "b")) == "#/pattern"
    assert time.perf_counter() - started < 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", "b", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
SCHEMAS: list[dict[str, Any]] = [
    SCHEMA,
    {"type": ["object", "array"], "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
    {"properties": {"a": {"enum": ["a", None, 1]}}, "required": ["a"]},
    {"anyOf": [{"type": "integer"}, {"type": "object", "minProperties": 1}], "not": {"const": 3}},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": ["array", "string"], "items": {"$ref": "#/$defs/tree"}}}},
]


@given(st.sampled_from(SCHEMAS), JSON)
@settings(max_examples=200, deadline=None)
def test_it_says_what_the_packages_own_validator_says(schema: dict[str, Any], value: Any) -> None:
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (AnswerSchema(schema).broken(json.dumps(value)) is None) == expected


ANYTHING = AnswerSchema({})


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_what_is_no_json_is_none(text: str) -> None:
    try:
        json.loads(text, parse_constant=lambda word: 1 / 0)
    except (ValueError, ZeroDivisionError):
        with pytest.raises(NotJson):
            ANYTHING.broken(text)
    else:
        assert ANYTHING.broken(text) is None


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "objekt"}, "is no JSON schema"),
        ({"$ref": "http://elsewhere/x"}, "must point into the schema itself"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "points at nothing"),
        ({"pattern": "(?=a)"}, "RE2 does not take it"),
        ({"pattern": "("}, "RE2|no JSON schema"),
        ({"patternProperties": {"a": {}}}, "'patternProperties' is not taken"),
        ({"format": "colour"}, "format = 'colour' is none of"),
        ({"$schema": "http://elsewhere/draft"}, "is none of"),
        (nested(5_000), "nested too deeply"),
        ({"description": "x" * 70_000}, "more than 65536 characters"),
    ],
)
def test_schemas_that_could_not_be_held_to(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        Guardrails.parse({"output": {"json_schema": {"schema": schema}}})


def test_a_schema_is_for_answers_and_stays_as_it_was_given() -> None:
    with pytest.raises(BadRequest, match="for what is answered"):
        Guardrails.parse({"input": {"json_schema": {"schema": {}}}})
    told = {"output": {"json_schema": {"schema": {"properties": {"format": {"const": None}}}}}}
    kept = Guardrails.parse(told).model_dump(mode="json")
    assert kept["output"]["json_schema"]["schema"] == told["output"]["json_schema"]["schema"]
    assert Guardrails.parse(kept) == Guardrails.parse(told)
