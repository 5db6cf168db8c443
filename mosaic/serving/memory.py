"""What a vLLM engine needs of a node's memory before it starts: weights + KV cache + adapters + the engine itself.

Plain sums over config.json and the headers of safetensors files: nothing is loaded, and no engine is asked.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.errors import BadRequest

GIB = 1024**3
CPU_OVERHEAD = int(1.6 * GIB)
"""Of an engine on the CPU beside weights and cache: two Python processes with torch and vLLM, 1.26 GiB as measured
where two engines share their libraries."""
GPU_OVERHEAD = 2 * GIB
"""Of a worker on a GPU: the CUDA context, activations and graphs."""

_LONGEST_HEADER = 256 * 1024**2
_ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_CAST = ("F64", "F32", "F16", "BF16")
"""Loaded as the engine's own type, whatever they are stored as; all else is quantised and stays."""
_NEVER_QUANTISED = ("embed", "lm_head")
_WIDTHS = {"float32": 4, "float": 4, "float64": 8}
_BATCHED_TOKENS = 8192
"""What a layer that sees a window keeps beside it, by vLLM's largest default batch."""


class Shape(NamedTuple):
    """What decides the size of a model's KV cache and of its adapters."""

    full_layers: int
    """Attention layers that see all that was before."""
    window_layers: int
    """Attention layers that see a window of it."""
    window: int
    kv_heads: int
    head_dim: int
    latent: int
    """Elements that a token keeps in each layer where the heads share one (DeepSeek's MLA), else 0."""
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int


class Need(NamedTuple):
    """Bytes that one worker of an engine takes on its device."""

    weights: int
    kv_cache: int
    adapters: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(self)

    def told(self) -> str:
        """The sum in words: `weights 0.25 + KV cache 1.00 + adapters 0.01 + the engine itself 1.60 = 2.86 GiB`."""
        names = ("weights", "KV cache", "adapters", "the engine itself")
        parts = [f"{name} {size / GIB:.2f}" for name, size in zip(names, self, strict=True) if size]
        return f"{' + '.join(parts)} = {self.total / GIB:.2f} GiB"


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """From config.json; None for a model whose attention it does not describe in the usual words."""
    text = next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), config)
    layers = _first(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = _first(text, "num_attention_heads", "n_head", "n_heads")
    hidden = _first(text, "hidden_size", "n_embd", "d_model")
    if not layers or not heads or not hidden:
        return None
    kinds = text.get("layer_types")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == layers else ["full_attention"] * layers
    window = _first(text, "sliding_window") if text.get("use_sliding_window", True) else None
    if window and "layer_types" not in text:
        kinds = ["sliding_attention"] * layers
    attention = [kind for kind in kinds if "attention" in str(kind) and not str(kind).startswith("linear")]
    sliding = sum(1 for kind in attention if window and str(kind).startswith("sliding"))
    kv_heads = 1 if text.get("multi_query") else _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv")
    latent = (_first(text, "kv_lora_rank") or 0) and text["kv_lora_rank"] + (_first(text, "qk_rope_head_dim") or 0)
    return Shape(
        full_layers=len(attention) - sliding,
        window_layers=sliding,
        window=window or 0,
        kv_heads=kv_heads or heads,
        head_dim=_first(text, "head_dim") or hidden // heads,
        latent=latent,
        layers=layers,
        hidden=hidden,
        heads=heads,
        intermediate=_first(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        vocabulary=_first(text, "vocab_size") or 0,
    )


def element_bytes(dtype: str) -> int:
    """Of one number as the engine keeps it: `bfloat16`, `float32`, ...; of the KV cache also `fp8`, `int8_...`."""
    return 1 if dtype.startswith(("fp8", "int8")) else _WIDTHS.get(dtype, 2)


def kv_cache_bytes(
    shape: Shape, tokens: int, *, dtype: str = "bfloat16", tensor_parallel: int = 1, stages: int = 1, block: int = 16
) -> int:
    """Of one sequence, on one of the workers that share the model: its layers by `stages`, its heads by
    `tensor_parallel`."""
    per_token = shape.latent or 2 * math.ceil(shape.kv_heads / tensor_parallel) * shape.head_dim
    in_window = min(tokens, shape.window - 1 + _BATCHED_TOKENS)
    rows = _whole(tokens, block) * shape.full_layers + _whole(in_window, block) * shape.window_layers
    return math.ceil(rows * per_token * element_bytes(dtype) / stages)


def longest(shape: Shape, room: int, upper: int, **how: Any) -> int:
    """The longest sequence, of at most `upper` tokens, whose KV cache fits into `room` bytes; see `kv_cache_bytes`."""
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        if kv_cache_bytes(shape, middle, **how) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def adapter_bytes(shape: Shape, rank: int, *, tensor_parallel: int = 1) -> int:
    """Of one slot for adapters of a rank, in 16 bits: what vLLM sets aside for every linear layer and the head."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = [(shape.hidden, queries), (shape.hidden, keys), (shape.hidden, keys), (queries, shape.hidden)]
    feed_forward = [(shape.hidden, shape.intermediate)] * 2 + [(shape.intermediate, shape.hidden)]
    per_layer = sum(inputs + outputs / tensor_parallel for inputs, outputs in attention + feed_forward)
    head = shape.hidden + shape.vocabulary / tensor_parallel
    return math.ceil(2 * rank * (shape.layers * per_layer + head))


def weight_bytes(folder: Path, dtype: str = "bfloat16", *, quantise: bool = False) -> int:
    """Of a model's files once an engine has them as `dtype`; tensors that are quantised stay as they are.

    With `quantise` the engine makes the linear layers 8 bits wide as it loads them. Raises BadRequest for a
    safetensors file that is none.
    """
    total = 0
    for file in _weight_files(folder):
        if file.suffix != ".safetensors":
            total += file.stat().st_size
            continue
        for name, tensor in _header(file).items():
            kind, shape = tensor["dtype"], tensor["shape"]
            size = element_bytes(dtype) if kind in _CAST else _ELEMENT.get(kind, 1)
            if quantise and len(shape) > 1 and not any(part in name for part in _NEVER_QUANTISED):
                size = 1
            total += math.prod(shape) * size
    return total


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [folder / name for name in named if (folder / name).is_file()]
    for pattern in ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, file.stat().st_size):
            raise BadRequest(f"{file.name!r} is no safetensors file: a header of {length} bytes", param="model")
        try:
            header: dict[str, Any] = json.loads(opened.read(length))
        except ValueError:
            raise BadRequest(f"{file.name!r} is no safetensors file: its header is no JSON", param="model") from None
    header.pop("__metadata__", None)
    return header


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    return None if found is None or found < 0 else found


def _whole(tokens: int, block: int) -> int:
    return -(-tokens // block) * block
