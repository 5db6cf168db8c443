"""Rate limits from outside: whom they hold, what is told, how they change, and what a kill of the quota leaves."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from openai import OpenAI
from ray.util.state import list_actors

from mosaic.catalog.budgets import Scope
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings
from tests.local import mosaic

HELLO: Any = [{"role": "user", "content": "hello there"}]
BASE = "/api/2.0/serving-endpoints"


@pytest.fixture
def limited(platform: Platform, request: pytest.FixtureRequest) -> Iterator[str]:
    """An endpoint of its own before the echo; `limit` it."""
    name = "limited-" + request.node.name.replace("_", "-")[5:40].strip("-").partition("[")[0]
    limit(platform, name)
    yield name
    platform.serving.delete(name)


def limit(platform: Platform, name: str, *limits: dict[str, Any]) -> None:
    echo = [{"name": "echo", "model": "echo"}]
    told = {"name": name, "served_entities": echo, "ai_gateway": {"rate_limits": limits}}
    version = platform.serving.put(EndpointSettings.parse(told)).config_version
    live = platform.serving.wait(name)
    if live.config_version != version:
        time.sleep(0.4)  # every gateway looks four times a second


def client_of(platform: Platform, user: str, *, max_retries: int = 0) -> OpenAI:
    token = platform.catalog.create_token(user, kind="user", is_admin=False)[1]
    return OpenAI(base_url=f"{platform.base_url}/v1", api_key=token, max_retries=max_retries, timeout=60)


def rows_of(platform: Platform, name: str) -> list[dict[str, Any]]:
    platform.flush_ledger()
    rows: list[dict[str, Any]] = platform.tables.to_arrow("system.serving.inference").to_pylist()
    return [row for row in rows if row["endpoint"] in (name, f"main.serving.{name}")]


def ask(client: OpenAI, name: str, **more: Any) -> Any:
    return client.chat.completions.with_raw_response.create(model=name, messages=HELLO, **more)


def test_each_user_has_its_own_calls_and_is_told_what_is_left(platform: Platform, limited: str) -> None:
    limit(platform, limited, {"calls": 3, "key": "user"}, {"calls": 5, "key": "endpoint"})
    ann, bob = client_of(platform, "limited-ann"), client_of(platform, "limited-bob")
    for left in (2, 1, 0):
        headers = ask(ann, limited).headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("3", str(left))
        assert headers["x-ratelimit-reset-requests"].endswith("ms") and "x-ratelimit-limit-tokens" not in headers
    with pytest.raises(openai.RateLimitError, match="3 requests a minute for 'limited-ann' is reached") as refused:
        ask(ann, limited)
    told = refused.value.response.headers
    assert refused.value.code == "rate_limit_exceeded" and 0 < int(told["retry-after-ms"]) <= 60_000
    assert 0 < int(told["retry-after"]) <= 60
    for left in (1, 0):
        assert ask(bob, limited).headers["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(openai.RateLimitError, match="5 requests a minute for all callers"):
        ask(bob, limited)
    assert sorted(row["status_code"] for row in rows_of(platform, limited)) == [200] * 5 + [429] * 2


def test_a_group_shares_and_a_named_user_has_its_own_in_place_of_everybodys(platform: Platform, limited: str) -> None:
    principals = platform.catalog.principals
    anna, ben = client_of(platform, "limited-anna"), client_of(platform, "limited-ben")
    principals.create_group("limited-team", by="admin")
    for member in ("limited-anna", "limited-ben"):
        principals.add_member("limited-team", member, by="admin")
    own = {"calls": 9, "key": "user", "principal": "limited-anna"}
    limit(
        platform,
        limited,
        {"calls": 3, "key": "user_group", "principal": "limited-team"},
        {"calls": 1, "key": "user"},
        own,
    )
    assert ask(anna, limited).headers["x-ratelimit-limit-requests"] == "3"
    ask(anna, limited)
    ask(ben, limited)
    with pytest.raises(openai.RateLimitError, match="3 requests a minute for group 'limited-team'"):
        ask(anna, limited)
    cay = client_of(platform, "limited-cay")
    ask(cay, limited)
    with pytest.raises(openai.RateLimitError, match="1 requests a minute for 'limited-cay'"):
        ask(cay, limited)


def test_tokens_are_reserved_and_what_was_not_used_comes_back(platform: Platform, limited: str) -> None:
    limit(platform, limited, {"tokens": 400})
    client = client_of(platform, "limited-ann")
    first = ask(client, limited, max_tokens=350)
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 50
    second = ask(client, limited, max_tokens=350)  # two words in, two words out: 4 of 400 are gone
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 400 - 4 - 350 - 4
    with pytest.raises(
        openai.RateLimitError, match="may take 404 tokens, and the limit is 400 tokens a minute"
    ) as never:
        ask(client, limited, max_tokens=400)
    assert never.value.response.headers["x-should-retry"] == "false"


def test_a_whole_answer_is_never_cut_off_and_makes_the_next_wait(platform: Platform, limited: str) -> None:
    limit(platform, limited, {"tokens": 1300})
    client = client_of(platform, "limited-ann")
    words: Any = [{"role": "user", "content": "w " * 1_000}]
    answer = client.chat.completions.create(model=limited, messages=words)
    assert answer.usage is not None and answer.usage.total_tokens > 2_000
    with pytest.raises(openai.RateLimitError, match="1300 tokens a minute for all callers is reached"):
        ask(client, limited, max_tokens=1)


def test_a_stream_takes_more_as_it_grows_and_is_cut_off_where_nothing_is_left(platform: Platform, limited: str) -> None:
    limit(platform, limited, {"tokens": 1300})
    client = client_of(platform, "limited-ann")
    words: Any = [{"role": "user", "content": "w " * 1_000}]
    seen = 0
    with (
        pytest.raises(
            openai.APIError, match=r"1300 tokens a minute for all callers is reached.*cut off after 512 tokens"
        ),
        client.chat.completions.create(model=limited, messages=words, stream=True) as stream,
    ):
        for _ in stream:
            seen += 1
    assert seen == 512
    (kept,) = rows_of(platform, limited)
    assert (kept["status_code"], kept["output_tokens"]) == (429, 512)


def test_what_can_never_pass_is_not_tried_again(platform: Platform, limited: str) -> None:
    limit(platform, limited, {"calls": 0})
    with pytest.raises(openai.RateLimitError, match="may take 1 requests, and the limit is 0 requests"):
        ask(client_of(platform, "limited-ann", max_retries=5), limited)
    assert len(rows_of(platform, limited)) == 1


def test_over_rest_in_databricks_shape(platform: Platform, limited: str) -> None:
    admin = {"authorization": f"Bearer {platform.catalog.create_token('admin', kind='user', is_admin=True)[1]}"}

    def put(path: str, body: Any) -> httpx.Response:
        return httpx.put(f"{platform.base_url}{BASE}/{limited}/{path}", json=body, headers=admin, timeout=60)

    wanted = {"rate_limits": [{"calls": 2, "key": "user", "renewal_period": "minute"}]}
    told = put("ai-gateway", wanted)
    held = {
        **wanted,
        "guardrails": {},
        "fallback_config": {"enabled": False},
        "inference_table_config": {"enabled": False, "redact": "none", "sampling_fraction": 1.0},
        "images": {"max_images": 8, "max_image_bytes": 2 * 2**20},
        "cache": {"enabled": False, "ttl_seconds": 300, "max_mebibytes": 64, "sampled": False},
        "usage_tracking_config": {"enabled": True},
    }
    assert told.status_code == 200 and told.json() == held
    platform.serving.wait(limited)
    shown = httpx.get(f"{platform.base_url}{BASE}/{limited}", headers=admin).json()
    assert shown["ai_gateway"]["rate_limits"] == wanted["rate_limits"] and shown["config"]["config_version"] == 2
    time.sleep(0.4)
    assert ask(client_of(platform, "limited-ann"), limited).headers["x-ratelimit-limit-requests"] == "2"
    # a change of what is served leaves the limits as they are
    put("config", {"served_entities": [{"name": "other", "entity_name": "echo"}]})
    assert platform.serving.wait(limited).config["ai_gateway"]["rate_limits"][0]["calls"] == 2
    made = {
        "name": f"{limited}-2",
        "config": {"served_entities": [{"name": "e", "entity_name": "echo"}], "task": "embed"},
    }
    rules = {"guardrails": {"output": {"pii": {"behavior": "MASK"}}}}
    told = httpx.post(f"{platform.base_url}{BASE}", json={**made, "ai_gateway": rules}, headers=admin, timeout=60)
    assert told.status_code == 400 and "only for endpoints whose task" in told.json()["message"]
    assert httpx.get(f"{platform.base_url}{BASE}/{limited}-2", headers=admin).status_code == 404
    for body, says in (
        ({"rate_limits": [{"key": "user"}]}, "needs calls or tokens"),
        ({"rate_limits": [{"calls": -1}]}, "rate_limits.0.calls"),
        ({"rate_limits": [{"calls": 1}, {"calls": 2}]}, "two rate limits on calls for endpoint"),
        ({"rate_limits": [{"calls": 1, "key": "user_group"}]}, "needs principal"),
        ({"rate_limits": [{"calls": 1, "key": "user_group", "principal": "nobody"}]}, "no group 'nobody'"),
        ({"rate_limits": [{"calls": 1, "renewal_period": "hour"}]}, "renewal_period"),
        ({"inference_table_config": {"enabled": True}}, "inference_table_config"),
    ):
        refused = put("ai-gateway", body)
        assert refused.status_code in (400, 404) and says in refused.json()["message"], refused.text


def while_the_quota_is_killed(ask_once: Callable[[], Any]) -> list[str]:
    """`passed`, or the code of the refusal, of each of 120 requests of 8 clients, of which some are on their way when
    the quota's actor is killed."""
    pid = next(one.pid for one in list_actors(filters=[("name", "=", "quota:0")]))
    told: list[str] = []

    def run() -> None:
        for _ in range(15):
            try:
                ask_once()
                told.append("passed")
            except openai.RateLimitError as error:
                told.append(str(error.code))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(run) for _ in range(8)]
        while len(told) < 20 and not any(one.done() for one in clients):
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
    for one in clients:
        one.result()  # raises what its client was told besides
    return told


