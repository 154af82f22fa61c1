"""FreeSpec: SVD-based fusion, the local attention output with singular values interpolated toward the global output's.

Paper: FreeSpec, arXiv 2605.06509; no code is released, and our copy of the paper lacks its formulas and numbers. What its
prose determines is marked [paper], everything else [derived].

Legend: N tokens, C channels (heads merged), K = min(N, C) singular values, t timestep (1000 .. 0), k rank 1..K.

    F_g = full attention, F_l = attention over the native window                 same q, k, v      [paper]
    F_g = U_g S_g V_g^T,  F_l = U_l S_l V_l^T            rows = tokens, before the output projection [derived]
    p = (t_first - t) / (t_first - t_split)              0 at the first step, 1 at the split       [paper: normalised]
    alpha_(t,k) = alpha * exp(-kappa p) * exp(-beta (k - 1) / K)                                   [paper: exponential]
    s_k = alpha_(t,k) s^g_k + (1 - alpha_(t,k)) s^l_k                                              [paper]
    F_hat = U_l diag(s) V_l^T                            `basis = "global"`: U_g diag(s) V_g^T     [paper]
    lambda_t = lambda_end + (lambda_start - lambda_end) exp(-kappa p)                              [derived]
    F = (1 - lambda_t) F_hat + lambda_t F_g                                                        [paper: a residual]
After the split only the local branch is used [paper].

Constants, all [derived]: split 0.5 of the steps, kappa 3, beta 2, alpha 1, lambda 0.2 to 0.05.

The paper's ablations by --set. Without residual, lambda_start=0 lambda_end=0: GB basis=global kappa=0 beta=0 alpha=0.5 ·
LB + fixed fusion kappa=0 beta=0 alpha=0.5 · LB + RA kappa=0 · LB + TA beta=0 · LB + RA + TA nothing more. With it:
F-GR lambda_start=0.1 lambda_end=0.1 · T-GR the defaults.

Computed exactly without an SVD of an N x C matrix: F_hat = F_l + F_l V_l diag(s / s_l - 1) V_l^T, and V_l, s_l, s_g come
from the eigenvectors and -values of the C x C Gram matrices, accumulated in double precision (in single, singular
values below 3e-4 of the largest are lost). Where s_l is at rounding level the ratio is 1.

On an accelerator F is in half precision, whose products are exact in single: PARTIAL rows are summed in single precision
and these sums in double, so that no Gram matrix waits for a card's double precision. With u = 2^-24 an entry changes by at
most u PARTIAL of its sum of |f_i f_j|, and typically by u PARTIAL / sqrt(3 N), 2e-7 at 126,000 tokens; in bf16 only s_l^2
above 6e-5 of their mean are changed at all. Measured as a share of what rounding the output to bf16 changes, C = 256, rows
added one after the other, as no kernel is worse: 0.1 % on a spectrum over three decades, 2 % with a mean of ten times the
rest, 23 % with one of thirty. Eigenproblems in single precision would change 0.5, 19 and 128 %: they stay in double. Both
wait for the device, and nothing else here does.

Neutral: alpha = 0 and lambda = 0 give the local branch exactly; at native length both branches are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from longgen.device_costs import costs_on
from longgen.frameplan import FramePlan, Geometry, visible_from_ranges
from longgen.frames import local_windows
from longgen.technique import LONGEST, Fusion, Grid, Step

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8192  # of F in double precision at a time
PARTIAL = 2048  # rows of F in half precision that are summed in single
PARTIALS = 16  # sums at a time, and no more than half of what F holds


class FreeSpec(Fusion):
    paper: ClassVar[str] = "FreeSpec, arXiv 2605.06509"

    split: float = Field(0.5, ge=0, le=1)
    kappa: float = Field(3.0, ge=0)
    beta: float = Field(2.0, ge=0)
    alpha: float = Field(1.0, ge=0, le=1)
    lambda_start: float = Field(0.2, ge=0, le=1)
    lambda_end: float = Field(0.05, ge=0, le=1)
    basis: Literal["local", "global"] = "local"
    window: int | None = Field(None, ge=1, le=LONGEST)
    edge: Literal["shift", "clip"] = "shift"

    def branches(self, plan: FramePlan, geometry: Geometry, step: int, steps: int) -> dict[str, FramePlan]:
        """The branches of step `step` of `steps`: both before the split, the local one after it."""
        ranges = local_windows(geometry.frames_lat, self.window or geometry.native_lat, self.edge)
        local = plan.see_only(visible_from_ranges(ranges))
        inert = self.alpha == self.lambda_start == self.lambda_end == 0 and self.basis == "local"
        if step >= self.split_step(steps) or inert:
            return {"local": local}
        return {"global": plan, "local": local}

    def split_step(self, steps: int) -> int:
        return round(self.split * steps)

    def flops(self, grid: Grid, channels: int) -> int:
        """Two Gram matrices, two eigenproblems (about 10 C^3 each) and one product, in floating-point operations."""
        return 6 * math.prod(grid) * channels**2 + 20 * channels**3

    def double_flops(self, grid: Grid, channels: int) -> int:
        """Those of the eigenproblems."""
        return 20 * channels**3

    def fade(self, step: Step) -> float:
        """exp(-kappa p): 1 at the first step, exp(-kappa) at the split."""
        first = step.timesteps[0]
        split_step = self.split_step(len(step.timesteps))
        split = step.timesteps[split_step] if split_step < len(step.timesteps) else 0.0
        return math.exp(-self.kappa * (first - step.timesteps[step.index]) / (first - split))

    def fuse(self, attend: Callable[[str], Tensor], step: Step, grid: Grid) -> Tensor:
        """Fuses the branches "global" and "local", each [B, N, C], into [B, N, C] of the same dtype."""
        fade, global_, local = self.fade(step), attend("global"), attend("local")
        residual = self.lambda_end + (self.lambda_start - self.lambda_end) * fade
        fused = reconstruct(global_, local, self.alpha * fade, self.beta, self.basis)
        return fused if residual == 0 else fused.lerp(global_, residual)


def gram(features: Tensor) -> Tensor:
    """The Gram matrix F^T F of F [B, N, C] in double precision, [B, C, C]; some rows at a time.

    Where the device has no double precision, its sum in single, on the CPU.
    """
    import torch

    from longgen.device_tables import double_on

    batch, tokens, channels = features.shape
    total = features.new_zeros(batch, channels, channels, dtype=double_on(features.device))
    if costs_on(features.device.type).batched and features.dtype.itemsize == 2:
        at_a_time = min(PARTIALS, max(1, tokens // (4 * channels)))
        for rows in features.split(PARTIAL * at_a_time, dim=1):
            lacking = -rows.shape[1] % PARTIAL
            single = torch.nn.functional.pad(rows.float(), (0, 0, 0, lacking)) if lacking else rows.float()
            parts = single.unflatten(1, (-1, PARTIAL))
            total += (parts.mT @ parts).sum(dim=1, dtype=total.dtype)
    else:
        for rows in features.split(ROWS, dim=1):
            rows = rows.to(total.dtype)
            total.baddbmm_(rows.mT, rows)
    return total if total.dtype == torch.float64 else total.cpu().double()


def reconstruct(global_: Tensor, local: Tensor, alpha: float, beta: float, basis: str) -> Tensor:
    """U diag(s) V^T with s_k = a_k s^g_k + (1 - a_k) s^l_k, a_k = alpha exp(-beta (k - 1) / K), in `basis`.

    `global_`, `local`: [B, N, C]. Exact up to rounding; with alpha = 0 and the local basis, `local` itself.
    """
    import torch  # lazy: plans need no torch

    if basis == "local" and alpha == 0:
        return local
    base, other = (local, global_) if basis == "local" else (global_, local)
    base_gram, other_gram = gram(base), gram(other)  # before the first wait
    base_values, base_vectors = torch.linalg.eigh(base_gram)
    base_singular = base_values.clamp_min(0).sqrt()  # ascending
    other_singular = torch.linalg.eigvalsh(other_gram).clamp_min(0).sqrt()
    count = min(base.shape[1:])
    rank = torch.arange(base.shape[2] - 1, -1, -1, device=base_gram.device, dtype=base_singular.dtype)  # 0 for the largest
    to_global = alpha * torch.exp(-beta * rank / count)
    global_singular, local_singular = (other_singular, base_singular) if basis == "local" else (base_singular, other_singular)
    target = to_global * global_singular + (1 - to_global) * local_singular
    floor = torch.finfo(base.dtype).eps * base_values.clamp_min(0).mean(dim=1, keepdim=True).sqrt()  # rounding is spread evenly
    ratio = (target / base_singular.clamp_min(1e-300)).masked_fill_(base_singular <= floor, 1.0)
    change = (base_vectors * (ratio - 1).unsqueeze(1)) @ base_vectors.mT  # M - 1: rounding then affects the change only
    return base + base @ change.to(base)
