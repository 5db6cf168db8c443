"""External models as endpoints: their providers answer, fail, and are taken the place of; their keys are nowhere."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.platform import Platform
from mosaic.protocol import Principal
from mosaic.serving.endpoint import EndpointSettings
from tests.local import free_ports

KEY = "sk-external-0123456789abcdefghij"
HELLO: Any = [{"role": "user", "content": "hello there world"}]
ENDPOINT = "outside"


@pytest.fixture(scope="module")
def double(platform: Platform) -> Iterator[str]:
    """A provider in a process of its own, and connections to it: `to-openai`, `to-anthropic`."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "mosaic.gateway.providers.doubles", "--port", str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.05)
        for name, base in (("to-openai", f"{url}/v1"), ("to-anthropic", url)):
            options = {"base_url": base, "api_key": KEY}
            platform.catalog.connections.create(name, connection_type="OPENAI", options=options, owner="admin")
        yield url
    finally:
        server.terminate()
        server.wait()
        for name in ("to-openai", "to-anthropic"):
            platform.catalog.connections.delete(name)


@pytest.fixture
def outside(platform: Platform, double: str) -> Iterator[Any]:
    """Puts the endpoint before these entities, the first with all the traffic; returns its name."""

    def put(*entities: dict[str, Any], **more: Any) -> str:
        served = [{"traffic_percentage": 100 if n == 0 else 0, **one} for n, one in enumerate(entities)]
        platform.serving.put(EndpointSettings.parse({"name": ENDPOINT, "served_entities": served, **more}))
        platform.serving.wait(ENDPOINT)
        time.sleep(0.4)  # every gateway looks four times a second
        return ENDPOINT

    yield put
    platform.serving.delete(ENDPOINT)


def entity(name: str, model: str = "m1", provider: str = "openai", **more: Any) -> dict[str, Any]:
    external = {"provider": provider, "name": model, "connection": f"to-{provider}", **more}
    return {"name": name, "external_model": external}


FALLS_BACK = {"ai_gateway": {"fallback_config": {"enabled": True}}}


def row(platform: Platform, request_id: str) -> dict[str, Any]:
    platform.flush_ledger()
    rows = platform.tables.to_arrow("system.serving.inference").to_pylist()
    (found,) = [one for one in rows if one["request_id"] == request_id]
    return {**found, "attempts": json.loads(found["attempts"] or "[]")}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_provider_answers_whole_and_streamed(platform: Platform, client: OpenAI, outside: Any, provider: str) -> None:
    name = outside(entity("a", "m1", provider))
    answer = client.chat.completions.create(model=name, messages=HELLO)
    assert answer.choices[0].message.content == "hello there world" and answer.model == name
    kept = row(platform, answer.id)
    assert (kept["served_entity"], kept["model"], kept["attempts"]) == ("a", "m1", [])
    assert answer.usage is not None and kept["output_tokens"] == answer.usage.completion_tokens == 3
    with client.chat.completions.create(
        model=name, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "hello there world"
    assert chunks[-1].usage is not None and row(platform, chunks[0].id)["output_tokens"] == 3


def test_embeddings_of_a_provider(client: OpenAI, outside: Any) -> None:
    name = outside(entity("a"), task="embed")
    found = client.embeddings.create(model=name, input=["ab", "abcd"])
    assert [one.embedding[0] for one in found.data] == [2.0, 4.0]


def test_the_next_entity_answers_for_one_that_fails_and_then_at_once(
    platform: Platform, client: OpenAI, outside: Any
) -> None:
    name = outside(entity("a", "m1 fault: 500"), {"name": "b", "model": "echo"}, **FALLS_BACK)
    answers = [client.chat.completions.create(model=name, messages=HELLO) for _ in range(3)]
    assert {one.choices[0].message.content for one in answers} == {"hello there world"}
    first = row(platform, answers[0].id)
    assert first["served_entity"] == "b" and first["attempts"] == [{"entity": "a", "error": "provider_failed"}]
    # More failures than may be asked again, and then the breaker opens: nobody waits for `a` any more.
    answered = []
    for _ in range(20):
        try:
            answered.append(client.chat.completions.create(model=name, messages=HELLO).id)
        except openai.InternalServerError as error:
            assert error.code == "provider_failed"
    assert row(platform, answered[-1])["attempts"] == [{"entity": "a", "error": "left alone"}]
    with client.chat.completions.create(model=name, messages=HELLO, stream=True) as stream:
        assert "".join(one.choices[0].delta.content or "" for one in stream if one.choices) == "hello there world"


def test_the_next_entity_answers_for_one_that_is_gone(
    platform: Platform, client: OpenAI, double: str, outside: Any
) -> None:
    options = {"base_url": f"{double}/v1"}
    platform.catalog.connections.create("to-nowhere", connection_type="OPENAI", options=options, owner="admin")
    gone = {"provider": "custom", "name": "m1", "connection": "to-nowhere"}
    name = outside({"name": "a", "external_model": gone}, {"name": "b", "model": "echo"}, **FALLS_BACK)
    assert row(platform, client.chat.completions.create(model=name, messages=HELLO).id)["served_entity"] == "a"
    platform.catalog.connections.delete("to-nowhere")
    time.sleep(0.4)
    kept = row(platform, client.chat.completions.create(model=name, messages=HELLO).id)
    assert kept["served_entity"] == "b" and kept["attempts"] == [{"entity": "a", "error": "model_gone"}]


def test_what_fails_once_it_has_begun_ends_with_an_error(platform: Platform, token: str, outside: Any) -> None:
    name = outside(entity("a", "m1 tokens: 9 fault: cut"), {"name": "b", "model": "echo"}, **FALLS_BACK)
    asked = {"model": name, "messages": HELLO, "stream": True}
    address, head = f"{platform.base_url}/v1/chat/completions", {"authorization": f"Bearer {token}"}
    answer = httpx.post(address, json=asked, headers=head, timeout=60)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert len(events) > 1 and "[DONE]" not in events and "error" in json.loads(events[-1])
    kept = row(platform, answer.headers["x-request-id"])
    assert kept["status_code"] == 502 and kept["served_entity"] == "a" and kept["response"]


def test_a_provider_that_keeps_failing_is_left_alone(platform: Platform, client: OpenAI, outside: Any) -> None:
    name = outside(entity("a", "m2 fault: 500"))
    for _ in range(10):
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model=name, messages=HELLO)
        assert failed.value.code == "provider_failed" and failed.value.status_code == 502
    with pytest.raises(openai.InternalServerError, match="is left alone for now") as left:
        client.chat.completions.create(model=name, messages=HELLO)
    assert left.value.status_code == 503 and 0 < int(left.value.response.headers["retry-after-ms"]) <= 10_000


