"""LoKr of LyCORIS: a change of a weight that is a Kronecker product, W' = W + scale (w1 (x) w2), added where the model is loaded.

w1 and w2 come whole, or as products w1_a w1_b and w2_a w2_b of one rank. scale = alpha / rank; 1 where both are whole: LyCORIS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Kronecker:
    """Rows `rows` of scale * kron(w1, w2), which is made only when it is added: it is as large as the layer's weight."""

    w1: Tensor
    w2: Tensor
    scale: float
    rows: slice

    @property
    def shape(self) -> tuple[int, int]:
        height = self.w1.shape[0] * self.w2.shape[0]
        return len(range(*self.rows.indices(height))), self.w1.shape[1] * self.w2.shape[1]

    def any(self) -> bool:
        return self.scale != 0 and bool(self.w1.any()) and bool(self.w2.any())

    def dense(self) -> Tensor:
        """[out, in] in float32."""
        return self.scale * torch.kron(self.w1.float(), self.w2.float())[self.rows]


def factors(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float] | None:
    """w1, w2 and their scale, from the parts of one layer; None where they are not the factors of a matrix."""
    whole: list[Tensor] = []
    rank = None
    for name in ("w1", "w2"):
        halves = [parts.get(f"{name}_a"), parts.get(f"{name}_b")]
        a, b = halves
        if (name in parts) == (a is not None and b is not None) or (a is None) != (b is None):
            return None
        if a is not None and b is not None:
            if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or not a.shape[1]:
                return None
            rank = a.shape[1]
        factor = parts[name] if a is None or b is None else a.float() @ b.float()
        while factor.ndim > 2 and factor.shape[-1] == 1:  # of a 1x1 convolution
            factor = factor[..., 0]
        if factor.ndim != 2:
            return None
        whole.append(factor)
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        return None
    scale = 1.0 if rank is None or alpha is None else float(alpha) / rank
    return whole[0], whole[1], scale
