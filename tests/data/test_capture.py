"""Names become data in one place: within the grants of whom it is for, and noted in the run, whoever wrote the code."""

import json
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data
from deltalake import CommitProperties, DeltaTable, write_deltalake

from mosaic.catalog import Catalog, Run
from mosaic.data import Tables
from mosaic.errors import Conflict, MosaicError, NotFound, PermissionDenied
from mosaic.protocol import Principal

NAME, COPY = "main.test.words", "main.test.copy"
SCHEMA = pa.schema([pa.field("word", pa.string(), nullable=False), ("length", pa.int64())])
ADMIN = Principal(name="admin", is_admin=True)


def rows(*words: str) -> pa.Table:
    return pa.table({"word": list(words), "length": [len(word) for word in words]}, schema=SCHEMA)


@pytest.fixture
def words(tables: Tables, catalog: Catalog) -> Tables:
    tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
    tables.append(NAME, rows("a", "bb"))
    return tables


@pytest.fixture
def run_id(catalog: Catalog) -> str:
    return catalog.start_run("examples", COPY, principal="bob")


@pytest.fixture
def bob(catalog: Catalog) -> Principal:
    """Somebody who may use the schema, and nothing in it."""
    made = catalog.check_token(catalog.create_token("bob")[1])
    catalog.grants.grant("catalog", "main", "bob", ["USE CATALOG", "USE SCHEMA"], by=ADMIN)
    return made


def edges(run: Run) -> tuple[dict[str, object], dict[str, object]]:
    """{name@version: detail} of what a run read, and of what it made."""
    read, made = ({f"{e.name}@{e.version}": e.detail for e in side} for side in (run.inputs, run.outputs))
    return dict(read), dict(made)


def test_reads_and_writes_of_a_run_are_its_lineage(words: Tables, catalog: Catalog, run_id: str) -> None:
    acting = words.acting(None, run_id)
    acting.create(COPY, SCHEMA, primary_key="word", owner="bob")
    assert edges(catalog.get_run(run_id)) == ({}, {})  # nothing was read or written yet
    assert acting.version(NAME) == 1
    assert acting.append(COPY, acting.to_arrow(NAME)) == 1
    words.overwrite(NAME, rows("later"))
    acting.to_arrow(NAME, 1)
    acting.merge(COPY, rows("a", "c"))
    acting.delete_where(COPY, "word = 'c'")
    acting.overwrite(COPY, rows())
    read, made = edges(catalog.get_run(run_id))
    assert read == {f"{NAME}@1": {"columns": ["word", "length"], "predicate": None}}
    assert made == {
        f"{COPY}@1": {"mode": "append", "rows": 2},
        f"{COPY}@2": {"mode": "merge", "rows": 2},
        f"{COPY}@3": {"mode": "delete", "rows": 1},
        f"{COPY}@4": {"mode": "overwrite", "rows": 0},
    }
    catalog.finish_run(run_id, "finished")
    node = catalog.trace("table", COPY, 4)
    assert node.run_id == run_id and [(one.name, one.version) for one in node.parents] == [(NAME, 1)]


def test_what_writes_nothing_makes_no_output(words: Tables, catalog: Catalog, run_id: str) -> None:
    assert words.append(NAME, rows(), run_id=run_id) == 1
    assert words.merge(NAME, rows(), run_id=run_id) == 1
    assert words.delete_where(NAME, "word = 'none'", run_id=run_id) == 1
    assert edges(catalog.get_run(run_id)) == ({}, {})


def test_columns_and_predicates_add_up(words: Tables, catalog: Catalog, run_id: str) -> None:
    def read() -> object:
        return edges(catalog.get_run(run_id))[0][f"{NAME}@1"]

    catalog.add_input(run_id, "table", NAME, 1, detail={"role": "train"})
    words.open(NAME, columns=["length"], predicate="length > 1", run_id=run_id)
    assert read() == {"role": "train", "columns": ["length"], "predicate": "length > 1"}
    for _ in range(2):
        words.open(NAME, columns=["word"], predicate="length > 1", run_id=run_id)
        assert read() == {"role": "train", "columns": ["length", "word"], "predicate": "length > 1"}
    words.to_arrow(NAME, columns=["word"], run_id=run_id)
    assert read() == {"role": "train", "columns": ["length", "word"], "predicate": None}


