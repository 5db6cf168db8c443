"""A fresh catalog with two schemas and a clock that stands still."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def catalog(tmp_path: Path, clock: FixedClock) -> Iterator[Catalog]:
    made = Catalog.open(f"sqlite:///{tmp_path}/catalog.db", now=clock)
    made.ensure_schema("main.docs")
    made.ensure_schema("main.ml")
    yield made
    made.close()
