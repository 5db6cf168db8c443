"""The gateway from outside: the official client, curl-like requests, bad input, and the row that each leaves."""

import json
import threading
import time
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from mosaic.gateway.endpoints import Endpoint, LiveEntity, choose
from mosaic.ids import is_id, new_id
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity

HELLO: Any = [{"role": "user", "content": "hello there world"}]


def row(platform: Platform, request_id: str) -> dict[str, Any]:
    """The one row of a request; fails when there is none or more than one."""
    platform.flush_ledger()
    found = [one for one in rows(platform) if one["request_id"] == request_id]
    assert len(found) == 1, f"{len(found)} rows of {request_id}"
    return found[0]


def rows(platform: Platform) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.tables.to_arrow("system.serving.inference").to_pylist()
    return found


def post(platform: Platform, token: str | None, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given_headers = {"content-type": "application/json", **headers}
    if token is not None:
        given_headers["authorization"] = f"Bearer {token}"
    return httpx.post(platform.base_url + path, content=content, headers=given_headers, timeout=60)


def test_a_whole_answer_and_its_row(platform: Platform, client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO, user="u1")
    assert answer.choices[0].message.content == "hello there world"
    assert answer.model == "echo" and answer.usage is not None and answer.usage.completion_tokens == 3
    assert is_id(answer.id, "req") and answer._request_id == answer.id
    kept = row(platform, answer.id)
    assert kept["status_code"] == 200 and kept["principal"] == "alice" and kept["token_id"]
    assert kept["endpoint"] == "main.serving.echo" and kept["served_entity"] == "echo"
    assert (kept["input_tokens"], kept["output_tokens"], kept["streamed"]) == (3, 3, False)
    assert json.loads(kept["request"])["user"] == "u1"
    assert json.loads(kept["response"])["choices"][0]["message"]["content"] == "hello there world"


def test_a_stream_and_its_row(platform: Platform, client: OpenAI) -> None:
    with client.chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there world"
    assert chunks[-1].usage is not None and not chunks[-1].choices
    kept = row(platform, chunks[0].id)
    assert kept["status_code"] == 200 and kept["streamed"] and kept["output_tokens"] == 3
    assert json.loads(kept["response"])["choices"][0]["message"]["content"] == "hello there world"
    assert 0 < kept["first_token_milliseconds"] <= kept["duration_milliseconds"]


def test_usage_is_only_sent_when_asked_for(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="echo", messages=HELLO, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_models_are_listed_by_the_name_that_is_asked_for(client: OpenAI) -> None:
    assert "echo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError, match="there are"):
        client.models.retrieve("nothing")


def test_a_wrong_token_and_an_unknown_model_have_rows(platform: Platform, client: OpenAI) -> None:
    stranger = OpenAI(base_url=f"{platform.base_url}/v1", api_key="mosaic_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(model="echo", messages=HELLO)
    assert refused.value.code == "invalid_api_key" and refused.value.response.headers["www-authenticate"] == "Bearer"
    kept = row(platform, refused.value.response.headers["x-request-id"])
    assert kept["status_code"] == 401 and kept["principal"] is None

    with pytest.raises(openai.NotFoundError, match=r"no endpoint 'gtp'; there are \[.*'echo'") as missing:
        client.chat.completions.create(model="gtp", messages=HELLO)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    kept = row(platform, missing.value.response.headers["x-request-id"])
    assert kept["status_code"] == 404 and kept["principal"] == "alice" and "gtp" in kept["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        ("/v1/chat/completions", b"{not json", 400, None, "not JSON"),
        ("/v1/chat/completions", b"[]", 400, None, "must be a JSON object"),
        ("/v1/chat/completions", {"model": "echo"}, 400, "messages", "'messages' is required"),
        ("/v1/chat/completions", {"model": "echo", "messages": []}, 400, "messages", "at least 1"),
        ("/v1/chat/completions", {"model": "echo", "messages": HELLO, "best_of": 2}, 400, "best_of", "unknown field"),
        (
            "/v1/chat/completions",
            {"model": "echo", "messages": HELLO, "temperature": 9},
            400,
            "temperature",
            "'temperature' = 9: input should be less than or equal to 2",
        ),
        ("/v1/embeddings", {"model": "echo", "input": "x"}, 422, "model", "is for chat, not for embeddings"),
        ("/v1/nothing", {}, 404, None, "no path '/v1/nothing'"),
        ("/v1/models", {}, 405, None, "POST is not for '/v1/models'; it takes GET"),
        ("/v1/chat/completions", b" " * (4 * 1024 * 1024 + 1), 413, None, "over the limit of 4194304 bytes"),
    ],
)
def test_what_is_refused_says_why_in_openais_shape_and_has_a_row(
    platform: Platform, token: str, path: str, body: Any, status: int, param: str | None, says: str
) -> None:
    response = post(platform, token, path, body)
    assert response.status_code == status
    error = response.json()["error"]
    assert says in error["message"] and error["param"] == param and set(error) == {"message", "type", "param", "code"}
    assert response.headers.get_list("x-request-id") == [response.json()["request_id"]]
    kept = row(platform, response.headers["x-request-id"])
    assert kept["status_code"] == status and kept["error"] == error["message"]


def test_what_breaks_inside_is_a_500_in_shape(platform: Platform, token: str) -> None:
    # an endpoint whose engine was never started: its application does not exist
    platform.catalog.endpoints.put(
        "broken",
        config={"name": "broken", "served_entities": [{"name": "a", "model": "no-such-engine"}]},
        owner="admin",
    )
    try:
        response = post(platform, token, "/v1/chat/completions", {"model": "broken", "messages": HELLO})
        assert response.status_code == 503 and "engine-no-such-engine" in response.json()["error"]["message"]
    finally:
        platform.catalog.endpoints.delete("broken")


def test_control_answers_in_its_own_shape(platform: Platform, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    parts = httpx.get(f"{platform.base_url}/api/2.0/mosaic/status", headers=headers).json()
    assert {part["part"]: part["state"] for part in parts}["gateway"] == "healthy"
    missing = httpx.get(f"{platform.base_url}/api/2.0/mosaic/nothing", headers=headers)
    assert missing.status_code == 404 and set(missing.json()) == {"error_code", "message", "request_id"}
    refused = httpx.get(f"{platform.base_url}/api/2.0/mosaic/status")
    assert refused.status_code == 401 and refused.json()["error_code"] == "INVALID_API_KEY"


def test_the_clients_own_request_id_is_kept_apart(platform: Platform, token: str) -> None:
    response = post(
        platform, token, "/v1/chat/completions", {"model": "echo", "messages": HELLO}, **{"x-request-id": "mine"}
    )
    assert is_id(response.headers["x-request-id"], "req")
    assert row(platform, response.headers["x-request-id"])["client_request_id"] == "mine"


def test_a_failure_in_mid_stream_is_an_error_event_without_done(platform: Platform, token: str) -> None:
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "fail: now please"}]}
    response = post(platform, token, "/v1/chat/completions", body)
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and "[DONE]" not in events
    assert json.loads(events[-1])["error"]["message"] == "the echo was asked to fail"
    assert row(platform, response.headers["x-request-id"])["status_code"] == 502


def test_a_failure_before_the_first_chunk_is_a_status(platform: Platform, token: str) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "fail: now please"}]}
    response = post(platform, token, "/v1/chat/completions", body)
    assert response.status_code == 502 and response.json()["error"]["code"] == "engine_failed"


