"""`/v1/messages`, `/v1/responses` and `/v1/moderations` by HTTP, with the official clients, without a platform."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from mosaic.gateway import LiveEntity, ProviderEngines
from mosaic.protocol import Engine, EngineRequest
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.external import Access, ExternalModel
from tests.gateway.door import GUARDED, LIMITED, Door, door

HELLO: Any = [{"role": "user", "content": "hello there world"}]
TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
MAIL = "ann.example@posteo.de"
DEAD = "http://127.0.0.1:9"


class Labels:
    """An engine as a text classifier's: `bad` in a text is toxic, and it knows labels by other names."""

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        texts = request.body["inputs"]
        yield {"predictions": [self._one("bad" in text, "nameless" in text) for text in texts]}

    def _one(self, is_bad: bool, is_nameless: bool) -> dict[str, Any]:
        labels = ("LABEL_0", "LABEL_1") if is_nameless else ("not-toxic", "toxic")
        scores = dict(zip(labels, (0.1, 0.9) if is_bad else (0.8, 0.2), strict=True))
        return {"label": max(scores, key=lambda label: scores[label]), "score": max(scores.values()), "scores": scores}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    echo, labels = EchoEngine(), Labels()
    openais = ExternalModel.parse({"provider": "custom", "name": "m", "connection": "c"})
    provider = ProviderEngines(allow_private=True).engine(openais, Access(DEAD))

    def engine(entity: LiveEntity) -> Engine:
        return {"labels": labels, "provider": provider}.get(entity.model, echo)

    with door(tmp_path_factory.mktemp("door"), engine) as made:
        made.endpoint("labels", model="labels", task="predict")
        made.endpoint("outside", model="provider")
        made.endpoint("knows", retrieval={"index": "main.docs.i"})
        yield made


@pytest.fixture(scope="module")
def client(at: Door) -> Anthropic:
    return Anthropic(base_url=at.address, api_key=at.token, max_retries=0)


def post(at: Door, path: str, body: Any, **headers: str) -> httpx.Response:
    sent = headers or {"authorization": f"Bearer {at.token}"}
    return httpx.post(at.address + path, json=body, headers=sent, timeout=30)


def test_a_message_and_its_row(at: Door, client: Anthropic) -> None:
    answer = client.messages.create(model="echo", max_tokens=9, system="be brief", messages=HELLO)
    assert answer.content[0].type == "text" and answer.content[0].text == "hello there world"
    assert (answer.stop_reason, answer.model, answer.type) == ("end_turn", "echo", "message")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)
    assert answer._request_id == answer.id
    row = at.row(answer.id)
    assert (row["status_code"], row["path"], row["principal"]) == (200, "/v1/messages", "admin")
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("main.serving.echo", 5, 3)
    # one shape for whoever reads rows, by whichever door they came
    assert [one["role"] for one in json.loads(row["request"])["messages"]] == ["system", "user"]
    assert json.loads(row["response"])["choices"][0]["message"]["content"] == "hello there world"


def test_a_stream_tells_the_same_and_its_row_is_there_before_its_end(at: Door, client: Anthropic) -> None:
    with client.messages.stream(model="echo", max_tokens=9, messages=HELLO) as stream:
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "message_start":
                assert event.message.usage.input_tokens == 3
            if event.type == "message_stop":
                at.row(event.message.id, seconds=0)
        answer = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert answer.content[0].type == "text" and answer.content[0].text == "hello there world"
    assert answer.usage.output_tokens == 3
    row = at.row(answer.id)
    assert row["streamed"] and row["output_tokens"] == 3 and row["first_token_milliseconds"] > 0
    assert json.loads(row["response"])["choices"][0]["message"]["content"] == "hello there world"


