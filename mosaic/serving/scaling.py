"""How many replicas of an engine there are: a fixed number, or as many as is asked for, down to none.

Ray Serve's autoscaler decides by the requests that are answered or wait, as the gateways' handles count them. A request
that finds no replica waits in its gateway's handle, which tells the controller at once, until one has started.
"""

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from mosaic.settings import Settings

if TYPE_CHECKING:
    from mosaic.serving.settings import EngineSettings

_IDLE_SECONDS = 600.0
_SHORTEST_WINDOW_SECONDS, _LONGEST_WINDOW_SECONDS = 2.0, 30.0


class Scaling(Settings):
    """As many replicas as is asked for."""

    min_replicas: int = Field(default=1, ge=0, le=1000)
    """Kept warm when nothing is asked; with 0 the next request waits until a replica has started again."""
    max_replicas: int = Field(default=1, ge=1, le=1000)
    """Never more than these."""
    target_ongoing_requests: float = Field(default=16, gt=0, le=100_000)
    """Requests for each replica, answered or waiting, above which there are more replicas and below which fewer."""
    scale_up_after_seconds: float = Field(default=5, ge=0, le=86_400)
    """How long more must be asked for before a replica is added; none is waited for when there is no replica."""
    scale_down_after_seconds: float = Field(default=300, ge=0, le=86_400)
    """How long less must be asked for before one ends, once its last requests have."""
    scale_to_zero_after_seconds: float | None = Field(default=None, ge=0, le=604_800)
    """With `min_replicas` 0: how long nothing may be asked before the last one ends; ten minutes if not said."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas = {self.max_replicas} must be at least min_replicas = {self.min_replicas}")
        if self.min_replicas and self.scale_to_zero_after_seconds is not None:
            raise ValueError(
                f"scale_to_zero_after_seconds needs min_replicas = 0; it is {self.min_replicas}, which are kept warm"
            )
        return self

    @property
    def first_replicas(self) -> int:
        """Those that start with the engine: at least one, so that what is wrong with it shows in its rollout."""
        return max(1, self.min_replicas)


def replica_options(settings: "EngineSettings") -> dict[str, Any]:
    """Serve's options of a deployment for how many replicas it has and where."""
    scaling, per_node = settings.scaling, settings.max_replicas_per_node
    spread = {} if per_node is None else {"max_replicas_per_node": per_node}
    if scaling is None:
        return {"num_replicas": settings.num_replicas, **spread}
    idle_seconds = scaling.scale_to_zero_after_seconds
    # What is asked is averaged over a window, which must be shorter than the patience that is wanted.
    window = min(max(scaling.scale_up_after_seconds, _SHORTEST_WINDOW_SECONDS), _LONGEST_WINDOW_SECONDS)
    autoscaling = {
        "min_replicas": scaling.min_replicas,
        "initial_replicas": scaling.first_replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target_ongoing_requests,
        "look_back_period_s": window,
        "metrics_interval_s": window / 2,
        "upscale_delay_s": scaling.scale_up_after_seconds,
        "downscale_delay_s": scaling.scale_down_after_seconds,
        "downscale_to_zero_delay_s": _IDLE_SECONDS if idle_seconds is None else idle_seconds,
    }
    return {"autoscaling_config": autoscaling, **spread}
