"""How one video is split between ranks, decided with its plan: by clips, or by tokens and heads; and guidance's two calls apart.

Every rank has all weights. Clips of a step go to different ranks, each whole; nothing is exchanged but what they predict. Else a
rank has some of the tokens, and in attention some of the heads (`longgen.attention.ulysses`). With guidance in parallel one half of
the ranks predicts with the prompt and the other half with the negative prompt.

Legend: P ranks that share heads, B batch, N tokens of a model call, C channels, K clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from longgen import cost
from longgen.backbones.registry import FAMILIES, family_of
from longgen.backbones.settings import ModelSettings
from longgen.errors import UsageError
from longgen.plan import Plan
from longgen.sampling.multidiffusion import MultiDiffusion

How = Literal["whole", "clips", "heads"]


@dataclass(frozen=True)
class Split:
    """ranks: of the group. how: what each half has, or all of them without guidance in parallel; guidance: whether it is."""

    ranks: int = 1
    how: How = "whole"
    guidance: bool = False

    @property
    def shares(self) -> int:
        """P or, of clips, the ranks that they are spread over."""
        return self.ranks // (1 + self.guidance)


def split_of(plan: Plan, settings: ModelSettings) -> Split:
    """How `plan` is split between the ranks of `settings`. Raises UsageError where it cannot be."""
    ranks, spec = settings.gpus, plan.spec
    if settings.guidance_parallel:
        if ranks < 2 or ranks % 2:
            raise UsageError(f"--guidance-parallel with --gpus {ranks}: its two calls run on two halves of the ranks",
                             expected="an even number of ranks", hint="give --gpus 2")  # fmt: skip
        if not plan.guided:
            raise UsageError(f"--guidance-parallel has no effect: {plan.preset.name} on {spec.name} runs without guidance",
                             expected="a guidance scale above 1", hint="leave it out")  # fmt: skip
        if isinstance(plan.sampling, MultiDiffusion) and plan.in_clips:
            raise UsageError(f"--guidance-parallel is for models that see the whole video, and {plan.preset.name} has clips",
                             expected="--gpus alone, which shares out the clips", hint="leave it out")  # fmt: skip
    if ranks == 1:
        return Split()
    if spec.sound is not None and settings.guidance_parallel:
        raise UsageError(f"--guidance-parallel: a step of {spec.name} has a third call, without the attention between video and "
                         "audio, for which there is no half", expected="--gpus alone", hint="leave it out")  # fmt: skip
    _check_settings(ranks, settings)
    shares = ranks // (1 + settings.guidance_parallel)
    if shares == 1:
        return Split(ranks, "whole", True)
    if isinstance(plan.sampling, MultiDiffusion) and plan.in_clips:
        return Split(ranks, "clips")
    _check_heads(plan, shares)
    return Split(ranks, "heads", settings.guidance_parallel)


def _check_settings(ranks: int, settings: ModelSettings) -> None:
    refused = {
        "--cache": (settings.cache, "decides on each rank by what it sees there"),
        "--compile": (settings.compile, "would compile the exchange between ranks, which nobody has tried"),
        "--offload": (settings.offload != "none", "moves weights by hooks that were not tried with those that split tokens"),
    }
    for option, (given, why) in refused.items():
        if given:
            raise UsageError(f"{option} cannot be combined with --gpus {ranks}: it {why}", expected="one of them",
                             hint=f"leave {option} out")  # fmt: skip


def _check_heads(plan: Plan, shares: int) -> None:
    spec = plan.spec
    if not family_of(spec).context_parallel:
        able = ", ".join(dict.fromkeys(family.title for family in FAMILIES.values() if family.context_parallel))
        raise UsageError(f"{spec.name} cannot be split between {shares} ranks: diffusers has no context-parallel plan for it",
                         expected=f"{able}; or a preset of clips, as gen-l-video", hint="leave --gpus out")  # fmt: skip
    if spec.heads % shares:
        fits = [str(count) for count in range(2, spec.heads + 1) if spec.heads % count == 0]
        raise UsageError(f"{spec.name} has {spec.heads} heads, which {shares} ranks cannot share evenly",
                         expected=f"{', '.join(fits[:6])} ranks", hint="choose such a number")  # fmt: skip
    if plan.memory is not None and plan.memory.over_heads:
        raise UsageError(f"{plan.preset.name} cannot be split between {shares} ranks: what its cache remembers is chosen over all "
                         "heads, of which each has some", expected="a rollout whose heads are on their own",
                         hint="leave --gpus out")  # fmt: skip
    frame = math.prod(plan.call_grid[1:])
    frames = {count for _, count in plan.chunks} if plan.chunk_lat is not None else {plan.call_geometry.frames_lat}
    if uneven := [count for count in sorted(frames) if count * frame % shares]:
        width, height = plan.size
        raise UsageError(f"{uneven[0]} latent frames of {width}x{height} are {uneven[0] * frame} tokens, which {shares} ranks "
                         "cannot share evenly", expected="a number of tokens that they divide",
                         hint="change --frames or --size a little, or the number of ranks")  # fmt: skip


def numbers(plan: Plan, settings: ModelSettings) -> dict[str, Any]:
    """What one rank has of `plan`: its share of the arithmetic, its memory, and the bytes that it sends in a step.

    Raises UsageError as `split_of`.
    """
    split, size = split_of(plan, settings), cost.BYTES[settings.dtype]
    memory = cost.memory_bytes(plan, settings.dtype, settings.offload)
    share, sent = _share(plan, split), _sent(plan, split, size)
    activations = round(memory["activations"] * (_kept(plan, split)))
    return {
        "ranks": split.ranks,
        "how": split.how,
        "guidance_parallel": split.guidance,
        "arithmetic": share,
        "peak_bytes": memory["peak"] - memory["activations"] + activations,
        "sent_bytes": sent,
    }


def _share(plan: Plan, split: Split) -> float:
    """The part of the blocks' arithmetic that the busiest rank has. Every rank computes all of a fusion, and the audio's stream."""
    halves = 0.5 if split.guidance else 1.0
    if split.how == "whole":
        return halves
    if split.how == "clips":
        shares = []
        for anchors in _layouts(plan):
            made = [{*range(rank, len(anchors), split.shares)} for rank in range(split.shares)]
            lent = [own | {anchors[clip] for clip in own if _anchored(plan)} for own in made]  # a rank makes the anchors of its own
            shares.append(max(map(len, lent)) / len(anchors))
        return sum(shares) / len(shares)
    grid, keys = plan.call_grid, None
    whole = shared = 0.0
    counts = [int((plan.table == index).sum()) for index in range(len(plan.programs))]
    for program, count in zip(plan.programs, counts, strict=True):
        operations = float(cost.flops(plan, program, grid, keys))
        on_all = cost.audio_flops(plan.spec, grid)
        on_all += program.fusion.flops(grid, plan.spec.width) if program and program.fusion else 0
        whole += count * operations
        shared += count * ((operations - on_all) / split.shares + on_all)
    return halves * shared / whole


def _layouts(plan: Plan) -> list[tuple[int, ...]]:
    """The anchor of each clip, for each place that clips can be at, in the middle of the schedule."""
    assert isinstance(plan.sampling, MultiDiffusion)
    length = plan.call_geometry.frames_lat
    return [plan.sampling.clips(plan.frames_lat, length, 500.0, shift).anchors for shift in range(plan.sampling.shifts(length))]


def _anchored(plan: Plan) -> bool:
    return any(frame_plan.anchor for frame_plan, _, _ in plan.branches().values())


def _kept(plan: Plan, split: Split) -> float:
    """The part of a model call's activations that a rank has at its peak."""
    batched = 0.5 if split.guidance and family_of(plan.spec).batches_guidance else 1.0
    if split.how != "heads":
        return batched
    fused = any(program is not None and program.fusion is not None for program in plan.programs)
    return batched * (1.0 if fused else 1 / split.shares)


