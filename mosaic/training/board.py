"""What the workers tell the driver while they train: a small actor that both can reach."""

from typing import Any

import ray


class Board:
    """Holds the newest reports until the driver takes them, and the step at which the present workers start."""

    def __init__(self) -> None:
        self._reports: list[Any] = []
        self._first_step = 0

    def post(self, report: Any) -> None:
        """Add a worker's report."""
        self._reports.append(report)

    def take(self) -> list[Any]:
        """The reports since the last call."""
        taken, self._reports = self._reports, []
        return taken

    def start_at(self, step: int) -> None:
        """State where the training stream must start."""
        self._first_step = step

    def first_step(self) -> int:
        """Where the training stream must start."""
        return self._first_step


BoardActor = ray.remote(num_cpus=0)(Board)
