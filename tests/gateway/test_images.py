"""Images reach the providers that read them, as they came, and nobody else; rows have references."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import UnsupportedField
from mosaic.gateway.images import as_logged
from mosaic.gateway.providers import ProviderEngines
from mosaic.gateway.providers.anthropic_requests import as_anthropic
from mosaic.gateway.providers.doubles import ProviderDouble
from tests.gateway.inside import Door, door, said

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DATA_URL = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
ADDRESS = "https://pictures.example/cat.png?signature=secret0123"
REFERENCE = {"sha256": hashlib.sha256(PIXEL).hexdigest(), "bytes": len(PIXEL), "media_type": "image/png"}


def image(url: str = DATA_URL, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(told: str = "what is this") -> dict[str, Any]:
    return {"type": "text", "text": told}


def within(folder: Path, scenario: Callable[[Door, ProviderDouble], Awaitable[None]]) -> None:
    """With the endpoints `openai` and `anthropic`, which a provider's double answers for, and `echo`."""

    async def run() -> None:
        async with ProviderDouble() as double:
            engines = ProviderEngines(allow_private=True)

            def engine(entity: Any) -> Any:
                assert entity.external is not None, "an image came to an engine that reads text alone"
                return engines.engine(entity.external, entity.access)

            async with door(folder, engine) as gateway:
                put(gateway, double)
                await scenario(gateway, double)
            await engines.close()

    asyncio.run(run())


def put(gateway: Door, double: ProviderDouble, **held: Any) -> None:
    for provider, base in (("openai", f"{double.url}/v1"), ("anthropic", double.url)):
        if gateway.catalog.endpoints.find(provider) is None:
            options = {"base_url": base}
            gateway.catalog.connections.create(provider, connection_type="OPENAI", options=options, owner="admin")
        external = {"provider": provider, "name": "m1", "connection": provider}
        gateway.put(provider, {"name": "outside", "external_model": external}, ai_gateway=held)
    gateway.put("echo")


@pytest.mark.parametrize("stream", [False, True])
def test_providers_get_them_as_they_came_and_rows_have_references(tmp_path: Path, stream: bool) -> None:
    async def ask(gateway: Door, double: ProviderDouble) -> None:
        parts = [text(), image(detail="auto"), image(ADDRESS)]
        for provider in ("openai", "anthropic"):
            answer = await gateway.ask(provider, parts, stream=stream)
            assert answer.status_code == 200 and said(answer) == "what is this", answer.text
        openai, anthropic = (one.body["messages"][-1]["content"] for one in double.received)
        assert openai == parts
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PIXEL).decode()}
        by_address = {"type": "image", "source": {"type": "url", "url": ADDRESS}}
        assert anthropic == [text(), {"type": "image", "source": source}, by_address]
        for row in gateway.rows:
            kept = json.loads(row["request"])["messages"][0]["content"]
            assert kept[:2] == [text(), {"type": "image_url", "image_url": {"detail": "auto", **REFERENCE}}]
            assert kept[2]["image_url"]["url"] == "https://pictures.example/cat.png"
            assert kept[2]["image_url"]["url_sha256"] == hashlib.sha256(ADDRESS.encode()).hexdigest()
            assert source["data"] not in json.dumps(row) and "secret0123" not in json.dumps(row)

    within(tmp_path, ask)


def test_guards_read_the_text_beside_them(tmp_path: Path) -> None:
    async def ask(gateway: Door, double: ProviderDouble) -> None:
        mask = {"pii": {"behavior": "MASK", "types": ["EMAIL_ADDRESS"]}}
        put(gateway, double, guardrails={"input": mask, "output": mask})
        answer = await gateway.ask("openai", [image(), text("of a@posteo.de")])
        assert said(answer) == "of <EMAIL_ADDRESS>"
        assert double.received[-1].body["messages"][0]["content"] == [image(), text("of <EMAIL_ADDRESS>")]
        kept = json.loads(gateway.rows[-1]["request"])["messages"][0]["content"]
        assert kept == [{"type": "image_url", "image_url": REFERENCE}, text("of <EMAIL_ADDRESS>")]

    within(tmp_path, ask)