def test_datasets_are_captured_when_the_name_is_resolved(
    words: Tables, catalog: Catalog, run_id: str, ray_cluster: None
) -> None:
    acting = words.acting(None, run_id)
    acting.create(COPY, SCHEMA, primary_key="word", owner="bob")
    dataset = acting.read(NAME, columns=["word", "length"])
    assert list(edges(catalog.get_run(run_id))[0]) == [f"{NAME}@1"]
    assert acting.append(COPY, dataset) == 1
    assert edges(catalog.get_run(run_id))[1] == {f"{COPY}@1": {"mode": "append", "rows": 2}}
    said = acting.commit_lineage(COPY, 1)
    assert (said.run_id, said.inputs) == (run_id, [f"table:{NAME}@1"])
    nothing = ray.data.from_blocks([rows().slice(0, 0)])
    assert acting.append(COPY, nothing) == 1


def test_the_delta_log_alone_tells_the_lineage(words: Tables, catalog: Catalog, bob: Principal, run_id: str) -> None:
    catalog.grants.grant("schema", "main.test", "bob", ["SELECT", "CREATE TABLE"], by=ADMIN)
    acting = words.acting(bob, run_id)
    place = acting.create(COPY, SCHEMA, primary_key="word", owner="bob").location
    catalog.add_input(run_id, "source", "file:///words.txt", None, detail={"sha256": "0" * 64})
    catalog.add_input(run_id, "model", "main.test.bot/3", None)
    acting.append(COPY, acting.to_arrow(NAME))
    words.append(COPY, rows("z"))
    newest, middle, first = DeltaTable(place).history()
    assert (middle["mosaic.run_id"], middle["mosaic.principal"]) == (run_id, "bob")
    inputs = ["source:file:///words.txt", "model:main.test.bot@3", f"table:{NAME}@1"]
    assert json.loads(middle["mosaic.inputs"]) == inputs
    assert first["mosaic.principal"] == "bob"
    assert not [key for key in newest if key.startswith("mosaic.")]
    said = words.commit_lineage(COPY, 1)
    assert (said.version, said.run_id, said.principal, said.inputs) == (1, run_id, "bob", inputs)
    assert words.commit_lineage(COPY, 2).run_id is None
    with pytest.raises(NotFound, match="no commit 7"):
        words.commit_lineage(COPY, 7)


def test_a_commit_elsewhere_cannot_put_itself_into_a_run(
    words: Tables, catalog: Catalog, run_id: str, tmp_path: Path
) -> None:
    outside = str(tmp_path / "outside")
    forged = CommitProperties(custom_metadata={"mosaic.run_id": run_id})
    write_deltalake(outside, rows("a"), commit_properties=forged)
    catalog.create_table("main.test.outside", outside, columns=[], primary_key=None, owner="eve")
    reading = catalog.start_run("copy", COPY, principal="ann")
    words.to_arrow("main.test.outside", run_id=reading)
    assert catalog.get_run(run_id).outputs == []
    assert list(edges(catalog.get_run(reading))[0]) == ["main.test.outside@0"]


def test_a_commit_cannot_put_itself_into_anothers_run(
    words: Tables, catalog: Catalog, bob: Principal, run_id: str
) -> None:
    """Who may write a table's files may write any run's id into its log."""
    hers = catalog.start_run("training", NAME, principal="ann")
    place = catalog.get_table(NAME).location
    for version, metadata in enumerate(({}, {"mosaic.principal": "bob"}, {"mosaic.principal": "ann"}), start=2):
        forged = CommitProperties(custom_metadata={"mosaic.run_id": hers, **metadata})
        write_deltalake(place, rows("c"), mode="append", commit_properties=forged)
        words.to_arrow(NAME, version, run_id=run_id)
    # What says of itself that it is ann's cannot be told from what is.
    assert list(edges(catalog.get_run(hers))[1]) == [f"{NAME}@4"]


