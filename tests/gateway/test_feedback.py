"""Feedback on answers: who may give it on what, that it is durable, shipped once, and found before its row is."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mosaic.ids import new_id
from mosaic.monitoring import INFERENCE_TABLE
from mosaic.monitoring.feedback import FEEDBACK_TABLE
from tests.gateway.ledger_door import Door, asked, chat, opened


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with opened(tmp_path) as made:
        made.serve("helper")
        for kind, name, privilege in (
            ("catalog", "main", "USE CATALOG"),
            ("schema", "main.serving", "USE SCHEMA"),
            ("schema", "main.serving", "EXECUTE"),
        ):
            made.catalog.grants.grant(kind, name, "users", [privilege], by="admin")
        yield made


def test_who_asked_or_manages_may_tell(door: Door) -> None:
    ann, bob, eve = (door.token(name) for name in ("ann", "bob", "eve"))
    door.catalog.grants.grant("endpoint", "main.serving.helper", "bob", ["MANAGE"], by="admin")
    app = door.app()
    answer = asked(app, ann, chat("helper", "one two"))[0].json()

    def tell(token: str | None, **said: Any) -> Any:
        return asked(app, token, ("/v1/feedback", {"request_id": answer["id"], **said}))[0]

    told = tell(ann, rating=1, comment="good", metadata={"page": "7"})
    assert told.status_code == 200 and told.json()["request_id"] == answer["id"]
    assert tell(bob, rating=-0.5, correction="two one").status_code == 200, "before its row is shipped"
    refused = tell(eve, rating=1)
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "request_not_found"
    unknown = asked(app, eve, ("/v1/feedback", {"request_id": new_id("req"), "rating": 1}))[0]
    assert unknown.status_code == 404
    same = {one.json()["error"]["message"].partition("'")[2].partition("'")[2] for one in (refused, unknown)}
    assert len(same) == 1, "whose it is cannot be told from whether it is there"
    rows = door.rows(FEEDBACK_TABLE)
    assert [row["principal"] for row in rows] == ["ann", "bob"]
    first = rows[0]
    assert (first["rating"], first["comment"], first["correction"]) == (1.0, "good", None)
    assert first["metadata"] == [("page", "7")] and first["endpoint"] == "main.serving.helper"
    assert first["served_entity"] == "echo" and first["feedback_id"] == told.json()["id"]
    (asked_row, *others) = door.rows(INFERENCE_TABLE)
    assert first["request_time"] == asked_row["request_time"] < first["time"]
    assert tell(ann, comment="now it is in the table").status_code == 200
    assert all(row["request"] is None and row["path"] == "/v1/feedback" for row in others) and len(others) == 4
    assert tell(None, rating=1).status_code == 401


def test_what_is_not_feedback(door: Door) -> None:
    app, ann = door.app(), door.token("ann")
    request_id = asked(app, ann, chat("helper", "one"))[0].json()["id"]
    for said, param in (
        ({}, "rating"),
        ({"rating": 1.5}, "rating"),
        ({"rating": "good"}, "rating"),
        ({"rating": 1, "stars": 5}, "stars"),
        ({"rating": 1, "metadata": {"a": 1}}, "metadata.a"),
        ({"comment": ""}, "comment"),
        ({"correction": "x" * 100_001}, "correction"),
    ):
        refused = asked(app, ann, ("/v1/feedback", {"request_id": request_id, **said}))[0]
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param, refused.text
    for named in ("x", "req_'; DROP", "", "../../etc"):
        refused = asked(app, ann, ("/v1/feedback", {"request_id": named, "rating": 1}))[0]
        assert refused.status_code == (404 if named else 400)
    assert asked(app, ann, ("/v1/feedback", {"rating": 1}))[0].json()["error"]["param"] == "request_id"
    assert door.rows(FEEDBACK_TABLE) == []


def test_a_gateway_that_dies_after_its_answer_has_it(door: Door) -> None:
    app, ann = door.app(), door.token("ann")
    request_id = asked(app, ann, chat("helper", "one"))[0].json()["id"]
    if (child := os.fork()) == 0:
        os._exit(0)  # locks of a process that has gone are free
    os.waitpid(child, 0)
    assert asked(app, ann, ("/v1/feedback", {"request_id": request_id, "rating": -1}))[0].status_code == 200
    written = b"".join(path.read_bytes() for path in door.spool.iterdir())
    assert written.count(b'"_feedback"') == 1 and json.dumps(request_id).encode() in written
    door.ledger.close()  # what a dead owner leaves is the same: nobody holds the lock
    door.shipper().ship_once()
    assert len(door.rows(FEEDBACK_TABLE)) == 1 and len(door.rows(FEEDBACK_TABLE)) == 1
    assert not list(door.spool.iterdir())


def test_a_row_that_another_node_ships_is_waited_for(door: Door, tmp_path: Path) -> None:
    app, ann = door.app(), door.token("ann")
    request_id = asked(app, ann, chat("helper", "one"))[0].json()["id"]
    away = tmp_path / "another-node"
    door.spool.rename(away)
    door.spool.mkdir()
    began, find_here = time.monotonic(), door.finder()

    def find(sought: str) -> Any:
        if time.monotonic() - began > 0.3 and away.exists():
            for path in away.iterdir():
                path.rename(door.spool / path.name)
            away.rmdir()
            door.shipper().ship_once()
        return find_here(sought)

    app = door.app(owner="second", find=find, wait_seconds=3)
    assert asked(app, ann, ("/v1/feedback", {"request_id": request_id, "rating": 1}))[0].status_code == 200
    assert time.monotonic() - began > 0.3
