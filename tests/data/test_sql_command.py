"""`mosaic sql` as a user types it."""

import csv
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from mosaic.cli import main
from tests.data.sql_lake import Lake, lake_in

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture
def run(lake: Lake) -> Run:
    return lambda *arguments: CliRunner().invoke(main, ["sql", *arguments, "--storage", str(lake.folder)])


def test_a_table_on_the_terminal(run: Run) -> None:
    shown = run("SELECT id, name FROM main.docs.people ORDER BY id")
    assert shown.exit_code == 0 and [line.split() for line in shown.stdout.splitlines()] == [
        ["id", "name"],
        ["1", "ann"],
        ["2", "bob"],
        ["3", "cy"],
        ["4"],
    ]
    assert shown.stderr == "4 rows of main.docs.people@1\n"


def test_json_and_csv_are_for_programs(run: Run) -> None:
    columns = "id, name, [id] AS l, 1.5 AS d, DATE '2026-01-02' AS day"
    asked = f"SELECT {columns} FROM main.docs.people WHERE id IN (1, 4) ORDER BY id"
    rows = [json.loads(line) for line in run(asked, "--json").stdout.splitlines()]
    assert rows == [
        {"id": 1, "name": "ann", "l": "[1]", "d": "1.5", "day": "2026-01-02"},
        {"id": 4, "name": None, "l": "[4]", "d": "1.5", "day": "2026-01-02"},
    ]
    table = list(csv.reader(io.StringIO(run(asked, "--csv").stdout)))
    assert table == [
        ["id", "name", "l", "d", "day"],
        ["1", "ann", "[1]", "1.5", "2026-01-02"],
        ["4", "", "[4]", "1.5", "2026-01-02"],
    ]
    assert "choose --json or --csv" in run(asked, "--json", "--csv").output


def test_text_is_not_markup(run: Run) -> None:
    assert "[bold]x[/bold]" in run("SELECT '[bold]x[/bold]' AS a").stdout


def test_limits_are_said(run: Run) -> None:
    cut = run("SELECT * FROM range(10)", "--limit", "3")
    assert cut.exit_code == 0 and "cut after 3 rows by the limit of rows; there are more" in cut.stderr
    slow = run("SELECT count(*) FROM range(1000000000000) a WHERE a.range % 7 = 3", "--timeout", "0.2")
    assert slow.exit_code == 1 and "time limit of 0.2 s" in slow.stderr


def test_as_somebody_with_fewer_grants(run: Run) -> None:
    assert run("SELECT * FROM main.docs.people", "--as", "bob").exit_code == 0
    refused = run("SELECT * FROM main.vault.secrets", "--as", "bob")
    assert refused.exit_code == 1 and "'bob' may not SELECT on table 'main.vault.secrets'" in refused.stderr
    assert "no principal 'zoe' is known" in run("SELECT * FROM main.docs.people", "--as", "zoe").stderr


def test_writing_is_asked_for(run: Run) -> None:
    statement = "CREATE TABLE main.docs.made AS SELECT 1 AS a"
    assert "only reading was asked for" in run(statement).stderr
    assert json.loads(run(statement, "--write", "--json").stdout) == {"num_affected_rows": 1, "num_inserted_rows": 1}


def test_errors_are_one_line_without_a_traceback(run: Run) -> None:
    wrong = run("SELEC 1")
    assert wrong.exit_code == 1 and wrong.stderr == 'mosaic: syntax error at or near "SELEC" (at character 1)\n'
    assert "Traceback" not in run("SELECT * FROM read_csv('/etc/passwd')").output


def test_the_commands_of_the_page_run(lake: Lake, run: Run) -> None:
    lake.catalog.ensure_schema("main.stdlib")
    lake.make("main.stdlib.entries", pa.table({"module": ["os", "os", "re"], "text": ["a", "b" * 300, "c"]}))
    page = Path(__file__).parents[2] / "docs" / "sql.md"
    commands = [shlex.split(line) for line in re.findall(r"^    mosaic sql (.*)$", page.read_text(), re.MULTILINE)]
    assert len(commands) == 4
    for command in commands:
        ended = run(*command)
        assert ended.exit_code == 0, ended.output
    assert lake.value("SELECT count(*) FROM main.stdlib.short") == 2