def test_a_tool_is_called_and_answered(client: Anthropic) -> None:
    asked: Any = [{"role": "user", "content": 'call: weather {"day": "sunday"}'}]
    whole = client.messages.create(model="echo", max_tokens=9, messages=asked, tools=TOOLS)
    (use,) = whole.content
    assert use.type == "tool_use" and use.input == {"day": "sunday"} and whole.stop_reason == "tool_use"
    with client.messages.stream(model="echo", max_tokens=9, messages=asked, tools=TOOLS) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.type == "tool_use" and (streamed.id, streamed.input) == (use.id, use.input)
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "it rains"}]}
    turns: Any = [*asked, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(model="echo", max_tokens=9, messages=turns, tools=TOOLS)
    assert again.content[0].type == "text" and again.content[0].text == "it rains"


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        ({"model": "nope"}, 404, "not_found_error", "no endpoint 'nope'"),
        ({"model": "labels"}, 422, "invalid_request_error", "is for predict"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"temperature": 1.5}, 400, "invalid_request_error", "temperature"),
        ({"container": "c"}, 400, "invalid_request_error", "unknown field 'container'"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error", "image"),
        ({"messages": HELLO * 40_000}, 413, "request_too_large", "over the limit"),
    ],
)
def test_errors_have_anthropics_shape(at: Door, body: Any, status: int, kind: str, says: str) -> None:
    answer = post(at, "/v1/messages", {"model": "echo", "max_tokens": 5, "messages": HELLO, **body})
    told = answer.json()
    assert (answer.status_code, told["type"], told["error"]["type"]) == (status, "error", kind)
    assert says in told["error"]["message"] and told["error"].keys() == {"type", "message"}
    assert told["request_id"] == answer.headers["request-id"]
    assert at.row(told["request_id"])["status_code"] == status


def test_the_frameworks_own_errors_have_it_too(at: Door) -> None:
    bearer = {"authorization": f"Bearer {at.token}"}
    for method, path, status, kind in (
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
    ):
        answer = httpx.request(method, at.address + path, headers=bearer)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    not_json = httpx.post(f"{at.address}/v1/messages", content=b"{", headers=bearer)
    assert not_json.status_code == 400 and not_json.json()["type"] == "error"
    assert "type" not in httpx.get(f"{at.address}/v1/messagesx", headers=bearer).json()  # OpenAI's


def test_a_key_is_known_by_either_header_and_only_here(at: Door) -> None:
    body = {"model": "echo", "max_tokens": 5, "messages": HELLO}
    key = {"x-api-key": at.token, "anthropic-version": "2023-06-01"}
    assert post(at, "/v1/messages", body, **key).status_code == 200
    assert post(at, "/v1/messages/count_tokens", {"model": "echo", "messages": HELLO}, **key).status_code == 200
    for path, headers in (
        ("/v1/chat/completions", key),
        ("/v1/messages", {"x-api-key": "mosaic_unknown"}),
        ("/v1/messages", {"x-api-key": ""}),
        ("/v1/messages", {"authorization": "Bearer mosaic_unknown", "x-api-key": at.token}),
        ("/v1/messagesx", key),
    ):
        assert post(at, path, body, **headers).status_code == 401, (path, headers)
    with pytest.raises(anthropic.AuthenticationError) as refused:
        Anthropic(base_url=at.address, api_key="mosaic_unknown", max_retries=0).messages.create(
            model="echo", max_tokens=5, messages=HELLO
        )
    assert refused.value.request_id is not None and at.row(refused.value.request_id)["status_code"] == 401


def test_a_request_says_for_whom_it_is_by_every_door(at: Door) -> None:
    context = {"usage_context": {"team": "search"}}
    for path, body in (
        ("/v1/messages", {"model": "echo", "max_tokens": 5, "messages": HELLO}),
        ("/v1/messages/count_tokens", {"model": "echo", "messages": HELLO}),
        ("/v1/responses", {"model": "echo", "input": "x"}),
        ("/v1/moderations", {"model": "labels", "input": "x"}),
    ):
        answer = post(at, path, {**body, **context})
        assert answer.status_code == 200, answer.text
        assert json.loads(at.row(answer.headers["x-request-id"])["usage_context"]) == {"team": "search"}


def test_limits_and_guards_hold_by_this_door(at: Door, client: Anthropic) -> None:
    for _ in range(2):
        raw = client.messages.with_raw_response.create(model=LIMITED, max_tokens=5, messages=HELLO)
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(model=LIMITED, max_tokens=5, messages=HELLO)
    assert int(refused.value.response.headers["retry-after-ms"]) > 0
    asked: Any = [{"role": "user", "content": f"write to {MAIL} please"}]
    answer = client.messages.create(model=GUARDED, max_tokens=5, messages=asked)
    assert answer.content[0].type == "text" and answer.content[0].text == "write to <EMAIL_ADDRESS> please"
    with client.messages.stream(model=GUARDED, max_tokens=5, messages=asked) as stream:
        assert stream.get_final_text() == "write to <EMAIL_ADDRESS> please"
    assert MAIL not in json.dumps(at.row(answer.id)) and "EMAIL_ADDRESS" in at.row(answer.id)["request"]


