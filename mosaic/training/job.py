"""What driver and workers exchange: the job, the report of a step, the names in the last checkpoint."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mosaic.training.plan import Plan
from mosaic.training.settings import TrainSettings

ADAPTER_FOLDER = "adapter"
"""In the last checkpoint: the exported adapter."""

OUTCOME_FILE = "outcome.json"
"""In the last checkpoint: what rank 0 has to tell."""


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    settings: TrainSettings
    model_folder: str
    plan: Plan
    eval_plan: Plan | None


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, the same on all workers."""

    step: int
    """Counted from 1."""
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
