"""`why` and `impact` name exactly the right things, also after aliases have moved and tables have newer versions."""

import asyncio
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from deltalake import DeltaTable
from starlette.routing import Router

import mosaic
from mosaic.cli import main
from mosaic.data import Tables
from mosaic.data.manifest import note_source
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.monitoring import INFERENCE_TABLE
from mosaic.monitoring.impact import Dependent, Impact, impact
from mosaic.monitoring.routes import thread_routes
from mosaic.monitoring.selection import VERSIONS_LOOKED_AT
from mosaic.monitoring.thread import MOST_DRAWN, Thread, why
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage
from tests.monitoring.history import ENTRIES, INDEX, MODEL, SOURCES, TRAIN, History, sha


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path)
    yield made
    made.catalog.close()


def two_generations(history: History) -> dict[str, str]:
    """Two ingestions, each with examples, a model version and an index version; answers by name."""
    first = history.ingest({"os.walk": "os", "os.path": "os", "json.loads": "json"})
    history.train(history.examples(), alias="champion")
    history.index(first)
    answers = {
        "walk": history.answer(**history.tuned(1), **history.retrieved(first, "os.walk", "json.loads")),
        "json": history.answer(model="smollm2", served_entity="base", **history.retrieved(first, "json.loads")),
        "plain": history.answer(**history.tuned(1)),
        "other": history.answer(model="echo", endpoint="main.serving.echo"),
    }
    second = history.ingest({"json.loads": "json", "re.match": "re"})
    history.train(history.examples(), alias="champion")
    history.index(second)
    answers["new"] = history.answer(**history.tuned(2), **history.retrieved(second, "re.match"))
    return answers


def find(thread: Thread, label: str) -> Thread:
    """The first node whose label begins so."""
    found = search(thread, label)
    assert found is not None, f"no {label!r} in {labels(thread)}"
    return found


def search(thread: Thread, label: str) -> Thread | None:
    if thread.label.startswith(label):
        return thread
    return next((found for part in thread.came_from if (found := search(part, label)) is not None), None)


def labels(thread: Thread) -> list[str]:
    return [thread.label, *(label for part in thread.came_from for label in labels(part))]


def named(found: Impact) -> dict[str, tuple[int, ...]]:
    """What is downstream, with its versions; each version of a model by itself."""
    return {
        f"{one.name}/{one.versions[0]}" if one.kind == "model" else str(one.name): one.versions
        for one in found.dependents
    }


def dependent(found: Impact, kind: str, version: int | None = None) -> Dependent:
    (one,) = [one for one in found.dependents if one.kind == kind and version in (None, *one.versions)]
    return one


def answered(found: Impact) -> list[str]:
    return [answer.request_id for answer in found.answers.newest]


# From an answer to its sources


def test_why_names_everything_as_it_was_at_that_moment(history: History) -> None:
    answers = two_generations(history)
    history.catalog.set_alias(MODEL, "previous", 1, principal="ann")
    thread = why(history.tables, history.catalog, answers["walk"])
    assert thread.facts["principal"] == "bob" and thread.facts["status"] == 200
    assert thread.facts["endpoint"] == "main.serving.assistant" and thread.facts["endpoint_config_version"] == 1
    assert thread.facts["served_entity"] == "tuned"
    model = find(thread, f"model {MODEL}")
    assert model.label == f"model {MODEL}, version 1"
    assert (model.facts["asked_as"], model.facts["aliases_at_that_moment"]) == ("champion", ["champion"])
    training = find(model, "run ")
    assert training.label == f"run {history.catalog.get_model_version(f'{MODEL}/1').run_id}"
    assert training.facts["mlflow_run_id"] == "mlflow1" and training.facts["kind"] == "training"
    assert training.facts["params"] == {"train_table": f"{TRAIN}@1", "learning_rate": 0.002}
    assert training.facts["mosaic"] == mosaic.__version__ and training.facts["code"]
    assert [part.label for part in training.came_from] == [
        f"table {TRAIN}, version 1",
        "base_model smollm2-135m-instruct",
    ]
    entries = find(training, f"table {ENTRIES}")
    assert entries.label == f"table {ENTRIES}, version 1" and entries.facts["columns"] == ["entry_id", "module"]
    source = find(entries, "source ")
    assert source.facts == {"documents": 2, "manifest": f"{SOURCES}@1", "sha256": sha("manifest")}


