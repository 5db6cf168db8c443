"""Usage from the rows of real requests: what is summed, by what, for whom; and budgets that are rebuilt from them."""

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from starlette.routing import Router

from mosaic.catalog.budgets import Scope, period_start
from mosaic.data import Shipper, Tables
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.gateway.money import Money
from mosaic.gateway.money_routes import MoneyRoutes
from mosaic.gateway.quota_actors import QuotaView
from mosaic.gateway.spend_rebuilt import spent_by_bucket
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA, lost
from mosaic.monitoring.destinations import Destinations
from mosaic.monitoring.usage import KEYS, Usage, usage
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage
from tests.gateway.money import DOLLAR, Door
from tests.local import served

PER_TOKEN = 10**6 * (DOLLAR // 100)
CENT = DOLLAR // 100


class Here(QuotaView):
    """The quota of this process."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def left(self, endpoint: str) -> Any:
        return self._door.shard.left(endpoint)

    def standings(self, budgets: Any) -> Any:
        return self._door.shard.standings(budgets)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    made.catalog.ensure_schema("system.serving", owner="system")
    made.catalog.ensure_schema("main.serving")
    for name in ("helper", "other"):
        made.serve(name)
    made.serve("free", model="unpriced")
    made.catalog.prices.set("echo", input_nano_dollars_per_million=PER_TOKEN, output_nano_dollars_per_million=PER_TOKEN)
    yield made
    made.close()


@pytest.fixture
def tables(door: Door) -> Tables:
    return Tables(Storage(str(door.folder / "root")), door.catalog)


def ship(door: Door, tables: Tables) -> None:
    tables.create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
    destinations = Destinations(tables, Storage(str(door.folder / "root")))
    Shipper(door.folder / "spool", destinations, lost=lost).ship_once()


def by(found: list[Usage], *keys: str) -> dict[Any, tuple[int, int, int]]:
    return {
        tuple(getattr(one, key) for key in keys): (one.requests, one.failed, one.cost_nano_dollars // CENT)
        for one in found
    }


def test_sums_by_every_key_are_those_of_the_rows(door: Door, tables: Tables) -> None:
    assert usage(tables, door.catalog, by=KEYS) == []  # nothing was ever served here
    ann, bob = door.user("ann"), door.user("bob")
    for token, model in ((ann, "helper"), (ann, "helper"), (ann, "other"), (bob, "helper"), (bob, "free")):
        assert door.asked(token, "one two", model=model).status_code == 200
    assert door.asked(bob, "x", temperature=99).status_code == 400
    assert door.asked("mosaic_wrong").status_code == 401
    ship(door, tables)
    ask = functools.partial(usage, tables, door.catalog)
    (whole,) = ask()
    assert (whole.requests, whole.failed, whole.cost_nano_dollars, whole.unpriced) == (7, 2, 16 * CENT, 1)
    assert (whole.input_tokens, whole.output_tokens, whole.user) == (10, 10, None)
    assert by(ask(by=["user"]), "user") == {(None,): (1, 1, 0), ("ann",): (3, 0, 12), ("bob",): (3, 1, 4)}
    assert by(ask(by=["endpoint", "user"]), "endpoint", "user") == {
        (None, None): (1, 1, 0),
        ("main.serving.free", "bob"): (1, 0, 0),
        ("main.serving.helper", "ann"): (2, 0, 8),
        ("main.serving.helper", "bob"): (2, 1, 4),
        ("main.serving.other", "ann"): (1, 0, 4),
    }
    today = datetime.now(UTC)
    assert by(ask(by=["day"]), "day") == {(f"{today:%Y-%m-%d}",): (7, 2, 16)}
    assert by(ask(by=["model"]), "model") == {(None,): (2, 2, 0), ("echo",): (4, 0, 16), ("unpriced",): (1, 0, 0)}
    assert sum(one.requests for one in ask(until=today - timedelta(hours=1))) == 0
    assert sum(one.requests for one in ask(since=today - timedelta(hours=1))) == 7
    for wrong in (["week"], ["user", "user"]):
        with pytest.raises(BadRequest, match="must be some of user,model,day,endpoint,tag, each once"):
            ask(by=wrong)


def test_a_request_counts_in_each_of_its_tags(door: Door, tables: Tables) -> None:
    create = functools.partial(door.catalog.budgets.create, amount_nano_dollars=9 * CENT, period="day")
    made = create("a", scope=Scope(tags={"team": "a"}))
    both = create("ax", scope=Scope(tags={"team": "a", "app": "x"}))
    ann = door.user("ann")
    for context in ({"team": "a", "app": "x"}, {"team": "a"}, {"team": "b"}, None):
        assert door.asked(ann, "one two", max_tokens=2, usage_context=context).status_code == 200
    assert "budget 'a'" in door.asked(ann, "one two", max_tokens=2, usage_context={"team": "a"}).text
    assert door.asked(ann, "one two", max_tokens=2).status_code == 200
    ship(door, tables)
    found = by(usage(tables, door.catalog, by=["tag"]), "tag")
    assert found == {(None,): (2, 0, 8), ("app=x",): (1, 0, 4), ("team=a",): (3, 1, 8), ("team=b",): (1, 0, 4)}
    # By the rows as by the quota.
    asked = [(one.bucket("ann"), "day") for one in (made, both)]
    assert [one.spent for one in door.shard.standings([(bucket, 1, day) for bucket, day in asked])] == [
        8 * CENT,
        4 * CENT,
    ]
    assert spent_by_bucket(tables, door.catalog) == {asked[0]: 8 * CENT, asked[1]: 4 * CENT}


def test_a_table_of_a_mosaic_that_kept_no_money_is_read(door: Door, tables: Tables) -> None:
    older = pa.schema([field for field in SCHEMA if field.name not in ("cost_nano_dollars", "gpu_seconds")])
    tables.create(INFERENCE_TABLE, older, primary_key="request_id", owner="system")
    now = datetime.now(UTC)
    told = {"request_id": "r", "request_time": now, "request_date": now.date(), "status_code": 200, "model": "m"}
    tables.append(INFERENCE_TABLE, pa.Table.from_pylist([told], schema=older))
    (found,) = usage(tables, door.catalog, by=["model"])
    assert (found.requests, found.cost_nano_dollars, found.unpriced) == (1, 0, 1)
    door.catalog.budgets.create("all", amount_nano_dollars=1, period="day")
    assert spent_by_bucket(tables, door.catalog, now) == {}


def test_everybody_sees_their_own_and_managers_what_is_asked_of_theirs(door: Door, tables: Tables) -> None:
    catalog = door.catalog
    for who in ("ann", "bob", "eve"):
        catalog.create_token(who)
    catalog.grants.grant("catalog", "main", "users", ["USE CATALOG"], by="admin")
    catalog.grants.grant("schema", "main.serving", "users", ["USE SCHEMA", "EXECUTE"], by="admin")
    for who, model in (("ann", "helper"), ("bob", "helper"), ("bob", "other")):
        assert door.asked(door.user(who), "x", model=model).status_code == 200
    ship(door, tables)
    ask = functools.partial(usage, tables, catalog, by=["user", "endpoint"])

    def seen(who: str) -> set[Any]:
        return set(by(ask(principal=Principal(name=who)), "user", "endpoint"))

    helper, other = "main.serving.helper", "main.serving.other"
    assert (
        seen("eve") == set() and seen("ann") == {("ann", helper)} and seen("bob") == {("bob", helper), ("bob", other)}
    )
    catalog.grants.grant("endpoint", helper, "eve", ["MANAGE"], by="admin")
    assert seen("eve") == {("ann", helper), ("bob", helper)}
    assert seen("admin") == {("ann", helper), ("bob", helper), ("bob", other)}


def test_a_quota_that_lost_its_record_begins_with_what_the_rows_say(door: Door, tables: Tables, tmp_path: Path) -> None:
    create = functools.partial(door.catalog.budgets.create, amount_nano_dollars=20 * CENT)
    door.catalog.create_token("ann")
    door.catalog.principals.create_group("team", by="admin")
    door.catalog.principals.add_member("team", "ann", by="admin")
    made = {
        "each": create("each", period="month", scope=Scope(each_user=True)),
        "team": create("team", period="day", scope=Scope(group="team")),
        "other": create("other", period="month", scope=Scope(endpoint="other")),
        "all": create("all", period="month"),
    }
    ann, bob = door.user("ann"), door.user("bob")
    for token, model in ((ann, "helper"), (ann, "other"), (bob, "helper")):
        assert door.asked(token, "one two", model=model, max_tokens=2).status_code == 200
    ship(door, tables)
    spent = spent_by_bucket(tables, door.catalog)
    asked = {
        "ann": (made["each"].bucket("ann"), "month"),
        "bob": (made["each"].bucket("bob"), "month"),
        **{name: (made[name].bucket("ann"), made[name].period) for name in ("team", "other", "all")},
    }
    cents = {name: spent[key] // CENT for name, key in asked.items()}
    assert cents == {"ann": 8, "bob": 4, "team": 8, "other": 4, "all": 12}
    kept = door.shard.standings([(bucket, 1, period) for bucket, period in asked.values()])
    assert [one.spent for one in kept] == [spent[key] for key in asked.values()]

    elsewhere = Door(tmp_path / "elsewhere", rebuild=lambda: spent_by_bucket(tables, door.catalog))
    again = elsewhere.shard.standings([(bucket, 1, period) for bucket, period in asked.values()])
    assert again == kept
    elsewhere.close()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    if period_start("month", tomorrow) == period_start("month", datetime.now(UTC)):
        assert asked["team"] not in spent_by_bucket(tables, door.catalog, tomorrow)


def test_who_may_do_what_over_http(door: Door, tables: Tables) -> None:
    catalog = door.catalog
    tokens = {"admin": catalog.create_token("admin", is_admin=True)[1]}
    tokens |= {who: catalog.create_token(who)[1] for who in ("ann", "eve")}
    door.serve("helper", rate_limits=[{"calls": 5, "key": "user"}, {"tokens": 100}])

    def money_of(principal: Principal) -> Money:
        return Money(catalog, tables, principal, lambda: Here(door))

    router = Router(routes=MoneyRoutes(money_of).routes(), redirect_slashes=False)
    with served(ShapeErrors(Authenticate(router, catalog.check_token, deny=catalog.deny_token))) as url:

        def call(who: str, method: str, path: str, status: int = 200, **how: Any) -> Any:
            headers = {"authorization": f"Bearer {tokens[who]}"}
            answer = httpx.request(method, f"{url}/2.0/mosaic/{path}", headers=headers, **how)
            assert answer.status_code == status, answer.text
            return answer.json()

        price = {"model": "gpt-*", "input_nano_dollars_per_million": 150_000_000}
        assert "may not MANAGE" in call("eve", "POST", "prices", 403, json=price)["error"]["message"]
        assert call("admin", "POST", "prices", json=price)["version"] == 2
        assert [one["version"] for one in call("eve", "GET", "prices", params={"model": "gpt-*"})["prices"]] == [2]
        for wrong in ({"model": "m", "input_nano_dollars_per_million": 0.5}, {"model": "m", "per_image": 1}, {}):
            call("admin", "POST", "prices", 400, json=wrong)
        mine = {"name": "anns", "amount_nano_dollars": DOLLAR, "period": "day", "scope": {"user": "ann"}}
        call("ann", "POST", "budgets", 403, json=mine)
        call("admin", "POST", "budgets", json=mine)
        call("admin", "POST", "budgets", json={**mine, "name": "each", "scope": {"each_user": True}})
        call("admin", "POST", "budgets", json={**mine, "name": "all", "scope": {}})
        call("admin", "POST", "budgets", 409, json=mine)
        call("admin", "POST", "budgets", 400, json={**mine, "name": "x", "scope": {"usr": "ann"}})
        call("admin", "POST", "budgets", 400, json={**mine, "name": "x", "amount_nano_dollars": "1"})
        assert door.asked(door.user("ann"), "one two", max_tokens=2).status_code == 200

        def listed(who: str) -> Any:
            found = call(who, "GET", "budgets")["budgets"]
            return [(one["name"], one["whom"], one["spent_nano_dollars"] // CENT) for one in found]

        assert listed("admin") == [("all", None, 4), ("anns", "ann", 4), ("each", "admin", 0)]
        assert listed("ann") == [("anns", "ann", 4), ("each", "ann", 4)] and listed("eve") == [("each", "eve", 0)]
        call("eve", "GET", "budgets/anns", 404)
        call("eve", "GET", "budgets/each", 404, params={"whom": "ann"})
        assert call("admin", "GET", "budgets/each", params={"whom": "ann"})["spent_nano_dollars"] == 4 * CENT
        call("ann", "PATCH", "budgets/anns", 403, json={"amount_nano_dollars": 1})
        call("admin", "PATCH", "budgets/anns", json={"amount_nano_dollars": 2 * DOLLAR})
        assert call("ann", "GET", "budgets/anns")["left_nano_dollars"] == 2 * DOLLAR - 4 * CENT
        call("ann", "DELETE", "budgets/anns", 403)
        call("admin", "DELETE", "budgets/anns")
        call("admin", "DELETE", "budgets/anns", 404)
        ship(door, tables)
        used = call("ann", "GET", "usage", params={"by": "user,model", "from": "2026-01-01"})["usage"]
        assert [(one["user"], one["model"], one["cost_nano_dollars"]) for one in used] == [("ann", "echo", 4 * CENT)]
        assert call("eve", "GET", "usage", params={"by": "user"})["usage"] == []
        for wrong in ({"by": "week"}, {"from": "yesterday"}, {"to": "2026-01-01T10:00"}):
            call("ann", "GET", "usage", 400, params=wrong)
        call("eve", "GET", "endpoints/helper/quota", 403)
        limits = call("admin", "GET", "endpoints/helper/quota")["limits"]
        told = [(one["key"], one["whom"], one["unit"], one["limit"], one["remaining"]) for one in limits]
        assert told == [("user", "ann", "calls", 5, 4), ("endpoint", None, "tokens", 100, 96)]
    actions = [(one.action_name, one.response.status_code) for one in catalog.audit.newest(100)]
    for action in ("setPrice", "createBudget", "updateBudget", "deleteBudget"):
        assert {(action, 200), (action, 403)} <= set(actions)


def test_in_process_it_acts_within_grants(door: Door, tables: Tables) -> None:
    door.catalog.create_token("eve")
    eve = Money(door.catalog, tables, Principal(name="eve"), lambda: Here(door))
    for act in (
        lambda: eve.set_price("m"),
        lambda: eve.create_budget("b", amount_nano_dollars=1, period="day"),
        lambda: eve.set_budget("b", 1),
        lambda: eve.delete_budget("b"),
        lambda: eve.limits("helper"),
    ):
        with pytest.raises(PermissionDenied, match="'eve' may not"):
            act()
    with pytest.raises(NotFound):
        eve.show_budget("b")
    assert eve.list_budgets() == [] and eve.usage() == []
