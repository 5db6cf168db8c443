"""What carries rows into the lakehouse while the platform runs: an actor for each node's request logs, which may die at
any moment, and a thread where else there is something to ship (the audit trail: in the platform's actor).
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mosaic.errors import MosaicError

logger = logging.getLogger(__name__)


class Shipping:
    """Ships every `interval_seconds` in a thread of its own, for as long as the process lives.

    `build` makes the shipper (`mosaic.data.ship`) in this process: anything with `ship_once() -> rows shipped`.
    """

    def __init__(self, build: Callable[[], Any], interval_seconds: float = 1.0) -> None:
        self._shipper = build()
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._last_error: str | None = None
        self._shipped = 0
        threading.Thread(target=self._run, name="shipping", daemon=True).start()

    def flush(self) -> int:
        """Ship now; returns the rows of this pass. Raises what went wrong."""
        with self._lock:
            rows = int(self._shipper.ship_once())
        self._shipped += rows
        return rows

    def status(self) -> dict[str, Any]:
        left_out = dict(getattr(self._shipper, "left_out", {}))
        return {"shipped_rows": self._shipped, "last_error": self._last_error, "left_out": left_out}

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.flush()
                self._last_error = None
            except Exception as error:
                # Storage that is away comes back; the source keeps what was not shipped. Whatever it was, the thread
                # goes on and the status says so: one that ended would ship nothing more, and nobody would know.
                self._last_error = str(error)
                logger.warning(
                    "shipping failed, will try again: %s", error, exc_info=not isinstance(error, MosaicError)
                )
            pause.wait(self._interval_seconds)


def shipper_name(node_id: str) -> str:
    return f"shipper:{node_id}"


def ensure_shipper(build: Callable[[], Any], *, interval_seconds: float = 1.0) -> Any:
    """The shipper of this node: logs are local files, so each node with a gateway has one."""
    node_id = ray.get_runtime_context().get_node_id()
    actor = ray.remote(Shipping).options(
        name=shipper_name(node_id),
        namespace="mosaic",
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0.05,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=4,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return actor.remote(build, interval_seconds)
