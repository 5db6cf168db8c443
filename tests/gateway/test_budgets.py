"""Budgets from outside: whom they hold, what is told, what a request costs, and that nothing passes them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from mosaic.catalog.budgets import Scope
from mosaic.errors import EngineFailed
from mosaic.gateway import LiveEntity
from mosaic.protocol import Engine, EngineRequest
from tests.gateway.money import DOLLAR, Door, error, streamed
from tests.gateway.provider_calls import KEY, PROVIDERS, Asking, with_double
from tests.local import served

PER_TOKEN = 10**6 * (DOLLAR // 100)
"""A cent a token, as a price of a million."""
CENT = DOLLAR // 100


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """The endpoint `helper`: a cent for each word that is read or written."""
    made = Door(tmp_path)
    made.serve()
    made.catalog.prices.set("echo", input_nano_dollars_per_million=PER_TOKEN, output_nano_dollars_per_million=PER_TOKEN)
    yield made
    made.close()


def budget(door: Door, name: str, cents: int, period: Any = "month", **scope: Any) -> None:
    door.catalog.budgets.create(name, amount_nano_dollars=cents * CENT, period=period, scope=Scope(**scope))


def test_a_row_has_what_it_cost_and_by_which_price(door: Door) -> None:
    ann = door.user("ann")
    assert door.asked(ann, "one two three").status_code == 200
    later = door.catalog.prices.set("echo", input_nano_dollars_per_million=PER_TOKEN)
    assert door.asked(ann, "one two three").status_code == 200
    assert door.asked(ann, "one two three", stream=True).status_code == 200
    assert door.asked(ann, "x", temperature=99).status_code == 400
    told = [(row.get("cost_nano_dollars"), row.get("price_version")) for row in door.rows()]
    assert told == [(6 * CENT, 1), (3 * CENT, later.version), (3 * CENT, later.version), (None, None)]


def test_what_nobody_has_priced_costs_null_and_is_held_to_no_budget(door: Door) -> None:
    door.catalog.endpoints.put(
        "other", config={"name": "other", "served_entities": [{"name": "e", "model": "unpriced"}]}, owner="admin"
    )
    ann = door.user("ann")
    budget(door, "none", 0)
    assert door.asked(ann, model="other").status_code == 200
    (row,) = door.rows()
    assert row.get("cost_nano_dollars") is None and row.get("price_version") is None
    assert row.get("gpu_seconds") is None


def test_seconds_of_gpus_cost(tmp_path: Path) -> None:
    door = Door(tmp_path, gpus=2.0, delay_seconds=0.1)
    door.serve()
    door.catalog.prices.set("echo", gpu_second_nano_dollars=DOLLAR)
    assert door.asked(door.user("ann"), "one two").status_code == 200
    (row,) = door.rows()
    assert 0.2 <= row["gpu_seconds"] < 2
    assert abs(row["cost_nano_dollars"] - row["gpu_seconds"] * DOLLAR) < DOLLAR / 100
    door.close()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_cached_tokens_of_a_provider_have_their_price_and_who_answered_last_counts(
    tmp_path: Path, provider: str
) -> None:
    """Five words are read, two of them from the cache, and one is written."""

    async def run(given: Asking) -> None:
        def engine(entity: LiveEntity) -> Engine:
            if entity.external is None:
                return FailingEngine()
            return given.engine(provider)

        door = Door(tmp_path, engine=engine)
        url = given.double.url + ("" if provider == "anthropic" else "/v1")
        options = {"base_url": url, "api_key": KEY}
        door.catalog.connections.create("c1", connection_type="OPENAI", options=options, owner="admin")
        external = {"provider": provider, "name": "m1", "connection": "c1"}
        ours = {"name": "ours", "model": "echo"}
        theirs = {"name": "theirs", "external_model": external, "traffic_percentage": 0}
        door.serve("helper", ours, theirs, fallback_config={"enabled": True})
        door.catalog.prices.set("echo", input_nano_dollars_per_million=10**12, gpu_second_nano_dollars=DOLLAR)
        price = door.catalog.prices.set(
            f"{provider}/m*",
            input_nano_dollars_per_million=100 * 10**6,
            cached_input_nano_dollars_per_million=10 * 10**6,
            output_nano_dollars_per_million=1000 * 10**6,
        )
        budget(door, "all", 1)
        ann = door.user("ann")
        for stream in (False, True):
            assert (await door.ask(ann, "cached: 2 tokens: 1 x", stream=stream, max_tokens=5)).status_code == 200
        for row in door.rows():
            assert (row["served_entity"], row["price_version"]) == ("theirs", price.version)
            read, again, written = (row[f"{kind}_tokens"] for kind in ("input", "cached_input", "output"))
            assert (again, written) == (2, 1) and read > again
            assert row["cost_nano_dollars"] == (read - 2) * 100 + 2 * 10 + 1000 and row["gpu_seconds"] is None
        door.close()

    with_double(run)


class FailingEngine:
    """Answers nothing."""

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        raise EngineFailed("it was made to fail")
        yield {}


def test_a_spent_budget_refuses_and_says_so_once(door: Door) -> None:
    ann = door.user("ann")
    budget(door, "team", 10, user="ann")
    for _ in range(2):
        assert door.asked(ann, "one two", max_tokens=3).status_code == 200  # 4 cents each; held for 7 at most
    refused = door.asked(ann, "one two", max_tokens=3)
    assert refused.status_code == 429 and refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    told, now = error(refused), datetime.now(UTC)
    renews = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    assert told["code"] == "budget_exceeded"
    assert told["message"] == (
        "endpoint 'helper': budget 'team' of $0.10 a month: $0.08 are spent, and this may cost $0.06; it renews at "
        f"{renews:%Y-%m}-01T00:00:00Z"
    )
    assert door.asked(door.user("bob"), "one two").status_code == 200
    (kept,) = [row for row in door.rows() if row["status_code"] == 429]
    assert kept["error"].startswith("endpoint 'helper': budget 'team'") and kept.get("cost_nano_dollars") is None
    door.catalog.budgets.set_amount("team", 20 * CENT)
    assert door.asked(ann, "one two", max_tokens=3).status_code == 200
    door.catalog.budgets.set_amount("team", 12 * CENT)
    assert "$0.12 are spent; it renews" in error(door.asked(ann, "one two"))["message"]
    door.catalog.budgets.delete("team")
    assert door.asked(ann, "one two").status_code == 200


def test_openais_client_does_not_ask_a_spent_budget_again(door: Door) -> None:
    budget(door, "none", 0)
    messages: Any = [{"role": "user", "content": "x"}]
    with served(door.apps[0]) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key=door.user("ann"), max_retries=5)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match=r"budget 'none' of \$0.00 a month") as refused:
                client.chat.completions.create(model="helper", messages=messages, stream=stream)
            assert refused.value.code == "budget_exceeded"
    assert [row["status_code"] for row in door.rows()] == [429, 429]


def test_every_scope_holds_whom_it_is_for_and_all_that_apply_hold_at_once(door: Door) -> None:
    tokens = {name: door.user(name) for name in ("ann", "bob")}
    tokens["job"] = door.user("job", kind="service")
    door.catalog.principals.create_group("team", by="admin")
    door.catalog.principals.add_member("team", "ann", by="admin")
    door.serve("other")

    def pass_(name: str, **how: Any) -> list[bool]:
        """Until it is spent: a request is 2 cents."""
        budget(door, name, 2, **how)
        passed = []
        for who, model in (
            ("ann", "helper"),
            ("ann", "helper"),
            ("bob", "helper"),
            ("bob", "other"),
            ("job", "helper"),
        ):
            passed.append(door.asked(tokens[who], "x", model=model, max_tokens=1).status_code == 200)
        door.catalog.budgets.delete(name)
        return passed

    assert pass_("user", user="ann") == [True, False, True, True, True]
    assert pass_("group", group="team") == [True, False, True, True, True]
    assert pass_("service", service_principal="job") == [True] * 5
    assert pass_("endpoint", endpoint="helper") == [True, False, False, True, False]
    assert pass_("all") == [True, False, False, False, False]
    assert pass_("each", each_user=True) == [True, False, True, False, True]
    assert pass_("both", user="bob", endpoint="other") == [True] * 5
    budget(door, "wide", 100)
    assert pass_("narrow", user="ann") == [True, False, True, True, True]


def test_a_refusal_gives_the_rate_limit_back(door: Door) -> None:
    door.serve(rate_limits=[{"calls": 2}, {"tokens": 1000}])
    ann, bob = door.user("ann"), door.user("bob")
    budget(door, "hers", 1, user="ann")
    for _ in range(5):
        assert error(door.asked(ann, "x", max_tokens=1))["code"] == "budget_exceeded"
    assert door.asked(bob, "x", max_tokens=1).headers["x-ratelimit-remaining-requests"] == "1"
    assert door.asked(bob, "x", max_tokens=1).headers["x-ratelimit-remaining-tokens"] == str(1000 - 2 - 2)
    assert error(door.asked(bob, "x", max_tokens=1))["code"] == "rate_limit_exceeded"


def test_a_stream_holds_on_as_it_grows_and_is_cut_off_where_no_money_is_left(door: Door) -> None:
    ann = door.user("ann")
    budget(door, "team", 1600, user="ann")
    answer = door.asked(ann, "w " * 999 + "w", stream=True)
    events = streamed(answer)
    assert events[-1]["error"]["code"] == "budget_exceeded"
    assert (
        "no more for this answer ($0.00 are spent and $14.35 held): it is cut off after 435 tokens"
        in events[-1]["error"]["message"]
        and "[DONE]" not in answer.text
    )
    (row,) = door.rows()
    assert row["status_code"] == 429 and row["cost_nano_dollars"] == (1000 + row["output_tokens"]) * CENT <= 1600 * CENT


def test_what_is_held_by_others_is_waited_for(tmp_path: Path) -> None:
    door = Door(tmp_path, delay_seconds=1.0)
    door.serve()
    door.catalog.prices.set("echo", output_nano_dollars_per_million=PER_TOKEN)
    ann = door.user("ann")
    budget(door, "team", 10, user="ann")

    async def run() -> None:
        first = asyncio.create_task(door.ask(ann, "a b c", max_tokens=8))
        bucket = door.catalog.budgets.get("team").bucket("ann")
        while not door.shard.standings([(bucket, 1, "month")])[0].held:
            await asyncio.sleep(0.01)
        refused = await door.ask(ann, "a", max_tokens=8)
        assert refused.status_code == 429 and "x-should-retry" not in refused.headers
        assert int(refused.headers["retry-after-ms"]) > 0 and "$0.08 held by requests that run" in refused.text
        assert (await first).status_code == 200
        assert (await door.ask(ann, "a", max_tokens=7)).status_code == 200

    asyncio.run(run())
    door.close()


def test_four_gateways_never_pass_a_budget_together(tmp_path: Path) -> None:
    door = Door(tmp_path, gateways=4)
    door.serve()
    door.catalog.prices.set("echo", input_nano_dollars_per_million=PER_TOKEN, output_nano_dollars_per_million=PER_TOKEN)
    tokens = [door.user(f"user{n}") for n in range(4)]
    budget(door, "all", 50)
    budget(door, "each", 30, each_user=True)

    async def run() -> list[int]:
        # Two words in and two out are 4 cents, which is what is held too: a cent for 3 bytes, and max_tokens.
        asked = (door.ask(tokens[n % 4], "a bc", gateway=n % 4, max_tokens=2) for n in range(80))
        first = [one.status_code for one in await asyncio.gather(*asked)]
        return [*first, *[(await door.ask(tokens[n % 4], "a bc", max_tokens=2)).status_code for n in range(20)]]

    told = asyncio.run(run())
    assert told.count(200) == 12 and set(told) == {200, 429}  # 48 of 50 cents; the thirteenth does not fit
    assert sum(row.get("cost_nano_dollars") or 0 for row in door.rows()) == 48 * CENT
    door.close()
