"""Batch inference: a model or an endpoint over the rows of a table, into another table; start reading at `run.py`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.serving.batch.plan import Plan
    from mosaic.serving.batch.result import BatchProgress, BatchResult
    from mosaic.serving.batch.run import KILL_POINTS, BatchInference
    from mosaic.serving.batch.settings import BatchSettings, Sampling

__all__ = ["KILL_POINTS", "BatchInference", "BatchProgress", "BatchResult", "BatchSettings", "Plan", "Sampling"]

_HOMES = {
    "KILL_POINTS": "run",
    "BatchInference": "run",
    "BatchProgress": "result",
    "BatchResult": "result",
    "BatchSettings": "settings",
    "Sampling": "settings",
    "Plan": "plan",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: whoever only wants the settings does not pay for Ray Data.
    if name in _HOMES:
        return getattr(importlib.import_module(f"mosaic.serving.batch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mosaic.serving.batch' has no attribute {name!r}")
