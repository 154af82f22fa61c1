"""Bands in few batched calls: what the calls cover, in integers; outputs against one dense softmax; what the kernel asks of masks.

Legend: B batch, T frames, n tokens per frame, w width of the band, H heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import planner, preset
from longgen.attention import band_batches, executor
from longgen.attention.band_batches import KeyTable, chunkings, cuts, split
from longgen.attention.context import LayerInputs
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.backbones.registry import SPECS
from longgen.context.tsa import Tsa
from longgen.device_costs import ACCELERATOR
from longgen.frameplan import FramePlan, Geometry, Pass, distances, full_attention
from longgen.pipelines import processors
from longgen.pipelines.processors import LayerCall
from longgen.positions.vrpr import Vrpr
from tests.attention import test_presets
from tests.attention.dense import dense
from tests.attention.test_executor import N_FRAME, PLANS, RANDOM, SEEN, T, ctx, plan_of, qkv
from tests.attention.test_merge import BANDED, LOGITS, with_columns, with_text

__all__ = ["ctx", "qkv"]

SINGLE = {name: plan for name, plan in {**PLANS, **BANDED}.items() if plan.passes[0].band is not None}
SHARES = RANDOM.choice([0.2, 0.5], (T, T))


def stripes(variant: str = "", **options: Any) -> FramePlan:
    """Stripes at VRPR's times, where a variant of it is given."""
    plan = full_attention(T)
    if variant:
        plan = Vrpr(variant=variant, w1=2, w2=4, g1=2, g2=3).apply(plan, Geometry(T, 5, (1.0,)))  # type: ignore[arg-type]
        options["reencode"] = "vrpr"
    return Tsa(**{"dense": 1, "stripe": 6, "stripe_share": 0.3, **options}).apply(plan, Geometry(T, 5, (1.0,)))


PLANNED = {
    **SINGLE,
    "stripes of two widths": FramePlan((Pass(distances(T), SEEN, np.ones(T), {"band": SHARES}),)),
    "stripes alone": plan_of().each(lambda pass_: pass_.with_columns(band=np.full((T, T), 0.4))),
    "a third": stripes(stripe_share=1 / 3),
    "an eighth, tail": stripes(stripe_share=1 / 8, tail=True),
    **{f"stripes at VRPR's times, {variant}": stripes(variant) for variant in ("continuous", "code", "paper")},
}


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[torch.Size, torch.Size, torch.Size]]]:
    """The executor takes the way of accelerators. Shapes of the masked calls; each is what CUDA's kernel asks for."""
    calls: list[tuple[torch.Size, torch.Size, torch.Size]] = []

    def checked(device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool = False) -> AttentionWithLSE | None:
        kernel = unchecked(device, dtype, head_dim, masked)
        assert kernel is not None

        def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
            if mask is not None:
                calls.append((q.shape, k.shape, mask.shape))
                aligned(mask)
                for x in (q, k, v):
                    assert x.stride(3) == 1
                    assert all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
                assert mask.dtype == q.dtype
            return kernel(q, k, v) if mask is None else kernel(q, k, v, mask)

        return call

    unchecked = processors.attention_with_lse
    monkeypatch.setattr(processors, "attention_with_lse", checked)
    monkeypatch.setattr(executor, "costs_on", lambda _: ACCELERATOR)
    yield calls
    assert calls


def aligned(mask: Tensor) -> None:
    """Rows begin at multiples of 16 bytes, and the kernel may read on to the next multiple of 8 numbers."""
    assert mask.stride(1) == 1
    assert mask.stride(0) * mask.element_size() % 16 == 0
    assert mask.storage_offset() * mask.element_size() % 16 == 0
    end = mask.storage_offset() + (len(mask) - 1) * mask.stride(0) + -(-mask.shape[1] // 8) * 8
    assert end * mask.element_size() <= mask.untyped_storage().nbytes()


def error(plan: FramePlan, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> float:
    before = [x.clone() for x in qkv]
    output = executor.run_plan(plan, LayerInputs(ctx, *qkv))
    assert (output.shape, output.dtype) == (qkv[0].shape, qkv[0].dtype)
    assert all(torch.equal(x, y) for x, y in zip(qkv, before, strict=True))
    return (output.double() - dense(plan, *qkv, ctx.rotary, ctx.stock, ctx.text)).abs().max().item()  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", PLANNED)
def test_equals_dense_softmax(
    name: str, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], accelerator: list[Any]
) -> None:
    assert error(PLANNED[name], with_text(ctx) if text else ctx, qkv) < 1e-5


@pytest.mark.parametrize("columns", LOGITS)
def test_logit_columns_on_banded_pairs(
    columns: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], accelerator: list[Any]
) -> None:
    assert error(with_columns(stripes("continuous"), columns), ctx, qkv) < 1e-5
    hidden = np.where(np.abs(distances(T)) == 4, -np.inf, 0.0)
    assert error(stripes().each(lambda pass_: pass_.with_columns(logit_bias=hidden)), ctx, qkv) < 1e-5


