"""Vector search that stays in step with a Delta table, and says at which version of it every answer is exact."""

from mosaic.vector.doubles import HashEmbedder
from mosaic.vector.index import CorruptSnapshot, Hit, VectorIndex
from mosaic.vector.indexes import Indexes
from mosaic.vector.settings import IndexSettings
from mosaic.vector.shard import IndexStatus, QueryResult, Shard
from mosaic.vector.sync import Embed, Embedder, Synchroniser, SyncResult

__all__ = [
    "CorruptSnapshot",
    "Embed",
    "Embedder",
    "HashEmbedder",
    "Hit",
    "IndexSettings",
    "IndexStatus",
    "Indexes",
    "QueryResult",
    "Shard",
    "SyncResult",
    "Synchroniser",
    "VectorIndex",
]