def test_why_names_the_retrieved_rows_and_their_files(history: History) -> None:
    answers = two_generations(history)
    thread = why(history.tables, history.catalog, answers["walk"])
    retrieved = find(thread, "retrieved from")
    assert retrieved.label == f"retrieved from index {INDEX}, version 1"
    walk, loads = retrieved.came_from[:2]
    assert (walk.label, loads.label) == ("entry os.walk", "entry json.loads")
    assert walk.facts == {"source": "python:3.11.9/os#os.walk", "sha256": sha("os.walk")}
    (document,) = walk.came_from
    assert document.label == "document python:3.11.9/os"
    assert document.facts == {"sha256": sha("os.py"), "file": "os.py", "bytes": 10, "listed_in": f"{SOURCES}@1"}
    assert find(retrieved, "run ").facts["kind"] == "index"
    newest = find(why(history.tables, history.catalog, answers["new"]), "document ")
    assert newest.facts["listed_in"] == f"{SOURCES}@2"


def test_why_where_parts_are_gone_or_never_were(history: History) -> None:
    answers = two_generations(history)
    plain = why(history.tables, history.catalog, answers["other"])
    assert [part.label for part in plain.came_from] == ["model echo"] and not plain.came_from[0].facts
    gone = history.answer(**history.retrieved(1, "no.such.entry"))
    assert find(why(history.tables, history.catalog, gone), "entry ").facts == {
        "row": "not in that version of the table"
    }
    unrecorded = history.answer(**history.retrieved(0, "os.walk"))
    assert search(why(history.tables, history.catalog, unrecorded), f"table {ENTRIES}, version 0") is not None
    history.catalog.delete_index(INDEX)
    history.catalog.delete_model(MODEL)
    thread = why(history.tables, history.catalog, answers["walk"])
    assert find(thread, "entry os.walk").facts["sha256"] == sha("os.walk")
    assert find(thread, f"model {MODEL}").facts["asked_as"] == "champion"
    with pytest.raises(NotFound, match="no row of request 'req_x' in"):
        why(history.tables, history.catalog, "req_x")


def test_why_after_a_name_was_taken_again(history: History) -> None:
    """A model, an index and a table are dropped and made again: what answered is what bore the name at that moment."""
    old_version = history.ingest({"os.walk": "os"})
    history.train(history.examples(), alias="champion")
    history.index(old_version)
    old = history.answer(**history.tuned(1), **history.retrieved(old_version, "os.walk"))
    as_it_was = why(history.tables, history.catalog, old)
    history.pass_time()
    history.catalog.delete_index(INDEX)
    history.catalog.delete_model(MODEL)
    history.pass_time()
    after_the_drop = find(why(history.tables, history.catalog, old), f"model {MODEL}")
    assert after_the_drop.facts["aliases_at_that_moment"] == ["champion"]
    for table in (ENTRIES, TRAIN, SOURCES):
        history.catalog.delete_table(table)
    new_version = history.ingest({"re.match": "re", "os.walk": "other"})
    history.train(history.examples(), alias="challenger")
    history.index(new_version)
    new = history.answer(**history.tuned(1, "challenger"), **history.retrieved(new_version, "os.walk"))
    assert old_version == new_version == 1, "the names and the versions are the same"

    thread = why(history.tables, history.catalog, old)
    assert [label for label in labels(thread) if label.startswith("run ")] == [
        label for label in labels(as_it_was) if label.startswith("run ")
    ]
    model = find(thread, f"model {MODEL}")
    assert (model.facts["asked_as"], model.facts["aliases_at_that_moment"]) == ("champion", ["champion"])
    entry = find(thread, "entry os.walk")
    assert "was dropped" in entry.facts["row"] and not entry.came_from, "not a row of the new table"
    thread = why(history.tables, history.catalog, new)
    assert find(thread, f"model {MODEL}").facts["aliases_at_that_moment"] == ["challenger"]
    assert find(thread, "document ").label == "document python:3.11.9/other"

    def told(version: int | None) -> tuple[list[tuple[bool, dict[str, int], int]], list[str]]:
        found = impact(history.tables, history.catalog, ENTRIES, version=version)
        models = [one for one in found.dependents if one.kind in ("model", "index")]
        return [(one.deleted, one.aliases, one.answers) for one in models], answered(found)

    assert told(None) == told(1) == ([(False, {"challenger": 1}, 1), (False, {}, 1)], [new])
    bob = principal(history, "bob")
    history.catalog.grants.grant("model", MODEL, "bob", ["BROWSE"], by=ADMIN)
    assert find(why(history.tables, history.catalog, new, principal=bob), f"model {MODEL}")
    withheld = why(history.tables, history.catalog, old, principal=bob)
    assert search(withheld, f"model {MODEL}") is None, "a grant on the new one is none on the old one"


