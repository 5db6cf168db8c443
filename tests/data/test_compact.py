"""Compaction: small files are put together, no row changes, and nobody who writes meanwhile loses or doubles one."""

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from hypothesis import given
from hypothesis import strategies as st

from mosaic.catalog import Catalog
from mosaic.data import Tables, fold_changes
from mosaic.data.compact import _bins, _File
from mosaic.errors import Conflict
from mosaic.storage import Storage

NAME = "main.test.words"
SCHEMA = pa.schema([pa.field("word", pa.string(), nullable=False), ("length", pa.int64())])


def rows(*words: str) -> pa.Table:
    return pa.table({"word": list(words), "length": [len(word) for word in words]}, schema=SCHEMA)


@pytest.fixture
def made(tables: Tables) -> Tables:
    """Six files of a row each."""
    tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
    for word in "abcdef":
        tables.append(NAME, rows(word))
    return tables


def words(tables: Tables) -> list[str]:
    return tables.to_arrow(NAME)["word"].to_pylist()


def test_no_row_changes_and_no_index_has_work(made: Tables, catalog: Catalog) -> None:
    made.merge(NAME, rows("a", "g"))
    before, table = made.to_arrow(NAME), made.delta(NAME)
    version = made.optimize(NAME)
    assert version == table.version() + 1
    assert made.to_arrow(NAME).equals(before)
    assert len(made.delta(NAME).file_uris()) == 1 < len(table.file_uris())
    changes = fold_changes(made.delta(NAME), table.version(), version, "word")
    assert (changes.upserts.num_rows, changes.deletes) == (0, [])
    assert made.optimize(NAME) == version  # there is nothing left to do
    made.vacuum(NAME, retention_hours=0)
    newest = DeltaTable(catalog.get_table(NAME).location)
    assert fold_changes(newest, version, newest.version(), "word").upserts.num_rows == 0
    assert made.to_arrow(NAME).equals(before)


def test_files_are_put_together_up_to_the_target(made: Tables, catalog: Catalog) -> None:
    sizes = pa.table(made.delta(NAME).get_add_actions(flatten=True))["size_bytes"].to_pylist()
    made.optimize(NAME, target_bytes=2 * max(sizes))
    assert len(made.delta(NAME).file_uris()) == 3
    assert words(made) == list("abcdef")
    place = Path(catalog.get_table(NAME).location)
    written = pa.table(made.delta(NAME).get_add_actions(flatten=True)).to_pylist()
    assert [(one["num_records"], (place / one["path"]).stat().st_size) for one in written] == [
        (2, one["size_bytes"]) for one in written
    ]


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 120))
def test_every_file_is_in_one_bin_at_most_and_in_order(sizes: list[int], target: int) -> None:
    files = [_File(number, f"{number}", size) for number, size in enumerate(sizes)]
    bins = list(_bins(files, target))
    gathered = [file for each in bins for file in each]
    assert gathered == sorted(set(gathered))
    for each in bins:
        assert len(each) > 1 and sum(file.size_bytes for file in each) <= target
        numbers = [file.modification_time for file in each]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
    alone = [file for file in files if file not in gathered]
    for left, right in itertools.pairwise(alone):
        if right.modification_time == left.modification_time + 1:
            assert left.size_bytes + right.size_bytes > target or max(left.size_bytes, right.size_bytes) >= target


def test_a_column_that_came_later_is_null_in_older_rows(made: Tables) -> None:
    wide = pa.table({"word": ["g"], "length": [1], "note": ["new"]})
    write_deltalake(made.delta(NAME), wide, mode="append", schema_mode="merge")
    made.optimize(NAME)
    assert made.to_arrow(NAME)["note"].to_pylist() == [None] * 6 + ["new"]


def test_a_table_without_rows_and_one_for_appends_only(tables: Tables) -> None:
    tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
    assert tables.optimize(NAME) == 0
    tables.delta(NAME).alter.set_table_properties({"delta.appendOnly": "true"})
    for word in "ab":
        tables.append(NAME, rows(word))
    tables.optimize(NAME)
    assert words(tables) == ["a", "b"] and len(tables.delta(NAME).file_uris()) == 1


