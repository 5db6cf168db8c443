"""Arms beside each other, from rows of the inference table: who counts for which arm, what is shown and what is not."""

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from starlette.routing import Router

from mosaic.cli import main
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.monitoring import INFERENCE_TABLE, to_arrow
from mosaic.monitoring.compare import Comparison, Verdict, compare
from mosaic.monitoring.feedback import FEEDBACK_SCHEMA, FEEDBACK_TABLE
from mosaic.monitoring.routes import thread_routes
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from tests.monitoring.history import START, History

SINCE = START - timedelta(days=1)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path)
    made.catalog.ensure_schema("main.serving")
    put(made, "split")
    made.pass_time()
    yield made
    made.catalog.close()


def put(history: History, name: str) -> None:
    arms = [{"name": arm, "model": "echo", "traffic_percentage": share} for arm, share in (("a", 90), ("b", 10))]
    history.catalog.endpoints.put(name, config={"name": name, "served_entities": arms}, owner="ann")


def rows(history: History, arm: str, latencies: Any, *, first: int = 0, **columns: Any) -> list[dict[str, Any]]:
    moment = int((history.clock.now + timedelta(seconds=1)).timestamp() * 1e6)
    return [
        {
            "request_id": f"req_{arm}_{first + number}",
            "request_time": moment,
            "status_code": 200,
            "principal": "bob",
            "endpoint": "main.serving.split",
            "endpoint_config_version": 1,
            "served_entity": arm,
            "streamed": True,
            "input_tokens": 10,
            "output_tokens": 20,
            "first_token_milliseconds": latency / 2,
            "duration_milliseconds": latency,
            **columns,
        }
        for number, latency in enumerate(map(float, latencies))
    ]


def write(history: History, *groups: list[dict[str, Any]]) -> None:
    history.tables.append(INFERENCE_TABLE, to_arrow([row for group in groups for row in group]))


def of(history: History, **more: Any) -> Comparison:
    return compare(history.tables, history.catalog, "split", since=SINCE, **more)


def verdict(found: Comparison, metric: str) -> Verdict:
    (told,) = [one for one in found.verdicts if one.metric == metric]
    return told


def test_a_faster_arm_that_fails_as_often_is_told_so(history: History) -> None:
    random = np.random.default_rng(1)
    write(
        history,
        rows(history, "a", random.lognormal(5, 0.4, 900)),
        rows(history, "b", random.lognormal(4.8, 0.4, 100)),
        rows(history, "a", [9.0] * 18, first=1000, status_code=502),
        rows(history, "b", [9.0] * 2, first=1000, status_code=502),
        rows(history, "b", [1.0] * 5, first=2000, status_code=499),  # the client's doing
        rows(history, "b", [0.1] * 50, first=3000, cached=True, output_tokens=0),
    )
    found = of(history)
    a, b = found.arms
    assert (a.name, a.requests, b.requests, b.cached) == ("a", 918, 157, 50) and found.unit == "request"
    assert a.error_rate == pytest.approx(18 / 918) and b.error_rate == pytest.approx(2 / 102)
    assert b.output_tokens == 20 and a.cost_nano_dollars is None and a.feedback is None
    fast = verdict(found, "latency_p50_milliseconds")
    assert fast.is_shown and fast.low is not None and fast.high is not None and fast.high < 0
    assert fast.low < np.expm1(-0.2) < fast.high
    assert fast.text.startswith("b is faster by ") and " % (95 % CI " in fast.text
    fails = verdict(found, "error_rate")
    assert not fails.is_shown and fails.text.startswith("no difference shown (95 % CI -")
    assert not verdict(found, "output_tokens").is_shown
    assert [one.metric for one in found.verdicts].count("cost_nano_dollars") == 0
    assert any("was kept" in note for note in found.notes)
    assert of(history) == found  # the same rows say the same