def test_impact_tells_apart_what_bore_one_name_in_turn(history: History) -> None:
    """A model that was trained on one table, dropped, and made again from another one."""
    asked = {}
    for table in ("main.docs.people", "main.docs.orders"):
        rows = pa.table({"id": [1]})
        history.tables.create(table, rows.schema, primary_key="id", owner="ann")
        version = history.tables.append(table, rows)
        history.catalog.put_index(INDEX, table=table, spec={"primary_key": "id"}, owner="ann")
        run_id = history.run("training", MODEL)
        history.catalog.add_input(run_id, "table", table, version)
        history.catalog.create_model(MODEL, owner="ann")
        history.catalog.create_model_version(MODEL, source="memory://bot", kind="full", run_id=run_id)
        history.catalog.add_output(run_id, "index", INDEX, version)
        history.catalog.finish_run(run_id, "finished")
        history.catalog.set_alias(MODEL, "champion", 1)
        asked[table] = [history.answer(**history.tuned(1)), history.answer(**history.retrieved(1, "1"))]
        history.pass_time()
        if table == "main.docs.people":
            history.catalog.delete_model(MODEL)
            history.catalog.delete_index(INDEX)
            history.pass_time()
    people, orders = (impact(history.tables, history.catalog, table) for table in asked)
    for found, gone, ids in ((people, True, asked["main.docs.people"]), (orders, False, asked["main.docs.orders"])):
        assert answered(found) == ids[::-1] and found.answers.total == 2
        model, index = dependent(found, "model"), dependent(found, "index")
        assert (model.deleted, model.answers, model.aliases) == (gone, 1, {} if gone else {"champion": 1})
        assert (index.deleted, index.answers) == (gone, 1)
    some = impact(history.tables, history.catalog, "main.docs.people", where="id = 1")
    assert some.answers.given_rows == 1 and set(answered(some)) == set(asked["main.docs.people"])


def test_impact_where_nothing_was_ever_served(tmp_path: Path) -> None:
    history = History(tmp_path, served=False)
    history.ingest({"os.walk": "os"})
    history.train(history.examples())
    found = impact(history.tables, history.catalog, ENTRIES)
    assert [(one.kind, one.name) for one in found.dependents] == [("model", MODEL), ("table", TRAIN)]
    assert found.answers.total == 0
    history.catalog.close()


def test_why_of_a_table_that_many_runs_appended_to(history: History) -> None:
    history.catalog.ensure_schema("main.logs")
    rows, files, bot = "main.logs.rows", "main.logs.files", "main.logs.bot"
    schema = pa.schema([("id", pa.string()), ("source", pa.string())])
    history.tables.create(rows, schema, primary_key="id", owner="ann")
    for number in range(4):
        run_id = history.run("ingest", rows)
        uri = f"s3://raw/{number}"
        listed = pa.table({"uri": [uri], "sha256": [sha(uri)], "file": [uri], "bytes": [1]})
        note_source(history.tables, history.catalog, run_id, "s3://raw", listed, manifest=files, owner="ann")
        for more in range(20):
            history.catalog.add_input(run_id, "file", f"{uri}/{more}", None)
        new = pa.table({"id": [f"{number}"], "source": [uri]}, schema=schema)
        history.tables.append(rows, new, run_id=run_id)
        history.catalog.finish_run(run_id, "finished")
    history.catalog.create_model(bot, owner="ann")
    run_id = history.run("training", bot)
    history.tables.to_arrow(rows, run_id=run_id)
    history.catalog.create_model_version(bot, source="memory://bot", kind="full", run_id=run_id)
    history.catalog.finish_run(run_id, "finished")
    history.catalog.put_index("main.logs.index", table=rows, spec={"primary_key": "id"}, owner="ann")
    at = {"retrieved_index": "main.logs.index", "retrieved_version": 4, "retrieved_ids": ["0", "3"]}
    thread = why(history.tables, history.catalog, history.answer(model=bot, model_version=1, **at))
    table = find(thread, f"table {rows}, version 4")
    (run,) = table.came_from
    assert (run.facts["kind"], run.facts["earlier_runs"]) == ("ingest", 3)
    assert [part.label for part in run.came_from[:2]] == ["source s3://raw", "file s3://raw/3/0"]
    assert run.came_from[0].facts["manifest"] == f"{files}@4", "as the newest run noted it"
    assert (len(run.came_from), run.came_from[-1].label) == (MOST_DRAWN + 1, "and 31 more, of earlier runs")
    listed_in = {part.label: part.came_from[0].facts["listed_in"] for part in find(thread, "retrieved ").came_from[:2]}
    assert listed_in == {"entry 0": f"{files}@1", "entry 3": f"{files}@4"}, "of the run that wrote the row"


