"""Who comes to the gateway with bad intent, over real sockets through HAProxy: refused, and with a row of its own.

What HAProxy refuses by itself (a request that is none) never reaches the door and has none; that it goes no further is
what is asked here.
"""

import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from mosaic.ids import new_id
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"


def talk(platform: Platform, data: bytes, *, seconds: float = 5) -> bytes:
    """All that is answered to bytes on a connection of their own, until the other side closes it or is silent."""
    place = urlsplit(platform.base_url)
    answer = b""
    with socket.create_connection((place.hostname, place.port), timeout=seconds) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionError, TimeoutError):  # who refuses early does not read the rest, or waits for more of it
            pass
    return answer


def request(path: str, *headers: str, body: Any = CHAT, method: str = "POST", length: bool = True) -> bytes:
    told = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: mosaic", "connection: close", "content-type: application/json"]
    lines += [f"content-length: {len(told)}"] if length else []
    return "\r\n".join([*lines, *headers, "", ""]).encode() + told


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def row_of(platform: Platform, client_id: str) -> dict[str, Any]:
    """The one row of a request, by what its client calls it."""
    platform.flush_ledger()
    rows = platform.tables.to_arrow("system.serving.inference").to_pylist()
    (found,) = [row for row in rows if row["client_request_id"] == client_id]
    return dict(found)


def marked(client_id: str) -> str:
    return f"x-request-id: {client_id}"


@pytest.fixture(scope="module")
def bearer(platform: Platform) -> str:
    token = platform.catalog.create_token("front-door", kind="user", is_admin=False)[1]
    return f"authorization: Bearer {token}"


def test_keys_that_open_nothing(platform: Platform) -> None:
    expired = platform.catalog.create_token("front-late", expires_at=datetime.now(UTC) + timedelta(seconds=1))[1]
    gone, revoked = platform.catalog.create_token("front-gone")
    platform.catalog.revoke_token(gone.id)
    other = platform.catalog.create_token("front-sql", scopes=["sql"])[1]
    deadline = datetime.now(UTC) + timedelta(seconds=1.2)
    cases = {
        "none": (),
        "empty": ("authorization: Bearer ",),
        "basic": ("authorization: Basic YWRtaW46YWRtaW4=",),
        "guess": ("authorization: Bearer mosaic_" + "0" * 40,),
        "revoked": (f"authorization: Bearer {revoked}",),
        "twice": (f"authorization: Bearer {revoked}", "authorization: Bearer x"),
        "key of another shape": (f"x-api-key: {revoked}",),
        "sql alone": (f"authorization: Bearer {other}",),
    }
    while datetime.now(UTC) < deadline:
        pass
    cases["expired"] = (f"authorization: Bearer {expired}",)
    for name, headers in cases.items():
        client_id = new_id("try")
        answer = talk(platform, request(PATH, *headers, marked(client_id)))
        assert status(answer) == (403 if name == "sql alone" else 401), (name, answer)
        assert b'"choices"' not in answer and revoked.encode() not in answer
        row = row_of(platform, client_id)
        assert row["status_code"] in (401, 403) and row["output_tokens"] is None, (name, row)
        assert revoked not in json.dumps(row, default=str) and expired not in json.dumps(row, default=str)


def test_headers_that_claim_to_be_somebody_change_nothing(platform: Platform, bearer: str) -> None:
    claims = [
        "x-forwarded-user: admin",
        "x-mosaic-principal: admin",
        "x-forwarded-for: 127.0.0.1",
        "x-databricks-user: admin",
        "x-mosaic-parent-request-id: req_other",
    ]
    client_id = new_id("try")
    answer = talk(platform, request(PATH, bearer, *claims, marked(client_id)))
    assert status(answer) == 200
    row = row_of(platform, client_id)
    assert row["principal"] == "front-door" and row["request_id"] != client_id
    # No name of ours opens what is only for administrators, with these headers or without.
    admins = "/api/2.0/mosaic/prices"
    refused = talk(platform, request(admins, bearer, *claims, body={"model": "x"}))
    assert status(refused) == 403, refused


