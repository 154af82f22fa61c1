"""What a plan costs: arithmetic, attention and memory, counted from its tables before anything is computed.

Legend: L layers, S steps, N tokens of what the model sees at a time, d channels, T latent frames.

Arithmetic counts multiplications and additions apart. It is the transformer's blocks': what stands before and after them is the
same for all plans, and small.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from longgen.plan import Plan
    from longgen.program import Program
    from longgen.technique import Grid

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FLOOR = "arithmetic against direct sampling"  # what `Plan.cost` is, in the words of plan, bench and presets
COSTED_CHUNKS = 33  # of a rollout; between them cost changes evenly
# What is alive at the peak of a block, in N d numbers: in attention, and beside the 2 f / d of the feed-forward, f its width.
# Counted in the transformers at their published sizes, on shapes without memory (tests/test_memory.py).
PEAK_ACTIVATIONS = {
    "wan": (11.2, 4.0),
    "causal-wan": (11.2, 4.0),
    "ltx": (11.2, 8.0),
    "cogvideox": (11.2, 4.6),
    "hunyuan": (11.2, 10.2),
}
PLAN_OVERHEAD = 2.0  # more, at most, in attention that follows a plan
BATCHES_GUIDANCE = ("ltx", "cogvideox")  # both calls of guidance are one batch


def flops(plan: Plan, program: Program | None, grid: Grid, keys: int | None = None) -> int:
    """Floating-point operations of one layer for one model call on `grid`.

    keys: in a rollout, the tokens that attention is over, its own included.
    """
    tokens, width, spec = math.prod(grid), plan.spec.width, plan.spec
    if spec.joint_text:
        around = (tokens + spec.text_tokens) * (8 * width**2 + 4 * width * spec.ffn_dim)
        around += 4 * (2 * tokens + spec.text_tokens) * spec.text_tokens * width
    else:
        around = tokens * (12 * width**2 + 4 * width * spec.ffn_dim)
        around += 0 if keys else spec.text_tokens * 4 * width**2  # a rollout makes the text's keys and values once
        around += 4 * tokens * spec.text_tokens * width
    attention = 4 * tokens * (keys or tokens) * width
    if program is None:
        return around + attention
    fused = program.fusion.flops(grid, width) if program.fusion else 0
    return around + round(attention * program.density_at(grid[1] * grid[2])) + fused


def cost(plan: Plan) -> tuple[float, float]:
    """Arithmetic and frame pairs attended over the whole schedule, against direct sampling of the same length in its own steps."""
    if plan.chunk_lat is not None:
        return _rolled_cost(plan)
    arithmetic = np.array([flops(plan, program, plan.call_grid) for program in plan.programs], dtype=np.float64)
    spared = np.array([0.0 if program is None else program.spared for program in plan.programs])
    arithmetic -= spared * 4 * math.prod(plan.call_grid) ** 2 * plan.spec.width
    attention = np.array([1.0 if program is None else program.density for program in plan.programs]) - spared
    calls = plan.calls * plan.steps / _direct_steps(plan)
    return (
        float(calls * arithmetic[plan.table].mean() / flops(plan, None, plan.grid)),
        float(calls * attention[plan.table].mean() * (plan.call_geometry.frames_lat / plan.frames_lat) ** 2),
    )


def chunk_operations(plan: Plan) -> np.ndarray:
    """Of a rollout: the mean operations of one layer for each chunk [chunks], in its steps and without the clean pass."""
    at, each = _chunks(plan)
    return np.interp(np.arange(1, plan.rounds + 1), at, [arithmetic.sum() for arithmetic, _ in each])


def _chunks(plan: Plan) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Some chunks of a rollout, counted from 1, and for each its arithmetic and its density by step [S], means over layers."""
    chunk = plan.call_geometry.frames_lat
    at = np.unique(np.linspace(1, plan.rounds, min(plan.rounds, COSTED_CHUNKS)).round().astype(int))
    each = []
    for frames_lat in (at * chunk).tolist():
        programs, table = plan.programs_for_chunk(frames_lat, chunk)
        keys = frames_lat * math.prod(plan.call_grid[1:])
        arithmetic = np.array([flops(plan, program, plan.call_grid, keys) for program in programs], dtype=np.float64)
        density = np.array([program.density if program else 1.0 for program in programs])
        each.append((arithmetic[table].mean(axis=0), density[table].mean(axis=0)))
    return at, each


def _rolled_cost(plan: Plan) -> tuple[float, float]:
    """`cost` of a rollout, clean passes included."""
    chunk, (at, each) = plan.call_geometry.frames_lat, _chunks(plan)

    def with_clean(by_step: np.ndarray, number: int) -> float:
        return float(by_step.sum() + by_step[-1] * (number < plan.rounds))

    arithmetic = [with_clean(counted, number) for number, (counted, _) in zip(at.tolist(), each, strict=True)]
    pairs = [with_clean(density, number) * chunk * number * chunk for number, (_, density) in zip(at.tolist(), each, strict=True)]
    chunks = np.arange(1, plan.rounds + 1)
    steps = _direct_steps(plan)
    return (
        float(np.interp(chunks, at, arithmetic).sum()) / (flops(plan, None, plan.grid) * steps),
        float(np.interp(chunks, at, pairs).sum()) / (plan.frames_lat**2 * steps),
    )


def _direct_steps(plan: Plan) -> int:
    """The steps of direct sampling: those that are asked, or the backbone's own."""
    return plan.preset.sample_on(plan.spec).steps or plan.spec.steps


def cache_bytes(plan: Plan, dtype: str) -> int:
    """A rollout's cache: keys as they are and as they are turned, and values; those of the text; with guidance all twice."""
    if plan.chunk_lat is None:
        return 0
    batch = 2 if plan.guided else 1
    tokens = 3 * plan.slots_lat * math.prod(plan.grid[1:]) + 2 * plan.spec.text_tokens
    return BYTES[dtype] * batch * tokens * plan.spec.width * plan.spec.layers


def memory_bytes(plan: Plan, dtype: str, offload: str) -> dict[str, int]:
    """Estimated peak on the device, by part. Formula: README, "Memory"."""
    spec, size, tokens = plan.spec, BYTES[dtype], math.prod(plan.call_grid)
    in_attention, beside = PEAK_ACTIVATIONS[spec.family]
    alive = max(in_attention + PLAN_OVERHEAD * bool(plan.table.any()), beside + 2 * spec.ffn_dim / spec.width)
    batch = 2 if spec.family in BATCHES_GUIDANCE and plan.guided else 1
    activations = round(alive * batch * tokens * spec.width * size) + 8 * tokens * spec.head_dim + cache_bytes(plan, dtype)
    weights, companions = size * spec.parameters, size * spec.companions
    peak = weights + activations + companions
    if offload == "model":
        peak = max(companions, weights + activations)
    elif offload in ("group", "sequential"):
        peak = max(weights, companions) // 10 + activations
    return {"weights": weights, "companions": companions, "activations": activations, "peak": peak}
