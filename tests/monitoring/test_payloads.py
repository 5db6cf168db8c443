"""Tables of an endpoint's own: their rows, what is kept of texts, what is too large for a column, who may have one."""

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from mosaic.data.ship import KILL_POINTS
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.ids import new_id
from mosaic.monitoring import INFERENCE_TABLE, Keeping
from mosaic.monitoring.keeping import counts
from mosaic.monitoring.payloads import OBJECT_WRITTEN, PAYLOAD_SCHEMA, whole_text
from mosaic.monitoring.retention import Retention, purge_payloads
from mosaic.protocol import Principal
from mosaic.serving.ai_gateway import InferenceTableConfig
from mosaic.serving.routes import BASE, ServingRoutes
from tests.gateway.ledger_door import ADMIN, Door, asked, chat, opened, texts

TABLE = "main.logs.helper_payload"
OWN = {"enabled": True, "catalog_name": "main", "schema_name": "logs"}
LARGE = "é" * 600_000
WORDS = {b"quickly": False, b"stays": True}
"""Whether files keep it."""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with opened(tmp_path) as made:
        yield made


def test_rows_of_an_endpoint_in_a_table_of_its_own(door: Door) -> None:
    door.serve("helper", inference_table_config=OWN, rate_limits=[{"calls": 3}])
    door.serve("other")
    million = {"input_nano_dollars_per_million": 3_000_000, "output_nano_dollars_per_million": 5_000_000}
    door.catalog.prices.set("echo", **million)
    assert door.catalog.get_table(TABLE).owner == "admin" and door.catalog.get_table(TABLE).primary_key
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    context = {"project": "apollo"}
    answers = asked(
        app,
        token,
        chat("helper", "one two", usage_context=context),
        chat("helper", "three", stream=True),
        chat("helper", "four", temperature=9),
        chat("helper", "five"),
        chat("helper", "six"),
        chat("other", "seven"),
        chat("nobody", "eight"),
    )
    assert [one.status_code for one in answers] == [200, 200, 400, 200, 429, 200, 404]
    assert asked(app, None, chat("helper", "nine"))[0].status_code == 401
    rows, ours = door.rows(), door.rows(TABLE)
    assert len(rows) == 8 and [row["status_code"] for row in rows] == [200, 200, 400, 200, 429, 200, 404, 401]
    assert [row["status_code"] for row in ours] == [200, 200, 400, 200, 429]
    first, central = ours[0], rows[0]
    assert first["databricks_request_id"] == first["trace_id"] == answers[0].json()["id"]
    assert first["request_date"] == first["request_time"].date() and first["sampling_fraction"] == 1.0
    assert first["served_entity_id"] == "main.serving.helper@1/echo" and first["requester"] == "ann"
    assert (first["input_tokens"], first["output_tokens"], first["execution_duration_ms"] >= 0) == (2, 2, True)
    assert json.loads(first["usage_context"]) == json.loads(central["usage_context"]) == context
    assert json.loads(first["response"])["choices"][0]["message"]["content"] == "one two"
    assert first["cost_nano_dollars"] == central["cost_nano_dollars"] == 2 * 3 + 2 * 5 and first["price_version"] == 1
    assert first["logging_error_codes"] == [] and texts(ours) == ["one two", "three", "four", "five", "six"]
    assert (central["input_characters"], central["output_characters"]) == (7, 7)
    assert list(PAYLOAD_SCHEMA.names)[:12] == [
        *("databricks_request_id", "client_request_id", "request_date", "request_time", "status_code"),
        *("sampling_fraction", "execution_duration_ms", "request", "response", "served_entity_id"),
        *("logging_error_codes", "requester"),
    ]


def test_what_is_redacted_is_in_no_file(door: Door) -> None:
    door.serve("helper", inference_table_config={**OWN, "redact": "texts"})
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    secret = "zugspitze"
    asks = (chat("helper", secret), chat("helper", secret, stream=True), chat("helper", secret, temperature=secret))
    assert [one.status_code for one in asked(app, token, *asks)] == [200, 200, 400]
    (path, body) = chat("helper", f"fail: {secret}", stream=True)
    assert "the echo was asked to fail" in asked(app, token, (path, body))[0].text
    one = {"model": "helper", "max_tokens": 9}
    others = (
        ("/v1/messages", {**one, "messages": [{"role": "user", "content": secret}], "stream": True}),
        ("/v1/responses", {"model": "helper", "input": secret}),
        ("/v1/completions", {**one, "prompt": secret}),
        ("/v1/messages", {**one, "messages": secret}),
    )
    assert [told.status_code for told in asked(app, token, *others)] == [200, 200, 200, 400]
    rows, ours = door.rows(), door.rows(TABLE)
    assert {(row["request"], row["response"]) for row in (*rows, *ours)} == {(None, None)} and len(ours) == 8
    assert [row["input_characters"] for row in rows[:-1]] == [9, 9, 9, 15, 9, 9, 9]
    assert [row["output_characters"] for row in rows] == [9, 9, None, 5, 9, 9, 9, None]
    assert rows[2]["error"] == "invalid_request: temperature" and rows[3]["error"] == "engine_failed: None"
    assert not [one for one in door.folder.rglob("*") if one.is_file() and secret.encode() in one.read_bytes()]


