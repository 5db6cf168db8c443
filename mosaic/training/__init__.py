"""Fine-tuning: a Delta table at a version, through Ray Data, into DeepSpeed on Ray Train, out as a LoRA adapter.

Start reading at `run.fit`. Names are loaded when they are first used: the tasks that tokenize need no DeepSpeed, and a
reader of settings needs no Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.training.register import FineTuned, FineTuning
    from mosaic.training.result import EvalRow, TrainResult
    from mosaic.training.run import fit, train_plan
    from mosaic.training.settings import LoraSettings, TrainSettings
    from mosaic.training.tracking import MlflowServer, Tracking

__all__ = [
    "EvalRow",
    "FineTuned",
    "FineTuning",
    "LoraSettings",
    "MlflowServer",
    "Tracking",
    "TrainResult",
    "TrainSettings",
    "fit",
    "train_plan",
]

_HOMES = {
    "EvalRow": "result",
    "FineTuned": "register",
    "FineTuning": "register",
    "LoraSettings": "settings",
    "MlflowServer": "tracking",
    "TrainResult": "result",
    "TrainSettings": "settings",
    "Tracking": "tracking",
    "fit": "run",
    "train_plan": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