def test_why_of_models_and_indexes_that_are_in_no_catalog(history: History) -> None:
    for model in ("/models/a", "org/name", "main.docs.bot/x"):
        asked = history.answer(model=model, model_version=1)
        assert why(history.tables, history.catalog, asked).came_from[0].label == f"model {model}, version 1"
    odd = history.answer(model="echo", retrieved_index="main.docs.none", retrieved_version=3)
    assert find(why(history.tables, history.catalog, odd), "index main.docs.none, version 3").facts["deleted"]
    odd = history.answer(model="echo", retrieved_index="main.docs.none")
    assert find(why(history.tables, history.catalog, odd), "index main.docs.none").facts == {}
    odd = history.answer(model="echo", retrieved_index="/a/b", retrieved_version=3)
    assert find(why(history.tables, history.catalog, odd), "index /a/b, version 3").facts == {}


# From a table to all that depends on it


def test_impact_of_a_table_and_of_its_versions(history: History) -> None:
    answers = two_generations(history)
    found = impact(history.tables, history.catalog, ENTRIES)
    assert named(found) == {f"{MODEL}/1": (1,), f"{MODEL}/2": (2,), INDEX: (1, 2), TRAIN: (1, 2)}
    assert answered(found) == [answers[name] for name in ("new", "plain", "json", "walk")]
    assert (found.answers.total, found.answers.by_endpoint) == (4, {"main.serving.assistant": 4})
    assert dependent(found, "model", 2).aliases == {"champion": 2} and not dependent(found, "model", 1).aliases
    assert dependent(found, "model", 1).made_from == (f"table {TRAIN}@1",)
    assert [dependent(found, kind, 2).runs_between for kind in ("model", "index", "table")] == [2, 1, 1]

    first = impact(history.tables, history.catalog, ENTRIES, version=1)
    assert named(first) == {f"{MODEL}/1": (1,), INDEX: (1,), TRAIN: (1,)}, "all rows were replaced by version 2"
    assert answered(first) == [answers[name] for name in ("plain", "json", "walk")]
    second = impact(history.tables, history.catalog, f"{ENTRIES}@2")
    assert named(second) == {f"{MODEL}/2": (2,), INDEX: (2,), TRAIN: (2,)}
    assert answered(second) == [answers["new"]] and second.version == 2
    assert [one.kind for one in impact(history.tables, history.catalog, TRAIN, version=1).dependents] == ["model"]


def test_impact_of_some_rows(history: History) -> None:
    answers = two_generations(history)
    os_rows = impact(history.tables, history.catalog, ENTRIES, where="module = 'os'")
    assert named(os_rows) == {f"{MODEL}/1": (1,), INDEX: (1,), TRAIN: (1,)}, "version 2 has no such row"
    index, model, table = (dependent(os_rows, kind) for kind in ("index", "model", "table"))
    assert (index.known, index.matching_rows, index.answers) == ("rows", 2, 1)
    assert (table.known, table.matching_rows) == ("table", 2)
    assert (model.known, model.matching_rows, model.answers) == ("table", None, 2)
    assert {one.request_id: one.known for one in os_rows.answers.newest} == {
        answers["walk"]: "rows",
        answers["plain"]: "table",
    }
    assert (os_rows.answers.total, os_rows.answers.given_rows) == (2, 1)
    assert "which rows of a version a run used is not recorded" in os_rows.notes[0]
    matched = impact(history.tables, history.catalog, ENTRIES, where="module = 're'")
    assert answered(matched) == [answers["new"]] and named(matched) == {f"{MODEL}/2": (2,), INDEX: (2,), TRAIN: (2,)}
    nothing = impact(history.tables, history.catalog, ENTRIES, where="module = 'zlib'")
    assert not nothing.dependents and nothing.answers.total == 0


def test_impact_counts_what_a_run_read_by_its_own_predicate(history: History) -> None:
    version = history.ingest({"os.walk": "os", "json.loads": "json"})
    for module in ("os", "json"):
        run_id = history.run("examples", f"main.docs.{module}")
        detail = {"columns": ["entry_id"], "predicate": f"module = '{module}'"}
        history.catalog.add_input(run_id, "table", ENTRIES, version, detail=detail)
        history.catalog.add_output(run_id, "table", f"main.docs.{module}", 1)
    found = impact(history.tables, history.catalog, ENTRIES, where="entry_id LIKE 'os.%'")
    assert named(found) == {"main.docs.os": (1,)} and found.dependents[0].matching_rows == 1


