"""What the commands answer: golden tables, JSON with exactly the records' fields, and what another may see."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mosaic.cli import main
from tests import local
from tests.cli.conftest import Mosaic

TABLES = {
    "catalog list": """\
name  owner  comment     created at
lab   admin  For trials  2026-01-31 10:00:00 UTC
main  admin              2026-01-31 10:00:00 UTC
""",
    "model list main.docs": """\
name           owner  versions  aliases     comment  updated at
main.docs.bot  admin  1, 2      champion=2  Answers  2026-01-31 10:32:00 UTC
""",
    "model alias history main.docs.bot champion": """\
at                       alias     version  principal
2026-01-31 10:00:00 UTC  champion  1        admin
2026-01-31 10:32:00 UTC  champion  2        admin
""",
    "connection list": """\
name    connection type  options                              secrets  owner  comment
openai  OPENAI           base_url=https://api.example.com/v1  api_key  admin
""",
    "grants list table main.docs.entries": """\
principal  privilege  granted by  granted at
bob        SELECT     admin       2026-01-31 10:32:00 UTC
""",
    "grant effective bob schema main.docs": """\
privilege   usable  because
USE SCHEMA  yes     bob in readers, granted USE SCHEMA on schema main.docs by admin
BROWSE      yes     bob in readers, granted USE SCHEMA on schema main.docs by admin
""",
    "grant explain bob SELECT table main.docs.entries": """\
