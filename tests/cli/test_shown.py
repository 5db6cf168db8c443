"""Nothing is cut: into a pipe columns are as wide as they are, a terminal folds; and what says no, says it."""

import os
import pty
import subprocess
import sys

import pyarrow as pa
import pytest

from mosaic.data import Tables
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA
from mosaic.storage import Storage
from tests.cli.conftest import Mosaic

LONG = "a" * 150
FLAGS = pa.table({"id": [1, 2, 3], "kept": [True, False, None], "note": [LONG, "\x1b[31m", None]})


def on_a_terminal(*arguments: str, width: int = 80) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    command = [sys.executable, "-m", "mosaic.cli", *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while read := os.read(ours, 100_000):
            shown += read
    except OSError:  # what a terminal says when its other side has ended
        pass
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode()


@pytest.fixture
def flags(mosaic: Mosaic) -> Mosaic:
    tables = Tables(Storage(str(mosaic.home)), mosaic.catalog)
    tables.create("main.docs.flags", FLAGS.schema, primary_key=None, owner="admin")
    tables.append("main.docs.flags", FLAGS)
    return mosaic


def test_sql_into_a_pipe_is_whole(flags: Mosaic) -> None:
    ended = flags.run("sql", "SELECT * FROM main.docs.flags ORDER BY id")
    assert (ended.code, ended.err) == (0, "3 rows of main.docs.flags@1\n")
    heading, *rows = ended.out.splitlines()
    assert heading.split() == ["id", "kept", "note"]
    assert [row.split() for row in rows] == [["1", "true", LONG], ["2", "false", "\\x1b[31m"], ["3"]]
    wide = ", ".join(f"{number} AS a_long_name_{number}" for number in range(40))
    ended = flags.run("sql", f"SELECT {wide}")
    assert ended.out.splitlines()[1].split() == [str(number) for number in range(40)]


def test_sql_on_a_terminal_is_whole_too(flags: Mosaic) -> None:
    statement = "SELECT * FROM main.docs.flags ORDER BY id"
    shown = on_a_terminal("sql", statement, "--storage", str(flags.home))
    assert "…" not in shown and shown.count("a") >= len(LONG) and "\x1b[31m" not in shown.replace("\\x1b[31m", "")
    wide = ", ".join(f"{number} AS a_long_name_{number}" for number in range(12))
    shown = on_a_terminal("sql", f"SELECT {wide}", "--storage", str(flags.home))
    lines = [line.split() for line in shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert ["a_long_name_7", "7"] in lines  # too many columns for 80 characters: a field a line


def test_trees_into_a_pipe_have_one_line_for_each_node(flags: Mosaic) -> None:
    catalog, name = flags.catalog, "main.docs." + "x" * 100
    catalog.ensure_schema("system.serving", owner="system")
    Tables(Storage(str(flags.home)), catalog).create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
    catalog.create_model(name, owner="admin")
    run = catalog.start_run("training", "fit", principal="admin")
    catalog.add_input(run, "table", "main.docs.flags", 1)
    catalog.create_model_version(name, source="/models/x", kind="full", run_id=run)
    lines = flags.ok("impact", "main.docs.flags").splitlines()
    assert any(f"model {name}, version 1" in line and "0 answers" in line for line in lines), lines


def test_false_is_said(flags: Mosaic) -> None:
    assert flags.ok("table", "preview", "main.docs.flags").splitlines()[1:] == [
        f"1   true   {LONG}",
        "2   false  \\x1b[31m",
        "3",
    ]
    assert [row["kept"] for row in flags.json("table", "preview", "main.docs.flags")] == [True, False, None]
    assert "name=id, type=int64, spark=long, nullable=no" in flags.ok("table", "get", "main.docs.entries")
    flags.ok("grants", "remove", "readers", "USE CATALOG", "catalog", "main")
    held = flags.ok("grants", "effective", "bob", "table", "main.docs.entries")
    assert ["SELECT", "no"] in [line.split()[:2] for line in held.splitlines()]
    flags.ok("user", "deactivate", "bob")
    (bob,) = [line.split() for line in flags.ok("user", "list").splitlines() if line.startswith("bob")]
    assert bob[:3] == ["bob", "user", "no"]


def test_a_table_that_is_not_there(shared: Mosaic) -> None:
    ended = shared.run("sql", "SELECT * FROM system.information_schema.nope")
    told = "mosaic: no table 'system.information_schema.nope'; there are ['system.information_schema."
    assert ended.code == 1 and ended.err.startswith(told) and "system.information_schema.tables'" in ended.err
    ended = shared.run("model", "alias", "remove", "main.docs.bot", "nope")
    assert ended.code == 1 and "there are ['main.docs.bot@champion']" in ended.err
    ended = shared.run("catalog", "get", "nope", "--as", "bob")
    assert ended.code == 1 and "yet" not in ended.err