def test_a_request_counts_for_the_arm_that_was_drawn_also_if_another_answered(history: History) -> None:
    failed = json.dumps([{"entity": "b", "error": "provider_failed"}])
    write(
        history,
        rows(history, "a", [10.0] * 20),
        rows(history, "a", [30.0] * 10, first=100, attempts=failed),
        rows(history, "b", [30.0] * 4, first=200, attempts=failed, status_code=502),
    )
    a, b = of(history, arms=("a", "b")).arms
    assert (a.requests, a.fell_back, b.requests, b.fell_back) == (20, 0, 14, 10)
    assert b.error_rate == pytest.approx(4 / 14)


def test_users_who_keep_their_arm_count_and_not_their_requests(history: History) -> None:
    """A thousand requests of six users, of whom one is slow: nothing is shown, and as requests it would be."""
    told: list[dict[str, Any]] = []
    random = np.random.default_rng(2)
    for arm, means in (("a", (100, 140, 100, 120, 90, 105)), ("b", (100, 95, 300, 110, 120, 100))):
        for user, mean in enumerate(means):
            latencies = random.normal(mean, 5, 100)
            told += rows(history, arm, latencies, first=1000 * user, randomization_unit=f"{arm}{user}")
    write(history, told)
    found = of(history)
    assert found.unit == "user" and {arm.units for arm in found.arms} == {6}
    assert not verdict(found, "latency_p95_milliseconds").is_shown
    history.tables.delete_where(INFERENCE_TABLE, "true")
    write(history, [{**row, "randomization_unit": None} for row in told])
    found = of(history)
    assert found.unit == "request" and verdict(found, "latency_p95_milliseconds").is_shown


def test_feedback_and_cost_where_there_are_some(history: History) -> None:
    random = np.random.default_rng(3)
    write(history, rows(history, "a", [10.0] * 300), rows(history, "b", [10.0] * 300))
    history.tables.create(FEEDBACK_TABLE, FEEDBACK_SCHEMA, primary_key="feedback_id", owner="system")
    now = history.clock.now + timedelta(seconds=5)
    said = [(f"req_a_{n}", float(random.random() < 0.5)) for n in range(200)]
    said += [(f"req_b_{n}", float(random.random() < 0.9)) for n in range(200)]
    said += [("req_b_0", 0.0), ("req_of_another", 1.0), ("req_b_1", None)]  # type: ignore[list-item]
    told = [
        {"feedback_id": f"fbk_{number}", "request_id": one, "rating": rating, "time": now}
        for number, (one, rating) in enumerate(said)
    ]
    history.tables.append(FEEDBACK_TABLE, pa.Table.from_pylist(told, schema=FEEDBACK_SCHEMA))
    found = of(history)
    assert [arm.ratings for arm in found.arms] == [200, 200]
    liked = verdict(found, "feedback")
    assert liked.is_shown and liked.text.startswith("b is liked more by 0.") and not liked.is_relative
    priced = history.tables.to_arrow(INFERENCE_TABLE)
    place = priced.schema.get_field_index("cost_nano_dollars")
    costs = pa.array([100 if one == "a" else 60 for one in priced["served_entity"].to_pylist()], pa.int64())
    history.tables.overwrite(INFERENCE_TABLE, priced.set_column(place, "cost_nano_dollars", costs))
    cheaper = verdict(of(history), "cost_nano_dollars")
    assert cheaper.text == "b is cheaper by 40 % (95 % CI 40 to 40)"


