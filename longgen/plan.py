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
from functools import cached_property
from typing import Any

import numpy as np

from longgen import cost
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, full_attention
from longgen.preset import Preset, Sample
from longgen.program import Program
from longgen.schedule import PromptSchedule, weights
from longgen.technique import FrameTechnique, FrequencyTechnique, Fusion, Grid, NoiseTechnique, Refine, Sampling, Technique


@dataclass(frozen=True)
class PlacedTechnique:
    """A technique of the stack and where it acts."""

    name: str
    technique: Technique
    layers: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """One generation, decided. `programs[0]` is None and stands for the backbone's own attention.

    frames_px: pixel frames that come out. sample: every field filled in. geometry: of the whole video. call_geometry: of what one model call
    covers, which frame plans are made for; in a rollout a chunk. table: [L, S] indices into `programs`.
    notes: what a person should know before starting.
    """

    spec: BackboneSpec
    preset: Preset
    sample: Sample
    frames_px: int
    frames_lat: int
    geometry: Geometry
    call_geometry: Geometry
    techniques: tuple[PlacedTechnique, ...]
    programs: tuple[Program | None, ...]
    table: np.ndarray
    notes: tuple[str, ...] = field(default=())
    schedule: PromptSchedule | None = None

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
    def call_grid(self) -> Grid:
        """The grid of what the model sees at a time."""
        return self.call_geometry.frames_lat, *self.grid[1:]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def sampling(self) -> Sampling | None:
        """The technique that decides the order of sampling; None is direct sampling."""
        return next((act.technique for act in self.techniques if isinstance(act.technique, Sampling)), None)

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
        return self.sampling is not None and not self.sampling.in_chunks and self.call_geometry.frames_lat < self.frames_lat

    @property
    def rounds(self) -> int:
        """The rounds of sampling, which progress and checkpoints count: the steps, unless a technique has its own loop."""
        return self.sampling.rounds(self.frames_lat, self.geometry.native_lat, self.steps) if self.sampling else self.steps

    @property
    def chunk_lat(self) -> int | None:
        """Latent frames of a chunk in a rollout; None where frames are denoised together."""
        return self.call_geometry.frames_lat if self.sampling is not None and self.sampling.in_chunks else None

    def programs_for_chunk(
        self, frames_lat: int, queries: int, held: Sequence[int] | None = None
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        """In a rollout that has come to `frames_lat` frames, the programs and table of its last `queries`.

        held: the frames before them that are still there; all unless given.
        """
        geometry, own = replace(self.geometry, frames_lat=frames_lat), full_attention(frames_lat, queries)
        if held is not None:
            there = np.isin(np.arange(frames_lat), held) | (np.arange(frames_lat) >= frames_lat - queries)
            own = own.see_only(np.broadcast_to(there, own.shape))
        programs, table, _ = programs_of(self.techniques, geometry, own, self.spec.layers, self.steps)
        return programs, table

    @property
    def rounds_lat(self) -> int:
        """Latent frames of all chunks of a rollout, the last one whole."""
        return self.rounds * self.call_geometry.frames_lat

    @property
    def slots_lat(self) -> int:
        """Latent frames that a rollout's cache has room for: what the last chunk sees, in any layer and step."""
        if not self.table.all():
            return self.rounds_lat
        plans = [plan for program in self.programs if program for plan in program.branches.values()]
        return int(np.any([one.visible.any(axis=0) for plan in plans for one in plan.passes], axis=0).sum())

    @property
    def sink_lat(self) -> int:
        """Latent frames at the beginning that the stack keeps visible to the whole video."""
        return max((act.technique.sink_lat for act in self.techniques if isinstance(act.technique, FrameTechnique)), default=0)

    @property
    def calls(self) -> float:
        """Model calls a step on what the model sees at a time, guidance apart."""
        return self.sampling.calls(self.frames_lat, self.geometry.native_lat) if self.sampling else 1.0

    @property
    def refinements(self) -> tuple[tuple[Refine, tuple[int, ...]], ...]:
        """The techniques that change the latent after a step, each with its steps."""
        return tuple((act.technique, act.steps) for act in self.techniques if isinstance(act.technique, Refine))

    @property
    def noise(self) -> NoiseTechnique | None:
        """The technique that makes the initial noise."""
        makers = (act.technique for act in self.techniques if isinstance(act.technique, NoiseTechnique) and act.technique.noise)
        return next(makers, None)

    @property
    def duration_s(self) -> float:
        return self.frames_px / (self.sample.fps or self.spec.fps)

    def flops(self, program: Program | None, grid: Grid | None = None, keys: int | None = None) -> int:
        """Floating-point operations of one layer for one model call (multiply and add counted apart), on `call_grid` or `grid`.

        keys: in a rollout, the tokens that attention is over, its own included.
        """
        return cost.flops(self, program, grid or self.call_grid, keys)

    @cached_property
    def _cost(self) -> tuple[float, float]:
        return cost.cost(self)

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
        return cost.cache_bytes(self, dtype)

    def memory_bytes(self, dtype: str, offload: str = "none") -> dict[str, int]:
        """Estimated peak on the device, by part. Formula: README, "Memory"."""
        return cost.memory_bytes(self, dtype, offload)

    def branches(self) -> dict[str, tuple[FramePlan, list[int], list[int]]]:
        """Every distinct branch by name, with the layers and the steps that run it; `main` where there is no fusion."""
        found: dict[str, tuple[FramePlan, list[int], list[int]]] = {}
        keys: dict[tuple[str, str], str] = {}
        for index, program in enumerate(self.programs):
            where = self.table == index
            if not where.any():
                continue
            own = (
                full_attention(self.call_geometry.frames_lat)
                if self.chunk_lat is None
                else full_attention(self.rounds_lat, self.chunk_lat)
            )
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
            arrays[f"{name}/scale"] = (
                np.ones(len(self.geometry.frequencies)) if plan.frequency_scale is None else plan.frequency_scale
            )
            arrays |= {f"{name}/layers": np.array(layers), f"{name}/steps": np.array(steps)}
        for act in self.techniques:
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
                for act in self.techniques
            ],
            "schedule": None if self.schedule is None else self.schedule.as_dict(),
            "seen_latent_frames": self.call_geometry.frames_lat,
            "calls_per_step": round(self.calls, 3),
            "branches": [
                {"name": name, "layers": layers, "steps": steps, "passes": len(plan.passes), "density": round(plan.density, 6)}
                for name, (plan, layers, steps) in self.branches().items()
            ],
            "cost_ratio": round(self.cost, 4),
            "attention_ratio": round(self.attention_cost, 4),
            "notes": list(self.notes),
        }  # fmt: skip


