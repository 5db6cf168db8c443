"""Vacuum: files that nobody needs go; those that a live model or index needs do not, and the refusal says who."""

import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.catalog import Catalog
from mosaic.cli import main
from mosaic.data import Tables
from mosaic.errors import BadRequest, Conflict, PermissionDenied
from mosaic.protocol import Principal
from mosaic.storage import Storage

RAW, ROWS, MODEL, INDEX = "main.test.raw", "main.test.rows", "main.test.bot", "main.test.rows_index"
SCHEMA = pa.schema([pa.field("word", pa.string(), nullable=False), ("length", pa.int64())])


def rows(*words: str) -> pa.Table:
    return pa.table({"word": list(words), "length": [len(word) for word in words]}, schema=SCHEMA)


def trained(tables: Tables, catalog: Catalog, name: str, version: int) -> str:
    """A model version made from a table's version; its run."""
    run_id = catalog.start_run("training", MODEL, principal="ann")
    tables.to_arrow(name, version, run_id=run_id)
    if catalog.find_model(MODEL) is None:
        catalog.create_model(MODEL, owner="ann")
    made = catalog.create_model_version(MODEL, source="/models/bot", kind="adapter", run_id=run_id)
    catalog.add_output(run_id, "model", MODEL, made.version)
    catalog.finish_run(run_id, "finished")
    return run_id


@pytest.fixture
def made(tables: Tables) -> Tables:
    """Version 1 holds `a`, version 2 `b`, version 3 `c`: three files, of which two are past."""
    tables.create(ROWS, SCHEMA, primary_key="word", owner="ann")
    for word in "abc":
        tables.overwrite(ROWS, rows(word))
    return tables


def readable(tables: Tables) -> list[int]:
    """The versions whose rows are still there."""
    found = []
    for version in range(1, 4):
        try:
            tables.to_arrow(ROWS, version)
        except OSError:
            continue
        found.append(version)
    return found


def test_what_no_version_needs_goes_after_the_retention(made: Tables, catalog: Catalog) -> None:
    assert made.vacuum(ROWS).files == ()
    orphan = Path(catalog.get_table(ROWS).location) / "part-of-a-write-that-died.parquet"
    orphan.write_bytes(b"x")
    planned = made.vacuum(ROWS, retention_hours=0, dry_run=True)
    assert len(planned.files) == 3 and orphan.name in planned.files and readable(made) == [1, 2, 3]
    assert made.version(ROWS) == 3
    done = made.vacuum(ROWS, retention_hours=0)
    assert done.files == planned.files and done.needed == () and not orphan.exists()
    assert readable(made) == [3] and made.to_arrow(ROWS)["word"].to_pylist() == ["c"]
    assert made.vacuum(ROWS, retention_hours=0).files == ()
    made.append(ROWS, rows("d"))
    assert made.to_arrow(ROWS).num_rows == 2


def test_a_version_that_an_alias_depends_on_stays(made: Tables, catalog: Catalog) -> None:
    run_id = trained(made, catalog, ROWS, 1)
    assert made.vacuum(ROWS, retention_hours=0, dry_run=True).needed == ()  # no alias: nothing lives
    catalog.set_alias(MODEL, "champion", 1)
    planned = made.vacuum(ROWS, retention_hours=0, dry_run=True)
    assert [(one.version, len(one.files)) for one in planned.needed] == [(1, 1)]
    with pytest.raises(Conflict) as refused:
        made.vacuum(ROWS, retention_hours=0)
    for told in (f"{ROWS}@1", f"{MODEL}/1 (alias 'champion')", run_id, f"point {MODEL}@champion at another version"):
        assert told in refused.value.message
    assert readable(made) == [1, 2, 3] and made.version(ROWS) == 3

    trained(made, catalog, ROWS, 3)
    catalog.set_alias(MODEL, "champion", 2)  # made from what no vacuum takes
    assert made.vacuum(ROWS, retention_hours=0).needed == ()
    assert readable(made) == [3]


def test_needed_files_can_be_kept_or_removed_all_the_same(made: Tables, catalog: Catalog) -> None:
    trained(made, catalog, ROWS, 2)
    catalog.set_alias(MODEL, "champion", 1)
    with pytest.raises(Conflict, match=f"{ROWS}@2"):
        made.vacuum(ROWS, retention_hours=0)
    assert len(made.vacuum(ROWS, retention_hours=0, keep_needed=True).files) == 1
    assert readable(made) == [2, 3]
    assert made.vacuum(ROWS, retention_hours=0, keep_needed=True).files == ()
    forced = made.vacuum(ROWS, retention_hours=0, force=True)
    assert [one.version for one in forced.needed] == [2] and readable(made) == [3]
    with pytest.raises(BadRequest, match="say one of them"):
        made.vacuum(ROWS, retention_hours=0, force=True, keep_needed=True)