def test_a_noted_predicate_is_not_pasted_into_a_query(history: History) -> None:
    """It is whatever text a reader gave."""
    version = history.ingest({"os.walk": "os", "json.loads": "json"})
    noted = ["1=0) OR (1=1", "true) --", "length(entry_id) > 1", "entry_id = 'os.walk'"]
    for number, predicate in enumerate(noted):
        run_id = history.run("filter", f"main.docs.out{number}")
        history.tables.open(ENTRIES, version, predicate=predicate, run_id=run_id)
        history.catalog.add_output(run_id, "table", f"main.docs.out{number}", 1)

    def matching(where: str) -> dict[str | None, int | None]:
        found = impact(history.tables, history.catalog, ENTRIES, where=where)
        return {one.name: one.matching_rows for one in found.dependents}

    assert matching("module = 'none'") == {}
    unknown = {f"main.docs.out{number}": None for number in range(3)}
    assert matching("module = 'os'") == {**unknown, "main.docs.out3": 1}
    assert matching("module = 'json'") == unknown


def test_a_log_that_leads_out_of_its_folder_is_not_followed(history: History) -> None:
    """Who may write a table's files would otherwise ask about the rows of others' tables."""
    version = history.ingest({"os.walk": "os"})
    asked = history.answer(model="echo", **history.retrieved(version + 1, "secret"))
    history.index(version)
    place = Path(history.catalog.get_table(ENTRIES).location)
    secret = pa.table({name: ["secret"] for name in ("entry_id", "module", "source", "sha256")})
    history.tables.create("main.docs.vault", secret.schema, primary_key=None, owner="ann")
    history.tables.append("main.docs.vault", secret)
    (theirs,) = Path(history.catalog.get_table("main.docs.vault").location).glob("*.parquet")
    forged = {"path": os.path.relpath(theirs, place), "size": theirs.stat().st_size, "partitionValues": {}}
    forged |= {"modificationTime": 0, "dataChange": True}
    (place / f"_delta_log/{version + 1:020d}.json").write_text(json.dumps({"add": forged}) + "\n")
    with pytest.raises(BadRequest, match="outside of it"):
        impact(history.tables, history.catalog, ENTRIES, where="module = 'secret'")
    entry = find(why(history.tables, history.catalog, asked), "entry secret")
    assert "cannot be read any more" in entry.facts["row"] and "sha256" not in entry.facts


def test_impact_of_rows_in_more_versions_than_are_searched(history: History) -> None:
    for number in range(VERSIONS_LOOKED_AT + 3):
        version = history.ingest({"os.walk": "os"} if number else {"json.loads": "json"})
        history.index(version)
    oldest = history.answer(model="echo", **history.retrieved(1, "json.loads"))
    newest = history.answer(model="echo", **history.retrieved(version, "os.walk"))
    found = impact(history.tables, history.catalog, ENTRIES, where="module = 'os'")
    assert {one.request_id: one.known for one in found.answers.newest} == {newest: "rows", oldest: "table"}
    assert found.notes[1].startswith("3 versions of the table were not searched (at most 32 are")
    assert found.notes[1].endswith("with 1 answers")


def test_versions_that_are_gone_are_not_tried_without_end(history: History) -> None:
    class Counting(Tables):
        opened = 0

        def delta(self, *arguments: Any, **more: Any) -> DeltaTable:
            Counting.opened += 1
            return super().delta(*arguments, **more)

    history.ingest({"os.walk": "os"})
    for version in range(2, 62):  # which the table never had
        history.index(version)
    counting = Counting(Storage(str(history.folder)), history.catalog)
    found = impact(counting, history.catalog, ENTRIES, where="module = 'os'")
    assert Counting.opened < VERSIONS_LOOKED_AT + 5
    assert dependent(found, "index").versions == tuple(range(2, 62)), "named, since it is not known"
    assert "60 versions of the table were not searched" in found.notes[1]


def test_impact_where_the_lineage_was_lost_or_things_are_gone(history: History) -> None:
    answers = two_generations(history)
    unrecorded = history.answer(model="echo", **history.retrieved(7, "os.walk"))
    assert unrecorded in answered(impact(history.tables, history.catalog, ENTRIES)), "of the index over the table"
    history.catalog.delete_index(INDEX)
    history.catalog.delete_model(MODEL)
    found = impact(history.tables, history.catalog, ENTRIES, where="module = 'os'")
    assert dependent(found, "index").deleted and dependent(found, "model").deleted
    assert set(answered(found)) == {answers["walk"], answers["plain"]}


