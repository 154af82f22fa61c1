"""The plan of one generation: everything that integers can decide, before any weight is loaded.

Legend: T latent frames, n tokens per latent frame, L layers, S steps.

A `Program` is what one layer does in one step: branches, each with its frame plan, and the fusion of their outputs into one.
`Plan.table[layer, step]` is the index of the program; 0 is the backbone's own attention. `longgen.planner` makes plans.

In a rollout every chunk has frame plans of its own, of its frames against all frames before: `Plan.programs_for_chunk`. Those in
`Plan.programs`, which are printed and exported, are the last chunk's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from longgen.backbones.spec import BackboneSpec
from longgen.conditions import NOTHING, Conditions
from longgen.frameplan import FramePlan, Geometry, full_attention
from longgen.frames import latent_frames, pixel_frames
from longgen.memory import Memory
from longgen.past import Past
from longgen.pictures import Fit
from longgen.preset import Preset, Sample
from longgen.program import Program
from longgen.sampling.chain import Chain, Clip
from longgen.sampling.rollout import Rollout
from longgen.schedule import PromptSchedule, by_chunk, seen_by, weights, weights_after
from longgen.stack import PlacedTechnique, programs_of
from longgen.technique import FrameTechnique, Grid, HeadTechnique, NoiseTechnique, Refine, Sampling

FADE_PX = 16  # frames over which those of a video file go over into decoded ones, see `longgen.shown`


@dataclass(frozen=True, eq=False)
class Plan:
    """One generation, fully decided.

    preset: as it was given; sample: with every field filled in. geometry: of the whole video. call_geometry: of what one model
    call covers, which the frame plans are for; in a rollout one chunk. programs[0] is None, the backbone's own attention.
    table: [L, S] indices into `programs`. notes: what a person should know before starting. conditions: what it starts from.
    given_lat: how many of the T latent frames, the first ones, are given by these and not sampled.
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
    conditions: Conditions = NOTHING
    given_lat: int = 0

    # Size and length

    @property
    def steps(self) -> int:
        return self.table.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        assert self.sample.size is not None
        return self.sample.size

    @property
    def written_px(self) -> int:
        """Pixel frames of the file that is written: with `--continue`, unless joined, those that are new."""
        past = self.conditions.past
        if past is None or not self.conditions.join:
            return self.new_px
        return self.new_px + (past.frames_px if past.latents is not None else self.lead_px)

    @property
    def lead(self) -> tuple[Past, float, Fit] | None:
        """The video file whose frames a joined file begins with, how many of them a second, and how they are fitted."""
        past = self.conditions.past
        if past is None or not self.conditions.join:
            return None
        if past.latents is None:
            return past, self.fps, self.conditions.fit
        return None if past.lead is None else (past.lead, past.lead_fps, past.lead_fit)

    @property
    def lead_px(self) -> int:
        """The count of these frames."""
        return 0 if self.lead is None else len(self.lead[0].sampled(self.lead[1]))

    @property
    def fade_px(self) -> int:
        """How many of these, the last ones, go over into frames that are decoded."""
        return min(FADE_PX, self.lead_px, self.decoded_px - (self.written_px - self.lead_px))

    @property
    def decoded_px(self) -> int:
        """Pixel frames that all latents decode to, those before the first new one too."""
        past = self.conditions.past
        if past is None:
            return self.frames_px
        before_lat = past.shown_lat if past.latents is not None and not self.spec.causal else self.past_lat
        return self.spec.stride_t * (before_lat - 1) + 1 + self.new_px

    @property
    def fps(self) -> int:
        """Frames a second of the file."""
        return self.sample.fps or self.spec.fps

    @property
    def past_lat(self) -> int:
        """The latent frames, the first ones, that an earlier video shows; those of a last chunk beyond its end are new ones."""
        past = self.conditions.past
        return 0 if past is None else min(self.given_lat, past.shown_lat) if self.spec.causal and past.latents else self.given_lat

    @property
    def fits(self) -> bool:
        """Whether there is a picture or an earlier video that may have to be brought to the size."""
        return bool(self.conditions) or bool(self.schedule and self.schedule.pictures)

    @property
    def new_px(self) -> int:
        """Pixel frames that are not those of an earlier video."""
        return self.frames_px if self.conditions.past is None else self.spec.stride_t * (self.frames_lat - self.past_lat)

    @property
    def duration_s(self) -> float:
        return self.written_px / self.fps

    @property
    def grid(self) -> Grid:
        """Latent frames of the video, and rows and columns of tokens in each."""
        return self.frames_lat, *self.spec.frame_grid(self.size)

    @property
    def call_grid(self) -> Grid:
        """The grid of one model call."""
        return self.call_geometry.frames_lat, *self.grid[1:]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def token_shift(self) -> float | None:
        """The flow shift of the backbone's own scheduler, where it follows from the number of tokens.

        A pipeline counts those of the whole video, in clips too; a queue, which is a loop of longgen's, those of a model call, and
        so does a chain, each of whose clips is a pipeline's run.
        """
        if self.spec.token_shift is None:
            return None
        queue = self.in_clips and self.sampling is not None and self.sampling.frame_levels
        return self.spec.token_shift.at(math.prod(self.call_grid) if queue or self.clips else self.tokens)

    # Techniques by role

    @property
    def sampling(self) -> Sampling | None:
        """The technique that decides the order of sampling; None is direct sampling."""
        return next((placed.technique for placed in self.techniques if isinstance(placed.technique, Sampling)), None)

    @property
    def refinements(self) -> tuple[tuple[Refine, tuple[int, ...]], ...]:
        """The techniques that edit the latent after a step, each with its steps."""
        return tuple((placed.technique, placed.steps) for placed in self.techniques if isinstance(placed.technique, Refine))

    @property
    def noise(self) -> NoiseTechnique | None:
        """The technique that makes the initial noise; None is independent Gaussian noise."""
        return next((p.technique for p in self.techniques if isinstance(p.technique, NoiseTechnique) and p.technique.noise), None)

    @property
    def head_groups(self) -> tuple[HeadTechnique, tuple[int, ...]] | None:
        """The technique by which groups of heads see different frames, and its layers; None where all heads see the same."""
        if not any(program is not None and program.heads for program in self.programs):
            return None
        return next((p.technique, p.layers) for p in self.techniques if isinstance(p.technique, HeadTechnique))

    # Sampling: guidance, clips, chunks

    @property
    def guided(self) -> bool:
        """Classifier-free guidance: whether the model also runs with the negative prompt, by the rule of diffusers' pipelines."""
        return not self.spec.embedded_guidance and (self.sample.guidance_scale or 0.0) > 1

    @property
    def calls(self) -> float:
        """Model calls a step, each on `call_geometry`; guidance apart. In a chain its clips, each of which takes all steps."""
        if self.clips:
            return float(len(self.clips))
        return self.sampling.calls(self._sampled_lat, self.geometry.native_lat) if self.sampling else 1.0

    @property
    def rounds(self) -> int:
        """The rounds of sampling, which progress and checkpoints count: the steps, unless a technique has its own loop."""
        if self.clips:
            return len(self.clips) * self.steps
        return self.sampling.rounds(self._sampled_lat, self.geometry.native_lat, self.steps) if self.sampling else self.steps

    @property
    def _sampled_lat(self) -> int:
        """The latent frames that sampling counts: all that are denoised together, or those of a rollout that are not given."""
        return self.frames_lat - self.given_lat * (self.sampling is not None and self.sampling.in_chunks)

    @property
    def in_clips(self) -> bool:
        """Whether a model call covers one clip of the video; several clips may be denoised in one batch."""
        if self.sampling is None or self.sampling.in_chunks or self.clips:
            return False
        return self.call_geometry.frames_lat < self.frames_lat

    @property
    def in_parts(self) -> bool:
        """Whether frames are made part after part, chunks or clips, each of which is kept on disk as soon as it is done."""
        return self.chunk_lat is not None or bool(self.clips)

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips of a chain, each made when the one before is done; none where one clip is the whole video."""
        if not isinstance(self.sampling, Chain):
            return ()
        made = self.sampling.clips(self.frames_lat, self.call_geometry.frames_lat, self.cuts)
        return made if len(made) > 1 or self.sampling.zero_padded else ()

    @property
    def cuts(self) -> tuple[int, ...]:
        """The latent frames at which a later shot of the schedule begins from a picture of its own."""
        shots = self.schedule.shots[1:] if self.schedule is not None else ()
        first_px = (math.ceil(shot.at * self.fps) for shot in shots if shot.image is not None)
        if self.conditions.past is None:
            return tuple(latent_frames(frame + 1, self.spec.stride_t) - 1 for frame in first_px)
        return tuple(self.past_lat + frame // self.spec.stride_t for frame in first_px)

    @property
    def first(self) -> Plan:
        """The plan of the pipeline's first run: in a chain that of its first clip."""
        return self.of_clip(self.clips[0]) if self.clips else self

    def of_clip(self, clip: Clip) -> Plan:
        """The plan of one clip of a chain: direct sampling of all its frames, with the part of the schedule that it sees."""
        frames_lat, first = self.call_geometry.frames_lat, clip.start - clip.given
        frames_px = pixel_frames(frames_lat, self.spec.stride_t)
        schedule = None
        if self.schedule is not None and self.shares is not None:
            before_px = self.spec.stride_t * first
            if self.conditions.past is not None:  # times are from the first new frame on
                before_px = self.spec.stride_t * (first - self.past_lat + 1) - 1 if clip.start else 0
            schedule = seen_by(self.schedule, self.shares, first, first + frames_lat, Fraction(before_px, self.fps))
        return replace(
            self, frames_px=frames_px, frames_lat=frames_lat, sample=self.sample.model_copy(update={"frames": frames_px}),
            geometry=self.call_geometry, schedule=schedule, notes=(),
            techniques=tuple(placed for placed in self.techniques if not isinstance(placed.technique, Sampling)),
            conditions=self.conditions if clip == self.clips[0] else NOTHING,
            given_lat=clip.given or (self.given_lat if clip.start == 0 else 1),
        )  # fmt: skip

    @property
    def chunk_lat(self) -> int | None:
        """Latent frames of a chunk in a rollout; None where frames are denoised together."""
        return self.call_geometry.frames_lat if self.sampling is not None and self.sampling.in_chunks else None

    @property
    def first_steps(self) -> int:
        """Denoising steps of a rollout's first new chunk; one that goes on from an earlier video has no first chunk."""
        own = self.sampling.first_steps if isinstance(self.sampling, Rollout) and self.conditions.past is None else None
        return own or self.steps

    @property
    def rounds_lat(self) -> int:
        """Latent frames of all chunks of a rollout, those that are given and the last chunk in full."""
        return self.given_lat + self.rounds * self.call_geometry.frames_lat

    @property
    def given_chunks(self) -> tuple[tuple[int, int], ...]:
        """(first frame, latent frames) of the chunks in which a rollout runs what is given: the first is shorter where they do
        not divide it, so that a run that goes on from a rollout, or from one that began with a picture, has the same chunks.
        """
        chunk = self.call_geometry.frames_lat
        first = self.given_lat % chunk
        return (*([(0, first)] if first else []), *((start, chunk) for start in range(first, self.given_lat, chunk)))

    @property
    def chunks(self) -> tuple[tuple[int, int], ...]:
        """(first frame, latent frames) of all chunks of a rollout."""
        chunk = self.call_geometry.frames_lat
        return *self.given_chunks, *((start, chunk) for start in range(self.given_lat, self.rounds_lat, chunk))

    @property
    def slots_lat(self) -> int:
        """Latent frames that a rollout's KV cache has room for: the most that a chunk needs, in any layer and step."""
        return max(int(np.any([plan.frames_cached for plan in plans], axis=0).sum()) for plans in self._chunk_plans)

    @property
    def columns_lat(self) -> int | None:
        """Key columns of a chunk at most, where they are not the cached frames in order; else None."""
        if all(plan.sources is None for plan in self._chunk_plans[-1]):
            return None
        return max(plan.shape[1] for plans in self._chunk_plans for plan in plans)

    @property
    def memory(self) -> Memory | None:
        """What slots of a rollout's KV cache hold instead of frames, in its last chunk."""
        return next((plan.memory for plan in self._chunk_plans[-1] if plan.memory is not None), None)

    @property
    def keeps_queries(self) -> bool:
        """Whether the memory reads the queries of cached frames."""
        return self.memory is not None and self.memory.queries_of is not None

    @cached_property
    def _chunk_plans(self) -> list[list[FramePlan]]:
        """The frame plans of the chunks of a rollout that need most of a cache: of the last, and where it has sources also of the
        first that has, of the one before it, and of the rest of a memory's period.
        """
        last = _frame_plans(self.programs, self.table, self.rounds_lat, self.call_geometry.frames_lat)
        if all(plan.sources is None for plan in last):
            return [last]
        period = max((plan.memory.period for plan in last if plan.memory is not None), default=1)
        by_chunk, rest = list[list[FramePlan]](), period
        for start, count in self.chunks:
            by_chunk.append(_frame_plans(*self.programs_for_chunk(start + count, count), start + count, count))
            rest -= any(plan.sources is not None for plan in by_chunk[-1])
            if not rest:
                break
        return [*by_chunk[-1 - period :], last]

    @property
    def sink_lat(self) -> int:
        """Latent frames at the beginning that the stack keeps for the whole video."""
        frame_techniques = (p.technique for p in self.techniques if isinstance(p.technique, FrameTechnique))
        return max((technique.sink_lat(self.geometry) for technique in frame_techniques), default=0)

    def programs_for_chunk(
        self,
        frames_lat: int,
        queries: int,
        held: Sequence[int] | None = None,
        since_switch: int | None = None,
        cut: bool = False,
        steps: int | None = None,
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        """The programs and table of the last `queries` frames of a rollout that has reached `frames_lat` frames.

        held: the earlier frames that are still in the cache; all by default. since_switch: see `Geometry`. cut: whether these
        frames stand apart in time, as the first of a shot with a cut do. steps: of the chunk, where they are not the plan's.
        """
        steps, stack = steps or self.steps, self.techniques
        if steps != self.steps:
            stack = tuple(replace(placed, steps=tuple(placed.technique.step_range(steps))) for placed in stack)
        geometry = replace(self.geometry, frames_lat=frames_lat, since_switch=since_switch)
        stock = full_attention(frames_lat, queries)
        if held is not None:
            frame = np.arange(frames_lat)
            present = np.isin(frame, held) | (frame >= frames_lat - queries)
            stock = stock.see_only(np.broadcast_to(present, stock.shape))
        programs, table, _ = programs_of(stack, geometry, stock, self.spec.layers, steps)
        if cut and isinstance(self.sampling, Rollout):
            used, whole = set(table.flat), [Program({"main": stock}) if program is None else program for program in programs]
            apart = functools.partial(self.sampling.cut_apart, native_lat=self.spec.native_lat)
            programs = tuple(program.each(apart) if index in used else program for index, program in enumerate(whole))
        return programs, table

    def frames_kept(self, held: Sequence[int], start: int) -> list[int]:
        """Of the frames `held` in a rollout's cache, those that stay where the prompt changes with the chunk at frame `start`."""
        if not isinstance(self.sampling, Rollout) or self.sampling.switch != "flush":
            return [*held]
        return [frame for frame in held if frame < self.sink_lat or frame >= start - self.sampling.kept]

    def programs_for_cut(self, start: int) -> tuple[tuple[Program | None, ...], np.ndarray]:
        """As `programs_for_chunk`, for the chunk at frame `start`, which begins with a cut and a change of prompt."""
        count = dict(self.chunks)[start]
        return self.programs_for_chunk(start + count, count, self.frames_kept(range(start), start), 0, True)

    @property
    def cut_starts(self) -> tuple[int, ...]:
        """Of a rollout, the first latent frames of the chunks that begin with a cut, those of an earlier run too."""
        if self.chunk_lat is None:
            return ()
        past, shots = self.conditions.past, self.schedule.shots if self.schedule is not None else ()
        starts = set(past.cuts if past is not None else ())
        if any(shot.cut for shot in shots):
            _, shares = self.chunk_texts("")
            own = shares[:, -len(shots) :]  # the first column may be an earlier run's prompt, which goes on
            chunks = [np.flatnonzero(own[:, index]) for index, shot in enumerate(shots) if shot.cut]
            starts |= {self.chunks[begins[0]][0] for begins in chunks if len(begins)}
        return tuple(start for start, _ in self.chunks if start in starts)

    @property
    def shares(self) -> np.ndarray | None:
        """[S, T]: with a schedule, the share of each shot's prompt in each latent frame."""
        if self.schedule is None:
            return None
        if self.conditions.past is None:
            return weights(self.schedule, self.frames_px, self.spec.stride_t, self.fps)
        new = weights_after(self.schedule, self.new_px, self.spec.stride_t, self.fps)
        return np.concatenate([np.repeat(np.eye(len(new))[:, :1], self.past_lat, axis=1), new], axis=1)

    def chunk_texts(self, prompt: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Of a rollout: prompts, and the share of each in each of `chunks` [chunks, P]; given ones have what they were made with.

        prompt: of a plan without schedule. A picture, or a video file, counts as made with the first prompt.
        """
        own: tuple[str, ...] = (prompt,)
        rows = np.ones((self.rounds, 1))
        if self.schedule is not None and self.shares is not None:
            own, rows = tuple(shot.prompt for shot in self.schedule.shots), np.zeros((0, len(self.schedule.shots)))
            if self.rounds:
                rows = by_chunk(self.schedule, self.shares[:, self.given_lat :], self.call_geometry.frames_lat)
        past, given = self.conditions.past, self.given_chunks
        if past is None or not past.prompts:
            return own, np.concatenate([np.repeat(np.eye(len(own))[:1], len(given), axis=0), rows])
        before = np.array([past.row_at(start) for start, _ in given])
        last = int(before[-1].argmax())
        if before[-1, last] == 1 and past.prompts[last] == own[0]:  # it goes on
            table = np.zeros((len(self.chunks), len(past.prompts) + len(own) - 1))
            table[len(given) :, [last, *range(len(past.prompts), table.shape[1])]] = rows
            own = own[1:]
        else:
            table = np.zeros((len(self.chunks), len(past.prompts) + len(own)))
            table[len(given) :, len(past.prompts) :] = rows
        table[: len(given), : len(past.prompts)] = before
        return past.prompts + own, table

    # The tables, to print and to export

    def branches(self) -> dict[str, tuple[FramePlan, list[int], list[int]]]:
        """Every distinct branch by name, with the layers and the steps that run it; `main` where there is no fusion."""
        stock = full_attention(self.rounds_lat, self.chunk_lat) if self.chunk_lat else full_attention(self.call_geometry.frames_lat)
        branches: dict[str, tuple[FramePlan, set[int], set[int]]] = {}
        labels: dict[tuple[str, str], str] = {}
        for index, program in enumerate(self.programs):
            layers, steps = (set(axis.tolist()) for axis in np.nonzero(self.table == index))
            for name, plan in {"main": stock}.items() if program is None else program.branches.items():
                if not layers:
                    continue
                if (name, plan.key) not in labels:
                    same_name = sum(other == name for other, _ in labels)
                    labels[name, plan.key] = f"{name}-{same_name + 1}" if same_name else name
                _, all_layers, all_steps = branches.setdefault(labels[name, plan.key], (plan, set(), set()))
                all_layers |= layers
                all_steps |= steps
        return {name: (plan, sorted(layers), sorted(steps)) for name, (plan, layers, steps) in branches.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables as arrays: `<branch>/<pass>/<table>` for `Pass.tables`, `<branch>/scale`, and layer and step lists.

        Where key columns have them, `<branch>/sources`, slot i of a memory as -1 - i, and `<branch>/kept`.
        """
        arrays: dict[str, np.ndarray] = {}
        for name, (plan, layers, steps) in self.branches().items():
            for index, pass_ in enumerate(plan.passes):
                arrays |= {f"{name}/{index}/{table}": array for table, array in pass_.tables.items()}
            scale = plan.frequency_scale
            if plan.sources is not None:
                arrays[f"{name}/sources"] = np.array([s if isinstance(s, int) else -1 - s.index for s in plan.sources])
                arrays[f"{name}/kept"] = np.array(plan.kept, dtype=np.int64)
            arrays[f"{name}/scale"] = np.ones(len(self.geometry.frequencies)) if scale is None else scale
            arrays |= {f"{name}/layers": np.array(layers), f"{name}/steps": np.array(steps)}
        for placed in self.techniques:
            prefix = f"techniques/{placed.name}"
            arrays |= {f"{prefix}/layers": np.array(placed.layers), f"{prefix}/steps": np.array(placed.steps)}
        return arrays


def _frame_plans(programs: Sequence[Program | None], table: np.ndarray, frames_lat: int, queries: int) -> list[FramePlan]:
    """The frame plans that the layers and steps of one chunk of a rollout run by."""
    chosen = [programs[index] for index in np.unique(table).tolist()]
    stock = [] if all(chosen) else [full_attention(frames_lat, queries)]
    return stock + [plan for program in chosen if program is not None for plan in program.branches.values()]