def test_a_killed_quota_forgets_nothing_and_lets_nothing_more_through(platform: Platform, limited: str) -> None:
    limit(platform, limited, {"calls": 60})
    shard = ray.get_actor("quota:0", namespace="mosaic")
    client = client_of(platform, "limited-ann")
    told = while_the_quota_is_killed(lambda: ask(client, limited))
    assert (told.count("passed"), told.count("rate_limit_exceeded")) == (60, 60)
    assert ray.get(shard.buckets.remote()) >= 1


def test_a_killed_quota_forgets_no_money(platform: Platform, limited: str, settings_file: Path) -> None:
    """A cent for each word read or written; two words in and two out are what is held, too."""
    cent = 10**7
    limit(platform, limited, {"calls": 1000, "key": "user"})
    platform.money.set_price(
        "echo", input_nano_dollars_per_million=10**6 * cent, output_nano_dollars_per_million=10**6 * cent
    )
    client = client_of(platform, "budget-ann")
    scope = Scope(user="budget-ann")
    platform.money.create_budget("killed", amount_nano_dollars=240 * cent, period="month", scope=scope)
    time.sleep(0.4)
    words: Any = [{"role": "user", "content": "a bc"}]
    told = while_the_quota_is_killed(
        lambda: client.chat.completions.create(model=limited, messages=words, max_tokens=2)
    )
    try:
        assert (told.count("passed"), told.count("budget_exceeded")) == (60, 60)
        state = platform.money.show_budget("killed")
        assert (state.spent_nano_dollars, state.held_nano_dollars, state.left_nano_dollars) == (240 * cent, 0, 0)
        assert sum(row["cost_nano_dollars"] or 0 for row in rows_of(platform, limited)) == 240 * cent
        (used,) = platform.money.usage(by=["endpoint", "user"], since=state.created_at)
        assert (used.user, used.requests, used.failed, used.cost_nano_dollars) == ("budget-ann", 120, 60, 240 * cent)
        own = {"authorization": f"Bearer {client.api_key}"}
        told = httpx.get(f"{platform.base_url}/api/2.0/mosaic/budgets/killed", headers=own, timeout=60)
        assert told.status_code == 200 and told.json()["spent_nano_dollars"] == 240 * cent, told.text
        shown = mosaic("budget", "show", "killed", "-f", str(settings_file))
        assert shown.returncode == 0 and "$2.40 a month" in shown.stdout, shown
        left = mosaic("quota", "show", limited, "-f", str(settings_file))
        assert left.returncode == 0 and "budget-ann" in left.stdout and "1000" in left.stdout, left
    finally:
        platform.money.delete_budget("killed")
