"""FreeSpec against torch.linalg.svd, its weights against the formulas, and its neutral settings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longgen.device_costs import ACCELERATOR
from longgen.frameplan import Geometry, full_attention
from longgen.fusion import freespec
from longgen.fusion.freelong import FreeLong
from longgen.fusion.freespec import FreeSpec, gram, reconstruct
from longgen.technique import Step

STEP = Step(1, (1000.0, 900.0, 700.0, 400.0))
CLIP = Geometry(81, 21, (1.0,), 1)
GRID = (5, 4, 15)  # FreeSpec sees tokens, not where they are


def features(tokens: int, channels: int, decay: float = 3.0, seed: int = 0, batch: int = 2) -> Tensor:
    """Features whose singular values fall by `decay` powers of ten, as attention outputs' do."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(batch, tokens, channels, generator=generator)
    turned = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    return base * torch.logspace(0, -decay, channels) @ turned


def by_svd(global_: Tensor, local: Tensor, alpha: float, beta: float, basis: str) -> Tensor:
    """The definition, in double precision."""
    ug, sg, vg = torch.linalg.svd(global_.double(), full_matrices=False)
    ul, sl, vl = torch.linalg.svd(local.double(), full_matrices=False)
    weight = alpha * torch.exp(-beta * torch.arange(sg.shape[-1]) / sg.shape[-1])
    s = weight * sg + (1 - weight) * sl
    u, v = (ul, vl) if basis == "local" else (ug, vg)
    return u @ torch.diag_embed(s) @ v


@pytest.mark.parametrize("basis", ["local", "global"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 2.0), (0.5, 0.0), (0.3, 5.0)])
@pytest.mark.parametrize(("tokens", "channels"), [(400, 48), (40, 48)])
def test_equals_svd(tokens: int, channels: int, alpha: float, beta: float, basis: str) -> None:
    global_, local = features(tokens, channels, seed=1), features(tokens, channels, seed=2)
    exact = by_svd(global_, local, alpha, beta, basis)
    error = (reconstruct(global_, local, alpha, beta, basis) - exact).norm() / exact.norm()
    print(f"{tokens}x{channels} {basis} alpha {alpha} beta {beta}: relative error {error:.1e}")
    assert error < 5e-6


def test_small_singular_values_are_kept_where_single_precision_loses_them() -> None:
    global_, local = features(500, 32, decay=5, seed=1), features(500, 32, decay=5, seed=2)
    exact = by_svd(global_, local, 1.0, 2.0, "local")
    error = (reconstruct(global_, local, 1.0, 2.0, "local") - exact).abs().max() / exact.abs().max()
    assert error < 1e-5


def test_rank_deficient_local_branch_stays_finite() -> None:
    local = features(200, 16)
    local[..., 8:] = local[..., :8]
    assert torch.isfinite(reconstruct(features(200, 16, seed=3), local, 1.0, 2.0, "local")).all()


