"""Tables in a fresh folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.storage import Storage


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    made.ensure_schema("main.test")
    yield made
    made.close()


@pytest.fixture
def tables(tmp_path: Path, catalog: Catalog) -> Tables:
    return Tables(Storage(str(tmp_path / "root")), catalog)