def test_only_of_this_endpoint_since_then_and_only_what_was_asked_for(history: History) -> None:
    write(
        history,
        rows(history, "a", [10.0] * 9),
        rows(history, "b", [10.0] * 9, endpoint_config_version=2),
        rows(history, "c", [10.0] * 9),
        rows(history, "a", [10.0] * 9, first=50, endpoint="main.serving.other"),
        rows(history, "a", [10.0] * 9, first=90, served_entity=None, status_code=429),
    )
    found = of(history)
    assert [(arm.name, arm.requests) for arm in found.arms] == [("a", 9), ("b", 9), ("c", 9)]
    assert len({one.arm for one in found.verdicts}) == 2 and found.config_versions == (1, 2)
    assert any("2 configurations" in note for note in found.notes)
    assert [arm.name for arm in of(history, arms=["c", "a"]).arms] == ["c", "a"]
    with pytest.raises(NotFound, match="'d'"):
        of(history, arms=["a", "d"])
    with pytest.raises(BadRequest, match="twice"):
        of(history, arms=["a", "a"])
    later = compare(history.tables, history.catalog, "split", since=history.clock.now + timedelta(hours=1))
    assert later.arms == () and later.verdicts == () and "nothing to compare" in later.notes[0]
    with pytest.raises(BadRequest, match="time zone"):
        compare(history.tables, history.catalog, "split", since=datetime(2026, 1, 1))
    with pytest.raises(NotFound):
        compare(history.tables, history.catalog, "nowhere")
    # another one that comes to bear the name has nothing of it
    history.pass_time()
    history.catalog.endpoints.delete("split", by="ann")
    history.pass_time()
    put(history, "split")
    assert of(history).arms == ()


def test_an_arm_that_has_not_its_share_is_told(history: History) -> None:
    write(history, rows(history, "a", [10.0] * 900), rows(history, "b", [10.0] * 100))
    assert not of(history).notes
    write(history, rows(history, "b", [10.0] * 60, first=500))
    assert [note[:24] for note in of(history).notes] == ["a has 900 of 1060, where", "b has 160 of 1060, where"]


def test_who_manages_the_endpoint_may_and_nobody_else(history: History) -> None:
    write(history, rows(history, "a", [10.0] * 9), rows(history, "b", [10.0] * 9))
    history.catalog.create_token("eve")
    with pytest.raises(PermissionDenied, match="'eve' may not MANAGE"):
        of(history, principal=Principal(name="eve"))
    history.catalog.grants.grant("endpoint", "split", "eve", ["MANAGE"], by="admin")
    history.catalog.grants.grant("catalog", "main", "eve", ["USE CATALOG"], by="admin")
    history.catalog.grants.grant("schema", "main.serving", "eve", ["USE SCHEMA"], by="admin")
    assert len(of(history, principal=Principal(name="eve")).arms) == 2


def test_over_http_and_on_the_command_line(history: History) -> None:
    write(history, rows(history, "a", range(10, 60)), rows(history, "b", range(30, 80)))
    secret = history.catalog.create_token("ann")[1]
    history.catalog.grants.grant("catalog", "main", "ann", ["USE CATALOG"], by="admin")
    history.catalog.grants.grant("schema", "main.serving", "ann", ["USE SCHEMA"], by="admin")
    app = ShapeErrors(
        Authenticate(Router(routes=thread_routes(history.tables, history.catalog)), history.catalog.check_token)
    )

    async def ask(query: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://m") as client:
            head = {"authorization": f"Bearer {secret}"}
            return await client.get(f"/2.0/serving-endpoints/split/compare?{query}", headers=head)

    since = SINCE.strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = asyncio.run(ask(f"since={since}&arms=b,a"))
    assert answer.status_code == 200, answer.text
    assert Comparison.model_validate(answer.json()) == of(history, arms=("b", "a"))
    assert asyncio.run(ask("arm=b")).status_code == 400 and asyncio.run(ask("since=yesterday")).status_code == 400

    where = ["--storage", str(history.folder), "--home", str(history.folder)]
    told = CliRunner().invoke(main, ["endpoint", "compare", "split", *where, "--since", since, "--arms", "a,b"])
    assert told.exit_code == 0, told.output
    assert "b is slower by " in told.output and "latency_p50_milliseconds" in told.output
    told = CliRunner().invoke(main, ["endpoint", "compare", "split", *where, "--since", since, "--json"])
    assert [arm["name"] for arm in json.loads(told.output)["arms"]] == ["a", "b"]
    told = CliRunner().invoke(main, ["endpoint", "compare", "split", *where, "--arms", "a,d", "--since", since])
    assert told.exit_code != 0
