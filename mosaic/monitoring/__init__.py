"""What happened: the inference table, and the thread from an answer back to its sources."""

from mosaic.monitoring.keeping import Keeping
from mosaic.monitoring.ledger import Exchange, Ledger
from mosaic.monitoring.record import INFERENCE_TABLE, LOST_STATUS, SCHEMA, lost, to_arrow

__all__ = ["INFERENCE_TABLE", "LOST_STATUS", "SCHEMA", "Exchange", "Keeping", "Ledger", "lost", "to_arrow"]