def test_a_sample_has_its_texts_and_all_have_their_rows(door: Door) -> None:
    door.serve("helper", inference_table_config={**OWN, "sampling_fraction": 0.3})
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    answers = asked(app, token, *(chat("helper", f"n{n}") for n in range(60)))
    sampled = {one.json()["id"] for one in answers if Keeping(sampling_fraction=0.3).samples(one.json()["id"])}
    rows, ours = door.rows(), door.rows(TABLE)
    assert 5 < len(sampled) < 35 and {row["databricks_request_id"] for row in ours} == sampled
    assert {row["request_id"] for row in rows if row["request"]} == sampled and len(rows) == 60
    assert {row["sampling_fraction"] for row in ours} == {0.3} and all(row["input_characters"] for row in rows)


@settings(max_examples=30, deadline=None)
@given(st.floats(min_value=0, max_value=1))
def test_a_share_is_about_as_large_as_it_says(share: float) -> None:
    ids = [new_id("req") for _ in range(2_000)]
    drawn = sum(Keeping(sampling_fraction=share).samples(one) for one in ids)
    assert abs(drawn / 2_000 - share) < 0.06 and (drawn == 0 if share == 0 else share < 1 or drawn == 2_000)
    assert all(Keeping(sampling_fraction=1).samples(one) for one in ids)


def test_a_large_text_is_an_object_beside_the_row(door: Door) -> None:
    door.serve("helper", inference_table_config=OWN)
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    asked(app, token, chat("helper", LARGE), chat("helper", "x" * 1_000_000), chat("../../../x", LARGE))
    for table in (INFERENCE_TABLE, TABLE):
        rows, location = door.rows(table), door.catalog.get_table(table).location
        key = "databricks_request_id" if table == TABLE else "request_id"
        for field in ("request", "response"):
            told = json.loads(rows[0][field])
            whole = whole_text(door.storage, location, rows[0][key], field, rows[0][field])
            assert LARGE in whole and told["bytes"] == len(whole.encode()) > 2**20
            assert told["sha256"] == hashlib.sha256(whole.encode()).hexdigest()
            assert (
                "x" * 1_000_000 in rows[1][field]
                and whole_text(door.storage, location, rows[1][key], field, rows[1][field]) == rows[1][field]
            )
        assert rows[0].get("input_characters", 600_000) == 600_000
        door.tables.vacuum(table, retention_hours=0, force=True)
        assert whole_text(door.storage, location, rows[0][key], "request", rows[0]["request"])
    assert rows[0]["logging_error_codes"] == ["MAX_REQUEST_SIZE_EXCEEDED", "MAX_RESPONSE_SIZE_EXCEEDED"]
    assert rows[1]["logging_error_codes"] == []
    refused = door.rows()[2]
    assert json.loads(refused["request"])["object"].startswith("_payloads/none/")
    # what a client writes is not followed
    forged = json.dumps({"object": "../../x", "bytes": 1, "sha256": "a"})
    assert whole_text(door.storage, location, rows[0][key], "request", forged) == forged


KILLED = """
import os, signal, sys
from pathlib import Path
from mosaic.catalog import Catalog
from mosaic.data import Shipper, Tables
from mosaic.monitoring.destinations import Destinations
from mosaic.monitoring.record import lost
from mosaic.storage import Storage

hits = 0
def at(point):
    global hits
    hits += point == {point!r}
    if hits == {hit}:
        Path({marker!r}).write_text(point)
        os.kill(os.getpid(), signal.SIGKILL)

folder = {folder!r}
catalog, storage = Catalog.open("sqlite:///" + folder + "/catalog.db"), Storage(folder + "/root")
to = Destinations(Tables(storage, catalog), storage, at=at)
Shipper(folder + "/spool", to, lost=lost, at=at).ship_once()
"""


