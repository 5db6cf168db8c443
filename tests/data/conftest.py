"""A local Ray, and tables in a fresh folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.storage import Storage


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            object_store_memory=200_000_000,
        )
    yield


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    catalog.ensure_schema("main.test")
    yield Tables(Storage(str(tmp_path / "root")), catalog)
    catalog.close()