def _sent(plan: Plan, split: Split, size: int) -> int:
    """Bytes that the busiest rank sends in one step on average, to all others; of a rollout or a chain, of one chunk or clip."""
    spec, grid = plan.spec, plan.call_grid
    tokens, branches = math.prod(grid), 2 if plan.guided else 1
    latents = tokens * math.prod(spec.patch) * spec.latent_channels * size
    if split.how == "clips":
        layouts = _layouts(plan)
        clips = sum(math.ceil(len(anchors) / split.shares) for anchors in layouts) / len(layouts)
        return round(clips * branches * latents * (split.shares - 1))
    total = float(latents) if split.guidance else 0.0
    if split.how == "heads":
        p = split.shares
        calls = (1 if split.guidance else branches) * (1 if plan.chunk_lat is not None or plan.clips else plan.calls)
        calls += spec.more_calls * plan.guided
        one = tokens / p * spec.width * size  # of this rank's tokens, all channels
        exchanged = one * (p - 1) / p
        of_layers = 0.0
        for index, program in enumerate(plan.programs):
            outputs = exchanged if program is None or program.fusion is None else len(program.branches) * one * (p - 1)
            chosen = program is not None and any(branch.key_frames is not None for branch in program.branches.values())
            features = one * (p - 1) * chosen  # by which key frames are chosen
            of_layers += float((plan.table == index).sum()) / plan.steps * (3 * exchanged + outputs + features)
        heard = 0.0 if spec.sound is None else 2 * tokens / p * spec.sound.width * size * (p - 1)  # keys and values for the audio
        isolated = 1 if spec.sound is not None and plan.guided else 0  # one call is without
        pairs = spec.width // 2 if spec.rotary_span_s is not None else spec.head_dim // 2  # of LTX-Video a table is of all heads
        tables = 2 * cost.BYTES["fp32"] * tokens / p * pairs * (p - 1) * bool(plan.table.any()) * bool(spec.frequencies)
        tables *= spec.sound is None  # LTX-2's are whole on every rank
        total += calls * (of_layers + tables + latents / p * (p - 1)) + (calls - isolated) * spec.layers * heard
    return round(total)
