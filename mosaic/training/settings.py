"""The settings of one fine-tuning run, and what is right for them."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mosaic.settings import Settings

_TABLE_AT_VERSION = re.compile(r"[^.@\s]+\.[^.@\s]+\.[^.@\s]+@\d+")

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama-like block, by the names that most open models use."""


class LoraSettings(Settings):
    """Which weights a low-rank adapter changes (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the two factors; an engine must be started with at least this `max_lora_rank`."""
    alpha: float = Field(default=32.0, gt=0)
    """The product of the factors is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    target_modules: tuple[str, ...] = Field(default=LINEAR_LAYERS, min_length=1)
    """Names of the linear layers that get an adapter."""
    last_layers: int | None = Field(default=None, ge=1)
    """Adapt only that many of the model's last blocks; the backward pass ends there, which saves most of its cost."""


class TrainSettings(Settings):
    """A supervised fine-tuning run of a chat model with LoRA."""

    model: str = Field(min_length=1)
    """The base model's name, as the adapter's config and the tracking server will state it."""
    train_table: str
    """The rows to learn from, as `catalog.schema.table@version`."""
    eval_table: str | None = None
    """Held-out rows as `catalog.schema.table@version`: their loss is measured before and after training."""

    messages_column: str | None = "messages"
    """Column with a chat per row: a list of {role, content}, the last of which is the assistant's."""
    prompt_column: str | None = None
    """With `response_column`, in place of `messages_column`: the user's message."""
    response_column: str | None = None
    """The assistant's answer to `prompt_column`."""

    max_length: int = Field(default=1024, ge=8)
    """Longest row in tokens, prompt and answer together."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What becomes of a longer row: the run refuses, the row's end is cut off, or it is left out (both are counted)."""

    lora: LoraSettings = LoraSettings()
    """The adapter that is trained; the base model's weights stay as they are."""
    global_batch_size: int = Field(default=16, ge=1)
    """Rows of one optimizer step, over all workers."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Rows that one worker takes through the model at once; bounds memory, does not change the result."""
    eval_batch_size: int = Field(default=16, ge=1)
    """Rows over all workers at once during evaluation; does not change the result."""
    epochs: int = Field(default=1, ge=1)
    """Times every row is seen."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after that many optimizer steps, even inside an epoch."""
    window_rows: int = Field(default=65_536, ge=1)
    """Rows are shuffled inside windows of that many neighbours, and the windows among themselves."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides the order of the rows, the adapter's first weights and dropout."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Highest learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to zero after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Part of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""

    num_workers: int = Field(default=2, ge=1)
    """Processes that train together."""
    cpus_per_worker: float = Field(default=0.25, gt=0)
    """Ray CPUs that a worker reserves; a fraction is fine, it does not bound the threads."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of a worker's CPU arithmetic; workers on one machine share its cores."""
    use_gpu: bool = False
    """One GPU per worker with NCCL; otherwise CPUs with gloo."""
    zero_stage: Literal[1, 2] = 2
    """DeepSpeed's ZeRO stage: 1 shares out the optimizer's state, 2 the gradients too."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the model; the optimizer's own copy of the adapter is float32 in both."""
    attention: Literal["eager", "sdpa"] | None = None
    """Attention kernel; None is sdpa on a GPU, and eager on a CPU: faster there for rows of some 100 tokens."""

    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Steps between the checkpoints that a run resumes from when a worker dies; None: it starts from the beginning."""
    max_failures: int = Field(default=2, ge=0)
    """Times the workers are started again after one died."""

    experiment: str = Field(default="mosaic", min_length=1)
    """MLflow experiment of the run."""
    run_name: str | None = None
    """MLflow's name for the run."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for field in ("train_table", "eval_table"):
            name = getattr(self, field)
            if name is not None and not _TABLE_AT_VERSION.fullmatch(name):
                raise ValueError(f"{field} = {name!r} must name a table at a version: catalog.schema.table@version")
        pair = (self.prompt_column, self.response_column)
        if self.messages_column is None and None in pair:
            raise ValueError("give messages_column, or both prompt_column and response_column")
        if self.messages_column is not None and pair != (None, None):
            raise ValueError("prompt_column and response_column need messages_column = None")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that training reads."""
        if self.messages_column is not None:
            return (self.messages_column,)
        assert self.prompt_column is not None and self.response_column is not None
        return (self.prompt_column, self.response_column)
