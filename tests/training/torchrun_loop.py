"""Run the loop without Ray, as one process of torchrun: torchrun_loop.py MODEL_FOLDER OUTPUT SETTINGS_JSON."""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from mosaic.training import TrainSettings, train_plan
from mosaic.training.feed import Row, local_rows
from mosaic.training.job import Job, StepReport
from mosaic.training.loop import train_loop


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(21):
        length = int(torch.randint(4, 30, (1,), generator=generator))
        ids = torch.randint(3, 200, (length,), generator=generator).tolist()
        learned = int(torch.randint(1, length, (1,), generator=generator))
        made.append(Row(number, ids, [False] * (length - learned) + [True] * learned))
    return made


def main(model_folder: str, output: str, values: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    settings = TrainSettings.parse(json.loads(values))
    plan = train_plan(settings, len(rows()))
    reports: list[StepReport] = []
    outcome = train_loop(
        Job(settings, model_folder, plan, None),
        partial(local_rows, rows(), plan, dist.get_rank()),
        None,
        on_step=reports.append,
        on_checkpoint=lambda step, save: None,
    )
    if dist.get_rank() == 0:
        weights = {name: value.detach() for name, value in outcome.model.named_parameters() if value.requires_grad}
        save_file(weights, Path(output) / "weights.safetensors")
        told = [[report.loss, report.grad_norm, report.learning_rate, report.tokens] for report in reports]
        (Path(output) / "reports.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
