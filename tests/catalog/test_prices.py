"""Prices in versions and budgets, on each database: what counts when, what is refused, what is written down."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.catalog import Catalog
from mosaic.catalog.budgets import Scope, period_end, period_start
from mosaic.catalog.doubles import FixedClock
from mosaic.catalog.money import MOST_NANO_DOLLARS, NANO, dollars, parse_dollars
from mosaic.catalog.prices import Price, price_at
from mosaic.errors import AlreadyExists, BadRequest, NotFound

HOUR = timedelta(hours=1)


def test_a_price_is_never_changed_and_the_next_one_is_valid_from_its_time_on(
    catalog: Catalog, clock: FixedClock
) -> None:
    prices, now = catalog.prices, clock()
    before = catalog.revision()
    first = prices.set("gpt", input_nano_dollars_per_million=150, output_nano_dollars_per_million=600)
    assert catalog.revision() > before  # so that gateways look again
    assert (first.version, first.valid_from, first.cached_input_nano_dollars_per_million) == (1, now, 150)
    later = prices.set("gpt", input_nano_dollars_per_million=100, valid_from=now + HOUR, by="ann")
    assert prices.list() == [first, later] == prices.list("gpt") and prices.get(1) == first
    found = prices.of("gpt")
    assert price_at(found, now - HOUR) is None and price_at(found, now) == first
    assert price_at(found, now + HOUR) == later and prices.of("gpt-5") == ()
    with pytest.raises(BadRequest, match=r"valid_from = .* has passed"):
        prices.set("gpt", input_nano_dollars_per_million=1, valid_from=now - HOUR)
    with pytest.raises(NotFound, match="no price version '7'; there are"):
        prices.get(7)
    event = catalog.audit.newest(1)[0]
    assert (event.action_name, event.user_identity.email) == ("setPrice", "ann")
    assert event.request_params == {"model": "gpt", "version": "2"}


def test_a_name_goes_before_patterns_and_a_longer_pattern_before_a_shorter_one(catalog: Catalog) -> None:
    every = {model: catalog.prices.set(model) for model in ("*", "openai/*", "openai/gpt-5*", "openai/gpt-5-mini")}
    for model, counts in (
        ("openai/gpt-5-mini", "openai/gpt-5-mini"),
        ("openai/gpt-5-mini-2", "openai/gpt-5*"),
        ("openai/gpt.5", "openai/*"),
        ("main.ml.bot", "*"),
    ):
        there = catalog.prices.of(model)
        assert price_at(there, datetime.now(UTC)) == every[counts]
    newer = catalog.prices.set("openai/*", input_nano_dollars_per_million=7)
    assert price_at(catalog.prices.of("openai/x"), datetime.now(UTC)) == newer


@pytest.mark.parametrize(
    ("model", "amounts", "param"),
    [
        ("", {}, "model"),
        ("two words", {}, "model"),
        ("m" * 401, {}, "model"),
        ("m", {"input_nano_dollars_per_million": -1}, "input_nano_dollars_per_million"),
        ("m", {"output_nano_dollars_per_million": 0.5}, "output_nano_dollars_per_million"),
        ("m", {"gpu_second_nano_dollars": MOST_NANO_DOLLARS + 1}, "gpu_second_nano_dollars"),
        ("m", {"cached_input_nano_dollars_per_million": True}, "cached_input_nano_dollars_per_million"),
        ("m", {"valid_from": datetime(2030, 1, 1)}, "valid_from"),
    ],
)
def test_what_is_no_price_is_refused(catalog: Catalog, model: str, amounts: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        catalog.prices.set(model, **amounts)
    assert refused.value.param == param and catalog.prices.list() == []


def test_versions_have_no_gaps_whoever_sets_at_once(catalog: Catalog) -> None:
    gate = threading.Barrier(4)

    def several(number: int) -> list[int]:
        gate.wait()
        return [catalog.prices.set(f"m{number}").version for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        versions = [one for found in pool.map(several, range(4)) for one in found]
    assert sorted(versions) == list(range(1, 21))


tokens = st.integers(0, 10**7)
rates = st.integers(0, 10**12)


@given(tokens, tokens, tokens, st.integers(0, 10**7), rates, rates, rates, rates)
def test_a_cost_is_exact_to_half_a_nano_dollar(
    read: int, cached: int, written: int, milliseconds: int, each: int, again: int, out: int, second: int
) -> None:
    price = Price(
        version=1,
        model="m",
        input_nano_dollars_per_million=each,
        cached_input_nano_dollars_per_million=again,
        output_nano_dollars_per_million=out,
        gpu_second_nano_dollars=second,
        valid_from=datetime.now(UTC),
        created_at=datetime.now(UTC),
        created_by="ann",
    )
    cost = price.cost(
        input_tokens=read, cached_input_tokens=cached, output_tokens=written, gpu_milliseconds=milliseconds
    )
    cached = min(read, cached)
    exact = ((read - cached) * each + cached * again + written * out) * 1000 + milliseconds * second * 10**6
    assert abs(cost * 10**9 - exact) * 2 <= 10**9


@given(st.integers(0, MOST_NANO_DOLLARS))
def test_dollars_are_read_as_they_are_written(amount: int) -> None:
    assert parse_dollars(dollars(amount), param="amount") == amount


@pytest.mark.parametrize("text", ["", "-1", "1e3", "1.0000000001", "1,5", "0x1", ".5", "nan", "9" * 11, "9999999999"])
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="amount = ") as refused:
        parse_dollars(text, param="amount")
    assert refused.value.param == "amount"


def test_a_budget_is_made_changed_and_deleted(catalog: Catalog, clock: FixedClock) -> None:
    catalog.create_token("ann")
    catalog.endpoints.put("bot", config={"name": "bot", "served_entities": []}, owner="admin")
    scope = Scope(user="ann", endpoint="bot", tags={"team": "search"})
    made = catalog.budgets.create("team", amount_nano_dollars=NANO, period="month", scope=scope, by="bob")
    assert made.scope.endpoint == "main.serving.bot" and made.created_at == clock() and made.created_by == "bob"
    assert catalog.budgets.get("team") == made and catalog.budgets.list() == [made]
    with pytest.raises(AlreadyExists, match="there is a budget 'team'"):
        catalog.budgets.create("team", amount_nano_dollars=1, period="day")
    more = catalog.budgets.set_amount("team", 2 * NANO)
    assert (more.id, more.amount_nano_dollars) == (made.id, 2 * NANO) and catalog.budgets.get("team") == more
    catalog.budgets.set_amount("team", 2 * NANO)  # as it is: nothing to write down
    catalog.budgets.delete("team")
    with pytest.raises(NotFound, match="no budget 'team'"):
        catalog.budgets.delete("team")
    actions = [one.action_name for one in catalog.audit.newest(3)]
    assert actions == ["createBudget", "updateBudget", "deleteBudget"] and catalog.budgets.list() == []


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"name": "a b"}, BadRequest, "name = 'a b'"),
        ({"amount_nano_dollars": -1}, BadRequest, "amount_nano_dollars = -1"),
        ({"period": "week"}, BadRequest, "period = 'week' must be 'day' or 'month'"),
        ({"scope": Scope(user="nobody")}, NotFound, "no user 'nobody'"),
        ({"scope": Scope(user="admins")}, NotFound, "no user 'admins'"),
        ({"scope": Scope(group="nobody")}, NotFound, "no group 'nobody'"),
        ({"scope": Scope(service_principal="nobody")}, NotFound, "no service 'nobody'"),
        ({"scope": Scope(endpoint="nothing")}, NotFound, "no endpoint 'main.serving.nothing'"),
    ],
)
def test_a_budget_for_nobody_is_refused(catalog: Catalog, how: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        catalog.budgets.create(**{"name": "b", "amount_nano_dollars": 1, "period": "day", **how})
    assert catalog.budgets.list() == []


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"each_user": True, "user": "ann"}, "each_user is for many"),
        ({"user": "ann", "service_principal": "job"}, "give user or service_principal"),
        ({"team": "x"}, "unknown field 'team'"),
        ({"tags": {str(n): "" for n in range(11)}}, "tags"),
    ],
)
def test_a_scope_that_fits_nothing_is_refused(said: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        Scope.parse(said, source="scope")


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.sampled_from(["day", "month"]))
def test_periods_follow_each_other_without_gap_or_overlap(moment: datetime, period: Any) -> None:
    moment = moment.replace(tzinfo=UTC)
    start, end = period_start(period, moment), period_end(period, moment)
    assert start <= moment < end and period_start(period, end) == end
    assert period_start(period, start) == start and period_end(period, end - timedelta(microseconds=1)) == end