def test_a_client_that_leaves_is_recorded_with_what_it_read(platform: Platform, client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "word " * 200_000}], stream=True
    )
    request_id = next(iter(stream)).id
    stream.close()
    deadline = time.monotonic() + 20
    while not any(one["request_id"] == request_id for one in rows(platform)):
        assert time.monotonic() < deadline, "the row of the request that was left did not come"
        platform.flush_ledger()
        time.sleep(0.2)
    kept = row(platform, request_id)
    assert kept["status_code"] == 499 and 0 < kept["output_tokens"] < 200_000
    assert json.loads(kept["response"])["choices"][0]["message"]["content"].startswith("word")


def test_many_at_once_have_a_row_each(platform: Platform, client: OpenAI) -> None:
    answered: list[str] = []

    def ask() -> None:
        for _ in range(10):
            answered.append(client.chat.completions.create(model="echo", messages=HELLO).id)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    platform.flush_ledger()
    kept = [one["request_id"] for one in rows(platform)]
    assert len(set(answered)) == 160 and all(kept.count(request_id) == 1 for request_id in answered)


def test_a_revoked_token_is_refused_within_a_second(platform: Platform) -> None:
    record, secret = platform.catalog.create_token("bob", kind="user", is_admin=False)
    bob = OpenAI(base_url=f"{platform.base_url}/v1", api_key=secret, max_retries=0)
    bob.models.list()
    platform.catalog.revoke_token(record.id)
    time.sleep(1.0)
    with pytest.raises(openai.AuthenticationError):
        bob.models.list()