def programs_of(
    placed: tuple[PlacedTechnique, ...], geometry: Geometry, own: FramePlan, layers: int, steps: int
) -> tuple[tuple[Program | None, ...], np.ndarray, list[str]]:
    """The distinct programs, the table [L, S] of their indices, and the names of techniques that change nothing.

    own: the backbone's own attention, which they change.
    """
    programs: list[Program | None] = [None]
    index_of: dict[tuple[object, ...], int] = {}
    changes = {act.name: False for act in placed}
    table = np.zeros((layers, steps), dtype=np.int64)
    decided: dict[tuple[tuple[int, ...], int], int] = {}  # by stack and step: layers with the same stack do the same
    made: dict[tuple[tuple[int, ...], bool | int], tuple[dict[str, FramePlan], Fusion | None]] = {}
    for layer, step in itertools.product(range(layers), range(steps)):
        stack = tuple(i for i, act in enumerate(placed) if layer in act.layers and step in act.steps)
        if not stack:
            continue
        if (stack, step) in decided:
            table[layer, step] = decided[stack, step]
            continue
        fuses = any(isinstance(placed[i].technique, Fusion) for i in stack)
        case = (stack, step if fuses else True)  # without a fusion, all steps are alike
        if case not in made:
            made[case] = _stacked([placed[i] for i in stack], geometry, own, step, steps, changes)
        branches, fusion = made[case]
        decided[stack, step] = 0
        if fusion is None and next(iter(branches.values())).is_stock:
            continue
        key = (tuple((name, plan.key) for name, plan in branches.items()), fusion)
        if key not in index_of:
            index_of[key] = len(programs)
            programs.append(Program(branches, fusion))
        table[layer, step] = decided[stack, step] = index_of[key]
    return tuple(programs), table, [name for name, changed in changes.items() if not changed]


def _stacked(
    stack: list[PlacedTechnique], geometry: Geometry, own: FramePlan, step: int, steps: int, changes: dict[str, bool]
) -> tuple[dict[str, FramePlan], Fusion | None]:
    """The branches that `stack`, in its order, makes of the backbone's own attention; notes in `changes` what acted."""
    branches, fusion = {"main": own}, None
    for act in stack:
        technique, before = act.technique, {plan.key for plan in branches.values()}
        if isinstance(technique, FrameTechnique | FrequencyTechnique):
            branches = {name: technique.apply(plan, geometry) for name, plan in branches.items()}
        elif isinstance(technique, Fusion):
            fusion, branches = technique.settled(geometry), technique.branches(branches["main"], geometry, step, steps)
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
            raise UsageError(f"{stack} leave frame {blind[0]} nothing to see", expected="a stack in which every frame sees one",
                             hint="remove a technique, or widen a window")  # fmt: skip
        rows, columns = plan.shape
        if rows < columns and not one.visible[:, -rows:].all():
            raise UsageError(f"{stack} show a chunk of {rows} latent frames less than itself",
                             expected=f"a window of {rows} or more", hint=f"--set window.frames={rows} or more")  # fmt: skip
