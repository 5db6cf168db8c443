"""The training loop: one process among `world` equal ones, DeepSpeed between them, no Ray.

Start reading at `train_loop`. It runs wherever `torch.distributed` can start: in Ray Train's workers, under torchrun,
or alone. The loss of a step is the mean over all its supervised tokens, wherever they are: n = all_reduce(tokens), and
each worker's micro-batches weigh sum(nll) * world / n, which DeepSpeed's mean over the workers turns into sum(nll) / n.
So neither the number of workers nor the micro-batch size changes the result, up to the order of floating-point sums.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mosaic.errors import BadRequest, MosaicError
from mosaic.training.feed import Row
from mosaic.training.job import Job, StepReport
from mosaic.training.plan import Plan
from mosaic.training.settings import TrainSettings

Feed = Callable[[int], Iterator[list[Row]]]
"""From a step's number to this worker's rows of that step and the ones after it."""

_TAG = "engine"
_WIDTH_MULTIPLE = 16


@dataclass
class Cursor:
    """How far a run has come; saved with the weights, in one checkpoint."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Training loss of every step so far."""
    base_rows: dict[int, tuple[float, int]] | None = None
    """Held-out rows before training: number to (sum of nll, supervised tokens)."""


@dataclass(frozen=True)
class Outcome:
    """What a worker knows at the end."""

    model: Any
    """The trained PeftModel."""
    cursor: Cursor
    tuned_rows: dict[int, tuple[float, int]] | None
    step_seconds: list[float]
    """Of each step since this process started, waiting for its rows included."""
    tokens_per_second: float
    """Tokens of real rows, all workers together, over those seconds."""
    peak_memory_bytes: int
    """Sum of the workers' greatest resident sizes."""


def train_loop(
    job: Job,
    train: Feed,
    held_out: Feed | None,
    *,
    on_step: Callable[[StepReport], None],
    on_checkpoint: Callable[[int, Callable[[Path], None]], None],
    resume_from: Path | None = None,
) -> Outcome:
    """Train until the plan ends.

    `on_checkpoint` gets the step and a function that writes the checkpoint into a folder; every worker calls it.
    """
    settings, plan = job.settings, job.plan
    if dist.get_world_size() != plan.workers:
        raise BadRequest(
            f"the plan is for {plan.workers} workers, there are {dist.get_world_size()}", param="num_workers"
        )
    model = SupervisedModel(build_model(job))
    engine = _start_engine(model, settings, plan)
    cursor = Cursor()
    if resume_from is not None:
        cursor = _load(engine, resume_from)
    elif held_out is not None:
        with model.model.disable_adapter():
            cursor.base_rows = evaluate(model, held_out(0), settings, engine.device)
    step_seconds: list[float] = []
    tokens_before = cursor.tokens
    started = time.perf_counter()
    for rows in train(cursor.step):
        report = _step(engine, rows, cursor.step, settings, plan)
        finished = time.perf_counter()
        step_seconds.append(finished - started)
        cursor.step += 1
        cursor.tokens += report.tokens
        cursor.losses.append(report.loss)
        on_step(report)
        if (
            settings.checkpoint_every_steps
            and cursor.step % settings.checkpoint_every_steps == 0
            and cursor.step < plan.steps
        ):
            on_checkpoint(cursor.step, lambda folder: _save(engine, folder, cursor))
        started = time.perf_counter()
    tuned_rows = evaluate(model, held_out(0), settings, engine.device) if held_out is not None else None
    peak = int(_all_sum([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024], engine.device)[0])
    rate = (cursor.tokens - tokens_before) / sum(step_seconds) if step_seconds else 0.0
    return Outcome(model.model, cursor, tuned_rows, step_seconds, rate, peak)


