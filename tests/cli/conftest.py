"""A home with a catalog that has something of everything, made at known times, and `mosaic` run on it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from mosaic.catalog import Catalog
from mosaic.cli import main
from mosaic.data import Tables
from mosaic.storage import Storage

SECRET = "sk-never-shown-0123456789"
ROWS = pa.schema([pa.field("id", pa.int64(), nullable=False), ("text", pa.string())])


class Clock:
    """The catalog's, set by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 31, 10, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Mosaic:
    """`mosaic ...` on a home of its own, and that home's catalog to compare with."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.catalog = Catalog.open(f"sqlite:///{home / 'catalog.db'}", key_file=home / "catalog.key")

    def run(self, *arguments: str, stdin: str | bytes | None = None) -> Ended:
        told = CliRunner().invoke(main, [*arguments, "--storage", str(self.home)], input=stdin)
        if told.exception is not None and not isinstance(told.exception, SystemExit):
            raise told.exception
        return Ended(told.exit_code, told.stdout, told.stderr)

    def ok(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """What it printed; it must have worked, without a word on stderr."""
        ended = self.run(*arguments, stdin=stdin)
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.out

    def json(self, *arguments: str, stdin: str | bytes | None = None) -> Any:
        return json.loads(self.ok(*arguments, "--json", stdin=stdin))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home that every test that changes something gets a copy of; the files of its tables stay here."""
    home, clock = tmp_path_factory.mktemp("cli") / "home", Clock()
    catalog = Catalog.open(f"sqlite:///{home / 'catalog.db'}", key_file=home / "catalog.key", now=clock)
    _fill(catalog, Tables(Storage(str(home)), catalog), clock)
    catalog.close()
    return home


@pytest.fixture(scope="session")
def shared(template: Path) -> Iterator[Mosaic]:
    """One home for all tests that only ask, or are refused."""
    opened = Mosaic(template)
    yield opened
    opened.catalog.close()


@pytest.fixture
def mosaic(template: Path, tmp_path: Path) -> Iterator[Mosaic]:
    shutil.copytree(template, tmp_path / "home")
    opened = Mosaic(tmp_path / "home")
    yield opened
    opened.catalog.close()


def _fill(catalog: Catalog, tables: Tables, clock: Clock) -> None:
    catalog.ensure_schema("main.docs")
    catalog.catalogs.create("lab", owner="admin", comment="For trials")
    catalog.create_token("bob", comment="his laptop")
    tables.create("main.docs.entries", ROWS, primary_key="id", owner="admin", comment="Red: \x1b[31m\nand [bold]")
    tables.append("main.docs.entries", pa.table({"id": [1, 2], "text": ["one", None]}, schema=ROWS))
    run = catalog.start_run("ingestion", "entries", principal="admin")
    tables.merge("main.docs.entries", pa.table({"id": [2, 3], "text": ["two", 'it\'s "3"']}, schema=ROWS), run_id=run)
    tables.create("main.docs.private", ROWS, primary_key=None, owner="admin")
    catalog.create_model("main.docs.bot", owner="admin", comment="Answers")
    for kind in ("adapter", "full"):
        catalog.create_model_version("main.docs.bot", source="/models/bot", kind=kind)
    catalog.set_alias("main.docs.bot", "champion", 1)
    clock.at = datetime(2026, 1, 31, 10, 32, tzinfo=UTC)
    catalog.set_alias("main.docs.bot", "champion", 2)
    catalog.prompts.register("main.docs.greeting", "Hello {{name}},\nwelcome.")
    catalog.volumes.create("main.docs.files", spec={"volume_type": "EXTERNAL", "location": "/srv/files"}, owner="admin")
    catalog.connections.create(
        "openai",
        connection_type="OPENAI",
        options={"base_url": "https://api.example.com/v1", "api_key": SECRET},
        owner="admin",
    )
    catalog.principals.create_group("readers", by="admin")
    catalog.principals.add_member("readers", "bob", by="admin")
    catalog.grants.grant("catalog", "main", "readers", ["USE CATALOG"], by="admin")
    catalog.grants.grant("schema", "main.docs", "readers", ["USE SCHEMA"], by="admin")
    catalog.grants.grant("table", "main.docs.entries", "bob", ["SELECT"], by="admin")
    catalog.tags.set("table", "main.docs.entries", {"domain": "docs"})