def test_a_table_that_feeds_a_models_table_is_needed_too(made: Tables, tables: Tables, catalog: Catalog) -> None:
    tables.create(RAW, SCHEMA, primary_key="word", owner="ann")
    run_id = catalog.start_run("examples", RAW, principal="ann")
    acting = tables.acting(None, run_id)
    acting.append(RAW, acting.to_arrow(ROWS, 2))
    catalog.finish_run(run_id, "finished")
    trained(tables, catalog, RAW, 1)
    catalog.set_alias(MODEL, "challenger", 1)
    with pytest.raises(Conflict, match=rf"rows@2: model version {MODEL}/1 \(alias 'challenger'\) .* by run {run_id}"):
        made.vacuum(ROWS, retention_hours=0)
    catalog.delete_alias(MODEL, "challenger")
    assert len(made.vacuum(ROWS, retention_hours=0).files) == 2


def test_what_older_appends_were_made_from_is_needed_too(made: Tables, tables: Tables, catalog: Catalog) -> None:
    """A table that was appended to from each version of another one holds rows of all of these."""
    tables.create(RAW, SCHEMA, primary_key="word", owner="ann")
    for version in (1, 2):
        run_id = catalog.start_run("examples", RAW, principal="ann")
        acting = tables.acting(None, run_id)
        acting.append(RAW, acting.to_arrow(ROWS, version))
        catalog.finish_run(run_id, "finished")
    trained(tables, catalog, RAW, 2)
    catalog.set_alias(MODEL, "champion", 1)
    assert [one.version for one in made.vacuum(ROWS, retention_hours=0, dry_run=True).needed] == [1, 2]
    assert made.vacuum(ROWS, retention_hours=0, keep_needed=True).files == () and readable(made) == [1, 2, 3]
    run_id = catalog.start_run("examples", RAW, principal="ann")
    acting = tables.acting(None, run_id)
    acting.overwrite(RAW, acting.to_arrow(ROWS, 2))
    catalog.finish_run(run_id, "finished")
    trained(tables, catalog, RAW, 3)
    catalog.set_alias(MODEL, "champion", 2)
    made.vacuum(ROWS, retention_hours=0, keep_needed=True)
    assert readable(made) == [2, 3]


def test_however_many_runs_lie_between(made: Tables, catalog: Catalog) -> None:
    steps = [("table", ROWS, 1), *(("step", f"s{number}", 1) for number in range(130))]
    for (kind, name, version), (made_kind, made_name, made_version) in itertools.pairwise(steps):
        run_id = catalog.start_run("step", "s", principal="ann")
        catalog.add_input(run_id, kind, name, version)
        catalog.add_output(run_id, made_kind, made_name, made_version)
    catalog.create_model(MODEL, owner="ann")
    run_id = catalog.start_run("training", MODEL, principal="ann")
    catalog.add_input(run_id, *steps[-1])
    catalog.create_model_version(MODEL, source="/models/bot", kind="adapter", run_id=run_id)
    catalog.set_alias(MODEL, "champion", 1)
    with pytest.raises(Conflict, match=rf"1 file\(s\) of {ROWS}@1: model version {MODEL}/1"):
        made.vacuum(ROWS, retention_hours=0)


def test_a_version_that_an_endpoint_names_by_number_is_needed(made: Tables, catalog: Catalog) -> None:
    trained(made, catalog, ROWS, 1)
    by_alias = {"name": "new", "model": f"{MODEL}@champion", "traffic_percentage": 10}
    config = {"served_entities": [{"name": "old", "model": f"{MODEL}/1", "traffic_percentage": 90}, by_alias]}
    catalog.endpoints.put("assistant", config=config, owner="ann")
    asked = rf"rows@1: model version {MODEL}/1 \(endpoint 'main.serving.assistant'\) .* let endpoint main.serving"
    with pytest.raises(Conflict, match=asked):
        made.vacuum(ROWS, retention_hours=0)
    catalog.endpoints.delete("assistant")
    assert len(made.vacuum(ROWS, retention_hours=0).files) == 2