def test_a_providers_429_is_passed_on_with_its_wait(client: OpenAI, outside: Any) -> None:
    name = outside(entity("a", "m1 fault: 429 retry-after"))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=name, messages=HELLO)
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_key_is_in_no_file_no_answer_and_no_process_list(platform: Platform, client: OpenAI, outside: Any) -> None:
    name = outside(entity("a", "m1 fault: 401"))
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model=name, messages=HELLO)
    assert refused.value.code == "provider_credentials" and KEY not in refused.value.response.text
    platform.flush_ledger()
    platform.flush_audit()
    assert platform.cluster.pid is not None
    logs = Path(f"/proc/{platform.cluster.pid}/root") / "tmp"
    folders = [platform.settings.home_folder, *logs.glob("mosaic-ray-*"), *logs.glob("mosaic-run-*")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 50
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout


def test_metadata_addresses_are_never_asked(platform: Platform, client: OpenAI, outside: Any) -> None:
    options = {"base_url": "http://169.254.169.254/latest"}
    platform.catalog.connections.create("to-inside", connection_type="OPENAI", options=options, owner="admin")
    try:
        inside = {"provider": "custom", "name": "m1", "connection": "to-inside"}
        name = outside({"name": "a", "external_model": inside})
        with pytest.raises(openai.InternalServerError, match="cannot be reached") as refused:
            client.chat.completions.create(model=name, messages=HELLO)
        assert refused.value.code == "provider_unreachable" and "169.254" not in refused.value.response.text
    finally:
        platform.catalog.connections.delete("to-inside")


def test_an_entity_that_cannot_be_is_refused_with_its_field(platform: Platform, double: str) -> None:
    def put(served: dict[str, Any], *, by: str = "admin", **more: Any) -> None:
        serving = platform.acting(Principal(name=by, is_admin=by == "admin")).serving
        serving.create(EndpointSettings.parse({"name": "refused", "served_entities": [served], **more}))

    with pytest.raises(NotFound, match="no-such"):
        put({"name": "a", "external_model": {"provider": "openai", "name": "m1", "connection": "no-such"}})
    with pytest.raises(BadRequest, match="either model or external_model"):
        put({"name": "a"})
    with pytest.raises(BadRequest, match="provider"):
        put(entity("a", provider="palm"))
    with pytest.raises(BadRequest, match="providers of 'anthropic' do chat"):
        put(entity("a", provider="anthropic"), task="embed")
    platform.catalog.connections.create("bare", connection_type="OPENAI", options={"region": "x"}, owner="admin")
    try:
        with pytest.raises(BadRequest, match="no option base_url"):
            put({"name": "a", "external_model": {"provider": "custom", "name": "m1", "connection": "bare"}})
    finally:
        platform.catalog.connections.delete("bare")
    platform.catalog.principals.create("external-eve", by="admin")
    platform.catalog.grants.grant("schema", "main.serving", "external-eve", ["CREATE MODEL"], by="admin")
    with pytest.raises(PermissionDenied, match="USE CONNECTION"):
        put(entity("a"), by="external-eve")
