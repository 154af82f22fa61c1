"""VMCR: gradient guidance of the latent after each step, toward motion that is constant from frame to frame.

Paper: GLC-Diffusion, arXiv 2501.05484, its Video Motion Consistency Refinement; no code is released.

Legend: B batch, C channels, T latent frames, h x w latent cells, i frame; x0 the clean latent that the step predicted, z the
latent after the step, d_i = x0_(i+1) - x0_i the motion, F the FFT over h and w of every channel.

    pixel     = sum over i of (1 - cos(d_i, d_(i+1))) + lambda_mse ||d_i - d_(i+1)||^2                      [paper]
    frequency = sum over i of | |F d_i| - |F d_(i+1)| |_1 + lambda_phase | angle F d_i - angle F d_(i+1) |_1    [paper]
    z <- z - omega d (pixel + lambda_f frequency) / d z                                                     [paper]

`omega` = 2e-5, `lambda_mse` = 0.001, `lambda_f` = 0.2, `lambda_phase` = 1 [paper]. The cosine is over all elements of a frame,
the norms are sums over all elements or bins and F is not normalised, so phases differ by -pi .. pi [derived: not stated].

d / d z = dx0_dx d / d x0, the model's output held constant [derived]: exact for that x0, without backpropagation through the
model. The loss is a sum over i, so its gradient is computed in blocks of frames, in single precision or better.

A motion, or a bin of one, no larger than the rounding error of x0 has no direction or phase: the cosine and the phase terms
omit it [derived]. The gradient there grows as 1 / |d| and would amplify rounding errors.

Caveats: the loss is a sum, not a mean. An element changes by about 1.7 omega lambda_f sqrt(h w) through the amplitudes, however
small the motion (0.0006 at 60 x 104), and by 7 omega lambda_f / rms(d) through the phases, both measured on white noise: in a
clip that is nearly still (rms(d) < 0.005) that exceeds its motion. The absolute values are not smooth: nearly constant motion
oscillates. Motion across a cut between two shots is pulled toward the motion around it as well.

Neutral (zeros): `omega = 0`, fewer than three frames, and still clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from longgen.technique import Refine, Step

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16  # pairs of motions whose gradient is computed at a time
ROUNDING = 16  # units in the last place of a frame's norm, below which motion counts as zero


class Vmcr(Refine):
    paper: ClassVar[str] = "GLC-Diffusion, arXiv 2501.05484"

    omega: float = Field(2e-5, ge=0, le=1)
    lambda_mse: float = Field(0.001, ge=0, le=1000)
    lambda_f: float = Field(0.2, ge=0, le=1000)
    lambda_phase: float = Field(1.0, ge=0, le=1000)

    def change(self, x0: Tensor, dx0_dx: float, step: Step) -> Tensor:
        """-omega dx0_dx d loss / d x0, [B, C, T, h, w], in single precision or that of `x0`."""
        import torch  # lazy: plans need no torch

        x0 = x0.detach().to(torch.promote_types(x0.dtype, torch.float32))
        gradient = torch.zeros_like(x0)
        for first in range(0, x0.shape[2] - 2 if self.omega else 0, BLOCK):
            frames = slice(first, first + BLOCK + 2)  # pair i is of frames i, i + 1 and i + 2
            with torch.enable_grad():  # the pipelines switch it off
                part = x0[:, :, frames].clone().requires_grad_()
                gradient[:, :, frames] += torch.autograd.grad(self.loss(part), part)[0]
        return gradient.mul_(-self.omega * dx0_dx) if self.omega else gradient  # times zero could be minus zero

    def loss(self, x0: Tensor) -> Tensor:
        """pixel + lambda_f frequency of `x0` [B, C, T, h, w], a scalar."""
        import torch

        motion = x0.diff(dim=2)
        frame = (1, 3, 4)
        squares = motion.square().sum(frame)
        moves = squares > rounding(x0, frame).square()
        scale = torch.where(moves, squares, 1).rsqrt()  # not sqrt(0), whose gradient is infinite
        cosine = (motion[:, :, :-1] * motion[:, :, 1:]).sum(frame) * scale[:, :-1] * scale[:, 1:]
        pixel = torch.where(moves[:, :-1] & moves[:, 1:], 1 - cosine, 0).sum() + self.lambda_mse * motion.diff(dim=2).square().sum()

        spectrum = torch.fft.fft2(motion)
        size = spectrum.abs()
        moves = size > rounding(x0, (3, 4))[..., None, None]
        turn = spectrum[:, :, 1:] * spectrum[:, :, :-1].conj()  # its angle is the difference of both, within -pi .. pi
        phase = torch.where(moves[:, :, :-1] & moves[:, :, 1:], turn, 1).angle().abs().sum()
        return pixel + self.lambda_f * (size.diff(dim=2).abs().sum() + self.lambda_phase * phase)


def rounding(x0: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The most that rounding of `x0` [B, C, T, h, w] can make of the norm, over `dims`, of each of its T - 1 motions."""
    import torch

    size = x0.detach().square().sum(dims).sqrt()
    return ROUNDING * torch.finfo(x0.dtype).eps * (size[..., 1:] + size[..., :-1])
