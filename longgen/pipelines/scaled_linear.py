"""A linear layer whose weight stays in 8 bits, as in ComfyUI's (scaled) fp8 files: w = fp8 * scale, for the one call at hand.

Legend: I input channels, O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dequantized(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`weight` [O, ...] in 8-bit floats times its scale, one or one a row; multiplied in float32 and rounded once."""
    if scale is None:
        return weight.to(dtype)
    whole = weight.to(torch.float32)
    factor = scale.to(device=weight.device, dtype=torch.float32).reshape(-1, *[1] * (weight.ndim - 1))
    return (whole * factor).to(dtype)


class ScaledLinear(torch.nn.Linear):
    """The weight [O, I] is kept as bytes, so that casting the model leaves it alone and its dtype is that of the other weights."""

    def __init__(self, layer: torch.nn.Linear, weight: Tensor, scale: Tensor | None) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.eighths = weight.dtype
        self.weight = torch.nn.Parameter(weight.view(torch.uint8), requires_grad=False)
        self.register_buffer("scale", None if scale is None else scale.to(torch.float32), persistent=False)
        if layer.bias is not None:
            self.bias = torch.nn.Parameter(torch.empty_like(layer.bias), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = dequantized(self.weight.view(self.eighths), self.scale, hidden.dtype)
        return functional.linear(hidden, weight, None if self.bias is None else self.bias.to(hidden.dtype))