def test_impact_names_the_newest_answers_and_counts_all(history: History) -> None:
    history.index(history.ingest({"os.walk": "os"}))
    ids = [history.answer(model="echo", **history.retrieved(1, "os.walk")) for _ in range(5)]
    found = impact(history.tables, history.catalog, ENTRIES, limit=2)
    assert (answered(found), found.answers.total) == (ids[:-3:-1], 5)
    assert impact(history.tables, history.catalog, ENTRIES, limit=0).answers.total == 5


def test_impact_follows_keys_that_are_no_texts(history: History) -> None:
    history.catalog.ensure_schema("main.shop")
    rows = pa.table({"number": [1, 2, 3], "colour": ["red", "blue", "red"]})
    history.tables.create("main.shop.things", rows.schema, primary_key="number", owner="ann")
    version = history.tables.append("main.shop.things", rows)
    history.catalog.put_index("main.shop.index", table="main.shop.things", spec={"primary_key": "number"}, owner="ann")
    run_id = history.run("index", "main.shop.index")
    history.catalog.add_input(run_id, "table", "main.shop.things", version)
    history.catalog.add_output(run_id, "index", "main.shop.index", version)
    at = {"retrieved_index": "main.shop.index", "retrieved_version": version}
    red = history.answer(model="echo", **at, retrieved_ids=["2", "3"])
    history.answer(model="echo", **at, retrieved_ids=["2"])
    assert answered(impact(history.tables, history.catalog, "main.shop.things", where="colour = 'red'")) == [red]
    assert find(why(history.tables, history.catalog, red), "entry 2").facts == {}


@pytest.mark.parametrize(
    "where",
    [
        *("", "  ", "modul = 'os'", "module =", "module", "module = 'os'; DROP TABLE x", "module = 'os' OR (true"),
        *("entry_id IN (SELECT entry_id FROM t)", "EXISTS (SELECT 1)", "(TABLE t) = 1", "read_csv('/etc/passwd')"),
        *("module = 'os') OR", "(module = 'os'", "repeat(module, 1000000000) = 'x'", "module = 'os' /* x"),
        *("entry_id IN (FROM t)", "EXISTS (FROM t)", "entry_id = ANY(FROM t)"),
    ],
)
def test_a_wrong_predicate_is_refused(history: History, where: str) -> None:
    history.ingest({"os.walk": "os"})
    with pytest.raises(BadRequest, match="where = ") as refused:
        impact(history.tables, history.catalog, ENTRIES, where=where)
    assert refused.value.param == "where"


def test_wrong_tables_versions_and_limits_are_refused(history: History) -> None:
    history.ingest({"os.walk": "os"})
    with pytest.raises(NotFound, match=r"no table 'main\.docs\.nothing'"):
        impact(history.tables, history.catalog, "main.docs.nothing")
    with pytest.raises(NotFound, match="no readable version 9; the newest is 1"):
        impact(history.tables, history.catalog, ENTRIES, version=9)
    for version in (10**20, 2**63, -1):
        with pytest.raises(BadRequest, match=f"version {version} of table 'main.docs.entries' must be a whole number"):
            impact(history.tables, history.catalog, ENTRIES, version=version)
    with pytest.raises(BadRequest, match="is given at two versions, 1 and 0"):
        impact(history.tables, history.catalog, f"{ENTRIES}@1", version=0)
    with pytest.raises(BadRequest, match="limit = 10001 must be from 0 to 10000"):
        impact(history.tables, history.catalog, ENTRIES, limit=10_001)
    with pytest.raises(BadRequest):
        impact(history.tables, history.catalog, "entries")
    assert history.tables.delta(INFERENCE_TABLE).version() == 0


