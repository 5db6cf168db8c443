"""Linear layers in float32 on the CPU with their weights laid out once for oneDNN, as compiled models have them.

torch itself multiplies float32 through MKL, which leaves half of what other processors than Intel's can do: on an AMD
EPYC, one thread, 113 GFLOP/s against 260 (384 x 1536, 128 rows). What comes out differs by rounding alone.
"""

import torch

_FEWEST_OUTPUTS = 64
"""Heads of a few labels are faster as they are."""


class PackedLinear(torch.nn.Module):
    """y = x W^T + b for x of [..., inputs], without gradients."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> torch.Tensor:
        """As it was, for models that look at their layers' type; made anew each time."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return y


def pack_linears(model: torch.nn.Module) -> None:
    """Replace the model's float32 linear layers, in place."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is torch.nn.Linear and _is_worth_it(layer):
                setattr(module, name, PackedLinear(layer))


def _is_worth_it(layer: torch.nn.Linear) -> bool:
    return bool(layer.weight.dtype == torch.float32 and layer.out_features >= _FEWEST_OUTPUTS)
