"""Delta tables on Ray Data: write, read at a version, follow changes; and the local logs that end up in them."""

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