def test_over_http_and_on_the_command_line(history: History, tmp_path: Path) -> None:
    answers = two_generations(history)
    router = Router(routes=thread_routes(history.tables, history.catalog), redirect_slashes=False)
    app = ShapeErrors(Authenticate(router, history.catalog.check_token))
    tokens = {name: history.catalog.create_token(name, is_admin=name == "boss")[1] for name in ("boss", "bob", "eve")}

    def ask(path: str, who: str = "boss", **query: object) -> httpx.Response:
        async def asked() -> httpx.Response:
            headers = {"authorization": f"Bearer {tokens[who]}"}
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://mosaic", headers=headers) as client:
                return await client.get(f"/2.0/mosaic{path}", params=query)  # type: ignore[arg-type]

        return asyncio.run(asked())

    told = ask(f"/tables/{ENTRIES}/impact", where="module = 'os'", version=1, limit=1)
    wanted = impact(history.tables, history.catalog, ENTRIES, where="module = 'os'", version=1, limit=1)
    assert told.status_code == 200 and Impact.model_validate(told.json()) == wanted
    told = ask(f"/requests/{answers['walk']}/why", who="bob")
    assert told.status_code == 200 and Thread.model_validate(told.json()).facts["principal"] == "bob"
    refusals = [
        (ask(f"/requests/{answers['walk']}/why", who="eve"), 403, "'eve' may not see request"),
        (ask("/requests/req_x/why"), 404, "no row of request 'req_x'"),
        (ask(f"/tables/{ENTRIES}/impact", who="eve"), 403, "'eve' may not SELECT"),
        (ask("/tables/main.docs.none/impact"), 404, "no table 'main.docs.none'"),
        (ask(f"/tables/{ENTRIES}/impact", were="x"), 400, "unknown field 'were'"),
        (ask(f"/tables/{ENTRIES}/impact", version="first"), 400, "field 'version' = 'first'"),
        (ask(f"/tables/{ENTRIES}/impact", version=10**20), 400, "field 'version' = "),
        (ask(f"/tables/{ENTRIES}/impact", where="nope = 1"), 400, "no column 'nope'"),
    ]
    for answer, status, message in refusals:
        assert answer.status_code == status and message in answer.text, answer.text

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--storage", str(tmp_path)], env={"COLUMNS": "250"})

    shown = run("impact", ENTRIES, "--where", "module = 'os'")
    assert shown.exit_code == 0, shown.output
    for part in (
        f"model {MODEL}, version 1",
        f"index {INDEX}, version 1",
        "2 answers",
        answers["walk"],
        "note: which rows",
    ):
        assert part in shown.output, shown.output
    told_json = run("impact", ENTRIES, "--where", "module = 'os'", "--version", "1", "--limit", "1", "--json")
    assert Impact.model_validate_json(told_json.output) == wanted
    shown = run("why", answers["walk"])
    for part in (f"model {MODEL}, version 1", "mlflow1", "document python:3.11.9/os", sha("manifest")):
        assert part in shown.output, shown.output
    wrong = run("impact", "main.docs.none")
    assert wrong.exit_code == 1 and "no table 'main.docs.none'" in wrong.output


def test_the_page_shows_what_the_commands_print(history: History, tmp_path: Path) -> None:
    two_generations(history)
    page = (Path(__file__).parents[2] / "docs" / "lineage.md").read_text()
    shown = re.findall(r"^    \$ mosaic (.*)\n((?:    .*\n)+)", page, re.MULTILINE)
    assert [command.split()[0] for command, _ in shown] == ["why", "impact"]

    def masked(text: str) -> str:
        return re.sub(r"run_[0-9a-z]{26}", "run_x", re.sub(r"mosaic \d+\.\d+\.\d+", "mosaic x", text))

    def unwrapped(text: str) -> list[str]:
        """The page shows a terminal, which wraps; a pipe has each node in one line."""
        lines: list[str] = []
        for line in text.splitlines():
            if not lines or re.match(r"[│ ]*[├└]", line):
                lines.append(line.strip())
            else:
                lines[-1] += f" {line.strip('│ ')}"
        return lines

    for command, output in shown:
        asked = [*shlex.split(command), "--storage", str(tmp_path)]
        printed = CliRunner().invoke(main, asked).output
        assert [line.strip() for line in masked(printed).splitlines()] == unwrapped(masked(output))


# For whom


def principal(history: History, name: str) -> Principal:
    return history.catalog.check_token(history.catalog.create_token(name)[1])


ADMIN = Principal(name="admin", is_admin=True)