def test_the_version_that_an_index_answers_at_is_needed(made: Tables, catalog: Catalog) -> None:
    catalog.put_index(INDEX, table=ROWS, spec={}, owner="ann")

    def synced(version: int) -> None:
        run_id = catalog.start_run("index", INDEX, principal="system")
        catalog.add_input(run_id, "table", ROWS, version)
        catalog.add_output(run_id, "index", INDEX, version)
        catalog.finish_run(run_id, "finished")

    for version in (1, 2):
        synced(version)
    with pytest.raises(Conflict, match=rf"1 file\(s\) of {ROWS}@2: index {INDEX} answers at it") as refused:
        made.vacuum(ROWS, retention_hours=0)
    assert "@1" not in refused.value.message  # it has moved on
    synced(3)
    assert len(made.vacuum(ROWS, retention_hours=0).files) == 2


def test_a_table_made_again_owes_nothing_to_the_lineage_of_the_old_one(made: Tables, catalog: Catalog) -> None:
    trained(made, catalog, ROWS, 1)
    catalog.set_alias(MODEL, "champion", 1)
    catalog.delete_table(ROWS)
    made.create(ROWS, SCHEMA, primary_key="word", owner="ann")
    for word in "xy":
        made.overwrite(ROWS, rows(word))
    assert len(made.vacuum(ROWS, retention_hours=0).files) == 1


def test_versions_whose_log_is_gone_need_nothing(made: Tables, catalog: Catalog) -> None:
    trained(made, catalog, ROWS, 1)
    catalog.set_alias(MODEL, "champion", 1)
    made.delta(ROWS).create_checkpoint()
    for version in range(2):
        (Path(catalog.get_table(ROWS).location) / f"_delta_log/{version:020d}.json").unlink()
    assert len(made.vacuum(ROWS, retention_hours=0).files) == 2


def test_vacuum_is_checked_and_named_in_the_commit(made: Tables, catalog: Catalog) -> None:
    bob = catalog.check_token(catalog.create_token("bob")[1])
    for kind, name, privilege in (("catalog", "main", "USE CATALOG"), ("schema", "main.test", "USE SCHEMA")):
        catalog.grants.grant(kind, name, "bob", [privilege], by=Principal(name="admin", is_admin=True))
    with pytest.raises(PermissionDenied, match="missing MODIFY"):
        made.acting(bob).vacuum(ROWS, retention_hours=0)
    with pytest.raises(PermissionDenied, match="missing MODIFY"):
        made.acting(bob).optimize(ROWS)
    catalog.grants.grant("table", ROWS, "bob", ["MODIFY"], by=Principal(name="admin", is_admin=True))
    with pytest.raises(PermissionDenied, match="missing MANAGE"):
        made.acting(bob).vacuum(ROWS, retention_hours=0, force=True)
    assert len(made.acting(bob).vacuum(ROWS, retention_hours=0).files) == 2
    event = catalog.audit.newest(1)[0]
    assert (event.action_name, event.user_identity.email) == ("vacuumTable", "bob")
    assert event.request_params.items() >= {"securable_full_name": ROWS, "files": "2", "force": "false"}.items()
    history = made.delta(ROWS).history(2)
    assert [(one["operation"], one["mosaic.principal"]) for one in history] == [
        ("VACUUM END", "bob"),
        ("VACUUM START", "bob"),
    ]


@pytest.mark.parametrize("hours", [-1, 1.5, True, "7"])
def test_the_retention_is_a_number_of_hours(made: Tables, hours: int) -> None:
    with pytest.raises(BadRequest, match="retention_hours"):
        made.vacuum(ROWS, retention_hours=hours)


def test_the_command(made: Tables, catalog: Catalog, tmp_path: Path) -> None:
    def vacuum(*words: str) -> tuple[int, str]:
        ran = CliRunner().invoke(main, ["vacuum", "--storage", str(tmp_path / "root"), "--home", str(tmp_path), *words])
        return ran.exit_code, ran.output

    catalog.create_token("admin", is_admin=True)
    trained(made, catalog, ROWS, 1)
    catalog.set_alias(MODEL, "champion", 1)
    assert vacuum(ROWS) == (0, f"0 file(s) of {ROWS} removed\n")
    code, told = vacuum(ROWS, "--retention-hours", "0", "--dry-run")
    assert code == 0 and f"2 file(s) of {ROWS} would go" in told and f"{ROWS}@1 needs 1 of them: model" in told
    planned = json.loads(vacuum(ROWS, "--retention-hours", "0", "--dry-run", "--json")[1])
    assert len(planned["files"]) == 2 and planned["needed"][0]["version"] == 1
    code, told = vacuum(ROWS, "--retention-hours", "0")
    assert code == 1 and "(alias 'champion')" in told and "--keep-needed" in told
    code, told = vacuum(ROWS, "--retention-hours", "0", "--keep-needed")
    assert code == 0 and f"1 file(s) of {ROWS} removed" in told
    assert readable(made) == [1, 3]
    assert vacuum(ROWS, "--retention-hours", "0", "--force")[0] == 0 and readable(made) == [3]
    for words in ((), (ROWS, "--dropped"), ("--dropped", "--force")):
        assert vacuum(*words)[0] == 1
    assert vacuum("main.test.nothing")[0] == 1


