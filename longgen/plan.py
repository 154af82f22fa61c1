"""Preset + backbone + length -> Plan: everything that integers can decide, before any weight is loaded.

Legend: T latent frames, n tokens per latent frame, N = T n tokens, d channels, L layers, S steps.

In a rollout frame plans are made for every chunk anew, of its frames against all before: `Plan.rolled`. What the plan itself
holds, prints and exports are those of the last chunk.

A `Program` is what one layer does in one step: branches, each with its frame plan, and the fusion that makes one output
of them. `Plan.table[layer, step]` names the program; 0 is the backbone's own attention. `build` refuses what cannot be,
in the user's words, and prices the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from longgen import frames, price
from longgen.backbones.spec import CAPABILITIES, SPECS, BackboneSpec
from longgen.catalog import TECHNIQUES
from longgen.catalog import technique as technique_class
from longgen.errors import UsageError, shown
from longgen.frameplan import Clip, FramePlan, neutral
from longgen.preset import Preset, Sample, name_of
from longgen.schedule import Schedule, by_chunk, check, weights
from longgen.technique import FrameTechnique, FrequencyTechnique, Fusion, Grid, NoiseTechnique, Refine, Sampling, Technique


@dataclass(frozen=True, eq=False)
class Program:
    """What a layer does in a step: named branches, and the fusion of their outputs (None with a single branch)."""

    branches: dict[str, FramePlan]
    fusion: Fusion | None = None

    @property
    def density(self) -> float:
        """Attention computed, as a share of direct attention; above 1 with several branches."""
        return sum(plan.density for plan in self.branches.values())

    def density_at(self, tokens: int) -> float:
        """`density` at `tokens` a frame."""
        return sum(plan.density_at(tokens) for plan in self.branches.values())

    @property
    def spared(self) -> float:
        """Of `density`, what the fusion leaves out on the mean over its steps, as their timesteps decide."""
        return sum((1 - self.fusion.share(name)) * plan.density for name, plan in self.branches.items()) if self.fusion else 0.0


@dataclass(frozen=True)
class Acting:
    """A technique of the stack and where it acts."""

    name: str
    technique: Technique
    layers: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """One generation, decided. `programs[0]` is None and stands for the backbone's own attention.

    frames_px: pixel frames that come out. sample: every field filled in. clip: the whole video; seen: what the model sees of it
    at a time, which frame plans are made for; in a rollout a chunk. table: [L, S] indices into `programs`.
    notes: what a person should know before starting.
    """

    spec: BackboneSpec
    preset: Preset
    sample: Sample
    frames_px: int
    frames_lat: int
    clip: Clip
    seen: Clip
    acting: tuple[Acting, ...]
    programs: tuple[Program | None, ...]
    table: np.ndarray
    notes: tuple[str, ...] = field(default=())
    schedule: Schedule | None = None

    @property
    def steps(self) -> int:
        return self.table.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        assert self.sample.size is not None
        return self.sample.size

    @property
    def grid(self) -> Grid:
        """Latent frames, and rows and columns of tokens in each."""
        return self.frames_lat, *self.spec.frame_grid(self.size)

    @property
    def seen_grid(self) -> Grid:
        """The grid of what the model sees at a time."""
        return self.seen.frames_lat, *self.grid[1:]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def sampling(self) -> Sampling | None:
        """The technique that decides the order of sampling; None is direct sampling."""
        return next((act.technique for act in self.acting if isinstance(act.technique, Sampling)), None)

    @property
    def shares(self) -> np.ndarray | None:
        """[S, T]: with a schedule, the share of each shot's prompt in each latent frame."""
        if self.schedule is None:
            return None
        return weights(self.schedule, self.frames_px, self.spec.stride_t, self.sample.fps or self.spec.fps)

    @property
    def guided(self) -> bool:
        """Whether the model is run with the negative prompt too, as diffusers' pipelines decide it."""
        return not self.spec.embedded_guidance and (self.sample.guidance_scale or 0.0) > 1

    @property
    def in_clips(self) -> bool:
        """Whether the model sees a clip of the video at a time, several of which can be denoised in one call."""
        return self.sampling is not None and not self.sampling.in_chunks and self.seen.frames_lat < self.frames_lat

    @property
    def rounds(self) -> int:
        """The rounds of sampling, which progress and checkpoints count: the steps, unless a technique has its own loop."""
        return self.sampling.rounds(self.frames_lat, self.clip.native_lat, self.steps) if self.sampling else self.steps

    @property
    def chunk_lat(self) -> int | None:
        """Latent frames of a chunk in a rollout; None where frames are denoised together."""
        return self.seen.frames_lat if self.sampling is not None and self.sampling.in_chunks else None

    def rolled(
        self, frames_lat: int, queries: int, held: Sequence[int] | None = None
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        """In a rollout that has come to `frames_lat` frames, the programs and table of its last `queries`.

        held: the frames before them that are still there; all unless given.
        """
        clip, own = replace(self.clip, frames_lat=frames_lat), neutral(frames_lat, queries)
        if held is not None:
            there = np.isin(np.arange(frames_lat), held) | (np.arange(frames_lat) >= frames_lat - queries)
            own = own.see_only(np.broadcast_to(there, own.shape))
        programs, table, _ = _programs(self.acting, clip, own, self.spec.layers, self.steps)
        return programs, table

    @property
    def rounds_lat(self) -> int:
        """Latent frames of all chunks of a rollout, the last one whole."""
        return self.rounds * self.seen.frames_lat

    @property
    def slots_lat(self) -> int:
        """Latent frames that a rollout's cache has room for: what the last chunk sees, in any layer and step."""
        if not self.table.all():
            return self.rounds_lat
        plans = [plan for program in self.programs if program for plan in program.branches.values()]
        return int(np.any([one.visible.any(axis=0) for plan in plans for one in plan.passes], axis=0).sum())

    @property
    def calls(self) -> float:
        """Model calls a step on what the model sees at a time, guidance apart."""
        return self.sampling.calls(self.frames_lat, self.clip.native_lat) if self.sampling else 1.0

    @property
    def refinements(self) -> tuple[tuple[Refine, tuple[int, ...]], ...]:
        """The techniques that change the latent after a step, each with its steps."""
        return tuple((act.technique, act.steps) for act in self.acting if isinstance(act.technique, Refine))

    @property
    def noise(self) -> NoiseTechnique | None:
        """The technique that makes the initial noise."""
        makers = (act.technique for act in self.acting if isinstance(act.technique, NoiseTechnique) and act.technique.noise)
        return next(makers, None)

    @property
    def duration_s(self) -> float:
        return self.frames_px / (self.sample.fps or self.spec.fps)

    def operations(self, program: Program | None, grid: Grid | None = None, keys: int | None = None) -> int:
        """Floating-point operations of one layer for one model call (multiply and add counted apart), on `seen_grid` or `grid`.

        keys: in a rollout, the tokens that attention is over, its own included.
        """
        return price.operations(self, program, grid or self.seen_grid, keys)

    @cached_property
    def _cost(self) -> tuple[float, float]:
        return price.cost(self)

    @property
    def cost(self) -> float:
        """Arithmetic of the transformer over the whole schedule, against direct sampling of the same length in its own steps.

        The floor of what a run can take: `longgen bench` sets the time beside it.
        """
        return self._cost[0]

    @property
    def attention_cost(self) -> float:
        """Frame pairs attended over the whole schedule, against direct sampling."""
        return self._cost[1]

    def cache_bytes(self, dtype: str) -> int:
        """A rollout's cache: keys as they are and as they are turned, and values; those of the text; with guidance all twice."""
        return price.cache_bytes(self, dtype)

    def memory_bytes(self, dtype: str, offload: str = "none") -> dict[str, int]:
        """Estimated peak on the device, by part. Formula: README, "Memory"."""
        return price.memory_bytes(self, dtype, offload)

    def branches(self) -> dict[str, tuple[FramePlan, list[int], list[int]]]:
        """Every distinct branch by name, with the layers and the steps that run it; `main` where there is no fusion."""
        found: dict[str, tuple[FramePlan, list[int], list[int]]] = {}
        keys: dict[tuple[str, str], str] = {}
        for index, program in enumerate(self.programs):
            where = self.table == index
            if not where.any():
                continue
            own = neutral(self.seen.frames_lat) if self.chunk_lat is None else neutral(self.rounds_lat, self.chunk_lat)
            plans = {"main": own} if program is None else program.branches
            for name, plan in plans.items():
                label = keys.get((name, plan.key))
                if label is None:
                    taken = sum(other == name for other, _ in keys)
                    label = keys[name, plan.key] = name if not taken else f"{name}-{taken + 1}"
                    found[label] = (plan, [], [])
                found[label][1].extend(np.flatnonzero(where.any(axis=1)).tolist())
                found[label][2].extend(np.flatnonzero(where.any(axis=0)).tolist())
        return {k: (plan, sorted(set(layers)), sorted(set(steps))) for k, (plan, layers, steps) in found.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables as arrays: `<branch>/<pass>/rel|visible|weight|stripe`, `<branch>/scale`, and layer and step lists."""
        arrays: dict[str, np.ndarray] = {}
        for name, (plan, layers, steps) in self.branches().items():
            for index, one in enumerate(plan.passes):
                arrays |= {f"{name}/{index}/rel": one.rel, f"{name}/{index}/visible": one.visible,
                           f"{name}/{index}/weight": one.weight}  # fmt: skip
                if one.stripe is not None:
                    arrays[f"{name}/{index}/stripe"] = one.stripe
            arrays[f"{name}/scale"] = np.ones(len(self.clip.frequencies)) if plan.scale is None else plan.scale
            arrays |= {f"{name}/layers": np.array(layers), f"{name}/steps": np.array(steps)}
        for act in self.acting:
            arrays |= {
                f"techniques/{act.name}/layers": np.array(act.layers),
                f"techniques/{act.name}/steps": np.array(act.steps),
            }
        return arrays

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain data, without its tables."""
        return {
            "name": self.preset.name,
            "backbone": self.spec.name,
            "frames": self.frames_px,
            "latent_frames": self.frames_lat,
            "native_latent_frames": self.spec.native_lat,
            "duration_s": round(self.duration_s, 3),
            "sample": self.sample.model_dump(mode="json"),
            "techniques": [
                {"name": act.name, "slot": act.technique.slot, "paper": act.technique.paper, "layers": list(act.layers),
                 "steps": list(act.steps), "parameters": act.technique.model_dump(mode="json", exclude={"layers", "steps"})}
                for act in self.acting
            ],
            "schedule": None if self.schedule is None else self.schedule.as_dict(),
            "seen_latent_frames": self.seen.frames_lat,
            "calls_per_step": round(self.calls, 3),
            "branches": [
                {"name": name, "layers": layers, "steps": steps, "passes": len(plan.passes), "density": round(plan.density, 6)}
                for name, (plan, layers, steps) in self.branches().items()
            ],
            "cost_ratio": round(self.cost, 4),
            "attention_ratio": round(self.attention_cost, 4),
            "notes": list(self.notes),
        }  # fmt: skip


def build(preset: Preset, spec: BackboneSpec, schedule: Schedule | None = None, said: Sequence[str] = ()) -> Plan:
    """Decides one generation, with a `schedule` in place of one prompt. said: notes on how `preset` came to be.

    Raises UsageError for what the backbone cannot do or the stack contradicts.
    """
    notes = [*said]
    own = preset.sample_on(spec)
    sample = own.over(
        Sample(frames=spec.native_px, size=spec.size, steps=spec.steps, guidance_scale=spec.guidance_scale,
               negative_prompt=spec.negative_prompt, fps=spec.fps)
    )  # fmt: skip
    size, asked_px = sample.size or spec.size, sample.frames or spec.native_px
    frames_px = frames.round_up(asked_px, spec.stride_t)
    if frames_px != asked_px:
        notes.append(f"{asked_px} frames asked, {frames_px} made: {spec.name} makes {spec.stride_t}n+1")
        sample = sample.model_copy(update={"frames": frames_px})
    frames_lat = frames.latent_frames(frames_px, spec.stride_t)
    techniques = _completed(preset, spec)
    sampling = next((technique for technique in techniques if isinstance(technique, Sampling)), None)
    seen_lat = sampling.seen(frames_lat, spec.native_lat) if sampling else frames_lat
    asked = own.steps
    if (asked or 0) > MOST_STEPS:
        raise UsageError(f"{shown(asked)} steps are more than the noise levels that models are trained on",
                         accepted=f"1 to {MOST_STEPS} steps", do="take fewer --steps")  # fmt: skip
    steps = (sampling.schedule_steps(frames_lat, spec.native_lat, asked) if sampling else asked) or spec.steps
    sample = sample.model_copy(update={"steps": steps})
    _check_geometry(spec, size, asked_px, seen_lat)
    if steps < spec.least_steps:
        raise UsageError(f"{steps} step is too few for {spec.name}: its scheduler divides by zero",
                         accepted=f"{spec.least_steps} or more", do="take more --steps")  # fmt: skip
    if sample.flow_shift is not None and spec.fixed_shift is not None:
        able = ", ".join(known.name for known in SPECS.values() if known.fixed_shift is None)
        raise UsageError(f"a flow shift of {sample.flow_shift:g} is asked, and {spec.name} takes none: {spec.fixed_shift}",
                         accepted=f"no --flow-shift, and none in the preset; or one of {able}", do="leave it out")  # fmt: skip
    if spec.embedded_guidance and sample.negative_prompt:
        raise UsageError(f"{spec.name} reads no negative prompt: its guidance is an input of the model",
                         accepted="no --negative-prompt", do="leave it out")  # fmt: skip
    if schedule is not None:
        check(schedule, frames_px, sample.fps or spec.fps)
        shares = weights(schedule, frames_px, spec.stride_t, sample.fps or spec.fps)  # refuses a shot that no latent frame shows
        if sampling and sampling.in_chunks:  # or no chunk
            by_chunk(schedule, shares, seen_lat, Fraction(spec.stride_t, sample.fps or spec.fps))
        if seen_lat == frames_lat and spec.joint_text:
            able = ", ".join(s.name for s in SPECS.values() if not s.joint_text)
            raise UsageError(f"--schedule needs clips on {spec.name}, whose text is in self-attention and the same for all frames",
                             accepted=f"a preset that samples clip by clip, as gen-l-video; or one of {able}",
                             do="--preset gen-l-video or glc-diffusion")  # fmt: skip
    in_chunks = sampling is not None and sampling.in_chunks
    clip = Clip(frames_lat, spec.native_lat, spec.frequencies, spec.intrinsic_component, in_chunks=in_chunks)
    seen = replace(clip, frames_lat=seen_lat, in_clips=seen_lat < frames_lat)
    acting = tuple(sorted((_acting(technique, spec, steps) for technique in techniques), key=_turn))
    _refuse_contradictions(acting)
    for act in acting:
        if isinstance(act.technique, NoiseTechnique) and act.technique.noise:
            act.technique.check_noise(clip)
    if sampling and sampling.in_chunks:
        rolled_lat = seen_lat * sampling.rounds(frames_lat, spec.native_lat, steps)
        seen = replace(seen, in_clips=False)
        programs, table, inert = _programs(acting, replace(clip, frames_lat=rolled_lat), neutral(rolled_lat, seen_lat),
                                           spec.layers, steps)  # fmt: skip
    else:
        programs, table, inert = _programs(acting, seen, neutral(seen.frames_lat), spec.layers, steps)
    for act in acting:
        given = act.technique in preset.techniques
        if given and act.name in inert and not _acts_besides(act.technique, clip, seen):
            notes.append(f"{act.name} changes nothing at {frames_px} frames of {spec.name}: it is the identity there")
    edits = [act.name for act in acting if isinstance(act.technique, Refine)]
    if sampling and sampling.frame_levels and seen_lat < frames_lat:
        queue = name_of(sampling)
        if edits:
            raise UsageError(f"{' and '.join(edits)} edits the latent after a step, and with {queue} no step is all frames'",
                             accepted="one of them", do=f"take a preset without {queue} or without {edits[0]}")  # fmt: skip
        notes.append(f"{queue} keeps a noise level for every frame: {steps} steps where {spec.name} has {spec.steps}, "
                     f"by {spec.first_order}")  # fmt: skip
    if edits:
        notes.append(f"{' and '.join(edits)} edits the latent, which some schedulers would undo: {spec.first_order} steps")
    if seen_lat > spec.native_lat and not table.any():
        notes.append(f"{frames_px} frames is {frames_px / spec.native_px:.1f} times what {spec.name} was trained on, and no "
                     "technique acts: expect slow or frozen motion; longgen presets list shows what there is")  # fmt: skip
    if sample.flow_shift is None and spec.script_shift is not None and spec.name in SPECS:
        notes.append(f"the flow shift is the checkpoint's own; the authors' script takes {spec.script_shift:g}: --flow-shift "
                     f"{spec.script_shift:g}")  # fmt: skip
    if own.negative_prompt and not spec.embedded_guidance and (sample.guidance_scale or 0.0) <= 1:
        notes.append(f"the negative prompt is not read: guidance is off at a guidance scale of {sample.guidance_scale:g}; "
                      "it takes more than 1")  # fmt: skip
    if size != spec.size:
        width, height = spec.size
        notes.append(f"{size[0]}x{size[1]} is not the size {spec.name} was trained at ({width}x{height})")
    return Plan(spec, preset, sample, frames_px, frames_lat, clip, seen, acting, programs, table, tuple(notes), schedule)


def _completed(preset: Preset, spec: BackboneSpec) -> tuple[Technique, ...]:
    """The stack, and on a causal backbone what it leaves unsaid: a rollout, and a window of the native length."""
    techniques = preset.techniques
    for name in ("rollout", "window") if spec.causal else ():
        own = technique_class(name)()
        if not any(claim in technique.claims for technique in techniques for claim in own.claims):
            techniques = (*techniques, own)
    return techniques


MOST_STEPS = 1000  # every scheduler here has so many noise levels to choose from
FLOOR = "arithmetic against direct sampling"  # what `Plan.cost` is, in the words of plan, bench and presets
LONG = 4  # times the native length: where costs are compared
VERDICTS = ("position-sensitive", "context-sensitive")  # what a probe says of layers


def on_every_backbone(preset: Preset) -> dict[str, Plan | UsageError]:
    """By backbone, the plan of `preset` at LONG times the native length, or why that backbone cannot take it."""
    plans: dict[str, Plan | UsageError] = {}
    for name, spec in SPECS.items():
        frames_px = frames.pixel_frames(LONG * spec.native_lat - LONG + 1, spec.stride_t)
        try:
            plans[name] = build(
                preset.model_copy(update={"sample": Sample(frames=frames_px), "backbone_samples": {}}), as_if_probed(spec)
            )
        except UsageError as error:
            plans[name] = error
    return plans


def as_if_probed(spec: BackboneSpec) -> BackboneSpec:
    """`spec` with verdicts: as after a probe, which may find any layer."""
    return spec if spec.verdicts else replace(spec, verdicts=dict.fromkeys(VERDICTS, tuple(range(spec.layers))))


def _check_geometry(spec: BackboneSpec, size: tuple[int, int], asked_px: int, frames_lat: int) -> None:
    most_px = frames.pixel_frames(spec.most_lat, spec.stride_t)
    if frames_lat > spec.most_lat:
        raise UsageError(f"{asked_px} frames are more than {spec.name} can address", accepted=f"1 to {most_px} frames",
                         do="make it shorter, or several videos")  # fmt: skip
    for side, length, multiple in zip(("width", "height"), size, spec.size_multiple, strict=True):
        if length % multiple:
            below = length // multiple * multiple
            near = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise UsageError(f"{side} {length} does not fit {spec.name}", accepted=f"multiples of {multiple}", do=f"take {near}")


def _acting(technique: Technique, spec: BackboneSpec, steps: int) -> Acting:
    name = name_of(technique)
    for need in technique.needs:
        if need not in spec.capabilities:
            able = ", ".join(s.name for s in SPECS.values() if need in s.capabilities)
            raise UsageError(f"{name} needs {need} ({CAPABILITIES[need]}), which {spec.name} does not have",
                             accepted=f"backbones that have it: {able}",
                             do="choose one of them, or a preset without it")  # fmt: skip
    if technique.layers == "all":
        layers = tuple(range(spec.layers))
    elif isinstance(technique.layers, tuple):
        layers = tuple(sorted(set(technique.layers)))
    elif technique.layers in spec.verdicts:
        layers = spec.verdicts[technique.layers]
    else:
        raise UsageError(f"{name}.layers = {technique.layers!r}: nobody has probed which layers of {spec.name} are, at this length",
                         accepted="a probe of it, all, or a list of layers",
                         do=f"longgen probe --backbone {spec.name} --frames N, --probe run, or --layers all")  # fmt: skip
    if layers and layers[-1] >= spec.layers:
        raise UsageError(f"{name}.layers has {layers[-1]}, but {spec.name} has {spec.layers} layers",
                         accepted=f"0 to {spec.layers - 1}", do=f"--set {name}.layers=[0,1] or leave it out")  # fmt: skip
    for key in {"noise": ("layers", "steps"), "sampling": ("layers", "steps"), "refine": ("layers",)}.get(technique.slot, ()):
        if getattr(technique, key) != type(technique).model_fields[key].default:
            raise UsageError(f"{name}.{key} is given, and a technique of {technique.slot} acts on all of them",
                             accepted=f"{key} left out", do=f"leave {name}.{key} out")  # fmt: skip
    return Acting(name, technique, layers, tuple(technique.step_range(steps)))


def _turn(act: Acting) -> tuple[int, int]:
    """When `act` applies: noise, times, fusion, context, times by it, frequencies, sampling, refinement; then by the catalog."""
    turns = ("noise", "positions", "fusion", "context", "after context", "frequencies", "sampling", "refine")
    late = isinstance(act.technique, FrameTechnique) and act.technique.after_context
    turn = "frequencies" if isinstance(act.technique, FrequencyTechnique) else "after context" if late else act.technique.slot
    return turns.index(turn), list(TECHNIQUES).index(act.name)


def _acts_besides(technique: Technique, clip: Clip, seen: Clip) -> bool:
    """Whether `technique` does something besides frame plans."""
    if isinstance(technique, NoiseTechnique) and technique.noise and clip.ratio > 1:
        return True
    return isinstance(technique, Refine) or (isinstance(technique, Sampling) and seen.frames_lat < clip.frames_lat)


def _refuse_contradictions(acting: tuple[Acting, ...]) -> None:
    for one, other in itertools.combinations(acting, 2):
        both = [claim for claim in one.technique.claims if claim in other.technique.claims]
        if both and set(one.layers) & set(other.layers) and set(one.steps) & set(other.steps):
            raise UsageError(f"{one.name} and {other.name} both decide {' and '.join(both)} in the same layers and steps",
                             accepted="one of them there", do="remove one, or give them different layers or steps")  # fmt: skip
    makers = [act.name for act in acting if isinstance(act.technique, NoiseTechnique) and act.technique.noise]
    if len(makers) > 1:
        raise UsageError(f"{' and '.join(makers)} both make the initial noise", accepted="one of them",
                         do=f"--set {makers[0]}.noise=false")  # fmt: skip


def _programs(
    acting: tuple[Acting, ...], clip: Clip, own: FramePlan, layers: int, steps: int
) -> tuple[tuple[Program | None, ...], np.ndarray, list[str]]:
    """The distinct programs, the table [L, S] of their indices, and the names of techniques that change nothing.

    own: the backbone's own attention, which they change.
    """
    programs: list[Program | None] = [None]
    index_of: dict[tuple[object, ...], int] = {}
    changes = {act.name: False for act in acting}
    table = np.zeros((layers, steps), dtype=np.int64)
    decided: dict[tuple[tuple[int, ...], int], int] = {}  # by stack and step: layers with the same stack do the same
    made: dict[tuple[tuple[int, ...], bool | int], tuple[dict[str, FramePlan], Fusion | None]] = {}
    for layer, step in itertools.product(range(layers), range(steps)):
        stack = tuple(i for i, act in enumerate(acting) if layer in act.layers and step in act.steps)
        if not stack:
            continue
        if (stack, step) in decided:
            table[layer, step] = decided[stack, step]
            continue
        fuses = any(isinstance(acting[i].technique, Fusion) for i in stack)
        case = (stack, step if fuses else True)  # without a fusion, all steps are alike
        if case not in made:
            made[case] = _stacked([acting[i] for i in stack], clip, own, step, steps, changes)
        branches, fusion = made[case]
        decided[stack, step] = 0
        if fusion is None and next(iter(branches.values())).is_neutral:
            continue
        key = (tuple((name, plan.key) for name, plan in branches.items()), fusion)
        if key not in index_of:
            index_of[key] = len(programs)
            programs.append(Program(branches, fusion))
        table[layer, step] = decided[stack, step] = index_of[key]
    return tuple(programs), table, [name for name, changed in changes.items() if not changed]


def _stacked(
    stack: list[Acting], clip: Clip, own: FramePlan, step: int, steps: int, changes: dict[str, bool]
) -> tuple[dict[str, FramePlan], Fusion | None]:
    """The branches that `stack`, in its order, makes of the backbone's own attention; notes in `changes` what acted."""
    branches, fusion = {"main": own}, None
    for act in stack:
        technique, before = act.technique, {plan.key for plan in branches.values()}
        if isinstance(technique, FrameTechnique):
            branches = {name: technique.reshape(plan, clip) for name, plan in branches.items()}
        elif isinstance(technique, FrequencyTechnique):
            branches = {name: technique.rescale(plan, clip) for name, plan in branches.items()}
        elif isinstance(technique, Fusion):
            fusion, branches = technique.settled(clip), technique.branches(branches["main"], clip, step, steps)
        changes[act.name] |= {plan.key for plan in branches.values()} != before
    for plan in branches.values():
        _check_sight(" and ".join(act.name for act in stack), plan)
    if len(branches) > 1 and len({plan.key for plan in branches.values()}) == 1:
        branches = {"main": next(iter(branches.values()))}  # equal branches fuse to themselves
    return branches, fusion if len(branches) > 1 else None


def _check_sight(stack: str, plan: FramePlan) -> None:
    for one in plan.passes:
        blind = np.flatnonzero((one.weight > 0) & ~one.visible.any(axis=1))
        if len(blind):
            raise UsageError(f"{stack} leave frame {blind[0]} nothing to see", accepted="a stack in which every frame sees one",
                             do="remove a technique, or widen a window")  # fmt: skip
        rows, columns = plan.shape
        if rows < columns and not one.visible[:, -rows:].all():
            raise UsageError(f"{stack} show a chunk of {rows} latent frames less than itself",
                             accepted=f"a window of {rows} or more", do=f"--set window.frames={rows} or more")  # fmt: skip


def count_label(numbers: tuple[int, ...], total: int) -> str:
    """`all 30`, `0-9`, `0, 3-5 of 30`: a short way to write a sorted list of layers or steps."""
    if len(numbers) == total:
        return f"all {total}"
    runs = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"{', '.join(runs) or 'none'} of {total}"


def human_bytes(count: float) -> str:
    """`1.5 GB`: powers of 1000, two significant places below ten."""
    if count < 1:
        return "0 B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
