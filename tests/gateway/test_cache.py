"""Answers that are given again: only to who may have them, only for the same, only whole ones, within bounds."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import BadRequest
from mosaic.gateway.cache import Store, Wanted, is_repeatable, key_of
from mosaic.gateway.endpoints import Endpoint, LiveEntity
from mosaic.protocol import Adapter, Engine, EngineRequest
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.endpoint import EndpointSettings
from mosaic.serving.external import Access, ExternalModel
from tests.gateway.inside import Door, door, said

ON = {"ai_gateway": {"cache": {"enabled": True}}}
SAME: dict[str, Any] = {"temperature": 0}


class Counted:
    """The echo, and which entities were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._echo = EchoEngine()

    def __call__(self, entity: LiveEntity) -> Engine:
        self.asked.append(entity.name)
        return self._echo


def within(folder: Path, scenario: Callable[[Door, list[str]], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = Counted()
        async with door(folder, engine) as gateway:
            await scenario(gateway, engine.asked)

    asyncio.run(run())


def is_hit(answer: httpx.Response) -> bool:
    assert answer.status_code == 200, answer.text
    return answer.headers["cache-status"].startswith("mosaic; hit; ttl=")


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_the_same_again_is_given_the_same_at_no_tokens(tmp_path: Path, stream: bool) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gateway.put("kept", **ON)
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        first = await gateway.ask("kept", "one two three", **SAME, **more)
        again = await gateway.ask("kept", "one two three", user="u", metadata={"a": "b"}, **SAME, **more)
        assert not is_hit(first) and is_hit(again) and asked == ["echo"]
        assert said(first) == said(again) == "one two three" and "age" in again.headers
        assert first.headers["cache-status"] == "mosaic; fwd=miss"
        one, two = gateway.rows
        assert (one["output_tokens"], "cached" in one) == (3, False)
        assert (two["input_tokens"], two["output_tokens"], two["cached"]) == (0, 0, True)
        assert two["served_entity"] == "echo" and one["request_id"] != two["request_id"]
        kept = json.loads(two["response"])
        assert kept["id"] == two["request_id"]
        assert kept["usage"]["completion_tokens"] == 3  # what it took once, as clients read it
        # the other way to have it is another answer
        assert not is_hit(await gateway.ask("kept", "one two three", **SAME, stream=not stream))

    within(tmp_path, ask)


CHANGES: dict[str, Any] = {
    "temperature": 0.5,
    "max_tokens": 7,
    "max_completion_tokens": 7,
    "top_p": 0.5,
    "top_k": 1,
    "min_p": 0.1,
    "stop": ["x"],
    "seed": 2,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "repetition_penalty": 1.1,
    "logit_bias": {"1": 1},
    "response_format": {"type": "json_object"},
    "n": 2,
    "logprobs": True,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "structured_outputs": {"regex": "a+"},
    "min_tokens": 1,
    "ignore_eos": True,
    "stop_token_ids": [1],
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "add_generation_prompt": False,
}


def test_a_change_of_any_field_is_asked_anew(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gateway.put("kept", **ON)
        base = {"temperature": 0, "seed": 1}
        await gateway.ask("kept", **base)
        assert is_hit(await gateway.ask("kept", **base))
        for field, value in CHANGES.items():
            assert not is_hit(await gateway.ask("kept", **{**base, field: value})), field
            assert is_hit(await gateway.ask("kept", **{**base, field: value})), field
        assert not is_hit(await gateway.ask("kept", "hello ", **base))
        assert not is_hit(await gateway.ask("kept", [{"type": "text", "text": "hello"}], **base))
        gateway.put("other", **ON)
        assert not is_hit(await gateway.ask("other", **base))
        assert is_hit(await gateway.ask("kept", **base))

    within(tmp_path, ask)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 1) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=4,
)
ASKED = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)
ENDPOINT = Endpoint("main.serving.e", "e", 3, "chat", (), None, 0, id="id-1")
ENTITY = LiveEntity("arm", "engine-m", "m", 100, version=2, alias="champion", adapter=Adapter(name="m/2"))
EXTERNAL = ExternalModel.parse({"provider": "custom", "name": "m", "connection": "c"})


def key(
    body: dict[str, Any],
    *,
    tenant: list[str] | None = None,
    entity: LiveEntity = ENTITY,
    endpoint: Endpoint = ENDPOINT,
    task: Any = "chat",
    stream: bool = False,
) -> bytes:
    request = EngineRequest(request_id="req_1", task=task, body=body, stream=stream)
    return key_of(tenant or ["principal", "ann"], endpoint, entity, request)


@settings(max_examples=100, deadline=None)
@given(ASKED, ASKED, st.text(max_size=3), st.text(max_size=3))
def test_keys_are_the_same_exactly_for_what_is_the_same(
    one: dict[str, Any], two: dict[str, Any], ann: str, bob: str
) -> None:
    def canonical(body: dict[str, Any]) -> bytes:
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)

    assert (key(one) == key(two)) == (canonical(one) == canonical(two))
    assert key(one) == key(dict(reversed(one.items())))
    assert (key(one, tenant=["principal", ann]) == key(one, tenant=["principal", bob])) == (ann == bob)