def test_the_log_of_past_versions_is_kept(made: Tables, catalog: Catalog) -> None:
    """Delta's own clean-up, at a checkpoint after 30 days, would make a version that is needed unreadable."""
    place, long_ago = Path(catalog.get_table(ROWS).location), time.time() - 40 * 24 * 3600
    for word in range(97):
        write_deltalake(place, rows(str(word)), mode="append")
    for file in (place / "_delta_log").iterdir():
        os.utime(file, (long_ago, long_ago))
    made.append(ROWS, rows("last"))
    assert list((place / "_delta_log").glob("*.checkpoint.parquet"))
    assert readable(made) == [1, 2, 3]


class Lake:
    """A table with a history, in a folder of its own that can be copied."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = Catalog.open(f"sqlite:///{root / 'catalog.db'}")
        self.tables = Tables(Storage(str(root / "root")), self.catalog)
        self.catalog.ensure_schema("main.test")
        self.tables.create(ROWS, SCHEMA, primary_key="word", owner="ann")

    def change(self, number: int, kind: str) -> None:
        words = rows(f"w{number}", f"v{number}")
        changes = {
            "append": lambda: self.tables.append(ROWS, words),
            "overwrite": lambda: self.tables.overwrite(ROWS, words),
            "merge": lambda: self.tables.merge(ROWS, rows("w0", f"m{number}")),
            "delete": lambda: self.tables.delete_where(ROWS, f"word >= 'w{number - 1}'"),
            "optimize": lambda: self.tables.optimize(ROWS),
        }
        changes[kind]()

    def readable(self, versions: set[int]) -> dict[int, pa.Table]:
        """What deltalake itself still reads."""
        found, place = {}, self.catalog.get_table(ROWS).location
        for version in versions:
            with contextlib.suppress(OSError):
                found[version] = DeltaTable(place, version=version).to_pyarrow_table().sort_by("word")
        return found

    def forced(self) -> set[int]:
        """The versions that could be read after a vacuum without a guard, found by doing it to a copy."""
        place = self.catalog.get_table(ROWS).location
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(place, f"{copy}/table")
            table = DeltaTable(f"{copy}/table")
            versions = range(table.version() + 1)
            table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
            left = set()
            for version in versions:
                with contextlib.suppress(OSError):
                    DeltaTable(f"{copy}/table", version=version).to_pyarrow_table()
                    left.add(version)
            return left


@settings(max_examples=12, deadline=None)
@given(
    changes=st.lists(st.sampled_from(["append", "overwrite", "merge", "delete", "optimize"]), min_size=2, max_size=6),
    chosen=st.sets(st.integers(0, 6), max_size=3),
)
def test_a_vacuum_is_refused_exactly_when_it_would_break_what_is_needed(changes: list[str], chosen: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder))
        for number, kind in enumerate(changes):
            lake.change(number, kind)
        needed = {min(version, lake.tables.version(ROWS)) for version in chosen}
        for number, version in enumerate(sorted(needed), start=1):
            trained(lake.tables, lake.catalog, ROWS, version)
            lake.catalog.set_alias(MODEL, f"alias{number}", number)
        before, survive = lake.readable(needed), lake.forced()
        try:
            lake.tables.vacuum(ROWS, retention_hours=0)
        except Conflict as refused:
            named = {int(version) for version in re.findall(rf"{re.escape(ROWS)}@(\d+)", refused.message)}
            assert named == needed - survive and named
            lake.tables.vacuum(ROWS, retention_hours=0, keep_needed=True)
        else:
            assert needed <= survive
        after = lake.readable(needed)
        assert after.keys() == needed and all(after[version].equals(before[version]) for version in needed)
        lake.catalog.close()