def test_a_run_without_a_principal_names_its_own(words: Tables, run_id: str) -> None:
    version = words.append(NAME, rows("c"), run_id=run_id)
    assert words.commit_lineage(NAME, version).principal == "bob"


def test_a_commit_holds_only_so_many_inputs(words: Tables, catalog: Catalog, run_id: str) -> None:
    for number in range(100):
        catalog.add_input(run_id, "source", f"file:///{number:0240d}", None)
    said = words.commit_lineage(NAME, words.append(NAME, rows("c"), run_id=run_id))
    kept = len(said.inputs) - 1
    assert 40 < kept < 100 and said.inputs[-1] == f"... {100 - kept} more"


def test_a_run_that_cannot_be_written_to_stops_the_write(words: Tables, catalog: Catalog, run_id: str) -> None:
    catalog.finish_run(run_id, "finished")
    for refused, error in ((run_id, Conflict), ("run_unknown", NotFound)):
        for use in (words.to_arrow, words.read, words.delta):
            with pytest.raises(error):
                use(NAME, run_id=refused)
        with pytest.raises(error):
            words.append(NAME, rows("c"), run_id=refused)
        with pytest.raises(error):
            words.merge(NAME, rows("c"), run_id=refused)
        with pytest.raises(error):
            words.delete_where(NAME, "true", run_id=refused)
    assert words.version(NAME) == 1


def test_a_run_that_ends_during_the_write_is_told_apart(words: Tables, catalog: Catalog, run_id: str) -> None:
    """The rows are there: whoever would try again on the error would have them twice."""
    writing = words._access.to_write(NAME, run_id=run_id)
    catalog.finish_run(run_id, "failed")
    with pytest.raises(MosaicError, match="at version 5, whose commit names run") as raised:
        writing.committed(5, "append", 1)
    assert (raised.value.code, raised.value.status) == ("lineage_not_noted", 500)


