"""VMCR against the gradient of the equations written out frame by frame, finite differences, and clips that stand still."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longgen import planner, preset
from longgen.backbones.wan import TINY
from longgen.plan import Plan
from longgen.refine import vmcr
from longgen.refine.vmcr import Vmcr
from longgen.technique import Step

STEP = Step(3, (1000.0, 750.0, 500.0, 250.0))
SHAPE = (1, 3, 7, 4, 5)


def video(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def transform(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the DFT of a matrix [h, w], by its sum."""
    angle = {n: 2 * math.pi * torch.outer(torch.arange(n), torch.arange(n)).double() / n for n in x.shape}
    (c1, s1), (c2, s2) = ((angle[n].cos(), -angle[n].sin()) for n in x.shape)
    return c1 @ x @ c2 - s1 @ x @ s2, c1 @ x @ s2 + s1 @ x @ c2


def wrapped(angle: Tensor) -> Tensor:
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))


def written_out(x: Tensor, lambda_mse: float = 0.001, lambda_f: float = 0.2, lambda_phase: float = 1.0) -> Tensor:
    """The loss of `x` [1, C, T, h, w] as the paper has it, in loops."""
    frames = [x[0, :, i] for i in range(x.shape[2])]
    motions = [later - former for former, later in itertools.pairwise(frames)]
    total = torch.zeros((), dtype=x.dtype)
    for one, other in itertools.pairwise(motions):
        a, b = one.flatten(), other.flatten()
        total = total + 1 - torch.dot(a, b) / (torch.linalg.norm(a) * torch.linalg.norm(b))
        total = total + lambda_mse * torch.linalg.norm(a - b) ** 2
        for channel in range(len(one)):
            (re1, im1), (re2, im2) = transform(one[channel]), transform(other[channel])
            total = total + lambda_f * (torch.hypot(re1, im1) - torch.hypot(re2, im2)).abs().sum()
            total = total + lambda_f * lambda_phase * wrapped(torch.atan2(im1, re1) - torch.atan2(im2, re2)).abs().sum()
    return total


def gradient(x: Tensor, **weights: float) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(written_out(x, **weights), x)[0]


WEIGHTS = [{}, {"lambda_mse": 0.5}, {"lambda_f": 0.0}, {"lambda_f": 1.5}, {"lambda_phase": 0.0}, {"lambda_phase": 3.0},
           {"lambda_f": 0.0, "lambda_mse": 0.0}]  # fmt: skip


