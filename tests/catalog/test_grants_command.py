"""`mosaic grants` as a user types it."""

from pathlib import Path

from click.testing import CliRunner

from mosaic.catalog import Catalog
from mosaic.cli import main


def test_granted_explained_and_taken_back(tmp_path: Path) -> None:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    catalog.ensure_schema("main.docs")
    catalog.create_token("admin", is_admin=True)
    catalog.create_token("bob")

    def run(*arguments: str) -> tuple[int, str]:
        ended = CliRunner().invoke(main, ["grants", *arguments, "--storage", str(tmp_path)])
        return ended.exit_code, ended.output

    assert run("add", "bob", "use catalog", "catalog", "main")[0] == 0
    code, told = run("explain", "bob", "USE SCHEMA", "schema", "main.docs")
    assert code == 1 and "USE SCHEMA" in told
    assert run("add", "bob", "USE SCHEMA", "schema", "main.docs") == (0, "bob has USE SCHEMA on schema main.docs\n")
    assert run("explain", "bob", "USE SCHEMA", "schema", "main.docs")[0] == 0
    assert "USE SCHEMA" in run("list", "schema", "main.docs")[1]
    assert run("remove", "bob", "USE SCHEMA", "schema", "main.docs")[0] == 0
    assert "USE SCHEMA" not in run("list", "schema", "main.docs")[1]
    code, told = run("add", "bob", "FLY", "schema", "main.docs")
    assert code == 1 and "privilege 'FLY' does not exist" in told
    assert [event.action_name for event in catalog.audit.list()].count("updatePermissions") == 3