class SupervisedModel(torch.nn.Module):
    """A causal language model that returns each row's summed negative log-likelihood of its supervised tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor, supervised: torch.Tensor) -> torch.Tensor:
        # Rows are padded on the left, so that answers end together and few positions need their logits computed.
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        targets = supervised[:, 1:]
        asked = targets.any(dim=0).nonzero().squeeze(1)
        logits = self.model(
            input_ids=ids, attention_mask=attention_mask, position_ids=positions, use_cache=False, logits_to_keep=asked
        ).logits
        mask = targets[:, asked]
        nll = torch.nn.functional.cross_entropy(logits[mask].float(), ids[:, 1:][:, asked][mask], reduction="none")
        per_row = nll.new_zeros(len(ids))
        return per_row.index_add(0, mask.nonzero()[:, 0], nll)


def build_model(job: Job) -> Any:
    """The base model from its folder with a fresh adapter on it."""
    settings = job.settings
    torch.manual_seed(settings.seed)
    base = AutoModelForCausalLM.from_pretrained(
        job.model_folder,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attention or ("sdpa" if settings.use_gpu else "eager"),
    )
    lora = settings.lora
    names = {name.rsplit(".", 1)[-1] for name, part in base.named_modules() if isinstance(part, torch.nn.Linear)}
    if unknown := [name for name in lora.target_modules if name not in names]:
        raise BadRequest(
            f"{settings.model} has no linear layer {unknown}; there are {sorted(names)}", param="lora.target_modules"
        )
    blocks = int(base.config.num_hidden_layers)
    last = lora.last_layers
    if last is not None and last > blocks:
        raise BadRequest(f"last_layers = {last}, but {settings.model} has {blocks} blocks", param="lora.last_layers")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        layers_to_transform=None if last is None else list(range(blocks - last, blocks)),
    )
    # DeepSpeed keeps the float32 copy of the adapter; a second one here would only cost casts.
    return get_peft_model(base, config, autocast_adapter_dtype=False)


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * factor


def evaluate(
    model: SupervisedModel, batches: Iterator[list[Row]], settings: TrainSettings, device: torch.device
) -> dict[int, tuple[float, int]]:
    """Each held-out row's summed nll and supervised tokens, by row number; the same on every worker."""
    mine: dict[int, tuple[float, int]] = {}
    model.eval()
    with torch.no_grad():
        for rows in batches:
            real = [row for row in rows if any(row.supervised)]
            for micro in _micro_batches(real, settings.micro_batch_size, -(-len(real) // settings.micro_batch_size)):
                sums = model(*collate(micro, device)).tolist()
                mine |= {row.number: (nll, sum(row.supervised)) for row, nll in zip(micro, sums, strict=True)}
    model.train()
    gathered: list[dict[int, tuple[float, int]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mine)
    return {number: value for part in gathered for number, value in sorted(part.items())}


def collate(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and supervised mask of some rows, padded on the left.

    The width is rounded up: with few different shapes the CPU's kernel cache and the allocator stay small.
    """
    width = -(-max(len(row.ids) for row in rows) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention = torch.zeros(len(rows), width, dtype=torch.int64)
    supervised = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, -len(row.ids) :] = torch.tensor(row.ids)
        attention[place, -len(row.ids) :] = 1
        supervised[place, -len(row.ids) :] = torch.tensor(row.supervised)
    return ids.to(device), attention.to(device), supervised.to(device)


def _step(engine: Any, rows: list[Row], step: int, settings: TrainSettings, plan: Plan) -> StepReport:
    started = time.perf_counter()
    rate = learning_rate(settings, step, plan.steps)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    # Dropout depends on where the run stands, not on how it got there: a resumed run draws the same.
    torch.manual_seed(hash((settings.seed, step, dist.get_rank())) % 2**63)
    mine = [sum(sum(row.supervised) for row in rows), sum(len(row.ids) for row in rows if any(row.supervised))]
    supervised_tokens, tokens = (int(value) for value in _all_sum(mine, engine.device))
    total_nll = 0.0
    for place, micro in enumerate(_micro_batches(rows, plan.micro_batch, plan.micro_steps)):
        engine.set_gradient_accumulation_boundary(place == plan.micro_steps - 1)
        nll = engine(*collate(micro, engine.device)).sum()
        engine.backward(nll * (plan.workers / supervised_tokens), scale_wrt_gas=False)
        total_nll += float(nll.detach())
    engine.step()
    loss = _all_sum([total_nll], engine.device)[0] / supervised_tokens
    if not math.isfinite(loss):
        raise MosaicError(
            f"the loss of step {step + 1} is {loss}; a lower learning_rate than {settings.learning_rate} may help"
        )
    norm = float(engine.get_global_grad_norm() or 0.0)
    return StepReport(step + 1, plan.steps, loss, rate, norm, tokens, time.perf_counter() - started)


def _micro_batches(rows: list[Row], size: int, count: int) -> Iterator[list[Row]]:
    """Rows of like length together, so that little padding is computed; always `count` batches."""
    ordered = sorted(rows, key=lambda row: (len(row.ids), row.number))
    for place in range(count):
        yield ordered[place * size : (place + 1) * size]


def _start_engine(model: SupervisedModel, settings: TrainSettings, plan: Plan) -> Any:
    if not settings.use_gpu:
        # Gloo does what is needed; the shared-memory kernel would be compiled in every process first.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = sum(parameter.numel() for parameter in trainable)
    config = {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_steps,
        "zero_optimization": {"stage": settings.zero_stage, "overlap_comm": False, "reduce_bucket_size": max(size, 1)},
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": 2**31,
    }
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def _save(engine: Any, folder: Path, cursor: Cursor) -> None:
    engine.save_checkpoint(
        str(folder), tag=_TAG, client_state={"cursor": asdict(cursor)}, exclude_frozen_parameters=True
    )


def _load(engine: Any, folder: Path) -> Cursor:
    path, client_state = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    if path is None:
        raise MosaicError(f"no checkpoint of this run could be read from {folder}")
    return Cursor(**client_state["cursor"])


def _all_sum(values: Sequence[float], device: torch.device) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]
