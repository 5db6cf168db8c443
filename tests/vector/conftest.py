"""A platform's storage, catalog and tables in a fresh folder."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.storage import Storage
from mosaic.vector import IndexSettings

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), ("title", pa.string()), ("body", pa.string())])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    opened.ensure_schema("main.test")
    yield opened
    opened.close()


@pytest.fixture
def tables(storage: Storage, catalog: Catalog) -> Tables:
    made = Tables(storage, catalog)
    made.create("main.test.docs", SCHEMA, primary_key="id", owner="ann")
    return made


@pytest.fixture
def index_settings() -> IndexSettings:
    return IndexSettings(
        name="main.test.docs_index",
        table="main.test.docs",
        primary_key="id",
        text_columns=("title", "body"),
        payload_columns=("title",),
        embedding_endpoint="hash",
        batch_size=8,
        poll_seconds=0.2,
    )