def test_keys_differ_by_who_answers_and_under_what() -> None:
    body = {"messages": [], "temperature": 0}
    there = replace(ENTITY, external=EXTERNAL, access=Access("https://a"))
    others = {
        key(body),
        key(body, tenant=["group", "ann"]),
        key(body, task="complete"),
        key(body, stream=True),
        key(body, endpoint=replace(ENDPOINT, config_version=4)),
        key(body, endpoint=replace(ENDPOINT, id="id-2")),
        key(body, entity=replace(ENTITY, name="other")),
        key(body, entity=replace(ENTITY, version=3)),
        key(body, entity=replace(ENTITY, adapter=Adapter(name="m/3"))),
        key(body, entity=replace(ENTITY, app_name="engine-m-8")),
        key(body, entity=there),
        key(body, entity=replace(there, access=Access("https://b"))),
        key(body, entity=replace(there, external=EXTERNAL.model_copy(update={"name": "m2"}))),
    }
    assert len(others) == 13
    assert key(body, entity=replace(there, access=Access("https://a", "another key"))) in others


def test_each_has_its_own_and_only_a_group_that_is_named_shares(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gateway.put("kept", **ON)
        for name in ("ann", "bob", "eve"):
            gateway.auth(name)
            gateway.catalog.grants.grant("schema", "main.serving", name, ["EXECUTE", "USE SCHEMA"], by="admin")
            gateway.catalog.grants.grant("catalog", "main", name, ["USE CATALOG"], by="admin")
        assert [is_hit(await gateway.ask("kept", by=name, **SAME)) for name in ("ann", "bob", "ann")] == [0, 0, 1]
        gateway.catalog.principals.create_group("team", by="admin")
        for name in ("ann", "bob"):
            gateway.catalog.principals.add_member("team", name, by="admin")
        gateway.put("kept", ai_gateway={"cache": {"enabled": True, "group": "team"}})
        # under the new configuration nothing of the old one is given
        told = [is_hit(await gateway.ask("kept", by=name, **SAME)) for name in ("ann", "bob", "eve", "eve")]
        assert told == [False, True, False, True]
        gateway.catalog.principals.remove_member("team", "bob", by="admin")
        assert not is_hit(await gateway.ask("kept", by="bob", **SAME))

    within(tmp_path, ask)


def test_what_failed_was_refused_or_was_another_ones_is_not_kept(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        block = {"output": {"invalid_keywords": ["nightjar"]}}
        gateway.put("kept", ai_gateway={"cache": {"enabled": True}, "guardrails": block})
        for text, stream in (("fail: a b", True), ("about nightjar", True), ("about nightjar", False)):
            for _ in range(2):
                await gateway.ask("kept", text, **SAME, stream=stream)
        assert [row["status_code"] for row in gateway.rows] == [502, 502, 400, 400, 400, 400]
        assert len(asked) == 6 and not any("cached" in row for row in gateway.rows)

    within(tmp_path, ask)


def test_output_guards_read_what_was_kept_once_more(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        mask = {"output": {"pii": {"behavior": "MASK", "types": ["EMAIL_ADDRESS"]}}}
        gateway.put("kept", ai_gateway={"cache": {"enabled": True}, "guardrails": mask})
        for stream in (False, True):
            answers = [await gateway.ask("kept", "to a@posteo.de", **SAME, stream=stream) for _ in range(2)]
            assert [is_hit(one) for one in answers] == [False, True]
            assert [said(one) for one in answers] == ["to <EMAIL_ADDRESS>"] * 2
        outcomes = [json.loads(row["guardrails"])["output"]["EMAIL_ADDRESS"]["outcome"] for row in gateway.rows]
        assert outcomes == ["masked"] * 4 and len(asked) == 2

    within(tmp_path, ask)


def test_what_took_anothers_place_is_not_kept_as_its(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gone = {"name": "a", "model": "main.ml.none@champion", "traffic_percentage": 100}
        other = {"name": "b", "model": "echo", "traffic_percentage": 0}
        gateway.put("kept", gone, other, ai_gateway={"cache": {"enabled": True}, "fallback_config": {"enabled": True}})
        for _ in range(3):
            assert not is_hit(await gateway.ask("kept", **SAME))
        assert asked == ["b"] * 3

    within(tmp_path, ask)


def test_what_is_drawn_is_kept_only_where_that_was_asked_for(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gateway.put("kept", **ON)
        for _ in range(2):
            answer = await gateway.ask("kept")
            assert answer.headers["cache-status"] == "mosaic; fwd=bypass"
        gateway.put("kept", ai_gateway={"cache": {"enabled": True, "sampled": True}})
        assert [is_hit(await gateway.ask("kept")) for _ in range(2)] == [False, True]
        gateway.put("plain")
        assert "cache-status" not in (await gateway.ask("plain", **SAME)).headers

    within(tmp_path, ask)
    assert [is_repeatable(body) for body in ({}, {"temperature": 0.2}, {"temperature": 0.2, "seed": 0})] == [0, 0, 1]


def test_cache_control_is_obeyed(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gateway.put("kept", **ON)

        async def hit(told: str) -> bool:
            return is_hit(await gateway.ask("kept", headers={"cache-control": told}, **SAME))

        assert not await hit("no-store") and not await hit("max-age=60")  # the first was not kept
        assert await hit("max-age=60") and await hit("something-new")
        assert not await hit("No-Cache") and not await hit("max-age=0") and not await hit("private, no-store")
        assert await hit("") and len(asked) == 5

    within(tmp_path, ask)
    assert Wanted.of('max-age="5", no-store') == Wanted(False, 5.0) and Wanted.of("max-age=-1, =,,") == Wanted()


def test_a_hit_takes_a_call_and_no_tokens(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        limits = [{"calls": 3}, {"tokens": 500}]
        gateway.put("kept", ai_gateway={"cache": {"enabled": True}, "rate_limits": limits})
        told = [await gateway.ask("kept", "one two", **SAME, stream=True, max_tokens=100) for _ in range(4)]
        assert [one.status_code for one in told] == [200, 200, 200, 429]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in told[:3]] == ["2", "1", "0"]
        assert gateway.rows[1]["cached"] and gateway.rows[2]["cached"]
        # 500 tokens are reserved for the prompt and 256 for the answer, which takes 256 more as it grows and is settled
        # with 300 and 300. The second has 756 of the 800 that are left: what was kept needs no more while it streams.
        gateway.put("kept", ai_gateway={"cache": {"enabled": True}, "rate_limits": [{"tokens": 1400}]})
        long = " ".join(["word"] * 300)
        told = [await gateway.ask("kept", long, **SAME, stream=True) for _ in range(2)]
        assert [is_hit(one) for one in told] == [False, True] and [said(one) for one in told] == [long] * 2

    within(tmp_path, ask)


def test_many_at_once_are_all_answered_and_the_next_from_what_was_kept(tmp_path: Path) -> None:
    async def ask(gateway: Door, asked: list[str]) -> None:
        gateway.put("kept", **ON)
        texts = [f"slow: {number % 3}" for number in range(30)]
        told = await asyncio.gather(*(gateway.ask("kept", text, **SAME, stream=True) for text in texts))
        assert [said(one) for one in told] == texts
        before = len(asked)
        again = await asyncio.gather(*(gateway.ask("kept", text, **SAME, stream=True) for text in texts))
        assert [said(one) for one in again] == texts and all(map(is_hit, again)) and len(asked) == before

    within(tmp_path, ask)


PUTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3000), st.booleans()), max_size=40)


@settings(max_examples=200, deadline=None)
@given(PUTS)
def test_a_store_holds_to_its_bytes_and_lets_go_what_was_asked_for_longest_ago(
    steps: list[tuple[str, int, bool]],
) -> None:
    store, order, sizes = Store(5000, 10), list[str](), dict[str, int]()
    for now, (name, size, is_put) in enumerate(steps):
        if is_put:
            store.put(name.encode(), b"x" * size, now=0)
            order = [one for one in order if one != name] + [name]
            sizes[name] = size + 600
            while sum(sizes[one] for one in order) > 5000:
                order.pop(0)
        else:
            found = store.get(name.encode(), now=0, max_age_seconds=99)
            assert (found is not None) == (name in order), now
            if found is not None:
                assert len(found.data) + 600 == sizes[name]
                order = [one for one in order if one != name] + [name]
        assert store.size_bytes == sum(sizes[one] for one in order) <= 5000 and len(store) == len(order)


def test_a_store_gives_nothing_that_is_too_old_or_too_large() -> None:
    store = Store(10_000, ttl_seconds=10)
    store.put(b"a", b"1", now=100)
    assert store.get(b"a", now=109.9, max_age_seconds=99) and not store.get(b"a", now=110, max_age_seconds=99)
    assert store.get(b"a", now=103, max_age_seconds=4) and not store.get(b"a", now=104, max_age_seconds=4)
    store.put(b"a", b"2" * 10_000, now=100)
    assert store.get(b"a", now=100, max_age_seconds=99) is None and store.size_bytes == 0


def test_what_cannot_be_is_refused_with_its_field() -> None:
    echo = [{"name": "echo", "model": "echo"}]
    for told, says in (
        ({"task": "embed", "ai_gateway": {"cache": {"enabled": True}}}, "a cache is only for"),
        ({"ai_gateway": {"cache": {"ttl_seconds": 0}}}, "cache.ttl_seconds"),
        ({"ai_gateway": {"cache": {"semantic": True}}}, "semantic"),
    ):
        with pytest.raises(BadRequest, match=says):
            EndpointSettings.parse({"name": "e", "served_entities": echo, **told})