def test_a_failure_in_mid_stream_is_an_error_event_and_no_end(at: Door, client: Anthropic) -> None:
    body = {"model": "echo", "max_tokens": 5, "messages": [{"role": "user", "content": "fail: x y"}], "stream": True}
    answer = post(at, "/v1/messages", body)
    *_, last = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]
    assert answer.status_code == 200 and "message_stop" not in answer.text
    assert last["type"] == "error" and last["error"]["message"] == "the echo was asked to fail"
    assert at.row(last["request_id"])["status_code"] == 502
    with pytest.raises(anthropic.APIStatusError, match="asked to fail"):
        list(client.messages.create(**{**body, "stream": True}))  # type: ignore[call-overload]


def test_tokens_are_counted_as_the_engine_would_read_them(at: Door, client: Anthropic) -> None:
    counted = client.messages.count_tokens(model="echo", system="be brief", messages=HELLO, tools=TOOLS)
    answer = client.messages.create(model="echo", max_tokens=5, system="be brief", messages=HELLO)
    assert counted.input_tokens == answer.usage.input_tokens == 5
    raw = client.messages.with_raw_response.count_tokens(model="echo", messages=HELLO)
    row = at.row(raw.headers["request-id"])
    assert row["status_code"] == 200 and row["served_entity"] == "one"
    assert "input_tokens" not in row and json.loads(row["response"]) == {"input_tokens": 3}
    assert row["cost_nano_dollars"] == 0
    asked: Any = [{"role": "user", "content": f"write to {MAIL} please"}]
    raw = client.messages.with_raw_response.count_tokens(model=GUARDED, messages=asked)
    assert raw.parse().input_tokens == 4 and at.row(raw.headers["request-id"])["request"] is None


def test_what_cannot_be_counted_is_said(client: Anthropic) -> None:
    for name, says in (("outside", "does not count"), ("knows", "looks up"), ("labels", "not for chat")):
        with pytest.raises(anthropic.UnprocessableEntityError, match=says):
            client.messages.count_tokens(model=name, messages=HELLO)


def test_a_response_whole_streamed_and_in_its_row(at: Door) -> None:
    client = OpenAI(base_url=f"{at.address}/v1", api_key=at.token, max_retries=0)
    whole = client.responses.create(model="echo", input="one two", instructions="be brief", metadata={"a": "b"})
    assert whole.output_text == "one two" and whole.status == "completed" and whole.metadata == {"a": "b"}
    assert whole.usage is not None and (whole.usage.input_tokens, whole.usage.output_tokens) == (4, 2)
    assert at.row(whole.id)["path"] == "/v1/responses"
    with client.responses.stream(model="echo", input="one two") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed" and final.output_text == "one two"
    body = {"model": "echo", "input": "fail: x y", "stream": True}
    failed = post(at, "/v1/responses", body).text
    assert "event: response.failed" in failed and "response.completed" not in failed
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="echo", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_a_classifiers_labels_are_categories(at: Door) -> None:
    client = OpenAI(base_url=f"{at.address}/v1", api_key=at.token, max_retries=0)
    found = client.moderations.create(model="labels", input=["a bad one", "a good one"])
    assert [one.flagged for one in found.results] == [True, False]
    assert found.results[0].categories.model_extra == {"toxic": True}
    assert found.results[1].category_scores.model_extra == {"toxic": 0.2}
    for name, text, says in (("echo", "x", "need a text classifier"), ("labels", "nameless", "say nothing")):
        with pytest.raises(openai.UnprocessableEntityError, match=says):
            client.moderations.create(model=name, input=text)


def test_a_client_that_leaves_in_mid_stream_has_its_row(at: Door, client: Anthropic) -> None:
    slow: Any = [{"role": "user", "content": "slow: " + "word " * 50}]
    with client.messages.stream(model="echo", max_tokens=99, messages=slow) as stream:
        request_id = stream.response.headers["request-id"]
        next(iter(stream.text_stream))
    row = at.row(request_id, seconds=5)
    assert row["status_code"] == 499 and 0 < row["output_tokens"] < 50


def test_what_is_told_is_told_at_once(tmp_path: Path) -> None:
    """A slow engine's words arrive one by one, not at the end."""
    slow = EchoEngine(delay_seconds=0.1)
    with door(tmp_path, lambda entity: slow) as at:
        body = {"model": "echo", "max_tokens": 9, "messages": HELLO, "stream": True}
        seen: list[str] = []
        with httpx.stream("POST", f"{at.address}/v1/messages", json=body, headers={"x-api-key": at.token}) as answer:
            for line in answer.iter_lines():
                if "text_delta" in line:
                    seen.append(line)
                    if len(seen) == 1:
                        assert not at.rows
        assert len(seen) == 3