@pytest.mark.parametrize(
    ("point", "hit"),
    [(OBJECT_WRITTEN, 1), (OBJECT_WRITTEN, 4), (KILL_POINTS[0], 2), (KILL_POINTS[1], 1)],
)
def test_kill_9_between_object_commit_and_tables(door: Door, tmp_path: Path, point: str, hit: int) -> None:
    door.serve("helper", inference_table_config=OWN)
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    asked(app, token, chat("helper", LARGE), chat("helper", "small"))
    door.ledger.close()
    marker = tmp_path / "hit"
    script = KILLED.format(point=point, hit=hit, marker=str(marker), folder=str(door.folder))
    killed = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and marker.read_text() == point, killed.stderr
    for table in (INFERENCE_TABLE, TABLE):
        rows, location = door.rows(table), door.catalog.get_table(table).location
        assert len(rows) == 2
        referred = {json.loads(rows[0][field])["object"] for field in ("request", "response")}
        there = {str(one.relative_to(location)) for one in Path(location, "_payloads").rglob("*.json")}
        assert referred == there, "each object has its row, and each row its object"
    assert not list(door.spool.iterdir())


def test_who_may_have_a_table_where(door: Door) -> None:
    eve, bob = Principal(name="eve"), Principal(name="bob")
    door.token("eve"), door.token("bob")
    grants, tables = door.catalog.grants, door.tables
    grants.grant("catalog", "main", "users", ["USE CATALOG"], by="admin")
    grants.grant("schema", "main.serving", "users", ["USE SCHEMA", "CREATE MODEL", "EXECUTE"], by="admin")

    def refused(what: type[Exception], says: str, who: Principal = eve, **config: Any) -> None:
        with pytest.raises(what, match=says):
            door.serve("helper", who, inference_table_config={**OWN, **config})
        assert door.catalog.endpoints.find("helper") is None, "nothing was begun"

    refused(PermissionDenied, "CREATE TABLE")
    refused(NotFound, "main.log", ADMIN, schema_name="log")
    refused(NotFound, "mian", ADMIN, catalog_name="mian")
    refused(
        PermissionDenied,
        "platform's own",
        ADMIN,
        catalog_name="system",
        schema_name="serving",
    )
    refused(BadRequest, "enabled needs", schema_name=None)
    refused(BadRequest, "sampling_fraction", sampling_fraction=1.5)
    refused(BadRequest, "retention_days", retention_days=0)
    refused(BadRequest, "helper-x", table_name_prefix="helper-x/y")
    grants.grant("schema", "main.logs", "users", ["USE SCHEMA", "CREATE TABLE"], by="admin")
    tables.acting(bob).create(TABLE, PAYLOAD_SCHEMA, primary_key="databricks_request_id", owner="bob")
    refused(PermissionDenied, f"SELECT on table {TABLE}")
    door.serve("helper", eve, inference_table_config={**OWN, "table_name_prefix": "eves"})
    assert door.catalog.get_table("main.logs.eves_payload").owner == "eve"
    # whoever may manage the endpoint, and not the table, may still change the rest of the configuration
    grants.grant("endpoint", "main.serving.helper", "bob", ["MANAGE"], by="admin")
    rest = {"inference_table_config": {**OWN, "table_name_prefix": "eves"}, "rate_limits": [{"calls": 5}]}
    door.serve("helper", bob, **rest)
    other = "main.logs.eves2_payload"
    tables.acting(eve).create(other, PAYLOAD_SCHEMA, primary_key="databricks_request_id", owner="eve")
    with pytest.raises(PermissionDenied, match=f"SELECT on table {other}"):
        door.serve("helper", bob, inference_table_config={**OWN, "table_name_prefix": "eves2"})


def test_a_table_that_is_gone_or_changed_holds_nothing_up(door: Door) -> None:
    door.serve("helper", inference_table_config=OWN)
    door.serve("other", inference_table_config={**OWN, "table_name_prefix": "other"})
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    asked(app, token, chat("helper", "one"), chat("other", "two"))
    door.catalog.delete_table(TABLE)
    location = door.catalog.get_table("main.logs.other_payload").location
    DeltaTable(location).alter.add_constraint({"short": "status_code > 200"})
    shipping = door.shipper()
    assert shipping.ship_once() == 2 and len(door.rows()) == 2
    assert shipping.left_out == {TABLE: 1, "main.logs.other_payload": 1}
    door.ledger.close()
    assert door.shipper().ship_once() == 0 and not list(door.spool.iterdir())
    assert door.tables.to_arrow("main.logs.other_payload").num_rows == 0


