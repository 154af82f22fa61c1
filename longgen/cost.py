"""Cost model of a plan: floating-point operations, attention and peak memory, counted from its tables before anything runs.

Legend: L layers, S steps, N tokens of one model call, d channels, T latent frames.

A multiplication and an addition are two operations. Only the transformer's blocks are counted: what comes before and after them is
the same for every plan, and small.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from longgen.backbones.registry import family_of
from longgen.backbones.spec import BackboneSpec
from longgen.cards import ATTENTION, DOUBLE, EIGEN, HALF, MATMUL, SINGLE, Card, arithmetic_seconds, moving_seconds
from longgen.device_costs import DEVICE_BYTES
from longgen.plan import Plan
from longgen.program import Program
from longgen.technique import Grid

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FLOOR = "arithmetic against direct sampling"  # what `ratio` is, in the words of plan, bench and presets
COSTED_CHUNKS = 33  # of a rollout; between them cost is interpolated linearly
STOCK_LAUNCHES = 90  # kernels of a layer of Wan, as `longgen bench --count` counts them
LAUNCHES = 600  # and at most of one that follows a plan, longdiff's apart: the launch budget (tests/launches.py)
PLAN_OVERHEAD = 2.0  # more, at most, in attention that follows a plan
BANDS_OVERHEAD = 1.25  # and where it has bands inside frames, whose chunks are held
SIGN_OVERHEAD = 1.0  # and where it has factors on positive logits and no kernel serves, with q, k and v in single precision


def ratio(plan: Plan) -> float:
    """FLOPs of the transformer over the whole schedule, relative to direct sampling of the same length in its own steps.

    A lower bound on the time a run takes; `longgen bench` measures that time.
    """
    return _ratios(plan)[0]


def attention_ratio(plan: Plan) -> float:
    """Frame pairs attended over the whole schedule, relative to direct sampling."""
    return _ratios(plan)[1]


def total_flops(plan: Plan) -> float:
    """FLOPs of the transformer's blocks in the whole run, both branches of guidance included."""
    return ratio(plan) * flops(plan, None, plan.grid) * _direct_steps(plan) * plan.spec.layers * (2 if plan.guided else 1)


def flops(plan: Plan, program: Program | None, grid: Grid | None = None, keys: int | None = None) -> int:
    """FLOPs of one layer in one model call, on the plan's `call_grid` or on `grid`.

    keys: in a rollout, the tokens attended to, those of the chunk included.
    """
    grid = grid or plan.call_grid
    linear, attention = _stock_flops(plan, grid, keys)
    if program is None:
        return linear + attention
    fusion = program.fusion.flops(grid, plan.spec.width) if program.fusion else 0
    every_pair = 4 * math.prod(grid) * (keys or math.prod(grid)) * plan.spec.width
    return linear + attention - every_pair + round(every_pair * program.density_at(grid[1] * grid[2])) + fusion


def _stock_flops(plan: Plan, grid: Grid, keys: int | None) -> tuple[int, int]:
    """FLOPs of one layer of the backbone itself: of its matrix products, and of its attention, to video and text."""
    tokens, width, spec = math.prod(grid), plan.spec.width, plan.spec
    read = spec.text_tokens + spec.image_tokens
    if spec.joint_text:
        linear = (tokens + read) * (8 * width**2 + 4 * width * spec.ffn_dim)
        text = 4 * (2 * tokens + read) * read * width
    else:
        linear = tokens * (12 * width**2 + 4 * width * spec.ffn_dim)
        linear += 0 if keys else read * 4 * width**2  # a rollout projects the text's keys and values once
        text = 4 * tokens * read * width
    of_sound, heard = _sound_flops(spec, grid)
    return linear + of_sound, text + 4 * tokens * (keys or tokens) * width + heard