def test_many_threads_of_one_run_lose_nothing(words: Tables, catalog: Catalog, run_id: str) -> None:
    acting = words.acting(None, run_id)
    names = [f"main.test.part{number}" for number in range(4)]
    for name in names:
        words.create(name, SCHEMA, primary_key=None, owner="bob")
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            acting.to_arrow(NAME, columns=[SCHEMA.names[number % 2]])
            acting.append(names[number % 4], rows(str(number)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    read, made = edges(catalog.get_run(run_id))
    assert sorted(read[f"{NAME}@1"]["columns"]) == ["length", "word"]  # type: ignore[index]
    assert set(made) == {f"{name}@{version}" for name in names for version in (1, 2)}


def test_grants_are_asked_where_the_name_is_resolved(words: Tables, catalog: Catalog, bob: Principal) -> None:
    acting = words.acting(bob)
    for read in (acting.to_arrow, acting.read, acting.delta, acting.version, acting.open):
        with pytest.raises(PermissionDenied, match=f"'bob' may not SELECT on table '{NAME}': missing SELECT"):
            read(NAME)
    with pytest.raises(PermissionDenied, match="missing SELECT"):
        acting.commit_lineage(NAME, 1)
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    assert acting.to_arrow(NAME).num_rows == 2
    for write in (acting.append, acting.overwrite, acting.merge):
        with pytest.raises(PermissionDenied, match="missing MODIFY"):
            write(NAME, rows("c"))
    with pytest.raises(PermissionDenied, match="missing MODIFY"):
        acting.delete_where(NAME, "true")
    catalog.grants.grant("table", NAME, "bob", ["MODIFY"], by=ADMIN)
    assert acting.append(NAME, rows("c")) == 2
    catalog.grants.revoke("table", NAME, "bob", ["SELECT"], by=ADMIN)
    with pytest.raises(PermissionDenied):
        acting.to_arrow(NAME)
    denied = [event for event in catalog.audit.list() if event.response.status_code == 403]
    assert {event.action_name for event in denied} == {"readTable", "writeTable"}
    assert {event.user_identity.email for event in denied} == {"bob"}
    assert words.to_arrow(NAME).num_rows == 3  # the platform's own


def test_what_is_not_there_names_only_what_may_be_known(words: Tables, bob: Principal) -> None:
    with pytest.raises(NotFound) as raised:
        words.acting(bob).to_arrow("main.test.wrods")
    assert "wrods" in raised.value.message and NAME not in raised.value.message


def test_who_may_create(words: Tables, catalog: Catalog, bob: Principal) -> None:
    acting = words.acting(bob)
    with pytest.raises(PermissionDenied, match="missing CREATE TABLE"):
        acting.create(COPY, SCHEMA, primary_key=None, owner="bob")
    assert catalog.find_table(COPY) is None
    catalog.grants.grant("schema", "main.test", "bob", ["CREATE TABLE"], by=ADMIN)
    with pytest.raises(PermissionDenied, match="'bob' may not make a table that 'ann' owns"):
        acting.create(COPY, SCHEMA, primary_key=None, owner="ann")
    assert acting.create(COPY, SCHEMA, primary_key=None, owner="bob").created_by == "bob"
    assert acting.append(COPY, rows("mine")) == 1  # its owner
    with pytest.raises(PermissionDenied, match="missing SELECT"):
        acting.create(NAME, SCHEMA, primary_key="word", owner="bob")
    catalog.create_token("admin", is_admin=True)
    made = words.acting(ADMIN).create("main.test.given", SCHEMA, primary_key=None, owner="bob")
    assert (made.owner, made.created_by) == ("bob", "admin")


def test_the_platforms_own_tables_are_its_own_to_write(tables: Tables, catalog: Catalog) -> None:
    catalog.create_token("admin", is_admin=True)
    catalog.ensure_schema("system.serving", owner="system")
    tables.create("system.serving.rows", SCHEMA, primary_key=None, owner="system")
    tables.append("system.serving.rows", rows("a"))
    admin = tables.acting(ADMIN)
    assert admin.to_arrow("system.serving.rows").num_rows == 1
    with pytest.raises(PermissionDenied, match="is the platform's own"):
        admin.append("system.serving.rows", rows("forged"))
    with pytest.raises(PermissionDenied, match="is the platform's own"):
        admin.create("system.serving.more", SCHEMA, primary_key=None, owner="admin")
    assert tables.version("system.serving.rows") == 1
    assert len([event for event in catalog.audit.list() if event.response.status_code == 403]) == 2


def test_a_run_is_only_for_whom_it_is(words: Tables, catalog: Catalog, bob: Principal) -> None:
    catalog.grants.grant("schema", "main.test", "bob", ["SELECT", "MODIFY"], by=ADMIN)
    hers = catalog.start_run("training", NAME, principal="ann")
    acting = words.acting(bob, hers)
    with pytest.raises(PermissionDenied, match="may not act in run"):
        acting.to_arrow(NAME)
    with pytest.raises(PermissionDenied, match="may not act in run"):
        acting.append(NAME, rows("c"))
    assert words.version(NAME) == 1 and edges(catalog.get_run(hers)) == ({}, {})
    catalog.create_token("admin", is_admin=True)
    words.acting(ADMIN, hers).to_arrow(NAME)
    assert list(edges(catalog.get_run(hers))[0]) == [f"{NAME}@1"]


def test_an_acting_copy_leaves_the_other_alone(words: Tables, bob: Principal) -> None:
    acting = words.acting(bob)
    assert words.to_arrow(NAME).num_rows == 2
    assert acting.acting(None).to_arrow(NAME).num_rows == 2
    with pytest.raises(PermissionDenied):
        acting.to_arrow(NAME)
