"""Delta tables on Ray Data: write, read at a version, follow changes; and the local logs that end up in them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.data.changes import Changes, ChangesUnavailable, fold_changes
    from mosaic.data.delta import open_delta, read_arrow
    from mosaic.data.ray_catalog import MosaicCatalog
    from mosaic.data.ship import Shipper
    from mosaic.data.tables import Tables
    from mosaic.data.wal import Entry, Log

__all__ = [
    "Changes",
    "ChangesUnavailable",
    "Entry",
    "Log",
    "MosaicCatalog",
    "Shipper",
    "Tables",
    "fold_changes",
    "open_delta",
    "read_arrow",
]

_HOMES = {
    "Changes": "changes",
    "ChangesUnavailable": "changes",
    "fold_changes": "changes",
    "open_delta": "delta",
    "read_arrow": "delta",
    "MosaicCatalog": "ray_catalog",
    "Shipper": "ship",
    "Tables": "tables",
    "Entry": "wal",
    "Log": "wal",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: whoever only opens a Delta table does not pay for Ray Data.
    if name in _HOMES:
        return getattr(importlib.import_module(f"mosaic.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mosaic.data' has no attribute {name!r}")