def _sound_flops(spec: BackboneSpec, grid: Grid) -> tuple[int, int]:
    """What the audio stream adds to a layer: matrix products, and its attention to itself, the text, the video, and back.

    The two streams attend to each other in the audio's width.
    """
    if spec.sound is None:
        return 0, 0
    tokens, audio, width, own = math.prod(grid), spec.sound_lat(grid[0]), spec.width, spec.sound.width
    linear = 8 * tokens * width * own + audio * 36 * own**2 + 4 * spec.text_tokens * own**2
    return linear, 4 * audio * own * (audio + spec.text_tokens + 2 * tokens)


def audio_flops(spec: BackboneSpec, grid: Grid) -> int:
    """What of `_sound_flops` is of audio queries: every rank computes that, where ranks share the video's tokens."""
    if spec.sound is None:
        return 0
    audio, own = spec.sound_lat(grid[0]), spec.sound.width
    return (audio * 36 + 4 * spec.text_tokens) * own**2 + 4 * audio * own * (audio + spec.text_tokens + math.prod(grid))


@lru_cache(maxsize=8)
def _ratios(plan: Plan) -> tuple[float, float]:
    """`ratio` and `attention_ratio`."""
    return _direct_ratios(plan) if plan.chunk_lat is None else _rollout_ratios(plan)


def _direct_ratios(plan: Plan) -> tuple[float, float]:
    arithmetic = np.array([flops(plan, program) for program in plan.programs], dtype=np.float64)
    spared = np.array([0.0 if program is None else program.spared for program in plan.programs])
    arithmetic -= spared * 4 * math.prod(plan.call_grid) ** 2 * plan.spec.width
    attention = np.array([1.0 if program is None else program.density for program in plan.programs]) - spared
    calls = plan.calls * plan.steps / _direct_steps(plan)
    return (
        float(calls * arithmetic[plan.table].mean() / flops(plan, None, plan.grid)),
        float(calls * attention[plan.table].mean() * (plan.call_geometry.frames_lat / plan.frames_lat) ** 2),
    )


def chunk_flops(plan: Plan) -> np.ndarray:
    """Of a rollout: mean FLOPs of one layer for each chunk [chunks] over its steps, without the pass that fills the cache."""
    if not plan.rounds:
        return np.zeros(0)
    at, counts = _counted_chunks(plan)
    return np.interp(np.arange(1, plan.rounds + 1), at, [arithmetic.sum() for arithmetic, _ in counts])


def _counted_chunks(plan: Plan) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """A sample of a rollout's new chunks, numbered from 1, and of each its FLOPs and its density by step [S], means over layers."""
    chunk, numbers = plan.call_geometry.frames_lat, _sampled_chunks(plan)
    return numbers, [_counted(plan, plan.given_lat + number * chunk, chunk, _steps_of(plan, number)) for number in numbers.tolist()]


def _steps_of(plan: Plan, number: int) -> int:
    """Denoising steps of a rollout's new chunk `number`, from 1 on."""
    return plan.first_steps if number == 1 else plan.steps


