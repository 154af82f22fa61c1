"""FreePCA: PCA over time in each native window; components on which local and global attention agree come from the global.

Paper: FreePCA, arXiv 2505.01172 (CVPR 2025); code: GitHub JosephTiTan/FreePCA.

Legend: T latent frames, T0 of them in training, W window, S stride, w = 0, 1, .. the window counted from the clip's start,
M = tokens of a frame x channels, k components.

    G = full attention with logits times sqrt(ln T / ln T0)                                                     [code]
    L_w = attention of window [w S, w S + W) over itself;  the output is the mean over windows             [code]
    w = 0: L_0.   w > 0, with L = L_w and G [M, W], the global branch cut to the window:                           [code]
        Lc = L - mean_t L,  Gc = G - mean_t G;  E = eigenvectors of Gc^T Gc [W, W]
        s_i = cosine of column i of Lc E and of Gc E;  top = the k = min(w, components) largest s_i
        F = (Gc E_top, Lc E_rest) E^T + mean_t G          the mean is always G's, even with components = 0
    in the steps whose timestep t, of 0 .. 1000, is above `until`; after them the mean over windows of L_w.        [code]
Noise: in blocks of W frames, block <- block - mean_t(block) + mean_t(first block): they share a mean.               [code]

Constants: components 3 [code] · until 250 [code] · W = T0 [code: 16] · S = round(W / 4) [derived: the code's 4 of 16].
`entropy = false` does not scale the logits, `noise = false` leaves the noise.

The timestep is the model's input. On the code's schedule, 981, 961 .. 1, t > 250 are 37 of 50 steps; a flow shift toward high
noise makes them more: 46 of 50 at shift 3, 49 at shift 8. `split`, in place of `until`, is a fraction of the steps, rounded
down, whatever their timesteps: 0.75 are 37 of 50, as in the authors' own runs [derived].

Computed exactly without an [M, W] projection: F = L + A (G - L) with A = E_top E_top^T + 11^T / W, a [W, W] matrix, and E
and s come from Gc^T Gc, Lc^T Lc and Lc^T Gc, in double precision.

Differs from the reference: where (T - W) is not a multiple of S, a further window [T - W, T) ends the clip (the code
leaves those frames 0) · each sample of the batch selects its own components (the code pools the batch; guidance's two calls
are separate there too) · the constant vector, an eigenvector of 0, is never a component; components without energy come
last · a shorter last block of noise is cut from one of W frames, so that it stays N(0, 1) [derived].

As frame plans: the branch "local" has a pass (or those of the stack's plan) for each window. A pair of frames is computed once
for all windows that contain it, where the attention backend returns the log-sum-exp, else once for each.

Caveats: which steps are fused depends on the model's timesteps, so a plan has both branches in all of them; its cost counts
the global one in 1 - until / 1000 of them, as without a shift. The first S frames are never fused, and windows from 1 on take
their mean from the global branch, so the clip's start is treated differently from its end. The entropy factor counts frames;
counting tokens it would be near 1.06 at 4 times.

Neutral: clips of at most W frames.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator

from longgen.device_costs import costs_on
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry
from longgen.technique import LONGEST, Attend, Fusion, Grid, NoiseTechnique, Step, check_stride

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

UNTIL = 250.0
COLUMNS = 2**17  # values of a frame in double precision at a time
CHANGES = 1.05  # times T frames that windows wait with for their eigenproblems, at most, where several are solved at once
ROUNDING = 1e-6  # of the energy: components below are noise, where products are in single precision


class FreePca(Fusion, NoiseTechnique):
    paper: ClassVar[str] = "FreePCA, arXiv 2505.01172"

    until: float = Field(UNTIL, ge=0, le=1000)
    split: float | None = Field(None, ge=0, le=1)
    components: int = Field(3, ge=0, le=LONGEST)
    entropy: bool = True
    window: int | None = Field(None, ge=2, le=LONGEST)
    stride: int | None = Field(None, ge=1, le=LONGEST)

    @model_validator(mode="after")
    def _one_end(self) -> FreePca:
        if self.split is not None and self.until != UNTIL:
            raise UsageError(f"freepca.until = {self.until:g} and freepca.split = {self.split:g} both set when fusion ends",
                             expected="one of them", hint="leave one out")  # fmt: skip
        return self

    def settled(self, geometry: Geometry) -> FreePca:
        """This technique with `window` and `stride` set, which `fuse` needs. Raises UsageError where they do not fit."""
        window = self.window or geometry.native_lat
        stride = self.stride or max(1, round(window / 4))
        check_stride("freepca", stride, window)
        if self.components > window - 1:
            raise UsageError(f"freepca.components = {self.components}, but {window} latent frames have {window - 1} components "
                             "besides their mean", expected=f"0 to {window - 1}",
                             hint=f"--set freepca.components={window - 1} or fewer")  # fmt: skip
        return self.model_copy(update={"window": window, "stride": stride})

    def starts(self, frames_lat: int) -> list[int]:
        """The first frames of the windows. Needs `window` and `stride`."""
        assert self.window is not None
        assert self.stride is not None
        return sorted({*range(0, frames_lat - self.window, self.stride), frames_lat - self.window})

    def branches(self, plan: FramePlan, geometry: Geometry, step: int, steps: int) -> dict[str, FramePlan]:
        """ "global" and "local", whose passes are the windows; after `split` "local" alone, their mean."""
        settled, frames_lat = self.settled(geometry), geometry.frames_lat
        window = settled.window
        assert window is not None
        if frames_lat <= window:
            return {"global": plan}
        frame = np.arange(frames_lat)
        inside = [(frame >= start) & (frame < start + window) for start in settled.starts(frames_lat)]
        fused = step < self.split_step(steps)
        share = np.ones(frames_lat) if fused else 1 / np.sum(inside, axis=0)
        passes = (replace(p, visible=p.visible & frames[:, None] & frames, weight=p.weight * share * frames)
                  for frames in inside for p in plan.passes)  # fmt: skip
        local = replace(plan, passes=tuple(passes))
        if not fused:
            return {"local": local}
        scale = math.sqrt(math.log(frames_lat) / math.log(geometry.native_lat)) if self.entropy and geometry.ratio > 1 else 1.0
        return {"global": replace(plan, logit_scale=plan.logit_scale * scale), "local": local}

    def split_step(self, steps: int) -> int:
        return steps if self.split is None else math.floor(self.split * steps + 1e-9)  # 0.29 of 100 is 29

    def fuse(self, attend: Attend, step: Step, grid: Grid) -> Tensor:
        """The mean of the fused windows [B, N, C], one window after the other; from `until` on, the mean of the local ones."""
        from longgen.device_tables import on_device

        frames_lat, tokens, window = grid[0], grid[1] * grid[2], self.window
        assert window is not None
        global_ = attend("global") if self.split is not None or step.timesteps[step.index] > self.until else None
        if global_ is not None and costs_on(global_.device.type).batched:
            return self.fuse_at_once(attend, global_, grid)
        starts, count, fused = self.starts(frames_lat), np.zeros(frames_lat), None
        for position, local in attend.apart("local", len(starts)):
            start = starts[position]
            rows = slice(start * tokens, (start + window) * tokens)
            if fused is None:
                fused = local.new_zeros(len(local), frames_lat * tokens, local.shape[2])
            count[start : start + window] += 1
            fused[:, rows] += local
            if not position or global_ is None:
                continue
            for sample in range(len(fused)):
                local_mw, global_mw = (x.reshape(window, -1) for x in (local[sample], global_[sample, rows]))
                matrix = mixing(covariance(local_mw, global_mw), min(position, self.components)).to(local_mw)
                change = matrix @ (global_mw - local_mw)
                fused[sample, rows] += change.view(-1, fused.shape[2])
        assert fused is not None
        windows_of = on_device(count, fused.device, fused.dtype)
        return fused.unflatten(1, (frames_lat, -1)).div_(windows_of[:, None, None]).flatten(1, 2)

    def fuse_at_once(self, attend: Attend, global_: Tensor, grid: Grid) -> Tensor:
        """`fuse` with one eigenproblem for several windows, for which alone the host waits; `global_` [B, N, C].

        With D = G - L a window but the first is G + (A - 1) D, so that all of G is taken at once and a window adds one product.
        Covariances are products in single precision over the channels of a token, of what differs from the clip's mean, summed in
        double precision over tokens: their error is below 1e-6 of the energy, where the rounding of bfloat16 changes that by more.
        """
        import torch

        from longgen.device_tables import on_device

        frames_lat, window, starts = grid[0], self.window, self.starts(grid[0])
        assert window is not None
        frames = global_.unflatten(1, (frames_lat, -1))  # [B, T, n, C]
        windows, count = [slice(start, start + window) for start in starts], np.zeros(frames_lat)
        for rows in windows[1:]:
            count[rows] += 1
        fused = frames * on_device(count, frames.device, frames.dtype)[:, None, None]
        count[windows[0]] += 1
        mean, at_once = frames.mean(dim=1, dtype=torch.float32), max(1, int(CHANGES * frames_lat / window))
        products = mean.new_empty(at_once, mean.shape[0] * mean.shape[1], 2 * window, 2 * window)
        changes: dict[int, Tensor] = {}
        for done, (position, local) in enumerate(attend.apart("local", len(starts)), start=1):
            rows, by_frame = windows[position], local.unflatten(1, (window, -1))
            if position:
                products_of_frames(by_frame, frames[:, rows], mean, out=products[len(changes)])
                changes[position] = torch.sub(frames[:, rows], by_frame, out=by_frame)
            else:
                fused[:, rows].add_(by_frame)
            del local, by_frame
            if changes and (len(changes) == at_once or done == len(starts)):
                components = tuple(min(position, self.components) for position in changes)
                matrices = mixing_at_once(covariances(products[: len(changes)], len(fused)), components).to(fused)
                for (position, change), matrix in zip(changes.items(), matrices.unbind(), strict=True):
                    fused[:, windows[position]].flatten(2).baddbmm_(matrix, change.flatten(2))
                del change
                changes.clear()
        return fused.div_(on_device(count, fused.device, fused.dtype)[:, None, None]).flatten(1, 2)

    def share(self, branch: str) -> float:
        return 1 - self.until / 1000 if branch == "global" and self.split is None else 1.0

    def flops(self, grid: Grid, channels: int) -> int:
        """A covariance and a matrix product for each window but the first, in floating-point operations."""
        assert self.window is not None
        return (len(self.starts(grid[0])) - 1) * 10 * self.window**2 * grid[1] * grid[2] * channels

    def check_noise(self, geometry: Geometry) -> None:
        self.settled(geometry)

    def mix(self, noise: Tensor, geometry: Geometry, generator: Generator) -> Tensor:
        import torch  # lazy: plans need no torch

        window = self.settled(geometry).window
        assert window is not None
        batch, channels, frames_lat, *cells = noise.shape
        if frames_lat <= max(window, geometry.native_lat):
            return noise
        shape = (batch, channels, -frames_lat % window, *cells)
        rest = torch.randn(shape, generator=generator, device=generator.device, dtype=noise.dtype).to(noise.device)
        blocks = torch.cat([noise, rest], dim=2).unflatten(2, (-1, window))
        mean = blocks.mean(dim=3, keepdim=True)
        mixed = (blocks - mean + mean[:, :, :1]).flatten(2, 3)
        return torch.cat([noise[:, :, :window], mixed[:, :, window:frames_lat]], dim=2)


def covariance(local: Tensor, global_: Tensor) -> Tensor:
    """Joint covariance X X^T [2 W, 2 W] of X = (local; global_), each [W, M] centred over its W frames: float64."""
    import torch

    total = local.new_zeros(2 * len(local), 2 * len(local), dtype=torch.float64)
    buffer = local.new_empty(2, *local[:, :COLUMNS].shape, dtype=torch.float64)  # reused: allocating takes longer than filling
    for columns in zip(local.split(COLUMNS, dim=1), global_.split(COLUMNS, dim=1), strict=True):
        both = buffer[..., : columns[0].shape[1]]
        for values, target in zip(columns, both, strict=True):
            target.copy_(values)
        both -= both.mean(dim=1, keepdim=True)
        total.addmm_(both.flatten(0, 1), both.flatten(0, 1).T)
    return total


def products_of_frames(local: Tensor, global_: Tensor, mean: Tensor, out: Tensor) -> None:
    """Products of frames [B n, 2 W, 2 W] for each token, of local and global frames [B, W, n, C] less `mean` [B, n, C]."""
    import torch

    batch, window, tokens, channels = local.shape
    both = torch.empty(2, window, batch, tokens, channels, dtype=mean.dtype, device=mean.device)
    for values, target in zip((local, global_), both, strict=True):
        torch.sub(values.transpose(0, 1), mean, out=target)
    frames = both.view(2 * window, batch * tokens, channels).transpose(0, 1)
    torch.bmm(frames, frames.mT, out=out)


def covariances(products: Tensor, batch: int) -> Tensor:
    """The sum [P, B, 2 W, 2 W] over tokens of `products` [P, B n, 2 W, 2 W]: float64. Not centred.

    Where the device has no double precision, which has no eigenproblems either, a sum in single, on the CPU.
    """
    from longgen.device_tables import double_on

    total = products.unflatten(1, (batch, -1)).sum(dim=2, dtype=double_on(products.device))
    return total if double_on(products.device).itemsize == 8 else total.cpu().double()


def mixing_at_once(covariances: Tensor, components: tuple[int, ...]) -> Tensor:
    """A - 1 [P, B, W, W], A as of `mixing`, for P windows with joint covariances [P, B, 2 W, 2 W] and their numbers `components`.

    The covariances need not be centred: they are in a basis without the constant vector.
    """
    import torch

    from longgen.device_tables import on_device

    device, double, size = covariances.device, covariances.dtype, covariances.shape[2] // 2 - 1
    (basis, both_bases, rest), windows = _centred(size + 1, device, double), covariances.flatten(0, 1)
    joint = both_bases.T @ (windows @ both_bases)  # [P B, 2 (W - 1), 2 (W - 1)]
    vectors = torch.linalg.eigh(joint[:, size:, size:]).eigenvectors
    along = (joint.view(len(joint), -1, size) @ vectors).view(-1, 2, size, 2, size)  # local and global rows, and columns
    products = along.mul_(vectors[:, None, :, None]).sum(dim=2)  # [P B, 2, 2, W - 1]
    energy = products.diagonal(dim1=1, dim2=2)  # [P B, W - 1, 2]
    noise = (energy <= ROUNDING * energy.sum(dim=1, keepdim=True)).any(dim=2)
    cosine = (products[:, 0, 1] * energy.prod(dim=2).rsqrt()).masked_fill_(noise, -1.0)
    most, batch = max(components), covariances.shape[1]
    top = vectors.gather(2, cosine.topk(most).indices[:, None].expand(-1, size, -1))
    if min(components) < most:
        kept = np.arange(most) < np.repeat(components, batch)[:, None]
        top = top * on_device(kept, device, double)[:, None]
    top = basis @ top
    return torch.baddbmm(rest, top, top.mT).unflatten(0, (-1, batch))


@lru_cache(maxsize=16)
def _centred(window: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A basis [W, W - 1] of the complement of the constant vector, it for local and global frames, and 11^T / W - 1 [W, W]."""
    import torch

    columns = torch.cat([torch.ones(window, 1, dtype=torch.float64), torch.eye(window, dtype=torch.float64)[:, 1:]], dim=1)
    basis, rest = torch.linalg.qr(columns).Q[:, 1:], 1 / window - torch.eye(window, dtype=torch.float64)
    basis, both, rest = (x.to(dtype).to(device) for x in (basis, torch.block_diag(basis, basis), rest))
    return basis, both, rest


def mixing(covariance: Tensor, components: int) -> Tensor:
    """A = E_top E_top^T + 11^T / W, [W, W], from the joint covariance [2 W, 2 W] of local and global frames."""
    import torch

    window = len(covariance) // 2
    local, cross, global_ = covariance[:window, :window], covariance[:window, window:], covariance[window:, window:]
    columns = torch.cat([covariance.new_ones(window, 1), torch.eye(window, dtype=covariance.dtype)[:, 1:]], dim=1)
    centred = torch.linalg.qr(columns).Q[:, 1:]  # a basis of the complement of the constant vector
    vectors = centred @ torch.linalg.eigh(centred.T @ global_ @ centred).eigenvectors
    agreement, of_local, of_global = ((vectors * (matrix @ vectors)).sum(dim=0) for matrix in (cross, local, global_))
    real = (of_local > 1e-13 * local.trace()) & (of_global > 1e-13 * global_.trace())  # above rounding
    cosine = torch.where(real, agreement / (of_local * of_global).clamp_min(1e-300).sqrt(), -1.0)
    top = vectors[:, cosine.topk(components).indices]
    return top @ top.T + 1 / window
