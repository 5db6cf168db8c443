"""The loop without Ray: two workers, one worker and plain PyTorch without DeepSpeed arrive at the same adapter."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mosaic.errors import BadRequest
from mosaic.training import TrainSettings, train_plan
from mosaic.training.job import Job
from mosaic.training.loop import SupervisedModel, build_model, learning_rate
from tests.local import free_ports

SCRIPT = Path(__file__).parent / "torchrun_loop.py"

VALUES = {
    "model": "tiny",
    "train_table": "main.docs.train@0",
    "global_batch_size": 6,
    "epochs": 2,
    "learning_rate": 0.01,
    "dtype": "float32",
    "max_grad_norm": 0.5,
    "weight_decay": 0.01,
    "lora": {"rank": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
}


def start(tiny_model: Path, output: Path, **changes: Any) -> "subprocess.Popen[str]":
    values = VALUES | changes
    output.mkdir()
    environment = ["env", "DS_ACCELERATOR=cpu"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={values['num_workers']}"]
    if values["num_workers"] == 1:  # what torchrun would say, without its own seconds
        (port,) = free_ports(1)
        environment += ["RANK=0", "LOCAL_RANK=0", "WORLD_SIZE=1", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}"]
        launcher = []
    command = [*environment, sys.executable, *launcher, str(SCRIPT), str(tiny_model), str(output), json.dumps(values)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def oracle(tiny_model: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The mean over a step's supervised tokens, row by row, unpadded; AdamW; nothing else."""
    rows = runpy.run_path(str(SCRIPT))["rows"]
    settings = TrainSettings.parse(VALUES | {"num_workers": 1})
    plan = train_plan(settings, len(rows()))
    model = build_model(Job(settings, str(tiny_model), plan, None))
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), weight_decay=settings.weight_decay)
    losses = []
    for step in range(plan.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step, plan.steps)
        total, tokens = torch.zeros(()), 0
        for number in plan.step_rows(step):
            row = rows()[number]
            scores = model(input_ids=torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
            learned = torch.tensor(row.supervised[1:])
            total = total - scores[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])][learned].sum()
            tokens += int(learned.sum())
        optimizer.zero_grad()
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(trainable.values(), settings.max_grad_norm)
        optimizer.step()
        losses.append(float(total.detach()) / tokens)
    return losses, {name: value.detach() for name, value in trainable.items()}


@pytest.mark.long
def test_workers_micro_batches_and_deepspeed_do_not_change_the_result(tiny_model: Path, tmp_path: Path) -> None:
    losses, expected = oracle(tiny_model)
    assert losses[-1] < losses[0]
    layouts: dict[str, dict[str, Any]] = {
        "one": {"num_workers": 1, "micro_batch_size": 4, "zero_stage": 1},
        "two": {"num_workers": 2, "micro_batch_size": 2, "zero_stage": 2},
    }
    started = {name: start(tiny_model, tmp_path / name, **changes) for name, changes in layouts.items()}
    for name, process in started.items():
        _, complaint = process.communicate(timeout=150)
        assert process.returncode == 0, complaint[-3000:]
        reports = json.loads((tmp_path / name / "reports.json").read_text())
        weights = load_file(tmp_path / name / "weights.safetensors")
        assert [report[0] for report in reports] == pytest.approx(losses, rel=1e-4)
        assert weights.keys() == expected.keys()
        for key, value in weights.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    settings = TrainSettings.parse(VALUES | {"warmup_ratio": 0.2, "learning_rate": 1.0})
    rates = [learning_rate(settings, step, 20) for step in range(20)]
    assert max(rates) == rates[4] == 1.0
    assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[0] > 0 and 0 < rates[-1] < 0.05


def test_layers_that_are_not_there_are_named(tiny_model: Path) -> None:
    for lora, message in (
        ({"target_modules": ["query"]}, r"no linear layer \['query'\]; there are .*'q_proj'"),
        ({"last_layers": 3}, "last_layers = 3, but tiny has 2 blocks"),
    ):
        settings = TrainSettings.parse(VALUES | {"lora": lora})
        with pytest.raises(BadRequest, match=message):
            build_model(Job(settings, str(tiny_model), train_plan(settings, 5), None))


def test_only_the_last_blocks_are_adapted(tiny_model: Path) -> None:
    settings = TrainSettings.parse(VALUES | {"lora": {"last_layers": 1}})
    model = SupervisedModel(build_model(Job(settings, str(tiny_model), train_plan(settings, 5), None)))
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    assert names and all("layers.1." in name for name in names)
