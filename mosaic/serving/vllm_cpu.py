"""vLLM on the CPU, as fast as it goes: the engine and its one worker in one process, LoRA by groups of tokens.

vLLM 0.29 runs a single CPU worker apart from its scheduler, and the two poll shared memory, so that on a machine of two
cores one core computes and the other one spins. Here the worker computes in the scheduler's process, on all cores.

Its LoRA on the CPU copies the adapter's weights once per token, and treats a token without adapter as if it had the one
in the last slot. Here the tokens of one adapter are multiplied together, and the others are left alone.
benchmarks/engine_cpu.py measures both against vLLM as it comes.
"""

from typing import Any

import torch
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.engine import utils as processes
from vllm.v1.worker.cpu_worker import CPUWorker

from mosaic.serving.engine_process import EngineProcesses


class CpuEngine(VLLMEngine):
    """Ray's vLLM engine with the worker in the scheduler's process, and that forked (`engine_process.py`);
    `ray.serve.llm` itself allows only the other way."""

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        if vllm_engine_config.parallel_config.world_size == 1:
            vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        processes.get_mp_context = EngineProcesses
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


class CpuWorker(CPUWorker):
    """vLLM's CPU worker with `GroupedLora`; named as the engine's `worker_cls`."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        current_platform.get_punica_wrapper = lambda: f"{__name__}.GroupedLora"
        super().load_model(*args, **kwargs)


class GroupedLora(PunicaWrapperCPU):
    """y += x A^T B^T scale for the tokens of each adapter at once; tokens without adapter stay as they are.

    Layers that an adapter leaves alone cost a look at their weights, no multiplication.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adapters: list[int | None] = []
        self._groups: list[tuple[int, torch.Tensor | None]] = []
        self._output_groups: list[tuple[int, torch.Tensor | None]] = []
        self._adapted: set[tuple[int, int]] = set()

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        if lora_index_to_id != self._adapters:
            self._adapters, self._adapted = list(lora_index_to_id), set()
        self._groups = _by_slot(self.token_lora_indices)
        self._output_groups = _by_slot(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """As vLLM calls it: `lora_a_stacked[i]` is [slots, 1, rank, inputs], `lora_b_stacked[i]` [slots, 1, outputs,
        rank]."""
        self._add(self._groups, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """The same for the rows of the batch that a token is drawn for."""
        self._add(self._output_groups, y, x, (lora_a_stacked,), (lora_b_stacked,), scale, (y.shape[-1],))

    def _add(
        self,
        groups: list[tuple[int, torch.Tensor | None]],
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: tuple[torch.Tensor, ...],
        lora_b: tuple[torch.Tensor, ...],
        scale: float,
        widths: tuple[int, ...],
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in groups:
            inputs, start = None, 0
            for a, b, width in zip(lora_a, lora_b, widths, strict=True):
                if self._is_adapted(b, slot):
                    if inputs is None:
                        inputs = x if rows is None else x[rows]
                    low = torch.nn.functional.linear(inputs, a[slot, 0]) * scale
                    added = torch.nn.functional.linear(low, b[slot, 0, :width]).to(y.dtype)
                    if rows is None:
                        y[:, start : start + width] += added
                    else:
                        y[:, start : start + width].index_add_(0, rows, added)
                start += width

    def _is_adapted(self, b: torch.Tensor, slot: int) -> bool:
        # Only a yes is remembered: an adapter may come into a slot under the number of the one before.
        key = (b.data_ptr(), slot)
        if key not in self._adapted and bool(b[slot].any()):
            self._adapted.add(key)
        return key in self._adapted


def _by_slot(slots: torch.Tensor) -> list[tuple[int, torch.Tensor | None]]:
    """(slot, places of its rows, or None where all rows are its) of the adapters in a batch; -1 is no adapter."""
    used = [slot for slot in slots.unique().tolist() if slot >= 0]
    if len(used) == 1 and bool((slots == used[0]).all()):
        return [(used[0], None)]
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in used]