@pytest.mark.parametrize("share", [1 / 8, 0.3, 0.6])
@pytest.mark.parametrize("tokens", [1, 2, 9, 19, 20])
@pytest.mark.parametrize("cost", [1e-6, 1e6])
def test_every_way_to_cut_frames_equals_dense_softmax(
    share: float, tokens: int, cost: float, monkeypatch: pytest.MonkeyPatch, accelerator: list[Any]
) -> None:
    """Chunks of 2 and of 3 tokens lie between the ends, some of them in one call. Dear calls are blocks, cheap ones slide."""
    monkeypatch.setattr(test_presets, "ROWS", 1)
    monkeypatch.setattr(test_presets, "COLUMNS", tokens)
    monkeypatch.setattr(band_batches, "SIZES", (2, 3))
    monkeypatch.setattr(band_batches, "TILE", 1)
    monkeypatch.setattr(executor, "costs_on", lambda _: replace(ACCELERATOR, call=cost))
    call, qkv = test_presets.call_of("wan", test_presets.SPECS["wan"], T, seed=0)
    plan = stripes(stripe_share=share)
    expected = dense(plan, *qkv, call.rotary, call.stock)  # type: ignore[arg-type]
    ways = list(chunkings(share, tokens))
    assert len(ways) == (1 if tokens == 1 else 4 if tokens >= 9 and share < 0.5 else 2)
    for way in ways:
        cuts.cache_clear()
        monkeypatch.setattr(band_batches, "chunkings", lambda *_, way=way: iter([way]))
        output = executor.run_plan(plan, LayerInputs(call, *qkv))
        assert (output.double() - expected).abs().max().item() < 1e-5, way
    cuts.cache_clear()
    assert any(q[0] > 1 for q, _, _ in accelerator) == (cost < 1)


def seen_by(tables: tuple[KeyTable, ...], rel: np.ndarray) -> np.ndarray:
    """How often bands show each pair of frames, after a look at its time."""
    counts = np.zeros(rel.shape, dtype=int)
    for table in tables:
        for band in table.bands:
            for i, (first, last) in enumerate(band.windows.tolist()):
                counts[i, first:last] += 1
                assert np.allclose(band.query_times[i] - table.key_times[first:last], rel[i, first:last], atol=1e-6)
    return counts


@pytest.mark.parametrize("name", PLANNED)
def test_every_pair_is_in_one_band_and_every_query_frame_in_one_call(name: str) -> None:
    pass_ = PLANNED[name].passes[0]
    whole, shares = split(pass_)
    assert pass_.band is not None
    banded = pass_.visible & (pass_.weight > 0)[:, None] & (pass_.band < 1)
    assert np.array_equal(sum(seen_by(tables, pass_.rel) for tables in shares), banded)
    assert np.array_equal(whole.visible, pass_.visible & (pass_.weight > 0)[:, None] & ~banded)
    for tables in shares:
        bands = [band for table in tables for band in table.bands]
        for call in (1.0, 1e5):
            for _, calls in cuts(tables, N_FRAME, call):
                for band, of_band in zip(bands, calls, strict=True):
                    covered = np.zeros(T, dtype=int)
                    for band_call in of_band:
                        rows, (first, last) = slice(*band_call.rows), band_call.keys
                        covered[rows] += 1
                        shift = np.arange(band_call.rows[1] - band_call.rows[0])[:, None] * band_call.sliding
                        fits = band.windows[rows] == np.array([first, last]) + shift
                        assert (
                            fits.all()
                            if band_call.sliding
                            else (band.windows[rows].min(), band.windows[rows].max()) == (first, last)
                        )
                    assert np.array_equal(covered, np.diff(band.windows)[:, 0] > 0)


