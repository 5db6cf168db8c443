"""`system.serving.endpoint_usage`, as the SQL of several callers has it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mosaic.data.sql import Sql
from mosaic.errors import BadRequest
from mosaic.monitoring.endpoint_usage import SCHEMA, USAGE_TABLE, usage_table
from mosaic.protocol import Principal
from tests.gateway.ledger_door import ADMIN, Door, asked, chat, opened


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with opened(tmp_path) as made:
        for name in ("helper", "other"):
            made.serve(name)
        for kind, name, privilege in (
            ("catalog", "main", "USE CATALOG"),
            ("schema", "main.serving", "USE SCHEMA"),
            ("schema", "main.serving", "EXECUTE"),
        ):
            made.catalog.grants.grant(kind, name, "users", [privilege], by="admin")
        yield made


_SQL: dict[Door, Sql] = {}


def query(door: Door, principal: Principal, statement: str) -> list[dict[str, Any]]:
    if door not in _SQL:
        computed = {USAGE_TABLE: usage_table(door.tables)}
        _SQL[door] = Sql(door.storage, door.tables, door.catalog, system_tables=computed)
    return _SQL[door].query(statement, principal=principal).rows.to_pylist()


def test_everybody_sees_their_own_and_what_they_manage(door: Door) -> None:
    ann, bob = door.token("ann"), door.token("bob")
    door.token("eve")
    app = door.app()
    context = {"project": "apollo", "team": "o'hara"}
    asked(app, ann, chat("helper", "one two", usage_context=context), chat("other", "three", stream=True))
    asked(app, bob, chat("helper", "four five six"), chat("helper", "x", temperature=9), chat("nobody", "x"))
    asked(app, None, chat("helper", "x"))
    door.rows()
    seen = f"SELECT requester, endpoint_name FROM {USAGE_TABLE} ORDER BY request_time"
    names = {name: Principal(name=name) for name in ("ann", "bob", "eve")}
    assert [row["requester"] for row in query(door, names["ann"], seen)] == ["ann", "ann"]
    assert [row["requester"] for row in query(door, names["bob"], seen)] == ["bob"] * 3
    assert query(door, names["eve"], seen) == []
    assert len(query(door, ADMIN, seen)) == 6
    door.catalog.grants.grant("endpoint", "main.serving.helper", "eve", ["MANAGE"], by="admin")
    mine = [(row["requester"], row["endpoint_name"]) for row in query(door, names["eve"], seen)]
    assert mine == [(who, "main.serving.helper") for who in ("ann", "bob", "bob")], "what was refused too"

    (first, second) = query(door, names["ann"], f"SELECT * FROM {USAGE_TABLE} ORDER BY request_time")
    assert list(first) == SCHEMA.names
    assert dict(first["usage_context"]) == context and second["usage_context"] is None
    assert (first["input_token_count"], first["output_token_count"], first["cost_nano_dollars"]) == (2, 2, None)
    assert (first["input_character_count"], first["output_character_count"]) == (7, 7)
    assert (first["request_streaming"], second["request_streaming"], first["status_code"]) == (False, True, 200)
    assert first["served_entity_id"] == "main.serving.helper@1/echo"
    spent = f"""SELECT usage_context['project'] AS project, sum(output_token_count) AS tokens
                FROM {USAGE_TABLE} WHERE status_code = 200 GROUP BY 1 ORDER BY 1"""
    assert query(door, ADMIN, spent) == [{"project": "apollo", "tokens": 2}, {"project": None, "tokens": 4}]
    with pytest.raises(BadRequest, match="no versions"):
        query(door, ADMIN, f"SELECT * FROM {USAGE_TABLE}@1")


def test_of_an_endpoint_that_bears_anothers_name_only_what_came_since(door: Door) -> None:
    ann = door.token("ann")
    door.token("eve")
    asked(door.app(), ann, chat("helper", "before"))
    door.catalog.endpoints.delete("helper")
    door.serve("helper")
    door.catalog.grants.grant("endpoint", "main.serving.helper", "eve", ["MANAGE"], by="admin")
    asked(door.app("second"), ann, chat("helper", "two words"))
    door.rows()
    found = query(door, Principal(name="eve"), f"SELECT input_token_count AS n FROM {USAGE_TABLE}")
    assert found == [{"n": 2}]


def test_what_usage_context_may_be(door: Door) -> None:
    app, ann = door.app(), door.token("ann")
    for wrong in ({"a": 1}, ["a"], {"": "x"}, {"a": "x" * 257}, {f"k{n}": "x" for n in range(33)}):
        refused = asked(app, ann, chat("helper", "x", usage_context=wrong))[0]
        assert refused.status_code == 400 and refused.json()["error"]["param"].startswith("usage_context")
    answers = asked(app, ann, chat("helper", "x", usage_context={}), chat("helper", "x", usage_context={"é": "ü"}))
    assert [one.status_code for one in answers] == [200, 200]
    assert [json.loads(row["usage_context"] or "null") for row in door.rows()][-2:] == [{}, {"é": "ü"}]