def test_gram_in_pieces_equals_gram_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(100, 12)
    monkeypatch.setattr("longgen.fusion.freespec.ROWS", 7)
    assert torch.allclose(gram(x), x.double().mT @ x.double(), rtol=1e-12)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freespec, "costs_on", lambda _: ACCELERATOR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_accelerator_sums_few_rows_in_single_precision(
    dtype: torch.dtype, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products of halves are exact in it; 7 rows at a time leave the last sum with less."""
    x = features(100, 12).to(dtype)
    exact = x.double().mT @ x.double()
    monkeypatch.setattr(freespec, "PARTIAL", 7)
    monkeypatch.setattr(freespec, "PARTIALS", 3)
    for rows in (1, 21, 63, 100):
        part = x[:, :rows].double().mT @ x[:, :rows].double()
        assert (gram(x[:, :rows]) - part).abs().max() < 7 * 2**-24 * exact.diagonal(dim1=1, dim2=2).max()
    assert gram(x).dtype == torch.float64
    assert not torch.equal(gram(x), exact)
    single = x.float()
    assert torch.equal(gram(single), x.double().mT @ x.double())  # products of single precision are not exact in it


def test_a_device_without_double_precision_leaves_eigenproblems_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(300, 12)
    monkeypatch.setattr("longgen.device_tables.double_on", lambda _: torch.float32)
    assert gram(x).dtype == torch.float64
    assert torch.equal(gram(x), gram(x).float().double())


@pytest.mark.parametrize(("decay", "mean"), [(3.0, 0.0), (2.0, 0.0), (3.0, 10.0)])
def test_sums_in_single_precision_change_less_than_rounding_the_result(decay: float, mean: float, accelerator: None) -> None:
    """Also where a kernel adds row after row: one product for each row of a sum stands for it."""
    common = torch.randn(64, generator=torch.Generator().manual_seed(3))
    global_, local = (features(6000, 64, decay, seed, batch=1) for seed in (1, 2))
    global_, local = ((x / x.square().mean().sqrt() + mean * common).bfloat16() for x in (global_, local))
    floor = torch.finfo(torch.bfloat16).eps

    def change(of: Callable[[Tensor], Tensor]) -> Tensor:
        values, vectors = torch.linalg.eigh(of(local))
        own, other = values.clamp_min(0).sqrt(), torch.linalg.eigvalsh(of(global_)).clamp_min(0).sqrt()
        weight = torch.exp(-2.0 * torch.arange(63, -1, -1) / 64)
        ratio = torch.where(own > floor * values.mean().sqrt(), (weight * other + (1 - weight) * own) / own, 1.0)
        return local.double() @ ((vectors * (ratio - 1).unsqueeze(1)) @ vectors.mT)

    def one_after_the_other(x: Tensor) -> Tensor:
        total = torch.zeros(1, 64, 64, dtype=torch.float64)
        for rows in x.float().split(freespec.PARTIAL, dim=1):
            part = torch.zeros(1, 64, 64)
            for row in rows.unbind(1):
                part.baddbmm_(row[:, :, None], row[:, None])
            total += part
        return total

    expected = change(lambda x: x.double().mT @ x.double())
    rounding = ((local + expected).bfloat16() - (local + expected)).norm()
    for summed in (gram, one_after_the_other):
        assert (change(summed) - expected).norm() < 0.03 * rounding


def test_alpha_and_lambda_zero_are_the_local_branch_exactly() -> None:
    global_, local = features(100, 12, seed=1), features(100, 12, seed=2)
    neutral_setting = FreeSpec(alpha=0, lambda_start=0, lambda_end=0)
    assert torch.equal(neutral_setting.fuse({"global": global_, "local": local}.__getitem__, STEP, GRID), local)
    assert set(neutral_setting.branches(full_attention(81), CLIP, 0, 4)) == {"local"}  # and the global one is not computed


def test_equal_branches_fuse_to_themselves() -> None:
    x = features(300, 24)
    assert torch.equal(FreeSpec().fuse({"global": x, "local": x.clone()}.__getitem__, STEP, GRID), x)


def test_half_precision_rounds_the_change_only() -> None:
    """In bf16 a small change of the spectrum costs a small error, below the rounding of the features themselves."""
    local = features(400, 48, seed=2).bfloat16()
    global_ = (local.float() * 1.01).bfloat16()
    exact = by_svd(global_, local, 1.0, 2.0, "local")
    error = (reconstruct(global_, local, 1.0, 2.0, "local") - exact).norm() / exact.norm()
    assert error < 2**-8


def test_half_precision_changes_the_singular_values_down_to_its_rounding() -> None:
    """Of many channels in bf16, what is lost is the rounding of the result and nothing of the fusion."""
    global_, local = (features(1000, 512, seed=seed, batch=1).bfloat16() for seed in (1, 2))
    exact = by_svd(global_, local, 1.0, 2.0, "local")
    error = (reconstruct(global_, local, 1.0, 2.0, "local") - exact).norm()
    assert error < 1.02 * (exact.bfloat16() - exact).norm()


def test_weights_follow_the_formulas() -> None:
    technique = FreeSpec(kappa=2.5, beta=1.5, alpha=0.9, lambda_start=0.3, lambda_end=0.1)
    global_, local = features(300, 24, seed=1), features(300, 24, seed=2)
    progress = (1000 - 900) / (1000 - 700)  # the split is at half of four steps: t = 700
    fade = math.exp(-2.5 * progress)
    assert technique.fade(STEP) == pytest.approx(fade)
    residual = 0.1 + (0.3 - 0.1) * fade
    expected = (1 - residual) * by_svd(global_, local, 0.9 * fade, 1.5, "local") + residual * global_
    fused = technique.fuse({"global": global_, "local": local}.__getitem__, STEP, GRID)
    assert (fused - expected).norm() / expected.norm() < 5e-6


def test_both_branches_before_the_split_and_the_local_one_after() -> None:
    names = [list(FreeSpec().branches(full_attention(81), CLIP, step, 20)) for step in range(20)]
    assert names == [["global", "local"]] * 10 + [["local"]] * 10
    local = FreeSpec().branches(full_attention(81), CLIP, 0, 20)["local"]
    assert (local.passes[0].visible.sum(1) == 21).all()


@pytest.mark.parametrize(
    "ablation",
    [
        {"basis": "global", "kappa": 0, "beta": 0, "alpha": 0.5, "lambda_start": 0, "lambda_end": 0},
        {"kappa": 0, "beta": 0, "alpha": 0.5, "lambda_start": 0, "lambda_end": 0},
        {"kappa": 0, "lambda_start": 0, "lambda_end": 0},
        {"beta": 0, "lambda_start": 0, "lambda_end": 0},
        {"lambda_start": 0, "lambda_end": 0},
        {"lambda_start": 0.1, "lambda_end": 0.1},
        {},
    ],
    ids=["GB", "LB", "RA", "TA", "RA+TA", "F-GR", "T-GR"],
)
def test_the_paper_s_ablations_differ_from_each_other_and_from_the_branches(ablation: dict[str, object]) -> None:
    branches = {"global": features(300, 24, seed=1), "local": features(300, 24, seed=2)}
    fused = FreeSpec(**ablation).fuse(branches.__getitem__, STEP, GRID)
    full = FreeSpec().fuse(branches.__getitem__, STEP, GRID)
    assert not torch.allclose(fused, branches["global"])
    assert not torch.allclose(fused, branches["local"])
    assert torch.equal(fused, full) == (not ablation)


def test_operations_are_two_gram_matrices_a_product_and_two_eigenproblems() -> None:
    tokens, channels = 300, 24
    assert FreeSpec().flops(GRID, channels) == 3 * 2 * tokens * channels**2 + 2 * 10 * channels**3
    assert FreeSpec().double_flops(GRID, channels) == 2 * 10 * channels**3
    assert FreeLong().double_flops(GRID, channels) == 0