bob may SELECT on table main.docs.entries
|-- USE CATALOG on catalog main: bob in readers, granted USE CATALOG on catalog main by admin
|-- USE SCHEMA on schema main.docs: bob in readers, granted USE SCHEMA on schema main.docs by admin
`-- SELECT on table main.docs.entries: bob, granted SELECT on table main.docs.entries by admin
""",
    "group members readers": """\
name  kind  active
bob   user  yes
""",
    "table preview main.docs.entries@1": """\
id  text
1   one
2
""",
    "tag list table main.docs.entries": """\
key     value
domain  docs
""",
    "search red": """\
kind   name               owner  tags         comment
table  main.docs.entries  admin  domain=docs  Red: \\x1b[31m\\nand [bold]
""",
}


@pytest.mark.parametrize("command", TABLES)
def test_a_table_into_a_pipe(shared: Mosaic, command: str) -> None:
    assert shared.ok(*command.split()) == TABLES[command]


def test_json_has_the_records_and_nothing_else(shared: Mosaic) -> None:
    catalog = shared.catalog
    records = {
        "catalog list": catalog.catalogs.list(),
        "schema list": catalog.list_schemas(),
        "schema list main": catalog.schemas.list("main"),
        "table list": catalog.list_tables(),
        "table list main.docs": catalog.list_tables("main.docs"),
        "volume list": catalog.volumes.list(),
        "function list": [],
        "model list": catalog.list_models(),
        "model versions main.docs.bot": catalog.list_model_versions("main.docs.bot"),
        "model alias history main.docs.bot": catalog.alias_history("main.docs.bot"),
        "prompt list": catalog.prompts.list(),
        "prompt versions main.docs.greeting": catalog.prompts.versions("main.docs.greeting"),
        "connection list": catalog.connections.list(),
        "grants list schema main.docs": catalog.grants.list("schema", "main.docs"),
        "grants effective bob schema main.docs": catalog.grants.effective("bob", "schema", "main.docs"),
        "group list": catalog.principals.list("group"),
        "user list": [*catalog.principals.list("user"), *catalog.principals.list("service")],
        "token list": catalog.list_tokens(),
        "audit list": catalog.audit.list(),
        "dropped": catalog.dropped(),
        "search": catalog.search(),
    }
    for command, expected in records.items():
        assert shared.json(*command.split()) == [one.model_dump(mode="json") for one in expected], command


def test_json_of_one_thing_has_its_tags_too(shared: Mosaic) -> None:
    catalog = shared.catalog
    one = {
        "catalog get lab": catalog.catalogs.get("lab"),
        "schema get main.docs": catalog.schemas.get("main.docs"),
        "volume get main.docs.files": catalog.volumes.get("main.docs.files"),
        "model get main.docs.bot": catalog.get_model("main.docs.bot"),
        "connection get openai": catalog.connections.get("openai"),
    }
    for command, expected in one.items():
        assert shared.json(*command.split()) == {**expected.model_dump(mode="json"), "tags": {}}, command
    table = catalog.get_table("main.docs.entries").model_dump(mode="json")
    told = shared.json("table", "get", "Main.Docs.Entries")
    assert told == {**table, "delta_version": 2, "tags": {"domain": "docs"}}
    prompt = catalog.prompts.get("main.docs.greeting/1").model_dump(mode="json")
    assert shared.json("prompt", "get", "main.docs.greeting") == prompt
    assert shared.json("prompt", "get", "main.docs.greeting/1") == prompt


def test_one_thing_as_lines_and_nothing_in_it_that_a_terminal_would_obey(shared: Mosaic) -> None:
    lines = shared.ok("table", "get", "main.docs.entries").splitlines()
    assert "name            main.docs.entries" in lines
    assert "columns         name=id, type=int64, spark=long, nullable=no" in lines
    assert "comment         Red: \\x1b[31m" in lines and "                and [bold]" in lines
    assert "delta version   2" in lines and "tags            domain=docs" in lines


def test_history_is_that_of_the_log_with_its_runs(shared: Mosaic) -> None:
    commits = shared.json("table", "history", "main.docs.entries")
    (run,) = shared.catalog.runs_that_made("table", "main.docs.entries", 2)
    said = [(one["version"], one["operation"], one["rows_added"], one["run_id"]) for one in commits]
    assert said == [(2, "MERGE", 1, run.run_id), (1, "WRITE", 2, None), (0, "CREATE TABLE", None, None)]
    ended = shared.run("table", "history", "main.docs.entries", "--limit", "1")
    assert ended.code == 0 and run.run_id in ended.out
    assert ended.err == "versions before 2 are not shown; --limit shows more\n"


def test_who_was_champion_then(mosaic: Mosaic) -> None:
    def version_at(time: str) -> int:
        return int(mosaic.json("model", "alias", "at", "main.docs.bot", "champion", time)["version"])

    assert version_at("2026-01-31T10:31:59") == 1
    assert version_at("2026-01-31 10:32") == 2
    assert version_at("2026-01-31T12:31:59+02:00") == 1
    mosaic.ok("model", "alias", "remove", "main.docs.bot", "champion")
    ended = mosaic.run("model", "alias", "at", "main.docs.bot", "champion", "0s")
    assert ended.code == 1 and "pointed at nothing" in ended.err


def test_long_lists_say_what_is_not_shown(mosaic: Mosaic) -> None:
    for number in range(200):
        mosaic.catalog.principals.create(f"u{number:03}", by="admin")
    users = mosaic.run("user", "list")
    assert len(users.out.splitlines()) == 201
    assert users.err == "3 more users are not shown; --limit 203 shows all\n"
    assert len(mosaic.json("user", "list")) == 203
    few = mosaic.run("user", "list", "--limit", "2", "--json")
    assert len(few.json) == 2 and few.err == "201 more users are not shown; --limit 203 shows all\n"
    events = mosaic.run("audit", "list", "--action", "add", "--limit", "5")
    assert len(events.out.splitlines()) == 6 and "name=u199" in events.out
    assert events.err == "195 older events are not shown; --limit 200 shows all\n"
    hits = mosaic.run("search", "--limit", "1")
    assert hits.code == 0 and hits.err == "only the first 1 hits are shown; --limit shows up to 1000\n"


def test_an_empty_list(shared: Mosaic) -> None:
    ended = shared.run("function", "list")
    assert (ended.code, ended.out, ended.err) == (0, "", "no functions\n")
    assert shared.json("function", "list") == []


def test_with_the_eyes_of_another(shared: Mosaic) -> None:
    assert [one["name"] for one in shared.json("table", "list", "--as", "bob")] == ["main.docs.entries"]
    assert [one["name"] for one in shared.json("catalog", "list", "--as", "bob")] == ["main"]
    assert shared.json("connection", "list", "--as", "bob") == []
    found = {(one["kind"], one["name"]) for one in shared.json("search", "--as", "bob")}
    assert found == {("catalog", "main"), ("schema", "main.docs"), ("table", "main.docs.entries")}
    assert "one" in shared.ok("table", "preview", "main.docs.entries", "--as", "bob")
    count = len(shared.catalog.audit.list())
    for hidden in ("table get main.docs.private", "model get main.docs.bot", "prompt get main.docs.greeting/1"):
        ended = shared.run(*hidden.split(), "--as", "bob")
        assert ended.code == 1 and ended.out == "", hidden
        assert ended.err.startswith("mosaic: 'bob' may not see ") and "missing BROWSE" in ended.err
    assert len(shared.catalog.audit.list()) == count  # looking with another's eyes is no denial of that other
    unknown = shared.run("table", "list", "--as", "nobody")
    assert unknown.code == 1 and unknown.err.startswith("mosaic: no principal 'nobody'")


def test_on_a_terminal(shared: Mosaic) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mosaic.cli", "search", "red", "--storage", str(shared.home)]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    ended = subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, timeout=60, check=False)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0
    assert "main.docs.entries" in shown and r"Red: \x1b[31m\nand [bold]" in shown and "\x1b[31m" not in shown


def test_as_a_program_calls_it(shared: Mosaic) -> None:
    listed = local.mosaic("token", "list", "--json", "--storage", str(shared.home))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [one["principal"] for one in json.loads(listed.stdout)] == ["bob"]
    refused = local.mosaic("catalog", "get", "gone", "--storage", str(shared.home))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "mosaic: no catalog 'gone'; there are ['lab', 'main']\n"


@pytest.mark.parametrize("command", ["--help", "token list", "table get main.docs.entries"])
def test_nothing_is_imported_that_is_not_needed(shared: Mosaic, command: str) -> None:
    heavy = ["torch", "ray", "vllm", "mlflow", "transformers", "fastapi", "duckdb"]
    heavy += [] if command.startswith("table") else ["pyarrow", "pandas", "deltalake"]
    heavy += ["sqlalchemy", "rich"] if command == "--help" else []
    words = command.split() + ([] if command == "--help" else ["--storage", str(shared.home)])
    told = f"import sys; print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    program = f"import atexit; atexit.register(exec, {told!r}, {{}}); from mosaic.cli import main; main({words})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "[]\n")


def test_home_and_settings_file_say_which_catalog(shared: Mosaic, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"storage: {shared.home}\n")
    listed = CliRunner().invoke(main, ["catalog", "list", "--json", "-f", str(file)])
    assert [one["name"] for one in json.loads(listed.stdout)] == ["lab", "main"]
