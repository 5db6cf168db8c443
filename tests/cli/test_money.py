"""Prices, budgets and usage by command."""

import csv
import io
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from mosaic.data import Tables
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA
from mosaic.storage import Storage
from tests.cli.conftest import Mosaic

DOLLAR = 10**9


def test_prices_are_set_in_versions(mosaic: Mosaic) -> None:
    told = mosaic.ok("price", "set", "openai/gpt-5*", "--input", "0.15", "--cached-input", "0.0375", "--output", "$0.6")
    assert told.startswith("price 1 of openai/gpt-5* is valid from 20")
    made = mosaic.json("price", "set", "main.docs.bot", "--gpu-second", "0.0008", "--valid-from", "2999-01-01")
    assert (made["version"], made["gpu_second_nano_dollars"]) == (2, 800_000)
    lines = mosaic.ok("price", "list").splitlines()
    assert lines[0].split()[:4] == ["version", "model", "input", "cached"] and len(lines) == 3
    assert lines[1].split()[:5] == ["1", "openai/gpt-5*", "$0.15", "$0.0375", "$0.60"]
    assert [one["version"] for one in mosaic.json("price", "list", "--model", "main.docs.bot")] == [2]
    assert mosaic.catalog.prices.get(1).cached_input_nano_dollars_per_million == 37_500_000
    event = mosaic.json("audit", "list", "--action", "setPrice")[0]
    assert event["user_identity"]["email"] == "admin" and event["request_params"]["model"] == "openai/gpt-5*"


def test_budgets_are_made_changed_and_deleted(mosaic: Mosaic) -> None:
    assert mosaic.ok("budget", "create", "bobs", "--amount", "25", "--per", "month", "--user", "bob") == (
        "budget bobs of $25.00 a month is made\n"
    )
    made = mosaic.json("budget", "create", "apps", "--amount", "0.5", "--per", "day", "--tag", "app=x", "--each-user")
    assert (made["amount_nano_dollars"], made["scope"]["tags"]) == (DOLLAR // 2, {"app": "x"})
    shown = mosaic.ok("budget", "list")
    assert "tag:app=x, each user" in shown and "user=bob" in shown and "$25.00" in shown
    assert mosaic.ok("budget", "update", "bobs", "--amount", "30") == "budget bobs is $30.00 a month\n"
    assert mosaic.ok("budget", "delete", "apps") == "budget apps is deleted\n"
    assert [(one["name"], one["amount_nano_dollars"]) for one in mosaic.json("budget", "list")] == [
        ("bobs", 30 * DOLLAR)
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["price", "set", "m", "--input", "1e-3"], "--input = '1e-3' must be dollars, such as 25 or 0.15"),
        (["price", "set", "m", "--output", "-1"], "--output = '-1' must be dollars"),
        (["price", "set", "m", "--valid-from", "2020-01-01"], "has passed"),
        (["budget", "create", "b", "--amount", "1.0000000001", "--per", "day"], "--amount = '1.0000000001'"),
        (["budget", "create", "b", "--amount", "1", "--per", "day", "--user", "nobody"], "no user 'nobody'"),
        (
            ["budget", "create", "b", "--amount", "1", "--per", "day", "--user", "bob", "--each-user"],
            "each_user is for",
        ),
        (["budget", "update", "nothing", "--amount", "1"], "no budget 'nothing'"),
        (["budget", "delete", "nothing"], "no budget 'nothing'"),
        (["budget", "show", "nothing"], "no platform runs"),
        (["quota", "show", "nothing"], "no platform runs"),
        (["usage", "--by", "week"], "must be some of user,model,day,endpoint,tag"),
    ],
)
def test_what_is_wrong_is_said(shared: Mosaic, arguments: list[str], told: str) -> None:
    ended = shared.run(*arguments)
    assert ended.code == 1 and told in ended.err, ended


def test_usage_by_what_is_asked(mosaic: Mosaic) -> None:
    mosaic.catalog.ensure_schema("system.serving", owner="system")
    tables, rows = Tables(Storage(str(mosaic.home)), mosaic.catalog), list[dict[str, Any]]()
    tables.create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
    for number, (whom, cost) in enumerate((("bob", 250_000_000), ("bob", 5), ("admin", None))):
        at = datetime(2026, 1, 31 - number, 23, tzinfo=UTC)
        told = {"request_id": f"r{number}", "request_time": at, "request_date": at.date(), "status_code": 200}
        rows.append({**told, "principal": whom, "model": "m", "input_tokens": 3, "cost_nano_dollars": cost})
    tables.append(INFERENCE_TABLE, pa.Table.from_pylist(rows, schema=SCHEMA))
    lines = mosaic.ok("usage").splitlines()
    assert lines[0].endswith("input tokens  output tokens  cost          unpriced  gpu seconds")
    assert lines[1].split() == ["admin", "1", "0", "3", "0", "$0.00", "1", "0.0"]
    assert lines[2].split() == ["bob", "2", "0", "6", "0", "$0.250000005", "0", "0.0"]
    found = list(csv.DictReader(io.StringIO(mosaic.ok("usage", "--by", "day,user", "--csv", "--from", "2026-01-30"))))
    assert [(one["day"], one["user"], one["cost_nano_dollars"]) for one in found] == [
        ("2026-01-30", "bob", "5"),
        ("2026-01-31", "bob", "250000000"),
    ]
    only = mosaic.json("usage", "--as", "bob", "--to", "2026-01-31")
    assert [(one["user"], one["requests"]) for one in only] == [("bob", 1)]
    assert mosaic.run("usage", "--csv", "--json").code == 2
