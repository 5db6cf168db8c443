"""Tables in a fresh folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.storage import Storage


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    catalog.ensure_schema("main.test")
    yield Tables(Storage(str(tmp_path / "root")), catalog)
    catalog.close()