def test_the_split_is_drawn_by_the_shares_and_stands_in_the_row(platform: Platform, client: OpenAI) -> None:
    arms = [
        ServedEntity(name="left", model="echo", traffic_percentage=25),
        ServedEntity(name="right", model="echo", traffic_percentage=75),
    ]
    platform.serving.put(EndpointSettings(name="two-arms", served_entities=arms))
    platform.serving.wait("two-arms")
    drawn = [client.chat.completions.create(model="two-arms", messages=HELLO) for _ in range(80)]
    names = [(answer.model_extra or {})["mosaic"]["served_entity"] for answer in drawn]
    # four standard deviations of a binomial with n = 80 and p = 0.25
    assert abs(names.count("left") - 20) < 4 * (80 * 0.25 * 0.75) ** 0.5
    platform.flush_ledger()
    kept = {one["request_id"]: one["served_entity"] for one in rows(platform)}
    assert [kept[answer.id] for answer in drawn] == names


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=6))
def test_shares_hold_over_many_ids(weights: list[int]) -> None:
    total = sum(weights)
    shares = [100 * weight // total for weight in weights]
    shares[0] += 100 - sum(shares)
    entities = tuple(LiveEntity(str(n), "app", "model", share) for n, share in enumerate(shares))
    endpoint = Endpoint("e", "e", 1, "chat", entities, None, 0)
    drawn = [int(choose(endpoint, new_id("req")).name) for _ in range(2000)]
    for n, share in enumerate(shares):
        expected = 2000 * share / 100
        assert abs(drawn.count(n) - expected) <= 6 * (expected * (1 - share / 100)) ** 0.5 + 1


def test_who_may_not_execute_an_endpoint_is_told_what_is_missing(platform: Platform, token: str) -> None:
    """Granted to all users at the first start; taken back and given again, it holds for the next request."""
    grants, admin = platform.catalog.grants, platform.principal
    outsider = OpenAI(
        base_url=f"{platform.base_url}/v1", max_retries=0, api_key=platform.catalog.create_token("mallory")[1]
    )
    assert "echo" in [model.id for model in outsider.models.list()]
    grants.revoke("schema", "main.serving", "users", ["EXECUTE"], by=admin)
    try:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            outsider.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
        assert "'mallory' may not EXECUTE on endpoint 'main.serving.echo'" in refused.value.message
        request_id = refused.value.response.headers["x-request-id"]
        assert row(platform, request_id)["status_code"] == 403
        assert [event.request_id for event in platform.catalog.audit.list(limit=10_000)].count(request_id) == 1
        assert list(outsider.models.list()) == []
        grants.grant("endpoint", "echo", "mallory", ["EXECUTE"], by=admin)
        assert outsider.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}]).choices
    finally:
        grants.grant("schema", "main.serving", "users", ["EXECUTE"], by=admin)