def test_many_rows_are_in_groups(tables: Tables, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosaic.data.compact._ROW_GROUP_BYTES", 100_000)
    tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
    for first in range(0, 30_000, 10_000):
        tables.append(NAME, rows(*(f"{number:08d}" for number in range(first, first + 10_000))))
    tables.optimize(NAME)
    (made,) = tables.delta(NAME).file_uris()
    assert words(tables) == [f"{number:08d}" for number in range(30_000)]
    assert 1 < pq.ParquetFile(made.removeprefix("file://")).num_row_groups < 30


def interrupted(tmp_path: Path, catalog: Catalog, meanwhile: Callable[[Tables], object]) -> Callable[[], int]:
    """A compaction beside which somebody else writes, after it has read and before it commits."""
    other = Tables(Storage(str(tmp_path / "root")), catalog)
    slow = Tables(Storage(str(tmp_path / "root")), catalog, at=lambda point: point == "compacted" and meanwhile(other))
    return lambda: slow.optimize(NAME)


def test_appends_go_on(made: Tables, catalog: Catalog, tmp_path: Path) -> None:
    def append(other: Tables) -> None:
        other.append(NAME, rows("x"))
        other.append(NAME, rows("y"))

    version = interrupted(tmp_path, catalog, append)()
    assert version == made.version(NAME) == 9
    assert words(made) == [*"abcdef", "x", "y"]
    assert len(made.delta(NAME).file_uris()) == 3


REWRITES: dict[str, tuple[Callable[[Tables], object], list[str]]] = {
    "optimize": (lambda other: other.optimize(NAME), list("abcdef")),
    "delete": (lambda other: other.delete_where(NAME, "word = 'c'"), list("abdef")),
    "merge": (lambda other: other.merge(NAME, rows("c", "g")), list("abcdefg")),
    "overwrite": (lambda other: other.overwrite(NAME, rows("z")), ["z"]),
}


@pytest.mark.parametrize("kind", REWRITES)
def test_rows_that_were_rewritten_meanwhile_stay_so(made: Tables, catalog: Catalog, tmp_path: Path, kind: str) -> None:
    rewrite, left = REWRITES[kind]
    with pytest.raises(Conflict, match="nothing was done; try again"):
        interrupted(tmp_path, catalog, rewrite)()
    assert sorted(words(made)) == left
    made.optimize(NAME)
    assert sorted(words(made)) == left


@pytest.mark.parametrize("kind", ["delete", "update"])
def test_a_rewrite_that_has_not_seen_it_is_refused(made: Tables, kind: str) -> None:
    stale = made.delta(NAME)
    made.optimize(NAME)
    with pytest.raises(CommitFailedError):
        if kind == "delete":
            stale.delete("word = 'c'")
        else:
            stale.update({"word": "'C'"}, predicate="word = 'c'")
    assert words(made) == list("abcdef")


OPTIMIZE = """
import sys
from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.errors import Conflict
from mosaic.storage import Storage

tables = Tables(Storage({root!r}), Catalog.open({url!r}))
tables.version({name!r})
print("ready", flush=True)
sys.stdin.readline()
try:
    tables.optimize({name!r})
except Conflict:
    print("conflict")
"""


def test_processes_at_the_same_time_double_no_row(made: Tables, catalog: Catalog, tmp_path: Path) -> None:
    script = OPTIMIZE.format(root=str(tmp_path / "root"), url=catalog.url, name=NAME)
    for _ in range(3):
        before = words(made)
        started = [subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) for _ in range(2)]
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(60) for process in started] == [0, 0]
        assert words(made) == before and len(made.delta(NAME).file_uris()) == 1
        made.append(NAME, rows("g"))


def test_kill_9_before_the_commit_changes_nothing(made: Tables, catalog: Catalog, tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom mosaic.catalog import Catalog\nfrom mosaic.data import Tables\n"
        "from mosaic.storage import Storage\n"
        "def at(point):\n    if point == 'compacted':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Tables(Storage({str(tmp_path / 'root')!r}), Catalog.open({catalog.url!r}), at=at).optimize({NAME!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert made.version(NAME) == 6 and words(made) == list("abcdef")
    made.optimize(NAME)
    assert words(made) == list("abcdef")
    assert len(made.vacuum(NAME, retention_hours=0).files) == 7  # the six, and what the killed one left