def _counted(plan: Plan, frames_lat: int, chunk: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and density by step [S], means over layers, of the chunk of a rollout that reaches `frames_lat` frames."""
    programs, table = plan.programs_for_chunk(frames_lat, chunk, steps=steps)
    grid, keys = (chunk, *plan.call_grid[1:]), frames_lat * math.prod(plan.call_grid[1:])
    arithmetic = np.array([flops(plan, program, grid, keys) for program in programs], dtype=np.float64)
    density = np.array([program.density if program else 1.0 for program in programs])
    return arithmetic[table].mean(axis=0), density[table].mean(axis=0)


def _given_passes(plan: Plan) -> tuple[float, float]:
    """Of the clean passes over what a rollout is given: FLOPs of one layer, and pairs of frames."""
    chunks = plan.given_chunks if plan.rounds else ()
    at = np.unique(np.linspace(0, len(chunks) - 1, min(len(chunks), COSTED_CHUNKS)).round().astype(int))
    counted = [
        (*_counted(plan, start + count, count, plan.steps), (start + count) * count)
        for start, count in (chunks[i] for i in at.tolist())
    ]
    if not counted:
        return 0.0, 0.0
    every = np.arange(len(chunks))
    arithmetic, pairs = [by_step[-1] for by_step, _, _ in counted], [density[-1] * most for _, density, most in counted]
    return float(np.interp(every, at, arithmetic).sum()), float(np.interp(every, at, pairs).sum())


def _sampled_chunks(plan: Plan) -> np.ndarray:
    spread = np.linspace(1, plan.rounds, min(plan.rounds, COSTED_CHUNKS)).round().astype(int)
    second = [min(2, plan.rounds)] if plan.first_steps != plan.steps else []  # the first one is no measure of those between
    return np.unique([*spread.tolist(), *second])


def _rollout_ratios(plan: Plan) -> tuple[float, float]:
    chunk, (numbers, counts) = plan.call_geometry.frames_lat, _counted_chunks(plan)

    def with_cache_pass(by_step: np.ndarray, number: int) -> float:
        """After every chunk but the last, one more pass at the last step's tables fills the KV cache."""
        return float(by_step.sum() + by_step[-1] * (number < plan.rounds))

    if not plan.rounds:
        return 0.0, 0.0
    numbered = list(zip(numbers.tolist(), counts, strict=True))
    arithmetic = [with_cache_pass(counted, number) for number, (counted, _) in numbered]
    reached = [plan.given_lat + number * chunk for number in numbers.tolist()]
    pairs = [
        with_cache_pass(density, number) * chunk * keys for (number, (_, density)), keys in zip(numbered, reached, strict=True)
    ]
    chunks, steps, given = np.arange(1, plan.rounds + 1), _direct_steps(plan), _given_passes(plan)
    return (
        (float(np.interp(chunks, numbers, arithmetic).sum()) + given[0]) / (flops(plan, None, plan.grid) * steps),
        (float(np.interp(chunks, numbers, pairs).sum()) + given[1]) / (plan.frames_lat**2 * steps),
    )


def seconds(plan: Plan, card: Card, dtype: str) -> float:
    """Estimated seconds of sampling on `card`: the blocks' arithmetic and bytes at the rates of kernels, or else their launches.

    `longgen bench --count` counts what is assumed here: bytes, and launches, at most LAUNCHES in a layer that follows a plan.
    """
    if plan.chunk_lat is None:
        by_program = np.array([_layer_seconds(plan, program, card, dtype) for program in plan.programs])
        return float(by_program[plan.table].sum() * plan.calls)
    if not plan.rounds:
        return 0.0
    numbers, chunk, by_chunk = _sampled_chunks(plan), plan.call_geometry.frames_lat, []
    for number in numbers.tolist():
        frames_lat, steps = plan.given_lat + number * chunk, _steps_of(plan, number)
        programs, table = plan.programs_for_chunk(frames_lat, chunk, steps=steps)
        keys = frames_lat * math.prod(plan.call_grid[1:])
        by_program = np.array([_layer_seconds(plan, program, card, dtype, keys) for program in programs])
        by_chunk.append(by_program[table].sum() * (steps + 1) / steps)  # and the pass that fills the cache
    given = by_chunk[0] / (plan.first_steps + 1) * len(plan.given_chunks)  # one pass each, counted as that of the first new chunk
    return given + float(np.interp(np.arange(1, plan.rounds + 1), numbers, by_chunk).sum())


def _layer_seconds(plan: Plan, program: Program | None, card: Card, dtype: str, keys: int | None = None) -> float:
    """Of one layer in one step's calls for one clip or chunk, both branches of guidance included."""
    spec, family, grid = plan.spec, family_of(plan.spec), plan.call_grid
    tokens, precision = math.prod(grid), SINGLE if dtype == "fp32" else HALF
    linear, attention = _stock_flops(plan, grid, keys)
    device = moving_seconds(family.moved * BYTES[dtype] * tokens * spec.width, card)
    if program is not None:
        every_pair = 4 * tokens * (keys or tokens) * spec.width
        attention += round(every_pair * (program.density_at(grid[1] * grid[2]) - program.spared - 1))
        if program.fusion is not None:
            fusion = program.fusion
            eigen = fusion.double_flops(grid, spec.width)  # nothing but eigenproblems is in double precision on a GPU
            device += arithmetic_seconds(fusion.flops(grid, spec.width) - eigen, MATMUL, SINGLE, card)
            device += arithmetic_seconds(eigen, EIGEN, DOUBLE, card)
    device += arithmetic_seconds(linear, MATMUL, precision, card) + arithmetic_seconds(attention, ATTENTION, precision, card)
    branches = 2 + spec.more_calls if plan.guided else 1
    calls = 1 + spec.more_calls * plan.guided if family.batches_guidance or plan.chunk_lat is not None else branches
    return max(branches * device, calls * (STOCK_LAUNCHES if program is None else LAUNCHES) * card.launch_s)


def _direct_steps(plan: Plan) -> int:
    """The steps that direct sampling would take: those requested, or the backbone's default."""
    return plan.preset.sample_on(plan.spec).steps or plan.spec.steps


def cache_bytes(plan: Plan, dtype: str) -> int:
    """KV cache of a rollout: keys before and after rotation, values, and the text's keys and values; doubled by guidance.

    Where key columns are not the cached frames, those after rotation are of columns, and values are kept by column too. A memory
    has its own keys and values, in single precision, and may keep queries.
    """
    if plan.chunk_lat is None:
        return 0
    batch, frame_tokens = 2 if plan.guided else 1, math.prod(plan.grid[1:])
    slots, columns, memory = plan.slots_lat, plan.columns_lat, plan.memory
    kept = 3 * slots if columns is None else (2 + plan.keeps_queries) * slots + 2 * columns
    size = BYTES[dtype] * (kept * frame_tokens + 2 * plan.spec.text_tokens)
    if memory is not None:
        size += BYTES["fp32"] * 2 * memory.slots * frame_tokens
    return batch * size * plan.spec.width * plan.spec.layers


def room(spec: BackboneSpec) -> float:
    """By how much the peak of a block is above that of attention which follows a plan, in [B, N, C] tensors."""
    in_attention, beside = family_of(spec).peak_activations
    return max(0.0, beside + 2 * spec.ffn_dim / spec.width - in_attention - PLAN_OVERHEAD)


def memory_bytes(plan: Plan, dtype: str, offload: str = "none") -> dict[str, int]:
    """Estimated peak memory on the device, by part. Formula: `longgen docs cost-and-memory`."""
    spec, size, tokens = plan.spec, BYTES[dtype], math.prod(plan.call_grid)
    family = family_of(spec)
    in_attention, beside = family.peak_activations
    batch = 2 if family.batches_guidance and plan.guided else 1
    followed = [branch for program in plan.programs if program for branch in program.branches.values()]
    banded = any(pass_.band is not None for branch in followed for pass_ in branch.passes)
    in_attention += PLAN_OVERHEAD * bool(plan.table.any()) + BANDS_OVERHEAD * banded
    if any(branch.by_sign for branch in followed):
        of_frame = batch * spec.heads * math.prod(plan.call_grid[1:]) * tokens * BYTES["fp32"]  # the logits of its queries
        logits = 2 * min(of_frame, DEVICE_BYTES) / (batch * tokens * spec.width * size)  # and their softmax
        in_attention += SIGN_OVERHEAD + max(2.0, logits)  # before, q is scaled, in single precision
    alive = max(in_attention, beside + 2 * spec.ffn_dim / spec.width)
    own_levels = plan.sampling is not None and plan.sampling.frame_levels
    clean = bool(plan.conditions) and plan.chunk_lat is None and not spec.condition_channels  # first frames, at timestep 0
    alive += family.token_modulation * (own_levels or clean)
    activations = round(alive * batch * tokens * spec.width * size) + 8 * tokens * spec.head_dim + cache_bytes(plan, dtype)
    kept, kept_bytes = spec.kept
    weights, companions = kept_bytes + size * (spec.parameters - kept), size * spec.companions
    peak = weights + activations + companions
    if offload == "model":
        peak = max(companions, weights + activations)
    elif offload in ("group", "sequential"):
        peak = max(weights, companions) // 10 + activations
    return {"weights": weights, "companions": companions, "activations": activations, "peak": peak}