def test_a_request_within_a_request_is_not_answered(platform: Platform, bearer: str) -> None:
    inner_id = new_id("try")
    inner = request(PATH, bearer, marked(inner_id))
    body = json.dumps(CHAT).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for name, told in {
        "both lengths": request(PATH, bearer, "transfer-encoding: chunked", body=chunked + inner, length=False).replace(
            b"host: mosaic\r\n", b"host: mosaic\r\ncontent-length: 5\r\n", 1
        ),
        "two lengths": request(PATH, bearer, f"content-length: {len(body) + len(inner)}", body=body + inner).replace(
            f"content-length: {len(body + inner)}".encode(), f"content-length: {len(body)}".encode(), 1
        ),
        "a hidden encoding": request(PATH, bearer, "transfer-encoding: xchunked", body=body + inner, length=False),
        "a space before the colon": request(
            PATH, bearer, f"content-length : {len(body)}", body=body + inner, length=False
        ),
        "a folded line": request(PATH, bearer, "x-a: b\r\n transfer-encoding: chunked", body=body),
        "a new line in a value": request(PATH, bearer, "x-a: b\nauthorization: Bearer x", body=body),
    }.items():
        answer = talk(platform, told)
        assert answer.count(b'"chat.completion"') <= 1 and answer.count(b"HTTP/1.1 ") <= 2, (name, answer)
    platform.flush_ledger()
    rows = platform.tables.to_arrow("system.serving.inference").to_pylist()
    smuggled = [row for row in rows if row["client_request_id"] == inner_id]
    # What HAProxy sees as a second request is one, by its own token and with a row of its own.
    assert all(row["principal"] == "front-door" for row in smuggled)
    healthy = talk(platform, request(PATH, bearer))
    assert status(healthy) == 200


def test_what_is_too_large(platform: Platform, bearer: str) -> None:
    for headers in (("x-large: " + "a" * 200_000,), tuple(f"x-{n}: y" for n in range(5_000))):
        answer = talk(platform, request(PATH, bearer, *headers))
        assert status(answer) in (0, 400, 431), answer[:200]
    client_id = new_id("try")
    large = {**CHAT, "messages": [{"role": "user", "content": "x" * (platform.settings.max_body_bytes + 1)}]}
    answer = talk(platform, request(PATH, bearer, marked(client_id), body=large))
    row = row_of(platform, client_id)
    assert row["status_code"] == 413 and row["request"] is None and status(answer) in (0, 413)
    assert status(talk(platform, request("/v1/" + "a" * 50_000, bearer))) in (0, 400, 404, 414, 431)
    assert status(talk(platform, request(PATH, bearer))) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../api/2.0/mosaic/prices",
        "/v1/%2e%2e/api/2.0/mosaic/prices",
        "/v1/..%2fapi/2.0/mosaic/prices",
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "/v1/chat/completions%00",
        "/v1/chat/completions;a=b",
        "/serving-endpoints/../../v1/models/invocations",
        "/serving-endpoints/echo%2f..%2fclosed/invocations",
        "http://127.0.0.1:1/v1/models",
    ],
)
def test_paths_that_lead_elsewhere(platform: Platform, bearer: str, path: str) -> None:
    client_id = new_id("try")
    answer = talk(platform, request(path, bearer, marked(client_id)))
    assert status(answer) in (400, 401, 403, 404, 405), (path, answer[:300])
    assert b'"choices"' not in answer and b'"prices"' not in answer
    without = talk(platform, request(path, marked(new_id("try"))))
    assert status(without) in (400, 401, 404, 405), (path, without[:300])


def test_a_door_by_another_spelling_is_the_same_door(platform: Platform, bearer: str) -> None:
    other = "/v1%2fchat/completions"
    client_id = new_id("try")
    assert status(talk(platform, request(other, bearer, marked(client_id)))) == 200
    assert row_of(platform, client_id)["principal"] == "front-door"
    assert status(talk(platform, request(other))) == 401


def test_another_tenants_endpoint(platform: Platform, bearer: str) -> None:
    platform.catalog.ensure_schema("tenant.theirs")
    name = "tenant.theirs.secret"
    platform.serving.put(EndpointSettings(name=name, served_entities=[ServedEntity(name="echo", model="echo")]))
    platform.serving.wait(name)
    for path, body in (
        (PATH, {**CHAT, "model": name}),
        (f"/serving-endpoints/{name}/invocations", {"messages": CHAT["messages"]}),
        ("/v1/messages", {"model": name, "max_tokens": 5, "messages": CHAT["messages"]}),
        ("/v1/responses", {"model": name, "input": "hello", "store": False}),
    ):
        client_id = new_id("try")
        answer = talk(platform, request(path, bearer, marked(client_id), body=body))
        assert status(answer) in (403, 404), (path, answer)
        row = row_of(platform, client_id)
        assert row["status_code"] == status(answer) and row["principal"] == "front-door"
    platform.serving.delete(name)
