"""Bad input, through HTTP: a 4xx in OpenAI's shape that names the field, and a row of it."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from mosaic.platform import Platform
from tests.gateway.test_gateway_http import post, row, rows

HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": HELLO, **more}


def deep(levels: int) -> bytes:
    return b'{"model": "echo", "messages": ' + b"[" * levels + b"]" * levels + b"}"


CASES: list[tuple[str, Any, int, str | None, str]] = [
    (CHAT, chat(logit_boas={}), 400, "logit_boas", "unknown field"),
    (CHAT, chat(messages=[]), 400, "messages", "at least 1"),
    (CHAT, chat(messages=[{"role": "wizard", "content": "x"}]), 400, "messages.0.role", "'user'"),
    (CHAT, chat(messages="hello"), 400, "messages", "list"),
    (CHAT, chat(max_tokens=-1), 400, "max_tokens", "greater than or equal to 1"),
    (CHAT, chat(n=10**9), 400, "n", "128"),
    (CHAT, chat(temperature=float("nan")), 400, "temperature", "less than"),
    (CHAT, chat(model=""), 400, "model", "at least 1"),
    (CHAT, chat(model=["echo"]), 400, "model", "string"),
    (CHAT, chat(stream="maybe"), 400, "stream", "boolean"),
    (CHAT, chat(tool_choice="auto"), 400, "tool_choice", "needs tools"),
    (CHAT, chat(response_format={"type": "xml"}), 400, "response_format", "json_schema"),
    (CHAT, deep(70), 400, None, "nested more than 64 levels"),
    (CHAT, deep(900), 400, None, "nested more than 64 levels"),
    (CHAT, deep(200_000), 400, None, "not JSON"),
    (CHAT, b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None, "not text"),
    (CHAT, b"\xff\xfe", 400, None, "not JSON"),
    (CHAT, b"", 400, None, "not JSON"),
    (COMPLETIONS, {"model": "echo"}, 400, "prompt", "required"),
    (COMPLETIONS, {"model": "echo", "prompt": []}, 400, "prompt", "at least 1"),
    (COMPLETIONS, {"model": "echo", "prompt": "x", "suffix": "y"}, 400, "suffix", "unknown field"),
    (COMPLETIONS, {"model": "echo", "prompt": "x", "stream_options": {}}, 400, "stream_options", "stream = true"),
    (EMBEDDINGS, {"model": "echo", "input": 7}, 400, "input", "string"),
    (EMBEDDINGS, {"model": "echo", "input": "x", "dimensions": 0}, 400, "dimensions", "greater than"),
    ("/v1/score", {"model": "echo", "text_1": "x", "text_2": "y"}, 422, "model", "is for chat, not for scores"),
    ("/v1/score", {"model": "echo", "text_1": ["x", "z"], "text_2": "y"}, 400, "text_1", "has 2 texts"),
    ("/v1/rerank", {"model": "echo", "query": "x", "documents": []}, 400, "documents", "at least 1"),
    ("/v1/rerank", {"model": "echo", "query": "x", "documents": ["y"], "top_n": 0}, 400, "top_n", "greater than"),
    ("/serving-endpoints/echo/invocations", {"inputs": [1]}, 422, "model", "is for chat, not for predictions"),
    ("/serving-endpoints/echo/invocations", {"question": 1}, 400, None, "the body needs messages"),
    (CHAT, chat(model="gtp"), 404, "model", "no endpoint 'gtp'"),
]
"""Path, body, and of its refusal status, field and words."""


@pytest.fixture(scope="module")
def refusals(platform: Platform, token: str) -> list[tuple[httpx.Response, dict[str, Any]]]:
    """What each case is answered, with its row."""
    answers = [post(platform, token, path, body) for path, body, *_ in CASES]
    platform.flush_ledger()
    kept = {one["request_id"]: one for one in rows(platform)}
    return [(answer, kept[answer.headers["x-request-id"]]) for answer in answers]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number][0]}-{CASES[number][4]}")
def test_a_refusal_names_the_field_and_has_a_row(
    refusals: list[tuple[httpx.Response, dict[str, Any]]], number: int
) -> None:
    (answer, kept), (_, _, status, param, says) = refusals[number], CASES[number]
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and says in error["message"], error
    assert (kept["status_code"], kept["error"], kept["principal"]) == (status, error["message"], "alice")


def test_50_megabytes_are_refused_before_they_are_read(platform: Platform, token: str) -> None:
    body = json.dumps(chat(messages=[{"role": "user", "content": "x" * 50_000_000}])).encode()
    answer = post(platform, token, CHAT, body)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large", answer.text
    kept = row(platform, answer.headers["x-request-id"])
    assert kept["status_code"] == 413 and kept["request"] is None and "over the limit" in kept["error"]

    where = urlsplit(platform.base_url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as told:  # a size, and not one byte of it
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 50000000\r\n\r\n"
        told.sendall(head.encode())
        assert told.recv(4096).startswith(b"HTTP/1.1 413")


def test_endpoints_that_cannot_be(platform: Platform, token: str) -> None:
    """Made by HTTP, in Databricks' shape; what is not allowed is in the audit."""
    maker = platform.catalog.create_token("clumsy")[1]
    platform.catalog.grants.grant("schema", "main.serving", "clumsy", ["CREATE MODEL"], by="admin")
    platform.catalog.ensure_schema("main.closed")
    platform.catalog.create_model("main.closed.bot", owner="admin")
    platform.catalog.create_model_version("main.closed.bot", source="/nowhere", kind="mlflow")
    entity = {"name": "e", "entity_name": "echo"}

    def made(*entities: dict[str, Any], **shares: int) -> httpx.Response:
        config: dict[str, Any] = {"served_entities": entities}
        if shares:
            routes = [{"served_entity_name": name, "traffic_percentage": share} for name, share in shares.items()]
            config["traffic_config"] = {"routes": routes}
        return httpx.post(
            f"{platform.base_url}/api/2.0/serving-endpoints",
            json={"name": "never", "config": config},
            headers={"authorization": f"Bearer {maker}"},
        )

    for answer, status, says in (
        (made(entity, {**entity, "name": "f"}, e=50, f=40), 400, "the traffic percentages add up to 90, not to 100"),
        (made({**entity, "entity_name": "gpt-9"}), 404, "no model 'gpt-9'; there are"),
        (made({**entity, "entity_name": "main.closed.bot", "entity_version": "1"}), 403, "may not EXECUTE"),
        (made({**entity, "engine": {"max_model_length": 1}}), 400, "unknown field 'served_entities.0.engine.max_model"),
        (made({**entity, "engine": {"runner": "sideways"}}), 400, "'auto', 'generate' or 'pooling'"),
    ):
        assert answer.status_code == status and says in answer.json()["message"], answer.text
        if status == 403:
            seen = [event.request_id for event in platform.catalog.audit.list(limit=1000)]
            assert answer.headers["x-request-id"] in seen
    assert "never" not in [one.served_name for one in platform.serving.list()]