@pytest.mark.parametrize("slope", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_equals_the_gradient_of_the_loss_written_out(weights: dict[str, float], slope: float) -> None:
    x = video()
    expected = -0.5 * slope * gradient(x, **weights)
    change = Vmcr(omega=0.5, **weights).change(x, slope, STEP)
    error = float((change - expected).abs().max() / expected.abs().max())
    single = Vmcr(omega=0.5, **weights).change(x.float(), slope, STEP)
    loose = float((single - expected).abs().max() / expected.abs().max())
    print(f"{weights} slope {slope}: {error:.1e}, in single precision {loose:.1e}")
    assert error < 1e-13
    assert loose < 1e-4
    assert single.dtype == torch.float32
    if weights:
        assert not torch.allclose(change, Vmcr(omega=0.5).change(x, slope, STEP), rtol=1e-3)


def test_the_value_of_the_loss() -> None:
    x = video()
    assert float(Vmcr().loss(x)) == pytest.approx(float(written_out(x)), rel=1e-13)
    assert float(Vmcr().loss(torch.cat([x, x]))) == pytest.approx(2 * float(written_out(x)), rel=1e-13)


def test_the_defaults_are_the_papers() -> None:
    x = video()
    expected = -2e-5 * gradient(x, lambda_mse=0.001, lambda_f=0.2, lambda_phase=1.0)
    assert (Vmcr().change(x, 1.0, STEP) - expected).abs().max() < 1e-13 * expected.abs().max()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_equals_finite_differences(weights: dict[str, float]) -> None:
    """Along random directions; none of the loss's kinks lies between the two points."""
    x, technique = video(), Vmcr(omega=1.0, **weights)
    change = technique.change(x, 1.0, STEP)
    for seed in range(1, 4):
        way, small = video(seed=seed), 1e-7
        difference = (written_out(x + small * way, **weights) - written_out(x - small * way, **weights)) / (2 * small)
        assert float(-(change * way).sum()) == pytest.approx(float(difference), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    x = video(1, 2, 12, 4, 5)
    monkeypatch.setattr(vmcr, "BLOCK", 100)
    whole = Vmcr().change(x, 1.0, STEP)
    monkeypatch.setattr(vmcr, "BLOCK", block)
    error = (Vmcr().change(x, 1.0, STEP) - whole).abs().max() / whole.abs().max()
    print(f"blocks of {block}: {error:.1e}")
    assert error < 1e-14


def test_more_pairs_than_a_block() -> None:
    x = video(1, 1, 2 * vmcr.BLOCK + 5, 2, 3)
    expected = -2e-5 * gradient(x)
    assert (Vmcr().change(x, 1.0, STEP) - expected).abs().max() < 1e-13 * expected.abs().max()


def test_a_small_step_lowers_the_loss() -> None:
    x = video()
    change = Vmcr(omega=1e-4).change(x, 1.0, STEP)
    assert written_out(x + change) < written_out(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clip_that_stands_still_is_left_alone(dtype: torch.dtype) -> None:
    still = video(1, 3, 1, 4, 5, dtype=dtype).expand(-1, -1, 6, -1, -1)
    assert torch.equal(Vmcr(omega=1.0).change(still, 1.0, STEP), torch.zeros_like(still))
    assert not Vmcr(omega=1.0).change(torch.zeros(1, 3, 6, 4, 5, dtype=dtype), 1.0, STEP).any()


def test_steady_motion_is_left_alone() -> None:
    """Whole numbers, so that all motions are equal bit for bit: no cosine, difference, amplitude or phase to change."""
    first, motion = (video(1, 3, 1, 4, 4, seed=seed).mul(4).round() for seed in (0, 1))
    steady = first + torch.arange(6.0).view(1, 1, -1, 1, 1) * motion
    assert Vmcr(omega=1.0).change(steady, 1.0, STEP).abs().max() < 1e-14


def test_frames_that_repeat_have_no_direction_but_a_size() -> None:
    """Of a pair with no motion on one side, only the squares and the amplitudes have a gradient."""
    x = video()
    x[:, :, 1] = x[:, :, 0]
    change = Vmcr(omega=1.0).change(x[:, :, :3], 1.0, STEP)
    part = x[:, :, :3].clone().requires_grad_()
    motion = part[:, :, 2] - part[:, :, 1]
    loss = 0.001 * motion.square().sum() + 0.2 * torch.fft.fft2(motion).abs().sum()
    other = 0.001 * -2 * motion.detach()  # by the motion that is zero, whose amplitudes have no gradient
    expected = -torch.autograd.grad(loss, part)[0]
    expected[:, :, 0] += other
    expected[:, :, 1] -= other
    assert change.isfinite().all()
    assert (change - expected).abs().max() < 1e-13


def test_rounding_is_no_motion() -> None:
    """Differences in the last bits only: 1 / |d| would make the phase's gradient a million times as large."""
    still = video(1, 3, 1, 4, 5, dtype=torch.float32).expand(-1, -1, 6, -1, -1)
    shaken = still * (1 + torch.finfo(torch.float32).eps * video(1, 3, 6, 4, 5, seed=1, dtype=torch.float32).sign())
    assert not torch.equal(shaken, still)
    assert Vmcr(omega=1.0).change(shaken, 1.0, STEP).abs().max() < 0.2 * 4 * 4 * 5  # the amplitudes' bound
    flat = video(1, 3, 6, 1, 1, dtype=torch.float32).expand(-1, -1, -1, 7, 9)  # all bins but the mean are rounding
    assert Vmcr(omega=1.0).change(flat, 1.0, STEP).abs().max() < 0.2 * 4 * 7 * 9


def test_small_motion_still_has_direction_and_phase() -> None:
    x = video(dtype=torch.float64) * 1e-6 + video(1, 3, 1, 4, 5, seed=1)
    expected = -gradient(x)
    assert (Vmcr(omega=1.0).change(x, 1.0, STEP) - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("frames_lat", [1, 2])
def test_fewer_than_three_frames_are_left_alone(frames_lat: int) -> None:
    x = video(1, 3, frames_lat, 4, 5)
    assert torch.equal(Vmcr(omega=1.0).change(x, 1.0, STEP), torch.zeros_like(x))


def test_omega_zero_is_neutral() -> None:
    x = video()
    change = Vmcr(omega=0.0).change(x, 1.0, STEP)
    assert torch.equal(change, torch.zeros_like(x))
    assert not change.signbit().any()
    assert torch.equal(x + change, x)


def test_where_gradients_are_switched_off() -> None:
    x = video(dtype=torch.float32)
    with torch.no_grad():
        off = Vmcr().change(x, 1.0, STEP)
    assert torch.equal(off, Vmcr().change(x, 1.0, STEP))
    assert not off.requires_grad
    assert torch.equal(x, video(dtype=torch.float32))
    assert Vmcr().change(x.bfloat16(), 1.0, STEP).dtype == torch.float32


def test_steps_choose_where_it_acts(tiny_plan: Callable[..., Plan]) -> None:
    stack = preset.load("direct").model_copy(update={"techniques": (Vmcr(steps=(0.5, 1.0)),), "sample": preset.Sample(steps=4)})
    assert [(technique.slot, steps) for technique, steps in planner.build(stack, TINY).refinements] == [("refine", (2, 3))]


@pytest.mark.parametrize("key", ["omega", "lambda_mse", "lambda_f", "lambda_phase"])
def test_wrong_values_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Vmcr(**{key: -0.1})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="finite"):
        Vmcr(**{key: math.inf})  # type: ignore[arg-type]


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Vmcr(weight=1.0)  # type: ignore[call-arg]