def test_what_is_old_goes(door: Door) -> None:
    door.serve("helper", inference_table_config={**OWN, "retention_days": 7})
    door.serve("other", inference_table_config={**OWN, "table_name_prefix": "helper"})
    app, token = door.app(), door.catalog.create_token("ann", is_admin=True)[1]
    asked(app, token, chat("helper", LARGE), chat("helper", "quickly"), chat("other", "stays"))
    assert len(door.rows()) == 3
    retention, today = Retention("main.serving.helper", TABLE, 7), datetime.now(UTC).date()

    gone = Retention("main.serving.gone", "main.logs.gone", 1)

    def purge(day: date, hours: int = 168) -> None:
        assert purge_payloads(door.tables, door.storage, [gone, retention], today=day, vacuum_hours=hours)

    def with_word(word: bytes) -> list[Path]:
        return [one for one in door.folder.rglob("*.parquet") if word in one.read_bytes()]

    purge(today + timedelta(days=7))
    assert texts(door.rows(TABLE)[1:]) == ["quickly", "stays"], "the seventh day is kept"
    for _ in range(2):
        purge(today + timedelta(days=8))
        assert texts(door.rows(TABLE)) == ["stays"]
        rows = door.rows()
        assert texts(rows) == [None, None, "stays"] and [row["output_tokens"] for row in rows] == [1, 1, 1]
        assert not list(door.folder.rglob("_payloads/*/*/*.json"))
    assert with_word(b"quickly"), "versions of before can still be read"
    purge(today + timedelta(days=8), hours=0)
    for word, is_kept in WORDS.items():
        assert bool(with_word(word)) == is_kept, (word, with_word(word))


def test_over_http_in_databricks_shape(door: Door) -> None:
    app = Starlette(routes=ServingRoutes(door.serving).routes())
    door.serve("helper", rate_limits=[{"calls": 5}])

    async def as_admin(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"principal": ADMIN}}, receive, send)

    def put(**wanted: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=as_admin), base_url="http://m") as client:
                return await client.put(f"{BASE}/helper/ai-gateway", json=wanted)

        return asyncio.run(ask())

    told = put(inference_table_config=OWN)
    assert told.status_code == 200 and told.json()["inference_table_config"]["catalog_name"] == "main"
    assert door.catalog.find_table(TABLE) is not None
    before = door.catalog.endpoints.get("helper").pending
    for config, error, says in (
        ({**OWN, "schema_name": "nowhere"}, NotFound, "main.nowhere"),
        ({**OWN, "catalog_name": "nowhere"}, NotFound, "nowhere"),
        ({"enabled": True}, BadRequest, "enabled needs catalog_name and schema_name"),
        ({**OWN, "sampling": 1}, BadRequest, "inference_table_config.sampling"),
        ({**OWN, "redact": "some"}, BadRequest, "inference_table_config.redact"),
        ({**OWN, "table_name_prefix": "a.b"}, BadRequest, "a.b"),
    ):
        with pytest.raises(error, match=says):
            put(inference_table_config=config)
    assert door.catalog.endpoints.get("helper").pending == before, "nothing was begun"


def test_its_name() -> None:
    assert InferenceTableConfig(**OWN).table_of("main.serving.my-helper") == "main.logs.my_helper_payload"
    assert InferenceTableConfig(**{**OWN, "table_name_prefix": "p"}).table_of("a.b.c") == "main.logs.p_payload"
    assert InferenceTableConfig().table_of("a.b.c") is None


@pytest.mark.parametrize(
    ("request_text", "characters"),
    [
        ('{"messages":[{"role":"user","content":"äöü"},{"role":"assistant","content":null}],"user":"ann"}', 3),
        ('{"messages":[{"role":"user","content":[{"type":"text","text":"ab"},{"type":"text","text":"c"}]}]}', 3),
        ('{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]}', 2),
        ('{"input":["ab","c"],"model":"x"}', 3),
        ('{"query":"ab","documents":["c",{"text":"de"}],"top_n":1}', 5),
        ('{"prompt":[[1,2],[3]]}', 0),
        ('{"tools":[{"function":{"description":"long"}}],"messages":"no list"}', 0),
        ("no JSON", 7),
        ("[]", 0),
    ],
)
def test_characters_of_what_is_said(request_text: str, characters: int) -> None:
    assert counts({"request": request_text, "response": None}) == {"input_characters": characters}
    assert counts({"request": request_text, "input_characters": 1}) == {}