def test_who_reads_text_alone_is_not_asked(tmp_path: Path) -> None:
    async def ask(gateway: Door, double: ProviderDouble) -> None:
        answer = await gateway.ask("echo", [text(), image()])
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert error["param"] == "messages.0.content.1" and "'echo' of 'echo' reads text alone" in error["message"]
        outside = {"provider": "openai", "name": "m1", "connection": "openai"}
        first = {"name": "a", "external_model": outside, "traffic_percentage": 100}
        second = {"name": "b", "model": "echo", "traffic_percentage": 0}
        gateway.put("both", first, second)
        assert (await gateway.ask("both", [image(), text("hi")])).status_code == 200
        gateway.put("both", first, second, ai_gateway={"fallback_config": {"enabled": True}})
        assert (await gateway.ask("both", [image(), text("hi")])).status_code == 422  # the second may come to answer
        assert len(double.received) == 1

    within(tmp_path, ask)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (image("http://pictures.example/cat.png"), "must be a data: URL, or https://"),
        (image("https://ann:pw@pictures.example/cat.png"), "no user"),
        (image("file:///etc/passwd"), "must be a data: URL"),
        (image("https://"), "with a host"),
        (image("data:image/svg+xml;base64,AAAA"), "where TYPE is one of"),
        (image("data:text/html;base64,AAAA"), "where TYPE is one of"),
        (image("data:image/png,rawbytes"), "where TYPE is one of"),
        (image("data:image/png;base64,A*AA"), "is not base64"),
        (image("data:image/png;base64,AAA"), "is not base64"),
        (image("data:image/png;base64,"), "has 0 bytes"),
        (image(f"data:image/png;base64,{base64.b64encode(bytes(101)).decode()}"), "has 101 bytes"),
        (image(detail="ultra"), "detail"),
        ({"type": "image_url", "image_url": DATA_URL}, "image_url"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "image_url", "image_url": {"url": DATA_URL, "size": 1}}, "size"),
    ],
)
def test_what_cannot_be_is_refused_by_its_part(tmp_path: Path, part: dict[str, Any], says: str) -> None:
    async def ask(gateway: Door, double: ProviderDouble) -> None:
        put(gateway, double, images={"max_image_bytes": 100, "max_images": 2})
        answer = await gateway.ask("openai", [text(), image(), part])
        assert answer.status_code == 400, answer.text
        assert says in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"].startswith("messages.0.content")
        told = gateway.rows[-1]["request"]
        assert base64.b64encode(PIXEL).decode() not in told
        assert not double.received

    within(tmp_path, ask)


def test_there_may_be_so_many_and_only_users_say_them(tmp_path: Path) -> None:
    async def ask(gateway: Door, double: ProviderDouble) -> None:
        put(gateway, double, images={"max_images": 2})
        assert (await gateway.ask("openai", [image(), image(), text("hi")])).status_code == 200
        answer = await gateway.ask("openai", [image(), image(), text(), image()])
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages.0.content.3"
        messages = [{"role": "system", "content": [image()]}, {"role": "user", "content": "hi"}]
        body = {"model": "openai", "messages": messages}
        answer = await gateway.client.post("/v1/chat/completions", json=body, headers=gateway.auth("admin"))
        assert answer.status_code == 400 and "only for messages whose role is 'user'" in answer.text

    within(tmp_path, ask)


def test_anthropics_models_choose_how_closely_they_look() -> None:
    body = {"messages": [{"role": "user", "content": [image(detail="high")]}]}
    with pytest.raises(UnsupportedField, match="detail") as refused:
        as_anthropic(body, model="m", max_tokens=1, stream=False)
    assert refused.value.param == "messages.0.content.0.image_url.detail"


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.sampled_from(["messages", "other"]), st.booleans())
def test_no_image_is_logged_wherever_it_stands(content: bytes, where: str, wrongly: bool) -> None:
    data = base64.b64encode(b"secret" + content).decode()
    url = f"data:image/png;base64,{data}"
    asked = {where: [{"x": [{"image_url": url if wrongly else {"url": url, "detail": "low"}}]}], "model": "m"}
    told = as_logged(asked)
    assert data not in told and hashlib.sha256(b"secret" + content).hexdigest() in told
    assert json.loads(as_logged({"messages": [{"content": "data:image/png;base64,AAAA"}]})) == {
        "messages": [{"content": "data:image/png;base64,AAAA"}]
    }


BY_DOOR: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "anthropic": ("/v1/messages", lambda parts: {"messages": [{"role": "user", "content": parts}], "max_tokens": 99}),
    "openai": ("/v1/responses", lambda parts: {"input": [{"role": "user", "content": parts}]}),
}


def test_they_come_by_the_other_doors_too(tmp_path: Path) -> None:
    data = base64.b64encode(PIXEL).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    theirs = [{"type": "image", "source": source}, {"type": "image", "source": {"type": "url", "url": ADDRESS}}, text()]
    parts = [{"type": "input_image", "image_url": DATA_URL, "detail": "low"}, {"type": "input_text", "text": "what is"}]
    wrong = {"type": "image", "source": {**source, "media_type": "image/tiff"}}

    async def ask(gateway: Door, double: ProviderDouble) -> None:
        async def by(door: str, model: str, said: Any, **more: Any) -> int:
            path, body = BY_DOOR[door]
            told = {"model": model, **body(said), **more}
            return (await gateway.client.post(path, json=told, headers=gateway.auth("admin"))).status_code

        assert await by("anthropic", "anthropic", theirs) == 200
        assert double.received[-1].body["messages"][0]["content"] == theirs
        assert await by("openai", "openai", parts) == 200
        assert double.received[-1].body["messages"][0]["content"][0] == image(detail="low")
        assert await by("anthropic", "openai", theirs) == 200
        assert double.received[-1].body["messages"][0]["content"] == [image(), image(ADDRESS), text()]
        assert await by("anthropic", "echo", theirs) == 422 and await by("openai", "echo", parts) == 422
        assert await by("anthropic", "anthropic", [wrong]) == 400
        assert await by("anthropic", "anthropic", theirs, temperature=9) == 400  # before it is a chat
        told = {"model": "echo", "messages": [{"role": "user", "content": theirs}]}
        counted = await gateway.client.post("/v1/messages/count_tokens", json=told, headers=gateway.auth("admin"))
        assert counted.status_code == 422
        assert len(gateway.rows) == 8 and not [row for row in gateway.rows if data in json.dumps(row)]
        assert all(REFERENCE["sha256"] in row["request"] for row in gateway.rows)

    within(tmp_path, ask)