def test_a_thread_is_for_who_asked_who_manages_and_administrators(history: History) -> None:
    answers = two_generations(history)
    bob, eve, max_ = (principal(history, name) for name in ("bob", "eve", "max"))
    asked = why(history.tables, history.catalog, answers["walk"], principal=bob)
    assert [part.label for part in asked.came_from[1].came_from[:2]] == ["entry os.walk", "entry json.loads"]
    with pytest.raises(PermissionDenied, match="'eve' may not see request 'req_0001'"):
        why(history.tables, history.catalog, answers["walk"], principal=eve)
    refused = history.catalog.audit.newest(1)[0]
    assert (refused.action_name, refused.user_identity.email) == ("getRequestThread", "eve")
    assert refused.request_params == {"request_id": answers["walk"]}
    history.catalog.endpoints.put("assistant", config={}, owner="ann")
    history.catalog.grants.grant("endpoint", "assistant", "max", ["MANAGE"], by=ADMIN)
    history.catalog.grants.grant("catalog", "main", "max", ["USE CATALOG", "USE SCHEMA"], by=ADMIN)
    assert why(history.tables, history.catalog, answers["walk"], principal=max_).label == "request req_0001"
    boss = history.catalog.check_token(history.catalog.create_token("boss", is_admin=True)[1])
    whole = why(history.tables, history.catalog, answers["walk"], principal=boss)
    assert labels(whole) == labels(why(history.tables, history.catalog, answers["walk"]))
    nobodys = history.answer(endpoint=None, principal=None)
    with pytest.raises(PermissionDenied, match="'max' may not see request"):
        why(history.tables, history.catalog, nobodys, principal=max_)


def test_what_may_not_be_browsed_is_withheld(history: History) -> None:
    answers = two_generations(history)
    bob = principal(history, "bob")
    text = why(history.tables, history.catalog, answers["walk"], principal=bob).model_dump_json()
    for secret in (
        MODEL,
        TRAIN,
        ENTRIES,
        SOURCES,
        "mlflow1",
        "learning_rate",
        "run_",
        "python:3.11.9",
        sha("os.walk"),
        sha("os.py"),
    ):
        assert secret not in text, secret
    history.catalog.grants.grant("table", ENTRIES, "bob", ["BROWSE"], by=ADMIN)
    thread = why(history.tables, history.catalog, answers["walk"], principal=bob)
    assert thread.came_from[0].withheld and thread.came_from[0].label == "model"
    entries = find(thread, f"table {ENTRIES}, version 1")
    assert find(entries, "run ").facts["kind"] == "ingest"
    assert "params" not in find(entries, "run ").facts or TRAIN not in str(find(entries, "run ").facts)
    assert find(thread, "entry os.walk").facts == {}, "to know of a table is not to read it"
    history.catalog.grants.grant("schema", "main.docs", "bob", ["SELECT", "USE SCHEMA"], by=ADMIN)
    history.catalog.grants.grant("catalog", "main", "bob", ["USE CATALOG"], by=ADMIN)
    thread = why(history.tables, history.catalog, answers["walk"], principal=bob)
    assert find(thread, "entry os.walk").facts["sha256"] == sha("os.walk")


def test_an_impact_is_for_who_may_read_or_manage_the_table(history: History) -> None:
    answers = two_generations(history)
    bob = principal(history, "bob")
    history.catalog.grants.grant("catalog", "main", "bob", ["USE CATALOG", "USE SCHEMA"], by=ADMIN)
    with pytest.raises(PermissionDenied, match="'bob' may not SELECT on table"):
        impact(history.tables, history.catalog, ENTRIES, principal=bob)
    assert history.catalog.audit.newest(1)[0].action_name == "getTableImpact"
    history.catalog.grants.grant("table", ENTRIES, "bob", ["SELECT"], by=ADMIN)
    found = impact(history.tables, history.catalog, ENTRIES, where="module = 'os'", principal=bob)
    text = found.model_dump_json()
    for secret in (MODEL, TRAIN, INDEX, "run_", answers["walk"], "bob"):
        assert secret not in text, secret
    assert [(one.kind, one.withheld) for one in found.dependents].count(("model", True)) == 1
    assert found.answers.total == 2, "counted, not named"
    for kind, name in (("model", MODEL), ("index", INDEX)):
        history.catalog.grants.grant(kind, name, "bob", ["BROWSE"], by=ADMIN)
    history.catalog.endpoints.put("assistant", config={}, owner="ann")
    history.catalog.grants.grant("endpoint", "assistant", "bob", ["MANAGE"], by=ADMIN)
    found = impact(history.tables, history.catalog, ENTRIES, where="module = 'os'", principal=bob)
    assert {one.name for one in found.dependents} == {MODEL, INDEX, None}
    assert set(answered(found)) == {answers["walk"], answers["plain"]}
    assert dependent(found, "model").made_from == ("table, withheld",)
    history.catalog.grants.revoke("table", ENTRIES, "bob", ["SELECT"], by=ADMIN)
    history.catalog.grants.grant("table", ENTRIES, "bob", ["MANAGE"], by=ADMIN)
    assert impact(history.tables, history.catalog, ENTRIES, principal=bob).answers.total == 4