@pytest.mark.parametrize("tokens", [1, 2, 5, 64, 330, 1350, 1560, 3600])
@pytest.mark.parametrize("share", [0.01, 1 / 8, 1 / 3, 0.9])
def test_chunks_have_every_token_and_all_that_it_sees(tokens: int, share: float) -> None:
    width = math.ceil(share * tokens)
    for way in chunkings(share, tokens):
        covered = np.zeros(tokens, dtype=int)
        for chunks in way:
            for chunk in range(chunks.count):
                first = chunks.first + (0 if chunks.ends else chunk * chunks.size)
                if chunks.ends and chunk:
                    covered[tokens - chunks.ends :] += 1
                    assert chunks.size - chunks.ends in (0, 1)
                else:
                    covered[first : first + chunks.size] += 1
                start, stop = first - chunks.before, first - chunks.before + chunks.span
                assert start >= 0
                assert stop <= tokens
                assert start <= max(0, first - width + 1)
                assert stop >= min(tokens, first + chunks.size + width - 1)
        assert (covered == 1).all()


PUBLISHED = {  # most masked calls of a layer, and pairs of tokens computed for one that is seen
    "wan2.1-1.3b": (60, 1.4), "ltx-2b": (40, 2.4), "cogvideox-5b": (60, 1.5), "hunyuanvideo": (120, 1.3),
}  # fmt: skip
AT_VRPRS_TIMES = ("vrpr.layers=all", "tsa.layers=all", "tsa.reencode=vrpr")


@pytest.mark.parametrize("variant", ["", "continuous", "code"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_calls_and_pairs_at_published_sizes(name: str, variant: str) -> None:
    """Also that masks begin where the kernel may read them, and stay small."""
    spec, most, batch = SPECS[name], PUBLISHED[name], 2 if name in ("ltx-2b", "cogvideox-5b") else 1
    settings = (*AT_VRPRS_TIMES, f"vrpr.variant={variant}") if variant else ()
    plan = planner.build(
        preset.load("freeloc" if variant else "tsa", settings, preset.Sample(frames=4 * (spec.native_px - 1) + 1)), spec
    )
    ((frame_plan, _, _),) = plan.branches().values()
    tokens = plan.call_grid[1] * plan.call_grid[2]
    _, (tables,) = split(frame_plan.passes[0])
    calls = computed = needed = 0
    for chunks, by_band in cuts(tables, tokens, ACCELERATOR.call / batch):
        assert chunks.held <= band_batches.HELD * tokens
        calls += sum(len(of_band) for of_band in by_band)
        for band_call in (band_call for of_band in by_band for band_call in of_band):
            frames, queries = band_call.keys[1] - band_call.keys[0], band_call.rows[1] - band_call.rows[0]
            computed += chunks.count * queries * chunks.size * frames * chunks.span
            assert band_call.sliding or queries * chunks.size * frames * chunks.span <= band_batches.LARGEST_MASK
    width = math.ceil(tables[0].share * tokens)
    for band in (band for table in tables for band in table.bands):
        needed += int(np.diff(band.windows).sum()) * (tokens * (2 * width - 1) - width * (width - 1))
    print(f"{name} {variant}: {len(tables)} key times, {calls} calls, {computed / needed:.2f} pairs computed for one seen")
    assert len(tables) <= 3
    assert calls <= most[0]
    assert computed <= most[1] * needed


@pytest.mark.parametrize("windows", [((0, 16),), ((0, 3), (0, 4), (1, 5))])
def test_rows_of_masks_are_aligned_whatever_the_chunks(windows: tuple[tuple[int, int], ...]) -> None:
    for way in chunkings(1 / 8, 333):
        for chunks in way:
            mask = band_batches._mask(chunks, 42, windows, torch.zeros(0, dtype=torch.bfloat16))
            aligned(mask)
            aligned(mask[:, : 2 * chunks.span])
            seen = (mask == 0).unflatten(0, (len(windows), -1)).unflatten(2, (-1, chunks.span))
            for row, (first, last) in zip(seen, windows, strict=True):
                frames = torch.arange(seen.shape[2])
                assert torch.equal(row.any(dim=2).all(dim=0), (frames >= first) & (frames < last))
            assert seen[0, :, windows[0][0]].sum(dim=1).max() <= 83
