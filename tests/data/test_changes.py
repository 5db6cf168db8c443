"""The change feed, folded, against a dictionary that does the same."""

import random
import shutil
import tempfile
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.data import ChangesUnavailable, fold_changes
from mosaic.errors import BadRequest

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), ("value", pa.int64())])
KEYS = [f"k{n}" for n in range(6)]


def table_of(content: dict[str, int]) -> pa.Table:
    return pa.table({"key": list(content), "value": list(content.values())}, schema=SCHEMA)


def make(path: str) -> DeltaTable:
    return DeltaTable.create(path, schema=SCHEMA, configuration={"delta.enableChangeDataFeed": "true"})


def apply(path: str, content: dict[str, int], step: tuple[str, Any]) -> dict[str, int]:
    """One commit (or none), and what a dictionary makes of it."""
    kind, given_rows = step
    table, content = DeltaTable(path), dict(content)
    if kind == "insert":
        new = {key: value for key, value in given_rows.items() if key not in content}
        if new:
            write_deltalake(table, table_of(new), mode="append")
        content |= new
    elif kind == "merge":
        merger = table.merge(table_of(given_rows), "t.key = s.key", source_alias="s", target_alias="t")
        merger.when_matched_update_all().when_not_matched_insert_all().execute()
        content |= given_rows
    elif kind == "update":
        table.update({"value": "value + 1"}, predicate=f"key <= '{given_rows}'")
        content = {key: value + (key <= given_rows) for key, value in content.items()}
    elif kind == "delete":
        table.delete(f"key >= '{given_rows}'")
        content = {key: value for key, value in content.items() if key < given_rows}
    elif kind == "overwrite":
        write_deltalake(table, table_of(given_rows), mode="overwrite")
        content = dict(given_rows)
    elif kind == "compact":
        table.optimize.compact()
    return content


some_rows = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 3), min_size=1, max_size=4)
a_key = st.sampled_from(KEYS)
steps = st.one_of(
    st.tuples(st.sampled_from(["insert", "merge", "overwrite"]), some_rows),
    st.tuples(st.sampled_from(["update", "delete"]), a_key),
    st.just(("compact", None)),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=7), st.integers(0, 1000))
def test_folding_any_stretch_turns_the_old_content_into_the_new(history: list[tuple[str, Any]], seed: int) -> None:
    path = tempfile.mkdtemp()
    try:
        make(path)
        contents = [{}]
        content: dict[str, int] = {}
        for step in history:
            content = apply(path, content, step)
            while len(contents) <= DeltaTable(path).version():
                contents.append(content)
        first, last = sorted(random.Random(seed).choices(range(len(contents)), k=2))
        changes = fold_changes(DeltaTable(path), first, last, "key")
        replayed = {key: value for key, value in contents[first].items() if key not in changes.deletes}
        upserts = changes.upserts.to_pylist()
        assert not {row["key"] for row in upserts} & set(changes.deletes)
        assert len({row["key"] for row in upserts}) == len(upserts)
        replayed |= {row["key"]: row["value"] for row in upserts}
        assert replayed == contents[last]
        assert changes.upserts.schema.names == SCHEMA.names
    finally:
        shutil.rmtree(path)


def test_the_last_state_counts(tmp_path: Any) -> None:
    path = str(tmp_path)
    make(path)
    for step in [
        ("insert", {"k0": 1, "k1": 1, "k2": 1}),
        ("delete", "k1"),
        ("insert", {"k1": 7}),
        ("update", "k0"),
        ("insert", {"k5": 1}),
        ("delete", "k5"),
    ]:
        apply(path, {"k0": 1} if step[0] != "insert" else {}, step)
    changes = fold_changes(DeltaTable(path), 1, 6, "key")
    assert {row["key"]: row["value"] for row in changes.upserts.to_pylist()} == {"k0": 2, "k1": 7}
    assert changes.deletes == ["k2", "k5"]


def test_an_opened_version_bounds_what_is_read(tmp_path: Any) -> None:
    path = str(tmp_path)
    make(path)
    for n in range(3):
        write_deltalake(path, table_of({f"k{n}": n}), mode="append")
    old = DeltaTable(path, version=2)
    assert fold_changes(old, 0, 2, "key").upserts["key"].to_pylist() == ["k0", "k1"]
    with pytest.raises(BadRequest, match="0 to 3 of a table that is at version 2"):
        fold_changes(old, 0, 3, "key")
    with pytest.raises(BadRequest, match="no column 'id'"):
        fold_changes(old, 0, 1, "id")
    assert fold_changes(old, 1, 1, "key").upserts.num_rows == 0


def test_gaps_in_the_feed_are_told(tmp_path: Any) -> None:
    path = str(tmp_path)
    make(path)
    write_deltalake(path, table_of({"k0": 0, "k1": 1}), mode="append")
    DeltaTable(path).delete("key = 'k0'")
    table = DeltaTable(path)
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    write_deltalake(path, table_of({"k4": 0}), mode="append")
    table = DeltaTable(path)
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    write_deltalake(path, table_of({"k5": 0}), mode="append")
    newest = DeltaTable(path).version()
    with pytest.raises(ChangesUnavailable):
        fold_changes(DeltaTable(path), 1, newest, "key")
    assert fold_changes(DeltaTable(path), newest - 1, newest, "key").upserts["key"].to_pylist() == ["k5"]


def test_vacuumed_files_and_lost_log_entries_are_told(tmp_path: Any) -> None:
    path = str(tmp_path)
    make(path)
    write_deltalake(path, table_of({"k0": 0, "k1": 1}), mode="append")
    write_deltalake(path, table_of({"k2": 0}), mode="overwrite")
    write_deltalake(path, table_of({"k3": 0}), mode="append")
    table = DeltaTable(path)
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(ChangesUnavailable, match="no change feed for versions 1 to"):
        fold_changes(DeltaTable(path), 0, table.version(), "key")
    DeltaTable(path).create_checkpoint()
    (tmp_path / "_delta_log" / f"{3:020d}.json").unlink()
    with pytest.raises(ChangesUnavailable):
        fold_changes(DeltaTable(path), 2, DeltaTable(path).version(), "key")
