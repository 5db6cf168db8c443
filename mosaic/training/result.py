"""What a training run gives back."""

from pydantic import Field

from mosaic.protocol import Wire


class EvalRow(Wire):
    """One held-out row before and after training."""

    row: int
    """Its number in the held-out table's order, at the pinned version."""
    tokens: int
    """Supervised tokens."""
    nll_base: float
    """Summed negative log-likelihood of those tokens under the base model, in nats."""
    nll_tuned: float
    """The same with the adapter."""


class TrainResult(Wire):
    """A finished run."""

    adapter_folder: str
    """Folder with the adapter in PEFT's format."""
    checksums: dict[str, str]
    """SHA-256 of each file of it."""
    train_table: str
    eval_table: str | None
    steps: int
    rows: int
    """Rows of the training table that were trained on."""
    rows_dropped: int
    """Rows left out as too long."""
    rows_truncated: int
    """Rows whose end was cut off."""
    tokens: int
    """Tokens that went through the model in training, epochs counted each, padding not."""
    supervised_tokens: int
    """Tokens per epoch whose prediction was learned."""
    train_loss_first: float
    """Mean nll per supervised token of the first step, in nats."""
    train_loss_last: float
    """The same of the last step."""
    eval_loss_base: float | None = None
    """Mean nll per supervised token over the held-out rows, before training."""
    eval_loss_tuned: float | None = None
    """The same after training."""
    eval_rows: list[EvalRow] = Field(default_factory=list)
    """Row by row, so that an interval can be put around the difference."""
    seconds: float
    """The whole of `fit`."""
    seconds_per_step: float
    """Median over the steps."""
    tokens_per_second: float
    """Over the training steps, all workers together."""
    mlflow_run_id: str | None
    peak_memory_bytes: int
    """Greatest resident sizes of the workers, summed."""
